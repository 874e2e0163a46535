//! Orphans: who loads which (pure), and what this worker has loaded of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::Table;
use crate::sync::lock;

/// Loads experts beyond the placement, and drops them again. Implemented by the worker.
///
/// Both calls block until it is done, come from one thread at a time, and may come again for what is done already.
pub trait Adopter: Send + Sync {
    /// Loads `experts`, (layer, expert) pairs, at the worker's own rank number `rank`, from 0.
    ///
    /// # Errors
    /// Why not, for people: no room, a tensor. Then none of them may be missing that was there before.
    fn adopt(&self, rank: u32, experts: &[(u32, u32)]) -> Result<(), String>;

    /// Drops adopted copies, at whichever rank they are.
    fn release(&self, experts: &[(u32, u32)]);
}

/// An orphan and the rank that is to load it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deal {
    pub rank: u32,
    pub layer: u32,
    pub expert: u32,
}

/// Deals the orphans to the ranks of workers that are not lost, in order of layer and expert: each to the worker with
/// most room, there to the rank with the fewest copies. It follows from placement and losses alone, so that every
/// survivor that sees the same losses deals the same. What nobody has room for is left out.
///
/// `lost` is by worker index. A suspect worker is dealt to as well: who is suspect changes too fast to agree on.
pub(crate) fn deal(table: &Table, lost: &[bool]) -> Vec<Deal> {
    if !lost.contains(&true) {
        return Vec::new();
    }
    let is_lost = |worker: u32| lost.get(worker as usize).copied().unwrap_or(true);
    let workers = table.workers();
    let per_worker = table.ranks_per_worker();
    let mut copies = vec![0u64; workers.len() * per_worker as usize];
    for (_, _, ranks) in table.experts() {
        ranks.iter().for_each(|&rank| copies[rank as usize] += 1);
    }
    let ranks_of = |worker: usize| worker * per_worker as usize..(worker + 1) * per_worker as usize;
    // in copies; without a limit there is more room than any limit gives, and less of it with every copy
    let mut room: Vec<Option<u64>> = workers
        .iter()
        .map(|entry| {
            let held: u64 = copies[ranks_of(entry.index as usize)].iter().sum();
            let limited = entry.expert_bytes_limit > 0 && table.expert_bytes() > 0;
            let limit = if limited { entry.expert_bytes_limit / table.expert_bytes() } else { u64::MAX / 2 };
            (!is_lost(entry.index)).then(|| limit.saturating_sub(held))
        })
        .collect();
    let mut deals = Vec::new();
    for (layer, expert, ranks) in table.experts() {
        if !ranks.iter().all(|&rank| is_lost(table.worker_of(rank))) {
            continue;
        }
        // the first of equals, as max_by_key takes the last
        let roomiest =
            (0..workers.len()).rev().filter(|&worker| room[worker] > Some(0)).max_by_key(|&w| room[w]);
        let Some(worker) = roomiest else { break };
        let Some(rank) = ranks_of(worker).min_by_key(|&rank| copies[rank]) else { break };
        copies[rank] += 1;
        room[worker] = room[worker].map(|left| left - 1);
        deals.push(Deal { rank: rank as u32, layer, expert });
    }
    deals
}

/// One adopted copy.
#[derive(Clone, Copy, Debug)]
struct Copy {
    rank: u32,
    /// When a worker that sees no other copy last asked for it.
    wanted: Instant,
    /// Since when it is no longer needed here.
    free: Option<Instant>,
}

/// What becomes of an adopted copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No rank of the placement has it live.
    Needed,
    /// One has.
    Spare,
    /// The target names it here.
    Prepared,
    /// The placement in force names it here: it is adopted no more.
    Placed,
}

