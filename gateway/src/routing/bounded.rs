//! Where things that belong together go: to one worker, unless it has too much more to do than the others.
//!
//! Rendezvous hashing gives every key an order of the workers, the same on every gateway; a worker that comes or goes moves
//! only the keys that are its own. The first worker in that order whose load is within the bound takes the request
//! (Mirrokni, Thorup, Zadimoghaddam: consistent hashing with bounded loads, 2018).
use super::{Candidate, hash};

/// A worker may have this many hundredths of the mean of all outstanding tokens.
const BOUND_PERCENT: u128 = 125;

/// A worker with fewer requests than this is within the bound whatever the others have: alone, a request is always more
/// than the mean.
const SPARE: u64 = 2;

/// Index of the worker for `key`; `None` only without candidates.
pub fn pick(candidates: &[Candidate], key: u64) -> Option<usize> {
    let total: u128 = candidates.iter().map(|candidate| u128::from(candidate.tokens)).sum();
    let is_within = |index: &usize| {
        let Candidate { tokens, requests, .. } = candidates[*index];
        requests < SPARE || u128::from(tokens) * candidates.len() as u128 * 100 <= BOUND_PERCENT * total
    };
    // one of them has no more than the mean
    (0..candidates.len()).filter(is_within).max_by_key(|index| score(&candidates[*index], key))
}

fn score(candidate: &Candidate, key: u64) -> (u64, u64) {
    (hash::of(&[&key.to_le_bytes(), &candidate.identity.to_le_bytes()]), candidate.identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u64..5000, 0u64..20, any::<u64>());
        let one = one.prop_map(|(tokens, requests, identity)| Candidate { tokens, requests, identity });
        prop::collection::vec(one, 1..12)
    }

    fn idle(identities: &[u64]) -> Vec<Candidate> {
        identities.iter().map(|&identity| Candidate { tokens: 0, requests: 0, identity }).collect()
    }

    proptest! {
        #[test]
        fn the_pick_is_within_the_bound(candidates in candidates(), key: u64) {
            let picked = candidates[pick(&candidates, key).unwrap()];
            let total: u64 = candidates.iter().map(|candidate| candidate.tokens).sum();
            let mean = total as f64 / candidates.len() as f64;
            prop_assert!(picked.requests < SPARE || picked.tokens as f64 <= 1.25 * mean + 1e-6);
        }

        #[test]
        fn a_worker_that_leaves_moves_only_its_own_keys(
            identities in prop::collection::hash_set(any::<u64>(), 2..12), key: u64, leaver: prop::sample::Index,
        ) {
            let all: Vec<u64> = identities.into_iter().collect();
            let leaver = leaver.index(all.len());
            let rest: Vec<u64> =
                all.iter().enumerate().filter(|(index, _)| *index != leaver).map(|(_, id)| *id).collect();
            let (before, after) = (pick(&idle(&all), key).unwrap(), pick(&idle(&rest), key).unwrap());
            prop_assert!(before == leaver || all[before] == rest[after]);
        }

        #[test]
        fn the_order_of_workers_does_not_matter(candidates in candidates(), key: u64) {
            let mut turned = candidates.clone();
            turned.reverse();
            let identity = |of: &[Candidate]| of[pick(of, key).unwrap()].identity;
            prop_assert_eq!(identity(&candidates), identity(&turned));
        }
    }

    #[test]
    fn keys_are_spread_evenly() {
        let workers = idle(&[11, 22, 33, 44]);
        let mut counts = [0u32; 4];
        for key in 0..4000 {
            counts[pick(&workers, key).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_key_walks_on_only_while_its_worker_is_too_busy() {
        let mut workers = idle(&[11, 22, 33]);
        let own = pick(&workers, 7).unwrap();
        workers[own] = Candidate { tokens: 400, requests: 2, ..workers[own] };
        assert_ne!(pick(&workers, 7), Some(own));
        for other in (0..3).filter(|index| *index != own) {
            workers[other].tokens = 300;
            workers[other].requests = 2;
        }
        assert_eq!(pick(&workers, 7), Some(own), "400 is within 1.25 times the mean of 333");
    }
}
