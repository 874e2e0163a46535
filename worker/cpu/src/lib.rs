//! The CPU backend: a scalar reference of each op and vectorised kernels chosen at run time.
//!
//! Contract 1 (exact): every reduction has an order that depends on its length and the kernel level alone, so a row's
//! result has the same bits whatever is computed beside it and by however many threads.

#[cfg(target_arch = "x86_64")]
mod amx;
mod arena;
mod backend;
mod buffer;
mod kernel;
mod level;
#[cfg(all(feature = "limits", target_arch = "x86_64"))]
pub mod limits;
mod linear;
mod ops;
mod panel;
mod pool;
mod products;
mod shared;
mod weights;

pub use arena::CpuArena;
pub use backend::{CpuBackend, RowsRead};
pub use buffer::{CpuBuffer, CpuIndices, CpuMatrix};
pub use level::{Level, UnknownLevel};
pub use products::Products;
pub use weights::Weights;
