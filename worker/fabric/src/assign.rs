//! Who computes which route of an exchange. Pure.

use belay_backend::Route;

use crate::health::Health;
use crate::routing::{Choice, Routing, Standing, Target};

/// Rows that reading an expert's weights counts as: a decode step spends its time on that, not on the rows.
const ROWS_PER_EXPERT: u64 = 8;
/// Rows of one expert that stay together.
const PIECE_ROWS: u32 = 128;

/// Where a route is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RouteState {
    /// Nobody computes it.
    #[default]
    Open,
    /// Somebody was asked.
    Asked,
    /// Its row is in place.
    Done,
}

/// Why a worker is not asked again for an expert in this exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exclusion {
    /// It does not have it; that may change.
    Missing,
    /// It failed to compute it.
    Failed,
}

/// Workers that an exchange has tried in vain.
#[derive(Debug, Default)]
pub(crate) struct Excluded(Vec<(u32, u32, Exclusion)>);

impl Excluded {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn add(&mut self, expert: u32, worker: u32, why: Exclusion) {
        self.0.push((expert, worker, why));
    }

    /// Those that do not have an expert may have got it.
    pub(crate) fn forgive(&mut self) {
        self.0.retain(|&(_, _, why)| why == Exclusion::Failed);
    }

    pub(crate) fn has(&self, expert: u32, worker: u32) -> bool {
        self.0.iter().any(|&(of, by, _)| (of, by) == (expert, worker))
    }

    /// Whether somebody failed to compute `expert`.
    pub(crate) fn failed(&self, expert: u32) -> bool {
        self.0.iter().any(|&(of, _, why)| of == expert && why == Exclusion::Failed)
    }
}

/// Routes of one exchange by who computes them; each list holds indices into the routes, ascending.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    /// By local rank.
    pub local: Vec<Vec<u32>>,
    /// By worker index; empty for this worker itself.
    pub remote: Vec<Vec<u32>>,
    /// Orphans that this worker has to load before it computes `local`: rank, expert; each once.
    pub adopt: Vec<(u32, u32)>,
    /// A route that nobody can compute at this moment.
    pub stuck: Option<u32>,
    /// By expert: its routes, and who gets the next ones.
    plans: Vec<Plan>,
    /// By worker: rows so far in this exchange.
    load: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    rows: u32,
    open: u32,
    piece: u32,
    target: Option<Target>,
}

impl Assignment {
    /// Begins an exchange.
    pub(crate) fn begin(&mut self) {
        self.load.clear();
    }

