//! Who can compute what at this moment: placement in force and health of the peers, worked out once for many
//! exchanges. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use crate::Table;
use crate::adoption::{Deal, deal};
use crate::coverage::Cover;
use crate::health::Health;
use crate::peer::Pairs;

/// Somebody who can compute an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub worker: u32,
    /// Index among the worker's ranks; says something only of this worker itself.
    pub rank: u32,
}

/// How an expert is, by the placement's own ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// One of its ranks is live.
    Live,
    /// None is live, one is suspect.
    Suspect,
    /// All are lost.
    Orphan,
}

/// What is seen of one worker of the placement.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub health: Health,
    /// Whether it is suspect for nothing but its silence.
    pub only_silent: bool,
    /// What it has adopted.
    pub adopted: Arc<Pairs>,
}

/// Everything that routing follows from.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub table: &'a Table,
    /// Index of this worker, if it is a member.
    pub me: Option<u32>,
    /// By worker index; this worker's own health is [`Health::Live`] if it is a member.
    pub seen: &'a [Seen],
    /// Rank, among this worker's, of a copy that it has adopted.
    pub adopted_here: &'a dyn Fn(u32, u32) -> Option<u32>,
}

/// Choices for every expert; see [`Choice`].
#[derive(Debug, Default)]
pub(crate) struct Routing {
    /// By layer: number of its first expert among all.
    layers: Vec<usize>,
    standing: Vec<Standing>,
    /// By expert, one more at the end: where its targets begin.
    live_from: Vec<u32>,
    live: Vec<Target>,
    other_from: Vec<u32>,
    other: Vec<Target>,
    health: Vec<Health>,
    me: Option<u32>,
    /// Orphans that are dealt to this worker and live nowhere: rank among its own, layer, expert.
    pub share: Vec<Deal>,
    /// Orphans that are dealt to others: worker, (layer, expert).
    pub elsewhere: Vec<(u32, (u32, u32))>,
    /// Experts without a live copy.
    pub uncovered: u32,
    /// Of these, those that have a holder which is only silent.
    pub silent: u32,
    /// Live copies of the expert that has the fewest.
    pub min_live: u32,
}

/// Who can compute one expert.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    pub standing: Standing,
    /// Live workers that have a copy, each once, preferred first.
    pub live: &'a [Target],
    /// Suspect: workers that have a copy. Orphan: the worker that it is dealt to, if anybody has room.
    pub other: &'a [Target],
}

impl Routing {
    pub(crate) fn build(view: View<'_>) -> Self {
        let View { table, me, seen, adopted_here } = view;
        let lost: Vec<bool> = seen.iter().map(|worker| worker.health == Health::Lost).collect();
        let mut built = Self {
            health: seen.iter().map(|worker| worker.health).collect(),
            me,
            min_live: u32::MAX,
            ..Self::default()
        };
        let orphans = deal(table, &lost);
        let mut orphans = orphans.iter().peekable();
        let adopters: Vec<u32> = (0..seen.len() as u32)
            .filter(|&worker| {
                let Seen { health, adopted, .. } = &seen[worker as usize];
                *health == Health::Live && Some(worker) != me && !adopted.is_empty()
            })
            .collect();
        let only_silent: Vec<u32> =
            (0..seen.len() as u32).filter(|&worker| seen[worker as usize].only_silent).collect();
        let mut count = 0;
        for layer in table.experts_by_layer() {
            built.layers.push(count);
            count += layer;
        }
        built.layers.push(count);
        for (layer, expert, ranks) in table.experts() {
            built.live_from.push(built.live.len() as u32);
            built.other_from.push(built.other.len() as u32);
            let dealt = orphans.next_if(|deal| (deal.layer, deal.expert) == (layer, expert));
            let copies = built.add_live(&view, ranks);
            let begun = *built.live_from.last().unwrap_or(&0) as usize;
            let mut adopted = 0;
            if let Some(rank) = adopted_here(layer, expert)
                && let Some(worker) = me
                && built.live[begun..].iter().all(|target| target.worker != worker)
            {
                built.live.push(Target { worker, rank });
                adopted += 1;
            }
            let standing = if copies > 0 {
                Standing::Live
            } else if ranks.iter().any(|&rank| health_of(table, seen, rank) == Health::Suspect) {
                built.add_suspects(&view, ranks);
                Standing::Suspect
            } else {
                Standing::Orphan
            };
            if standing != Standing::Live {
                for &worker in adopters
                    .iter()
                    .filter(|&&worker| seen[worker as usize].adopted.contains(&(layer, expert)))
                {
                    built.live.push(Target { worker, rank: 0 });
                    adopted += 1;
                }
            }
            if let Some(deal) = dealt.filter(|_| standing == Standing::Orphan) {
                let (worker, rank) = (table.worker_of(deal.rank), deal.rank % table.ranks_per_worker());
                built.other.push(Target { worker, rank });
                if Some(worker) != me {
                    built.elsewhere.push((worker, (layer, expert)));
                } else if adopted == 0 {
                    built.share.push(Deal { rank, ..*deal });
                }
            }
            built.standing.push(standing);
            if copies + adopted == 0 {
                let has = |worker: &u32| {
                    ranks.iter().any(|&rank| table.worker_of(rank) == *worker)
                        || seen[*worker as usize].adopted.contains(&(layer, expert))
                };
                built.uncovered += 1;
                built.silent += u32::from(only_silent.iter().any(has));
            }
            built.min_live = built.min_live.min(copies + adopted);
        }
        built.live_from.push(built.live.len() as u32);
        built.other_from.push(built.other.len() as u32);
        if count == 0 {
            built.min_live = 0;
        }
        built
    }

