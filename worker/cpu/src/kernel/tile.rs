//! Products of a block of weight rows with rows of a panel: what is common to all kinds of numbers.
//!
//! A chunk of columns becomes a few vectors and a vector of scales. Products of a chunk are summed apart and scaled then, since
//! a scale belongs to a block of columns. Sums of two weight rows and a few inputs stay in registers; where more inputs share the
//! weights, these are decoded once, and columns are taken in parts so that inputs stay in the nearest cache. Parts do not change
//! the order of a sum, which depends on the number of columns and the format alone.

use std::ops::RangeInclusive;

use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

use crate::buffer::StoredRow;
use crate::panel::Line;

/// Weight rows that are worth decoding together: with 4096 columns they fill a third of a second-level cache.
pub(crate) const BLOCK: usize = 32;

pub(super) const FP4: u8 = 0;
pub(super) const FP8: u8 = 1;
pub(super) const BF16: u8 = 2;
/// Vectors that were decoded before: those of a chunk, then its scales.
pub(super) const DECODED: u8 = 3;
/// The same without scales.
pub(super) const DECODED_BF16: u8 = 4;
/// The same, scaled already.
pub(super) const SCALED: u8 = 5;

/// Scales that may be put into weights: 2^-40 to 2^40. With inputs of at least [`LEAST`] or zero, no product comes near to where
/// numbers lose digits, so it makes no difference whether weights or their sums are scaled.
pub(super) const SCALES: RangeInclusive<u8> = 87..=167;

/// Inputs below this count as zero where weights may be scaled: 2^-64.
pub(super) const LEAST: f32 = f32::from_bits((127 - 64) << 23);

/// Where the codes and the scales of a row are.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) data: *const u8,
    pub(super) scale: *const u8,
}

/// Room for rows that are decoded, and for sums.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub(super) decoded: Vec<Line>,
    pub(super) sums: Vec<Line>,
}

/// Grows only.
pub(super) fn room(lines: &mut Vec<Line>, count: usize) -> &mut [Line] {
    if lines.len() < count {
        lines.resize(count, Line::default());
    }
    &mut lines[..count]
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

/// Whether all scales are among [`SCALES`].
pub(super) fn are_moderate(rows: &[StoredRow<'_>]) -> bool {
    // two folds that become vector instructions, where a search that may end early does not
    let scales = || rows.iter().map(|row| row.scale);
    let least = scales().map(|scale| scale.iter().fold(u8::MAX, |least, &code| least.min(code))).min();
    let most = scales().map(|scale| scale.iter().fold(0, |most, &code| most.max(code))).max();
    least.is_none_or(|least| least >= *SCALES.start()) && most.is_none_or(|most| most <= *SCALES.end())
}

/// The first `count` of 64.
pub(super) fn below(count: usize) -> u64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

/// Asks for weights that will be read: early into the second cache, and shortly before into the nearest one. Asked for early,
/// the nearest one drops them again; asked for late, memory has not answered.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(super) fn fetch(data: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
    // SAFETY: SSE is part of the architecture, and a prefetch may point anywhere.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(data.wrapping_add(8192).cast());
        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(512).cast());
    }
}

