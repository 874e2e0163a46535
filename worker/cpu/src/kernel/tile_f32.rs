//! Products of weight rows with rows of f32, for AVX-512.
//!
//! A chunk of 128 columns becomes eight vectors of f32 and a vector of scales. Products of a chunk are summed apart and
//! scaled then, since a scale belongs to a block of columns. The order of a sum depends on the number of columns and the
//! format alone.

use std::arch::x86_64::*;

use belay_backend::dtype::{E2M1, e8m0_to_f32};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::avx512;
use crate::buffer::StoredRow;
use crate::panel::{CHUNK, Line};

/// Right-hand sides whose sums stay in registers beside a decoded row.
const MOST: usize = 8;

const FP4: u8 = 0;
const FP8: u8 = 1;
const BF16: u8 = 2;
/// Vectors that were decoded before: eight for each chunk, then its scales.
const DECODED: u8 = 3;

/// Lines of a decoded chunk.
const DECODED_LINES: usize = 9;

/// Bytes ahead of a read that are asked for: about two rows of the widest experts.
const AHEAD: usize = 4096;

#[derive(Clone, Copy)]
struct Row {
    data: *const u8,
    scale: *const u8,
}

/// `out[i]` = product of a row with row `x(i)`, which is lines for as many columns, padded to whole chunks with zeros, in the
/// order of the format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn products<'a>(
    row: StoredRow<'_>,
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    decoded: &mut Vec<Line>,
    out: &mut [f32],
) {
    match row.format {
        Format::Fp4 => of_format::<FP4>(row, count, x, decoded, out),
        Format::Fp8 => of_format::<FP8>(row, count, x, decoded, out),
        Format::Bf16 => of_format::<BF16>(row, count, x, decoded, out),
        Format::F32 => unreachable!("weights in f32 need no decoding"),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn of_format<'a, const F: u8>(
    row: StoredRow<'_>,
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    decoded: &mut Vec<Line>,
    out: &mut [f32],
) {
    let (cols, chunks) = (row.cols, row.cols.div_ceil(CHUNK));
    assert!(out.len() == count && is_whole(row));
    let stored = Row { data: row.data.as_ptr(), scale: row.scale.as_ptr() };
    // bf16 is widened as fast as it would be read back
    if F != BF16 && count > MOST {
        decoded.resize(chunks * DECODED_LINES, Line::default());
        // SAFETY: the row has `cols` columns; there is room for its chunks, which are read back.
        unsafe {
            decode::<F>(stored, cols, decoded);
            let row = Row { data: decoded.as_ptr().cast(), scale: std::ptr::null() };
            groups::<DECODED>(row, cols, count, x, out);
        }
    } else {
        // SAFETY: the row has `cols` columns.
        unsafe { groups::<F>(stored, cols, count, x, out) };
    }
}

/// Whether there are as many codes and scales as the columns want.
pub(super) fn is_whole(row: StoredRow<'_>) -> bool {
    let (data, scales) = match row.format {
        Format::Fp4 => (row.cols.div_ceil(2), row.cols.div_ceil(FP4_BLOCK)),
        Format::Fp8 => (row.cols, row.cols.div_ceil(FP8_BLOCK)),
        Format::Bf16 => (2 * row.cols, 0),
        Format::F32 => return false,
    };
    row.data.len() >= data && row.scale.len() >= scales
}

/// # Safety
/// `row` points to `cols` columns of the format, `lines` has room for its chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn decode<const F: u8>(row: Row, cols: usize, lines: &mut [Line]) {
    for (chunk, lines) in lines.chunks_exact_mut(DECODED_LINES).enumerate() {
        // SAFETY: chunk · CHUNK < cols; nine lines are written.
        unsafe {
            let (values, scale) = load::<F>(row, chunk, cols);
            let to = lines.as_mut_ptr().cast::<f32>();
            for (i, value) in values.into_iter().enumerate() {
                _mm512_store_ps(to.add(16 * i), value);
            }
            _mm512_store_ps(to.add(16 * 8), scale);
        }
    }
}

/// As few groups of right-hand sides as there can be, alike in size.
///
/// # Safety
/// The row points to `cols` columns of the format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn groups<'a, const F: u8>(
    row: Row,
    cols: usize,
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    out: &mut [f32],
) {
    let parts = count.div_ceil(MOST);
    for part in 0..parts {
        let (begin, end) = (count * part / parts, count * (part + 1) / parts);
        let out = &mut out[begin..end];
        // SAFETY: by this function's promise.
        unsafe {
            match end - begin {
                1 => tile::<F, 1>(row, cols, begin, &x, out),
                2 => tile::<F, 2>(row, cols, begin, &x, out),
                3 => tile::<F, 3>(row, cols, begin, &x, out),
                4 => tile::<F, 4>(row, cols, begin, &x, out),
                5 => tile::<F, 5>(row, cols, begin, &x, out),
                6 => tile::<F, 6>(row, cols, begin, &x, out),
                7 => tile::<F, 7>(row, cols, begin, &x, out),
                _ => tile::<F, MOST>(row, cols, begin, &x, out),
            }
        }
    }
}

