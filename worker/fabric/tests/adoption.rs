//! Orphans: who loads them, who refuses, and when they go again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use belay_fabric::{Fault, Health, Timeouts};
use common::{
    EXPERTS, LAYERS, Worker, all_connected, batch, group, group_with, identity, one_copy, options, placement,
    quick, reference, until,
};

fn patient() -> Timeouts {
    Timeouts { lost: Duration::from_secs(120), ask: Duration::from_secs(60), ..quick() }
}

#[test]
fn whoever_has_no_room_refuses_and_the_next_one_is_asked() {
    let mut workers = group(3, 1, patient());
    let killed = workers.remove(2);
    // worker 1 has room for nothing beyond its own; the deal does not know
    workers[1].toys.limit.store(workers[1].toys.copies(), Ordering::Relaxed);
    killed.group.shutdown();
    until("the loss is seen", || workers.iter().all(|worker| worker.health_of(2) == Health::Lost));
    for layer in 0..LAYERS as u32 {
        let (x, routes) = batch(10, layer);
        for worker in &workers {
            assert_eq!(worker.exchange(layer, &x, &routes).unwrap(), reference(layer, &x, &routes));
        }
    }
    assert_eq!(workers[1].group.coverage().adopted, 0);
    assert!(workers[0].group.coverage().adopted > 0);
    until("both see that all is covered", || {
        workers.iter().all(|worker| worker.group.coverage().uncovered == 0)
    });
}

#[test]
fn the_deal_respects_the_limits_of_the_placement() {
    let start = |index| Worker::start(identity(index, &format!("u{index}")), 1, options(patient()));
    let mut workers: Vec<Worker> = (0..3).map(start).collect();
    let mut placement = placement(1, 1, &workers.iter().collect::<Vec<_>>(), one_copy(3));
    // in copies, as an expert has one byte
    placement.workers[0].expert_bytes_limit = 10;
    placement.workers[1].expert_bytes_limit = 1000;
    workers.iter().for_each(|worker| worker.place(&placement));
    all_connected(&workers);
    workers.remove(2).group.shutdown();
    until("the loss is seen", || workers.iter().all(|worker| worker.health_of(2) == Health::Lost));
    until("all are adopted", || workers.iter().all(|worker| worker.group.coverage().uncovered == 0));
    assert_eq!(workers[0].group.coverage().adopted, 0);
    assert_eq!(workers[1].group.coverage().adopted as usize, LAYERS * EXPERTS / 3);
}

#[test]
fn without_room_anywhere_the_exchange_fails_by_its_deadline_and_says_why() {
    let timeouts = Timeouts { ask: Duration::from_millis(500), ..patient() };
    let mut workers = group(2, 1, timeouts);
    workers[0].toys.limit.store(0, Ordering::Relaxed);
    workers.remove(1).group.shutdown();
    until("the loss is seen", || workers[0].health_of(1) == Health::Lost);
    let (x, routes) = batch(4, 0);
    let failed = workers[0].exchange(0, &x, &routes).unwrap_err().to_string();
    assert!(failed.contains("no room for more"), "{failed}");
    // room comes
    workers[0].toys.limit.store(usize::MAX, Ordering::Relaxed);
    until("it works", || workers[0].exchange(0, &x, &routes).is_ok());
}

#[test]
fn an_exchange_waits_for_as_long_as_loading_takes() {
    let mut workers = group(3, 1, patient());
    let killed = workers.remove(2);
    workers.iter().for_each(|worker| worker.toys.slow_disk.store(true, Ordering::Release));
    killed.group.shutdown();
    let (x, routes) = batch(10, 0);
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            workers.iter().map(|worker| scope.spawn(|| worker.exchange(0, &x, &routes))).collect();
        until("the loss is seen", || workers.iter().all(|worker| worker.health_of(2) == Health::Lost));
        assert!(asking.iter().all(|asking| !asking.is_finished()));
        workers.iter().for_each(|worker| worker.toys.slow_disk.store(false, Ordering::Release));
        for asking in asking {
            assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
        }
    });
}

