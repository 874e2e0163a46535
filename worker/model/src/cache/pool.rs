//! Page numbers: which are free, and how many holders the others have.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Memory, NoRoom};

/// Stands in a page list where no page is held; never a page's number.
pub(crate) const HOLE: u32 = u32::MAX;

/// The pages of one arena. States and snapshots hold them by count; what is in them is not the pool's business.
pub(crate) struct Pool {
    page_bytes: usize,
    pages: usize,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// Holders of each page that was ever taken.
    holders: Vec<u32>,
    /// Taken once and free again. The last one is taken first, so that memory once touched is used again.
    free: Vec<u32>,
}

impl Pool {
    pub(crate) fn new(pages: usize, page_bytes: usize) -> Self {
        Self { page_bytes, pages: pages.min(HOLE as usize), state: Mutex::default() }
    }

    pub(crate) fn memory(&self) -> Memory {
        let state = self.lock();
        let used = state.holders.len() - state.free.len();
        Memory { limit: self.pages * self.page_bytes, used: used * self.page_bytes }
    }

    /// Takes a page for each hole in `slots`, or none at all.
    pub(crate) fn fill<'a>(&self, slots: impl Iterator<Item = &'a mut u32>) -> Result<(), NoRoom> {
        let holes: Vec<&mut u32> = slots.filter(|slot| **slot == HOLE).collect();
        if holes.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        let free = self.pages - (state.holders.len() - state.free.len());
        if holes.len() > free {
            let [needed, free] = [holes.len(), free].map(|pages| pages * self.page_bytes);
            return Err(NoRoom { needed, free });
        }
        for slot in holes {
            let page = state.free.pop().unwrap_or_else(|| {
                state.holders.push(0);
                state.holders.len() as u32 - 1
            });
            state.holders[page as usize] = 1;
            *slot = page;
        }
        Ok(())
    }

    /// One more holder for each of `pages`, which are held already.
    pub(crate) fn share(&self, pages: impl Iterator<Item = u32>) {
        let mut state = self.lock();
        for page in pages.filter(|&page| page != HOLE) {
            state.holders[page as usize] += 1;
        }
    }

    /// One holder less.
    pub(crate) fn release(&self, pages: impl Iterator<Item = u32>) {
        let mut pages = pages.filter(|&page| page != HOLE).peekable();
        if pages.peek().is_none() {
            return;
        }
        let mut state = self.lock();
        for page in pages {
            let holders = &mut state.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                state.free.push(page);
            }
        }
    }

    /// Whether nobody else holds any of `pages`.
    pub(crate) fn sole_holder(&self, mut pages: impl Iterator<Item = u32>) -> bool {
        let state = self.lock();
        pages.all(|page| page == HOLE || state.holders[page as usize] == 1)
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
