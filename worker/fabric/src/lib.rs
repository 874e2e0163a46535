//! Expert dispatch and combine: in process, and framed TCP between the workers of a group.
//!
//! [`InProcess`] serves a worker that holds every expert, [`Group`] one that shares them with other workers.
//! Both implement [`belay_backend::Fabric`]: results come back one per route, in route order, never added up, so
//! the asker's sum has the same bits wherever an expert lives.
//!
//! ```text
//! Group ── pulse (a thread per peer: connections, pings) ─ health ─┐
//!   │                                placement ──────────────────── routing ─ coverage
//!   │                                                                  │
//!   ├─ exchange: assign ─ link ─ progress ◄────────────────────────────┤
//!   ├─ rounds: circles of devices that exchange rows by themselves     │
//!   ├─ server (a thread per connection): answer                        │
//!   └─ keeper: adoption of orphans ◄───────────────────────────────────┘
//! ```
//!
//! What a group does when workers are lost: `docs/reference/experts.md`. The wire format: [`wire`].
#![forbid(unsafe_code)]

mod adoption;
mod answer;
mod assign;
mod auth;
mod coverage;
mod dial;
mod exchange;
mod fault;
mod group;
mod handshake;
mod health;
mod in_process;
mod keeper;
mod landing;
mod link;
mod load;
mod peer;
mod progress;
mod pulse;
mod ranks;
mod rounds;
mod routing;
mod rows;
mod server;
mod shared;
mod socket;
mod stats;
mod sync;
mod table;
mod timeouts;
pub mod wire;

pub use adoption::Adopter;
pub use coverage::Coverage;
pub use fault::Fault;
pub use group::{Group, Options};
pub use handshake::Identity;
pub use health::Health;
pub use in_process::InProcess;
pub use load::Loads;
pub use peer::PeerState;
pub use rounds::CircleState;
pub use rows::{RowFormat, SCALED_CHANNELS};
pub use stats::{Latency, Stats, StatsSnapshot};
pub use table::{Placement, PlacementError, Table, WorkerEntry};
pub use timeouts::Timeouts;
