//! What holds for every placement, whatever the group and its history.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]

use belay_operator::placement::{
    Aim, Copies, Fleet, Load, Model, PlacementError, Planned, Worker, imbalance_percent, moves, plan,
};
use belay_proto::admin::LayerPlacement;
use proptest::prelude::*;

const BYTES: u64 = 100;

/// Numbers that look random, the same for a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        (mixed ^ (mixed >> 33)) % below.max(1)
    }
}

/// Few experts get most tokens, others in each layer.
fn skewed(model: &Model, seed: u64) -> Load {
    let mut dice = Dice(seed);
    let layer = |dice: &mut Dice| {
        let mut weights: Vec<u64> = (0..u64::from(model.experts)).map(|n| 9_000_000 / (n + 1)).collect();
        for index in (1..weights.len()).rev() {
            weights.swap(index, dice.next(index as u64 + 1) as usize);
        }
        weights
    };
    Load::new((0..model.layers).map(|_| layer(&mut dice)).collect())
}

/// A group: what is to be placed, and where.
#[derive(Clone, Debug)]
struct Case {
    model: Model,
    copies: Copies,
    fleet: Fleet,
    load: Option<u64>,
}

impl Case {
    fn load(&self) -> Option<Load> {
        self.load.map(|seed| skewed(&self.model, seed))
    }

    fn plan(&self, current: Option<&[LayerPlacement]>, aim: Aim) -> Planned {
        plan(&self.model, &self.copies, &self.fleet, self.load().as_ref(), current, aim).unwrap()
    }

    fn usable_workers(&self) -> usize {
        self.fleet.workers.iter().filter(|worker| worker.usable).count()
    }

    fn worker(&self, rank: u32) -> usize {
        (rank / self.fleet.ranks_per_worker) as usize
    }

    /// Workers that have an expert, those that are usable.
    fn workers(&self, ranks: &[u32]) -> usize {
        different(ranks.iter().map(|&rank| self.worker(rank)).filter(|&w| self.fleet.workers[w].usable))
    }

    fn usable_copies(&self, ranks: &[u32]) -> usize {
        ranks.iter().filter(|&&rank| self.fleet.usable(rank)).count()
    }

    /// What is missing of what is asked for, counted by its definition.
    fn missing(&self, layers: &[LayerPlacement]) -> u32 {
        let mut missing = 0;
        for layer in layers {
            let mut extra = 0;
            for copies in &layer.experts {
                let possible = (self.copies.min as usize).min(self.usable_workers());
                let base = self.workers(&copies.ranks).min(possible);
                missing += self.copies.min as usize - base;
                extra += self.usable_copies(&copies.ranks) - base;
            }
            missing += (self.copies.redundant as usize).saturating_sub(extra);
        }
        missing as u32
    }

    /// Bytes on each worker while a change goes on.
    fn bytes(&self, from: &[LayerPlacement], to: &[LayerPlacement]) -> Vec<u64> {
        let mut bytes = vec![0; self.fleet.workers.len()];
        let held = from.iter().flat_map(|layer| &layer.experts).flat_map(|copies| &copies.ranks);
        held.copied()
            .chain(moves(from, to).into_iter().map(|to_load| to_load.rank))
            .for_each(|rank| bytes[self.worker(rank)] += self.model.expert_bytes);
        bytes
    }

