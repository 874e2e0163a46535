//! Weights: from their published bits to a type that the chip multiplies.

use belay_backend::dtype::{E2M1, E4M3, bf16_to_f32, e8m0_to_f32, f32_to_bf16};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format, Precision, StoredMatrix};

use super::job::Job;
use crate::tensor::{DataType, Layout, View};
use crate::{DeviceBuffer, Pages, Region, Result};

/// Elements that are converted and copied at once.
const PIECE: usize = 1 << 20;

/// A weight `[rows, cols]` in device memory, f32 or bf16.
#[derive(Debug)]
pub struct AscendMatrix {
    region: Region,
    dtype: DataType,
    rows: usize,
    cols: usize,
}

impl AscendMatrix {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn dtype(&self) -> DataType {
        self.dtype
    }

    /// As stored, `[rows, cols]`.
    pub(super) fn view(&self) -> Result<View> {
        View::new(self.region.clone(), Layout::contiguous(self.dtype, &[self.rows, self.cols])?)
    }

    /// As a product wants it: `groups` parts of the rows, each `[cols, rows / groups]`.
    pub(super) fn transposed(&self, groups: usize) -> Result<View> {
        let (outputs, inputs) = (self.rows / groups, self.cols);
        let axes = [(groups, outputs * inputs), (inputs, 1), (outputs, inputs)];
        let axes = if groups == 1 { &axes[1..] } else { &axes[..] };
        View::new(self.region.clone(), Layout::strided(self.dtype, axes)?)
    }
}

/// Puts a weight on the device. bf16 holds every published format but f32 exactly.
pub(super) fn place(job: &mut Job<'_>, stored: &StoredMatrix, precision: Precision) -> Result<AscendMatrix> {
    let dtype = match (stored.format, precision) {
        (Format::F32, _) | (_, Precision::Full) => DataType::F32,
        _ => DataType::Bf16,
    };
    let (rows, cols) = (stored.rows, stored.cols);
    let bytes = rows * cols * dtype.bytes();
    let region = DeviceBuffer::new(job.current(), bytes, Pages::default())?.region().clone();
    let rows_at_once = (PIECE / cols.max(1)).max(1);
    let (mut row_values, mut piece) = (vec![0.0; cols], Vec::new());
    let mut done = 0;
    for first in (0..rows).step_by(rows_at_once) {
        piece.clear();
        for row in first..rows.min(first + rows_at_once) {
            decode(stored, row, &mut row_values);
            match dtype {
                DataType::F32 => piece.extend(row_values.iter().flat_map(|value| value.to_le_bytes())),
                _ => piece.extend(row_values.iter().flat_map(|value| f32_to_bf16(*value).to_le_bytes())),
            }
        }
        job.write(&region.part(done..done + piece.len())?, &piece)?;
        done += piece.len();
    }
    Ok(AscendMatrix { region, dtype, rows, cols })
}

/// Values of one row; exact.
fn decode(stored: &StoredMatrix, row: usize, out: &mut [f32]) {
    let cols = stored.cols;
    match stored.format {
        Format::F32 => {
            let data = stored.data[4 * row * cols..].as_chunks::<4>().0;
            out.iter_mut().zip(data).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
        }
        Format::Bf16 => {
            let data = stored.data[2 * row * cols..].as_chunks::<2>().0;
            out.iter_mut().zip(data).for_each(|(out, bytes)| *out = bf16_to_f32(u16::from_le_bytes(*bytes)));
        }
        Format::Fp8 => {
            let scales = &stored.scale[row / FP8_BLOCK * cols.div_ceil(FP8_BLOCK)..];
            let codes = &stored.data[row * cols..];
            for ((out, codes), scale) in out.chunks_mut(FP8_BLOCK).zip(codes.chunks(FP8_BLOCK)).zip(scales) {
                let scale = e8m0_to_f32(*scale);
                out.iter_mut().zip(codes).for_each(|(out, code)| *out = E4M3[usize::from(*code)] * scale);
            }
        }
        Format::Fp4 => {
            let scales = &stored.scale[row * cols.div_ceil(FP4_BLOCK)..];
            let codes = &stored.data[row * cols.div_ceil(2)..];
            for (column, out) in out.iter_mut().enumerate() {
                let pair = codes[column / 2];
                let code = if column % 2 == 0 { pair & 15 } else { pair >> 4 };
                *out = E2M1[usize::from(code)] * e8m0_to_f32(scales[column / FP4_BLOCK]);
            }
        }
    }
}
