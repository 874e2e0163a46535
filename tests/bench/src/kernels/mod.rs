//! Kernels at the sizes of DeepSeek-V4-Flash, against what the machine can do and against other engines.

mod case;
mod memory;
mod peer;
mod report;
mod run;
pub mod work;

pub use report::{KernelRow, markdown, write};
pub use run::{Plan, run};

/// D, channels of a row.
pub const HIDDEN: usize = 4096;
/// I, inner width of an expert.
pub const INNER: usize = 2048;
/// Routed experts of a layer.
pub const EXPERTS: usize = 256;
/// Experts of a token.
pub const ACTIVE: usize = 6;
