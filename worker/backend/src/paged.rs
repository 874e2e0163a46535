//! Rows of a sequence's cache: how a row is stored, and in which pages of the arena the rows lie.

use std::ops::Range;

/// Channels of a key that share a scale in [`RowFormat::Fp8Key`].
pub const KEY_BLOCK: usize = 64;

/// How a cached row is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// f32 in the device's own byte order: exact.
    F32,
    /// Little-endian bfloat16, rounded to nearest even.
    Bf16,
    /// The published layout of keys: e4m3 codes of the plain channels, the last `rotary` channels in bf16, one e8m0
    /// scale for each [`KEY_BLOCK`] plain channels (the last block may be partial), zeros up to a multiple of 8 bytes.
    /// A block's scale is 2^ceil(log2(max(|x|max, 1e-4) / 448)).
    Fp8Key {
        /// Rotary channels.
        rotary: usize,
    },
    /// The published layout of indexer keys: e4m3 codes, then one f32 scale, which is that of one block of all channels.
    Fp8Index,
}

/// Format and channels of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowLayout {
    /// How it is stored.
    pub format: RowFormat,
    /// Channels.
    pub width: usize,
}

impl RowLayout {
    /// Bytes of a row.
    pub const fn bytes(self) -> usize {
        match self.format {
            RowFormat::F32 => 4 * self.width,
            RowFormat::Bf16 => 2 * self.width,
            RowFormat::Fp8Key { rotary } => {
                let plain = self.width - rotary;
                (plain + 2 * rotary + plain.div_ceil(KEY_BLOCK)).next_multiple_of(8)
            }
            RowFormat::Fp8Index => self.width + 4,
        }
    }
}

/// Where the rows of one part of one sequence's cache lie.
///
/// Rows are numbered from the beginning of the sequence. They fall into blocks of equally many, and a block into pages,
/// the last of which may be partly filled; so a block ends where a page ends, and pages of whole blocks can be shared.
#[derive(Clone, Copy, Debug)]
pub struct PagedRows<'a> {
    /// Page numbers in order.
    pub pages: &'a [u32],
    /// Pages of the sequence before the first of `pages`: given back, because nobody reads them any more.
    pub first_page: usize,
    /// Row i is stored in the place of number i + shift.
    pub shift: usize,
    /// Rows of a block.
    pub rows_per_block: usize,
    /// Rows of this part in a page.
    pub rows_per_page: usize,
    /// Bytes from the start of a page to this part's first row in it.
    pub offset: usize,
    /// What a row looks like.
    pub layout: RowLayout,
}

/// Rows that lie one after the other in one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Page number.
    pub page: u32,
    /// Bytes from the start of the page to the first of the rows.
    pub offset: usize,
    /// Which rows.
    pub rows: Range<usize>,
}

impl PagedRows<'_> {
    /// The run from `row` to the end of its page.
    ///
    /// # Panics
    /// If the page is not among [`Self::pages`].
    pub fn run_from(&self, row: usize) -> Run {
        let pages_per_block = self.rows_per_block.div_ceil(self.rows_per_page);
        let place = row + self.shift;
        let (block, in_block) = (place / self.rows_per_block, place % self.rows_per_block);
        let (page, in_page) = (in_block / self.rows_per_page, in_block % self.rows_per_page);
        let rows = (self.rows_per_page - in_page).min(self.rows_per_block - in_block);
        Run {
            page: self.pages[block * pages_per_block + page - self.first_page],
            offset: self.offset + in_page * self.layout.bytes(),
            rows: row..row + rows,
        }
    }

    /// The runs of `rows`, ascending.
    pub fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Run> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            (next < rows.end).then(|| {
                let mut run = self.run_from(next);
                run.rows.end = run.rows.end.min(rows.end);
                next = run.rows.end;
                run
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_published_models_have_the_published_sizes() {
        let bytes = |format, width| RowLayout { format, width }.bytes();
        assert_eq!(bytes(RowFormat::Fp8Key { rotary: 64 }, 512), 584);
        assert_eq!(bytes(RowFormat::Fp8Index, 128), 132);
        assert_eq!(bytes(RowFormat::Bf16, 512), 1024);
        assert_eq!(bytes(RowFormat::F32, 128), 512);
        // a partial last block has a scale of its own
        assert_eq!(bytes(RowFormat::Fp8Key { rotary: 16 }, 48), 32 + 32 + 1 + 7);
        assert_eq!(bytes(RowFormat::Fp8Key { rotary: 16 }, 16 + 65), 65 + 32 + 2 + 5);
    }

    #[test]
    fn runs_end_with_pages_and_blocks() {
        // blocks of 7 rows in pages of 3: 3 + 3 + 1; the first page is given back
        let layout = RowLayout { format: RowFormat::F32, width: 2 };
        let pages = [10, 11, 12, 13];
        let rows = PagedRows {
            pages: &pages,
            first_page: 1,
            shift: 0,
            rows_per_block: 7,
            rows_per_page: 3,
            offset: 100,
            layout,
        };
        let found: Vec<_> = rows.runs(4..12).map(|run| (run.page, run.offset, run.rows)).collect();
        assert_eq!(found, [(10, 108, 4..6), (11, 100, 6..7), (12, 100, 7..10), (13, 100, 10..12)]);
        assert_eq!(rows.runs(5..5).count(), 0);
        let shifted = PagedRows { shift: 1, ..rows };
        assert_eq!(
            shifted.runs(5..7).map(|run| (run.page, run.rows)).collect::<Vec<_>>(),
            [(11, 5..6), (12, 6..7)]
        );
    }
}
