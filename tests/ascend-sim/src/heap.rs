//! Device memory: addresses that the host can't reach, a limit, poison, and bounds.

use std::collections::BTreeMap;

use crate::codes;
use crate::failure::{Outcome, fail};

// bit 54 marks device memory, bits 40.. the device: no mapped address looks like this
const DEVICE_BASE: u64 = 0x00D0_0000_0000_0000;
const DEVICE_BITS: u32 = 40;
const ALIGNMENT: u64 = 64;

/// What fresh and freed memory is filled with: a NaN as f32, f16 and bf16.
pub const POISON: [u8; 4] = [0xC0, 0x7F, 0xC1, 0x7F];

/// Fills bytes with the poison pattern.
pub fn poison(bytes: &mut [u8]) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = POISON[index % POISON.len()];
    }
}

/// The device that an address belongs to; none for host memory.
pub fn device_of(address: u64) -> Option<usize> {
    (address & 0xFFF0_0000_0000_0000 == DEVICE_BASE)
        .then(|| ((address - DEVICE_BASE) >> DEVICE_BITS) as usize)
}

struct Block {
    bytes: Vec<u8>,
    charged: u64,
}

/// The memory of one device.
pub struct Heap {
    limit: u64,
    used: u64,
    padding: u64,
    next: u64,
    blocks: BTreeMap<u64, Block>,
    freed: BTreeMap<u64, u64>,
    leaked: u64,
}

impl Heap {
    /// An empty heap of `limit` bytes for `device`; `padding` bytes are charged on top of each allocation.
    pub fn new(device: usize, limit: u64, padding: u64) -> Self {
        let next = DEVICE_BASE + ((device as u64) << DEVICE_BITS) + (1 << 21);
        Self { limit, used: 0, padding, next, blocks: BTreeMap::new(), freed: BTreeMap::new(), leaked: 0 }
    }

    /// Allocates `size` poisoned bytes.
    pub fn allocate(&mut self, size: u64) -> Outcome<u64> {
        if size == 0 {
            return fail(codes::INVALID_PARAM, "size is 0");
        }
        if size > self.limit {
            let text = format!("{size} bytes asked for, the device has {}", self.limit);
            return fail(codes::RT_MEMORY_ALLOCATION, text);
        }
        let charged = size.next_multiple_of(32) + self.padding;
        if self.used + charged > self.limit {
            let text = format!("{charged} bytes asked for, {} of {} are in use", self.used, self.limit);
            return fail(codes::RT_DEVICE_OOM, text);
        }
        let mut bytes = vec![0; size as usize];
        poison(&mut bytes);
        let address = self.next;
        // a gap after each block, so that one byte too far is never the next block
        self.next = (address + size + ALIGNMENT).next_multiple_of(ALIGNMENT);
        self.used += charged;
        self.blocks.insert(address, Block { bytes, charged });
        Ok(address)
    }

    /// Frees the block that starts at `address`. The address is never given out again.
    pub fn free(&mut self, address: u64) -> Outcome {
        match self.blocks.remove(&address) {
            Some(block) => {
                self.used -= block.charged;
                self.freed.insert(address, block.bytes.len() as u64);
                Ok(())
            }
            None if self.freed.contains_key(&address) => {
                fail(codes::RT_PARAM_INVALID, format!("{address:#x} is freed twice"))
            }
            None => fail(codes::RT_PARAM_INVALID, format!("{address:#x} is no allocation")),
        }
    }

    /// Frees all that is left, as a device reset does; it stays counted in [`Heap::live`].
    pub fn release_all(&mut self) {
        for (address, block) in std::mem::take(&mut self.blocks) {
            self.freed.insert(address, block.bytes.len() as u64);
            self.leaked += 1;
        }
        self.used = 0;
    }

    /// Allocations alive, those that a reset had to release included.
    pub fn live(&self) -> u64 {
        self.blocks.len() as u64 + self.leaked
    }

    /// Free and total bytes.
    pub fn info(&self) -> (u64, u64) {
        (self.limit - self.used, self.limit)
    }

    fn find(&self, address: u64, len: u64) -> Outcome<(u64, usize)> {
        let Some((start, block)) = self.blocks.range(..=address).next_back() else {
            return self.missing(address, len);
        };
        let offset = address - start;
        match offset.checked_add(len) {
            Some(end) if end <= block.bytes.len() as u64 => Ok((*start, offset as usize)),
            _ => self.missing(address, len),
        }
    }

    fn missing<T>(&self, address: u64, len: u64) -> Outcome<T> {
        if let Some((start, block)) = self.blocks.range(..=address).next_back()
            && address < start + block.bytes.len() as u64
        {
            let size = block.bytes.len();
            let text = format!("{len} bytes at {address:#x} leave the block at {start:#x} of {size} bytes");
            return fail(codes::RT_PARAM_INVALID, text);
        }
        match self.freed.range(..=address).next_back() {
            Some((start, size)) if address < start + size => {
                fail(codes::RT_PARAM_INVALID, format!("{address:#x} is in freed memory"))
            }
            _ => fail(codes::RT_PARAM_INVALID, format!("{address:#x} is in no allocation")),
        }
    }

    /// The `len` bytes at `address`, which must lie in one allocation.
    pub fn bytes(&self, address: u64, len: u64) -> Outcome<&[u8]> {
        let (start, offset) = self.find(address, len)?;
        Ok(&self.blocks[&start].bytes[offset..offset + len as usize])
    }

    /// The `len` bytes at `address` to write to.
    pub fn bytes_mut(&mut self, address: u64, len: u64) -> Outcome<&mut [u8]> {
        let (start, offset) = self.find(address, len)?;
        let block = self.blocks.get_mut(&start).map(|block| &mut block.bytes[offset..offset + len as usize]);
        // find answered a block that is there
        block.map_or_else(|| fail(codes::RT_PARAM_INVALID, "no block"), Ok)
    }
}
