//! Products with weights, and rows that are looked up.

use super::buffer::AscendBuffer;
use super::job::Job;
use super::weight::AscendMatrix;
use crate::Result;
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
    let x = job.converted(&x.view(&[rows, groups * inputs])?, w.dtype())?;
    let y = y.view(&[rows, groups * outputs])?;
    if groups == 1 {
        let out = if w.dtype() == DataType::F32 { y.clone() } else { job.take(w.dtype(), &[rows, outputs])? };
        job.matmul(&x, &w.transposed(1)?, &out)?;
        return if w.dtype() == DataType::F32 { Ok(()) } else { job.cast(&out, &y) };
    }
    let by_group =
        |view: &View, width: usize| view.restrided(&[(groups, width), (rows, groups * width), (width, 1)]);
    let out = job.take(w.dtype(), &[groups, rows, outputs])?;
    let x = job.packed(&by_group(&x, inputs)?)?;
    job.batch_matmul(&x, &w.transposed(groups)?, &out)?;
    job.copy(&out, &by_group(&y, outputs)?)
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
