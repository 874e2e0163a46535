//! Weights: from their published bits to a type that the chip multiplies.

use belay_backend::dtype::{E2M1, E4M3, bf16_to_f32, e8m0_to_f32, f32_to_bf16};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format, Precision, StoredMatrix};

use super::Products;
use super::job::{Job, bytes_of};
use super::quantise::{self, INT4_GROUP, INT4_MOST_INPUTS, INT4_OUTPUTS};
use crate::tensor::{DataType, Layout, View};
use crate::{DeviceBuffer, Error, Pages, Region, Result};

/// Elements that are converted and copied at once.
const PIECE: usize = 1 << 20;

/// A weight `[rows, cols]` in device memory: f32, bf16, or quantised.
#[derive(Debug)]
pub struct AscendMatrix {
    region: Region,
    dtype: DataType,
    rows: usize,
    cols: usize,
    quantised: Option<Quantised>,
}

/// What belongs to a quantised weight.
#[derive(Debug)]
pub(super) struct Quantised {
    /// Inputs as the product wants them, those of [`AscendMatrix::cols`] and zeros behind them.
    pub(super) inputs: usize,
    /// INT8: bf16 `[rows]`. INT4: 64 bits `[1, inputs / 256, rows]`, of which the lower half are an f32.
    scales: View,
    /// INT4: 8 · Σ q · s for each output, f32 `[1, rows]`.
    pub(super) bias: Option<View>,
}

impl Quantised {
    /// Scales as a product with `groups` weights of `outputs` wants them.
    pub(super) fn scales(&self, groups: usize, outputs: usize) -> Result<View> {
        if self.bias.is_some() { Ok(self.scales.clone()) } else { self.scales.reshaped(&[groups, outputs]) }
    }
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

    pub(super) fn quantised(&self) -> Option<&Quantised> {
        self.quantised.as_ref()
    }

    /// As stored, `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for a quantised one, whose rows are of no use by themselves.
    pub(super) fn view(&self) -> Result<View> {
        if self.quantised.is_some() {
            let cause = "rows of a quantised weight cannot be looked up".to_owned();
            return Err(Error::Shape { operation: "weight", cause });
        }
        View::new(self.region.clone(), Layout::contiguous(self.dtype, &[self.rows, self.cols])?)
    }

    /// As a product wants it: `groups` parts of the rows, each `[cols, rows / groups]`.
    pub(super) fn transposed(&self, groups: usize) -> Result<View> {
        let (outputs, inputs) = (self.rows / groups, self.cols);
        let axes = [(groups, outputs * inputs), (inputs, 1), (outputs, inputs)];
        let axes = if groups == 1 { &axes[1..] } else { &axes[..] };
        View::new(self.region.clone(), Layout::strided(self.dtype, axes)?)
    }

    /// As a grouped product wants it: `[groups, inputs, rows / groups]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for INT4 in more than one group.
    pub(super) fn grouped(&self, groups: usize) -> Result<View> {
        let (outputs, inputs) = (self.rows / groups, self.cols);
        match &self.quantised {
            // the one product that takes no swapped layout: it is stored as it is wanted
            Some(parts) if self.dtype == DataType::I4 => {
                if groups != 1 {
                    let cause = format!("an INT4 weight has one part, not {groups}");
                    return Err(Error::Shape { operation: "weight", cause });
                }
                View::new(self.region.clone(), Layout::contiguous(self.dtype, &[1, parts.inputs, outputs])?)
            }
            _ => {
                let axes = [(groups, outputs * inputs), (inputs, 1), (outputs, inputs)];
                View::new(self.region.clone(), Layout::strided(self.dtype, &axes)?)
            }
        }
    }
}

/// In what a weight is kept.
fn dtype_of(stored: &StoredMatrix, precision: Precision, products: Products) -> DataType {
    let fits_int4 = stored.rows.is_multiple_of(INT4_OUTPUTS) && stored.cols <= INT4_MOST_INPUTS;
    match (stored.format, precision, products) {
        (_, _, Products::F32) | (Format::F32, ..) | (_, Precision::Full, _) => DataType::F32,
        (_, Precision::Half, _) | (_, _, Products::Bf16) => DataType::Bf16,
        (_, Precision::Expert, Products::Int4Experts) if fits_int4 => DataType::I4,
        (_, Precision::Working | Precision::Expert, Products::Int8 | Products::Int4Experts) => DataType::I8,
    }
}

