use belay_backend::{Format, StoredMatrix};

/// f32 array in host memory.
#[derive(Debug)]
pub struct CpuBuffer(pub(crate) Vec<f32>);

/// i32 array in host memory.
#[derive(Debug)]
pub struct CpuIndices(pub(crate) Vec<i32>);

/// A weight whose bytes stay where the checkpoint has them, usually in a mapped file.
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

    pub(crate) fn row(&self, row: usize) -> StoredRow<'_> {
        let StoredMatrix { rows, cols, format, .. } = self.0;
        assert!(row < rows, "row {row} of {rows}");
        let row_bytes = self.0.data.len() / rows;
        let (scale_row, scale_bytes) = match format {
            Format::F32 | Format::Bf16 => (0, 0),
            Format::Fp8 => (row / belay_backend::FP8_BLOCK, cols.div_ceil(belay_backend::FP8_BLOCK)),
            Format::Fp4 => (row, cols.div_ceil(belay_backend::FP4_BLOCK)),
        };
        StoredRow {
            format,
            data: &self.0.data[row * row_bytes..][..row_bytes],
            scale: &self.0.scale[scale_row * scale_bytes..][..scale_bytes],
            cols,
        }
    }
}

impl<'a> StoredRow<'a> {
    /// The row itself if it is stored as f32 and aligned, so that nothing has to be decoded.
    pub(crate) fn as_f32(self) -> Option<&'a [f32]> {
        let is_native = self.format == Format::F32 && cfg!(target_endian = "little");
        if is_native { bytemuck::try_cast_slice(self.data).ok() } else { None }
    }
}
