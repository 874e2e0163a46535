//! Heads that share their keys, as in multi-query attention: 4 heads against 4 keys at a time, so that each load serves four
//! multiplications.
//!
//! Keys are rows of `width` elements of `base` that begin at `places`. What a head gets has the same bits beside any others.

use std::arch::x86_64::*;

const LANES: usize = 16;

/// Heads, and keys, of a tile; vectors of a row that are summed at once.
const SIDE: usize = 4;

/// Keys that every head meets before the next ones come: 256 KiB at 512 channels, which a core's own cache holds.
const NEAR: usize = 128;

/// `out[h · keys + i] = q_h · key_i`; `q` is `[heads, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn scores(q: &[f32], width: usize, base: &[f32], places: &[usize], out: &mut [f32]) {
    let count = places.len();
    let heads = q.len() / width;
    for (group, near) in places.chunks(SIDE).enumerate() {
        // what is missing at an edge is computed twice
        let keys: [&[f32]; SIDE] = std::array::from_fn(|i| &base[near[i.min(near.len() - 1)]..][..width]);
        for first in (0..heads).step_by(SIDE) {
            let some = SIDE.min(heads - first);
            let q: [&[f32]; SIDE] = std::array::from_fn(|i| &q[(first + i.min(some - 1)) * width..][..width]);
            let mut sums = [0.0; SIDE * SIDE];
            // SAFETY: 16 floats are written, and there are as many.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), tile(q, keys)) };
            for (head, sums) in sums.chunks_exact(SIDE).take(some).enumerate() {
                let at = (first + head) * count + group * SIDE;
                out[at..at + near.len()].copy_from_slice(&sums[..near.len()]);
            }
        }
    }
}

/// Products of each head with each key, the keys of a head side by side. All slices are of one length.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn tile(q: [&[f32]; SIDE], keys: [&[f32]; SIDE]) -> __m512 {
    let width = q[0].len();
    let mut sums = [_mm512_setzero_ps(); SIDE * SIDE];
    let mut at = 0;
    while at + LANES <= width {
        add_products(q, keys, at, !0, &mut sums);
        at += LANES;
    }
    if at < width {
        add_products(q, keys, at, lanes_below(width - at), &mut sums);
    }
    sums_of_lanes(sums)
}

/// Adds the products of elements from `at` on, as many as `mask` has bits; no row ends before them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn add_products(
    q: [&[f32]; SIDE],
    keys: [&[f32]; SIDE],
    at: usize,
    mask: __mmask16,
    sums: &mut [__m512; SIDE * SIDE],
) {
    let mut key = [_mm512_setzero_ps(); SIDE];
    for i in 0..SIDE {
        // SAFETY: lanes that the mask has not got are not read.
        key[i] = unsafe { _mm512_maskz_loadu_ps(mask, keys[i].as_ptr().add(at)) };
    }
    for head in 0..SIDE {
        // SAFETY: as above.
        let q = unsafe { _mm512_maskz_loadu_ps(mask, q[head].as_ptr().add(at)) };
        for i in 0..SIDE {
            sums[head * SIDE + i] = _mm512_fmadd_ps(q, key[i], sums[head * SIDE + i]);
        }
    }
}

/// Lane i of the result is the sum of all lanes of vector i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn sums_of_lanes(v: [__m512; 16]) -> __m512 {
    // in each step, two vectors that hold parts of the sums become one; at first within quarters
    let mut pairs = [_mm512_setzero_ps(); 8];
    for i in 0..8 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    let mut fours = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let (a, b) = (_mm512_castps_pd(pairs[2 * i]), _mm512_castps_pd(pairs[2 * i + 1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let fold = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    fold(fold(fours[0], fours[1]), fold(fours[2], fours[3]))
}

/// `out[h, :] = Σ_i weights[h · keys + i] · key_i`, in order; `out` is `[heads, width]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn values(weights: &[f32], width: usize, base: &[f32], places: &[usize], out: &mut [f32]) {
    out.fill(0.0);
    let count = places.len();
    for (group, near) in places.chunks(NEAR).enumerate() {
        for (head, out) in out.chunks_mut(SIDE * width).enumerate() {
            let weights = &weights[head * SIDE * count + group * NEAR..];
            match out.len() / width {
                1 => add_keys::<1>(weights, count, width, base, near, out),
                2 => add_keys::<2>(weights, count, width, base, near, out),
                3 => add_keys::<3>(weights, count, width, base, near, out),
                _ => add_keys::<SIDE>(weights, count, width, base, near, out),
            }
        }
    }
}

/// Adds the shares of some keys to H heads. The weights of a head are `stride` after those of the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn add_keys<const H: usize>(
    weights: &[f32],
    stride: usize,
    width: usize,
    base: &[f32],
    places: &[usize],
    out: &mut [f32],
) {
    let mut at = 0;
    while at + SIDE * LANES <= width {
        add_columns::<H, SIDE>(weights, stride, (at, width), base, places, out, !0);
        at += SIDE * LANES;
    }
    while at < width {
        add_columns::<H, 1>(weights, stride, (at, width), base, places, out, lanes_below(width - at));
        at += LANES;
    }
}

