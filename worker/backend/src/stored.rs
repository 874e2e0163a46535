//! Weights as a checkpoint stores them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{BackendError, Result};

/// Columns (and rows) that share one scale in the FP8 format.
pub const FP8_BLOCK: usize = 128;
/// Columns of one row that share one scale in the MXFP4 format.
pub const FP4_BLOCK: usize = 32;

/// A shared, read-only range of bytes, usually of a mapped checkpoint file. Cloning copies no data.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of `owner`; `None` if the range does not lie inside.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

/// How a matrix is stored. Each value is exact in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Little-endian f32.
    F32,
    /// Little-endian bfloat16.
    Bf16,
    /// e4m3 with one e8m0 scale for each block of 128 × 128.
    Fp8,
    /// e2m1, two to a byte, low nibble first, with one e8m0 scale for each row and 32 columns.
    Fp4,
}

impl Format {
    /// Whether the reference rounds the activations that meet such a weight to FP8.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp4)
    }

    /// Bytes of the data and of the scales of a `rows` × `cols` matrix.
    pub fn bytes(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::F32 => (rows * cols * 4, 0),
            Self::Bf16 => (rows * cols * 2, 0),
            Self::Fp8 => (rows * cols, rows.div_ceil(FP8_BLOCK) * cols.div_ceil(FP8_BLOCK)),
            Self::Fp4 => (rows * cols.div_ceil(2), rows * cols.div_ceil(FP4_BLOCK)),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp4 => "mxfp4",
        })
    }
}

/// How exact products with a weight have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// That in which the device multiplies fastest: bf16, or 8 bits where the backend was told to quantise.
    Working,
    /// As [`Self::Working`] for the weights of routed experts. They are most of a model and each token meets few of them,
    /// so a backend may be told to take fewer bits for them than for the rest.
    Expert,
    /// bf16 at least: a table whose rows are looked up, or what chooses what is attended to.
    Half,
    /// f32: what chooses, or is summed up over many tokens.
    Full,
}

/// A matrix `[rows, cols]`, row-major, in its published bits.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What the bytes mean.
    pub format: Format,
    /// Values.
    pub data: Bytes,
    /// e8m0 scales; empty for formats without.
    pub scale: Bytes,
}

impl StoredMatrix {
    /// # Errors
    /// [`BackendError::Size`] if the bytes do not fit the shape.
    pub fn new(rows: usize, cols: usize, format: Format, data: Bytes, scale: Bytes) -> Result<Self> {
        let (data_bytes, scale_bytes) = format.bytes(rows, cols);
        for (part, expected, found) in [("data", data_bytes, data.len()), ("scale", scale_bytes, scale.len())]
        {
            if expected != found {
                return Err(BackendError::Size { part, rows, cols, format, expected, found });
            }
        }
        Ok(Self { rows, cols, format, data, scale })
    }

    /// Touches every page, so that a mapped file is resident afterwards, and refuses codes that are no numbers.
    ///
    /// # Errors
    /// [`BackendError::NotANumber`] with the place of the first such code.
    pub fn check_codes(&self) -> Result<()> {
        if self.format != Format::Fp8 {
            // a byte of each page; any code is a number
            std::hint::black_box(self.data.iter().step_by(4096).fold(0u8, |sum, byte| sum ^ byte));
        } else if let Some(at) = self.data.iter().position(|code| code & 0x7f == 0x7f) {
            return Err(BackendError::NotANumber { part: "data", at });
        }
        match self.scale.iter().position(|&code| code == 255) {
            Some(at) => Err(BackendError::NotANumber { part: "scale", at }),
            None => Ok(()),
        }
    }

    /// Bytes as stored, scales included.
    pub fn bytes(&self) -> u64 {
        (self.data.len() + self.scale.len()) as u64
    }
}
