//! What a sequence carries from step to step.
//!
//! A state is a position and lists of pages. Rows are written once, by position, so going back is a smaller position,
//! and a snapshot is one more holder of the same pages: blocks end where pages end, so whoever goes on from there
//! writes to pages of its own.

use std::ops::Range;
use std::sync::Arc;

use belay_backend::PagedRows;

use crate::cache::{CacheLayout, HOLE, NoRoom, Part, Pool};
use crate::error::ForwardError;

/// Decode state of one sequence in every layer.
///
/// After n tokens its rows are the same, bit for bit, however these were cut into steps.
pub struct State {
    position: usize,
    /// Lowest position that [`State::rewind`] can go back to.
    floor: usize,
    poisoned: bool,
    pages: Pages,
}

/// The state at a block's end, to be shared: it holds pages, and copies nothing.
pub struct Snapshot {
    position: usize,
    pages: Pages,
}

/// Pages held in each class of the layout; given back when dropped.
struct Pages {
    pool: Arc<Pool>,
    layout: Arc<CacheLayout>,
    lists: Vec<PageList>,
}

/// The sequence's pages number `first`, `first + 1`, … of one class.
#[derive(Clone, Default)]
struct PageList {
    first: usize,
    pages: Vec<u32>,
}

impl State {
    pub(crate) fn new(pool: Arc<Pool>, layout: Arc<CacheLayout>) -> Self {
        let lists = vec![PageList::default(); layout.classes.len()];
        Self { position: 0, floor: 0, poisoned: false, pages: Pages { pool, layout, lists } }
    }

    /// Tokens that went in.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether a step with this state failed: what it holds is then undefined, and it is refused from now on.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Bytes of the pages that it holds, shared ones included.
    pub fn bytes(&self) -> usize {
        self.pages.bytes()
    }

    pub(crate) fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Holds what feeding `tokens` more needs, and nothing else. Ends the chance to rewind the step before.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), NoRoom> {
        self.floor = self.position;
        let Pages { pool, layout, lists } = &mut self.pages;
        let wanted: Vec<_> = (0..lists.len()).map(|class| layout.fed(class, self.position, tokens)).collect();
        for (list, wanted) in lists.iter_mut().zip(&wanted) {
            let [first, second] = wanted;
            list.cut(pool, first.start..first.end.max(second.end));
            list.hollow(pool, first.end..second.start);
            list.grow(first.clone());
            list.grow(second.clone());
        }
        let slots = lists.iter_mut().zip(&wanted).flat_map(|(list, wanted)| list.slots(wanted));
        pool.fill(slots)
    }

    /// Holds room for the draft stage behind the last token. The tokens so far become final.
    pub(crate) fn reserve_ahead(&mut self) -> Result<(), NoRoom> {
        self.floor = self.position;
        let Pages { pool, layout, lists } = &mut self.pages;
        let wanted: Vec<_> =
            (0..lists.len()).map(|class| layout.held(class, self.position, self.position)).collect();
        for (list, wanted) in lists.iter_mut().zip(&wanted) {
            list.grow(wanted.clone());
        }
        let slots = lists.iter_mut().zip(&wanted);
        pool.fill(slots.flat_map(|(list, wanted)| list.slots(std::slice::from_ref(wanted))))
    }

    /// The step is done: `tokens` are in.
    pub(crate) fn commit(&mut self, tokens: usize, rewindable: bool) {
        self.poisoned = false;
        self.position += tokens;
        if !rewindable {
            self.floor = self.position;
        }
        self.trim();
    }

    /// Takes back the tokens from `position` on.
    pub(crate) fn rewind(&mut self, position: usize) -> Result<(), ForwardError> {
        if self.poisoned {
            return Err(ForwardError::Poisoned { segment: 0 });
        }
        let refuse = |message: String| Err(ForwardError::Invalid { segment: 0, message });
        if !(self.floor..=self.position).contains(&position) {
            return refuse(format!(
                "position {position} is not among those of the last step, {} to {}",
                self.floor, self.position
            ));
        }
        let behind = self.pages.lists.iter().enumerate().flat_map(|(class, list)| {
            let first = self.pages.layout.page_of(class, position).saturating_sub(list.first);
            list.pages.iter().skip(first).copied()
        });
        if position < self.position && !self.pages.pool.sole_holder(behind) {
            return refuse(format!("rows behind position {position} are part of a snapshot"));
        }
        self.position = position;
        self.floor = position;
        self.trim();
        Ok(())
    }

    /// Shares what the next token needs. The position must be a block's end.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, ForwardError> {
        if self.poisoned {
            return Err(ForwardError::Poisoned { segment: 0 });
        }
        let block = self.pages.layout.block;
        if !self.position.is_multiple_of(block) {
            let message = format!("position {} is not the end of a block of {block} tokens", self.position);
            return Err(ForwardError::Invalid { segment: 0, message });
        }
        let Pages { pool, layout, lists } = &self.pages;
        let shared = lists.iter().enumerate();
        let lists = shared.map(|(class, list)| list.part(layout.shared(class, self.position))).collect();
        let pages = Pages { pool: Arc::clone(pool), layout: Arc::clone(layout), lists };
        pool.share(pages.all());
        Ok(Snapshot { position: self.position, pages })
    }

    /// Rows of a part, for the operations.
    pub(crate) fn rows(&self, part: &Part) -> PagedRows<'_> {
        let list = &self.pages.lists[part.class];
        self.pages.layout.rows(part, &list.pages, list.first)
    }

    pub(crate) fn layout(&self) -> &CacheLayout {
        &self.pages.layout
    }

    /// Gives back what nobody reads any more.
    fn trim(&mut self) {
        let Pages { pool, layout, lists } = &mut self.pages;
        for (class, list) in lists.iter_mut().enumerate() {
            list.cut(pool, layout.held(class, self.floor, self.position));
        }
    }
}

