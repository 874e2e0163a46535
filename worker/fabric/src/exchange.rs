//! One exchange: assign → ask → compute what is here → the asker's own work → collect, and again for what failed.

mod ask;
mod here;
mod round;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use belay_backend::{FabricError, Route};

use crate::RowFormat;
use crate::assign::{Assignment, Excluded, Exclusion, RouteState};
use crate::health::Health;
use crate::link::Link;
use crate::peer::Peer;
use crate::progress::{Progress, Pulled};
use crate::ranks::{RankScratch, check_shapes};
use crate::shared::{Current, Shared};
use crate::socket::describe;
use crate::wire::Failure;

/// A route that nobody can compute is looked at again after this time, even if nothing is known to have changed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Buffers of an exchange, reused.
#[derive(Default)]
pub(crate) struct Scratch {
    assignment: Assignment,
    excluded: Excluded,
    progress: Progress,
    calls: Vec<Call>,
    ranks: RankScratch,
    /// `x` as it travels.
    rounded: Vec<f32>,
}

/// A link that this exchange has.
struct Call {
    peer: Arc<Peer>,
    link: Link,
}

pub(crate) struct Exchange<'a> {
    shared: &'a Shared,
    layer: u32,
    x: &'a [f32],
    routes: &'a [Route],
    y: &'a mut [f32],
    s: &'a mut Scratch,
    started: Instant,
    /// What had happened when the routes were last assigned, by which choices, and when that was.
    seen: u64,
    version: u64,
    assigned: Instant,
    /// When the oldest of the exclusions was made.
    excluded: Option<Instant>,
    /// Something came back that can be assigned anew at once.
    again: bool,
    /// Why the last ask came to nothing.
    last: Option<FabricError>,
}

impl<'a> Exchange<'a> {
    /// Does the whole exchange.
    pub(crate) fn run(
        shared: &'a Shared,
        layer: u32,
        x: &'a [f32],
        routes: &'a [Route],
        y: &'a mut [f32],
        meanwhile: &mut dyn FnMut(),
        scratch: &'a mut Scratch,
    ) -> Result<(), FabricError> {
        let started = Instant::now();
        let me = shared.identity.worker;
        let Some(current) = shared.current() else {
            return Err(FabricError::Protocol { worker: me, cause: "no placement in force".into() });
        };
        let hidden = shared.identity.hidden as usize;
        check_shapes(me, hidden, x, (layer, current.routing.experts_of(layer)), routes, y)?;
        scratch.assignment.begin();
        scratch.excluded.clear();
        scratch.rounded.clear();
        scratch.progress.begin(routes.len());
        let mut exchange = Self {
            shared,
            layer,
            x,
            routes,
            y,
            s: scratch,
            started,
            seen: 0,
            version: 0,
            assigned: started,
            excluded: None,
            again: false,
            last: None,
        };
        let outcome = exchange.drive(current, meanwhile);
        // answers that nobody needs any more are read away behind our back
        for Call { peer, link } in exchange.s.calls.drain(..) {
            match &outcome {
                Err(FabricError::Timeout { .. }) if link.is_awaiting() => {
                    peer.lost_link("no answer in time", shared)
                }
                _ => peer.bring_back(link, shared),
            }
        }
        outcome
    }

    fn drive(&mut self, first: Arc<Current>, meanwhile: &mut dyn FnMut()) -> Result<(), FabricError> {
        let mut current = first;
        let mut meanwhile = Some(meanwhile);
        let mut had_round = false;
        loop {
            self.seen = self.shared.moved.count();
            self.assigned = Instant::now();
            self.again = false;
            self.forgive(&current);
            self.assign(&current)?;
            if meanwhile.is_some() {
                self.count_load();
            }
            if !had_round && self.round(&current, &mut meanwhile) {
                had_round = true;
                if self.s.progress.left == 0 {
                    return Ok(());
                }
                current = self.current()?;
                continue;
            }
            self.ask(&current);
            self.compute(&current);
            if let Some(work) = meanwhile.take() {
                work();
            }
            self.collect()?;
            if self.s.progress.left == 0 {
                return Ok(());
            }
            if Instant::now() >= self.started + self.shared.timeouts.ask {
                return Err(self.too_late());
            }
            current = self.current()?;
        }
    }