/// Functions for one kind of numbers; in scope must be `Vector`, `load` and `multiply_add`.
macro_rules! tiles {
    (features: $features:literal, vectors: $vectors:literal, most: $most:literal, alone: $alone:literal, resident: $resident:literal, part: $part:literal,
     scaled_from: $scaled_from:expr) => {
        const fn min(a: usize, b: usize) -> usize {
            if a < b { a } else { b }
        }

        /// Inputs whose sums stay in registers beside two weight rows.
        const MOST: usize = $most;
        /// The same beside one row.
        const ALONE: usize = $alone;
        /// Inputs that stay in the nearest cache with all their columns.
        const RESIDENT: usize = $resident;
        /// Inputs from which on it pays to scale weights and not sums.
        const SCALED_FROM: usize = $scaled_from;
        /// Chunks of a part of the columns.
        const PART: usize = $part;
        /// Lines of a decoded chunk.
        const DECODED_LINES: usize = $vectors + 1;

        /// `out[r · count + i]` = product of row r with row `x(i)`. All rows are of one format and have as many columns; `x`
        /// gives lines for these, padded to whole chunks with zeros, in the order of the format.
        #[target_feature(enable = $features)]
        pub(super) fn products<'a>(
            rows: &[StoredRow<'_>],
            count: usize,
            x: &dyn Fn(usize) -> &'a [Line],
            room: &mut Room,
            out: &mut [f32],
        ) {
            match rows[0].format {
                Format::Fp4 => of_format::<FP4>(rows, count, x, room, out),
                Format::Fp8 => of_format::<FP8>(rows, count, x, room, out),
                Format::Bf16 => of_format::<BF16>(rows, count, x, room, out),
                Format::F32 => unreachable!("weights in f32 need no decoding"),
            }
        }

        #[target_feature(enable = $features)]
        fn of_format<'a, const F: u8>(
            rows: &[StoredRow<'_>],
            count: usize,
            x: &dyn Fn(usize) -> &'a [Line],
            room: &mut Room,
            out: &mut [f32],
        ) {
            let (cols, chunks) = (rows[0].cols, rows[0].cols.div_ceil(CHUNK));
            assert!(rows.len() <= tile::BLOCK && out.len() == rows.len() * count);
            assert!(rows.iter().all(|row| row.cols == cols && tile::is_whole(*row)));
            let mut places = [Row { data: std::ptr::null(), scale: std::ptr::null() }; tile::BLOCK];
            for (place, row) in places.iter_mut().zip(rows) {
                *place = Row { data: row.data.as_ptr(), scale: row.scale.as_ptr() };
            }
            let places = &mut places[..rows.len()];
            // a last chunk that is not whole is padded when it is decoded
            let many = F != BF16 && count >= SCALED_FROM;
            let scaled = many && tile::are_moderate(rows);
            let odd = many && !scaled;
            let ahead = count > 2 * ALONE && F != BF16 || odd || !cols.is_multiple_of(CHUNK);
            let Room { decoded, sums } = room;
            if ahead {
                let decoded = tile::room(decoded, rows.len() * chunks * DECODED_LINES);
                for (place, lines) in places.iter_mut().zip(decoded.chunks_exact_mut(chunks * DECODED_LINES))
                {
                    // SAFETY: the row has `cols` columns, and there is room for its chunks.
                    unsafe { decode::<F>(*place, cols, scaled, lines) };
                    *place = Row { data: lines.as_ptr().cast(), scale: std::ptr::null() };
                }
            }
            // SAFETY: rows as they are stored with whole chunks, or as they were decoded just now.
            unsafe {
                match (F, ahead) {
                    (_, false) => groups::<F>(places, chunks, count, x, sums, out),
                    (BF16, true) => groups::<DECODED_BF16>(places, chunks, count, x, sums, out),
                    (_, true) if scaled => groups::<SCALED>(places, chunks, count, x, sums, out),
                    (_, true) => groups::<DECODED>(places, chunks, count, x, sums, out),
                }
            }
        }

        /// # Safety
        /// `row` points to `cols` columns of the format, `lines` has room for its chunks.
        #[target_feature(enable = $features)]
        unsafe fn decode<const F: u8>(row: Row, cols: usize, scaled: bool, lines: &mut [Line]) {
            for (chunk, lines) in lines.chunks_exact_mut(DECODED_LINES).enumerate() {
                // SAFETY: chunks that are there; as many lines are written as a chunk has.
                unsafe {
                    let (values, scale) = chunk_of::<F>(row, chunk, cols, scaled);
                    let to = lines.as_mut_ptr();
                    for (i, value) in values.into_iter().enumerate() {
                        to.add(i).cast::<Vector>().write(value);
                    }
                    to.add($vectors).cast::<__m512>().write(scale);
                }
            }
        }

        /// The values of a chunk, scaled or not, and the scale of each lane; zeros behind the last column.
        ///
        /// # Safety
        /// `row` points to `cols` columns of the format, and the chunk begins before their end.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn chunk_of<const F: u8>(
            row: Row,
            chunk: usize,
            cols: usize,
            scaled: bool,
        ) -> ([Vector; $vectors], __m512) {
            // SAFETY: by this function's promise.
            let (values, scale) = unsafe {
                if (chunk + 1) * CHUNK <= cols {
                    load::<F, false>(row, chunk, CHUNK)
                } else {
                    load::<F, true>(row, chunk, cols - chunk * CHUNK)
                }
            };
            (if scaled { scale_values(values, scale) } else { values }, scale)
        }

        /// As few groups of inputs as there can be, alike in size.
        ///
        /// # Safety
        /// The rows point to `chunks` chunks of the format.
        #[target_feature(enable = $features)]
        unsafe fn groups<'a, const F: u8>(
            rows: &[Row],
            chunks: usize,
            count: usize,
            x: &dyn Fn(usize) -> &'a [Line],
            sums: &mut Vec<Line>,
            out: &mut [f32],
        ) {
            // weights that are decoded here meet as many inputs as possible at once
            let most = if F == FP4 || F == FP8 { ALONE } else { MOST };
            let parts = count.div_ceil(most);
            for part in 0..parts {
                let (begin, end) = (count * part / parts, count * (part + 1) / parts);
                let mut inputs = [std::ptr::null::<Line>(); ALONE];
                for (input, i) in inputs.iter_mut().zip(begin..end) {
                    let lines = x(i);
                    assert!(lines.len() == $vectors * chunks, "lines of a panel");
                    *input = lines.as_ptr();
                }
                let inputs = &inputs[..end - begin];
                // SAFETY: by this function's promise, and the lines were counted.
                unsafe { group::<F>(rows, chunks, inputs, sums, &mut out[begin..], count) };
            }
        }

        /// `out[r · stride + t]` for all rows.
        ///
        /// # Safety
        /// The rows point to `chunks` chunks of the format, the inputs to as many.
        #[target_feature(enable = $features)]
        unsafe fn group<const F: u8>(
            rows: &[Row],
            chunks: usize,
            inputs: &[*const Line],
            sums: &mut Vec<Line>,
            out: &mut [f32],
            stride: usize,
        ) {
            let pairs = match inputs.len() {
                1 => tile::<F, 2, 1>,
                2 => tile::<F, 2, 2>,
                3 => tile::<F, 2, 3>,
                4 => tile::<F, 2, 4>,
                5 => tile::<F, 2, { min(5, MOST) }>,
                6 => tile::<F, 2, { min(6, MOST) }>,
                7 => tile::<F, 2, { min(7, MOST) }>,
                _ => tile::<F, 2, MOST>,
            } as Tile;
            let single = match inputs.len() {
                1 => tile::<F, 1, 1>,
                2 => tile::<F, 1, 2>,
                3 => tile::<F, 1, 3>,
                4 => tile::<F, 1, 4>,
                5 => tile::<F, 1, { min(5, ALONE) }>,
                6 => tile::<F, 1, { min(6, ALONE) }>,
                7 => tile::<F, 1, { min(7, ALONE) }>,
                8 => tile::<F, 1, { min(8, ALONE) }>,
                9 => tile::<F, 1, { min(9, ALONE) }>,
                10 => tile::<F, 1, { min(10, ALONE) }>,
                11 => tile::<F, 1, { min(11, ALONE) }>,
                12 => tile::<F, 1, { min(12, ALONE) }>,
                13 => tile::<F, 1, { min(13, ALONE) }>,
                14 => tile::<F, 1, { min(14, ALONE) }>,
                15 => tile::<F, 1, { min(15, ALONE) }>,
                _ => tile::<F, 1, ALONE>,
            } as Tile;
            let count = inputs.len();
            // one input is a matter of reading weights: a single stream of them is what prefetching follows best
            let together = if count == 1 || count > MOST { 1 } else { 2 };
            let part = if count > MOST + MOST / 2 {
                PART / 2
            } else if count > RESIDENT {
                PART
            } else {
                chunks
            };
            let sums = tile::room(sums, rows.len() * count);
            for begin in (0..chunks).step_by(part) {
                let end = chunks.min(begin + part);
                for (rows, sums) in rows.chunks(together).zip(sums.chunks_mut(together * count)) {
                    let run = if rows.len() == 2 { pairs } else { single };
                    // SAFETY: by this function's promise; there is a sum for each row and input.
                    unsafe { run(rows, begin, end, inputs, sums.as_mut_ptr().cast()) };
                }
            }
            for (r, sums) in sums.chunks_exact(count).enumerate() {
                for (t, sum) in sums.iter().enumerate() {
                    // SAFETY: a line is sixteen f32.
                    let sum = unsafe { std::ptr::from_ref(sum).cast::<__m512>().read() };
                    out[r * stride + t] = avx512::horizontal(sum);
                }
            }
        }

        /// Rows, first chunk and the one after the last, inputs, sums.
        type Tile = unsafe fn(&[Row], usize, usize, &[*const Line], *mut __m512);

        /// Sums over some of the chunks, set if these are the first ones, else added to.
        ///
        /// # Safety
        /// There are R rows, T inputs and R · T sums; rows and inputs have the chunks.
        #[target_feature(enable = $features)]
        unsafe fn tile<const F: u8, const R: usize, const T: usize>(
            rows: &[Row],
            begin: usize,
            end: usize,
            inputs: &[*const Line],
            to: *mut __m512,
        ) {
            assert!(rows.len() == R && inputs.len() == T);
            let mut sums = [[_mm512_setzero_ps(); T]; R];
            if begin > 0 {
                for r in 0..R {
                    for t in 0..T {
                        // SAFETY: one of the sums.
                        sums[r][t] = unsafe { to.add(r * T + t).read() };
                    }
                }
            }
            // with one input, what goes on around the products costs as much as they do
            let unrolled = if T == 1 { 4 } else { 1 };
            let mut chunk = begin;
            while chunk + unrolled <= end {
                for chunk in chunk..chunk + unrolled {
                    // SAFETY: by this function's promise.
                    unsafe { step::<F, R, T>(rows, chunk, inputs, &mut sums) };
                }
                chunk += unrolled;
            }
            for chunk in chunk..end {
                // SAFETY: by this function's promise.
                unsafe { step::<F, R, T>(rows, chunk, inputs, &mut sums) };
            }
            for r in 0..R {
                for t in 0..T {
                    // SAFETY: one of the sums.
                    unsafe { to.add(r * T + t).write(sums[r][t]) };
                }
            }
        }

        /// Adds the products of one chunk.
        ///
        /// # Safety
        /// There are R rows and T inputs, and all have the chunk.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn step<const F: u8, const R: usize, const T: usize>(
            rows: &[Row],
            chunk: usize,
            inputs: &[*const Line],
            sums: &mut [[__m512; T]; R],
        ) {
            // SAFETY: chunks that are there, whole ones.
            let mut loaded = [unsafe { load::<F, false>(rows[0], chunk, CHUNK) }; R];
            for r in 1..R {
                // SAFETY: as above.
                loaded[r] = unsafe { load::<F, false>(rows[r], chunk, CHUNK) };
            }
            let here = (F == FP4 || F == FP8) && T >= SCALED_FROM;
            if here {
                for r in 0..R {
                    loaded[r].0 = scale_values(loaded[r].0, loaded[r].1);
                }
            }
            let scaled = here || F == SCALED;
            // two inputs at a time: enough chains of sums to hide what one product waits for the one before it
            for t in (0..T).step_by(2) {
                let both = if t + 1 < T { 2 } else { 1 };
                let whole = F == BF16 || F == DECODED_BF16;
                let mut parts = [[_mm512_setzero_ps(); R]; 2];
                if whole {
                    for i in 0..both {
                        for r in 0..R {
                            parts[i][r] = sums[r][t + i];
                        }
                    }
                }
                for q in 0..$vectors {
                    for i in 0..both {
                        // SAFETY: every input has the chunk; lines are aligned.
                        let x = unsafe { inputs[t + i].add($vectors * chunk + q).cast::<Vector>().read() };
                        for r in 0..R {
                            parts[i][r] = multiply_add(loaded[r].0[q], x, parts[i][r]);
                        }
                    }
                }
                for i in 0..both {
                    for r in 0..R {
                        let part = parts[i][r];
                        let sum = &mut sums[r][t + i];
                        *sum = if whole {
                            part
                        } else if scaled {
                            // not where products are made, so it costs nothing
                            _mm512_add_ps(part, *sum)
                        } else {
                            _mm512_fmadd_ps(part, loaded[r].1, *sum)
                        };
                        if T > 2 {
                            settle(sum);
                        }
                    }
                }
            }
        }

        /// Makes the compiler finish a sum here. Left alone it takes one weight row for all inputs and then the other, keeps the
        /// inputs in registers meanwhile, and spills the sums.
        #[inline]
        #[target_feature(enable = $features)]
        fn settle(sum: &mut __m512) {
            // SAFETY: no instruction at all.
            unsafe { asm!("/* {0} */", inout(zmm_reg) * sum, options(nomem, nostack, preserves_flags)) };
        }
    };
}

pub(super) use tiles;
