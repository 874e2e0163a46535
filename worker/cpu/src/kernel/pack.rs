//! Laying out inputs, 16 elements at a time.

use std::arch::x86_64::*;

use super::tile::LEAST;
use crate::panel::{CHUNK, Layout, Line, Order};

/// Where the elements of a chunk come from.
type Places = [i32; CHUNK];

const STRIDED_4: Places = strided(4);
const STRIDED_8: Places = strided(8);

const fn strided(stride: usize) -> Places {
    let mut places = [0; CHUNK];
    let mut to = 0;
    while to < CHUNK {
        let part = CHUNK / stride;
        places[to] = (to % part * stride + to / part) as i32;
        to += 1;
    }
    places
}

const INTERLEAVED: Places = {
    let mut places = [0; CHUNK];
    let mut to = 0;
    while to < CHUNK {
        let (line, half, group, i) = (to / 64, to / 32 % 2, to / 8 % 4, to % 8);
        places[to] = (line * 64 + group * 16 + half * 8 + i) as i32;
        to += 1;
    }
    places
};

fn places(order: Order) -> Option<&'static Places> {
    match order {
        Order::Natural => None,
        Order::Strided(4) => Some(const { &STRIDED_4 }),
        Order::Strided(_) => Some(const { &STRIDED_8 }),
        Order::Interleaved => Some(const { &INTERLEAVED }),
    }
}

/// As bf16; what is below [`LEAST`] as zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) fn halves(layout: Layout, from: &[f32], to: &mut [Line]) {
    let places = places(layout.order);
    each(from, to, 4, |from, to| {
        for i in 0..CHUNK / 16 {
            // SAFETY: sixteen of the chunk's elements are read, half a line of it is written.
            unsafe {
                let values = take(places, from, i);
                let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(values), _mm512_set1_ps(LEAST));
                let values = _mm512_cvtneps_pbh(_mm512_maskz_mov_ps(counts, values));
                to.as_mut_ptr().cast::<__m256bh>().add(i).write(values);
            }
        }
    });
}

/// As f32, and rounded to bf16 if the layout says so.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn singles(layout: Layout, from: &[f32], to: &mut [Line]) {
    let places = places(layout.order);
    each(from, to, 8, |from, to| {
        for i in 0..CHUNK / 16 {
            // SAFETY: sixteen of the chunk's elements are read, a line of it is written.
            unsafe {
                let values = take(places, from, i);
                let values = if layout.rounded { round(values) } else { values };
                to.as_mut_ptr().cast::<__m512>().add(i).write(values);
            }
        }
    });
}

/// Calls `pack` with each chunk and its lines; a last one that is not whole is padded with zeros.
#[inline]
fn each(from: &[f32], to: &mut [Line], lines: usize, pack: impl Fn(&[f32; CHUNK], &mut [Line])) {
    let chunks = from.chunks(CHUNK).zip(to.chunks_exact_mut(lines));
    for (from, to) in chunks {
        match from.try_into() {
            Ok(from) => pack(from, to),
            Err(_) => {
                let mut padded = [0.0; CHUNK];
                padded[..from.len()].copy_from_slice(from);
                pack(&padded, to);
            }
        }
    }
}

/// The i-th sixteen elements in the order of `places`.
///
/// # Safety
/// 16 · (i + 1) is at most CHUNK.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn take(places: Option<&Places>, from: &[f32; CHUNK], i: usize) -> __m512 {
    // SAFETY: by the caller's promise; places are below CHUNK.
    unsafe {
        match places {
            None => _mm512_loadu_ps(from.as_ptr().add(16 * i)),
            Some(places) => {
                let places = _mm512_loadu_si512(places.as_ptr().add(16 * i).cast());
                _mm512_i32gather_ps::<4>(places, from.as_ptr())
            }
        }
    }
}

/// To the nearest bf16, ties to even; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn round(values: __m512) -> __m512 {
    let bits = _mm512_castps_si512(values);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
    let bits = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
}
