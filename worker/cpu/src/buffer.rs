use std::ops::Range;

use belay_backend::{Format, StoredMatrix};

use crate::kernel::BLOCK;

/// f32 array in host memory.
#[derive(Debug)]
pub struct CpuBuffer(pub(crate) Vec<f32>);

/// i32 array in host memory.
#[derive(Debug)]
pub struct CpuIndices(pub(crate) Vec<i32>);

/// A weight in its published bits.
#[derive(Debug)]
pub struct CpuMatrix(StoredMatrix);

/// One row of a weight as stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredRow<'a> {
    pub(crate) format: Format,
    pub(crate) data: &'a [u8],
    /// One e8m0 scale for each 128 (FP8) or 32 (FP4) columns.
    pub(crate) scale: &'a [u8],
    pub(crate) cols: usize,
}

impl CpuMatrix {
    pub(crate) fn new(stored: StoredMatrix) -> Self {
        Self(stored)
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.0.cols
    }

    pub(crate) fn format(&self) -> Format {
        self.0.format
    }

    /// For reading many rows.
    pub(crate) fn stored_rows(&self) -> StoredRows<'_> {
        let StoredMatrix { rows, cols, format, ref data, ref scale } = self.0;
        let (scale_rows, scale_bytes) = match format {
            Format::F32 | Format::Bf16 => (1, 0),
            Format::Fp8 => (belay_backend::FP8_BLOCK, cols.div_ceil(belay_backend::FP8_BLOCK)),
            Format::Fp4 => (1, cols.div_ceil(belay_backend::FP4_BLOCK)),
        };
        let row_bytes = data.len() / rows.max(1);
        StoredRows { format, rows, cols, data, row_bytes, scale, scale_rows, scale_bytes }
    }

    pub(crate) fn row(&self, row: usize) -> StoredRow<'_> {
        self.stored_rows().row(row)
    }
}

/// The rows of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredRows<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    data: &'a [u8],
    row_bytes: usize,
    scale: &'a [u8],
    /// Rows that share their scales.
    scale_rows: usize,
    scale_bytes: usize,
}

impl<'a> StoredRows<'a> {
    pub(crate) fn row(&self, row: usize) -> StoredRow<'a> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        StoredRow {
            format: self.format,
            data: &self.data[row * self.row_bytes..][..self.row_bytes],
            scale: &self.scale[row / self.scale_rows * self.scale_bytes..][..self.scale_bytes],
            cols: self.cols,
        }
    }

    /// Rows in order.
    pub(crate) fn rows(self, rows: Range<usize>) -> impl Iterator<Item = StoredRow<'a>> {
        rows.map(move |row| self.row(row))
    }

    /// A block of rows, not more than [`BLOCK`], for `f`.
    pub(crate) fn block<R>(&self, rows: Range<usize>, f: impl FnOnce(&[StoredRow<'a>]) -> R) -> R {
        let mut block = [StoredRow { format: self.format, data: &[], scale: &[], cols: 0 }; BLOCK];
        block.iter_mut().zip(self.rows(rows.clone())).for_each(|(place, row)| *place = row);
        f(&block[..rows.len()])
    }
}

impl<'a> StoredRow<'a> {
    /// The row itself if it is stored as f32 and aligned, so that nothing has to be decoded.
    pub(crate) fn as_f32(self) -> Option<&'a [f32]> {
        let is_native = self.format == Format::F32 && cfg!(target_endian = "little");
        if is_native { bytemuck::try_cast_slice(self.data).ok() } else { None }
    }
}
