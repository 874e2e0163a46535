//! The thread that adopts this worker's share of the orphans, and lets copies go that are no longer needed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::adoption::{Deal, Fate};
use crate::routing::Standing;
use crate::shared::{Current, Placements, Shared};

/// Experts that are loaded in one piece; an ask that needs one of them waits for no more than a piece.
const PIECE: usize = 4;
/// What was refused is tried again after this time: room may have come.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Body of the thread, until the fabric stops.
pub(crate) fn keep(shared: &Shared) {
    let mut refused = Refusals::default();
    while !shared.is_stopped() {
        let seen = shared.keeper.count();
        let now = Instant::now();
        let Some(current) = shared.current() else {
            shared.keeper.wait(seen, now + shared.timeouts.lost);
            continue;
        };
        let due = release(shared, &current, now);
        refused.forget_old(now);
        let open = to_adopt(shared, &current, &refused, now);
        if let Some(piece) = next_piece(&open) {
            adopt(shared, piece, &mut refused, now);
            continue;
        }
        let until = [due, refused.again()].into_iter().flatten().min();
        shared.keeper.wait(seen, until.unwrap_or(now + Duration::from_secs(60)));
    }
}

/// What could not be loaded, and is not tried until a while later.
#[derive(Debug, Default)]
struct Refusals {
    experts: HashSet<(u32, u32)>,
    since: Option<Instant>,
}

impl Refusals {
    fn forget_old(&mut self, now: Instant) {
        if self.again().is_some_and(|again| again <= now) {
            *self = Self::default();
        }
    }

    fn again(&self) -> Option<Instant> {
        self.since.map(|since| since + TRY_AGAIN)
    }
}

/// This worker's share of the orphans, and after them those that peers want here; without what was refused.
fn to_adopt(shared: &Shared, current: &Current, refused: &Refusals, now: Instant) -> Vec<Deal> {
    let requested = shared.adoption.requested(shared.timeouts.release, now).into_iter();
    let absent = requested.filter(|&(layer, expert)| !current.placements.holds(layer, expert));
    let deals = absent.map(|(layer, expert)| Deal { rank: shared.rank_for(layer, expert), layer, expert });
    let mut open: Vec<Deal> = current.routing.share.iter().copied().chain(deals).collect();
    open.retain(|deal| !refused.experts.contains(&(deal.layer, deal.expert)));
    open
}

/// The next experts to load at one rank.
fn next_piece(open: &[Deal]) -> Option<(u32, Vec<(u32, u32)>)> {
    let mut open = open.iter();
    let first = open.next()?;
    let more = open.filter(|deal| deal.rank == first.rank);
    let piece = std::iter::once(first).chain(more).take(PIECE);
    Some((first.rank, piece.map(|deal| (deal.layer, deal.expert)).collect()))
}

fn adopt(shared: &Shared, (rank, experts): (u32, Vec<(u32, u32)>), refused: &mut Refusals, now: Instant) {
    tracing::info!(rank, ?experts, "adopting experts without a copy");
    if let Err(left) = shared.adoption.adopt(rank, &experts, now) {
        tracing::warn!(rank, experts = ?left.experts, reason = left.reason, "cannot adopt");
        refused.since.get_or_insert(now);
        refused.experts.extend(left.experts);
    }
    shared.refresh();
}

/// Lets go what is spare; returns when the next copy may be.
fn release(shared: &Shared, current: &Current, now: Instant) -> Option<Instant> {
    let Current { placements, routing, .. } = current;
    let (worker, uid) = (shared.identity.worker, shared.identity.uid.as_str());
    let here = |table, layer, expert| Placements::places_here(table, worker, uid, layer, expert);
    let fate = |layer: u32, expert: u32| {
        if here(placements.in_force.as_ref(), layer, expert) {
            Fate::Placed
        } else if here(placements.next.as_ref(), layer, expert) {
            Fate::Prepared
        } else if routing.standing(layer, expert) == Some(Standing::Live) {
            Fate::Spare
        } else {
            Fate::Needed
        }
    };
    let (changed, due) = shared.adoption.settle(fate, shared.timeouts.release, now, || shared.refresh());
    if changed {
        shared.refresh();
    }
    due
}