#[test]
fn what_was_adopted_goes_when_the_holder_is_back() {
    let mut workers = group(2, 1, patient());
    let old = workers.remove(1);
    let placed = placement(1, 1, &[&workers[0], &old], one_copy(2));
    old.group.shutdown();
    until("the loss is seen", || workers[0].health_of(1) == Health::Lost);
    until("all are adopted", || workers[0].group.coverage().uncovered == 0);
    assert!(workers[0].group.coverage().adopted > 0);
    let (epoch, pairs) = (workers[0].group.epoch(), workers[0].group.adopted());
    assert_eq!((epoch, pairs.len()), (Some(1), LAYERS * EXPERTS / 2));
    drop(old);
    // the same life of the worker at another address, as a container that was restarted: a placement says where
    let back = Worker::start(identity(1, "u1"), 1, options(patient()));
    let moved = placement(2, 1, &[&workers[0], &back], one_copy(2));
    assert_ne!(placed.workers[1].address, moved.workers[1].address);
    workers[0].place(&moved);
    back.place(&moved);
    until("it is live", || workers[0].is_connected());
    until("what was adopted goes", || workers[0].group.coverage().adopted == 0);
    // it is masked first and let go after
    until("it is let go", || *workers[0].toys.released.lock().unwrap() == pairs);
    assert_eq!(workers[0].toys.copies(), LAYERS * EXPERTS / 2);
}

#[test]
fn a_copy_that_the_next_placement_gives_here_stays() {
    let mut workers = group(2, 1, patient());
    workers.remove(1).group.shutdown();
    until("the loss is seen", || workers[0].health_of(1) == Health::Lost);
    until("all are adopted", || workers[0].group.coverage().uncovered == 0);
    let mut alone = placement(2, 1, &[&workers[0], &workers[0]], one_copy(2));
    alone.workers[1] = belay_fabric::WorkerEntry { index: 1, ..Default::default() };
    alone.layers = vec![vec![vec![0]; EXPERTS]; LAYERS];
    workers[0].place(&alone);
    until("nothing is adopted any more", || workers[0].group.coverage().adopted == 0);
    assert!(workers[0].toys.released.lock().unwrap().is_empty(), "the placement has it now");
    assert!(workers[0].group.peers().is_empty(), "nobody is at the slot");
    let coverage = workers[0].group.coverage();
    assert_eq!((coverage.epoch, coverage.uncovered, coverage.min_live), (2, 0, 1));
    let (x, routes) = batch(9, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
}

#[test]
fn a_third_worker_loads_what_only_the_asker_misses_and_drops_it_later() {
    // worker 0 is cut off from worker 1 only; part of what it misses is dealt to worker 2, which misses nothing
    let timeouts = Timeouts { lost: Duration::from_millis(500), ..patient() };
    let workers = group_with(3, 1, &options(timeouts), one_copy(3));
    workers[0].group.inject(Fault::Partition(vec![1]));
    until("it is noticed", || workers[0].health_of(1) == Health::Lost);
    for layer in 0..LAYERS as u32 {
        let (x, routes) = batch(10, layer);
        assert_eq!(workers[0].exchange(layer, &x, &routes).unwrap(), reference(layer, &x, &routes));
    }
    assert!(workers[2].group.coverage().adopted > 0);
    assert_eq!(workers[2].health_of(1), Health::Live);
    workers[0].group.inject(Fault::None);
    until("what was adopted goes", || workers.iter().all(|worker| worker.group.coverage().adopted == 0));
}

#[test]
fn peers_that_have_no_placement_yet_are_not_lost() {
    let timeouts = Timeouts { lost: Duration::from_millis(300), ..patient() };
    let workers =
        [0, 1].map(|index| Worker::start(identity(index, &format!("u{index}")), 1, options(timeouts)));
    let placement = placement(1, 1, &workers.iter().collect::<Vec<_>>(), one_copy(2));
    workers[0].place(&placement);
    until("it was dialled", || workers[0].message_of(1).contains("no placement in force yet"));
    let (x, routes) = batch(4, 0);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| workers[0].exchange(0, &x, &routes));
        let later = std::time::Instant::now() + Duration::from_millis(700);
        while std::time::Instant::now() < later {
            assert_eq!(workers[0].health_of(1), Health::Suspect);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!asking.is_finished());
        workers[1].place(&placement);
        assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
    });
    let coverage = workers[0].group.coverage();
    assert_eq!((coverage.adopted, coverage.uncovered_for), (0, Duration::ZERO), "a start is no gap");
}