/// # Safety
/// As for `groups`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn tile<'a, const F: u8, const T: usize>(
    row: Row,
    cols: usize,
    first: usize,
    x: &impl Fn(usize) -> &'a [Line],
    out: &mut [f32],
) {
    let chunks = cols.div_ceil(CHUNK);
    let mut inputs = [std::ptr::null::<f32>(); T];
    for t in 0..T {
        let lines = x(first + t);
        assert!(lines.len() == 8 * chunks, "lines of a panel");
        inputs[t] = lines.as_ptr().cast();
    }
    let mut sums = [_mm512_setzero_ps(); T];
    for chunk in 0..chunks {
        // SAFETY: chunk · CHUNK < cols.
        let (values, scales) = unsafe { load::<F>(row, chunk, cols) };
        for t in 0..T {
            let mut sum = if F == BF16 { sums[t] } else { _mm512_setzero_ps() };
            for q in 0..8 {
                // SAFETY: every right-hand side has 8 · chunks lines, and lines are aligned.
                let x = unsafe { _mm512_load_ps(inputs[t].add(CHUNK * chunk + 16 * q)) };
                sum = _mm512_fmadd_ps(values[q], x, sum);
            }
            sums[t] = if F == BF16 { sum } else { _mm512_fmadd_ps(sum, scales, sums[t]) };
        }
    }
    for t in 0..T {
        out[t] = avx512::horizontal(sums[t]);
    }
}

/// The values of a chunk before scaling, and the scale of each lane of their sums.
///
/// # Safety
/// The row points to `cols` columns of the format, and chunk · CHUNK < cols.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load<const F: u8>(row: Row, chunk: usize, cols: usize) -> ([__m512; 8], __m512) {
    let left = cols - chunk * CHUNK;
    // SAFETY: by the caller's promise; masks keep reads inside the last chunk.
    unsafe {
        match F {
            FP4 => load_fp4(row, chunk, left),
            FP8 => load_fp8(row, chunk, left),
            BF16 => load_bf16(row, chunk, left),
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
unsafe fn load_fp4(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    // SAFETY: 64 bytes of codes and 4 of scales, or as many as there are left.
    unsafe {
        let data = row.data.add(chunk * CHUNK / 2);
        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD).cast());
        let scale = row.scale.add(chunk * CHUNK / FP4_BLOCK);
        let (codes, scales) = if left >= CHUNK {
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

/// Four e8m0 scales, each in four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn spread_scales(scales: u32) -> __m512 {
    // one byte of the four to the highest of each double word, one place too high for an exponent; zeros elsewhere
    let to_top = |byte: i32| 0x0080_8080 | byte << 24;
    let [a, b, c, d] = [to_top(0), to_top(1), to_top(2), to_top(3)];
    let places = _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
    let spread = _mm512_shuffle_epi8(_mm512_set1_epi32(scales as i32), places);
    // code 0 stands for 2^-127, which is subnormal
    let bits = _mm512_max_epu32(_mm512_srli_epi32::<1>(spread), _mm512_set1_epi32(1 << 22));
    _mm512_castsi512_ps(bits)
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load_fp8(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    let mut values = [_mm512_setzero_ps(); 8];
    for q in 0..8 {
        let data = row.data.wrapping_add(chunk * CHUNK + 16 * q);
        // SAFETY: 16 codes, or as many as there are left.
        let codes = unsafe {
            if q % 4 == 0 {
                _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD).cast());
            }
            if left >= CHUNK {
                _mm_loadu_si128(data.cast())
            } else {
                _mm_maskz_loadu_epi8(below(left.saturating_sub(16 * q)) as u16, data.cast())
            }
        };
        values[q] = avx512::e4m3(codes);
    }
    // SAFETY: a scale for each block that has begun.
    (values, _mm512_set1_ps(e8m0_to_f32(unsafe { *row.scale.add(chunk * CHUNK / FP8_BLOCK) })))
}

/// # Safety
/// As for `load`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn load_bf16(row: Row, chunk: usize, left: usize) -> ([__m512; 8], __m512) {
    let mut values = [_mm512_setzero_ps(); 8];
    for q in 0..8 {
        let data = row.data.wrapping_add(2 * (chunk * CHUNK + 16 * q));
        // SAFETY: 16 values, or as many as there are left.
        let halves = unsafe {
            if q % 2 == 0 {
                _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD).cast());
            }
            if left >= CHUNK {
                _mm256_loadu_si256(data.cast())
            } else {
                _mm256_maskz_loadu_epi16(below(left.saturating_sub(16 * q)) as u16, data.cast())
            }
        };
        values[q] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    }
    (values, _mm512_set1_ps(1.0))
}

/// The first `count` of 64.
pub(super) fn below(count: usize) -> u64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}
