//! A slice that several tasks write, each in its own part.

use std::marker::PhantomData;
use std::ops::Range;

use crate::pool::Pool;

/// Work (roughly multiply-adds) below which waking other threads costs more than it saves.
pub(crate) const MIN_PARALLEL_WORK: usize = 1 << 17;

/// Tasks per thread: small enough to even out, large enough to keep the counter cold.
const TASKS_PER_THREAD: usize = 16;

pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `part`, whose callers promise disjoint parts; elements may go to other threads.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T: Copy> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// No two parts that live at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice, which is borrowed mutably for 'a; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Calls `run` with ranges that cover `0..items` once, on several threads if `work` is worth it.
pub(crate) fn split(pool: &Pool, items: usize, work: usize, run: impl Fn(Range<usize>) + Sync) {
    let tasks =
        if work < MIN_PARALLEL_WORK { 1 } else { (pool.threads() * TASKS_PER_THREAD).min(items).max(1) };
    pool.run(tasks, &|task| run(items * task / tasks..items * (task + 1) / tasks));
}

/// Calls `run(row, values)` for each row of `width` elements of `out`, on several threads if `work` is worth it.
pub(crate) fn each_row<T: Copy + Send>(
    pool: &Pool,
    out: &mut [T],
    width: usize,
    work: usize,
    run: impl Fn(usize, &mut [T]) + Sync,
) {
    let rows = out.len() / width;
    let shared = SharedSlice::new(out);
    split(pool, rows, work, |range| {
        for row in range {
            // SAFETY: rows are disjoint, and `split` gives each to one task.
            run(row, unsafe { shared.part(row * width..(row + 1) * width) });
        }
    });
}
