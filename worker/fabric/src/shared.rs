//! What all threads of a group's fabric see.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use belay_backend::ExpertCompute;

use crate::adoption::Adoption;
use crate::auth::Key;
use crate::coverage::{Coverage, Gap, Gaps};
use crate::fault::Faults;
use crate::handshake::{Identity, Members};
use crate::health::Health;
use crate::load::LoadCounter;
use crate::peer::Peer;
use crate::rounds::Rounds;
use crate::routing::{Routing, Seen, Target, View, seen};
use crate::server::Connections;
use crate::stats::Stats;
use crate::sync::{Signal, lock};
use crate::{Table, Timeouts};

/// The placements that a worker knows, and what goes with them.
#[derive(Default)]
pub(crate) struct Placements {
    pub in_force: Option<Table>,
    pub next: Option<Table>,
    /// This worker's own, in rank order.
    pub ranks: Vec<Arc<dyn ExpertCompute>>,
    /// Whether the placement in force names this life of this worker.
    pub member: bool,
    /// Members of either placement, but this worker.
    pub peers: Vec<Arc<Peer>>,
    /// By worker index of the placement in force.
    pub by_worker: Vec<Option<Arc<Peer>>>,
}

impl Placements {
    pub(crate) fn members(&self) -> Members<'_> {
        Members { in_force: self.in_force.as_ref(), next: self.next.as_ref() }
    }

    pub(crate) fn peer(&self, worker: u32) -> Option<&Arc<Peer>> {
        self.by_worker.get(worker as usize)?.as_ref()
    }

    /// A life of another worker, if it is a member of either placement.
    pub(crate) fn life(&self, worker: u32, uid: &str) -> Option<&Arc<Peer>> {
        self.peers.iter().find(|peer| peer.worker == worker && peer.uid == uid)
    }

    /// Whether any rank of this worker has an expert.
    pub(crate) fn holds(&self, layer: u32, expert: u32) -> bool {
        self.ranks.iter().any(|rank| rank.holds(layer, expert))
    }

    /// Whether a rank of this worker holds an expert by `table`.
    pub(crate) fn places_here(
        table: Option<&Table>,
        worker: u32,
        uid: &str,
        layer: u32,
        expert: u32,
    ) -> bool {
        table.is_some_and(|table| {
            table.names(worker, uid)
                && table.holders(layer, expert).iter().any(|&rank| table.worker_of(rank) == worker)
        })
    }
}

/// Placement in force with the choices that follow from it: an exchange works with one of these at a time.
pub(crate) struct Current {
    /// Grows with every change.
    pub version: u64,
    pub placements: Arc<Placements>,
    pub routing: Routing,
}

