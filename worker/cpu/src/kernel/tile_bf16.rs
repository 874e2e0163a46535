//! Products of weight rows with rows of bf16, for machines that multiply bf16 (AVX-512 BF16 and VBMI).
//!
//! A chunk is four vectors of bf16: FP4 by a table look-up of each nibble, FP8 by one of each byte. All products are exact.

use std::arch::asm;
use std::arch::x86_64::*;

use belay_backend::dtype::{E2M1, E4M3, f32_to_bf16};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::avx512;
use super::tile::{self, BF16, DECODED, DECODED_BF16, FP4, FP8, Room, Row, SCALED, below};
use super::tile_f32::{one_scale, spread_scales, tail_scales};
use crate::buffer::StoredRow;
use crate::panel::{CHUNK, Line};

type Vector = __m512i;

tile::tiles!(
    features: "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c",
    vectors: 4,
    most: 8,
    alone: 16,
    resident: 4,
    part: 8,
    scaled_from: 5
);

struct Tables {
    fp4: [u16; 32],
    /// Low and high bytes of the bf16 of each magnitude.
    fp8: [[u8; 128]; 2],
}

static TABLES: Tables = {
    let mut tables = Tables { fp4: [0; 32], fp8: [[0; 128]; 2] };
    let mut code = 0;
    while code < 32 {
        tables.fp4[code] = f32_to_bf16(E2M1[code % 16]);
        code += 1;
    }
    let mut code = 0;
    while code < 128 {
        let bytes = f32_to_bf16(E4M3[code]).to_le_bytes();
        tables.fp8[0][code] = bytes[0];
        tables.fp8[1][code] = bytes[1];
        code += 1;
    }
    tables
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
fn multiply_add(a: Vector, b: Vector, sum: __m512) -> __m512 {
    _mm512_dpbf16_ps(sum, bf16(a), bf16(b))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(bits) }
}

/// The values times the scales of their lanes: exponents are added, except to zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
fn scale_values(values: [Vector; 4], scale: __m512) -> [Vector; 4] {
    let bits = _mm512_castps_si512(scale);
    // the exponent to where it is in both halves of a lane
    let exponents = _mm512_or_si512(bits, _mm512_srli_epi32::<16>(bits));
    let exponents = _mm512_sub_epi16(exponents, _mm512_set1_epi16(127 << 7));
    let mut scaled = values;
    for q in 0..4 {
        let some = _mm512_test_epi16_mask(values[q], _mm512_set1_epi16(0x7fff));
        scaled[q] = _mm512_mask_add_epi16(values[q], some, values[q], exponents);
    }
    scaled
}

/// A chunk in the order of its columns, scaled or not; zeros behind the last one.
///
/// # Safety
/// `row` points to `cols` columns of the format, and the chunk begins before their end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn in_order<const F: u8>(row: Row, chunk: usize, cols: usize, scaled: bool) -> [Vector; 4] {
    // SAFETY: by this function's promise.
    let (v, _) = unsafe { chunk_of::<F>(row, chunk, cols, scaled) };
    match F {
        // quarter g of the i-th vector: columns 32g + 8i to 32g + 8i + 7
        FP4 => {
            let [a, b] = [_mm512_unpacklo_epi16(v[0], v[1]), _mm512_unpacklo_epi16(v[2], v[3])];
            let [c, d] = [_mm512_unpackhi_epi16(v[0], v[1]), _mm512_unpackhi_epi16(v[2], v[3])];
            let (first, second) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (third, fourth) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            let low = _mm512_shuffle_i32x4::<0x44>(first, second);
            let high = _mm512_shuffle_i32x4::<0xee>(first, second);
            let low_end = _mm512_shuffle_i32x4::<0x44>(third, fourth);
            let high_end = _mm512_shuffle_i32x4::<0xee>(third, fourth);
            [
                _mm512_shuffle_i32x4::<0x88>(low, low_end),
                _mm512_shuffle_i32x4::<0xdd>(low, low_end),
                _mm512_shuffle_i32x4::<0x88>(high, high_end),
                _mm512_shuffle_i32x4::<0xdd>(high, high_end),
            ]
        }
        // each vector has half of the columns of each sixteen
        FP8 => {
            let near = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let far = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            [
                _mm512_permutex2var_epi64(v[0], near, v[1]),
                _mm512_permutex2var_epi64(v[0], far, v[1]),
                _mm512_permutex2var_epi64(v[2], near, v[3]),
                _mm512_permutex2var_epi64(v[2], far, v[3]),
            ]
        }
        _ => v,
    }
}

