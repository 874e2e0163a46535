//! DeepSeek-V4: configuration, checkpoint, forward; generic over the backend.
//!
//! ```text
//! Checkpoint::open(dir) ─┬─ Model::load ──────────── dense weights
//!                        └─ ExpertBank::load(pairs) ─ routed experts, behind a Fabric
//! Model::new_state → State; Model::forward(Scratch, [Segment { State, tokens }], Fabric) → logits
//!                           Model::draft(Scratch, [Draft { State, token }], Fabric) → guesses
//! Model::snapshot(State) → Snapshot; Model::restore(Snapshot) → State; Model::rewind(State, position)
//! ```
#![deny(unsafe_code)]

mod attention;
mod cache;
mod card;
mod checkpoint;
mod compressor;
mod config;
mod error;
mod experts;
mod forward;
mod halves;
mod hyper_connection;
mod indexer;
mod layer;
mod linear;
mod mtp;
mod numerics;
mod rope;
mod router;
mod scratch;
mod state;
mod step;
mod trace;

pub use cache::{CacheError, CacheOptions, KvFormat, Memory, NoRoom};
pub use card::ModelCard;
pub use checkpoint::{Checkpoint, CheckpointError, Drafting, DraftingError};
pub use config::{Config, ConfigError, IndexerConfig, LayerKind, RouterKind, Yarn};
pub use error::ForwardError;
pub use experts::{ExpertBank, LocalExperts};
pub use forward::Model;
pub use linear::Progress;
pub use mtp::Draft;
pub use numerics::Numerics;
pub use scratch::Scratch;
pub use state::{Snapshot, State};
pub use step::{Logits, Segment};
pub use trace::{NoTrace, Trace};
