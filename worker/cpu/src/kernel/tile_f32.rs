//! Products of weight rows with rows of f32, for AVX-512.
//!
//! A chunk is eight vectors of f32.

use std::arch::asm;
use std::arch::x86_64::*;

use belay_backend::dtype::E2M1;
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::avx512;
use super::tile::{self, BF16, DECODED, DECODED_BF16, FP4, FP8, Room, Row, SCALED, below};
use crate::buffer::StoredRow;
use crate::panel::{CHUNK, Line};

type Vector = __m512;

tile::tiles!(
    features: "avx512f,avx512bw,avx512vl,avx2,fma,f16c",
    vectors: 8,
    most: 4,
    alone: 8,
    resident: 1,
    part: 8,
    scaled_from: usize::MAX
);

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn multiply_add(a: Vector, b: Vector, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, sum)
}

/// The values times the scales of their lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn scale_values(values: [Vector; 8], scale: __m512) -> [Vector; 8] {
    let mut scaled = values;
    for q in 0..8 {
        scaled[q] = _mm512_mul_ps(values[q], scale);
    }
    scaled
}

/// The values of a chunk before scaling, and the scale of each lane of their sums.
///
/// # Safety
/// The row has the chunk, with `left` columns if it is the tail.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load<const F: u8, const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    // SAFETY: by the caller's promise; masks keep reads inside the last chunk.
    unsafe {
        match F {
            FP4 => load_fp4::<TAIL>(row, chunk, left),
            FP8 => load_fp8::<TAIL>(row, chunk, left),
            BF16 => load_bf16::<TAIL>(row, chunk, left),
            _ => {
                let lines = row.data.cast::<f32>().add(chunk * DECODED_LINES * 16);
                let mut values = [_mm512_setzero_ps(); 8];
                for q in 0..8 {
                    values[q] = _mm512_load_ps(lines.add(16 * q));
                }
                (values, _mm512_load_ps(lines.add(16 * 8)))
            }
        }
    }
}

/// Lane j of part q is element 8j + q: the q-th nibble of the j-th double word. Four lanes make a block.
///
/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load_fp4<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    // SAFETY: 64 bytes of codes and 4 of scales, or as many as there are left.
    unsafe {
        let data = row.data.add(chunk * CHUNK / 2);
        tile::fetch(data);
        let scale = row.scale.add(chunk * CHUNK / FP4_BLOCK);
        let (codes, scales) = if !TAIL {
            (_mm512_loadu_si512(data.cast()), scale.cast::<u32>().read_unaligned())
        } else {
            (_mm512_maskz_loadu_epi8(below(left.div_ceil(2)), data.cast()), tail_scales(scale, left))
        };
        // an index has four bits; those above belong to other codes and do not count
        let table = _mm512_loadu_ps(E2M1.as_ptr());
        let values = [
            _mm512_permutexvar_ps(codes, table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<20>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(codes), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<28>(codes), table),
        ];
        (values, spread_scales(scales))
    }
}

/// The scales of the blocks of a last chunk.
///
/// # Safety
/// There is a scale for each block of `left` columns, and fewer than four.
pub(super) unsafe fn tail_scales(scale: *const u8, left: usize) -> u32 {
    let mut scales = [0; 4];
    // SAFETY: by the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(scale, scales.as_mut_ptr(), left.div_ceil(FP4_BLOCK)) };
    u32::from_ne_bytes(scales)
}

/// An e8m0 scale in all lanes; 255, which is no number, has been refused.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn one_scale(code: u8) -> __m512 {
    // code 0 stands for 2^-127, which is subnormal
    _mm512_castsi512_ps(_mm512_set1_epi32((i32::from(code) << 23).max(1 << 22)))
}

/// Four e8m0 scales, each in four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn spread_scales(scales: u32) -> __m512 {
    // each byte is turned to where exponents are; what is beside it goes
    let turns = _mm512_setr_epi32(23, 23, 23, 23, 15, 15, 15, 15, 7, 7, 7, 7, 31, 31, 31, 31);
    let turned = _mm512_rolv_epi32(_mm512_set1_epi32(scales as i32), turns);
    let bits = _mm512_and_si512(turned, _mm512_set1_epi32(0x7f80_0000));
    // code 0 stands for 2^-127, which is subnormal
    let bits = _mm512_max_epu32(bits, _mm512_set1_epi32(1 << 22));
    _mm512_castsi512_ps(bits)
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load_fp8<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    let mut values = [_mm512_setzero_ps(); 8];
    for q in 0..8 {
        let data = row.data.wrapping_add(chunk * CHUNK + 16 * q);
        // SAFETY: 16 codes, or as many as there are left.
        let codes = unsafe {
            if q % 4 == 0 {
                tile::fetch(data);
            }
            if !TAIL {
                _mm_loadu_si128(data.cast())
            } else {
                _mm_maskz_loadu_epi8(below(left.saturating_sub(16 * q)) as u16, data.cast())
            }
        };
        values[q] = avx512::e4m3(codes);
    }
    // SAFETY: a scale for each block that has begun.
    (values, one_scale(unsafe { *row.scale.add(chunk * CHUNK / FP8_BLOCK) }))
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load_bf16<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    let mut values = [_mm512_setzero_ps(); 8];
    for q in 0..8 {
        let data = row.data.wrapping_add(2 * (chunk * CHUNK + 16 * q));
        // SAFETY: 16 values, or as many as there are left.
        let halves = unsafe {
            if q % 2 == 0 {
                tile::fetch(data);
            }
            if !TAIL {
                _mm256_loadu_si256(data.cast())
            } else {
                _mm256_maskz_loadu_epi16(below(left.saturating_sub(16 * q)) as u16, data.cast())
            }
        };
        values[q] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    }
    (values, _mm512_set1_ps(1.0))
}
