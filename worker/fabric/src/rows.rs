//! The form in which rows travel.
//!
//! Rows that stay here are rounded to the same form, before an expert takes them and after it gave them back: so a
//! result has the same bits wherever the expert lives.

use std::fmt;
use std::str::FromStr;

use belay_backend::dtype::e8m0_to_f32;
use pulp::Arch;

use crate::socket::{HEAD_BYTES, INBOX_BYTES};

/// Channels that share a scale in [`RowFormat::Fp8`].
pub const SCALED_CHANNELS: usize = 128;

/// Largest finite e4m3 value.
const E4M3_MAX: f32 = 448.0;

/// Form of the rows of asks and results. All workers of a group use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowFormat {
    /// `f32`: nothing is rounded.
    #[default]
    F32,
    /// `bf16`, nearest, ties to even.
    Bf16,
    /// OCP e4m3, nearest, ties to even. Every 128 channels share a scale 2^s, the smallest with which none of them
    /// exceeds 448; what is not finite becomes NaN. A row is its codes, then a byte s + 127 for each 128 channels.
    Fp8,
}

impl RowFormat {
    /// All formats, by code.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Fp8];

    /// Name in options: `f32`, `bf16`, `fp8`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    /// Bytes of a row of `hidden` channels.
    #[must_use]
    pub const fn row_bytes(self, hidden: usize) -> usize {
        match self {
            Self::F32 => 4 * hidden,
            Self::Bf16 => 2 * hidden,
            Self::Fp8 => hidden + hidden.div_ceil(SCALED_CHANNELS),
        }
    }

    /// Appends rows of `hidden` channels.
    pub fn encode(self, rows: &[f32], hidden: usize, out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend_from_slice(bytemuck::cast_slice(rows)),
            Self::Bf16 => widest().dispatch(|| encode_bf16(rows, out)),
            Self::Fp8 => widest().dispatch(|| encode_fp8(rows, hidden, out)),
        }
    }

    /// Reads one row; `bytes` is `row_bytes(row.len())` long.
    pub fn decode(self, bytes: &[u8], row: &mut [f32]) {
        match self {
            Self::F32 => bytemuck::cast_slice_mut(row).copy_from_slice(bytes),
            Self::Bf16 => widest().dispatch(|| decode_bf16(bytes, row)),
            Self::Fp8 => widest().dispatch(|| decode_fp8(bytes, row)),
        }
    }

    /// What [`Self::decode`] makes of [`Self::encode`], in place, for rows of `hidden` channels.
    pub fn round(self, rows: &mut [f32], hidden: usize) {
        match self {
            Self::F32 => {}
            Self::Bf16 => widest().dispatch(|| {
                rows.iter_mut().for_each(|value| *value = wide(bf16(*value)));
            }),
            Self::Fp8 => widest().dispatch(|| {
                let mut codes = [0u8; SCALED_CHANNELS];
                for block in rows.chunks_exact_mut(hidden).flat_map(|row| row.chunks_mut(SCALED_CHANNELS)) {
                    let codes = &mut codes[..block.len()];
                    let scale = encode_block(block, codes);
                    decode_block(codes, scale, block);
                }
            }),
        }
    }

    /// Bytes to read at once before it is known what comes: rows that travel as they lie are better read to their place.
    pub(crate) const fn read_ahead(self) -> usize {
        match self {
            Self::F32 => HEAD_BYTES,
            Self::Bf16 | Self::Fp8 => INBOX_BYTES,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(code as usize).copied()
    }
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RowFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| format!("{name:?} is none of f32, bf16, fp8"))
    }
}

/// Values that are converted at a time.
const BLOCK: usize = 256;

/// The widest vectors that this processor has: what is dispatched is compiled once for each width.
fn widest() -> Arch {
    Arch::new()
}

#[inline(always)]
fn encode_bf16(values: &[f32], out: &mut Vec<u8>) {
    // through a block that stays in the first cache: nothing is zeroed first
    let mut block = [0u16; BLOCK];
    for values in values.chunks(BLOCK) {
        let halves = &mut block[..values.len()];
        halves.iter_mut().zip(values).for_each(|(half, value)| *half = bf16(*value));
        out.extend_from_slice(bytemuck::cast_slice(halves));
    }
}

