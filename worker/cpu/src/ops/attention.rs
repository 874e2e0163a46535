//! Softmax attention over a window and compressed entries, with a sink per head.

use std::ops::Range;

use belay_backend::{Attention, Entries, PagedRows, RowFormat};

use crate::arena::CpuArena;
use crate::backend::CpuBackend;
use crate::kernel::Kernels;
use crate::ops::rows;

/// Working memory of one thread.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// Where each key starts, in the arena or in `decoded`.
    places: Vec<usize>,
    /// Keys that are not stored as f32: `[keys, width]`.
    decoded: Vec<f32>,
    logits: Vec<f32>,
}

/// Writes the outputs `[heads, width]` of some heads of query `row` of the step. Returns how many keys it read.
///
/// Keys are taken in one order, window by position and then entries by number.
pub(crate) fn attend(
    kernels: Kernels,
    op: &Attention<'_, CpuBackend>,
    row: usize,
    heads: Range<usize>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) -> usize {
    let width = op.width;
    let position = op.start + (row - op.rows.start);
    let first = (position + 1).saturating_sub(op.window);
    let AttentionScratch { places, decoded, logits } = scratch;
    places.clear();
    let mut keys = Keys { kernels, arena: op.arena, places, decoded };
    keys.take(op.keys, first..position + 1);
    match &op.entries {
        Entries::None => {}
        Entries::Visible { entries, ratio } => keys.take(*entries, 0..(position + 1) / ratio),
        Entries::Selected { entries, chosen, k } => {
            let chosen = chosen.0[row * k..][..*k].iter().take_while(|&&entry| entry >= 0);
            chosen.for_each(|&entry| keys.take(*entries, entry as usize..entry as usize + 1));
        }
    }
    let keys: &[f32] = if op.keys.layout.format == RowFormat::F32 { op.arena.f32s() } else { decoded };
    let count = places.len();
    logits.resize(heads.len() * count, 0.0);
    let scale = (width as f32).sqrt().recip();
    let q = &op.q.0[(row * op.heads + heads.start) * width..][..heads.len() * width];
    kernels.scores(q, width, keys, places, logits);
    for (logits, &sink) in logits.chunks_exact_mut(count.max(1)).zip(&op.sink.0[heads]) {
        kernels.softmax(logits, scale, sink);
    }
    kernels.values(logits, width, keys, places, out);
    count
}

/// The keys of one query, in order.
struct Keys<'a> {
    kernels: Kernels,
    arena: &'a CpuArena,
    places: &'a mut Vec<usize>,
    decoded: &'a mut Vec<f32>,
}

impl Keys<'_> {
    /// All keys of an operation have one format.
    fn take(&mut self, from: PagedRows<'_>, rows: Range<usize>) {
        let width = from.layout.width;
        if from.layout.format == RowFormat::F32 {
            for run in from.runs(rows) {
                let start = self.arena.f32_at(&run);
                self.places.extend((0..run.rows.len()).map(|i| start + i * width));
            }
            return;
        }
        let start = self.places.len() * width;
        self.places.extend(rows.clone().enumerate().map(|(i, _)| start + i * width));
        let end = start + rows.len() * width;
        if self.decoded.len() < end {
            self.decoded.resize(end, 0.0);
        }
        rows::fetch(self.kernels, self.arena, from, rows, &mut self.decoded[start..end]);
    }
}

#[cfg(test)]
mod tests {
    use belay_backend::RowLayout;

    use super::*;
    use crate::CpuBuffer;

    /// Window of 2 at position 3: two keys by position, and one visible entry of two. Everything else is NaN.
    #[test]
    fn a_query_sees_its_window_the_complete_entries_and_the_sink() {
        for format in [RowFormat::F32, RowFormat::Bf16] {
            let layout = RowLayout { format, width: 1 };
            let Ok(mut arena) = CpuArena::new(3, 64) else { panic!("three pages") };
            let keys = PagedRows {
                pages: &[2, 0],
                first_page: 0,
                shift: 0,
                rows_per_block: 4,
                rows_per_page: 2,
                offset: 0,
                layout,
            };
            let entries = PagedRows { pages: &[1], rows_per_page: 4, offset: 8, ..keys };
            let nan = f32::NAN;
            rows::store(&mut arena, keys, 0, [[nan], [5.0], [1.0], [2.0]].iter().map(|x| x.as_slice()));
            rows::store(&mut arena, entries, 0, [[10.0], [nan]].iter().map(|x| x.as_slice()));
            let (q, sink) = (CpuBuffer(vec![0.0, 0.0]), CpuBuffer(vec![0.0]));
            let op = Attention {
                q: &q,
                rows: 0..2,
                start: 2,
                arena: &arena,
                keys,
                window: 2,
                entries: Entries::Visible { entries, ratio: 3 },
                sink: &sink,
                heads: 1,
                width: 1,
            };
            let Some(kernels) = Kernels::new(crate::Level::Scalar) else { return };
            let mut out = [0.0];
            // all logits are 0: equal shares, the sink's without a value
            let read = attend(kernels, &op, 0, 0..1, &mut AttentionScratch::default(), &mut out);
            assert_eq!((read, out), (3, [(5.0f32 + 1.0 + 10.0) / 4.0]), "{format:?}");
            attend(kernels, &op, 1, 0..1, &mut AttentionScratch::default(), &mut out);
            assert_eq!(out, [(1.0f32 + 2.0 + 10.0) / 4.0], "{format:?}");
        }
    }
}
