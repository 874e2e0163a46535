//! Placements that change while exchanges go on, and who is let in.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use belay_backend::FabricError;
use belay_fabric::{Health, Identity, Options, Placement, RowFormat, Table, Timeouts, wire};
use common::{
    EXPERTS, HIDDEN, LAYERS, Toy, Worker, all_connected, batch, exchange, group, identity, one_copy, options,
    placement, quick, reference, until,
};

fn patient() -> Timeouts {
    Timeouts { lost: Duration::from_secs(120), ask: Duration::from_secs(60), ..quick() }
}

/// Copies of each expert on one rank, another one with each turn.
fn turned(turn: usize, ranks: usize) -> Vec<Vec<Vec<u32>>> {
    let layer =
        |layer: usize| (0..EXPERTS).map(|expert| vec![((expert + layer + turn) % ranks) as u32]).collect();
    (0..LAYERS).map(layer).collect()
}

#[test]
fn experts_move_between_workers_in_two_phases_while_all_of_them_exchange() {
    let workers = group(3, 2, patient());
    let members: Vec<&Worker> = workers.iter().collect();
    let at = |epoch: u64| placement(epoch, 2, &members, turned(epoch as usize - 1, 6));
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in &workers {
            let enough = &enough;
            scope.spawn(move || {
                let mut salt = 0;
                while !enough.load(Ordering::Acquire) {
                    let (x, routes) = batch(6, salt % 5);
                    assert_eq!(worker.exchange(2, &x, &routes).unwrap(), reference(2, &x, &routes));
                    salt += 1;
                }
            });
        }
        for epoch in 1..8 {
            let (old, new) = (at(epoch), at(epoch + 1));
            // prepare everywhere, then commit at one after the other, then retire
            workers.iter().for_each(|worker| worker.place_both(Some(&old), Some(&new)));
            for worker in &workers {
                worker.place(&new);
                let count = worker.group.stats().snapshot().latency.count;
                until("it exchanges by the new one", || {
                    worker.group.stats().snapshot().latency.count > count + 2
                });
            }
            let table = Table::new(new).unwrap();
            workers
                .iter()
                .for_each(|worker| worker.toys.retire(&table, worker.index, &worker.group.adopted()));
        }
        enough.store(true, Ordering::Release);
    });
    assert!(workers.iter().all(|worker| worker.group.epoch() == Some(8) && worker.is_connected()));
    let copies: usize = workers.iter().map(|worker| worker.toys.copies()).sum();
    assert_eq!(copies, LAYERS * EXPERTS);
    let adopted: u32 = workers.iter().map(|worker| worker.group.coverage().adopted).sum();
    assert_eq!(adopted, 0);
}