/// What this worker has adopted.
#[derive(Default)]
pub(crate) struct Adoption {
    hook: Mutex<Option<Arc<dyn Adopter>>>,
    /// Held while the hook works.
    working: Mutex<()>,
    copies: RwLock<HashMap<(u32, u32), Copy>>,
    /// Orphans in the eyes of peers, which they want to be loaded here, and when they said so.
    requested: Mutex<BTreeMap<(u32, u32), Instant>>,
    /// What pongs tell; replaced whenever it changes, so that a pointer tells news from old.
    told: ArcSwap<Vec<(u32, u32)>>,
}

impl Adoption {
    pub(crate) fn set_hook(&self, hook: Arc<dyn Adopter>) {
        *lock(&self.hook) = Some(hook);
    }

    pub(crate) fn told(&self) -> Arc<Vec<(u32, u32)>> {
        self.told.load_full()
    }

    /// Rank of an adopted copy.
    pub(crate) fn rank_of(&self, layer: u32, expert: u32) -> Option<u32> {
        self.read(|copies| copies.get(&(layer, expert)).map(|copy| copy.rank))
    }

    pub(crate) fn count(&self) -> usize {
        self.read(HashMap::len)
    }

    fn read<T>(&self, f: impl FnOnce(&HashMap<(u32, u32), Copy>) -> T) -> T {
        f(&self.copies.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, f: impl FnOnce(&mut HashMap<(u32, u32), Copy>)) {
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        f(&mut copies);
        let mut told: Vec<_> = copies.keys().copied().collect();
        told.sort_unstable();
        if **self.told.load() != told {
            self.told.store(Arc::new(told));
        }
    }

    /// A peer wants these to be here. True if that is something to do.
    pub(crate) fn request(&self, pairs: &[(u32, u32)], now: Instant) -> bool {
        let mut requested = lock(&self.requested);
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        for &pair in pairs {
            match copies.get_mut(&pair) {
                Some(copy) => copy.wanted = now,
                None => is_new |= requested.insert(pair, now).is_none(),
            }
        }
        is_new
    }

    /// What peers wanted within the last `within`, and is not adopted.
    pub(crate) fn requested(&self, within: Duration, now: Instant) -> Vec<(u32, u32)> {
        let mut requested = lock(&self.requested);
        requested.retain(|pair, at| {
            now.saturating_duration_since(*at) < within && self.read(|copies| !copies.contains_key(pair))
        });
        requested.keys().copied().collect()
    }

    /// Loads the copies that are not adopted yet, all of one rank; the hook works for one caller at a time. The ones
    /// that could not be loaded come back with the reason. True if anything was loaded.
    pub(crate) fn adopt(&self, rank: u32, experts: &[(u32, u32)], now: Instant) -> Result<bool, Refused> {
        let _working = lock(&self.working);
        let absent: Vec<_> =
            self.read(|copies| experts.iter().copied().filter(|pair| !copies.contains_key(pair)).collect());
        let mut refused = Refused::default();
        let mut loaded = Vec::new();
        if !absent.is_empty() {
            match lock(&self.hook).clone() {
                None => refused.all(&absent, "this worker adopts nothing"),
                Some(hook) => load(&*hook, rank, &absent, &mut loaded, &mut refused),
            }
        }
        let any = !loaded.is_empty();
        self.change(|copies| {
            for pair in loaded {
                copies.insert(pair, Copy { rank, wanted: now, free: None });
            }
            for pair in experts {
                if let Some(copy) = copies.get_mut(pair) {
                    copy.wanted = now;
                }
            }
        });
        if refused.experts.is_empty() { Ok(any) } else { Err(refused) }
    }

    /// Notes what has become of the adopted copies and drops those that nobody has needed for `after`. Returns
    /// whether anything changed, and when to look again.
    pub(crate) fn settle(
        &self,
        fate: impl Fn(u32, u32) -> Fate,
        after: Duration,
        now: Instant,
        dropping: impl FnOnce(),
    ) -> (bool, Option<Instant>) {
        if self.count() == 0 {
            return (false, None);
        }
        let _working = lock(&self.working);
        let (mut gone, mut next) = (Vec::new(), None::<Instant>);
        let before = self.count();
        self.change(|copies| {
            copies.retain(|&(layer, expert), copy| {
                copy.free = match fate(layer, expert) {
                    Fate::Needed | Fate::Prepared => None,
                    Fate::Placed => return false,
                    Fate::Spare => copy.free.or(Some(now)),
                };
                let Some(free) = copy.free else { return true };
                let due = free.max(copy.wanted) + after;
                if due <= now {
                    gone.push((layer, expert));
                    return false;
                }
                next = Some(next.map_or(due, |next| next.min(due)));
                true
            });
        });
        if !gone.is_empty() {
            // nobody is sent to them any more before they go
            dropping();
            gone.sort_unstable();
            if let Some(hook) = lock(&self.hook).clone() {
                hook.release(&gone);
            }
        }
        (before != self.count(), next)
    }
}

/// Copies that were not loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    pub experts: Vec<(u32, u32)>,
    pub reason: String,
}

