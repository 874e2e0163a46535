//! Which rows of a sequence lie in which of its pages, and which pages it must hold. Pure arithmetic.
//!
//! Every row of a decode state belongs to a position and is written once, so all that ever changes is which positions
//! are still needed. Positions fall into blocks, a multiple of every compression ratio. There are four classes of rows;
//! a page holds the rows of one class, of all layers, for a run of positions that does not cross a block's end:
//!
//! - *window*: keys of the sliding window, needed while a query can see them;
//! - *open*, one class for each ratio: values and gates of compression windows that are not complete;
//! - *streams*: the trunk's residual streams, which the draft stage needs of the last position;
//! - *entries*: compressed entries and indexer keys of one block, needed for good.
//!
//! All pages have one size, that of a block's entries, so that any page serves any class: there is one number to
//! account for and no fragmentation. A run is as many positions as fit into that.

use std::ops::Range;

use belay_backend::{PagedRows, RowFormat, RowLayout};

use super::KvFormat;
use crate::config::{Config, ConfigError, LayerKind};

/// Longest step that can be taken back; such a step keeps every row that it would otherwise drop.
pub(crate) const REWINDABLE: usize = 8;

/// Tokens of a block at least, lest the lists of pages get long.
const LEAST_BLOCK: usize = 32;
/// Tokens of a block at most.
const LARGEST_BLOCK: usize = 1 << 16;
/// Positions of a window page where no entries say how large a page is.
const WINDOW_RUN: usize = 16;
/// Pages are aligned for any device's copies.
const PAGE_ALIGN: usize = 64;

/// The caches' layout for one model and storage format.
#[derive(Debug)]
pub(crate) struct CacheLayout {
    /// Tokens of a block.
    pub(crate) block: usize,
    pub(crate) page_bytes: usize,
    pub(crate) classes: Vec<Class>,
    /// The trunk's layers, then the draft stage's if there is one.
    pub(crate) layers: Vec<LayerParts>,
    /// Residual streams after the trunk, `[M · D]` in f32, if there is a draft stage.
    pub(crate) streams: Option<Part>,
}

/// Rows that live and die together.
#[derive(Debug)]
pub(crate) struct Class {
    kind: ClassKind,
    /// Bytes of all parts for one position, or for one block of entries.
    bytes: usize,
    /// Positions in a page.
    run: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassKind {
    /// `ahead`: positions behind the last that the draft stage may write.
    Window {
        length: usize,
        ahead: usize,
    },
    Open {
        ratio: usize,
        overlap: bool,
    },
    Streams,
    /// `smallest`: the smallest ratio, so the tokens after which a block has its first entry.
    Entries {
        smallest: usize,
    },
}

/// Where the rows of one layer's one kind lie in the pages of their class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) class: usize,
    offset: usize,
    layout: RowLayout,
    /// Tokens of one row.
    ratio: usize,
    /// How many positions behind its own number a row is stored.
    shift: usize,
}

/// Parts of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerParts {
    pub(crate) window: Part,
    /// In layers with a compressor.
    pub(crate) main: Option<CompressorParts>,
    /// In layers with an indexer.
    pub(crate) index: Option<CompressorParts>,
}

/// What a compressor has closed, and what it has open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompressorParts {
    pub(crate) entries: Part,
    pub(crate) open: Part,
}