    /// Adds each live worker of `ranks` once; returns the copies.
    fn add_live(&mut self, view: &View<'_>, ranks: &[u32]) -> u32 {
        let begun = self.live.len();
        let mut copies = 0;
        for &rank in ranks.iter().filter(|&&rank| health_of(view.table, view.seen, rank) == Health::Live) {
            copies += 1;
            let worker = view.table.worker_of(rank);
            if self.live[begun..].iter().all(|target| target.worker != worker) {
                self.live.push(Target { worker, rank: rank % view.table.ranks_per_worker() });
            }
        }
        copies
    }

    fn add_suspects(&mut self, view: &View<'_>, ranks: &[u32]) {
        let begun = self.other.len();
        for &rank in ranks.iter().filter(|&&rank| health_of(view.table, view.seen, rank) == Health::Suspect) {
            let worker = view.table.worker_of(rank);
            if self.other[begun..].iter().all(|target| target.worker != worker) {
                self.other.push(Target { worker, rank: rank % view.table.ranks_per_worker() });
            }
        }
    }

    fn number(&self, layer: u32, expert: u32) -> Option<usize> {
        let first = *self.layers.get(layer as usize)?;
        let end = *self.layers.get(layer as usize + 1)?;
        let number = first + expert as usize;
        (number < end).then_some(number)
    }

    /// Experts of a layer; 0 for one that the placement does not know.
    pub(crate) fn experts_of(&self, layer: u32) -> usize {
        let ends = self.layers.get(layer as usize).zip(self.layers.get(layer as usize + 1));
        ends.map_or(0, |(first, end)| end - first)
    }

    /// All experts of all layers.
    pub(crate) fn experts(&self) -> usize {
        self.standing.len()
    }

    /// How all of them are together.
    pub(crate) fn cover(&self) -> Cover {
        match self.uncovered {
            0 => Cover::Whole,
            uncovered if uncovered == self.silent => Cover::Silent,
            _ => Cover::Bare,
        }
    }

    /// Who can compute an expert; `None` for one that the placement does not know.
    pub(crate) fn choice(&self, layer: u32, expert: u32) -> Option<Choice<'_>> {
        let number = self.number(layer, expert)?;
        let part = |from: &[u32]| from[number] as usize..from[number + 1] as usize;
        Some(Choice {
            standing: self.standing[number],
            live: &self.live[part(&self.live_from)],
            other: &self.other[part(&self.other_from)],
        })
    }

    /// Whether an asker should have an expert loaded that nobody has.
    pub(crate) fn is_orphan(&self, layer: u32, expert: u32) -> bool {
        self.number(layer, expert).is_some_and(|number| self.standing[number] == Standing::Orphan)
    }

    pub(crate) fn standing(&self, layer: u32, expert: u32) -> Option<Standing> {
        self.number(layer, expert).map(|number| self.standing[number])
    }

    /// Index of this worker, if it is a member.
    pub(crate) fn me(&self) -> Option<u32> {
        self.me
    }

    /// Health of every worker, by index.
    pub(crate) fn health(&self) -> &[Health] {
        &self.health
    }
}

fn health_of(table: &Table, seen: &[Seen], rank: u32) -> Health {
    seen.get(table.worker_of(rank) as usize).map_or(Health::Lost, |worker| worker.health)
}

