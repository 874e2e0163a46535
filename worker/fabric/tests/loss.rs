//! Workers that are killed, stopped, cut off, slow, or two of these at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use belay_backend::FabricError;
use belay_fabric::{Fault, Health, Timeouts};
use common::proxy::Proxy;
use common::{
    EXPERTS, LAYERS, Worker, all_connected, batch, group, group_with, identity, one_copy, options, placement,
    quick, reference, two_copies, until,
};

/// Lets all of `askers` exchange while `event` happens; every result is right.
fn during<T>(askers: &[&Worker], event: impl FnOnce(&AtomicUsize) -> T) -> T {
    let (enough, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for &asker in askers {
            let (enough, done) = (&enough, &done);
            scope.spawn(move || {
                while !enough.load(Ordering::Acquire) {
                    let (x, routes) = batch(4, done.fetch_add(1, Ordering::Relaxed) as u32 % 7);
                    assert_eq!(asker.exchange(1, &x, &routes).unwrap(), reference(1, &x, &routes));
                }
            });
        }
        let _end = AtEnd(&enough);
        event(&done)
    })
}

/// Sets it even if the event panics, so that the test ends.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits until `more` further exchanges began.
fn go_on(done: &AtomicUsize, more: usize) {
    let target = done.load(Ordering::Relaxed) + more;
    until("exchanges go on", || done.load(Ordering::Relaxed) >= target);
}

/// A group whose worker `index` is reached through a proxy.
fn group_behind_proxy(
    count: u32,
    index: usize,
    timeouts: Timeouts,
    layers: Vec<Vec<Vec<u32>>>,
) -> (Vec<Worker>, Proxy) {
    let start = |index| Worker::start(identity(index, &format!("u{index}")), 1, options(timeouts));
    let mut workers: Vec<Worker> = (0..count).map(start).collect();
    let proxy = Proxy::to(workers[index].group.local_addr());
    workers[index].address = Some(proxy.address.to_string());
    let placement = placement(1, 1, &workers.iter().collect::<Vec<_>>(), layers);
    workers.iter().for_each(|worker| worker.place(&placement));
    all_connected(&workers);
    (workers, proxy)
}

/// Nobody is taken for lost because the machine is busy.
fn patient() -> Timeouts {
    Timeouts { lost: Duration::from_secs(120), ask: Duration::from_secs(60), ..quick() }
}

#[test]
fn no_exchange_fails_when_a_worker_is_killed_whose_experts_have_copies() {
    let mut workers = group_with(3, 2, &options(patient()), two_copies(6, 2));
    let killed = workers.remove(1);
    let askers: Vec<&Worker> = workers.iter().collect();
    during(&askers, |done| {
        go_on(done, 20);
        killed.group.shutdown();
        until("the loss is seen", || askers.iter().all(|asker| asker.health_of(1) == Health::Lost));
        go_on(done, 20);
    });
    for asker in &workers {
        let coverage = asker.group.coverage();
        assert_eq!((coverage.uncovered, coverage.min_live, coverage.adopted), (0, 1, 0));
        assert_eq!(coverage.experts as usize, LAYERS * EXPERTS);
        assert_eq!(coverage.uncovered_for, Duration::ZERO);
    }
}

#[test]
fn an_exchange_under_way_goes_on_when_its_peer_is_killed_and_the_orphans_are_adopted() {
    let mut workers = group(2, 2, patient());
    let killed = workers.remove(1);
    let asker = &workers[0];
    killed.toys.held.store(true, Ordering::Release);
    let (x, routes) = batch(8, 1);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| asker.exchange(0, &x, &routes));
        until("the peer has the ask", || asker.group.stats().snapshot().rows_sent > 0);
        assert!(!asking.is_finished());
        scope.spawn(|| killed.group.shutdown());
        assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
        // the thread that computed for it ends as well
        killed.toys.held.store(false, Ordering::Release);
    });
    until("all are adopted", || asker.group.coverage().uncovered == 0);
    let coverage = asker.group.coverage();
    assert_eq!(coverage.adopted as usize, LAYERS * EXPERTS / 2);
    assert_eq!(asker.toys.copies(), LAYERS * EXPERTS);
    assert!(coverage.uncovered_for > coverage.silent_for, "there was a gap, and nobody who was only silent");
    let per_rank: Vec<usize> =
        asker.toys.ranks.iter().map(|toy| toy.resident.lock().unwrap().len()).collect();
    assert_eq!(per_rank, [15, 15], "both ranks take their part");
}

