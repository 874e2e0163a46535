//! Least load: the worker with the fewest outstanding tokens, of those the one with the fewest requests; ties rotate.
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Affinity, Candidate, Policy};

/// See the module.
#[derive(Debug, Default)]
pub struct LeastLoad {
    turn: AtomicUsize,
}

impl Policy for LeastLoad {
    fn pick(&self, candidates: &[Candidate], _: Affinity) -> Option<usize> {
        let load = |candidate: &Candidate| (candidate.tokens, candidate.requests);
        let least = candidates.iter().map(load).min()?;
        let is_least = |index: &usize| load(&candidates[*index]) == least;
        let ties = (0..candidates.len()).filter(is_least).count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % ties;
        (0..candidates.len()).filter(is_least).nth(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(load: &[(u64, u64)]) -> Vec<Candidate> {
        load.iter().map(|&(tokens, requests)| Candidate { tokens, requests, identity: 0 }).collect()
    }

    fn pick(policy: &LeastLoad, load: &[(u64, u64)]) -> Option<usize> {
        policy.pick(&candidates(load), Affinity::default())
    }

    #[test]
    fn no_candidate_no_pick() {
        assert_eq!(pick(&LeastLoad::default(), &[]), None);
    }

    #[test]
    fn tokens_count_first_then_requests() {
        assert_eq!(pick(&LeastLoad::default(), &[(9000, 1), (20, 4)]), Some(1));
        assert_eq!(pick(&LeastLoad::default(), &[(20, 4), (20, 3)]), Some(1));
    }

    #[test]
    fn ties_rotate_over_all_of_them() {
        let policy = LeastLoad::default();
        let picks: Vec<_> = (0..6).filter_map(|_| pick(&policy, &[(1, 1), (5, 1), (1, 1), (1, 1)])).collect();
        assert_eq!(picks, [0, 2, 3, 0, 2, 3]);
    }

    proptest! {
        #[test]
        fn the_pick_is_never_busier_than_another(
            load in prop::collection::vec((0u64..9, 0u64..3), 1..20),
            turns in 0usize..9,
        ) {
            let policy = LeastLoad::default();
            for _ in 0..=turns {
                let pick = pick(&policy, &load).unwrap();
                prop_assert!(load.iter().all(|other| load[pick] <= *other));
            }
        }
    }
}