/// A [`Seen`] without anything adopted, and not suspect for its silence.
pub(crate) fn seen(health: Health) -> Seen {
    Seen { health, only_silent: false, adopted: Arc::new(HashSet::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, WorkerEntry};

    fn table() -> Table {
        let worker = |index| WorkerEntry { index, uid: format!("u{index}"), ..WorkerEntry::default() };
        Table::new(Placement {
            epoch: 1,
            ranks_per_worker: 2,
            workers: (0..3).map(worker).collect(),
            layers: vec![vec![vec![0], vec![3]], vec![vec![5, 2, 4], vec![4, 1]]],
            expert_bytes: 0,
        })
        .unwrap()
    }

    fn build(table: &Table, seen: &[Seen], here: &dyn Fn(u32, u32) -> Option<u32>) -> Routing {
        Routing::build(View { table, me: Some(0), seen, adopted_here: here })
    }

    const ALL: [Health; 3] = [Health::Live; 3];

    fn all(health: [Health; 3]) -> Vec<Seen> {
        health.into_iter().map(seen).collect()
    }

    fn workers(targets: &[Target]) -> Vec<u32> {
        targets.iter().map(|target| target.worker).collect()
    }

    #[test]
    fn live_copies_are_listed_by_worker_and_counted_by_rank() {
        let table = table();
        let routing = build(&table, &all(ALL), &|_, _| None);
        let choice = routing.choice(1, 0).unwrap();
        assert_eq!(workers(choice.live), [2, 1], "two ranks of a worker are one target");
        assert_eq!(routing.choice(1, 1).unwrap().live[1], Target { worker: 0, rank: 1 });
        assert_eq!((routing.uncovered, routing.min_live), (0, 1));
        assert!(routing.choice(0, 2).is_none() && routing.choice(2, 0).is_none());
        assert_eq!((routing.experts_of(0), routing.experts_of(2), routing.experts()), (2, 0, 4));
    }

    #[test]
    fn a_suspect_holder_stays_a_choice_and_a_lost_one_leaves_an_orphan() {
        let table = table();
        let routing = build(&table, &all([Health::Live, Health::Suspect, Health::Live]), &|_, _| None);
        let choice = routing.choice(0, 1).unwrap();
        assert_eq!(
            (choice.standing, workers(choice.live), workers(choice.other)),
            (Standing::Suspect, vec![], vec![1])
        );
        assert_eq!((routing.uncovered, routing.min_live), (1, 0));
        assert!(routing.share.is_empty());

        let routing = build(&table, &all([Health::Live, Health::Lost, Health::Lost]), &|_, _| None);
        assert!(routing.is_orphan(0, 1) && routing.is_orphan(1, 0) && !routing.is_orphan(1, 1));
        assert_eq!(workers(routing.choice(0, 1).unwrap().other), [0]);
        let share: Vec<_> = routing.share.iter().map(|deal| (deal.layer, deal.expert)).collect();
        assert_eq!(share, [(0, 1), (1, 0)]);
        let health = all([Health::Live, Health::Lost, Health::Live]);
        let other = View { table: &table, me: Some(2), seen: &health, adopted_here: &|_, _| None };
        assert_eq!(Routing::build(other).elsewhere, [(0, (0, 1))], "worker 0 has fewer copies");
        assert_eq!(routing.uncovered, 2);
    }

    #[test]
    fn adopted_copies_count_wherever_they_are() {
        let table = table();
        let mut seen = all([Health::Live, Health::Lost, Health::Live]);
        seen[2].adopted = Arc::new([(0, 1)].into());
        let routing = build(&table, &seen, &|_, _| None);
        assert_eq!(workers(routing.choice(0, 1).unwrap().live), [2]);
        assert_eq!((routing.uncovered, routing.min_live), (0, 1));
        assert!(routing.share.is_empty(), "somebody has it");
        seen[2].health = Health::Suspect;
        let routing = build(&table, &seen, &|layer, expert| ((layer, expert) == (0, 1)).then_some(1));
        assert_eq!(routing.choice(0, 1).unwrap().live, [Target { worker: 0, rank: 1 }]);
        assert!(routing.is_orphan(0, 1), "adopted, and an orphan all the same");
    }

    #[test]
    fn a_gap_is_silent_while_each_expert_has_a_holder_that_is_only_silent() {
        let table = table();
        let cover = |seen: &[Seen]| {
            let routing = build(&table, seen, &|_, _| None);
            (routing.uncovered, routing.silent, routing.cover())
        };
        let mut seen = all([Health::Live, Health::Suspect, Health::Live]);
        assert_eq!(cover(&all(ALL)), (0, 0, Cover::Whole));
        assert_eq!(cover(&seen), (1, 0, Cover::Bare), "its connection was closed, or it never was there");
        seen[1].only_silent = true;
        assert_eq!(cover(&seen), (1, 1, Cover::Silent));
        seen[2].health = Health::Suspect;
        assert_eq!(cover(&seen), (2, 2, Cover::Silent), "one of two holders is enough");
        seen[1] = super::seen(Health::Lost);
        seen[2].only_silent = true;
        assert_eq!(cover(&seen), (2, 1, Cover::Bare), "one expert has nobody");
        seen[2].adopted = Arc::new([(0, 1)].into());
        assert_eq!(cover(&seen), (2, 2, Cover::Silent), "adopted copies count as well");
        seen[2].health = Health::Live;
        seen[2].only_silent = false;
        assert_eq!(cover(&seen), (0, 0, Cover::Whole));
    }

    #[test]
    fn a_worker_that_is_no_member_sees_everything_and_holds_nothing() {
        let table = table();
        let seen = all([Health::Lost, Health::Live, Health::Live]);
        let routing =
            Routing::build(View { table: &table, me: None, seen: &seen, adopted_here: &|_, _| Some(0) });
        assert!(routing.is_orphan(0, 0) && routing.share.is_empty());
        assert_eq!(workers(routing.choice(1, 1).unwrap().live), [2]);
        assert_eq!(routing.me(), None);
    }
}
