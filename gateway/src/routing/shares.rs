//! Which revision a request goes to, by weight. Pure.
//!
//! Without a session the revisions take turns so that each has had its share, to within one request, after any number of
//! requests (Tijdeman's solution of the chairman assignment problem, 1980). With a session it is decided by a hash: the
//! same on every gateway, without any state.
use std::collections::BTreeMap;

use crate::discovery::{Role, Share};

use super::hash;

/// The revisions among `shares` that can take a request, and have a weight.
pub fn able(shares: &[Share], is_able: impl Fn(&str) -> bool) -> Vec<&Share> {
    shares.iter().filter(|share| share.weight_percent > 0 && is_able(&share.revision)).collect()
}

/// The revision of a session: new revisions choose first, each by a hash of its own, and what they leave is the stable
/// one's. So a revision whose weight grows only gains sessions, and every rollout begins with other ones. Revisions that are
/// left out leave their sessions to the others. `None` only without shares.
pub fn of_session<'a>(session: u64, able: &[&'a Share]) -> Option<&'a str> {
    let mut order = able.to_vec();
    order.sort_by_key(|share| (share.role == Role::Stable, share.revision.as_str()));
    let mut left: u64 = order.iter().map(|share| u64::from(share.weight_percent)).sum();
    for share in &order {
        let weight = u64::from(share.weight_percent);
        let place = hash::point(&[&session.to_le_bytes(), share.revision.as_bytes()], left);
        if place < weight {
            return Some(&share.revision);
        }
        left -= weight;
    }
    None
}

/// Whose turn it is among the revisions of one model.
#[derive(Debug, Default)]
pub struct Turns {
    /// What each revision is owed, as a part of `whole` requests; between -1 and 1 request.
    owed: BTreeMap<String, i64>,
    whole: i64,
}

