//! Root-mean-square norms.

use crate::kernel::Kernels;

/// 1 / sqrt(mean(x²) + eps).
pub(crate) fn inverse_rms(kernels: Kernels, x: &[f32], eps: f32) -> f32 {
    let [sum] = kernels.dots(x, [x]);
    (sum / x.len() as f32 + eps).sqrt().recip()
}

/// `out = weight · x · inverse_rms(x)`.
pub(crate) fn rms_norm(kernels: Kernels, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let factor = inverse_rms(kernels, x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = weight * (x * factor);
    }
}

/// `x *= inverse_rms(x)`.
pub(crate) fn head_norm(kernels: Kernels, x: &mut [f32], eps: f32) {
    let factor = inverse_rms(kernels, x, eps);
    for x in x {
        *x *= factor;
    }
}