    /// Whoever did not have an expert is asked again when something has changed, or after a while.
    fn forgive(&mut self, current: &Current) {
        let is_old = self.excluded.is_some_and(|since| since.elapsed() >= LOOK_AGAIN);
        if is_old || self.version != current.version {
            self.s.excluded.forgive();
            self.excluded = None;
        }
        self.version = current.version;
    }

    fn exclude(&mut self, expert: u32, worker: u32, why: Exclusion) {
        if !self.s.excluded.has(expert, worker) {
            self.s.excluded.add(expert, worker, why);
        }
        self.excluded.get_or_insert_with(Instant::now);
    }

    fn current(&self) -> Result<Arc<Current>, FabricError> {
        let worker = self.shared.identity.worker;
        if self.shared.is_stopped() {
            return Err(FabricError::PeerLost { worker, cause: "the fabric is shut down".into() });
        }
        let gone = || FabricError::Protocol { worker, cause: "no placement in force".into() };
        self.shared.current().ok_or_else(gone)
    }

    fn form(&self) -> (RowFormat, usize) {
        (self.shared.identity.format, self.shared.identity.hidden as usize)
    }

    fn expert(&self, index: u32) -> u32 {
        self.routes[index as usize].expert
    }

    fn count_load(&self) {
        if let Some(load) = &*self.shared.load.load() {
            for (expert, rows) in self.s.assignment.rows() {
                load.add(self.layer, expert, rows);
            }
            load.tick(self.started);
        }
    }

    fn assign(&mut self, current: &Current) -> Result<(), FabricError> {
        let Scratch { assignment, excluded, progress, .. } = &mut *self.s;
        let ranks = current.placements.ranks.len();
        // a placement of another shape came: nothing of this exchange fits it
        let experts = current.routing.experts_of(self.layer);
        if let Some(route) = self.routes.iter().find(|route| route.expert as usize >= experts) {
            return Err(FabricError::NotResident { layer: self.layer, expert: route.expert });
        }
        assignment.fill(&current.routing, excluded, ranks, self.layer, self.routes, &progress.states);
        match assignment.stuck {
            Some(index) if excluded.failed(self.routes[index as usize].expert) => {
                Err(self.last.take().unwrap_or_else(|| self.unreachable(current, index)))
            }
            _ => Ok(()),
        }
    }

    /// The link of a call is of no more use.
    fn lose(&mut self, number: usize, reason: &str) {
        let Call { peer, link } = self.s.calls.swap_remove(number);
        drop(link);
        let count = self.s.progress.forget(peer.worker);
        self.shared.stats.rerouted(count);
        self.again = true;
        self.last = Some(FabricError::PeerLost { worker: peer.worker, cause: reason.to_owned() });
        peer.lost_link(reason, self.shared);
    }

    /// An ask has no result; somebody else is asked for what the worker does not have.
    fn failed(&mut self, worker: u32, failure: Failure, picks: Range<usize>) {
        match failure {
            Failure::NotResident { layer, experts, reason } => {
                experts.iter().for_each(|&expert| self.exclude(expert, worker, Exclusion::Missing));
                let expert = experts.first().copied().unwrap_or_default();
                self.last = Some(if reason.is_empty() {
                    FabricError::NotResident { layer, expert }
                } else {
                    let cause = format!("cannot load expert {expert} of layer {layer}: {reason}");
                    FabricError::Protocol { worker, cause }
                });
            }
            Failure::Other(cause) => {
                for at in picks.clone() {
                    let expert = self.expert(self.s.progress.picks[at]);
                    self.exclude(expert, worker, Exclusion::Failed);
                }
                self.last = Some(FabricError::Protocol { worker, cause });
            }
        }
        let count = self.s.progress.put_back(worker, picks, |_| true);
        self.shared.stats.rerouted(count);
        self.again = true;
    }

