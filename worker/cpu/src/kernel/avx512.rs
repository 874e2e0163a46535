//! AVX-512 F/BW/VL: 16 lanes, two accumulators, masked tails.

use std::arch::x86_64::*;

use belay_backend::dtype::{E2M1, e8m0_to_f32};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::heads::lanes_below;
use super::{SCORED, avx2, scalar};
use crate::buffer::StoredRow;

const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn decode(row: StoredRow<'_>, out: &mut [f32]) {
    match row.format {
        Format::F32 => scalar::decode(row, out),
        Format::Bf16 => decode_bf16(row.data, out),
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn decode_bf16(data: &[u8], out: &mut [f32]) {
    let mut outputs = out.chunks_exact_mut(LANES);
    let mut inputs = data.chunks_exact(2 * LANES);
    for (values, bytes) in (&mut outputs).zip(&mut inputs) {
        // SAFETY: 32 bytes are read and 16 floats written, the sizes of the chunks; unaligned access is allowed.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_storeu_ps(values.as_mut_ptr(), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)));
        }
    }
    let row = StoredRow { format: Format::Bf16, data: inputs.remainder(), scale: &[], cols: 0 };
    scalar::decode(row, outputs.into_remainder());
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn decode_fp8(codes: &[u8], scale: f32, out: &mut [f32]) {
    let mut outputs = out.chunks_exact_mut(LANES);
    let mut inputs = codes.chunks_exact(LANES);
    for (values, codes) in (&mut outputs).zip(&mut inputs) {
        // SAFETY: 16 bytes are read and 16 floats written, the sizes of the chunks; unaligned access is allowed.
        unsafe {
            let value = e4m3(_mm_loadu_si128(codes.as_ptr().cast()));
            _mm512_storeu_ps(values.as_mut_ptr(), _mm512_mul_ps(value, _mm512_set1_ps(scale)));
        }
    }
    scalar::decode_fp8(inputs.remainder(), scale, outputs.into_remainder());
}

/// Values of 16 codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn e4m3(codes: __m128i) -> __m512 {
    // e4m3 moved into the fields of f16 is the value over 2^8 (the biases are 7 and 15), subnormals included
    let wide = _mm256_cvtepu8_epi16(codes);
    let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)));
    let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)));
    _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, magnitude)), _mm512_set1_ps(256.0))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn decode_fp4(codes: &[u8], scale: f32, out: &mut [f32]) {
    if out.len() != FP4_BLOCK || codes.len() != FP4_BLOCK / 2 {
        return scalar::decode_fp4(codes, scale, out);
    }
    // SAFETY: 16 bytes and the 16 floats of the table are read, 2 × 16 floats written, the sizes checked above.
    unsafe {
        let table = _mm512_loadu_ps(E2M1.as_ptr());
        let bytes = _mm_loadu_si128(codes.as_ptr().cast());
        let mask = _mm_set1_epi8(15);
        let (low, high) = (_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask));
        let scale = _mm512_set1_ps(scale);
        for (i, nibbles) in
            [_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)].into_iter().enumerate()
        {
            let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), table);
            _mm512_storeu_ps(out.as_mut_ptr().add(i * LANES), _mm512_mul_ps(values, scale));
        }
    }
}

/// All slices of `x` must be as long as `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn dots<const N: usize>(w: &[f32], x: [&[f32]; N]) -> [f32; N] {
    let len = w.len();
    let mut even = [_mm512_setzero_ps(); N];
    let mut odd = [_mm512_setzero_ps(); N];
    let mut at = 0;
    // SAFETY: full loads read 16 floats at `at` with at + 32 <= len; masked ones read no lane at or beyond len. All
    // slices have `len` elements by the caller's promise.
    unsafe {
        while at + 2 * LANES <= len {
            let w0 = _mm512_loadu_ps(w.as_ptr().add(at));
            let w1 = _mm512_loadu_ps(w.as_ptr().add(at + LANES));
            for i in 0..N {
                even[i] = _mm512_fmadd_ps(w0, _mm512_loadu_ps(x[i].as_ptr().add(at)), even[i]);
                odd[i] = _mm512_fmadd_ps(w1, _mm512_loadu_ps(x[i].as_ptr().add(at + LANES)), odd[i]);
            }
            at += 2 * LANES;
        }
        if at < len {
            let mask = lanes_below(len - at);
            let w0 = _mm512_maskz_loadu_ps(mask, w.as_ptr().add(at));
            for i in 0..N {
                even[i] = _mm512_fmadd_ps(w0, _mm512_maskz_loadu_ps(mask, x[i].as_ptr().add(at)), even[i]);
            }
            at += LANES;
        }
        if at < len {
            let mask = lanes_below(len - at);
            let w1 = _mm512_maskz_loadu_ps(mask, w.as_ptr().add(at));
            for i in 0..N {
                odd[i] = _mm512_fmadd_ps(w1, _mm512_maskz_loadu_ps(mask, x[i].as_ptr().add(at)), odd[i]);
            }
        }
    }
    let mut sums = [0.0; N];
    // a loop, because a closure handed to the standard library is compiled without these instructions
    for i in 0..N {
        sums[i] = horizontal(_mm512_add_ps(even[i], odd[i]));
    }
    sums
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn horizontal(v: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
    avx2::horizontal(_mm256_add_ps(_mm512_castps512_ps256(v), high))
}

/// `q` must have `weights.len() · keys.len() / SCORED` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn index_scores(q: &[f32], weights: &[f32], keys: &[f32], scores: &mut [f32; SCORED]) {
    let width = keys.len() / SCORED;
    let mut sum = [_mm512_setzero_ps(); 2];
    let mut head = 0;
    while head + 8 <= weights.len() {
        add_heads::<8>(&q[head * width..], &weights[head..], keys, &mut sum);
        head += 8;
    }
    while head < weights.len() {
        add_heads::<1>(&q[head * width..], &weights[head..], keys, &mut sum);
        head += 1;
    }
    // SAFETY: 2 × 16 floats are written, the length of `scores`.
    unsafe {
        _mm512_storeu_ps(scores.as_mut_ptr(), sum[0]);
        _mm512_storeu_ps(scores.as_mut_ptr().add(LANES), sum[1]);
    }
}

/// Adds the share of H heads; enough of them to keep the multipliers busy.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn add_heads<const H: usize>(q: &[f32], weights: &[f32], keys: &[f32], sum: &mut [__m512; 2]) {
    let width = keys.len() / SCORED;
    assert!(q.len() >= H * width && weights.len() >= H);
    let mut dots = [[_mm512_setzero_ps(); 2]; H];
    for channel in 0..width {
        // SAFETY: 2 × 16 of the channel's SCORED keys are read.
        let key = unsafe {
            let start = keys.as_ptr().add(channel * SCORED);
            [_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(LANES))]
        };
        for head in 0..H {
            // SAFETY: inside the H · width elements that were checked above.
            let q = _mm512_set1_ps(unsafe { *q.get_unchecked(head * width + channel) });
            dots[head][0] = _mm512_fmadd_ps(q, key[0], dots[head][0]);
            dots[head][1] = _mm512_fmadd_ps(q, key[1], dots[head][1]);
        }
    }
    for head in 0..H {
        let weight = _mm512_set1_ps(weights[head]);
        for half in 0..2 {
            let relu = _mm512_max_ps(dots[head][half], _mm512_setzero_ps());
            sum[half] = _mm512_fmadd_ps(relu, weight, sum[half]);
        }
    }
}
