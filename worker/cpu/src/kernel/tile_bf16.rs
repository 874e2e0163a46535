//! Products of weight rows with rows of bf16, for machines that multiply bf16 (AVX-512 BF16 and VBMI).
//!
//! A chunk of 128 columns becomes four vectors of bf16 and a vector of scales: FP4 by a table look-up of each nibble, FP8
//! by one of each byte. Products of a chunk are summed apart and scaled then, since a scale belongs to a block of columns.
//! All products are exact. The order of a sum depends on the number of columns and the format alone.

use std::arch::x86_64::*;

use belay_backend::dtype::{E2M1, E4M3, e8m0_to_f32, f32_to_bf16};
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use super::avx512;
use super::tile_f32::{below, is_whole, spread_scales, tail_scales};
use crate::buffer::StoredRow;
use crate::panel::{CHUNK, Line};

/// Right-hand sides whose sums stay in registers beside two decoded rows.
pub(super) const MOST: usize = 8;

const FP4: u8 = 0;
const FP8: u8 = 1;
const BF16: u8 = 2;
/// Vectors that were decoded before: four for each chunk, then its scales.
const DECODED: u8 = 3;

/// Lines of a decoded chunk.
const DECODED_LINES: usize = 5;

/// Bytes ahead of a read that are asked for: a little more than two rows of the widest experts.
const AHEAD: usize = 4096 + 512;

#[derive(Clone, Copy)]
struct Row {
    data: *const u8,
    scale: *const u8,
}

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

/// `out[r · count + i]` = product of row r with row `x(i)`. All rows are of one format and have `cols` columns; `x` gives
/// lines for as many, padded to whole chunks with zeros, in the order of the format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
pub(super) fn products<'a, const R: usize>(
    rows: [StoredRow<'_>; R],
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    decoded: &mut Vec<Line>,
    out: &mut [f32],
) {
    match rows[0].format {
        Format::Fp4 => of_format::<FP4, R>(rows, count, x, decoded, out),
        Format::Fp8 => of_format::<FP8, R>(rows, count, x, decoded, out),
        Format::Bf16 => of_format::<BF16, R>(rows, count, x, decoded, out),
        Format::F32 => unreachable!("weights in f32 are not multiplied as bf16"),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
fn of_format<'a, const F: u8, const R: usize>(
    rows: [StoredRow<'_>; R],
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    decoded: &mut Vec<Line>,
    out: &mut [f32],
) {
    let cols = rows[0].cols;
    let chunks = cols.div_ceil(CHUNK);
    assert!(out.len() == R * count && rows.iter().all(|row| row.cols == cols && is_whole(*row)));
    let row = |row: StoredRow<'_>| Row { data: row.data.as_ptr(), scale: row.scale.as_ptr() };
    let stored = rows.map(row);
    if F != BF16 && count > MOST {
        decoded.resize(R * chunks * DECODED_LINES, Line::default());
        let mut places = stored;
        for r in 0..R {
            let lines = &mut decoded[r * chunks * DECODED_LINES..][..chunks * DECODED_LINES];
            // SAFETY: the row has `cols` columns, and there is room for its chunks.
            unsafe { decode::<F>(stored[r], cols, lines) };
            places[r] = Row { data: lines.as_ptr().cast(), scale: std::ptr::null() };
        }
        // SAFETY: the rows that were decoded just now.
        unsafe { groups::<DECODED, R>(places, cols, count, x, out) };
    } else {
        // SAFETY: the rows have `cols` columns.
        unsafe { groups::<F, R>(stored, cols, count, x, out) };
    }
}

/// # Safety
/// `row` points to `cols` columns of the format, `lines` has room for its chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn decode<const F: u8>(row: Row, cols: usize, lines: &mut [Line]) {
    for (chunk, lines) in lines.chunks_exact_mut(DECODED_LINES).enumerate() {
        // SAFETY: chunk · CHUNK < cols; five lines are written.
        unsafe {
            let (values, scale) = load::<F>(row, chunk, cols);
            let to = lines.as_mut_ptr().cast::<__m512i>();
            for (i, value) in values.into_iter().enumerate() {
                _mm512_store_si512(to.add(i), value);
            }
            _mm512_store_ps(to.add(4).cast(), scale);
        }
    }
}

/// As few groups of right-hand sides as there can be, alike in size.
///
/// # Safety
/// The rows point to `cols` columns of the format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn groups<'a, const F: u8, const R: usize>(
    rows: [Row; R],
    cols: usize,
    count: usize,
    x: impl Fn(usize) -> &'a [Line],
    out: &mut [f32],
) {
    let parts = count.div_ceil(MOST);
    for part in 0..parts {
        let (begin, end) = (count * part / parts, count * (part + 1) / parts);
        let out = &mut out[begin..];
        // SAFETY: by this function's promise.
        unsafe {
            match end - begin {
                1 => tile::<F, R, 1>(rows, cols, begin, &x, count, out),
                2 => tile::<F, R, 2>(rows, cols, begin, &x, count, out),
                3 => tile::<F, R, 3>(rows, cols, begin, &x, count, out),
                4 => tile::<F, R, 4>(rows, cols, begin, &x, count, out),
                5 => tile::<F, R, 5>(rows, cols, begin, &x, count, out),
                6 => tile::<F, R, 6>(rows, cols, begin, &x, count, out),
                7 => tile::<F, R, 7>(rows, cols, begin, &x, count, out),
                _ => tile::<F, R, MOST>(rows, cols, begin, &x, count, out),
            }
        }
    }
}

