//! Prefix affinity: requests whose prompts begin alike go to the worker that has that beginning in its cache, unless it has
//! too much to do. Requests without a prompt go to the least load.
use super::{Affinity, Candidate, LeastLoad, Policy, bounded};

/// See the module.
#[derive(Debug, Default)]
pub struct PrefixAffinity(LeastLoad);

impl Policy for PrefixAffinity {
    fn pick(&self, candidates: &[Candidate], affinity: Affinity) -> Option<usize> {
        match affinity.prefix {
            Some(prefix) => bounded::pick(candidates, prefix),
            None => self.0.pick(candidates, affinity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stays_and_what_has_none_is_spread() {
        let policy = PrefixAffinity::default();
        let workers: Vec<Candidate> =
            (0..4).map(|identity| Candidate { tokens: 0, requests: 0, identity }).collect();
        let picks = |affinity: Affinity| -> Vec<usize> {
            (0..4).filter_map(|_| policy.pick(&workers, affinity)).collect()
        };
        let with = picks(Affinity { prefix: Some(5), session: None });
        assert!(with.iter().all(|index| *index == with[0]));
        assert_eq!(picks(Affinity { prefix: None, session: Some(1) }), [0, 1, 2, 3]);
    }
}
