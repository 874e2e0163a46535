//! The reference: what each kernel computes, in plain Rust.

use belay_backend::dtype::{E2M1, E4M3, bf16_to_f32, e8m0_to_f32};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::SCORED;
use crate::buffer::StoredRow;

pub(crate) fn decode(row: StoredRow<'_>, out: &mut [f32]) {
    match row.format {
        Format::F32 => {
            for (value, bytes) in out.iter_mut().zip(row.data.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Format::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(row.data.chunks_exact(2)) {
                *value = bf16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
            }
        }
        Format::Fp8 => {
            for ((values, codes), &scale) in
                out.chunks_mut(FP8_BLOCK).zip(row.data.chunks(FP8_BLOCK)).zip(row.scale)
            {
                decode_fp8(codes, e8m0_to_f32(scale), values);
            }
        }
        Format::Fp4 => {
            for ((values, codes), &scale) in
                out.chunks_mut(FP4_BLOCK).zip(row.data.chunks(FP4_BLOCK / 2)).zip(row.scale)
            {
                decode_fp4(codes, e8m0_to_f32(scale), values);
            }
        }
    }
}

/// Part of a block that shares a scale.
pub(super) fn decode_fp8(codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = E4M3[code as usize] * scale;
    }
}

/// A block, low nibble first.
pub(super) fn decode_fp4(codes: &[u8], scale: f32, values: &mut [f32]) {
    for (pair, &code) in values.chunks_mut(2).zip(codes) {
        for (value, nibble) in pair.iter_mut().zip([code & 15, code >> 4]) {
            *value = E2M1[nibble as usize] * scale;
        }
    }
}

pub(crate) fn dots<const N: usize>(w: &[f32], x: [&[f32]; N]) -> [f32; N] {
    x.map(|x| w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32)
}

pub(crate) fn dots_at(w: &[f32], base: &[f32], places: &[usize], out: &mut [f32]) {
    for (out, &place) in out.iter_mut().zip(places) {
        [*out] = dots(w, [&base[place..][..w.len()]]);
    }
}

pub(crate) fn weighted_sum(weights: &[f32], base: &[f32], places: &[usize], out: &mut [f32]) {
    out.fill(0.0);
    for (weight, &place) in weights.iter().zip(places) {
        for (out, x) in out.iter_mut().zip(&base[place..]) {
            *out += weight * x;
        }
    }
}

pub(crate) fn softmax(scores: &mut [f32], scale: f32, sink: f32) {
    let max = scores.iter().map(|score| score * scale).fold(sink, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score * scale - max).exp();
        sum += *score;
    }
    // the sink takes its share and gives no value
    let normaliser = (sum + (sink - max).exp()).recip();
    scores.iter_mut().for_each(|weight| *weight *= normaliser);
}

pub(crate) fn index_scores(q: &[f32], weights: &[f32], keys: &[f32], scores: &mut [f32; SCORED]) {
    let width = keys.len() / SCORED;
    scores.fill(0.0);
    for (q, weight) in q.chunks_exact(width.max(1)).zip(weights) {
        let mut dots = [0f64; SCORED];
        for (q, keys) in q.iter().zip(keys.chunks_exact(SCORED)) {
            for (dot, key) in dots.iter_mut().zip(keys) {
                *dot += f64::from(*q) * f64::from(*key);
            }
        }
        for (score, dot) in scores.iter_mut().zip(dots) {
            *score += (dot as f32).max(0.0) * weight;
        }
    }
}
