//! Decode states of beginnings that several requests share, found by what the beginnings say.
//!
//! A snapshot stands at the end of a block of tokens and is found by the SHA-256 of everything before it: model, storage
//! format and numerics (the model's cache key), the request's salt, and each block chained to the one before. Nobody
//! knows two texts of the same SHA-256, so the tokens themselves are not kept.
//!
//! Snapshots live in the memory of the decode states and take what is left there. Whoever needs room evicts the one that
//! was not used for longest.
//!
//! Every snapshot pins a whole sliding window, which is most of its bytes, while compressed entries are shared by all
//! snapshots of a text. So not every block's end is kept:
//!
//! - the last whole block of each prompt that leaves a token to feed: the same prompt again, the next turn of a chat;
//! - the last whole block of each output, while it grows and when it is finished: the next turn;
//! - the first, the second, the fourth and every eighth block: texts that part somewhere.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

/// Names a beginning of a sequence.
pub type Digest = [u8; 32];

/// Digests of the whole blocks of one sequence.
pub struct Chain {
    block: usize,
    root: Digest,
    digests: Vec<Digest>,
}

impl Chain {
    /// The chain of an empty sequence; `block` tokens make a block.
    #[must_use]
    pub fn new(cache_key: u64, salt: &str, block: usize) -> Self {
        let root =
            Sha256::new().chain_update(cache_key.to_le_bytes()).chain_update(salt.as_bytes()).finalize();
        Self { block, root: root.into(), digests: Vec::new() }
    }

    /// Adds the whole blocks of `tokens`, the sequence so far, that it does not have yet.
    pub fn extend(&mut self, tokens: &[u32]) {
        for block in tokens.chunks_exact(self.block).skip(self.digests.len()) {
            let mut hash = Sha256::new().chain_update(self.digests.last().unwrap_or(&self.root));
            for token in block {
                hash.update(token.to_le_bytes());
            }
            self.digests.push(hash.finalize().into());
        }
    }

    /// Names the first `blocks` blocks; `None` if there are not so many, or none.
    #[must_use]
    pub fn get(&self, blocks: usize) -> Option<Digest> {
        self.digests.get(blocks.checked_sub(1)?).copied()
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }
}

/// Whether the end of this many blocks is worth a snapshot in any text.
#[must_use]
pub fn is_landmark(blocks: usize) -> bool {
    matches!(blocks, 1 | 2 | 4) || blocks > 0 && blocks.is_multiple_of(8)
}

/// Snapshots by digest, and in the order of their last use.
pub struct PrefixCache<S> {
    entries: HashMap<Digest, Entry<S>>,
    by_use: BTreeMap<u64, Digest>,
    clock: u64,
}

struct Entry<S> {
    snapshot: S,
    used: u64,
    /// Whether a request went on from it.
    was_hit: bool,
}

impl<S> Default for PrefixCache<S> {
    fn default() -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }
}

impl<S> PrefixCache<S> {
    /// The longest beginning of up to `most` blocks that there is a snapshot of, and its blocks. Counts as a use.
    pub fn longest(&mut self, chain: &Chain, most: usize) -> Option<(usize, &S)> {
        let (blocks, digest) = (1..=most).rev().find_map(|blocks| {
            let digest = chain.get(blocks)?;
            self.entries.contains_key(&digest).then_some((blocks, digest))
        })?;
        self.clock += 1;
        let entry = self.entries.get_mut(&digest)?;
        self.by_use.remove(&entry.used);
        self.by_use.insert(self.clock, digest);
        entry.used = self.clock;
        entry.was_hit = true;
        Some((blocks, &entry.snapshot))
    }

    /// Whether there is a snapshot of this beginning.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.entries.contains_key(digest)
    }

    /// Keeps a snapshot; the last one to be evicted.
    pub fn insert(&mut self, digest: Digest, snapshot: S) {
        self.clock += 1;
        let entry = Entry { snapshot, used: self.clock, was_hit: false };
        if let Some(old) = self.entries.insert(digest, entry) {
            self.by_use.remove(&old.used);
        }
        self.by_use.insert(self.clock, digest);
    }

    /// Drops a snapshot if no request ever went on from it.
    pub fn remove_unused(&mut self, digest: &Digest) {
        if let Some(used) = self.entries.get(digest).filter(|entry| !entry.was_hit).map(|entry| entry.used) {
            self.by_use.remove(&used);
            self.entries.remove(digest);
        }
    }

    /// Drops the snapshot that was not used for longest. Returns whether there was one.
    pub fn evict(&mut self) -> bool {
        let Some((_, digest)) = self.by_use.pop_first() else { return false };
        self.entries.remove(&digest);
        true
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(tokens: &[u32]) -> Chain {
        let mut chain = Chain::new(7, "", 2);
        chain.extend(tokens);
        chain
    }

    #[test]
    fn model_salt_and_every_token_before_count() {
        let digest = |key, salt: &str, tokens: &[u32]| {
            let mut chain = Chain::new(key, salt, 2);
            chain.extend(tokens);
            chain.get(2)
        };
        let this = digest(7, "a", &[1, 2, 3, 4]);
        assert_eq!(this, digest(7, "a", &[1, 2, 3, 4, 5]));
        for other in
            [digest(8, "a", &[1, 2, 3, 4]), digest(7, "b", &[1, 2, 3, 4]), digest(7, "a", &[0, 2, 3, 4])]
        {
            assert_ne!(this, other);
        }
        assert_eq!(digest(7, "a", &[1, 2, 3]), None);
    }

    #[test]
    fn the_longest_beginning_is_found_and_the_oldest_use_evicted() {
        let mut cache = PrefixCache::default();
        let text = chain(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for blocks in [1, 2, 4] {
            cache.insert(text.get(blocks).unwrap(), blocks);
        }
        assert_eq!(cache.longest(&text, 4), Some((4, &4)));
        assert_eq!(cache.longest(&text, 3), Some((2, &2)));
        assert_eq!(cache.longest(&chain(&[1, 2, 9, 9]), 2), Some((1, &1)));
        assert_eq!(cache.longest(&chain(&[9, 9, 3, 4]), 2), None);
        assert!(cache.evict(), "4 was used first");
        assert_eq!(cache.longest(&text, 4), Some((2, &2)));
        cache.remove_unused(&text.get(2).unwrap());
        assert!(cache.contains(&text.get(2).unwrap()), "somebody went on from it");
        assert!(cache.evict() && cache.evict() && !cache.evict());
    }

    proptest! {
        #[test]
        fn both_indices_hold_the_same(steps in prop::collection::vec((0u8..5, 0u32..6), 0..60)) {
            let mut cache = PrefixCache::default();
            for (what, token) in steps {
                let text = chain(&[token, token]);
                let digest = text.get(1).unwrap();
                match what {
                    0 | 1 => cache.insert(digest, token),
                    2 => { prop_assert_eq!(cache.longest(&text, 1).is_some(), cache.contains(&digest)); }
                    3 => cache.remove_unused(&digest),
                    _ => { cache.evict(); }
                }
                prop_assert_eq!(cache.entries.len(), cache.by_use.len());
                for (used, digest) in &cache.by_use {
                    prop_assert_eq!(cache.entries[digest].used, *used);
                }
            }
        }
    }
}
