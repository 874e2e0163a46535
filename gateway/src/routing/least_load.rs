//! Least load: the worker with the fewest outstanding requests; ties rotate.
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Candidate, Policy};

/// See the module.
#[derive(Debug, Default)]
pub struct LeastLoad {
    turn: AtomicUsize,
}

impl Policy for LeastLoad {
    fn pick(&self, candidates: &[Candidate]) -> Option<usize> {
        let least = candidates.iter().map(|candidate| candidate.outstanding).min()?;
        let is_least = |index: &usize| candidates[*index].outstanding == least;
        let ties = (0..candidates.len()).filter(is_least).count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % ties;
        (0..candidates.len()).filter(is_least).nth(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(outstanding: &[usize]) -> Vec<Candidate> {
        outstanding.iter().map(|&outstanding| Candidate { outstanding }).collect()
    }

    #[test]
    fn no_candidate_no_pick() {
        assert_eq!(LeastLoad::default().pick(&[]), None);
    }

    #[test]
    fn ties_rotate_over_all_of_them() {
        let policy = LeastLoad::default();
        let picks: Vec<_> = (0..6).filter_map(|_| policy.pick(&candidates(&[1, 5, 1, 1]))).collect();
        assert_eq!(picks, [0, 2, 3, 0, 2, 3]);
    }

    proptest! {
        #[test]
        fn the_pick_is_never_busier_than_another(load in prop::collection::vec(0usize..9, 1..20), turns in 0usize..9) {
            let policy = LeastLoad::default();
            for _ in 0..=turns {
                let pick = policy.pick(&candidates(&load)).unwrap();
                prop_assert!(load.iter().all(|other| load[pick] <= *other));
            }
        }
    }
}
