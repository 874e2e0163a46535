//! Whether this worker has met the other members of a target. One that uses a placement before it is connected to a
//! member with sole copies sees experts without a copy, if only for the moment that a connection takes; so it calls a
//! target prepared only when it has met them all, or has waited long enough.

use std::time::{Duration, Instant};

use belay_epoch::document::is_member;
use belay_fabric::{Health, PeerState};
use belay_proto::admin::Placement;

/// The longest that anybody is waited for: a placement without somebody who does not answer is better than none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of one target, whose copies are all loaded.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    epoch: u64,
    since: Instant,
    is_over: bool,
}

impl Meeting {
    /// With the members of the target of this epoch, loaded at `now`.
    #[must_use]
    pub fn begin(epoch: u64, now: Instant) -> Self {
        Self { epoch, since: now, is_over: false }
    }

    /// Epoch of the target.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether nobody is waited for any more; from then on for good.
    pub fn is_over(&mut self, target: &Placement, peers: &[PeerState], now: Instant) -> bool {
        let waits =
            |peer: &PeerState| peer.health == Health::Suspect && is_member(target, peer.worker, &peer.uid);
        self.is_over |= !peers.iter().any(waits) || now >= self.until();
        self.is_over
    }

    /// When patience ends; `None` if nobody is waited for.
    #[must_use]
    pub fn ends(&self) -> Option<Instant> {
        (!self.is_over).then(|| self.until())
    }

    fn until(&self) -> Instant {
        self.since + PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::GroupWorker;

    use super::*;

    fn peer(worker: u32, uid: &str, health: Health) -> PeerState {
        PeerState { worker, uid: uid.into(), health, message: String::new() }
    }

    #[test]
    fn members_are_waited_for_until_they_are_live_or_lost_or_patience_ends() {
        let worker = |index, uid: &str| GroupWorker { index, uid: uid.into(), ..GroupWorker::default() };
        let target = Placement {
            workers: vec![worker(0, "a"), worker(1, "b"), worker(2, "c")],
            ..Placement::default()
        };
        let begin = Instant::now();
        let over = |peers: &[PeerState], seconds| {
            Meeting::begin(3, begin).is_over(&target, peers, begin + Duration::from_secs(seconds))
        };
        let met = [peer(1, "b", Health::Live), peer(2, "c", Health::Lost)];
        assert!(over(&met, 0));
        assert!(over(&[peer(1, "earlier", Health::Suspect)], 0), "no member of the target");
        let not_met = [peer(1, "b", Health::Live), peer(2, "c", Health::Suspect)];
        assert!(!over(&not_met, 4));
        assert!(over(&not_met, 5));
        let mut meeting = Meeting::begin(3, begin);
        assert_eq!(meeting.ends(), Some(begin + PATIENCE));
        assert!(meeting.is_over(&target, &met, begin));
        assert!(meeting.is_over(&target, &not_met, begin), "what was told is not taken back");
        assert_eq!(meeting.ends(), None);
    }
}
