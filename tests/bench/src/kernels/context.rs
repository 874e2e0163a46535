//! What a layer does with a long context: attention over the window and compressed entries, and the indexer's choice of them.

use std::time::Instant;

use anyhow::{Result, ensure};
use belay_backend::{Attention, Backend, Entries, PagedRows, RowFormat, RowLayout, Rows, Select};
use belay_cpu::CpuBackend;

use super::work::{Timing, Work};
use super::{CHOSEN, HEAD, HEADS, INDEX_HEAD, ROTARY, SELECTED_RATIO, VISIBLE_RATIO, WINDOW};

/// Rows of a page.
const PAGE: usize = 64;

/// Cached rows in pages that do not lie in order.
struct Cache {
    arena: <CpuBackend as Backend>::Arena,
    pages: Vec<u32>,
    layout: RowLayout,
}

impl Cache {
    fn new(work: &mut Work, rows: usize, layout: RowLayout) -> Result<Self> {
        let count = rows.div_ceil(PAGE);
        // an odd step through a power of two reaches every page
        let slots = count.next_power_of_two();
        let pages: Vec<u32> = (0..count).map(|i| (i * 37 % slots) as u32).collect();
        let bytes = (PAGE * layout.bytes()).next_multiple_of(64);
        let arena = work.backend.arena(slots, bytes)?;
        let mut cache = Self { arena, pages, layout };
        let step = 4096.min(rows);
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let x = work.input(count * layout.width)?;
            let written = Rows { first: 0, count, width: layout.width };
            let to = rows_of(&cache.pages, layout);
            work.backend.store(&x, written, &mut cache.arena, to, first)?;
        }
        Ok(cache)
    }

    fn rows(&self) -> PagedRows<'_> {
        rows_of(&self.pages, self.layout)
    }
}

fn rows_of(pages: &[u32], layout: RowLayout) -> PagedRows<'_> {
    PagedRows { pages, first_page: 0, shift: 0, rows_per_block: PAGE, rows_per_page: PAGE, offset: 0, layout }
}

/// Milliseconds of each of some times, after one that warms up.
fn timed(times: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    run()?;
    let once = |_| {
        let began = Instant::now();
        run()?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    (0..times).map(once).collect()
}

impl Work {
    /// Attention of the last `tokens` of a context, to selected entries or to all of them.
    pub(super) fn attend(
        &mut self,
        selected: bool,
        context: usize,
        tokens: usize,
        times: usize,
    ) -> Result<Timing> {
        ensure!(tokens > 0 && context >= tokens + WINDOW, "a context of {context} for {tokens} tokens");
        let layout = RowLayout { format: RowFormat::Fp8Key { rotary: ROTARY }, width: HEAD };
        let ratio = if selected { SELECTED_RATIO } else { VISIBLE_RATIO };
        // entries first, then the keys of positions, in one arena
        let entries = (context / ratio).next_multiple_of(PAGE);
        let cache = Cache::new(self, entries + context, layout)?;
        let (of_entries, of_keys) = cache.pages.split_at(entries / PAGE);
        let mut chosen = self.backend.alloc_indices(tokens * CHOSEN)?;
        if selected {
            self.choose(context, tokens, &mut chosen)?;
        }
        let (q, sink) = (self.input(tokens * HEADS * HEAD)?, self.input(HEADS)?);
        let mut out = self.backend.alloc(tokens * HEADS * HEAD)?;
        let op = Attention {
            q: &q,
            rows: 0..tokens,
            start: context - tokens,
            arena: &cache.arena,
            keys: rows_of(of_keys, layout),
            window: WINDOW,
            entries: if selected {
                Entries::Selected { entries: rows_of(of_entries, layout), chosen: &chosen, k: CHOSEN }
            } else {
                Entries::Visible { entries: rows_of(of_entries, layout), ratio }
            },
            sink: &sink,
            heads: HEADS,
            width: HEAD,
        };
        let read = self.backend.rows_read().attention;
        let ms = timed(times, || Ok(self.backend.attention(&op, &mut out)?))?;
        let keys = (self.backend.rows_read().attention - read) as usize / (times + 1);
        // a score and a share of the output for each key and head
        let bytes = vec![(keys * layout.bytes()) as f64; times];
        Ok(Timing { ms, bytes, flops: (4 * keys * HEADS * HEAD) as f64 })
    }

    /// The indexer's choice for the last `tokens` of a context.
    pub(super) fn index(&mut self, context: usize, tokens: usize, times: usize) -> Result<Timing> {
        let mut chosen = self.backend.alloc_indices(tokens * CHOSEN)?;
        let (cache, q, weights) = self.indexer(context, tokens)?;
        let op = indexing(&cache, &q, &weights, context, tokens);
        let read = self.backend.rows_read().select;
        let ms = timed(times, || Ok(self.backend.select(&op, &mut chosen)?))?;
        let keys = (self.backend.rows_read().select - read) as usize / (times + 1);
        let bytes = vec![(context / SELECTED_RATIO * cache.layout.bytes()) as f64; times];
        Ok(Timing { ms, bytes, flops: (2 * keys * HEADS * INDEX_HEAD) as f64 })
    }

    fn indexer(&mut self, context: usize, tokens: usize) -> Result<(Cache, Buffer, Buffer)> {
        ensure!(tokens > 0 && context >= tokens, "a context of {context} for {tokens} tokens");
        let layout = RowLayout { format: RowFormat::Fp8Index, width: INDEX_HEAD };
        let cache = Cache::new(self, context / SELECTED_RATIO, layout)?;
        Ok((cache, self.input(tokens * HEADS * INDEX_HEAD)?, self.input(tokens * HEADS)?))
    }

    fn choose(
        &mut self,
        context: usize,
        tokens: usize,
        chosen: &mut <CpuBackend as Backend>::Indices,
    ) -> Result<()> {
        let (cache, q, weights) = self.indexer(context, tokens)?;
        Ok(self.backend.select(&indexing(&cache, &q, &weights, context, tokens), chosen)?)
    }
}

type Buffer = <CpuBackend as Backend>::Buffer;

fn indexing<'a>(
    cache: &'a Cache,
    q: &'a Buffer,
    head_weights: &'a Buffer,
    context: usize,
    tokens: usize,
) -> Select<'a, CpuBackend> {
    Select {
        q,
        head_weights,
        scale: 1.0,
        arena: &cache.arena,
        keys: cache.rows(),
        rows: 0..tokens,
        start: context - tokens,
        ratio: SELECTED_RATIO,
        heads: HEADS,
        width: INDEX_HEAD,
        k: CHOSEN,
    }
}