impl Snapshot {
    /// Tokens that went in.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes of the pages that it holds, all of them shared with the state it was taken from, for as long as that lives.
    pub fn bytes(&self) -> usize {
        self.pages.bytes()
    }

    /// A state that goes on from here.
    pub(crate) fn restore(&self) -> State {
        let Pages { pool, layout, lists } = &self.pages;
        pool.share(self.pages.all());
        let pages = Pages { pool: Arc::clone(pool), layout: Arc::clone(layout), lists: lists.clone() };
        State { position: self.position, floor: self.position, poisoned: false, pages }
    }
}

impl Pages {
    fn all(&self) -> impl Iterator<Item = u32> {
        self.lists.iter().flat_map(|list| list.pages.iter().copied()).filter(|&page| page != HOLE)
    }

    fn bytes(&self) -> usize {
        self.all().count() * self.layout.page_bytes
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.pool.release(self.all());
    }
}

impl PageList {
    fn end(&self) -> usize {
        self.first + self.pages.len()
    }

    /// Holds nothing outside `range` any more.
    fn cut(&mut self, pool: &Pool, range: Range<usize>) {
        let tail = range.end.clamp(self.first, self.end()) - self.first;
        pool.release(self.pages.drain(tail..));
        let head = range.start.clamp(self.first, self.end()) - self.first;
        pool.release(self.pages.drain(..head));
        self.first += head;
    }

    /// Holds nothing in `range` any more, if the list goes on behind it.
    fn hollow(&mut self, pool: &Pool, range: Range<usize>) {
        let inside = range.start.clamp(self.first, self.end())..range.end.clamp(self.first, self.end());
        if !range.is_empty() && !inside.is_empty() {
            let slots = &mut self.pages[inside.start - self.first..inside.end - self.first];
            pool.release(slots.iter().copied());
            slots.fill(HOLE);
        }
    }

    /// Has slots for all of `range`, empty ones where there were none.
    fn grow(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if self.pages.is_empty() {
            self.first = range.start;
        }
        let missing = self.first.saturating_sub(range.start);
        self.pages.splice(..0, std::iter::repeat_n(HOLE, missing));
        self.first -= missing;
        self.pages.resize(self.pages.len().max(range.end - self.first), HOLE);
    }

    fn slots(&mut self, ranges: &[Range<usize>]) -> impl Iterator<Item = &mut u32> {
        let numbered = (self.first..).zip(&mut self.pages);
        numbered.filter(|(number, _)| ranges.iter().any(|range| range.contains(number))).map(|(_, page)| page)
    }

    fn part(&self, range: Range<usize>) -> Self {
        let inside = range.start.max(self.first)..range.end.min(self.end());
        if inside.is_empty() {
            return Self::default();
        }
        Self {
            first: inside.start,
            pages: self.pages[inside.start - self.first..inside.end - self.first].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests;
