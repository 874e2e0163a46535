//! Expert dispatch and combine: in process, and framed TCP between the workers of a group.
//!
//! [`InProcess`] serves a worker that holds every expert, [`Group`] one that shares them with other workers.
//! Both implement [`belay_backend::Fabric`]: results come back one per route, in route order, never added up, so
//! the asker's sum has the same bits wherever an expert lives.
//!
//! The wire format is described in [`wire`].
#![forbid(unsafe_code)]

mod assign;
mod deadline;
mod group;
mod handshake;
mod in_process;
mod peer;
mod ranks;
mod server;
mod stats;
mod table;
pub mod wire;

pub use group::{Group, PeerState, Timeouts};
pub use handshake::Identity;
pub use in_process::InProcess;
pub use stats::{Latency, Stats, StatsSnapshot};
pub use table::{Placement, PlacementError, Table, WorkerEntry};
