//! Root-mean-square norms and rotary positions.

use belay_backend::{Rotary, Rows};

use super::buffer::AscendBuffer;
use super::job::Job;
use crate::Result;

pub(super) fn rms_norm(
    job: &mut Job<'_>,
    x: &AscendBuffer,
    rows: Rows,
    weight: &AscendBuffer,
    eps: f32,
    out: &AscendBuffer,
    out_first: usize,
) -> Result<()> {
    if rows.count == 0 {
        return Ok(());
    }
    let dims = [rows.count, rows.width];
    let x = x.view(&dims)?.moved(rows.first * rows.width)?;
    let out = out.view(&dims)?.moved(out_first * rows.width)?;
    job.rms_norm(&x, &weight.view(&[rows.width])?, eps, &out)
}

pub(super) fn head_norm(
    job: &mut Job<'_>,
    x: &AscendBuffer,
    count: usize,
    width: usize,
    eps: f32,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let x = x.view(&[count, width])?;
    let out = job.floats(&[count, width])?;
    let ones = job.ones(width)?;
    job.rms_norm(&x, &ones, eps, &out)?;
    job.copy(&out, &x)
}

/// Rotates the last channels of each head by the angles of the row.
pub(super) fn rope(
    job: &mut Job<'_>,
    x: &AscendBuffer,
    rows: Rows,
    rotary: Rotary,
    table: &AscendBuffer,
    table_first: usize,
) -> Result<()> {
    let Rotary { heads, channels, inverse } = rotary;
    if rows.count == 0 || channels == 0 {
        return Ok(());
    }
    // cosine and sine of each pair in turn, and the operator wants each twice
    let twice = |job: &mut Job<'_>, of: usize| {
        let pairs = [(rows.count, channels), (channels / 2, 2), (1, 1)];
        let from = table.view(&[table.len()])?.restrided(&pairs)?.moved(table_first * channels + of)?;
        let out = job.floats(&[rows.count, channels / 2, 2])?;
        job.copy(&from, &out)?;
        out.reshaped(&[1, rows.count, 1, channels])
    };
    let (cos, sin) = (twice(job, 0)?, twice(job, 1)?);
    if inverse {
        job.multiply_number(&sin, -1.0, &sin)?;
    }
    let head = rows.width / heads;
    let axes = [(1, rows.count * rows.width), (rows.count, rows.width), (heads, head), (channels, 1)];
    let all = x.view(&[x.len()])?.restrided(&axes)?.moved(rows.first * rows.width + head - channels)?;
    let from = job.packed(&all)?;
    let rotated = job.floats(&[1, rows.count, heads, channels])?;
    job.rotate_pairs(&from, &cos, &sin, &rotated)?;
    job.copy(&rotated, &all)
}