    fn check(&self, planned: &Planned, current: &[LayerPlacement]) -> Result<(), TestCaseError> {
        prop_assert_eq!(planned.layers.len() as u32, self.model.layers);
        for (index, layer) in planned.layers.iter().enumerate() {
            prop_assert_eq!(layer.experts.len() as u32, self.model.experts);
            for (expert, copies) in layer.experts.iter().enumerate() {
                let ranks = &copies.ranks;
                prop_assert!(!ranks.is_empty());
                prop_assert_eq!(different(ranks.iter().copied()), ranks.len(), "a rank twice: {:?}", ranks);
                prop_assert!(ranks.iter().all(|&rank| rank < self.fleet.ranks()));
                let usable = self.usable_copies(ranks);
                prop_assert!(usable == ranks.len() || usable == 0, "some ranks hold nothing: {:?}", ranks);
                if usable == 0 {
                    prop_assert!(ranks.iter().all(|r| current[index].experts[expert].ranks.contains(r)));
                    prop_assert!(planned.short > 0);
                }
            }
        }
        prop_assert_eq!(&planned.moves, &moves(current, &planned.layers));
        prop_assert_eq!(planned.short, self.missing(&planned.layers));
        let held = self.bytes(current, current);
        let during = self.bytes(current, &planned.layers);
        for (index, worker) in self.fleet.workers.iter().enumerate() {
            if let Some(limit) = worker.bytes_limit {
                prop_assert!(during[index] <= limit.max(held[index]), "worker {}: {:?}", index, during);
            }
        }
        Ok(())
    }

    /// Every expert has the copies that it must have on different workers.
    fn check_base(&self, layers: &[LayerPlacement]) -> Result<(), TestCaseError> {
        for copies in layers.iter().flat_map(|layer| &layer.experts) {
            let possible = (self.copies.min as usize).min(self.usable_workers());
            prop_assert!(self.workers(&copies.ranks) >= possible, "{:?}", copies.ranks);
        }
        Ok(())
    }

    /// That, and a worker has two copies of an expert only if all have one.
    fn check_workers(&self, layers: &[LayerPlacement]) -> Result<(), TestCaseError> {
        self.check_base(layers)?;
        for copies in layers.iter().flat_map(|layer| &layer.experts) {
            let on = self.workers(&copies.ranks);
            prop_assert!(on == copies.ranks.len() || on == self.usable_workers(), "{:?}", copies.ranks);
        }
        Ok(())
    }
}

fn different<T: Ord>(items: impl Iterator<Item = T>) -> usize {
    items.collect::<std::collections::BTreeSet<_>>().len()
}

fn percent(case: &Case, layers: &[LayerPlacement]) -> u32 {
    imbalance_percent(layers, case.load().as_ref(), &case.fleet)
}

prop_compose! {
    fn cases(least_workers: u32)(
        workers in least_workers..7, per_worker in 1u32..4, layers in 1u32..4,
    )(
        workers in Just(workers), per_worker in Just(per_worker), layers in Just(layers),
        more in 0u32..20, min in 1u32..4, redundant in 0u32..9,
        places in proptest::collection::vec((0u8..4, 0u8..3), workers as usize),
        load in proptest::option::of(any::<u64>()),
    ) -> Case {
        let worker = |(host, domain): (u8, u8)| Worker {
            host: Some(format!("host-{domain}-{host}")),
            domain: (domain > 0).then(|| format!("pod-{domain}")),
            ..Worker::default()
        };
        Case {
            model: Model { layers, experts: workers * per_worker + more, expert_bytes: BYTES },
            copies: Copies { min, redundant },
            fleet: Fleet { workers: places.into_iter().map(worker).collect(), ranks_per_worker: per_worker },
            load,
        }
    }
}

