//! Memory for weights that are read once: huge pages where the system has them, since a small page is read in no time.

use std::sync::Arc;

use anyhow::{Context, Result};
use belay_backend::Bytes;
use memmap2::{Advice, Mmap, MmapMut};

/// Random bytes, the same for the same seed.
///
/// # Errors
/// There is not enough memory.
pub fn random(bytes: usize, seed: u64, keep: impl Fn(u8) -> u8) -> Result<Bytes> {
    let mut map = MmapMut::map_anon(bytes).with_context(|| format!("{bytes} bytes of memory"))?;
    // where the system has no huge pages, small ones do
    let _ = map.advise(Advice::HugePage);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in map.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for (byte, random) in word.iter_mut().zip(state.to_le_bytes()) {
            *byte = keep(random);
        }
    }
    let map: Mmap = map.make_read_only()?;
    Bytes::new(Arc::new(map), 0..bytes).context("an empty matrix")
}

/// Parts of one piece of memory.
///
/// # Errors
/// It is too short.
pub fn part(of: &Arc<Bytes>, at: usize, bytes: usize) -> Result<Bytes> {
    struct Part(Arc<Bytes>);
    impl AsRef<[u8]> for Part {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::new(Arc::new(Part(Arc::clone(of))), at..at + bytes).context("beyond the end of a weight")
}
