//! Choice of the compressed entries that a query attends to.

use std::ops::Range;

use belay_backend::Select;

use super::AscendBackend;
use super::job::{Job, bytes_of_mut};
use super::rows;
use crate::Result;
use crate::tensor::{DataType, View};

/// Scores of heads that are computed at once, at most (but for one query).
const MOST_SCORES: usize = 8 << 20;

/// The `k` best entries of each query, ascending, −1 after the last. Which of two equal scores wins at the limit is up to
/// the device.
pub(super) fn select(job: &mut Job<'_>, op: &Select<'_, AscendBackend>, chosen: &mut [i32]) -> Result<()> {
    let visible = |row: usize| (op.start + row + 1) / op.ratio;
    let rows = op.rows.len();
    let scored = (0..rows).find(|row| visible(*row) > op.k).unwrap_or(rows);
    for row in 0..scored {
        let chosen = &mut chosen[(op.rows.start + row) * op.k..][..op.k];
        let seen = visible(row);
        (0..).zip(&mut chosen[..seen]).for_each(|(entry, place)| *place = entry);
        chosen[seen..].fill(-1);
    }
    if scored == rows {
        return Ok(());
    }
    let keys = visible(rows - 1);
    let gathered = job.floats(&[keys, op.width])?;
    rows::gather(job, op.arena, op.keys, 0..keys, &gathered)?;
    let block = (MOST_SCORES / (op.heads * keys)).clamp(1, rows - scored);
    for first in (scored..rows).step_by(block) {
        let mark = job.mark();
        choose(job, op, first..rows.min(first + block), &gathered, chosen)?;
        job.set_back(mark);
    }
    Ok(())
}

/// Scores a block of queries against all keys and reads back what is best.
fn choose(
    job: &mut Job<'_>,
    op: &Select<'_, AscendBackend>,
    block: Range<usize>,
    keys: &View,
    chosen: &mut [i32],
) -> Result<()> {
    let visible = |row: usize| (op.start + row + 1) / op.ratio;
    let (queries, heads, width, k) = (block.len(), op.heads, op.width, op.k);
    let columns = visible(block.end - 1);
    let first = op.rows.start + block.start;
    let q = op.q.view(&[queries * heads, width])?.moved(first * heads * width)?;
    let products = job.floats(&[queries * heads, columns])?;
    job.matmul(&q, &keys.restrided(&[(width, 1), (columns, width)])?, &products)?;
    job.clamp(&products, Some(0.0), None, &products)?;
    let weights = job.floats(&[queries, heads, 1])?;
    let given = op.head_weights.view(&[queries, heads, 1])?.moved(first * heads)?;
    job.multiply_number(&given, op.scale, &weights)?;
    let products = products.reshaped(&[queries, heads, columns])?;
    job.multiply(&products, &weights, &products)?;
    let scores = job.floats(&[queries, 1, columns])?;
    job.sum(&products, 1, &scores)?;
    let scores = scores.reshaped(&[queries, columns])?;
    let least = visible(block.start);
    if least < columns {
        // entries that some of the queries do not see yet
        let mut mask = vec![0.0; queries * (columns - least)];
        for (row, mask) in block.clone().zip(mask.chunks_exact_mut(columns - least)) {
            mask[visible(row) - least..].fill(f32::NEG_INFINITY);
        }
        let mask = job.f32s(&[queries, columns - least], &mask)?;
        let late = scores.restrided(&[(queries, columns), (columns - least, 1)])?.moved(least)?;
        let masked = job.floats(&[queries, columns - least])?;
        job.add(&late, &mask, &masked)?;
        job.copy(&masked, &late)?;
    }
    let (values, indices) = (job.floats(&[queries, k])?, job.take(DataType::I64, &[queries, k])?);
    job.top_k(&scores, &values, &indices)?;
    let mut best = vec![0i64; queries * k];
    job.read(indices.region(), bytes_of_mut(&mut best))?;
    let places = chosen[first * k..][..queries * k].chunks_exact_mut(k);
    for (place, best) in places.zip(best.chunks_exact(k)) {
        place.iter_mut().zip(best).for_each(|(place, entry)| *place = *entry as i32);
        place.sort_unstable();
    }
    Ok(())
}
