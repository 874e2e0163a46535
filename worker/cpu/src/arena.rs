use belay_backend::{BackendError, PagedRows, Result, RowFormat, Run};

/// Pages of bytes in host memory. A page takes memory when it is first written.
#[derive(Debug)]
pub struct CpuArena {
    /// u128 for an alignment that every row format is content with.
    words: Box<[u128]>,
    page_bytes: usize,
}

impl CpuArena {
    pub(crate) fn new(pages: usize, page_bytes: usize) -> Result<Self> {
        let bytes = pages.saturating_mul(page_bytes);
        let words = zeroed(bytes.div_ceil(size_of::<u128>())).ok_or(BackendError::OutOfMemory { bytes })?;
        Ok(Self { words, page_bytes })
    }

    /// All pages as f32; [`Self::f32_at`] says where a run begins.
    pub(crate) fn f32s(&self) -> &[f32] {
        bytemuck::cast_slice(&self.words)
    }

    /// Index in [`Self::f32s`] of the first element of a run of f32 rows.
    pub(crate) fn f32_at(&self, run: &Run) -> usize {
        (run.page as usize * self.page_bytes + run.offset) / size_of::<f32>()
    }

    /// The bytes of a run.
    pub(crate) fn run(&self, rows: &PagedRows<'_>, run: &Run) -> &[u8] {
        let start = run.page as usize * self.page_bytes + run.offset;
        &bytemuck::cast_slice::<_, u8>(&self.words)[start..start + run.rows.len() * rows.layout.bytes()]
    }

    /// The bytes of a run, to be written.
    pub(crate) fn run_mut(&mut self, rows: &PagedRows<'_>, run: &Run) -> &mut [u8] {
        let start = run.page as usize * self.page_bytes + run.offset;
        &mut bytemuck::cast_slice_mut::<_, u8>(&mut self.words)
            [start..start + run.rows.len() * rows.layout.bytes()]
    }

    /// An f32 row as it lies in its page.
    pub(crate) fn f32_row(&self, rows: &PagedRows<'_>, row: usize) -> &[f32] {
        assert_eq!(rows.layout.format, RowFormat::F32, "format of a row that is read in place");
        &self.f32s()[self.f32_at(&rows.run_from(row))..][..rows.layout.width]
    }
}

/// `len` zeros straight from the system, which hands out untouched memory that takes no room yet; `None` if it has none.
fn zeroed(len: usize) -> Option<Box<[u128]>> {
    let layout = std::alloc::Layout::array::<u128>(len).ok()?;
    if layout.size() == 0 {
        return Some(Box::default());
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<u128>();
    if start.is_null() {
        return None;
    }
    // SAFETY: `start` was allocated by the global allocator with the layout of `len` u128, all of which are initialised
    // to zero, a valid value; nothing else owns it.
    Some(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, len)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident bytes of this process.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).map_or(0, |pages: usize| pages * 4096)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn untouched_pages_take_no_memory() {
        let before = resident();
        let Ok(arena) = CpuArena::new(1 << 12, 1 << 18) else { panic!("1 GiB of address space") };
        let taken = resident().saturating_sub(before);
        assert_eq!(arena.f32s().len(), 1 << 28);
        assert!(before > 0 && taken < 64 << 20, "{taken} bytes for an arena that nobody has written");
    }

    #[test]
    fn more_than_the_address_space_is_refused() {
        let error = CpuArena::new(usize::MAX / 2, 64).err();
        assert_eq!(error, Some(BackendError::OutOfMemory { bytes: usize::MAX }));
    }
}