/// The values of a chunk before scaling, and the scale of each lane of their sums.
///
/// # Safety
/// The row has the chunk, with `left` columns if it is the tail.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn load<const F: u8, const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
    // SAFETY: by the caller's promise; masks keep reads inside the last chunk.
    unsafe {
        match F {
            FP4 => load_fp4::<TAIL>(row, chunk, left),
            FP8 => load_fp8::<TAIL>(row, chunk, left),
            BF16 => load_bf16::<TAIL>(row, chunk, left),
            _ => {
                let lines = row.data.cast::<__m512i>().add(chunk * DECODED_LINES);
                let values = [
                    _mm512_load_si512(lines),
                    _mm512_load_si512(lines.add(1)),
                    _mm512_load_si512(lines.add(2)),
                    _mm512_load_si512(lines.add(3)),
                ];
                (values, _mm512_load_ps(lines.add(4).cast()))
            }
        }
    }
}

/// Word k of part q is element 4k + q: the q-th nibble of the k-th word. Lanes of a sum come from two words, so four of them
/// make a block.
///
/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn load_fp4<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
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
        // the table has its 16 values twice, so the fifth bit of an index, which belongs to another code, does not count
        let table = _mm512_loadu_si512(TABLES.fp4.as_ptr().cast());
        let values = [
            _mm512_permutexvar_epi16(codes, table),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(codes), table),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(codes), table),
            _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(codes), table),
        ];
        (values, spread_scales(scales))
    }
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn load_fp8<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
    // SAFETY: 128 bytes of codes, or as many as there are left; one scale.
    unsafe {
        let data = row.data.add(chunk * CHUNK);
        tile::fetch(data);
        tile::fetch(data.wrapping_add(64));
        let codes = if !TAIL {
            [_mm512_loadu_si512(data.cast()), _mm512_loadu_si512(data.add(64).cast())]
        } else {
            [
                _mm512_maskz_loadu_epi8(below(left), data.cast()),
                _mm512_maskz_loadu_epi8(below(left.saturating_sub(64)), data.wrapping_add(64).cast()),
            ]
        };
        let mut values = [_mm512_setzero_si512(); 4];
        for half in 0..2 {
            let codes = codes[half];
            let [low, high] = [look_up(&TABLES.fp8[0], codes), look_up(&TABLES.fp8[1], codes)];
            // high | (codes & sign)
            let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, _mm512_set1_epi8(i8::MIN));
            values[2 * half] = _mm512_unpacklo_epi8(low, high);
            values[2 * half + 1] = _mm512_unpackhi_epi8(low, high);
        }
        (values, one_scale(*row.scale.add(chunk * CHUNK / FP8_BLOCK)))
    }
}

/// The sign bit of an index does not count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
fn look_up(table: &[u8; 128], codes: __m512i) -> __m512i {
    // SAFETY: twice 64 of 128 bytes.
    unsafe {
        let low = _mm512_loadu_si512(table.as_ptr().cast());
        let high = _mm512_loadu_si512(table.as_ptr().add(64).cast());
        _mm512_permutex2var_epi8(low, codes, high)
    }
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn load_bf16<const TAIL: bool>(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
    let mut values = [_mm512_setzero_si512(); 4];
    for q in 0..4 {
        let data = row.data.wrapping_add(2 * chunk * CHUNK + 64 * q);
        // SAFETY: 32 values, or as many as there are left.
        unsafe {
            tile::fetch(data);
            values[q] = if !TAIL {
                _mm512_loadu_si512(data.cast())
            } else {
                _mm512_maskz_loadu_epi16(below(left.saturating_sub(32 * q)) as u32, data.cast())
            };
        }
    }
    (values, _mm512_set1_ps(1.0))
}
