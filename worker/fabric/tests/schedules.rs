//! Random schedules: workers are killed, replaced, cut off and given other placements, and every exchange of every
//! worker that lives has the bits of the reference.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use belay_fabric::{Fault, Health, Placement, Timeouts, WorkerEntry};
use common::{EXPERTS, LAYERS, Worker, all_connected, batch, identity, options, quick, reference, until};
use proptest::prelude::*;

const WORKERS: u32 = 4;

#[derive(Clone, Debug)]
enum Event {
    /// The worker's process ends.
    Kill(u32),
    /// A new pod comes to a slot that is empty.
    Replace(u32),
    /// Nothing passes between two workers.
    Cut(u32, u32),
    /// A worker hears and says nothing.
    Stop(u32),
    /// Everything passes again.
    Heal,
    /// Another placement, in two phases.
    Move(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let worker = || 0..WORKERS;
    let event = prop_oneof![
        2 => worker().prop_map(Event::Kill),
        3 => worker().prop_map(Event::Replace),
        2 => (worker(), worker()).prop_map(|(a, b)| Event::Cut(a, b)),
        1 => worker().prop_map(Event::Stop),
        3 => Just(Event::Heal),
        3 => any::<u64>().prop_map(Event::Move),
    ];
    prop::collection::vec(event, 6..10)
}

/// The group as a whole.
struct Cluster {
    slots: Vec<Option<Worker>>,
    lives: u32,
    placement: Placement,
}

fn timeouts() -> Timeouts {
    Timeouts { lost: Duration::from_millis(600), ask: Duration::from_secs(60), ..quick() }
}

/// One or two copies of each expert, anywhere among `usable`.
fn layers(seed: u64, usable: &[u32]) -> Vec<Vec<Vec<u32>>> {
    let mut state = seed | 1;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut copies = || {
        let first = usable[next(usable.len())];
        let second = usable[next(usable.len())];
        if first == second { vec![first] } else { vec![first, second] }
    };
    (0..LAYERS).map(|_| (0..EXPERTS).map(|_| copies()).collect()).collect()
}

impl Cluster {
    fn start(seed: u64) -> Self {
        let workers: Vec<Worker> = (0..WORKERS)
            .map(|index| Worker::start(identity(index, &format!("u{index}")), 1, options(timeouts())))
            .collect();
        let usable: Vec<u32> = (0..WORKERS).collect();
        let members: Vec<&Worker> = workers.iter().collect();
        let placement = common::placement(1, 1, &members, layers(seed, &usable));
        workers.iter().for_each(|worker| worker.place(&placement));
        all_connected(&workers);
        Self { slots: workers.into_iter().map(Some).collect(), lives: 0, placement }
    }

    fn living(&self) -> impl Iterator<Item = &Worker> {
        self.slots.iter().flatten()
    }

    fn heal(&self) {
        self.living().for_each(|worker| worker.group.inject(Fault::None));
    }

    /// Two phases, and the copies that are no longer needed go.
    fn change(&mut self, seed: u64) {
        // an operator does not change the placement of workers that it can't reach
        self.heal();
        let entry = |(index, slot): (usize, &Option<Worker>)| match slot {
            Some(worker) => worker.entry(),
            None => WorkerEntry { index: index as u32, ..WorkerEntry::default() },
        };
        let usable: Vec<u32> = self.living().map(|worker| worker.index).collect();
        let next = Placement {
            epoch: self.placement.epoch + 1,
            workers: self.slots.iter().enumerate().map(entry).collect(),
            layers: layers(seed, &usable),
            ..self.placement.clone()
        };
        self.living().for_each(|worker| worker.place_both(Some(&self.placement), Some(&next)));
        self.living().for_each(|worker| {
            until("members of the target are connected", || {
                let lives = |uid: &str| self.living().any(|other| other.uid == uid);
                let peers = worker.group.peers();
                peers.iter().filter(|peer| lives(&peer.uid)).all(|peer| peer.health == Health::Live)
            })
        });
        for worker in self.living() {
            worker.place(&next);
            self.exchange(seed as u32);
        }
        let table = belay_fabric::Table::new(next.clone()).unwrap();
        self.living().for_each(|worker| worker.toys.retire(&table, worker.index, &worker.group.adopted()));
        self.placement = next;
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Kill(at) if self.living().count() > 2 => {
                if let Some(worker) = self.slots[at as usize].take() {
                    worker.group.shutdown();
                }
            }
            Event::Replace(at) if self.slots[at as usize].is_none() => {
                self.lives += 1;
                let uid = format!("u{at}-life-{}", self.lives);
                self.slots[at as usize] = Some(Worker::start(identity(at, &uid), 1, options(timeouts())));
                self.change(u64::from(self.lives));
            }
            Event::Cut(a, b) if a != b => {
                if let Some(worker) = &self.slots[a as usize] {
                    worker.group.inject(Fault::Partition(vec![b]));
                }
            }
            Event::Stop(at) => {
                if let Some(worker) = &self.slots[at as usize] {
                    worker.group.inject(Fault::Partition(vec![]));
                }
            }
            Event::Move(seed) => self.change(seed),
            Event::Heal => self.heal(),
            _ => {}
        }
    }

    /// Every living worker, all at once.
    fn exchange(&self, salt: u32) {
        let (layer, salt) = (salt % LAYERS as u32, salt % 64);
        let (x, routes) = batch(5, salt);
        let expected = reference(layer, &x, &routes);
        std::thread::scope(|scope| {
            for worker in self.living() {
                let (x, routes, expected) = (&x, &routes, &expected);
                scope.spawn(move || assert_eq!(worker.exchange(layer, x, routes).as_ref(), Ok(expected)));
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_every_exchange_has_the_bits_of_the_reference(seed in any::<u64>(), events in events()) {
        let mut cluster = Cluster::start(seed);
        for (step, event) in (0u32..).zip(&events) {
            cluster.apply(event);
            cluster.exchange(step);
        }
        cluster.heal();
        cluster.change(seed);
        cluster.exchange(7);
        for worker in cluster.living() {
            until("what was adopted goes", || worker.group.coverage().adopted == 0);
            prop_assert_eq!(worker.group.coverage().uncovered, 0);
        }
    }
}
