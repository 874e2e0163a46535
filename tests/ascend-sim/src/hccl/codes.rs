//! The documented results of HCCL's functions.

use std::ffi::CStr;

use crate::failure::{Failure, Outcome};

/// A parameter is wrong.
pub const PARA: i32 = 1;
/// A pointer is null.
pub const PTR: i32 = 2;
/// A fault of the simulator itself.
pub const INTERNAL: i32 = 4;
/// The type or feature is not supported.
pub const NOT_SUPPORT: i32 = 5;
/// A system call failed.
pub const SYSCALL: i32 = 8;
/// Something took too long.
pub const TIMEOUT: i32 = 9;
/// A file can't be opened.
pub const OPEN_FILE: i32 = 10;
/// A TCP connection can't be made.
pub const TCP_CONNECT: i32 = 11;
/// A TCP connection broke.
pub const TCP_TRANSFER: i32 = 13;
/// The runtime refused a call.
pub const RUNTIME: i32 = 15;
/// Something is under way: try again.
pub const AGAIN: i32 = 20;
/// A peer is lost.
pub const REMOTE: i32 = 21;
/// The communicator is suspended.
pub const SUSPENDING: i32 = 22;

/// What a result means, as `HcclGetErrorString` says it.
pub fn text(code: i32) -> &'static CStr {
    match code {
        0 => c"no error",
        PARA => c"parameter error",
        PTR => c"empty pointer",
        3 => c"memory error",
        INTERNAL => c"internal error",
        NOT_SUPPORT => c"not support feature",
        6 => c"not found specific resource",
        7 => c"resource unavailable",
        SYSCALL => c"call system interface error",
        TIMEOUT => c"timeout",
        OPEN_FILE => c"open file fail",
        TCP_CONNECT => c"tcp connect fail",
        12 => c"roce connect fail",
        TCP_TRANSFER => c"tcp transfer fail",
        14 => c"roce transfer fail",
        RUNTIME => c"call runtime api fail",
        16 => c"call driver api fail",
        17 => c"call profiling api fail",
        18 => c"call cce api fail",
        19 => c"call network api fail",
        AGAIN => c"try again",
        REMOTE => c"error cqe",
        SUSPENDING => c"error communicator suspending",
        23 => c"retry constraint",
        24 => c"out of memory",
        _ => c"unknown error",
    }
}

/// What the runtime refuses is HCCL's result 15.
pub fn runtime<T>(outcome: Outcome<T>) -> Outcome<T> {
    outcome.map_err(|failure| Failure { code: RUNTIME, ..failure })
}