/// # Safety
/// As for `groups`; `out[r · stride + t]` exists.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn tile<'a, const F: u8, const R: usize, const T: usize>(
    rows: [Row; R],
    cols: usize,
    first: usize,
    x: &impl Fn(usize) -> &'a [Line],
    stride: usize,
    out: &mut [f32],
) {
    let chunks = cols.div_ceil(CHUNK);
    let mut inputs = [std::ptr::null::<__m512i>(); T];
    for t in 0..T {
        let lines = x(first + t);
        assert!(lines.len() == 4 * chunks, "lines of a panel");
        inputs[t] = lines.as_ptr().cast();
    }
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for chunk in 0..chunks {
        let mut values = [[_mm512_setzero_si512(); 4]; R];
        let mut scales = [_mm512_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: chunk · CHUNK < cols.
            (values[r], scales[r]) = unsafe { load::<F>(rows[r], chunk, cols) };
        }
        for t in 0..T {
            // SAFETY: every right-hand side has 4 · chunks lines, and lines are aligned.
            let x = unsafe {
                let x = inputs[t].add(4 * chunk);
                [
                    _mm512_load_si512(x),
                    _mm512_load_si512(x.add(1)),
                    _mm512_load_si512(x.add(2)),
                    _mm512_load_si512(x.add(3)),
                ]
            };
            for r in 0..R {
                let mut sum = if F == BF16 { sums[r][t] } else { _mm512_setzero_ps() };
                for q in 0..4 {
                    sum = _mm512_dpbf16_ps(sum, bf16(values[r][q]), bf16(x[q]));
                }
                sums[r][t] = if F == BF16 { sum } else { _mm512_fmadd_ps(sum, scales[r], sums[r][t]) };
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            out[r * stride + t] = avx512::horizontal(sums[r][t]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(bits) }
}

/// The values of a chunk before scaling, and the scale of each lane of their sums.
///
/// # Safety
/// The row points to `cols` columns of the format, and chunk · CHUNK < cols.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
unsafe fn load<const F: u8>(row: Row, chunk: usize, cols: usize) -> ([__m512i; 4], __m512) {
    let left = cols - chunk * CHUNK;
    // SAFETY: by the caller's promise; masks keep reads inside the last chunk.
    unsafe {
        match F {
            FP4 => load_fp4(row, chunk, left),
            FP8 => load_fp8(row, chunk, left),
            BF16 => load_bf16(row, chunk, left),
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
unsafe fn load_fp4(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
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
unsafe fn load_fp8(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
    // SAFETY: 128 bytes of codes, or as many as there are left; one scale.
    unsafe {
        let data = row.data.add(chunk * CHUNK);
        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD).cast());
        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD + 64).cast());
        let codes = if left >= CHUNK {
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
        (values, _mm512_set1_ps(e8m0_to_f32(*row.scale.add(chunk * CHUNK / FP8_BLOCK))))
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
unsafe fn load_bf16(row: Row, chunk: usize, left: usize) -> ([__m512i; 4], __m512) {
    let mut values = [_mm512_setzero_si512(); 4];
    for q in 0..4 {
        let data = row.data.wrapping_add(2 * chunk * CHUNK + 64 * q);
        // SAFETY: 32 values, or as many as there are left.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(AHEAD).cast());
            values[q] = if left >= CHUNK {
                _mm512_loadu_si512(data.cast())
            } else {
                _mm512_maskz_loadu_epi16(below(left.saturating_sub(32 * q)) as u32, data.cast())
            };
        }
    }
    (values, _mm512_set1_ps(1.0))
}