#[inline(always)]
fn decode_bf16(bytes: &[u8], row: &mut [f32]) {
    for (value, half) in row.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = wide(u16::from_le_bytes(*half));
    }
}

#[inline(always)]
fn wide(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// As `belay_backend::dtype::f32_to_bf16`, without a branch, so that a row is converted several values at a time.
#[inline(always)]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// As `belay_backend::dtype::f32_to_e4m3` for magnitudes up to 448, without a branch; anything else is NaN.
#[inline(always)]
fn e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 24) & 0x80, bits & 0x7fff_ffff);
    // 20 mantissa bits go; the exponent's bias falls from 127 to 7
    let normal = (magnitude.wrapping_add(0x7_ffff + ((magnitude >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    // below 2^-6 codes are steps of 2^-9, which is the last mantissa bit of numbers around 2^14
    let steps = (f32::from_bits(magnitude) + 16384.0).to_bits() & 0xf;
    let code = if magnitude < 0x3c80_0000 { steps } else { normal };
    (sign | if magnitude > E4M3_MAX.to_bits() { 0x7f } else { code }) as u8
}

/// As `belay_backend::dtype::E4M3`, without the table, which vectors can't look up.
#[inline(always)]
fn of_e4m3(code: u8) -> f32 {
    let (sign, low) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7f));
    // the exponent's bias rises from 7 to 127; below 2^-6 codes are steps of 2^-9
    let normal = f32::from_bits((low << 20) + (120 << 23));
    let steps = low as f32 * (1.0 / 512.0);
    let magnitude = if low < 8 { steps } else { normal };
    let magnitude = if low == 0x7f { f32::NAN } else { magnitude };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// `(1 / scale, s + 127)` of one block.
#[inline(always)]
fn scales(block: &[f32]) -> (f32, u8) {
    let finite = |value: &f32| if value.is_finite() { value.abs() } else { 0.0 };
    let largest = block.iter().map(finite).fold(0.0, f32::max);
    // smallest s with largest ≤ 448 · 2^s; 448 = 1.75 · 2^8
    let bits = largest.to_bits();
    let above = u32::from(bits & 0x007f_ffff > 0x0060_0000);
    let power = ((bits >> 23) + above) as i32 - 127 - 8;
    // both the scale and its inverse stay normal
    let power = power.clamp(-120, 120);
    let of = |power: i32| f32::from_bits(((power + 127) as u32) << 23);
    (of(-power), (power + 127) as u8)
}

#[inline(always)]
fn encode_fp8(rows: &[f32], hidden: usize, out: &mut Vec<u8>) {
    for row in rows.chunks_exact(hidden) {
        let start = out.len();
        out.resize(start + RowFormat::Fp8.row_bytes(hidden), 0);
        let (codes, bytes) = out[start..].split_at_mut(hidden);
        let blocks = row.chunks(SCALED_CHANNELS).zip(codes.chunks_mut(SCALED_CHANNELS));
        for ((values, codes), byte) in blocks.zip(bytes) {
            *byte = encode_block(values, codes);
        }
    }
}

#[inline(always)]
fn decode_fp8(bytes: &[u8], row: &mut [f32]) {
    let (codes, scales) = bytes.split_at(row.len());
    let blocks = row.chunks_mut(SCALED_CHANNELS).zip(codes.chunks(SCALED_CHANNELS));
    for ((values, codes), &scale) in blocks.zip(scales) {
        decode_block(codes, scale, values);
    }
}

/// Returns the scale's byte.
#[inline(always)]
fn encode_block(values: &[f32], codes: &mut [u8]) -> u8 {
    let (inverse, scale) = scales(values);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = e4m3(*value * inverse);
    }
    scale
}

#[inline(always)]
fn decode_block(codes: &[u8], scale: u8, values: &mut [f32]) {
    let scale = e8m0_to_f32(scale);
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = of_e4m3(code) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_backend::dtype::{E4M3, f32_to_bf16, f32_to_e4m3};
    use proptest::prelude::*;

    fn round_trip(format: RowFormat, rows: &[f32], hidden: usize) -> Vec<f32> {
        let mut bytes = Vec::new();
        format.encode(rows, hidden, &mut bytes);
        assert_eq!(bytes.len(), rows.len() / hidden * format.row_bytes(hidden));
        let mut back = vec![0.0; rows.len()];
        let encoded = bytes.chunks_exact(format.row_bytes(hidden));
        encoded.zip(back.chunks_exact_mut(hidden)).for_each(|(bytes, row)| format.decode(bytes, row));
        back
    }

    #[test]
    fn every_high_half_rounds_to_bf16_as_the_definition_says() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(bf16(value), f32_to_bf16(value), "{value:e}");
            }
        }
    }

    #[test]
    fn every_high_half_up_to_448_rounds_to_e4m3_as_the_definition_says() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let expected =
                    if value.abs() <= E4M3_MAX { f32_to_e4m3(value) } else { e4m3(f32::NAN) | e4m3(value) };
                assert_eq!(e4m3(value), expected, "{value:e}");
            }
        }
        assert_eq!(e4m3(f32::INFINITY), 0x7f);
    }

    #[test]
    fn every_e4m3_code_widens_as_the_definition_says() {
        for code in 0..=u8::MAX {
            let (found, expected) = (of_e4m3(code), E4M3[usize::from(code)]);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn names_come_back() {
        for (code, format) in RowFormat::ALL.into_iter().enumerate() {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(RowFormat::from_code(code as u32), Some(format));
            assert_eq!(format as u32, code as u32);
        }
        assert!("f64".parse::<RowFormat>().is_err());
    }

    #[test]
    fn an_fp8_block_uses_its_range_and_shows_what_is_not_finite() {
        let mut row = vec![0.0f32; 130];
        row[0] = 448.0;
        row[1] = f32::NAN;
        row[2] = f32::INFINITY;
        row[129] = 1e-20;
        let back = round_trip(RowFormat::Fp8, &row, 130);
        assert_eq!(back[0], 448.0);
        assert!(back[1].is_nan() && back[2].is_nan());
        assert!(
            (back[129] / 1e-20 - 1.0).abs() < 0.07,
            "the second block has a scale of its own: {}",
            back[129]
        );
        row[0] = 448.1;
        assert!(round_trip(RowFormat::Fp8, &row, 130)[0] >= 448.0, "the next scale, not saturation");
    }

    proptest! {
        #[test]
        fn rounding_in_place_is_what_the_wire_does(
            hidden in 1usize..300, rows in 1usize..4, bits in any::<u64>(), spread in 0u32..60,
        ) {
            let mut state = bits | 1;
            let values: Vec<f32> = (0..rows * hidden).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let unit = (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0;
                unit * 2f32.powi((state >> 20 & 63) as i32 % (spread as i32 + 1) - 30)
            }).collect();
            for format in RowFormat::ALL {
                let mut rounded = values.clone();
                format.round(&mut rounded, hidden);
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&round_trip(format, &values, hidden)), bits(&rounded));
                let error = match format { RowFormat::F32 => 0.0, RowFormat::Bf16 => 1.0 / 256.0, RowFormat::Fp8 => 1.0 / 16.0 };
                for (row, row_rounded) in values.chunks(hidden).zip(rounded.chunks(hidden)) {
                    for (block, out) in row.chunks(SCALED_CHANNELS).zip(row_rounded.chunks(SCALED_CHANNELS)) {
                        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        // relative for what is large; what is tiny beside the largest is rounded by the smallest step
                        let step = if format == RowFormat::Fp8 { largest * 2f32.powi(-16) } else { 0.0 };
                        for (a, b) in block.iter().zip(out) {
                            prop_assert!((a - b).abs() <= a.abs() * error + step, "{format}: {a:e} became {b:e}");
                        }
                    }
                }
            }
        }
    }
}