impl Turns {
    /// The revision whose turn it is; `None` only without shares.
    pub fn next<'a>(&mut self, able: &[&'a Share]) -> Option<&'a str> {
        let whole: i64 = able.iter().map(|share| i64::from(share.weight_percent)).sum();
        let count = i64::try_from(able.len()).unwrap_or(i64::MAX);
        if count <= 1 {
            // nothing is owed to those that cannot take any
            return able.first().map(|share| share.revision.as_str());
        }
        self.rescale(whole, able);
        for share in able {
            *self.owed.entry(share.revision.clone()).or_default() += i64::from(share.weight_percent);
        }
        let owed = |share: &Share| self.owed.get(&share.revision).copied().unwrap_or_default();
        // one that has had nearly too much already has to wait; of the others, whose bound comes first
        let parts = 2 * count - 2;
        let may = |share: &&&Share| owed(share) * parts >= whole;
        let until = |share: &Share| {
            let room = (parts - 1) * whole - parts * owed(share);
            // compared as fractions of equal denominators: times the product of the other weights would do as well
            i128::from(room) * 1_000_000 / i128::from(share.weight_percent)
        };
        let chosen = able
            .iter()
            .filter(may)
            .min_by_key(|share| until(share))
            .or_else(|| able.iter().max_by_key(|share| owed(share)))?;
        *self.owed.entry(chosen.revision.clone()).or_default() -= whole;
        Some(&chosen.revision)
    }

    /// Weights or revisions may have changed since the last time: what is owed stays, in the new measure.
    fn rescale(&mut self, whole: i64, able: &[&Share]) {
        if self.whole != whole && self.whole > 0 {
            self.owed.values_mut().for_each(|owed| *owed = *owed * whole / self.whole);
        }
        self.whole = whole;
        if self.owed.len() > able.len() {
            self.owed.retain(|revision, _| able.iter().any(|share| share.revision == *revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(revision: &str, weight_percent: u32, role: Role) -> Share {
        Share { revision: revision.into(), weight_percent, role }
    }

    fn weights() -> impl Strategy<Value = Vec<Share>> {
        prop::collection::vec(1u32..=100, 1..5).prop_map(|weights| {
            let named = weights.into_iter().enumerate();
            named.map(|(index, weight)| share(&format!("r{index}"), weight, Role::Stable)).collect()
        })
    }

    proptest! {
        #[test]
        fn every_revision_has_its_share_to_within_one_request_at_any_time(shares in weights(), requests in 1i64..600) {
            let able: Vec<&Share> = shares.iter().collect();
            let whole: i64 = shares.iter().map(|share| i64::from(share.weight_percent)).sum();
            let mut turns = Turns::default();
            let mut taken: BTreeMap<&str, i64> = BTreeMap::new();
            for request in 1..=requests {
                *taken.entry(turns.next(&able).unwrap()).or_default() += 1;
                for share in &shares {
                    let had = taken.get(share.revision.as_str()).copied().unwrap_or_default();
                    let off = had * whole - request * i64::from(share.weight_percent);
                    prop_assert!(off.abs() <= whole, "{} had {had} of {request}: {shares:?}", share.revision);
                }
            }
        }

        #[test]
        fn a_growing_canary_only_gains_sessions(session: u64, weights in prop::collection::btree_set(1u32..100, 2..8)) {
            let mut was_canary = false;
            for weight in weights {
                let shares = [share("old", 100 - weight, Role::Stable), share("new", weight, Role::Canary)];
                let able: Vec<&Share> = shares.iter().collect();
                let is_canary = of_session(session, &able) == Some("new");
                prop_assert!(is_canary || !was_canary, "{weight}");
                was_canary = is_canary;
            }
        }

        #[test]
        fn a_session_goes_to_somebody_with_a_weight(session: u64, shares in weights(), able in any::<[bool; 5]>()) {
            let able = able_of(&shares, able);
            prop_assert_eq!(of_session(session, &able).is_some(), !able.is_empty());
            prop_assert_eq!(Turns::default().next(&able).is_some(), !able.is_empty());
        }

        #[test]
        fn turns_go_on_whatever_changes(steps in prop::collection::vec((weights(), any::<[bool; 5]>()), 1..60)) {
            let mut turns = Turns::default();
            for (shares, able) in &steps {
                let able = able_of(shares, *able);
                let next = turns.next(&able);
                prop_assert_eq!(next.is_some(), !able.is_empty());
                prop_assert!(next.is_none_or(|next| able.iter().any(|share| share.revision == next)));
                prop_assert!(turns.owed.len() <= 5);
            }
        }
    }

    fn able_of(shares: &[Share], able: [bool; 5]) -> Vec<&Share> {
        let chosen = shares.iter().zip(able).filter(|(_, able)| *able);
        chosen.map(|(share, _)| share).collect()
    }

    #[test]
    fn sessions_are_spread_by_weight_and_each_rollout_begins_with_others() {
        let shares = |new: &str| [share("old", 80, Role::Stable), share(new, 20, Role::Canary)];
        let canaries = |new: &str| -> Vec<u64> {
            let shares = shares(new);
            let able: Vec<&Share> = shares.iter().collect();
            (0..10_000).filter(|session| of_session(*session, &able) == Some(new)).collect()
        };
        let (one, two) = (canaries("one"), canaries("two"));
        assert!((1800..2200).contains(&one.len()), "{}", one.len());
        let both = one.iter().filter(|session| two.contains(session)).count();
        assert!((300..500).contains(&both), "{both}");
    }

    #[test]
    fn what_has_no_weight_or_cannot_is_left_out() {
        let shares =
            [share("a", 0, Role::Preview), share("b", 60, Role::Stable), share("c", 40, Role::Canary)];
        let names = |is_able: fn(&str) -> bool| -> Vec<&str> {
            able(&shares, is_able).iter().map(|share| share.revision.as_str()).collect()
        };
        assert_eq!(names(|_| true), ["b", "c"]);
        assert_eq!(names(|revision| revision != "b"), ["c"]);
        assert!(names(|revision| revision == "a").is_empty());
    }
}