impl Refused {
    fn all(&mut self, experts: &[(u32, u32)], reason: &str) {
        self.experts.extend_from_slice(experts);
        reason.clone_into(&mut self.reason);
    }
}

/// All at once, or, if that fails, one by one: some may fit.
fn load(
    hook: &dyn Adopter,
    rank: u32,
    experts: &[(u32, u32)],
    loaded: &mut Vec<(u32, u32)>,
    refused: &mut Refused,
) {
    match hook.adopt(rank, experts) {
        Ok(()) => loaded.extend_from_slice(experts),
        Err(reason) if experts.len() == 1 => refused.all(experts, &reason),
        Err(_) => experts.chunks(1).for_each(|one| load(hook, rank, one, loaded, refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, WorkerEntry};
    use proptest::prelude::*;

    fn table(limits: &[u64], expert_bytes: u64, layers: Vec<Vec<Vec<u32>>>) -> Table {
        let worker = |(index, &limit): (usize, &u64)| WorkerEntry {
            index: index as u32,
            uid: format!("u{index}"),
            expert_bytes_limit: limit,
            ..WorkerEntry::default()
        };
        Table::new(Placement {
            epoch: 1,
            ranks_per_worker: 2,
            workers: limits.iter().enumerate().map(worker).collect(),
            layers,
            expert_bytes,
        })
        .unwrap()
    }

    #[test]
    fn orphans_go_where_there_is_most_room() {
        // worker 2 (ranks 4, 5) holds experts 0..4 alone; worker 0 has room for 5 copies, worker 1 for 3
        let layer = vec![vec![4], vec![4], vec![5], vec![5, 4], vec![0], vec![2]];
        let table = table(&[60, 40, 90], 10, vec![layer]);
        let deals = deal(&table, &[false, false, true]);
        let dealt: Vec<(u32, u32)> = deals.iter().map(|deal| (deal.expert, deal.rank)).collect();
        assert_eq!(dealt, [(0, 1), (1, 0), (2, 1), (3, 3)]);
        assert!(deal(&table, &[false; 3]).is_empty());
        assert!(deal(&table, &[true; 3]).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let table = table(&[20, 90], 10, vec![vec![vec![2], vec![2], vec![3], vec![0]]]);
        let deals = deal(&table, &[false, true]);
        assert_eq!(deals, [Deal { rank: 1, layer: 0, expert: 0 }]);
    }

    prop_compose! {
        fn schedule()(workers in 1usize..6, layers in 1usize..4, experts in 1usize..12)(
            limits in prop::collection::vec(0u64..12, workers),
            lost in prop::collection::vec(any::<bool>(), workers),
            copies in prop::collection::vec(
                prop::collection::vec(prop::collection::btree_set(0..workers as u32 * 2, 1..3), experts), layers),
        ) -> (Table, Vec<bool>, Vec<u64>) {
            let layers = copies.into_iter().map(|experts| experts.into_iter().map(|set| set.into_iter().collect()).collect());
            (table(&limits, 1, layers.collect()), lost, limits)
        }
    }

    proptest! {
        #[test]
        fn every_orphan_is_dealt_once_within_the_limits((table, lost, limits) in schedule()) {
            let deals = deal(&table, &lost);
            prop_assert_eq!(&deals, &deal(&table, &lost));
            let orphans: Vec<(u32, u32)> = table.experts()
                .filter(|(_, _, ranks)| ranks.iter().all(|&rank| lost[table.worker_of(rank) as usize]))
                .map(|(layer, expert, _)| (layer, expert)).collect();
            let dealt: Vec<(u32, u32)> = deals.iter().map(|deal| (deal.layer, deal.expert)).collect();
            prop_assert_eq!(&orphans[..dealt.len()], &dealt[..], "in order, each once");
            let mut full = true;
            for (worker, &limit) in limits.iter().enumerate() {
                let mine = |rank: u32| table.worker_of(rank) as usize == worker;
                let held = (0..2).map(|rank| table.of_rank(worker as u32 * 2 + rank).count() as u64).sum::<u64>();
                let got = deals.iter().filter(|deal| mine(deal.rank)).count() as u64;
                prop_assert!(got == 0 || (!lost[worker] && (limit == 0 || held + got <= limit)));
                full &= lost[worker] || (limit > 0 && held + got >= limit);
            }
            prop_assert!(dealt.len() == orphans.len() || full, "nobody has room left");
        }
    }

    /// Has room for so many copies.
    struct Shelf(usize, Mutex<Vec<(u32, u32)>>);

    impl Adopter for Shelf {
        fn adopt(&self, _: u32, experts: &[(u32, u32)]) -> Result<(), String> {
            let mut held = lock(&self.1);
            if held.len() + experts.len() > self.0 {
                return Err("no room".into());
            }
            held.extend_from_slice(experts);
            Ok(())
        }

        fn release(&self, experts: &[(u32, u32)]) {
            lock(&self.1).retain(|pair| !experts.contains(pair));
        }
    }

    #[test]
    fn copies_are_loaded_once_and_dropped_when_they_were_long_enough_spare() {
        let adoption = Adoption::default();
        let start = Instant::now();
        assert_eq!(adoption.adopt(0, &[(0, 0)], start).unwrap_err().reason, "this worker adopts nothing");
        let shelf = Arc::new(Shelf(3, Mutex::default()));
        adoption.set_hook(Arc::clone(&shelf) as Arc<dyn Adopter>);
        assert_eq!(adoption.adopt(1, &[(0, 0), (0, 1)], start), Ok(true));
        assert_eq!(adoption.adopt(1, &[(0, 0)], start), Ok(false));
        let refused = adoption.adopt(0, &[(0, 2), (0, 3)], start).unwrap_err();
        assert_eq!((refused.experts, refused.reason.as_str()), (vec![(0, 3)], "no room"), "one of them fits");
        assert_eq!((adoption.rank_of(0, 1), adoption.rank_of(0, 2)), (Some(1), Some(0)));
        assert_eq!(*adoption.told(), [(0, 0), (0, 1), (0, 2)]);

        let after = Duration::from_secs(10);
        let at = |seconds| start + Duration::from_secs(seconds);
        let fate = |_: u32, expert: u32| [Fate::Needed, Fate::Spare, Fate::Prepared][expert as usize];
        assert_eq!(adoption.settle(fate, after, at(5), || ()), (false, Some(at(15))));
        adoption.adopt(1, &[(0, 1)], at(8)).unwrap();
        assert_eq!(adoption.settle(fate, after, at(15), || ()), (false, Some(at(18))), "it was wanted since");
        let mut told = false;
        assert_eq!(adoption.settle(fate, after, at(18), || told = true), (true, None));
        assert!(told);
        assert_eq!(*lock(&shelf.1), [(0, 0), (0, 2)]);
        assert_eq!(adoption.settle(|_, _| Fate::Placed, after, at(19), || ()), (true, None));
        assert_eq!(lock(&shelf.1).len(), 2, "what the placement has is not released");
        assert!(adoption.told().is_empty());
    }
}