/// The same for V vectors of each row, from element `at` of `width` on; `mask` has the lanes of each that there are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn add_columns<const H: usize, const V: usize>(
    weights: &[f32],
    stride: usize,
    (at, width): (usize, usize),
    base: &[f32],
    places: &[usize],
    out: &mut [f32],
    mask: __mmask16,
) {
    assert!(out.len() >= H * width && weights.len() >= (H - 1) * stride + places.len());
    let mut sums = [[_mm512_setzero_ps(); V]; H];
    for head in 0..H {
        for i in 0..V {
            // SAFETY: element at + i · LANES of a row of the output, of which there are H; lanes beyond its end are masked.
            sums[head][i] =
                unsafe { _mm512_maskz_loadu_ps(mask, out.as_ptr().add(head * width + at + i * LANES)) };
        }
    }
    for (key, &place) in places.iter().enumerate() {
        let row = &base[place..][..width];
        let mut x = [_mm512_setzero_ps(); V];
        for i in 0..V {
            // SAFETY: as above, of the key's row.
            x[i] = unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr().add(at + i * LANES)) };
        }
        for head in 0..H {
            // SAFETY: the last weight that is read was checked above.
            let weight = _mm512_set1_ps(unsafe { *weights.get_unchecked(head * stride + key) });
            for i in 0..V {
                sums[head][i] = _mm512_fmadd_ps(weight, x[i], sums[head][i]);
            }
        }
    }
    for head in 0..H {
        for i in 0..V {
            // SAFETY: as for the loads.
            unsafe {
                let to = out.as_mut_ptr().add(head * width + at + i * LANES);
                _mm512_mask_storeu_ps(to, mask, sums[head][i]);
            }
        }
    }
}

/// The first `count` lanes, at most all 16.
pub(super) fn lanes_below(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// `to[c · KEYS + k] = from[k · width + c]`: KEYS rows become columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn transpose<const KEYS: usize>(from: &[f32], width: usize, to: &mut [f32]) {
    assert!(from.len() >= KEYS * width && to.len() >= KEYS * width && KEYS.is_multiple_of(LANES));
    for key in (0..KEYS).step_by(LANES) {
        for channel in (0..width).step_by(LANES) {
            let mask = lanes_below(width - channel);
            let mut rows = [_mm512_setzero_ps(); LANES];
            for i in 0..LANES {
                // SAFETY: lanes beyond the row's end are masked.
                rows[i] =
                    unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr().add((key + i) * width + channel)) };
            }
            let columns = transposed(rows);
            for i in 0..LANES.min(width - channel) {
                // SAFETY: 16 of the KEYS elements of a channel that there is.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr().add((channel + i) * KEYS + key), columns[i]) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn transposed(rows: [__m512; 16]) -> [__m512; 16] {
    // 4 × 4 within quarters, then the quarters
    let mut near = [_mm512_setzero_ps(); 16];
    for four in 0..4 {
        let row = |i: usize| rows[4 * four + i];
        let pairs = [
            _mm512_unpacklo_ps(row(0), row(1)),
            _mm512_unpacklo_ps(row(2), row(3)),
            _mm512_unpackhi_ps(row(0), row(1)),
            _mm512_unpackhi_ps(row(2), row(3)),
        ];
        for half in 0..2 {
            let (a, b) = (_mm512_castps_pd(pairs[2 * half]), _mm512_castps_pd(pairs[2 * half + 1]));
            near[4 * four + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            near[4 * four + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // near[4·four + c] has, in quarter p, column 4·p + c of rows 4·four ..
    let mut out = [_mm512_setzero_ps(); 16];
    for c in 0..4 {
        let (a, b) = (
            _mm512_shuffle_f32x4::<0x44>(near[c], near[4 + c]),
            _mm512_shuffle_f32x4::<0xee>(near[c], near[4 + c]),
        );
        let (d, e) = (
            _mm512_shuffle_f32x4::<0x44>(near[8 + c], near[12 + c]),
            _mm512_shuffle_f32x4::<0xee>(near[8 + c], near[12 + c]),
        );
        out[c] = _mm512_shuffle_f32x4::<0x88>(a, d);
        out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(a, d);
        out[8 + c] = _mm512_shuffle_f32x4::<0x88>(b, e);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(b, e);
    }
    out
}
