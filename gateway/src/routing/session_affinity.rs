//! Session affinity: requests of one session go to one worker, unless it has too much to do. Requests without a session go
//! to the least load.
use super::{Affinity, Candidate, LeastLoad, Policy, bounded};

/// See the module.
#[derive(Debug, Default)]
pub struct SessionAffinity(LeastLoad);

impl Policy for SessionAffinity {
    fn pick(&self, candidates: &[Candidate], affinity: Affinity) -> Option<usize> {
        match affinity.session {
            Some(session) => bounded::pick(candidates, session),
            None => self.0.pick(candidates, affinity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_stays_and_what_has_none_is_spread() {
        let policy = SessionAffinity::default();
        let workers: Vec<Candidate> =
            (0..4).map(|identity| Candidate { tokens: 0, requests: 0, identity }).collect();
        let picks = |affinity: Affinity| -> Vec<usize> {
            (0..4).filter_map(|_| policy.pick(&workers, affinity)).collect()
        };
        let with = picks(Affinity { session: Some(5), prefix: Some(1) });
        assert!(with.iter().all(|index| *index == with[0]));
        assert_eq!(picks(Affinity { session: None, prefix: Some(1) }), [0, 1, 2, 3]);
    }
}
