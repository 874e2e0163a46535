//! Pinned host memory: real memory of this process, poisoned when it is given out and when it is freed.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::codes;
use crate::failure::{Outcome, fail};
use crate::heap::{device_of, poison};
use crate::lock;

const ALIGNMENT: usize = 64;
static PINNED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn layout(size: usize) -> Outcome<Layout> {
    Layout::from_size_align(size, ALIGNMENT)
        .or_else(|_| fail(codes::RT_MEMORY_ALLOCATION, format!("{size} bytes are too many")))
}

/// Allocates `size` bytes.
pub fn allocate(size: usize) -> Outcome<*mut u8> {
    if size == 0 {
        return fail(codes::INVALID_PARAM, "size is 0");
    }
    let layout = layout(size)?;
    // SAFETY: the layout's size is not zero.
    let pointer = unsafe { alloc(layout) };
    if pointer.is_null() {
        return fail(codes::RT_MEMORY_ALLOCATION, format!("no {size} bytes of host memory"));
    }
    // SAFETY: size bytes were just allocated and nobody else knows of them.
    poison(unsafe {
        std::ptr::write_bytes(pointer, 0, size);
        std::slice::from_raw_parts_mut(pointer, size)
    });
    lock(&PINNED).insert(pointer.expose_provenance(), size);
    Ok(pointer)
}

/// Frees what [`allocate`] gave.
pub fn free(pointer: *mut u8) -> Outcome {
    let Some(size) = lock(&PINNED).remove(&pointer.addr()) else {
        return fail(codes::RT_PARAM_INVALID, format!("{pointer:?} is no pinned allocation"));
    };
    let layout = layout(size)?;
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(pointer.addr());
    // SAFETY: the pointer came from alloc with this layout and was taken out of the table just now, so it is
    // freed once; copies to and from it hold the table's lock.
    unsafe {
        poison(std::slice::from_raw_parts_mut(pointer, size));
        dealloc(pointer, layout);
    }
    Ok(())
}

/// Allocations alive.
pub fn live() -> u64 {
    lock(&PINNED).len() as u64
}

fn inside(table: &BTreeMap<usize, usize>, address: usize, len: usize) -> Option<bool> {
    let (start, size) = table.range(..=address).next_back()?;
    let offset = address - start;
    (offset < *size).then_some(len <= size - offset)
}

/// Whether the address is in pinned memory; fails when it is but `len` bytes leave the allocation.
pub fn is_pinned(address: u64, len: u64) -> Outcome<bool> {
    match inside(&lock(&PINNED), address as usize, len as usize) {
        None => Ok(false),
        Some(true) => Ok(true),
        Some(false) => {
            fail(codes::RT_PARAM_INVALID, format!("{len} bytes at {address:#x} leave a pinned allocation"))
        }
    }
}

/// A range of host memory that a copy reads or writes.
#[derive(Debug, Clone, Copy)]
pub struct HostRange {
    address: u64,
    len: u64,
    pinned: bool,
}

impl HostRange {
    /// Checks that the range is host memory, and inside its allocation when pinned.
    pub fn new(address: u64, len: u64) -> Outcome<Self> {
        if device_of(address).is_some() {
            return fail(
                codes::RT_INVALID_MEMORY_TYPE,
                format!("{address:#x} is device memory, not host memory"),
            );
        }
        Ok(Self { address, len, pinned: is_pinned(address, len)? })
    }

    /// Whether it is pinned.
    pub fn pinned(&self) -> bool {
        self.pinned
    }

    fn check(&self, table: &BTreeMap<usize, usize>) -> Outcome {
        // pinned memory that was freed while a copy waited in a stream
        if self.pinned && inside(table, self.address as usize, self.len as usize) != Some(true) {
            return fail(codes::RT_SYS_DMA, format!("host memory at {:#x} was freed", self.address));
        }
        Ok(())
    }

    /// Copies the range out.
    ///
    /// # Safety
    /// Unpinned memory must be readable for the length.
    pub unsafe fn read(&self) -> Outcome<Vec<u8>> {
        let table = lock(&PINNED);
        self.check(&table)?;
        let pointer = std::ptr::with_exposed_provenance::<u8>(self.address as usize);
        let mut bytes = vec![0; self.len as usize];
        // SAFETY: pinned memory is in the table, whose lock is held; for other memory the caller promises it.
        unsafe { std::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), bytes.len()) };
        Ok(bytes)
    }

    /// Copies `bytes` in.
    ///
    /// # Safety
    /// Unpinned memory must be writable for the length.
    pub unsafe fn write(&self, bytes: &[u8]) -> Outcome {
        let table = lock(&PINNED);
        self.check(&table)?;
        let pointer = std::ptr::with_exposed_provenance_mut::<u8>(self.address as usize);
        let len = bytes.len().min(self.len as usize);
        // SAFETY: as in read.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, len) };
        Ok(())
    }
}
