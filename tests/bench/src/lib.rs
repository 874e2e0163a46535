//! Benchmarks of serving and of the fabric, soak test, and the random models they run on.
#![forbid(unsafe_code)]

pub mod bare;
pub mod commands;
pub mod fabric;
pub mod forward;
pub mod kernels;
pub mod load;
pub mod model;
pub mod process;
pub mod proxy;
pub mod report;
pub mod serving;
pub mod soak;
