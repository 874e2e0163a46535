//! The seam between the model and what computes it: buffers, dtypes, a small op set, the fabric trait.
#![forbid(unsafe_code)]

mod fabric;

pub use fabric::{ExpertCompute, Fabric, FabricError, Route};
