//! An exchange by a round of the devices.

use belay_backend::{FabricError, RoundAnswer, RoundAsk, Route};

use super::Exchange;
use crate::assign::{Assignment, Exclusion};
use crate::rounds::Circle;
use crate::shared::Current;

/// By rank of the circle: indices of its routes, those of one expert one after the other.
type Plan = Vec<Vec<u32>>;

impl Exchange<'_> {
    /// Does what was assigned in a round, if there is a circle that has everybody who is needed. What it did not do stays
    /// open. `meanwhile` is done if there was a round. True if there was one.
    pub(super) fn round(&mut self, current: &Current, meanwhile: &mut Option<&mut dyn FnMut()>) -> bool {
        let Some(circle) = self.shared.rounds.open() else { return false };
        let Some(plan) = plan(current, &circle, &self.s.assignment, self.layer, self.routes) else {
            return false;
        };
        let (format, hidden) = self.form();
        let mut x = self.x.to_vec();
        format.round(&mut x, hidden);
        let route = |&index: &u32| self.routes[index as usize];
        let routes = plan.iter().map(|list| list.iter().map(route).collect()).collect();
        let submitted = circle.submit(RoundAsk { layer: self.layer, x, routes });
        if let Some(work) = meanwhile.take() {
            work();
        }
        let until = self.started + self.shared.timeouts.ask;
        let outcome = submitted.map(|slot| slot.wait(until));
        match outcome {
            Ok(Some(Ok(answer))) => self.take(&circle, &plan, &answer),
            Ok(Some(Err(error))) | Err(error) => self.round_failed(&error),
            Ok(None) => {
                self.shared.rounds.give_up(&circle, "a round took too long");
                self.round_failed(&FabricError::Local("a round took too long".into()));
            }
        }
        true
    }

    fn round_failed(&self, error: &FabricError) {
        tracing::debug!(layer = self.layer, %error, "a round came to nothing, the exchange goes over TCP");
        self.shared.stats.round_failed();
    }

    fn take(&mut self, circle: &Circle, plan: &Plan, answer: &RoundAnswer) {
        let (format, hidden) = self.form();
        let mut rows = answer.y.chunks_exact(hidden);
        let mut done = 0;
        for (rank, list) in (0u32..).zip(plan) {
            let missing = answer.missing.get(rank as usize).copied().flatten();
            for &index in list {
                let Some(row) = rows.next() else { return };
                if missing.is_some() {
                    continue;
                }
                let to = &mut self.y[index as usize * hidden..][..hidden];
                to.copy_from_slice(row);
                format.round(to, hidden);
                self.s.progress.finish(index);
                done += 1;
            }
            if let (Some(expert), false) = (missing, list.is_empty()) {
                let worker = circle.members[(rank / circle.ranks_per_worker) as usize];
                self.exclude(expert, worker, Exclusion::Missing);
                self.last = Some(FabricError::NotResident { layer: self.layer, expert });
            }
        }
        self.shared.stats.round_done(done);
    }
}

/// Which rank does what; `None` if the circle has not everybody, or if nobody but this worker's first rank is needed.
fn plan(
    current: &Current,
    circle: &Circle,
    assignment: &Assignment,
    layer: u32,
    routes: &[Route],
) -> Option<Plan> {
    let table = current.placements.in_force.as_ref()?;
    let me = current.routing.me()?;
    let first = circle.first_rank(me)?;
    let own = &assignment.local;
    // what has to be loaded first has no rank yet
    let is_ready = assignment.adopt.is_empty() && assignment.stuck.is_none();
    if !is_ready
        || table.ranks_per_worker() != circle.ranks_per_worker
        || own.len() as u32 > circle.ranks_per_worker
    {
        return None;
    }
    let needs_others = own.iter().skip(1).any(|list| !list.is_empty())
        || assignment.remote.iter().any(|list| !list.is_empty());
    if !needs_others {
        return None;
    }
    let mut plan: Plan = vec![Vec::new(); circle.ranks() as usize];
    for (rank, list) in own.iter().enumerate() {
        plan[first as usize + rank].extend(list);
    }
    for (worker, list) in (0u32..).zip(&assignment.remote).filter(|(_, list)| !list.is_empty()) {
        let first = circle.first_rank(worker)?;
        for &index in list {
            let expert = routes[index as usize].expert;
            let copies = table.holders(layer, expert).iter().filter(|&&rank| table.worker_of(rank) == worker);
            let places = copies.map(|rank| (first + rank % circle.ranks_per_worker) as usize);
            // an adopted copy may be on any of its ranks: TCP leaves that to its worker
            let place = places.min_by_key(|place| plan[*place].len())?;
            plan[place].push(index);
        }
    }
    for list in &mut plan {
        list.sort_by_key(|&index| (routes[index as usize].expert, index));
    }
    Some(plan)
}