#[test]
fn a_worker_of_the_target_serves_and_is_connected_before_it_is_in_force() {
    let mut workers = group(2, 1, patient());
    let gone = workers.remove(1);
    let old = placement(1, 1, &[&workers[0], &gone], one_copy(2));
    gone.group.shutdown();
    let fresh = Worker::start(identity(1, "second-life"), 1, options(patient()));
    let new = placement(2, 1, &[&workers[0], &fresh], one_copy(2));
    workers[0].place_both(Some(&old), Some(&new));
    fresh.place_both(Some(&old), Some(&new));
    let live = |worker: &Worker, uid: &str| {
        worker.group.peers().iter().any(|peer| peer.uid == uid && peer.health == Health::Live)
    };
    until("they are connected", || live(&workers[0], "second-life") && live(&fresh, "u0"));
    let coverage = fresh.group.coverage();
    assert_eq!((coverage.epoch, coverage.adopted), (1, 0), "it is no member of what is in force");
    // commit
    workers[0].place(&new);
    let (x, routes) = batch(6, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
    fresh.place(&new);
    assert_eq!(fresh.exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
    assert!(workers[0].is_connected() && fresh.is_connected());

    // one that knows a target only, and nothing in force
    let third = Worker::start(identity(1, "third-life"), 1, options(patient()));
    let newer = placement(3, 1, &[&workers[0], &third], one_copy(2));
    workers[0].place_both(Some(&new), Some(&newer));
    third.place_both(None, Some(&newer));
    until("they are connected", || live(&workers[0], "third-life") && live(&third, "u0"));
    assert_eq!(third.group.epoch(), None);
    assert!(third.exchange(0, &x, &routes).is_err(), "it routes by nothing yet");
}

#[test]
fn a_member_that_was_dialled_too_early_is_dialled_again_as_soon_as_it_comes_itself() {
    let pause = Duration::from_secs(600); // longer than `until` waits
    let timeouts = Timeouts { redial_least: pause, redial_most: pause, ..patient() };
    let workers =
        [0, 1].map(|index| Worker::start(identity(index, &format!("u{index}")), 1, options(timeouts)));
    let placement = placement(1, 1, &[&workers[0], &workers[1]], one_copy(2));
    workers[0].place(&placement);
    until("it was dialled", || workers[0].message_of(1).contains("no placement in force yet"));
    workers[1].place(&placement);
    until("they are connected", || workers.iter().all(Worker::is_connected));
}

#[test]
fn a_worker_is_asked_by_neighbouring_epochs_for_whatever_it_has() {
    let workers = group(2, 1, patient());
    let members: Vec<&Worker> = workers.iter().collect();
    // worker 0 goes by a placement in which worker 1 has all; worker 1 has loaded all, and goes by the old one
    let all_there = placement(2, 1, &members, vec![vec![vec![1]; EXPERTS]; LAYERS]);
    let old = placement(1, 1, &members, one_copy(2));
    workers[1].place_both(Some(&old), Some(&all_there));
    workers[0].place(&all_there);
    let (x, routes) = batch(6, 0);
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
}

#[test]
fn a_stale_life_is_cut_off_and_told_why() {
    let workers = group(2, 1, Timeouts { ask: Duration::from_millis(600), ..patient() });
    let (x, routes) = batch(3, 0);
    let replacement = Worker::start(identity(1, "second-life"), 1, options(patient()));
    let placement = placement(2, 1, &[&workers[0], &replacement], one_copy(2));
    workers[0].place(&placement);
    replacement.place(&placement);
    until("the replacement is in", || workers[0].is_connected() && replacement.is_connected());
    // the old one still believes in epoch 1: it was cut off, dials again, and is told why not
    until("the stale one is refused", || workers[1].message_of(0).contains("placement epoch 1"));
    assert_eq!(workers[0].exchange(0, &x, &routes).unwrap(), reference(0, &x, &routes));
    // what it computes by itself is right all the same
    if let Ok(bits) = workers[1].exchange(0, &x, &routes) {
        assert_eq!(bits, reference(0, &x, &routes));
    }
}

#[test]
fn an_asker_of_another_placement_revision_checkpoint_or_format_reads_why_it_is_refused() {
    type Change = fn(&mut Identity);
    let cases: [(&str, u64, Change); 6] = [
        ("revision \"other\"", 1, |i| i.revision = "other".into()),
        ("checkpoint digest \"bad\"", 1, |i| i.digest = "bad".into()),
        ("hidden size 48", 1, |i| i.hidden = 48),
        ("row format Fp8", 1, |i| i.format = RowFormat::Fp8),
        ("group \"toy-1\"", 1, |i| i.group = "toy-1".into()),
        ("placement epoch 7", 7, |_| ()),
    ];
    for (reason, epoch, change) in cases {
        let mut odd = identity(1, "u1");
        change(&mut odd);
        let workers =
            [Worker::start(identity(0, "u0"), 1, options(quick())), Worker::start(odd, 1, options(quick()))];
        let members: Vec<&Worker> = workers.iter().collect();
        workers[0].place(&placement(1, 1, &members, one_copy(2)));
        workers[1].place(&placement(epoch, 1, &members, one_copy(2)));
        until(reason, || workers[1].message_of(0).contains(reason));
        assert!(workers[1].message_of(0).contains("refused"));
        assert!(!workers[1].is_connected() && !workers[0].is_connected());
    }
}

#[test]
fn workers_connect_with_the_same_key_only() {
    let with_key = |key: &[u8]| Options { key: key.to_vec(), ..options(quick()) };
    let cases: [(&[u8], &[u8], bool); 4] =
        [(b"a", b"a", true), (b"", b"", true), (b"a", b"b", false), (b"", b"a", false)];
    for (one, other, meet) in cases {
        let workers = [
            Worker::start(identity(0, "u0"), 1, with_key(one)),
            Worker::start(identity(1, "u1"), 1, with_key(other)),
        ];
        let placement = placement(1, 1, &workers.iter().collect::<Vec<_>>(), one_copy(2));
        workers.iter().for_each(|worker| worker.place(&placement));
        if meet {
            all_connected(&workers);
        } else {
            until("the key is wrong", || {
                workers[0].message_of(1).contains("does not know the group's fabric key")
            });
            assert!(!workers[0].is_connected() && !workers[1].is_connected());
        }
    }
}

/// Everything that a server says to these bytes.
fn answers(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // a reset instead of an orderly end is fine too, once the refusal is here
    let _ = stranger.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn an_asker_that_goes_on_without_a_proof_is_refused() {
    let workers = group(2, 1, quick());
    let address = workers[0].group.local_addr();
    let hello = wire::Hello {
        from: wire::WireIdentity {
            group: "toy-0".into(),
            revision: "abcd1234".into(),
            digest: "00ff".into(),
            worker: 1,
            uid: "u1".into(),
            epoch: 1,
            next_epoch: 0,
            hidden: HIDDEN as u32,
            format: 0,
        },
        to_worker: 0,
        to_uid: "u0".into(),
        purpose: wire::Purpose::Asks,
        nonce: [0; 32],
    };
    let (mut bytes, mut frame) = (Vec::new(), Vec::new());
    wire::encode_hello(&mut bytes, &hello);
    wire::encode_prove(&mut frame, &[0; 32]);
    bytes.extend_from_slice(&frame);
    assert!(answers(address, &bytes).contains("do not know the group's fabric key"));
}

#[test]
fn garbage_from_a_stranger_is_refused_and_harms_nobody() {
    let workers = group(2, 1, quick());
    let address = workers[0].group.local_addr();
    assert!(answers(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").contains("not a belay fabric frame"));
    let mut newer = Vec::new();
    wire::encode_empty(&mut newer, wire::Kind::Ping, 0);
    newer[4] = 9;
    assert!(answers(address, &newer).contains("version 9"));
    newer[4] = wire::VERSION as u8;
    newer[6] = wire::Kind::Admitted as u8;
    assert!(answers(address, &newer).contains("begins with a hello"));
    let mut huge = newer.clone();
    huge[6] = wire::Kind::Hello as u8;
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(answers(address, &huge).contains("the limit is"));
    let (x, routes) = batch(2, 0);
    assert!(workers[1].exchange(0, &x, &routes).is_ok());
}

#[test]
fn a_stranger_at_a_peers_address_never_counts_as_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let lonely = Worker::start(identity(0, "u0"), 1, options(quick()));
    let mut stranger = Worker::start(identity(1, "u1"), 1, options(quick()));
    stranger.address = Some(listener.local_addr().unwrap().to_string());
    lonely.place(&placement(1, 1, &[&lonely, &stranger], one_copy(2)));
    let (mut dialled, _) = listener.accept().unwrap();
    dialled.write_all(b"SSH-2.0-not-a-worker-of-this-group").unwrap();
    until("the stranger is recognised", || lonely.message_of(1).contains("not a belay fabric frame"));
    assert!(!lonely.is_connected());
}

#[test]
fn shutdown_ends_every_thread_even_with_a_silent_stranger_connected() {
    let workers = group(2, 1, quick());
    let _silent = TcpStream::connect(workers[0].group.local_addr()).unwrap();
    let started = Instant::now();
    workers.iter().for_each(|worker| worker.group.shutdown());
    assert!(started.elapsed() < Duration::from_secs(10));
    let (x, routes) = batch(1, 0);
    assert!(workers[0].exchange(0, &x, &routes).is_err());
}

#[test]
fn an_expert_that_its_holder_lacks_is_named_by_the_deadline_and_found_when_it_comes() {
    let workers = group(2, 1, Timeouts { ask: Duration::from_millis(500), ..patient() });
    let members: Vec<&Worker> = workers.iter().collect();
    let there = placement(2, 1, &members, vec![vec![vec![1]; EXPERTS]; LAYERS]);
    let table = |placement: &Placement| Table::new(placement.clone()).unwrap();
    // worker 0 believes that worker 1 holds all; worker 1 does not
    workers[0].place(&there);
    let (x, routes) = batch(1, 0);
    let missing = workers[0].exchange(0, &x, &routes);
    assert!(matches!(missing, Err(FabricError::NotResident { layer: 0, .. })), "{missing:?}");
    assert!(workers[0].is_connected(), "the link goes on");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| workers[0].exchange(0, &x, &routes));
        workers[1].toys.load(&table(&there), 1);
        assert_eq!(asking.join().unwrap().unwrap(), reference(0, &x, &routes));
    });
}

#[test]
fn a_panic_in_an_expert_reaches_the_asker_as_an_error_at_once() {
    let workers = group(2, 1, patient());
    let table = Table::new(placement(1, 1, &workers.iter().collect::<Vec<_>>(), one_copy(2))).unwrap();
    let bomb = Toy { panics_at: Some(1), ..Toy::new(table.of_rank(1)) };
    workers[1].group.update(Some(table), None, vec![Arc::new(bomb)]).unwrap();
    let route = |expert| [belay_backend::Route { row: 0, expert, weight: 1.0 }];
    let started = Instant::now();
    let failed = exchange(&*workers[0].group, 0, &[1.0; HIDDEN], &route(1));
    assert!(
        matches!(&failed, Err(FabricError::Protocol { worker: 1, cause }) if cause.contains("panicked")),
        "{failed:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(30), "not by the deadline");
    assert!(exchange(&*workers[0].group, 0, &[1.0; HIDDEN], &route(3)).is_ok(), "the connection goes on");
}