#[test]
fn survivors_share_what_two_lost_workers_leave() {
    let mut workers = group(4, 1, patient());
    let lost = [workers.remove(3), workers.remove(1)];
    let askers: Vec<&Worker> = workers.iter().collect();
    during(&askers, |done| {
        go_on(done, 10);
        lost.iter().for_each(|worker| worker.group.shutdown());
        until("both losses are seen", || {
            askers.iter().all(|asker| [1, 3].iter().all(|&lost| asker.health_of(lost) == Health::Lost))
        });
        go_on(done, 20);
        until("everything is covered", || askers.iter().all(|asker| asker.group.coverage().uncovered == 0));
    });
    let adopted: Vec<u32> = askers.iter().map(|asker| asker.group.coverage().adopted).collect();
    assert!(adopted.iter().sum::<u32>() as usize >= LAYERS * EXPERTS / 2, "{adopted:?}");
    assert!(adopted.iter().all(|&count| count > 0), "each takes its share: {adopted:?}");
}

#[test]
fn a_stopped_worker_is_routed_around_and_comes_back_by_itself() {
    let (workers, proxy) = group_behind_proxy(3, 1, patient(), two_copies(3, 1));
    let asker = &workers[0];
    during(&[asker, &workers[2]], |done| {
        go_on(done, 10);
        proxy.set_silent(true);
        until("it is suspect", || asker.health_of(1) == Health::Suspect);
        go_on(done, 20);
        assert_eq!(asker.health_of(1), Health::Suspect, "stopped is not lost");
        proxy.set_silent(false);
        until("it is live", || asker.health_of(1) == Health::Live);
        go_on(done, 20);
    });
    let coverage = asker.group.coverage();
    assert_eq!((coverage.uncovered, coverage.min_live, coverage.adopted), (0, 2, 0));
    // answers of before the stop were dropped, not taken for answers to later asks: the results above say so
    let before = workers[1].toys.computed();
    until("it is asked again", || {
        asker.exchange(0, &batch(30, 0).0, &batch(30, 0).1).unwrap();
        workers[1].toys.computed() > before
    });
}

#[test]
fn the_only_holder_is_waited_for_while_it_is_stopped() {
    let (workers, proxy) = group_behind_proxy(2, 1, patient(), one_copy(2));
    let asker = &workers[0];
    let (x, routes) = batch(6, 0);
    proxy.set_silent(true);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| asker.exchange(0, &x, &routes));
        until("it is suspect", || asker.health_of(1) == Health::Suspect);
        assert_eq!(asker.group.coverage().uncovered as usize, LAYERS * EXPERTS / 2);
        assert!(!asking.is_finished());
        proxy.set_silent(false);
        assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
    });
    until("everything is covered", || asker.group.coverage().uncovered == 0);
    let coverage = asker.group.coverage();
    assert_eq!(coverage.adopted, 0);
    assert!(coverage.uncovered_for > Duration::ZERO);
    assert_eq!(coverage.silent_for, coverage.uncovered_for, "its connections stood");
}

