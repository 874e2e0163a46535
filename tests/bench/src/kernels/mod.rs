//! Kernels at the sizes of DeepSeek-V4-Flash, against what the machine can do and against other engines.

mod case;
mod context;
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
/// Heads of the core attention, and of the indexer.
pub const HEADS: usize = 64;
/// Channels of a head, and of the key that all of them share.
pub const HEAD: usize = 512;
/// Rotary ones among them.
pub const ROTARY: usize = 64;
/// Sliding window.
pub const WINDOW: usize = 128;
/// Tokens of an entry that the indexer chooses from.
pub const SELECTED_RATIO: usize = 4;
/// Tokens of an entry that every query sees.
pub const VISIBLE_RATIO: usize = 128;
/// Entries that the indexer chooses.
pub const CHOSEN: usize = 512;
/// Channels of an indexer's head and key.
pub const INDEX_HEAD: usize = 128;
