//! Pooling of tokens into compressed entries.

use belay_backend::{Compress, PagedRows};

use super::AscendBackend;
use super::buffer::{AscendArena, AscendBuffer};
use super::job::Job;
use super::rows;
use crate::Result;
use crate::tensor::View;

/// Pools the windows that the rows complete, then keeps what windows are open.
pub(super) fn compress(
    job: &mut Job<'_>,
    op: &Compress<'_, AscendBackend>,
    arena: &AscendArena,
    out: &AscendBuffer,
) -> Result<()> {
    if op.rows.is_empty() {
        return Ok(());
    }
    let end = op.start + op.rows.len();
    let row_width = op.bias.len() / op.ratio;
    // whole windows, and the one before the first for those that overlap
    let first_entry = op.start / op.ratio;
    let before = usize::from(op.overlap && first_entry > 0);
    let from = if end / op.ratio > first_entry { (first_entry - before) * op.ratio } else { op.start };
    let recent = Recent::gather(job, op, arena, from, row_width)?;
    pool(job, op, &recent, from, row_width, out)?;
    keep(job, op, &recent, from, arena)
}

/// Values and gates with bias of the positions from some one on, `[positions, 2 · row width]` as in the cache.
struct Recent {
    rows: View,
    count: usize,
}

impl Recent {
    fn gather(
        job: &mut Job<'_>,
        op: &Compress<'_, AscendBackend>,
        arena: &AscendArena,
        from: usize,
        row_width: usize,
    ) -> Result<Self> {
        let (new, old) = (op.rows.len(), op.start - from);
        let rows = job.floats(&[old + new, 2 * row_width])?;
        if old > 0 {
            rows::gather(job, arena, op.open, from..op.start, &rows.shaped(&[old, 2 * row_width])?)?;
        }
        let half = |which: usize| {
            let half = rows.restrided(&[(new, 2 * row_width), (row_width, 1)])?;
            half.moved(old * 2 * row_width + which * row_width)
        };
        let given = |buffer: &AscendBuffer| buffer.view(&[new, row_width])?.moved(op.rows.start * row_width);
        job.copy(&given(op.values)?, &half(0)?)?;
        let phases: Vec<i64> =
            (op.start..op.start + new).map(|position| (position % op.ratio) as i64).collect();
        let phases = job.indices(&phases)?;
        let biased = job.floats(&[new, row_width])?;
        job.index_rows(&op.bias.view(&[op.ratio, row_width])?, &phases, &biased)?;
        job.add(&biased, &given(op.gates)?, &biased)?;
        job.copy(&biased, &half(1)?)?;
        Ok(Self { rows, count: old + new })
    }
}

/// Softmax of the gates over the positions of an entry, by channel, and the values' weighted sum.
fn pool(
    job: &mut Job<'_>,
    op: &Compress<'_, AscendBackend>,
    recent: &Recent,
    from: usize,
    row_width: usize,
    out: &AscendBuffer,
) -> Result<()> {
    let (ratio, width) = (op.ratio, op.width);
    let (first_entry, end_entry) = (op.start / ratio, (op.start + op.rows.len()) / ratio);
    let entries = end_entry - first_entry;
    if entries == 0 {
        return Ok(());
    }
    let parts = if op.overlap { 2 } else { 1 };
    let items = parts * ratio;
    let row = 2 * row_width;
    let gathered = |job: &mut Job<'_>, half: usize, absent: f32| {
        let all = job.floats(&[entries, items, width])?;
        for part in 0..parts {
            // of an overlapping entry, the first part is the first half of the window before
            let is_before = op.overlap && part == 0;
            let missing = usize::from(is_before && first_entry == 0);
            let window = first_entry + missing - usize::from(is_before);
            let place = |first: usize, count: usize| {
                let axes = [(count, items * width), (ratio, width), (width, 1)];
                all.restrided(&axes)?.moved(first * items * width + part * ratio * width)
            };
            if missing > 0 {
                job.fill(&place(0, 1)?, absent)?;
            }
            if entries > missing {
                let axes = [(entries - missing, ratio * row), (ratio, row), (width, 1)];
                let first = (window * ratio - from) * row + half * row_width + part * width;
                job.copy(&recent.rows.restrided(&axes)?.moved(first)?, &place(missing, entries - missing)?)?;
            }
        }
        Ok::<_, crate::Error>(all)
    };
    let values = gathered(job, 0, 0.0)?;
    let gates = gathered(job, 1, f32::NEG_INFINITY)?;
    let shares = job.floats(&[entries, items, width])?;
    job.softmax(&gates, 1, &shares)?;
    job.multiply(&shares, &values, &shares)?;
    job.sum(&shares, 1, &out.view(&[entries, 1, width])?)
}

/// Stores the rows from `op.keep` on.
fn keep(
    job: &mut Job<'_>,
    op: &Compress<'_, AscendBackend>,
    recent: &Recent,
    from: usize,
    arena: &AscendArena,
) -> Result<()> {
    let first = op.keep.max(op.start);
    let end = from + recent.count;
    if first >= end {
        return Ok(());
    }
    let open: PagedRows<'_> = op.open;
    let width = open.layout.width;
    let kept = recent.rows.shaped(&[end - first, width])?.moved((first - from) * width)?;
    rows::store(job, &kept, arena, open, first)
}