proptest! {
    #[test]
    fn first_placement_of_one_copy_is_contiguous_ranges(
        layers in 1u32..4, workers in 1u32..9, devices in 1u32..9, extra in 0u32..100,
    ) {
        let (ranks, experts) = (workers * devices, workers * devices + extra);
        let model = Model { layers, experts, expert_bytes: BYTES };
        let fleet = Fleet::new(workers, devices);
        let planned = plan(&model, &Copies::default(), &fleet, None, None, Aim::Repair).unwrap();
        for layer in &planned.layers {
            for (expert, copies) in layer.experts.iter().enumerate() {
                prop_assert_eq!(&copies.ranks, &[expert as u32 * ranks / experts]);
            }
        }
        prop_assert_eq!((planned.moves.len() as u32, planned.short), (layers * experts, 0));
    }

    #[test]
    fn first_placement_has_every_copy_that_workers_allow(case in cases(1), down in any::<u8>()) {
        let mut case = case;
        for (index, worker) in case.fleet.workers.iter_mut().enumerate().skip(1) {
            worker.usable = down >> index & 1 == 0;
        }
        let planned = case.plan(None, Aim::Repair);
        case.check(&planned, &[])?;
        case.check_workers(&planned.layers)?;
        let workers = case.usable_workers() as u32;
        let ranks = workers * case.fleet.ranks_per_worker;
        let min = case.copies.min.min(workers);
        let redundant = case.copies.redundant.min((ranks - min) * case.model.experts);
        let short = (case.copies.min - min) * case.model.experts + case.copies.redundant - redundant;
        prop_assert_eq!(planned.short, short * case.model.layers);
        for layer in &planned.layers {
            let copies: usize = layer.experts.iter().map(|copies| copies.ranks.len()).sum();
            prop_assert_eq!(copies as u32, min * case.model.experts + redundant);
            let even = copies.div_ceil(ranks as usize);
            for rank in 0..case.fleet.ranks() {
                let held = layer.experts.iter().filter(|copies| copies.ranks.contains(&rank)).count();
                // copies that may not share a worker have to go where the others are not
                let room = if min == 1 && redundant == 0 { even } else { case.model.experts as usize };
                prop_assert!(held <= room.max(even + 1), "{} holds {} of {}", rank, held, even);
            }
        }
        prop_assert_eq!(&case.plan(None, Aim::Repair), &planned, "the same again");
    }

    #[test]
    fn copies_are_preferred_evenly(case in cases(1)) {
        let planned = case.plan(None, Aim::Repair);
        for layer in &planned.layers {
            let mut preferred = vec![0u32; case.fleet.ranks() as usize];
            layer.experts.iter().for_each(|copies| preferred[copies.ranks[0] as usize] += 1);
            let even = case.model.experts.div_ceil(case.fleet.ranks());
            if case.load.is_none() {
                prop_assert!(preferred.iter().all(|&count| count <= even + 1), "{:?}", preferred);
            }
        }
    }

    /// The placement fits if the workers together have room for one copy of each, else there is none; what is not
    /// placed is counted.
    #[test]
    fn memory_is_never_exceeded(case in cases(1), seed in any::<u64>(), tight in 1u64..40) {
        let mut case = case;
        let mut dice = Dice(seed);
        let needed = u64::from(case.model.layers * case.model.experts);
        let fair = needed.div_ceil(case.fleet.workers.len() as u64);
        for worker in &mut case.fleet.workers {
            worker.bytes_limit = Some(dice.next(fair * (tight + 10) / 10 + 2) * BYTES + dice.next(BYTES));
        }
        let room: u64 = case.fleet.workers.iter().map(|worker| worker.bytes_limit.unwrap() / BYTES).sum();
        let load = case.load();
        match plan(&case.model, &case.copies, &case.fleet, load.as_ref(), None, Aim::Repair) {
            Ok(planned) => {
                prop_assert!(room >= needed);
                case.check(&planned, &[])?;
                let placed = planned.moves.len() as u64;
                let asked = needed * u64::from(case.copies.min)
                    + u64::from(case.copies.redundant * case.model.layers);
                prop_assert_eq!(placed + u64::from(planned.short), asked);
                let again = case.plan(Some(&planned.layers), Aim::Rebalance { most_moves: 20 });
                case.check(&again, &planned.layers)?;
            }
            Err(PlacementError::DoesNotFit { bytes, allowed, worker, worker_allowed, .. }) => {
                prop_assert!(room < needed);
                prop_assert_eq!((bytes, allowed), (needed * BYTES, room * BYTES));
                let least = case.fleet.workers.iter().map(|w| w.bytes_limit.unwrap() / BYTES).min().unwrap();
                prop_assert_eq!(worker_allowed, least * BYTES);
                prop_assert_eq!(case.fleet.workers[worker as usize].bytes_limit.unwrap() / BYTES, least);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn what_is_as_asked_stays_as_it_is(case in cases(1), other_load in any::<u64>()) {
        let mut case = case;
        let planned = case.plan(None, Aim::Repair);
        for (aim, load) in [(Aim::Refill, case.load), (Aim::Repair, Some(other_load))] {
            case.load = load;
            let again = case.plan(Some(&planned.layers), aim);
            prop_assert_eq!(&again.layers, &planned.layers);
            prop_assert!(again.moves.is_empty() && again.short == planned.short);
        }
    }

    /// A worker is lost: with two copies every expert still has one; the survivors get what is missing and nothing
    /// else; a second look changes nothing.
    #[test]
    fn loss_is_repaired_with_no_needless_move(case in cases(2), lost in any::<usize>()) {
        let mut case = case;
        let before = case.plan(None, Aim::Repair);
        let lost = lost % case.fleet.workers.len();
        case.fleet.workers[lost].usable = false;
        if case.copies.min > 1 {
            let alive = |ranks: &Vec<u32>| ranks.iter().any(|&rank| case.worker(rank) != lost);
            prop_assert!(before.layers.iter().flat_map(|l| &l.experts).all(|copies| alive(&copies.ranks)));
        }
        let missing = case.missing(&before.layers);
        let after = case.plan(Some(&before.layers), Aim::Repair);
        case.check(&after, &before.layers)?;
        case.check_workers(&after.layers)?;
        prop_assert_eq!(after.moves.len() as u32 + after.short, missing);
        for (old, new) in before.layers.iter().zip(&after.layers) {
            for (old, new) in old.experts.iter().zip(&new.experts) {
                let kept: Vec<u32> =
                    old.ranks.iter().copied().filter(|&rank| case.fleet.usable(rank)).collect();
                prop_assert_eq!(&new.ranks[..kept.len()], &kept, "kept, in the same order");
            }
        }
        let again = case.plan(Some(&after.layers), Aim::Repair);
        prop_assert_eq!(&again.layers, &after.layers);
        prop_assert!(again.moves.is_empty());
    }

    /// The lost worker comes back with nothing: it gets its share, and nobody more to do than the busiest had.
    #[test]
    fn worker_that_comes_back_is_filled(case in cases(2), lost in any::<usize>()) {
        let mut case = case;
        let before = case.plan(None, Aim::Repair);
        let lost = lost % case.fleet.workers.len();
        case.fleet.workers[lost].usable = false;
        let without = case.plan(Some(&before.layers), Aim::Repair);
        case.fleet.workers[lost].usable = true;
        let repaired = case.plan(Some(&without.layers), Aim::Repair);
        prop_assert_eq!(repaired.moves.len() as u32 + repaired.short, case.missing(&without.layers));
        let filled = case.plan(Some(&without.layers), Aim::Refill);
        case.check(&filled, &without.layers)?;
        case.check_base(&filled.layers)?;
        prop_assert!(percent(&case, &filled.layers) <= percent(&case, &repaired.layers));
        if case.load.is_none() && case.copies.min == 1 && case.copies.redundant == 0 {
            for layer in &filled.layers {
                let on = |rank: u32| layer.experts.iter().filter(|copies| copies.ranks.contains(&rank)).count();
                let mine = case.fleet.ranks_per_worker;
                let even = case.model.experts / case.fleet.ranks();
                for rank in lost as u32 * mine..(lost as u32 + 1) * mine {
                    prop_assert_eq!(on(rank) as u32, even);
                }
            }
        }
        let again = case.plan(Some(&filled.layers), Aim::Refill);
        prop_assert_eq!(&again.layers, &filled.layers, "once is enough");
    }

    #[test]
    fn rebalance_is_bounded_and_never_worse(
        case in cases(1), load in any::<u64>(), most_moves in prop_oneof![0u32..12, Just(u32::MAX)],
    ) {
        let mut case = case;
        let before = case.plan(None, Aim::Repair);
        case.load = Some(load);
        let after = case.plan(Some(&before.layers), Aim::Rebalance { most_moves });
        case.check(&after, &before.layers)?;
        case.check_workers(&after.layers)?;
        prop_assert!(after.moves.len() <= most_moves as usize, "{} > {}", after.moves.len(), most_moves);
        prop_assert!(percent(&case, &after.layers) <= percent(&case, &before.layers));
        prop_assert_eq!(after.short, before.short);
        prop_assert_eq!(&case.plan(Some(&before.layers), Aim::Rebalance { most_moves }), &after);
    }

    /// Two copies never depend on one host or domain, where hosts and domains are alike.
    #[test]
    fn copies_are_on_other_hosts_and_domains(
        domains in 2u32..5, hosts in 1u32..4, per_host in 1u32..3, devices in 1u32..4, more in 0u32..30,
        load in proptest::option::of(any::<u64>()), redundant in 0u32..5,
    ) {
        let worker = |index: u32| Worker {
            host: Some(format!("h{}", index / per_host)),
            domain: Some(format!("d{}", index / per_host / hosts)),
            ..Worker::default()
        };
        let workers = domains * hosts * per_host;
        let mut case = Case {
            model: Model { layers: 2, experts: workers * devices + more, expert_bytes: BYTES },
            copies: Copies { min: 2, redundant },
            fleet: Fleet { workers: (0..workers).map(worker).collect(), ranks_per_worker: devices },
            load,
        };
        let domain = |rank: u32| rank / devices / per_host / hosts;
        let spread = |layers: &[LayerPlacement]| {
            let mut copies = layers.iter().flat_map(|layer| &layer.experts);
            copies.all(|copies| different(copies.ranks.iter().map(|&rank| domain(rank))) >= 2)
        };
        let planned = case.plan(None, Aim::Repair);
        prop_assert!(spread(&planned.layers));
        case.load = Some(7);
        let shifted = case.plan(Some(&planned.layers), Aim::Rebalance { most_moves: 50 });
        prop_assert!(spread(&shifted.layers), "balance takes no safety away");
    }

    /// Whatever happens, one thing after the other: what holds for one plan holds for all.
    #[test]
    fn history_never_breaks_a_placement(
        case in cases(1), limit in proptest::option::of(12u64..40),
        events in proptest::collection::vec((0u8..6, any::<u64>()), 1..12),
    ) {
        let mut case = case;
        let needed = u64::from(case.model.layers * case.model.experts);
        let fair = needed.div_ceil(case.fleet.workers.len() as u64);
        for worker in &mut case.fleet.workers {
            worker.bytes_limit = limit.map(|tenths| fair * tenths / 10 * BYTES);
        }
        let mut current = case.plan(None, Aim::Repair).layers;
        for (event, value) in events {
            let worker = value as usize % case.fleet.workers.len();
            let aim = match event {
                0 => {
                    case.fleet.workers[worker].usable = false;
                    Aim::Repair
                }
                1 => {
                    case.fleet.workers[worker].usable = true;
                    Aim::Repair
                }
                2 => {
                    case.fleet.workers[worker].usable = true;
                    Aim::Refill
                }
                3 => {
                    case.copies = Copies { min: 1 + (value % 3) as u32, redundant: (value / 3 % 9) as u32 };
                    Aim::Repair
                }
                _ => {
                    case.load = Some(value);
                    Aim::Rebalance { most_moves: (value % 30) as u32 }
                }
            };
            let planned = case.plan(Some(&current), aim);
            case.check(&planned, &current)?;
            if limit.is_none() && case.usable_workers() > 0 {
                let needless = planned.layers.iter().flat_map(|layer| &layer.experts)
                    .any(|copies| case.workers(&copies.ranks) < (case.copies.min as usize).min(case.usable_workers()));
                prop_assert!(!needless, "without limits every copy has a place");
            }
            if let Aim::Rebalance { most_moves } = aim {
                let missing = case.missing(&current);
                prop_assert!(planned.moves.len() as u32 <= most_moves.max(missing));
            } else if aim == Aim::Repair {
                prop_assert!(planned.moves.len() as u32 <= case.missing(&current));
            }
            current = planned.layers;
        }
    }
}

#[test]
fn more_ranks_than_copies_are_refused_with_the_numbers() {
    let model = |experts| Model { layers: 2, experts, expert_bytes: BYTES };
    let try_plan = |model: &Model, copies: Copies| {
        plan(model, &copies, &Fleet::new(2, 4), None, None, Aim::Repair).map(|planned| planned.short)
    };
    let error = try_plan(&model(7), Copies::default()).unwrap_err().to_string();
    for number in ["2 workers", "4 devices", "8 ranks", "7 experts"] {
        assert!(error.contains(number), "{error}");
    }
    assert_eq!(try_plan(&model(8), Copies::default()), Ok(0));
    assert_eq!(try_plan(&model(7), Copies { min: 1, redundant: 1 }), Ok(0));
    assert_eq!(try_plan(&model(4), Copies { min: 2, redundant: 0 }), Ok(0));
}

#[test]
fn expert_without_room_keeps_its_rank_and_is_counted() {
    let model = Model { layers: 1, experts: 4, expert_bytes: BYTES };
    let mut fleet = Fleet::new(2, 1);
    let first = plan(&model, &Copies::default(), &fleet, None, None, Aim::Repair).unwrap();
    fleet.workers[1].usable = false;
    fleet.workers[0].bytes_limit = Some(3 * BYTES);
    let after = plan(&model, &Copies::default(), &fleet, None, Some(&first.layers), Aim::Repair).unwrap();
    let ranks: Vec<u32> = after.layers[0].experts.iter().map(|copies| copies.ranks[0]).collect();
    assert_eq!((ranks, after.moves.len(), after.short), (vec![0, 0, 0, 1], 1, 1));
    let error = plan(&model, &Copies::default(), &fleet, None, None, Aim::Repair).unwrap_err().to_string();
    for part in ["400 bytes", "worker 0", "300"] {
        assert!(error.contains(part), "{error}");
    }
    fleet.workers[0].usable = false;
    let none = plan(&model, &Copies::default(), &fleet, None, Some(&first.layers), Aim::Repair).unwrap();
    assert_eq!((&none.layers, none.short), (&first.layers, 4));
    assert_eq!(
        plan(&model, &Copies::default(), &fleet, None, None, Aim::Repair),
        Err(PlacementError::NoUsableRank)
    );
}

/// What a copy needs while a change goes on counts twice: what is given up stays until the end.
#[test]
fn full_workers_cannot_swap() {
    let model = Model { layers: 1, experts: 4, expert_bytes: BYTES };
    let load = Load::new(vec![vec![9_000, 9_000, 1_000, 1_000]]);
    let mut fleet = Fleet::new(2, 1);
    let first = plan(&model, &Copies::default(), &fleet, None, None, Aim::Repair).unwrap();
    assert_eq!(imbalance_percent(&first.layers, Some(&load), &fleet), 180);
    let mut after = |limit: u64| {
        fleet.workers.iter_mut().for_each(|worker| worker.bytes_limit = Some(limit * BYTES));
        let aim = Aim::Rebalance { most_moves: 10 };
        let planned =
            plan(&model, &Copies::default(), &fleet, Some(&load), Some(&first.layers), aim).unwrap();
        (planned.moves.len(), imbalance_percent(&planned.layers, Some(&load), &fleet))
    };
    assert_eq!(after(2), (0, 180));
    assert_eq!(after(3), (2, 100));
}

/// A single hot expert: no place is good enough for it, only more copies are.
#[test]
fn hot_expert_gets_the_redundant_copies() {
    let model = Model { layers: 1, experts: 8, expert_bytes: BYTES };
    let mut counts = vec![1_000; 8];
    let copies = Copies { min: 1, redundant: 3 };
    let fleet = Fleet::new(4, 1);
    let first = plan(&model, &copies, &fleet, None, None, Aim::Repair).unwrap();
    counts[5] = 50_000;
    let load = Load::new(vec![counts]);
    let after =
        plan(&model, &copies, &fleet, Some(&load), Some(&first.layers), Aim::Rebalance { most_moves: 9 })
            .unwrap();
    assert_eq!(after.layers[0].experts[5].ranks.len(), 4, "{:?}", after.layers);
    let percent = imbalance_percent(&after.layers, Some(&load), &fleet);
    assert!(percent <= 105, "{percent}");
}