impl CacheLayout {
    /// # Errors
    /// If the ratios have no common multiple of a reasonable size.
    pub(crate) fn new(config: &Config, format: KvFormat) -> Result<Self, ConfigError> {
        let block = block_tokens(config)?;
        let ratios = config.ratios();
        let mut layout =
            Self { block, page_bytes: 0, classes: Vec::new(), layers: Vec::new(), streams: None };
        let ahead = config.draft_tokens;
        let window = layout.class(ClassKind::Window { length: config.window, ahead });
        let opens: Vec<(LayerKind, usize)> = config
            .kinds()
            .into_iter()
            .filter(|kind| kind.ratio() > 0)
            .map(|kind| {
                (kind, layout.class(ClassKind::Open { ratio: kind.ratio(), overlap: kind.overlaps() }))
            })
            .collect();
        let smallest = ratios.first().copied().unwrap_or(block);
        let entries = layout.class(ClassKind::Entries { smallest });
        // the parts of a page lie one after the other, so their sizes come first and their places second
        let key = format.key(config.head_dim, config.rope_dim);
        for (layer, &kind) in config.layers.iter().enumerate() {
            let open = opens.iter().find(|(of, _)| *of == kind).map_or(0, |(_, class)| *class);
            let mut window = layout.part(window, key, 1);
            if layer == config.depth() {
                // the stage's row of a token is made when the next one is known
                window.shift = 1;
            }
            let mut compressor = |rows: RowLayout| CompressorParts {
                entries: layout.part(entries, rows, kind.ratio()),
                open: layout.part(open, open_row(kind, rows.width), 1),
            };
            let main = (kind.ratio() > 0).then(|| compressor(key));
            let index = config
                .indexer
                .filter(|_| kind.has_indexer())
                .map(|indexer| compressor(format.index(indexer.head_dim)));
            layout.layers.push(LayerParts { window, main, index });
        }
        if config.draft_tokens > 0 {
            let width = config.streams * config.hidden_size;
            let streams = layout.class(ClassKind::Streams);
            layout.streams = Some(layout.part(streams, RowLayout { format: RowFormat::F32, width }, 1));
        }
        layout.place();
        Ok(layout)
    }

    fn class(&mut self, kind: ClassKind) -> usize {
        self.classes.push(Class { kind, bytes: 0, run: 0 });
        self.classes.len() - 1
    }

    /// Adds rows to a class; `offset` is first in bytes of the rows before, until [`Self::place`] knows the runs.
    fn part(&mut self, class: usize, layout: RowLayout, ratio: usize) -> Part {
        let rows = match self.classes[class].kind {
            ClassKind::Entries { .. } => self.block / ratio,
            _ => 1,
        };
        let offset = self.classes[class].bytes;
        self.classes[class].bytes += (rows * layout.bytes()).next_multiple_of(size_of::<f32>());
        Part { class, offset, layout, ratio, shift: 0 }
    }

    /// Fixes the size of a page, each class's run, and the parts' places in a page.
    fn place(&mut self) {
        let of_entries = |class: &Class| matches!(class.kind, ClassKind::Entries { .. });
        let entries: usize =
            self.classes.iter().filter(|class| of_entries(class)).map(|class| class.bytes).sum();
        let window = self.classes.first().map_or(0, |class| class.bytes);
        let least = if entries > 0 { entries } else { window * WINDOW_RUN };
        let largest_row = self.classes.iter().map(|class| class.bytes).max().unwrap_or(0);
        self.page_bytes = least.max(largest_row).next_multiple_of(PAGE_ALIGN);
        for class in &mut self.classes {
            class.run = match class.kind {
                ClassKind::Entries { .. } => self.block,
                _ => (self.page_bytes / class.bytes.max(1)).clamp(1, self.block),
            };
        }
        let classes = &self.classes;
        let scale = |part: &mut Part| {
            if !of_entries(&classes[part.class]) {
                part.offset *= classes[part.class].run;
            }
        };
        for layer in &mut self.layers {
            scale(&mut layer.window);
            for compressor in layer.main.iter_mut().chain(&mut layer.index) {
                scale(&mut compressor.entries);
                scale(&mut compressor.open);
            }
        }
        self.streams.iter_mut().for_each(scale);
    }