#[test]
fn a_worker_that_is_silent_for_long_is_lost_and_its_experts_are_adopted() {
    let timeouts = Timeouts { lost: Duration::from_millis(600), ..patient() };
    let (workers, proxy) = group_behind_proxy(2, 1, timeouts, one_copy(2));
    proxy.set_silent(true);
    let (x, routes) = batch(6, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
    assert_eq!(workers[0].health_of(1), Health::Lost);
    until("all are adopted", || workers[0].group.coverage().uncovered == 0);
    let coverage = workers[0].group.coverage();
    assert!(coverage.uncovered_for > coverage.silent_for, "one that is lost is more than silent");
    proxy.set_silent(false);
    until("it is live", || workers[0].health_of(1) == Health::Live);
    until("what was adopted goes", || workers[0].group.coverage().adopted == 0);
    // it is masked first and let go after
    until("it is let go", || workers[0].toys.released.lock().unwrap().len() == LAYERS * EXPERTS / 2);
    assert_eq!(workers[0].exchange(1, &x, &routes).unwrap(), reference(1, &x, &routes));
}

#[test]
fn a_flapping_link_loses_no_exchange() {
    let (workers, proxy) = group_behind_proxy(3, 1, patient(), two_copies(3, 1));
    during(&[&workers[0], &workers[2]], |done| {
        for round in 0..12 {
            proxy.cut(round % 3 == 2);
            go_on(done, 5);
            proxy.set_latency(Duration::from_millis(round % 4));
        }
        proxy.cut(false);
        until("it is live again", || workers[0].health_of(1) == Health::Live);
        go_on(done, 10);
    });
}

#[test]
fn two_workers_that_are_cut_off_from_each_other_both_go_on() {
    let timeouts = Timeouts { lost: Duration::from_millis(600), ..patient() };
    let workers = group_with(3, 1, &options(timeouts), one_copy(3));
    during(&[&workers[0], &workers[1], &workers[2]], |done| {
        go_on(done, 10);
        workers[0].group.inject(Fault::Partition(vec![1]));
        until("both notice", || {
            workers[0].health_of(1) == Health::Lost && workers[1].health_of(0) == Health::Lost
        });
        assert_eq!((workers[2].health_of(0), workers[2].health_of(1)), (Health::Live, Health::Live));
        go_on(done, 30);
        until("both are covered", || {
            workers[..2].iter().all(|worker| worker.group.coverage().uncovered == 0)
        });
        workers[0].group.inject(Fault::None);
        until("they meet again", || {
            workers[0].health_of(1) == Health::Live && workers[1].health_of(0) == Health::Live
        });
        go_on(done, 10);
    });
    until("copies that were adopted go", || {
        workers.iter().all(|worker| worker.group.coverage().adopted == 0)
    });
    let (x, routes) = batch(9, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
}

#[test]
fn a_slow_worker_is_slow_and_nothing_else() {
    let workers = group(2, 1, patient());
    workers[1].group.inject(Fault::Slow(Duration::from_millis(400)));
    let started = Instant::now();
    let (x, routes) = batch(4, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
    assert!(started.elapsed() >= Duration::from_millis(400));
    assert_eq!(workers[0].group.stats().snapshot().rerouted, 0);
}

#[test]
fn a_worker_that_computes_long_is_not_suspect() {
    let workers = group(2, 1, Timeouts { suspect: Duration::from_secs(3), ..patient() });
    let (x, routes) = batch(4, 0);
    workers[1].toys.held.store(true, Ordering::Release);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| workers[0].exchange(0, &x, &routes));
        // longer than any silence may last
        let until = Instant::now() + Duration::from_millis(3500);
        while Instant::now() < until {
            assert_eq!(workers[0].health_of(1), Health::Live);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!asking.is_finished());
        workers[1].toys.held.store(false, Ordering::Release);
        assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
    });
}

#[test]
fn an_answer_that_never_comes_is_a_timeout_and_the_next_exchange_works() {
    let workers = group(2, 1, Timeouts { ask: Duration::from_millis(400), ..patient() });
    let (x, routes) = batch(4, 0);
    workers[1].toys.held.store(true, Ordering::Release);
    let started = Instant::now();
    assert_eq!(workers[0].exchange(0, &x, &routes), Err(FabricError::Timeout { worker: 1, millis: 400 }));
    assert!(started.elapsed() < Duration::from_secs(10), "bounded by the deadline, not by the peer");
    workers[1].toys.held.store(false, Ordering::Release);
    until("it works again", || workers[0].exchange(0, &x, &routes) == Ok(reference(0, &x, &routes)));
}

#[test]
fn the_loss_of_an_idle_peer_is_noticed_without_an_exchange() {
    let mut workers = group(2, 1, quick());
    drop(workers.remove(1));
    until("the loss is seen", || workers[0].health_of(1) == Health::Lost);
    assert!(!workers[0].message_of(1).is_empty());
}

#[test]
fn exchanges_end_when_their_own_fabric_is_shut_down() {
    let workers = group(2, 1, patient());
    workers[1].toys.held.store(true, Ordering::Release);
    let (x, routes) = batch(4, 0);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| workers[0].exchange(0, &x, &routes));
        until("the ask is out", || workers[0].group.stats().snapshot().rows_sent > 0);
        workers[0].group.shutdown();
        let ended = asking.join().unwrap();
        assert!(matches!(ended, Err(FabricError::PeerLost { worker: 0, .. })), "{ended:?}");
    });
    workers[1].toys.held.store(false, Ordering::Release);
    assert!(workers[0].exchange(0, &x, &routes).is_err());
}
