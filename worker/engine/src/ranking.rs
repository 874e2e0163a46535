//! The likeliest tokens of a row, without sorting the row.

/// A token as a number that is greater the likelier it is: the logit first, then the *lower* id. Never made of NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u64);

impl Rank {
    pub fn new(id: u32, logit: f32) -> Self {
        // Adding 0.0 makes -0.0 equal to 0.0.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(ordered) << 32 | u64::from(!id))
    }

    pub fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

/// Leaves in `ranks` the `count` likeliest tokens, likeliest first; fewer if fewer are possible (a logit of -inf means
/// that a token is not). Takes one pass over the row, and memory for `2 · count`.
pub fn top(logits: &[f32], count: usize, ranks: &mut Vec<Rank>) {
    /// Tokens that are compared with the threshold at once.
    const CHUNK: usize = 16;
    ranks.clear();
    if count == 0 {
        return;
    }
    let full = count.saturating_mul(2).max(64).min(logits.len());
    // No token below it is among the likeliest.
    let mut threshold = f32::MIN;
    for (chunk, start) in logits.chunks(CHUNK).zip((0u32..).step_by(CHUNK)) {
        if !chunk.iter().fold(false, |any, logit| any | (*logit >= threshold)) {
            continue;
        }
        for (&logit, id) in chunk.iter().zip(start..) {
            if logit >= threshold {
                ranks.push(Rank::new(id, logit));
            }
        }
        if ranks.len() >= full && ranks.len() > count {
            keep(ranks, count);
            if let Some(last) = ranks.last() {
                threshold = logits[last.id() as usize];
            }
        }
    }
    if ranks.len() > count {
        keep(ranks, count);
    }
    ranks.sort_unstable_by(|a, b| b.cmp(a));
}

/// The `count` greatest, the least of them last. There are more than `count`, and `count` is not 0.
fn keep(ranks: &mut Vec<Rank>, count: usize) {
    ranks.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    ranks.truncate(count);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn top_is_the_head_of_the_sorted_row(
            logits in prop::collection::vec((-9i8..9).prop_map(|x| if x == -9 { f32::NEG_INFINITY } else { f32::from(x) }), 0..600),
            count in 0usize..100,
        ) {
            let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] > f32::NEG_INFINITY).collect();
            ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            ids.truncate(count);
            let mut ranks = Vec::new();
            top(&logits, count, &mut ranks);
            prop_assert_eq!(ranks.iter().map(|rank| rank.id()).collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn both_zeros_are_one() {
        let mut ranks = Vec::new();
        top(&[-0.0, 0.0, -1.0], 2, &mut ranks);
        assert_eq!(ranks.iter().map(|rank| rank.id()).collect::<Vec<_>>(), [0, 1]);
    }
}