pub(crate) struct Shared {
    pub identity: Identity,
    pub key: Key,
    pub timeouts: Timeouts,
    /// Largest body of an ask or its result.
    pub ask_bytes: u32,
    placements: ArcSwap<Placements>,
    current: ArcSwapOption<Current>,
    /// Held while choices are worked out, so that a later reason is never overtaken by an earlier one.
    gaps: Mutex<(u64, Gaps)>,
    /// Routing changed, or a link came back.
    pub moved: Signal,
    /// Something for the keeper thread to look at.
    pub keeper: Signal,
    pub adoption: Adoption,
    pub load: ArcSwapOption<LoadCounter>,
    pub faults: Faults,
    pub connections: Connections,
    pub rounds: Rounds,
    pub stats: Arc<Stats>,
    pub stopped: AtomicBool,
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    pub(crate) fn new(
        identity: Identity,
        key: Key,
        timeouts: Timeouts,
        ask_bytes: u32,
        on_change: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            identity,
            key,
            timeouts,
            ask_bytes,
            placements: ArcSwap::default(),
            current: ArcSwapOption::empty(),
            gaps: Mutex::default(),
            moved: Signal::default(),
            keeper: Signal::default(),
            adoption: Adoption::default(),
            load: ArcSwapOption::empty(),
            faults: Faults::default(),
            connections: Connections::default(),
            rounds: Rounds::default(),
            stats: Arc::default(),
            stopped: AtomicBool::new(false),
            on_change,
        }
    }

    pub(crate) fn placements(&self) -> Arc<Placements> {
        self.placements.load_full()
    }

    /// `None` while no placement is in force.
    pub(crate) fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Puts placements in force.
    pub(crate) fn place(&self, placements: Placements) {
        self.placements.store(Arc::new(placements));
        self.refresh();
    }

    /// Works out the choices anew, and tells everybody: a peer's health, a placement or an adopted copy changed.
    pub(crate) fn refresh(&self) {
        {
            let mut guard = lock(&self.gaps);
            let (version, gaps) = &mut *guard;
            *version += 1;
            let version = *version;
            let placements = self.placements();
            let current = placements.in_force.as_ref().map(|table| {
                let seen = self.look(&placements, table);
                let me = placements.member.then_some(self.identity.worker);
                let adopted_here = |layer, expert| self.adoption.rank_of(layer, expert);
                let routing = Routing::build(View { table, me, seen: &seen, adopted_here: &adopted_here });
                let complete = placements.by_worker.iter().flatten().all(|peer| peer.was_live());
                match gaps.note(routing.cover(), complete, Instant::now()) {
                    Some(Gap::Opened) => {
                        let (uncovered, silent, health) =
                            (routing.uncovered, routing.silent, routing.health());
                        tracing::warn!(
                            epoch = table.epoch(),
                            uncovered,
                            silent,
                            ?health,
                            "experts without a live copy"
                        );
                    }
                    Some(Gap::Closed(after)) => {
                        tracing::info!(epoch = table.epoch(), ?after, "every expert has a live copy again");
                    }
                    None => {}
                }
                Arc::new(Current { version, placements: Arc::clone(&placements), routing })
            });
            self.current.store(current);
        }
        self.moved.tell();
        self.keeper.tell();
        (self.on_change)();
    }

    fn look(&self, placements: &Placements, table: &Table) -> Vec<Seen> {
        let me = (placements.member).then_some(self.identity.worker);
        let workers = table.workers().iter().map(|entry| entry.index);
        workers
            .map(|worker| match placements.peer(worker) {
                _ if me == Some(worker) => seen(Health::Live),
                Some(peer) => {
                    let (health, only_silent) = peer.standing();
                    Seen { health, only_silent, adopted: peer.adopted() }
                }
                None => seen(Health::Lost),
            })
            .collect()
    }

    /// The rank of this worker that is to adopt an expert: the one that it is dealt to, if it is dealt to this worker;
    /// else the ranks take turns.
    pub(crate) fn rank_for(&self, layer: u32, expert: u32) -> u32 {
        let dealt = self.current().and_then(|current| {
            let own = |target: &&Target| Some(target.worker) == current.routing.me();
            current.routing.choice(layer, expert)?.other.iter().find(own).map(|target| target.rank)
        });
        dealt.unwrap_or_else(|| (layer + expert) % self.placements().ranks.len().max(1) as u32)
    }

    pub(crate) fn coverage(&self) -> Coverage {
        let (uncovered_for, silent_for) = {
            let guard = lock(&self.gaps);
            let now = Instant::now();
            (guard.1.total(now), guard.1.silent(now))
        };
        let adopted = self.adoption.count() as u32;
        let Some(current) = self.current() else {
            return Coverage { adopted, uncovered_for, silent_for, ..Coverage::default() };
        };
        let Current { placements, routing, .. } = &*current;
        Coverage {
            epoch: placements.in_force.as_ref().map_or(0, Table::epoch),
            experts: routing.experts() as u32,
            uncovered: routing.uncovered,
            min_live: routing.min_live,
            adopted,
            uncovered_for,
            silent_for,
        }
    }
}
