//! Hashes that every gateway, of whatever version, must agree on: so they are spelled out here. FNV-1a of 64 bits, mixed at
//! the end (SplitMix64's finalizer), since its high bits alone are weak for short inputs.

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// A hash in the making. Pieces are told apart: "ab", "c" is another hash than "a", "bc".
#[derive(Clone, Copy, Debug)]
pub struct Hasher(u64);

impl Default for Hasher {
    fn default() -> Self {
        Self(OFFSET)
    }
}

impl Hasher {
    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) {
        let length = (piece.len() as u64).to_le_bytes();
        for byte in piece.iter().chain(&length) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// The hash.
    pub fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// Hash of some pieces.
pub fn of(pieces: &[&[u8]]) -> u64 {
    let mut hasher = Hasher::default();
    pieces.iter().for_each(|piece| hasher.add(piece));
    hasher.finish()
}

/// A point in `0..end`, evenly spread over all inputs; 0 if `end` is 0.
pub fn point(pieces: &[&[u8]], end: u64) -> u64 {
    let wide = u128::from(of(pieces)) * u128::from(end);
    u64::try_from(wide >> 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_changes() {
        assert_eq!(of(&[]), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(of(&[b"session"]), of(&[b"session"]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(point(&[b"x"], 0), 0);
    }

    #[test]
    fn points_are_even() {
        let mut counts = [0u32; 10];
        for index in 0u32..10_000 {
            counts[usize::try_from(point(&[&index.to_le_bytes()], 10)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
