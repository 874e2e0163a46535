//! Hyper-connections: how a block reads and writes the M residual streams.

use belay_backend::HyperShape;

use super::buffer::AscendBuffer;
use super::job::Job;
use crate::Result;
use crate::op::Unary;
use crate::tensor::View;

/// `mix` becomes `pre`, `post` and the doubly stochastic `comb`.
pub(super) fn mix(
    job: &mut Job<'_>,
    streams: &AscendBuffer,
    rows: usize,
    shape: HyperShape,
    base: &AscendBuffer,
    scale: &AscendBuffer,
    mix: &AscendBuffer,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let m = shape.streams;
    let width = (2 + m) * m;
    let mix = mix.view(&[rows, width])?;
    normalise(job, streams, rows, shape, &mix)?;
    let part = |first: usize, columns: usize| mix.restrided(&[(rows, width), (columns, 1)])?.moved(first);

    let pre = biased(job, &part(0, m)?, base, 0, scale, 0)?;
    job.unary(Unary::Sigmoid, &pre, &pre)?;
    job.add_number(&pre, shape.eps, &pre)?;
    job.copy(&pre, &part(0, m)?)?;

    let post = biased(job, &part(m, m)?, base, m, scale, 1)?;
    job.unary(Unary::Sigmoid, &post, &post)?;
    job.multiply_number(&post, 2.0, &post)?;
    job.copy(&post, &part(m, m)?)?;

    let comb = biased(job, &part(2 * m, m * m)?, base, 2 * m, scale, 2)?;
    let comb = sinkhorn(job, &comb.reshaped(&[rows, m, m])?, shape)?;
    job.copy(&comb.reshaped(&[rows, m * m])?, &part(2 * m, m * m)?)
}

/// `mix` becomes `pre`.
pub(super) fn head_mix(
    job: &mut Job<'_>,
    streams: &AscendBuffer,
    rows: usize,
    shape: HyperShape,
    base: &AscendBuffer,
    scale: &AscendBuffer,
    mix: &AscendBuffer,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let mix = mix.view(&[rows, shape.streams])?;
    normalise(job, streams, rows, shape, &mix)?;
    let pre = biased(job, &mix, base, 0, scale, 0)?;
    job.unary(Unary::Sigmoid, &pre, &pre)?;
    job.add_number(&pre, shape.eps, &mix)
}

/// `mix` by the inverse RMS of the row's streams.
fn normalise(
    job: &mut Job<'_>,
    streams: &AscendBuffer,
    rows: usize,
    shape: HyperShape,
    mix: &View,
) -> Result<()> {
    let width = shape.streams * shape.width;
    let streams = streams.view(&[rows, width])?;
    let (squares, inverse) = (job.floats(&[rows, width])?, job.floats(&[rows, 1])?);
    job.multiply(&streams, &streams, &squares)?;
    job.mean(&squares, 1, &inverse)?;
    job.add_number(&inverse, shape.norm_eps, &inverse)?;
    job.unary(Unary::Rsqrt, &inverse, &inverse)?;
    job.multiply(mix, &inverse, mix)
}

/// `part · scale[which] + base[first ..]`, in a temporary.
fn biased(
    job: &mut Job<'_>,
    part: &View,
    base: &AscendBuffer,
    first: usize,
    scale: &AscendBuffer,
    which: usize,
) -> Result<View> {
    let dims: Vec<usize> = part.layout().dims().iter().map(|dim| *dim as usize).collect();
    let out = job.floats(&dims)?;
    job.multiply(part, &scale.view(&[1])?.moved(which)?, &out)?;
    job.add(&out, &base.view(&[dims[1]])?.moved(first)?, &out)?;
    Ok(out)
}

/// Softmax of the rows, then columns and rows by turns scaled to a sum of 1.
fn sinkhorn(job: &mut Job<'_>, x: &View, shape: HyperShape) -> Result<View> {
    let (rows, m) = (x.layout().dims()[0] as usize, shape.streams);
    let comb = job.floats(&[rows, m, m])?;
    job.softmax(x, 2, &comb)?;
    job.add_number(&comb, shape.eps, &comb)?;
    let sums = [job.floats(&[rows, m, 1])?, job.floats(&[rows, 1, m])?];
    let scale = |job: &mut Job<'_>, axis: usize| {
        let sum = &sums[usize::from(axis == 1)];
        job.sum(&comb, axis, sum)?;
        job.add_number(sum, shape.eps, sum)?;
        job.divide(&comb, sum, &comb)
    };
    scale(job, 1)?;
    for _ in 1..shape.iterations {
        scale(job, 2)?;
        scale(job, 1)?;
    }
    Ok(comb)
}

/// `out[r, :] = Σ_j pre_j · streams[r, j, :]`.
pub(super) fn pre(
    job: &mut Job<'_>,
    streams: &AscendBuffer,
    rows: usize,
    shape: HyperShape,
    mix: &AscendBuffer,
    mix_width: usize,
    out: &AscendBuffer,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let HyperShape { streams: m, width, .. } = shape;
    let pre = mix.view(&[mix.len()])?.restrided(&[(rows, mix_width), (1, m), (m, 1)])?;
    let pre = job.packed(&pre)?;
    job.batch_matmul(&pre, &streams.view(&[rows, m, width])?, &out.view(&[rows, 1, width])?)
}

/// `streams[r, k, :] = post_k · y[r, :] + Σ_j comb[j, k] · streams[r, j, :]`.
pub(super) fn post(
    job: &mut Job<'_>,
    streams: &AscendBuffer,
    rows: usize,
    shape: HyperShape,
    mix: &AscendBuffer,
    y: &AscendBuffer,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let HyperShape { streams: m, width, .. } = shape;
    let mix_width = (2 + m) * m;
    let mix = mix.view(&[rows, mix_width])?;
    // comb[j, k] by k, then j
    let comb = mix.restrided(&[(rows, mix_width), (m, 1), (m, m)])?.moved(2 * m)?;
    let post = mix.restrided(&[(rows, mix_width), (m, 1), (1, 1)])?.moved(m)?;
    let (comb, post) = (job.packed(&comb)?, job.packed(&post)?);
    let streams = streams.view(&[rows, m, width])?;
    let (mixed, written) = (job.floats(&[rows, m, width])?, job.floats(&[rows, m, width])?);
    job.batch_matmul(&comb, &streams, &mixed)?;
    job.multiply(&post, &y.view(&[rows, 1, width])?, &written)?;
    job.add(&mixed, &written, &streams)
}
