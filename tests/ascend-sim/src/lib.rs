//! A simulator with the C ABI of CANN, written from its documentation.
//!
//! The exported functions have CANN's names and calling convention. Their safety contract is that of the
//! documented C function: out-pointers are null (refused) or writable, arrays have the length that is passed,
//! strings end with a zero byte. Handles and device addresses need no promise: they are looked up, and a
//! stale or foreign one is refused. See the crate's README for what is simulated and what is not.

pub mod api;
pub mod codes;
mod command;
pub mod config;
pub mod context;
pub mod control;
pub mod dtype;
pub mod event;
pub mod executor;
pub mod failure;
pub mod graph;
pub mod hccl;
pub mod heap;
pub mod host;
pub mod machine;
pub mod memory;
pub mod ops;
pub mod out;
pub mod registry;
pub mod stream;
pub mod symbols;
pub mod tensor;
pub mod view;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whether or not a thread panicked while it held the lock: the state behind these locks is whole
/// after every statement that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