    /// `(expert, rows)` of the routes that the last [`Self::fill`] gave away.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..).zip(&self.plans).filter(|(_, plan)| plan.rows > 0).map(|(expert, plan)| (expert, plan.rows))
    }

    /// Gives each open route to a live copy, or else to whoever can be waited for or load one. Rows of an expert stay
    /// together unless they are many; a piece goes to the copy whose worker has the fewest rows so far, this one on a
    /// tie. Routes beyond the placement stay open: callers check them first.
    pub(crate) fn fill(
        &mut self,
        routing: &Routing,
        excluded: &Excluded,
        ranks: usize,
        layer: u32,
        routes: &[Route],
        states: &[RouteState],
    ) {
        let workers = routing.health().len();
        self.local.resize_with(ranks, Vec::new);
        self.remote.resize_with(workers, Vec::new);
        self.local.iter_mut().chain(&mut self.remote).for_each(Vec::clear);
        self.adopt.clear();
        self.stuck = None;
        self.load.resize(workers, 0);
        self.plans.clear();
        self.plans.resize(routing.experts_of(layer), Plan::default());
        let open = || (0u32..).zip(routes).zip(states).filter(|(_, state)| **state == RouteState::Open);
        for ((_, route), _) in open() {
            self.plans[route.expert as usize].open += 1;
            self.plans[route.expert as usize].rows += 1;
        }
        for ((index, route), _) in open() {
            let plan = self.plans[route.expert as usize];
            let mut plan =
                if plan.piece == 0 { self.next(plan, routing, excluded, layer, route.expert) } else { plan };
            plan.piece -= 1;
            plan.open -= 1;
            self.plans[route.expert as usize] = plan;
            match plan.target {
                None => self.stuck = self.stuck.or(Some(index)),
                Some(Target { worker, rank }) if routing.me() == Some(worker) => {
                    match self.local.get_mut(rank as usize) {
                        Some(local) => local.push(index),
                        None => self.stuck = self.stuck.or(Some(index)),
                    }
                }
                Some(Target { worker, .. }) => self.remote[worker as usize].push(index),
            }
        }
    }

    /// Chooses for the next piece of an expert's rows.
    fn next(&mut self, plan: Plan, routing: &Routing, excluded: &Excluded, layer: u32, expert: u32) -> Plan {
        let choice = routing.choice(layer, expert);
        let target = choice.and_then(|choice| self.choose(&choice, routing, excluded, expert));
        let many = choice.is_some_and(|choice| choice.live.len() > 1);
        let piece = if many && plan.open > PIECE_ROWS { PIECE_ROWS } else { plan.open };
        if let Some(target) = target {
            self.load[target.worker as usize] += u64::from(piece) + ROWS_PER_EXPERT;
            let orphan =
                choice.is_some_and(|choice| choice.standing == Standing::Orphan && choice.live.is_empty());
            if orphan && routing.me() == Some(target.worker) {
                self.adopt.push((target.rank, expert));
            }
        }
        Plan { piece, target, ..plan }
    }

    fn choose(
        &self,
        choice: &Choice<'_>,
        routing: &Routing,
        excluded: &Excluded,
        expert: u32,
    ) -> Option<Target> {
        let allowed = |target: &&Target| !excluded.has(expert, target.worker);
        let away = |target: &Target| routing.me() != Some(target.worker);
        let live = choice.live.iter().filter(allowed);
        if let Some(found) = live.min_by_key(|target| (self.load[target.worker as usize], away(target))) {
            return Some(*found);
        }
        match choice.standing {
            // all live ones failed: nobody is left to ask
            Standing::Live => None,
            Standing::Suspect => choice.other.iter().find(allowed).copied(),
            Standing::Orphan => {
                let health = routing.health();
                let first = *choice.other.first()?;
                let workers = health.len() as u32;
                let others =
                    (1..workers).map(|step| Target { worker: (first.worker + step) % workers, rank: 0 });
                std::iter::once(first)
                    .chain(others)
                    .find(|target| health[target.worker as usize] == Health::Live && allowed(&target))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{View, seen};
    use crate::{Placement, Table, WorkerEntry};

    fn table(workers: u32, copies: Vec<Vec<u32>>) -> Table {
        let worker = |index| WorkerEntry { index, uid: format!("u{index}"), ..WorkerEntry::default() };
        Table::new(Placement {
            epoch: 1,
            ranks_per_worker: 2,
            workers: (0..workers).map(worker).collect(),
            layers: vec![copies],
            expert_bytes: 0,
        })
        .unwrap()
    }

    fn routing(table: &Table, health: &[Health]) -> Routing {
        let seen: Vec<_> = health.iter().copied().map(seen).collect();
        Routing::build(View { table, me: Some(0), seen: &seen, adopted_here: &|_, _| None })
    }

    fn routes(experts: &[u32]) -> Vec<Route> {
        (0..).zip(experts).map(|(row, &expert)| Route { row, expert, weight: 1.0 }).collect()
    }

    fn fill(routing: &Routing, excluded: &Excluded, routes: &[Route]) -> Assignment {
        let mut assignment = Assignment::default();
        assignment.begin();
        let states = vec![RouteState::Open; routes.len()];
        assignment.fill(routing, excluded, 2, 0, routes, &states);
        assignment
    }

    #[test]
    fn copies_share_the_rows_and_the_nearest_wins_a_tie() {
        // experts 0..6 on workers 0 (rank 1) and 1
        let table = table(2, vec![vec![1, 2]; 6]);
        let routing = routing(&table, &[Health::Live; 2]);
        let found = fill(&routing, &Excluded::default(), &routes(&[0, 1, 2, 3, 4, 5]));
        assert_eq!(found.local, [vec![], vec![0, 2, 4]]);
        assert_eq!(found.remote, [vec![], vec![1, 3, 5]]);
    }

    #[test]
    fn rows_of_an_expert_stay_together_unless_they_are_many() {
        let table = table(2, vec![vec![0, 2]; 2]);
        let routing = routing(&table, &[Health::Live; 2]);
        let found = fill(&routing, &Excluded::default(), &routes(&[0, 1, 0, 1, 0, 1]));
        assert_eq!((found.local[0].as_slice(), found.remote[1].as_slice()), (&[0, 2, 4][..], &[1, 3, 5][..]));
        let found = fill(&routing, &Excluded::default(), &routes(&vec![1; 3 * PIECE_ROWS as usize]));
        let halves = (found.local[0].len() as u32, found.remote[1].len() as u32);
        assert_eq!(halves, (2 * PIECE_ROWS, PIECE_ROWS));
    }

    #[test]
    fn who_is_suspect_or_was_tried_in_vain_is_asked_last_or_not_at_all() {
        let table = table(3, vec![vec![2, 4], vec![2]]);
        let all = [Health::Live, Health::Suspect, Health::Live];
        let found = fill(&routing(&table, &all), &Excluded::default(), &routes(&[0, 1]));
        assert_eq!(found.remote, [vec![], vec![1], vec![0]], "the sole holder is waited for");

        let routing = routing(&table, &[Health::Live; 3]);
        let mut excluded = Excluded::default();
        excluded.add(0, 1, Exclusion::Missing);
        excluded.add(1, 1, Exclusion::Missing);
        let found = fill(&routing, &excluded, &routes(&[0, 1]));
        assert_eq!((found.remote[2].as_slice(), found.stuck), (&[0][..], Some(1)));
        excluded.forgive();
        assert_eq!(fill(&routing, &excluded, &routes(&[1])).remote[1], [0]);
        excluded.add(1, 1, Exclusion::Failed);
        excluded.forgive();
        assert!(excluded.failed(1) && !excluded.failed(0));
    }

    #[test]
    fn an_orphan_goes_to_whom_it_is_dealt_and_then_around() {
        // worker 2 holds more than worker 1, and worker 0 most: the orphans of worker 3 go to worker 1
        let copies = vec![vec![0], vec![1], vec![0], vec![2], vec![4], vec![5], vec![6]];
        let table = table(4, copies);
        let routing = routing(&table, &[Health::Live, Health::Live, Health::Live, Health::Lost]);
        let mut excluded = Excluded::default();
        let asked = |excluded: &Excluded| {
            let found = fill(&routing, excluded, &routes(&[6]));
            let remote = found.remote.iter().position(|list| !list.is_empty());
            (remote, found.adopt.clone(), found.stuck)
        };
        assert_eq!(asked(&excluded), (Some(1), vec![], None));
        excluded.add(6, 1, Exclusion::Missing);
        assert_eq!(asked(&excluded), (Some(2), vec![], None));
        excluded.add(6, 2, Exclusion::Missing);
        assert_eq!(asked(&excluded), (None, vec![(0, 6)], None), "this worker itself");
        excluded.add(6, 0, Exclusion::Missing);
        assert_eq!(asked(&excluded), (None, vec![], Some(0)));
    }

    #[test]
    fn what_is_asked_or_done_is_not_given_away_again() {
        let table = table(2, vec![vec![2], vec![0]]);
        let routing = routing(&table, &[Health::Live; 2]);
        let mut assignment = Assignment::default();
        let states = [RouteState::Asked, RouteState::Done, RouteState::Open];
        assignment.fill(&routing, &Excluded::default(), 2, 0, &routes(&[0, 1, 0]), &states);
        assert_eq!((assignment.remote[1].as_slice(), assignment.local[0].len()), (&[2][..], 0));
    }
}