    /// The rows of `part` in a sequence that holds `pages` of its class, the first of them number `first_page`.
    pub(crate) fn rows<'a>(&self, part: &Part, pages: &'a [u32], first_page: usize) -> PagedRows<'a> {
        PagedRows {
            pages,
            first_page,
            shift: part.shift,
            rows_per_block: self.block / part.ratio,
            rows_per_page: self.classes[part.class].run / part.ratio,
            offset: part.offset,
            layout: part.layout,
        }
    }

    /// First position whose row a compressor still needs when the next token has `position`.
    pub(crate) fn open_from(ratio: usize, overlap: bool, position: usize) -> usize {
        let window = position / ratio * ratio;
        if overlap { window.saturating_sub(ratio) } else { window }
    }

    /// Pages of class `class` that a sequence must hold so that it can go on from any position from `from` to `to`.
    pub(crate) fn held(&self, class: usize, from: usize, to: usize) -> Range<usize> {
        if to == 0 || self.classes[class].bytes == 0 {
            return 0..0;
        }
        let of = |rows: Range<usize>| self.pages_of(class, rows);
        match self.classes[class].kind {
            ClassKind::Window { length, ahead } => of((from + 1).saturating_sub(length)..to + ahead),
            ClassKind::Open { ratio, overlap } => of(Self::open_from(ratio, overlap, from)..to),
            ClassKind::Streams => of(from.saturating_sub(1)..to),
            ClassKind::Entries { smallest } => 0..to / self.block + usize::from(to % self.block >= smallest),
        }
    }

    /// What a snapshot at a block's end shares: the rows that are there already.
    pub(crate) fn shared(&self, class: usize, position: usize) -> Range<usize> {
        match self.classes[class].kind {
            ClassKind::Window { length, .. } => {
                self.pages_of(class, (position + 1).saturating_sub(length)..position)
            }
            _ => self.held(class, position, position),
        }
    }

    /// What a sequence must hold while `step` tokens are fed at `position`. A step that cannot be taken back leaves out rows in the
    /// middle that nobody reads any more when it ends: two ranges, the second not before the first.
    pub(crate) fn fed(&self, class: usize, position: usize, step: usize) -> [Range<usize>; 2] {
        let end = position + step;
        let before = self.held(class, position, position);
        let after = match self.classes[class].kind {
            ClassKind::Open { .. } | ClassKind::Streams if step > REWINDABLE => self.held(class, end, end),
            _ => self.held(class, position, end),
        };
        if before.is_empty() {
            return [after, 0..0];
        }
        if after.is_empty() {
            return [before, 0..0];
        }
        if after.start <= before.end {
            return [before.start.min(after.start)..before.end.max(after.end), 0..0];
        }
        [before, after]
    }

    #[cfg(test)]
    pub(crate) fn window_length(&self) -> usize {
        let length = |class: &Class| match class.kind {
            ClassKind::Window { length, .. } => Some(length),
            _ => None,
        };
        self.classes.iter().find_map(length).unwrap_or(0)
    }

    /// Bytes that a sequence of `tokens` tokens holds between steps.
    pub(crate) fn state_bytes(&self, tokens: usize) -> usize {
        let pages = |class| self.held(class, tokens, tokens).len();
        self.page_bytes * (0..self.classes.len()).map(pages).sum::<usize>()
    }

    /// Bytes that a sequence of `tokens` tokens holds at most while `step` more are fed.
    pub(crate) fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        let pages = |class| self.fed(class, tokens, step).iter().map(Range::len).sum::<usize>();
        self.page_bytes * (0..self.classes.len()).map(pages).sum::<usize>()
    }

    /// Numbers of the pages that these positions' rows lie in.
    fn pages_of(&self, class: usize, rows: Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        self.page_of(class, rows.start)..self.page_of(class, rows.end - 1) + 1
    }

    /// Number of the page with the row of a position.
    pub(crate) fn page_of(&self, class: usize, position: usize) -> usize {
        let run = self.classes[class].run;
        position / self.block * self.block.div_ceil(run) + position % self.block / run
    }
}

/// Values, then gates.
fn open_row(kind: LayerKind, width: usize) -> RowLayout {
    let parts = if kind.overlaps() { 2 } else { 1 };
    RowLayout { format: RowFormat::F32, width: 2 * parts * width }
}

/// The smallest common multiple of all ratios that is not too small.
fn block_tokens(config: &Config) -> Result<usize, ConfigError> {
    let mut multiple = 1;
    for ratio in config.ratios() {
        let (mut a, mut b) = (multiple, ratio);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        multiple = multiple / a * ratio;
        if multiple > LARGEST_BLOCK {
            let message = format!("the ratios have no common multiple up to {LARGEST_BLOCK}");
            return Err(ConfigError::new("compress_ratios", message));
        }
    }
    Ok(LEAST_BLOCK.next_multiple_of(multiple))
}

#[cfg(test)]
mod tests;
