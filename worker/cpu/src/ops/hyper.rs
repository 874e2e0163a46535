//! Hyper-connections: how a block reads and writes the M residual streams.

use belay_backend::{HyperShape, MAX_STREAMS};

use super::activation::sigmoid;
use super::norm::inverse_rms;
use crate::kernel::Kernels;

/// One row: turns z = fn · streams into pre, post and the doubly stochastic comb. `base` is as long as `mix`.
pub(crate) fn mix(
    kernels: Kernels,
    streams: &[f32],
    shape: HyperShape,
    base: &[f32],
    scale: &[f32],
    mix: &mut [f32],
) {
    let m = shape.streams;
    let r = inverse_rms(kernels, streams, shape.norm_eps);
    let (pre, rest) = mix.split_at_mut(m);
    let (post, comb) = rest.split_at_mut(m);
    for (value, base) in pre.iter_mut().zip(base) {
        *value = sigmoid(*value * r * scale[0] + base) + shape.eps;
    }
    for (value, base) in post.iter_mut().zip(&base[m..]) {
        *value = 2.0 * sigmoid(*value * r * scale[1] + base);
    }
    for (value, base) in comb.iter_mut().zip(&base[2 * m..]) {
        *value = *value * r * scale[2] + base;
    }
    sinkhorn(comb, m, shape.iterations, shape.eps);
}

/// One row of the head: `pre` only.
pub(crate) fn head_mix(
    kernels: Kernels,
    streams: &[f32],
    shape: HyperShape,
    base: &[f32],
    scale: &[f32],
    mix: &mut [f32],
) {
    let r = inverse_rms(kernels, streams, shape.norm_eps);
    for (value, base) in mix.iter_mut().zip(base) {
        *value = sigmoid(*value * r * scale[0] + base) + shape.eps;
    }
}

/// Softmax of each row plus eps, one column step, then `iterations − 1` times rows and columns.
fn sinkhorn(a: &mut [f32], m: usize, iterations: usize, eps: f32) {
    for row in a.chunks_exact_mut(m) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for value in row.iter_mut() {
            *value = (*value - max).exp();
        }
        let sum: f32 = row.iter().sum();
        for value in row {
            *value = *value / sum + eps;
        }
    }
    columns(a, m, eps);
    for _ in 1..iterations {
        for row in a.chunks_exact_mut(m) {
            let sum: f32 = row.iter().sum();
            for value in row {
                *value /= sum + eps;
            }
        }
        columns(a, m, eps);
    }
}

fn columns(a: &mut [f32], m: usize, eps: f32) {
    for column in 0..m {
        let sum: f32 = a.iter().skip(column).step_by(m).sum();
        for value in a.iter_mut().skip(column).step_by(m) {
            *value /= sum + eps;
        }
    }
}

/// One row: `out = Σ_j pre_j · stream_j`.
pub(crate) fn pre(streams: &[f32], pre: &[f32], out: &mut [f32]) {
    let width = out.len();
    out.fill(0.0);
    for (stream, &factor) in streams.chunks_exact(width).zip(pre) {
        for (out, x) in out.iter_mut().zip(stream) {
            *out += factor * x;
        }
    }
}

/// One row: `stream_k = post_k · y + Σ_j comb[j, k] · stream_j`. The first index of comb is summed.
pub(crate) fn post(streams: &mut [f32], shape: HyperShape, mix: &[f32], y: &[f32]) {
    let HyperShape { streams: m, width, .. } = shape;
    let (post, comb) = mix[m..].split_at(m);
    // in parts, so that the old streams need little room
    let mut old = [[0.0f32; PART]; MAX_STREAMS];
    for (part, y) in y.chunks(PART).enumerate() {
        let at = part * PART;
        for (j, old) in old.iter_mut().enumerate().take(m) {
            old[..y.len()].copy_from_slice(&streams[j * width + at..][..y.len()]);
        }
        for k in 0..m {
            let values = &mut streams[k * width + at..][..y.len()];
            values.iter_mut().zip(y).for_each(|(value, y)| *value = post[k] * y);
            for (j, old) in old.iter().enumerate().take(m) {
                let share = comb[j * m + k];
                values.iter_mut().zip(old).for_each(|(value, old)| *value += share * old);
            }
        }
    }
}

/// Channels of a stream that are changed at once.
const PART: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinkhorn_ends_on_columns_that_sum_to_one() {
        let mut a: Vec<f32> = (0..16).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
        sinkhorn(&mut a, 4, 20, 1e-6);
        for k in 0..4 {
            let column: f32 = (0..4).map(|j| a[j * 4 + k]).sum();
            let row: f32 = a[k * 4..][..4].iter().sum();
            assert!((column - 1.0).abs() < 1e-5 && (row - 1.0).abs() < 1e-4, "{column} {row}");
        }
    }

    #[test]
    fn post_sums_over_the_first_index() {
        let shape = HyperShape { streams: 2, width: 1, iterations: 1, eps: 0.0, norm_eps: 0.0 };
        let mut streams = [10.0, 100.0];
        // pre is not used; post = 1, 2; comb[0, 1] = 3, the rest 0
        post(&mut streams, shape, &[0.0, 0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0], &[7.0]);
        assert_eq!(streams, [7.0, 14.0 + 30.0]);
    }
}
