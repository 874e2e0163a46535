//! Where weights lie while they are used.

use std::fmt;
use std::sync::{Arc, OnceLock};

use belay_backend::{Bytes, StoredMatrix};
use memmap2::MmapMut;

/// Where weights lie while they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Where the checkpoint has them, as a rule a mapped file: workers on one machine share it, and the system may take pages
    /// back and read them again. Files have small pages.
    Mapped,
    /// Large ones in memory of their own, in huge pages if the system gives such to who asks: reading a weight that is in no
    /// cache is a third faster then. Elsewhere as [`Self::Mapped`].
    #[default]
    Copied,
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Copied => "copied",
        })
    }
}

/// What is shorter stays where it is: half a huge page.
const LONG: usize = 1 << 20;

impl Weights {
    /// The same matrix in its place.
    pub(crate) fn place(self, stored: StoredMatrix) -> StoredMatrix {
        match self {
            Self::Mapped => stored,
            Self::Copied => {
                let StoredMatrix { data, scale, .. } = stored;
                StoredMatrix { data: copied(data), scale: copied(scale), ..stored }
            }
        }
    }
}

fn copied(bytes: Bytes) -> Bytes {
    if bytes.len() < LONG {
        return bytes;
    }
    huge(&bytes).unwrap_or(bytes)
}

/// A copy in huge pages; `None` if there are none, or no memory.
#[cfg(target_os = "linux")]
fn huge(bytes: &[u8]) -> Option<Bytes> {
    static GIVEN: OnceLock<bool> = OnceLock::new();
    // one that was told to give none takes the advice all the same
    let setting = || std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if !*GIVEN.get_or_init(|| setting().is_ok_and(|setting| !setting.contains("[never]"))) {
        return None;
    }
    let mut map = MmapMut::map_anon(bytes.len()).ok()?;
    map.advise(memmap2::Advice::HugePage).ok()?;
    map.copy_from_slice(bytes);
    let map = map.make_read_only().ok()?;
    Bytes::new(Arc::new(map), 0..bytes.len())
}

#[cfg(not(target_os = "linux"))]
fn huge(_: &[u8]) -> Option<Bytes> {
    None
}

#[cfg(test)]
mod tests {
    use belay_backend::Format;

    use super::*;

    #[test]
    fn long_weights_are_copied_whole_and_short_ones_stay() {
        let (rows, cols) = (600, 4096);
        let (data, scale) = Format::Fp4.bytes(rows, cols);
        let data: Vec<u8> = (0..data).map(|i| (i * 31 % 251) as u8).collect();
        let stored =
            StoredMatrix::new(rows, cols, Format::Fp4, data.into(), vec![127; scale].into()).unwrap();
        for weights in [Weights::Mapped, Weights::Copied] {
            let placed = weights.place(stored.clone());
            assert_eq!((&*placed.data, &*placed.scale), (&*stored.data, &*stored.scale), "{weights}");
            assert_eq!(placed.scale.as_ptr(), stored.scale.as_ptr(), "short, {weights}");
            if weights == Weights::Mapped {
                assert_eq!(placed.data.as_ptr(), stored.data.as_ptr());
            }
        }
    }
}
