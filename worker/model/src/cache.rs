//! The memory behind decode states: how rows are stored, how they fall into pages, and who holds which page.

use std::fmt;
use std::str::FromStr;

use belay_backend::{BackendError, RowFormat, RowLayout};

mod layout;
mod pool;

pub(crate) use layout::{CacheLayout, CompressorParts, Part, REWINDABLE};
pub(crate) use pool::{HOLE, Pool};

/// How window keys, compressed entries and indexer keys are stored. What a compressor has open is f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As computed: exact.
    #[default]
    F32,
    /// bfloat16: half the memory.
    Bf16,
    /// The published FP8 layout: for a key of 512 channels 584 bytes, for an indexer key of 128 channels 132.
    Fp8,
}

impl KvFormat {
    /// All formats, the exact one first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Fp8];

    /// Of a window key or a compressed entry.
    pub(crate) fn key(self, width: usize, rotary: usize) -> RowLayout {
        let format = match self {
            Self::F32 => RowFormat::F32,
            Self::Bf16 => RowFormat::Bf16,
            Self::Fp8 => RowFormat::Fp8Key { rotary },
        };
        RowLayout { format, width }
    }

    /// Of an indexer key.
    pub(crate) fn index(self, width: usize) -> RowLayout {
        let format = match self {
            Self::F32 => RowFormat::F32,
            Self::Bf16 => RowFormat::Bf16,
            Self::Fp8 => RowFormat::Fp8Index,
        };
        RowLayout { format, width }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
}

impl FromStr for KvFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.to_string() == name);
        found.ok_or_else(|| format!("{name:?} is not f32, bf16 or fp8"))
    }
}

/// What a model keeps decode states in; fixed when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes for the states and snapshots of all sequences together.
    pub memory: usize,
    /// Storage format.
    pub format: KvFormat,
}

impl Default for CacheOptions {
    /// 4 GiB, exact.
    fn default() -> Self {
        Self { memory: 4 << 30, format: KvFormat::F32 }
    }
}

/// Bytes of the pages of decode states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All pages that there are.
    pub limit: usize,
    /// Pages that a state or a snapshot holds; a shared page counts once.
    pub used: usize,
}

/// Not enough free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for the decode state: {needed} bytes are needed, {free} are free")]
pub struct NoRoom {
    /// Bytes that would have to be free.
    pub needed: usize,
    /// Bytes that are.
    pub free: usize,
}

/// Why no cache can be made.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CacheError {
    /// Not even one token would fit.
    #[error("memory: {memory} bytes are too few: the state of one token takes {needed}")]
    TooSmall {
        /// Bytes that were given.
        memory: usize,
        /// Bytes that are needed at least.
        needed: usize,
    },
    /// The device has less than was asked for.
    #[error("memory: {0}")]
    Device(#[from] BackendError),
}
