//! The seam between the model and what computes it: buffers, dtypes, a small op set, the fabric trait.
#![forbid(unsafe_code)]

mod backend;
mod collective;
pub mod dtype;
mod error;
mod fabric;
mod paged;
mod stored;

pub use backend::{
    Attention, Backend, Compress, Entries, ExpertRows, Experts, HyperShape, MAX_STREAMS, Rotary, Rows, Select,
};
pub use collective::{Collective, DeviceExperts, RoundAnswer, RoundAsk, Seat, Sitting};
pub use error::{BackendError, Result};
pub use fabric::{ExpertCompute, Fabric, FabricError, Route};
pub use paged::{KEY_BLOCK, PagedRows, RowFormat, RowLayout, Run};
pub use stored::{Bytes, FP4_BLOCK, FP8_BLOCK, Format, Precision, StoredMatrix};