/// Puts a weight on the device. bf16 holds every published format but f32 exactly; what 8 and 4 bits lose is said in
/// [`quantise`].
pub(super) fn place(
    job: &mut Job<'_>,
    stored: &StoredMatrix,
    precision: Precision,
    products: Products,
) -> Result<AscendMatrix> {
    let dtype = dtype_of(stored, precision, products);
    if dtype == DataType::I4 {
        return place_int4(job, stored);
    }
    let (rows, cols) = (stored.rows, stored.cols);
    let bytes = rows * cols * dtype.bytes();
    let region = allocated(job, bytes)?;
    let rows_at_once = (PIECE / cols.max(1)).max(1);
    let (mut row_values, mut piece) = (vec![0.0; cols], Vec::new());
    let (mut codes, mut scales) = (vec![0i8; cols], Vec::new());
    let mut done = 0;
    for first in (0..rows).step_by(rows_at_once) {
        piece.clear();
        for row in first..rows.min(first + rows_at_once) {
            decode(stored, row, &mut row_values);
            match dtype {
                DataType::F32 => piece.extend(row_values.iter().flat_map(|value| value.to_le_bytes())),
                DataType::I8 => {
                    finite(&row_values)?;
                    let scale = quantise::int8(&row_values, &mut codes);
                    scales.extend(f32_to_bf16(scale).to_le_bytes());
                    piece.extend(codes.iter().map(|code| *code as u8));
                }
                _ => piece.extend(row_values.iter().flat_map(|value| f32_to_bf16(*value).to_le_bytes())),
            }
        }
        job.write(&region.part(done..done + piece.len())?, &piece)?;
        done += piece.len();
    }
    let quantised = match dtype {
        DataType::I8 => {
            let scales = uploaded(job, Layout::contiguous(DataType::Bf16, &[rows])?, &scales)?;
            Some(Quantised { inputs: cols, scales, bias: None })
        }
        _ => None,
    };
    Ok(AscendMatrix { region, dtype, rows, cols, quantised })
}

/// INT4 `[inputs, rows]`: two outputs to a byte, the first in the lower half.
fn place_int4(job: &mut Job<'_>, stored: &StoredMatrix) -> Result<AscendMatrix> {
    let (rows, cols) = (stored.rows, stored.cols);
    let inputs = cols.next_multiple_of(INT4_GROUP);
    let groups = inputs / INT4_GROUP;
    let mut packed = vec![0u8; inputs * rows / 2];
    let (mut scales, mut bias) = (vec![0u64; groups * rows], vec![0.0f32; rows]);
    let (mut values, mut codes) = (vec![0.0; inputs], [0i8; INT4_GROUP]);
    for row in 0..rows {
        decode(stored, row, &mut values[..cols]);
        finite(&values)?;
        let mut sum = 0.0f64;
        for (group, values) in values.chunks_exact(INT4_GROUP).enumerate() {
            let scale = quantise::int4(values, &mut codes);
            scales[group * rows + row] = u64::from(scale.to_bits());
            sum += f64::from(scale) * f64::from(codes.iter().map(|code| i32::from(*code)).sum::<i32>());
            for (input, code) in codes.iter().enumerate() {
                let nibble = (*code as u8 & 15) << (4 * (row % 2));
                packed[((group * INT4_GROUP + input) * rows + row) / 2] |= nibble;
            }
        }
        bias[row] = (8.0 * sum) as f32;
    }
    let region = allocated(job, packed.len())?;
    job.write(&region, &packed)?;
    let scales = uploaded(job, Layout::contiguous(DataType::U64, &[1, groups, rows])?, bytes_of(&scales))?;
    let bias = uploaded(job, Layout::contiguous(DataType::F32, &[1, rows])?, bytes_of(&bias))?;
    let quantised = Some(Quantised { inputs, scales, bias: Some(bias) });
    Ok(AscendMatrix { region, dtype: DataType::I4, rows, cols, quantised })
}

fn allocated(job: &Job<'_>, bytes: usize) -> Result<Region> {
    Ok(DeviceBuffer::new(job.current(), bytes, Pages::default())?.region().clone())
}

fn uploaded(job: &mut Job<'_>, layout: Layout, bytes: &[u8]) -> Result<View> {
    let region = allocated(job, layout.bytes())?;
    job.write(&region, bytes)?;
    View::new(region, layout)
}

/// Refuses what has no scale.
fn finite(values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => {
            Err(Error::Shape { operation: "weight", cause: format!("{value} cannot be quantised") })
        }
        None => Ok(()),
    }
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
