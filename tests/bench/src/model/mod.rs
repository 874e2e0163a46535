//! Random DeepSeek-V4 models in the published layout (FP8 + MXFP4, index and shards), for measurements: the work of a
//! forward depends on the shapes, not on what the weights know.
//!
//! The same preset and seed give the same bytes on every machine: values come from bytes of one generator per tensor by
//! tables, and no function of the system's mathematics library takes part.

mod config;
mod preset;
mod tensors;
mod values;
mod write;

pub use preset::Preset;
pub use tensors::{Fill, Kind, Tensor, shards};
pub use write::{Written, cached, write};
