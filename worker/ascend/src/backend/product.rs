//! Products with weights, and rows that are looked up.

use super::buffer::AscendBuffer;
use super::job::Job;
use super::weight::{AscendMatrix, Quantised};
use crate::Result;
use crate::op::GroupedProduct;
use crate::tensor::{DataType, View};

/// `out[i, c, :] = table[ids[i], :]` for each copy c.
pub(super) fn embed(
    job: &mut Job<'_>,
    table: &AscendMatrix,
    ids: &[u32],
    copies: usize,
    out: &AscendBuffer,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let (count, width) = (ids.len(), table.cols());
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let index = job.indices(&ids)?;
    let rows = job.take(table.dtype(), &[count, width])?;
    job.index_rows(&table.view()?, &index, &rows)?;
    let rows = job.converted(&rows, DataType::F32)?.reshaped(&[count, 1, width])?;
    job.copy(&rows, &out.view(&[count, copies, width])?)
}

/// y = W x, W and x in `groups` parts.
pub(super) fn linear(
    job: &mut Job<'_>,
    w: &AscendMatrix,
    groups: usize,
    x: &AscendBuffer,
    rows: usize,
    y: &AscendBuffer,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let (inputs, outputs) = (w.cols(), w.rows() / groups);
    if let Some(parts) = w.quantised() {
        let (x, y) = (x.view(&[rows, groups * inputs])?, y.view(&[rows, groups * outputs])?);
        return quantised(job, w, parts, groups, &x, &y);
    }
    let x = job.converted(&x.view(&[rows, groups * inputs])?, w.dtype())?;
    let y = y.view(&[rows, groups * outputs])?;
    if groups == 1 {
        let out = if w.dtype() == DataType::F32 { y.clone() } else { job.take(w.dtype(), &[rows, outputs])? };
        job.matmul(&x, &w.transposed(1)?, &out)?;
        return if w.dtype() == DataType::F32 { Ok(()) } else { job.cast(&out, &y) };
    }
    let out = job.take(w.dtype(), &[groups, rows, outputs])?;
    let x = job.packed(&by_group(&x, groups, rows)?)?;
    job.batch_matmul(&x, &w.transposed(groups)?, &out)?;
    job.copy(&out, &by_group(&y, groups, rows)?)
}

/// `[rows, groups · width]` as `[groups, rows, width]`.
fn by_group(view: &View, groups: usize, rows: usize) -> Result<View> {
    let width = view.layout().elements() / (groups * rows);
    view.restrided(&[(groups, width), (rows, groups * width), (width, 1)])
}

/// The same with a quantised weight. A row's part of a group is quantised by itself, so a row's result does not depend on
/// other rows. Inputs and results are rounded to bf16, as without quantisation.
fn quantised(
    job: &mut Job<'_>,
    w: &AscendMatrix,
    parts: &Quantised,
    groups: usize,
    x: &View,
    y: &View,
) -> Result<()> {
    let rows = x.layout().dims()[0] as usize;
    let (all, outputs) = (groups * rows, w.rows() / groups);
    let halves = job.take(DataType::Bf16, &[all, parts.inputs])?;
    if parts.inputs == w.cols() && groups == 1 {
        job.cast(x, &halves)?;
    } else {
        if parts.inputs != w.cols() {
            job.clear(halves.region())?;
        }
        let filled = [(groups, rows * parts.inputs), (rows, parts.inputs), (w.cols(), 1)];
        job.copy(&by_group(x, groups, rows)?, &halves.restrided(&filled)?)?;
    }
    let (codes, per_token) = (job.take(DataType::I8, &[all, parts.inputs])?, job.floats(&[all])?);
    job.dynamic_quant(&halves, &codes, &per_token)?;
    let counts = job.indices(&vec![rows as i64; groups])?;
    let out = job.take(DataType::Bf16, &[all, outputs])?;
    job.grouped_matmul(GroupedProduct {
        x: &codes,
        weight: &w.grouped(groups)?,
        bias: parts.bias.as_ref(),
        scale: Some(&parts.scales(groups, outputs)?),
        per_token: Some(&per_token),
        counts: &counts,
        out: &out,
    })?;
    if groups == 1 {
        return job.cast(&out, y);
    }
    job.copy(&out.reshaped(&[groups, rows, outputs])?, &by_group(y, groups, rows)?)
}

/// `out[i, :] = x[rows[i], :]`.
pub(super) fn gather(
    job: &mut Job<'_>,
    x: &AscendBuffer,
    width: usize,
    rows: &[u32],
    out: &AscendBuffer,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let index: Vec<i64> = rows.iter().map(|row| i64::from(*row)).collect();
    let index = job.indices(&index)?;
    job.index_rows(&x.view(&[x.len() / width, width])?, &index, &out.view(&[rows.len(), width])?)
}
