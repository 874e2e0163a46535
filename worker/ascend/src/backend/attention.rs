//! Softmax attention over a window and compressed entries, with a sink per head.

use belay_backend::{Attention, Entries, PagedRows};

use super::AscendBackend;
use super::buffer::AscendBuffer;
use super::job::Job;
use super::rows;
use crate::Result;

/// Logits that are computed at once, at most (but for one query).
const MOST_LOGITS: usize = 4 << 20;

/// `out[r, h, :]` for the queries of one sequence.
///
/// Queries are taken in blocks whose keys are gathered once: those that any of them sees; the others are masked. A last
/// row of zeros stands for the sink, which takes its share and gives no value.
pub(super) fn attend(job: &mut Job<'_>, op: &Attention<'_, AscendBackend>, out: &AscendBuffer) -> Result<()> {
    let most_entries = match &op.entries {
        Entries::None => 0,
        Entries::Visible { ratio, .. } => (op.start + op.rows.len()) / ratio,
        Entries::Selected { k, .. } => *k,
    };
    let most_keys = op.window.min(op.start + op.rows.len()) + most_entries + 1;
    let block = (MOST_LOGITS / (op.heads * most_keys)).clamp(1, op.rows.len().max(1));
    for first in (0..op.rows.len()).step_by(block) {
        let mark = job.mark();
        attend_block(job, op, first..op.rows.len().min(first + block), out)?;
        job.set_back(mark);
    }
    Ok(())
}

/// The keys of a block of queries, and who sees which.
struct Keys<'a> {
    window: std::ops::Range<usize>,
    entries: Option<(PagedRows<'a>, Vec<usize>)>,
    /// `[queries, keys + 1]`: 0 where the query sees the key, else −∞; `None` if everybody sees everything.
    mask: Option<Vec<f32>>,
}

impl<'a> Keys<'a> {
    fn of(op: &Attention<'a, AscendBackend>, block: std::ops::Range<usize>) -> Self {
        let position = |row: usize| op.start + row;
        let first_key = |row: usize| (position(row) + 1).saturating_sub(op.window);
        let window = first_key(block.start)..position(block.end - 1) + 1;
        // ascending numbers of entries that a query sees
        let seen = |row: usize| -> Vec<usize> {
            match &op.entries {
                Entries::None => Vec::new(),
                Entries::Visible { ratio, .. } => (0..(position(row) + 1) / ratio).collect(),
                Entries::Selected { chosen, k, .. } => {
                    let chosen = &chosen.0[(op.rows.start + row) * k..][..*k];
                    chosen.iter().take_while(|entry| **entry >= 0).map(|entry| *entry as usize).collect()
                }
            }
        };
        let mut all: Vec<usize> = block.clone().flat_map(seen).collect();
        all.sort_unstable();
        all.dedup();
        let columns = window.len() + all.len() + 1;
        let mut mask = vec![f32::NEG_INFINITY; block.len() * columns];
        for (row, mask) in block.clone().zip(mask.chunks_exact_mut(columns)) {
            mask[first_key(row) - window.start..position(row) + 1 - window.start].fill(0.0);
            let mut from = 0;
            for entry in seen(row) {
                from += all[from..].partition_point(|other| *other < entry);
                mask[window.len() + from] = 0.0;
            }
            mask[columns - 1] = 0.0;
        }
        let hides = mask.iter().any(|value| *value != 0.0);
        let entries = match &op.entries {
            Entries::None => None,
            Entries::Visible { entries, .. } | Entries::Selected { entries, .. } => Some((*entries, all)),
        };
        Self { window, entries, mask: hides.then_some(mask) }
    }

    fn count(&self) -> usize {
        self.window.len() + self.entries.as_ref().map_or(0, |(_, rows)| rows.len())
    }
}

fn attend_block(
    job: &mut Job<'_>,
    op: &Attention<'_, AscendBackend>,
    block: std::ops::Range<usize>,
    out: &AscendBuffer,
) -> Result<()> {
    let (queries, heads, width) = (block.len(), op.heads, op.width);
    let seen = Keys::of(op, block.clone());
    let columns = seen.count() + 1;
    let keys = job.floats(&[columns, width])?;
    let window = keys.shaped(&[seen.window.len(), width])?;
    rows::gather(job, op.arena, op.keys, seen.window.clone(), &window)?;
    if let Some((from, entries)) = &seen.entries {
        let place = keys.shaped(&[entries.len(), width])?.moved(seen.window.len() * width)?;
        rows::gather(job, op.arena, *from, entries.iter().copied(), &place)?;
    }
    job.fill(&keys.shaped(&[1, width])?.moved((columns - 1) * width)?, 0.0)?;

    let first = (op.rows.start + block.start) * heads * width;
    let q = op.q.view(&[queries * heads, width])?.moved(first)?;
    let logits = job.floats(&[queries * heads, columns])?;
    job.matmul(&q, &keys.restrided(&[(width, 1), (columns, width)])?, &logits)?;
    job.multiply_number(&logits, (width as f32).sqrt().recip(), &logits)?;
    let logits = logits.reshaped(&[queries, heads, columns])?;
    let sink_column = [(queries, heads * columns), (heads, columns), (1, 1)];
    let sink_column = logits.restrided(&sink_column)?.moved(columns - 1)?;
    job.copy(&op.sink.view(&[1, heads, 1])?, &sink_column)?;
    if let Some(mask) = &seen.mask {
        let mask = job.f32s(&[queries, 1, columns], mask)?;
        job.add(&logits, &mask, &logits)?;
    }
    let shares = job.floats(&[queries, heads, columns])?;
    job.softmax(&logits, 2, &shares)?;
    let out = out.view(&[queries * heads, width])?.moved(first)?;
    job.matmul(&shares.reshaped(&[queries * heads, columns])?, &keys, &out)
}