    /// Takes answers until all are here or something has to be assigned anew.
    fn collect(&mut self) -> Result<(), FabricError> {
        let deadline = self.started + self.shared.timeouts.ask;
        while self.s.progress.left > 0 && !self.again {
            let now = Instant::now();
            if now >= deadline {
                return Err(self.too_late());
            }
            let is_open = self.s.progress.open > 0;
            if self.s.calls.is_empty() {
                let later = self.excluded.unwrap_or(now) + LOOK_AGAIN;
                self.shared.moved.wait(self.seen, deadline.min(later));
                return Ok(());
            }
            for number in (0..self.s.calls.len()).rev() {
                self.listen(number)?;
            }
            let moved = || self.shared.moved.count() != self.seen || self.assigned.elapsed() >= LOOK_AGAIN;
            if is_open && moved() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads at one link for a tick at most.
    fn listen(&mut self, number: usize) -> Result<(), FabricError> {
        let form = self.form();
        let Scratch { progress, calls, .. } = &mut *self.s;
        let Call { peer, link } = &mut calls[number];
        let (worker, timeouts) = (peer.worker, &self.shared.timeouts);
        let pulled = if self.shared.faults.cuts(worker) {
            self.shared.faults.wait_while_cut(worker, timeouts.tick);
            Ok(Pulled::Nothing)
        } else {
            progress.pull(worker, link, self.y, form)
        };
        match pulled {
            Ok(Pulled::Nothing) => return self.look_around(number),
            Ok(Pulled::Result(bytes)) => {
                peer.hear();
                self.shared.stats.received(bytes);
            }
            Ok(Pulled::Failed(failure, picks)) => {
                peer.hear();
                self.failed(worker, failure, picks);
            }
            Err(error) => {
                self.lose(number, &describe(&error));
                return Ok(());
            }
        }
        if self.s.progress.oldest(worker, false).is_some() {
            let current = self.current()?;
            self.send(number, &current);
        } else if self.s.progress.oldest(worker, true).is_none() {
            self.hang_up(number);
        }
        Ok(())
    }

    /// A peer says nothing: if it is not live, what others have is asked of them.
    fn look_around(&mut self, number: usize) -> Result<(), FabricError> {
        let peer = Arc::clone(&self.s.calls[number].peer);
        let worker = peer.worker;
        let gone = peer.is_stopped();
        let health = if gone { Health::Lost } else { peer.health() };
        let current = self.current()?;
        if health == Health::Live {
            return Ok(());
        }
        let (layer, routes) = (self.layer, self.routes);
        let Scratch { excluded, progress, .. } = &mut *self.s;
        let elsewhere = |index: u32| {
            let expert = routes[index as usize].expert;
            health == Health::Lost
                || current.routing.choice(layer, expert).is_some_and(|choice| {
                    choice
                        .live
                        .iter()
                        .any(|target| target.worker != worker && !excluded.has(expert, target.worker))
                })
        };
        let mut count = 0;
        for number in 0..progress.asked.len() {
            if progress.asked[number].worker == worker {
                count += progress.put_back(worker, progress.asked[number].picks.clone(), elsewhere);
            }
        }
        if count > 0 {
            self.shared.stats.rerouted(count);
            self.again = true;
        }
        if !progress.awaits(worker) {
            self.last = Some(FabricError::PeerLost { worker, cause: peer.message() });
            progress.forget(worker);
            self.hang_up(number);
        }
        Ok(())
    }

    fn hang_up(&mut self, number: usize) {
        let Call { peer, link } = self.s.calls.swap_remove(number);
        peer.bring_back(link, self.shared);
    }

    fn too_late(&mut self) -> FabricError {
        if let Some(call) = self.s.calls.first() {
            let millis = self.shared.timeouts.ask.as_millis() as u64;
            return FabricError::Timeout { worker: call.peer.worker, millis };
        }
        if let Some(last) = self.last.take() {
            return last;
        }
        let open = self.s.progress.states.iter().position(|state| *state == RouteState::Open);
        match (self.current(), open) {
            (Ok(current), Some(index)) => self.unreachable(&current, index as u32),
            (Err(error), _) => error,
            (Ok(_), None) => FabricError::Local("an exchange lost a route".into()),
        }
    }

    fn unreachable(&self, current: &Current, index: u32) -> FabricError {
        let (layer, expert) = (self.layer, self.expert(index));
        let table = current.placements.in_force.as_ref();
        let first = table.and_then(|table| Some(table.worker_of(*table.holders(layer, expert).first()?)));
        let Some(worker) = first else { return FabricError::NotResident { layer, expert } };
        let why =
            current.placements.peer(worker).map_or_else(String::new, |peer| format!(": {}", peer.message()));
        FabricError::PeerLost {
            worker,
            cause: format!("no live copy of expert {expert} of layer {layer}{why}"),
        }
    }
}
