//! Functions of single elements, and softmax, 16 at a time.

use std::arch::x86_64::*;

use super::avx512;
use super::heads::lanes_below;

const LANES: usize = 16;

/// `gate[i] = silu(min(gate[i], limit)) · clamp(up[i], ±limit)`; both slices are of one length.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn gated(gate: &mut [f32], up: &[f32], limit: f32) {
    let (most, least) = (_mm512_set1_ps(limit), _mm512_set1_ps(-limit));
    for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
        let mask = lanes_below(up.len());
        // SAFETY: lanes beyond the chunks are not touched.
        unsafe {
            let g = _mm512_min_ps(_mm512_maskz_loadu_ps(mask, gate.as_ptr()), most);
            let u = _mm512_maskz_loadu_ps(mask, up.as_ptr());
            let u = _mm512_min_ps(most, _mm512_max_ps(least, u));
            let one = _mm512_set1_ps(1.0);
            let sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), g))));
            _mm512_mask_storeu_ps(gate.as_mut_ptr(), mask, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), u));
        }
    }
}

/// Softmax of `scale · scores`, with `sink` as one more that takes its share and is not kept.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn softmax(scores: &mut [f32], scale: f32, sink: f32) {
    let factor = _mm512_set1_ps(scale);
    let mut most = _mm512_set1_ps(sink);
    for part in scores.chunks(LANES) {
        let mask = lanes_below(part.len());
        // SAFETY: lanes beyond the chunk are not touched, here and below.
        let scaled = unsafe { _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, part.as_ptr()), factor) };
        most = _mm512_mask_max_ps(most, mask, most, scaled);
    }
    let max = _mm512_reduce_max_ps(most);
    let most = _mm512_set1_ps(max);
    let mut sums = _mm512_setzero_ps();
    for part in scores.chunks_mut(LANES) {
        let mask = lanes_below(part.len());
        // SAFETY: as above.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, part.as_ptr()), factor);
            let share = exp(_mm512_sub_ps(scaled, most));
            sums = _mm512_mask_add_ps(sums, mask, sums, share);
            _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, share);
        }
    }
    let sum = avx512::horizontal(sums) + (sink - max).exp();
    let normaliser = _mm512_set1_ps(sum.recip());
    for part in scores.chunks_mut(LANES) {
        let mask = lanes_below(part.len());
        // SAFETY: as above.
        unsafe {
            let share = _mm512_maskz_loadu_ps(mask, part.as_ptr());
            _mm512_mask_storeu_ps(part.as_mut_ptr(), mask, _mm512_mul_ps(share, normaliser));
        }
    }
}

/// e^x within 2 units in the last place: 2^n · e^r with |r| ≤ ln 2 / 2, and the minimax polynomial of Cephes' `expf`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn exp(x: __m512) -> __m512 {
    const COEFFICIENTS: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1];
    // beyond these, results are infinite or zero; NaN passes
    let x = _mm512_min_ps(_mm512_set1_ps(89.0), _mm512_max_ps(_mm512_set1_ps(-104.0), x));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    // ln 2 in two parts, so that the first product is exact
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for coefficient in COEFFICIENTS {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    let p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0)));
    _mm512_scalef_ps(p, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    #[test]
    fn exp_is_close_everywhere() {
        if !Level::Avx512.is_available() {
            eprintln!("skipped: this machine has no {}", Level::Avx512);
            return;
        }
        let special = [0.0, -0.0, 1.0, 88.7, 89.5, -87.3, -103.0, -200.0, f32::INFINITY, f32::NEG_INFINITY];
        let spread = (-400..400).map(|i| i as f32 * 0.217_3);
        for x in special.into_iter().chain(spread) {
            // SAFETY: the level was checked above.
            let found = unsafe { _mm512_cvtss_f32(exp(_mm512_set1_ps(x))) };
            let expected = f64::from(x).exp() as f32;
            let tolerance = (2.0 * f32::EPSILON * expected).max(f32::from_bits(2));
            assert!(found == expected || (found - expected).abs() <= tolerance, "e^{x}: {found} {expected}");
        }
        // SAFETY: as above.
        assert!(unsafe { _mm512_cvtss_f32(exp(_mm512_set1_ps(f32::NAN))) }.is_nan());
    }
}
