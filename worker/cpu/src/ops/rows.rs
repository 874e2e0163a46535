//! Cached rows: into their format and back.

use belay_backend::dtype::{f32_to_bf16, f32_to_e4m3, pow2_ceil};
use belay_backend::{Format, KEY_BLOCK, PagedRows, RowFormat, RowLayout};

use super::rounding::{E4M3_FLOOR, E4M3_MAX, magnitude};
use crate::arena::CpuArena;
use crate::buffer::StoredRow;
use crate::kernel::Kernels;

/// Writes one row in its format. `bytes` is as long as the layout says.
pub(crate) fn encode(layout: RowLayout, row: &[f32], bytes: &mut [u8]) {
    match layout.format {
        RowFormat::F32 => bytes.copy_from_slice(bytemuck::cast_slice(row)),
        RowFormat::Bf16 => encode_bf16(row, bytes),
        RowFormat::Fp8Key { rotary } => {
            let plain = layout.width - rotary;
            let (codes, rest) = bytes.split_at_mut(plain);
            let (turned, scales) = rest.split_at_mut(2 * rotary);
            scales.fill(0);
            for ((block, codes), code) in
                row[..plain].chunks(KEY_BLOCK).zip(codes.chunks_mut(KEY_BLOCK)).zip(scales)
            {
                *code = e8m0(encode_e4m3(block, codes));
            }
            encode_bf16(&row[plain..], turned);
        }
        RowFormat::Fp8Index => {
            let (codes, scale) = bytes.split_at_mut(layout.width);
            scale.copy_from_slice(&encode_e4m3(row, codes).to_le_bytes());
        }
    }
}

fn encode_bf16(values: &[f32], bytes: &mut [u8]) {
    for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(2)) {
        bytes.copy_from_slice(&f32_to_bf16(*value).to_le_bytes());
    }
}

/// Returns the block's scale, a power of two.
fn encode_e4m3(block: &[f32], codes: &mut [u8]) -> f32 {
    let scale = pow2_ceil(magnitude(block).max(E4M3_FLOOR) / E4M3_MAX);
    for (code, value) in codes.iter_mut().zip(block) {
        *code = f32_to_e4m3(value / scale);
    }
    scale
}

/// The code of a power of two in the range of e8m0.
fn e8m0(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

/// Reads one row.
pub(crate) fn decode(kernels: Kernels, layout: RowLayout, bytes: &[u8], row: &mut [f32]) {
    match layout.format {
        RowFormat::F32 => row.copy_from_slice(bytemuck::cast_slice(bytes)),
        RowFormat::Bf16 => decode_bf16(kernels, bytes, row),
        RowFormat::Fp8Key { rotary } => {
            let (plain, turned) = row.split_at_mut(layout.width - rotary);
            let (codes, rest) = bytes.split_at(plain.len());
            let (turned_bytes, scales) = rest.split_at(2 * rotary);
            for ((block, codes), &scale) in
                plain.chunks_mut(KEY_BLOCK).zip(codes.chunks(KEY_BLOCK)).zip(scales)
            {
                decode_e4m3(kernels, codes, scale, block);
            }
            decode_bf16(kernels, turned_bytes, turned);
        }
        RowFormat::Fp8Index => {
            let (codes, scale) = bytes.split_at(layout.width);
            let scale = e8m0(f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]));
            for (block, codes) in row.chunks_mut(KEY_BLOCK).zip(codes.chunks(KEY_BLOCK)) {
                decode_e4m3(kernels, codes, scale, block);
            }
        }
    }
}

fn decode_bf16(kernels: Kernels, data: &[u8], row: &mut [f32]) {
    kernels.decode(StoredRow { format: Format::Bf16, data, scale: &[], cols: row.len() }, row);
}

fn decode_e4m3(kernels: Kernels, data: &[u8], scale: u8, block: &mut [f32]) {
    let cols = block.len();
    kernels.decode(StoredRow { format: Format::Fp8, data, scale: &[scale], cols }, block);
}

/// Writes consecutive rows.
pub(crate) fn store<'a>(
    arena: &mut CpuArena,
    to: PagedRows<'_>,
    first: usize,
    mut rows: impl ExactSizeIterator<Item = &'a [f32]>,
) {
    for run in to.runs(first..first + rows.len()) {
        let bytes = arena.run_mut(&to, &run);
        for (bytes, row) in bytes.chunks_exact_mut(to.layout.bytes()).zip(&mut rows) {
            encode(to.layout, row, bytes);
        }
    }
}

/// Reads consecutive rows to `out`, `[rows, width]`.
pub(crate) fn fetch(
    kernels: Kernels,
    arena: &CpuArena,
    from: PagedRows<'_>,
    rows: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let mut out = out.chunks_exact_mut(from.layout.width);
    for run in from.runs(rows) {
        let bytes = arena.run(&from, &run).chunks_exact(from.layout.bytes());
        for (bytes, row) in bytes.zip(&mut out) {
            decode(kernels, from.layout, bytes, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Level;
    use crate::ops::rounding;

    fn levels() -> impl Iterator<Item = Kernels> {
        Level::ALL.into_iter().filter_map(Kernels::new)
    }

    fn round_trip(layout: RowLayout, row: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0xff; layout.bytes()];
        encode(layout, row, &mut bytes);
        let mut found = levels().map(|kernels| {
            let mut out = vec![f32::NAN; layout.width];
            decode(kernels, layout, &bytes, &mut out);
            out
        });
        let reference = found.next().unwrap_or_default();
        assert!(found.all(|other| other == reference), "levels differ");
        reference
    }

    fn row(width: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
        (width, -20i32..20).prop_flat_map(|(width, exponent)| {
            let value = (-4f32..4.0).prop_map(move |x| x * 2f32.powi(exponent));
            prop::collection::vec(value, width)
        })
    }

    proptest! {
        #[test]
        fn f32_rows_come_back_as_they_were(row in row(1..200)) {
            prop_assert_eq!(round_trip(RowLayout { format: RowFormat::F32, width: row.len() }, &row), row);
        }

        #[test]
        fn bf16_rows_are_the_nearest(row in row(1..200)) {
            let found = round_trip(RowLayout { format: RowFormat::Bf16, width: row.len() }, &row);
            for (found, x) in found.iter().zip(&row) {
                prop_assert_eq!(*found, half::bf16::from_f32(*x).to_f32());
            }
        }

        /// The plain channels are what the published code's rounding leaves, the rotary ones what bf16 leaves.
        #[test]
        fn fp8_keys_are_rounded_as_published(row in row(17..300)) {
            let layout = RowLayout { format: RowFormat::Fp8Key { rotary: 16 }, width: row.len() };
            let found = round_trip(layout, &row);
            let plain = row.len() - 16;
            let mut expected = row.clone();
            rounding::e4m3(&mut expected[..plain], KEY_BLOCK);
            for x in &mut expected[plain..] {
                *x = half::bf16::from_f32(*x).to_f32();
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(round_trip(layout, &found), expected, "storing again changes nothing");
        }

        #[test]
        fn fp8_index_keys_have_one_scale(row in row(1..200)) {
            let layout = RowLayout { format: RowFormat::Fp8Index, width: row.len() };
            let mut expected = row.clone();
            rounding::e4m3(&mut expected, row.len());
            prop_assert_eq!(round_trip(layout, &row), expected);
        }
    }
}
