//! Exchanges by rounds: the same bits as over TCP, for any askers at once, through failing rounds and lost workers, and a
//! circle again afterwards. Sockets, threads and words are real; the devices are a board in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use belay_backend::Collective;
use belay_fabric::RowFormat;
use common::board::{Boards, InMemory};
use common::{
    LAYERS, Worker, batch, exchange, group_with, identity, one_copy, one_process, options, placement, quick,
    reference, two_copies, until,
};

fn give_devices(workers: &[Worker]) -> Arc<Boards> {
    let boards = Arc::new(Boards::default());
    workers.iter().for_each(|worker| give_device(worker, &boards));
    boards
}

fn give_device(worker: &Worker, boards: &Arc<Boards>) {
    let devices = InMemory { boards: Arc::clone(boards), toys: Arc::clone(&worker.toys) };
    worker.group.set_collective(Arc::new(devices) as Arc<dyn Collective>).unwrap();
}

fn all_in_circle(workers: &[Worker]) {
    let all: Vec<u32> = workers.iter().map(|worker| worker.index).collect();
    for worker in workers {
        let what = format!("worker {} in a circle of {all:?}", worker.index);
        until(&what, || worker.group.circle().is_some_and(|circle| circle.workers == all));
    }
}

/// Every worker asks from two threads until `stop`; gives how many exchanges were right.
fn ask_until(workers: &[Worker], stop: &AtomicBool, most: u32) -> u32 {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0u32..)
            .zip(workers)
            .flat_map(|(number, worker)| [(2 * number, worker), (2 * number + 1, worker)])
            .map(|(number, worker)| {
                scope.spawn(move || {
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) && done < most {
                        let (layer, rows) = ((number + done) % LAYERS as u32, 1 + (done as usize * 7) % 23);
                        let (x, routes) = batch(rows, number * 1000 + done);
                        let found = worker.exchange(layer, &x, &routes).unwrap();
                        assert_eq!(
                            found,
                            reference(layer, &x, &routes),
                            "exchange {done} of thread {number}"
                        );
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn exchanges_of_all_workers_at_once_go_by_rounds_and_have_the_bits_of_one_rank() {
    let workers = group_with(3, 2, &options(quick()), two_copies(6, 2));
    give_devices(&workers);
    all_in_circle(&workers);
    let done = ask_until(&workers, &AtomicBool::new(false), 60);
    let stats: Vec<_> = workers.iter().map(|worker| worker.group.stats().snapshot()).collect();
    let rounds: u64 = stats.iter().map(|stats| stats.rounds).sum();
    assert_eq!((u64::from(done), rounds), (360, 360));
    assert!(stats.iter().all(|stats| stats.rows_sent == 0 && stats.rounds_failed == 0), "{stats:?}");
}

#[test]
fn formats_round_rows_that_go_by_rounds_as_all_others() {
    for format in RowFormat::ALL {
        let start = |index: u32| {
            let identity = belay_fabric::Identity { format, ..identity(index, &format!("u{index}")) };
            Worker::start(identity, 2, options(quick()))
        };
        let workers: Vec<Worker> = (0..2).map(start).collect();
        let placement = placement(1, 2, &workers.iter().collect::<Vec<_>>(), one_copy(4));
        workers.iter().for_each(|worker| worker.place(&placement));
        give_devices(&workers);
        all_in_circle(&workers);
        let (x, routes) = batch(9, 3);
        let expected = exchange(&one_process(1, format), 1, &x, &routes).unwrap();
        assert_eq!(workers[1].exchange(1, &x, &routes).unwrap(), expected, "{format}");
        assert_eq!(workers[1].group.stats().snapshot().rounds, 1);
    }
}

#[test]
fn rounds_that_fail_cost_no_exchange_and_a_circle_comes_again() {
    let workers = group_with(3, 1, &options(quick()), two_copies(3, 1));
    let boards = give_devices(&workers);
    all_in_circle(&workers);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&workers, &stop, u32::MAX));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            let made = boards.made();
            boards.broken.store(true, Ordering::Relaxed);
            until("the circle breaks", || workers.iter().all(|worker| worker.group.circle().is_none()));
            boards.broken.store(false, Ordering::Relaxed);
            until("another circle", || boards.made() > made);
            all_in_circle(&workers);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(asking.join().unwrap() > 100);
    });
    let failed: u64 = workers.iter().map(|worker| worker.group.stats().snapshot().rounds_failed).sum();
    assert!(failed >= 3, "{failed}");
}

#[test]
fn a_lost_worker_ends_the_circle_and_those_that_are_left_make_one() {
    let mut workers = group_with(3, 2, &options(quick()), two_copies(6, 2));
    let boards = give_devices(&workers);
    all_in_circle(&workers);
    // the first of them leads
    let lost = workers.remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&workers, &stop, u32::MAX));
        std::thread::sleep(Duration::from_millis(100));
        lost.group.shutdown();
        let begun = Instant::now();
        all_in_circle(&workers);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });

    // a new pod takes the place, and a seat
    let fresh = Worker::start(identity(0, "u0-again"), 2, options(quick()));
    give_device(&fresh, &boards);
    workers.insert(0, fresh);
    let placement = placement(2, 2, &workers.iter().collect::<Vec<_>>(), two_copies(6, 2));
    workers.iter().for_each(|worker| worker.place(&placement));
    all_in_circle(&workers);
    let before = workers[0].group.stats().snapshot().rounds;
    let (x, routes) = batch(12, 5);
    assert_eq!(workers[0].exchange(2, &x, &routes).unwrap(), reference(2, &x, &routes));
    assert_eq!(workers[0].group.stats().snapshot().rounds, before + 1);
}

#[test]
fn an_expert_that_a_rank_lacks_is_asked_of_others() {
    let workers = group_with(2, 1, &options(quick()), two_copies(2, 1));
    give_devices(&workers);
    all_in_circle(&workers);
    workers[1].toys.ranks[0].resident.lock().unwrap().retain(|pair| *pair != (1, 3));
    for salt in 0..20 {
        let (x, routes) = batch(7, salt);
        assert_eq!(workers[0].exchange(1, &x, &routes).unwrap(), reference(1, &x, &routes));
    }
    let stats = workers[0].group.stats().snapshot();
    assert!(stats.rounds >= 10 && stats.rounds_failed == 0, "{stats:?}");
    assert!(workers[0].group.circle().is_some(), "no reason to leave");
}

#[test]
fn a_rank_that_is_joining_holds_nobody_up_who_leaves() {
    let workers = group_with(2, 1, &options(quick()), one_copy(2));
    let boards = Arc::new(Boards::default());
    boards.slow.store(true, Ordering::Relaxed);
    workers.iter().for_each(|worker| give_device(worker, &boards));
    until("all join", || boards.joining() == 2);
    let (x, routes) = batch(5, 1);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes), "over TCP meanwhile");
    let begun = Instant::now();
    workers.iter().for_each(|worker| worker.group.shutdown());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    boards.slow.store(false, Ordering::Relaxed);
}

#[test]
fn a_worker_without_such_devices_leaves_the_group_on_tcp() {
    let workers = group_with(2, 1, &options(quick()), one_copy(2));
    let boards = Arc::new(Boards::default());
    give_device(&workers[0], &boards);
    until("an offer", || boards.made() > 0);
    let (x, routes) = batch(5, 1);
    for worker in &workers {
        assert_eq!(worker.exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
        assert_eq!(worker.group.circle(), None);
    }
}
