//! Operators, by the convention of two phases: one plans on the host and says how much workspace it needs, one queues
//! the planned work on a stream.

mod executor;
mod launcher;
mod ops;

pub use launcher::{Launcher, Plans};
