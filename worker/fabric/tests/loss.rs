//! Peers that go away, come back, hang, refuse, or change.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use belay_backend::FabricError;
use belay_fabric::{Identity, Timeouts, wire};
use common::{Worker, addresses, batch, exchange, group, identity, one_process, placement, quick, until};

fn message_of_peer(worker: &Worker) -> String {
    worker.group.peers()[0].message.clone()
}

#[test]
fn a_peer_killed_in_the_middle_of_an_exchange_fails_it_and_recovers_under_a_new_epoch() {
    let mut workers = group(2, 2, quick());
    let (x, routes) = batch(8, 1);
    let expected = exchange(&one_process(1), 0, &x, &routes).unwrap();
    assert_eq!(exchange(&*workers[0].group, 0, &x, &routes).unwrap(), expected);

    let killed = workers.remove(1);
    killed.held.store(true, Ordering::Release);
    let (group, held) = (killed.group, killed.held);
    let lost = std::thread::scope(|scope| {
        let asking = scope.spawn(|| exchange(&*workers[0].group, 0, &x, &routes));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asking.is_finished(), "the peer holds the ask");
        scope.spawn(|| {
            // shutdown cuts the sockets first, then waits for the compute that still runs
            std::thread::sleep(Duration::from_millis(200));
            held.store(false, Ordering::Release);
        });
        group.shutdown();
        asking.join().unwrap()
    });
    assert!(matches!(lost, Err(FabricError::PeerLost { worker: 1, .. })), "{lost:?}");
    drop(group);
    until("the loss is seen", || !workers[0].connected());
    let refused = exchange(&*workers[0].group, 0, &x, &routes);
    assert!(matches!(refused, Err(FabricError::PeerLost { worker: 1, .. })), "{refused:?}");

    workers.push(Worker::start(identity(1, "second-life"), quick()));
    let placement = placement(2, 2, &addresses(&workers));
    workers.iter().for_each(|worker| worker.place(&placement));
    workers.iter().for_each(|worker| until("connected again", || worker.connected()));
    for worker in &workers {
        assert_eq!(exchange(&*worker.group, 0, &x, &routes).unwrap(), expected);
    }
}

#[test]
fn the_loss_of_an_idle_peer_is_noticed_without_an_exchange() {
    let mut workers = group(2, 1, quick());
    drop(workers.remove(1));
    until("the loss is seen", || !workers[0].connected());
    assert!(!message_of_peer(&workers[0]).is_empty());
}

#[test]
fn a_peer_that_hangs_is_a_timeout_and_is_dialled_again() {
    let workers = group(2, 1, Timeouts { ask: Duration::from_millis(150), ..quick() });
    let (x, routes) = batch(4, 0);
    workers[1].held.store(true, Ordering::Release);
    let started = Instant::now();
    let late = exchange(&*workers[0].group, 0, &x, &routes);
    assert_eq!(late, Err(FabricError::Timeout { worker: 1, millis: 150 }));
    assert!(started.elapsed() < Duration::from_secs(3), "bounded by the deadline, not by the peer");
    workers[1].held.store(false, Ordering::Release);
    until("it works again", || exchange(&*workers[0].group, 0, &x, &routes).is_ok());
}

#[test]
fn a_peer_that_computes_long_is_not_taken_for_lost() {
    let workers = group(2, 1, Timeouts { handshake: Duration::from_millis(200), ..quick() });
    let (x, routes) = batch(4, 0);
    workers[1].held.store(true, Ordering::Release);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| exchange(&*workers[0].group, 0, &x, &routes));
        // many heartbeats, and longer than a ping may take
        std::thread::sleep(Duration::from_millis(800));
        assert!(!asking.is_finished());
        workers[1].held.store(false, Ordering::Release);
        assert_eq!(asking.join().unwrap(), exchange(&one_process(1), 0, &x, &routes));
    });
}

#[test]
fn a_peer_that_vanishes_without_a_word_fails_the_exchange_before_its_deadline() {
    // between the two workers, so that all bytes of worker 1 can be made to stop without closing anything
    let timeouts =
        Timeouts { ask: Duration::from_secs(60), handshake: Duration::from_millis(300), ..quick() };
    let workers: Vec<Worker> =
        (0..2).map(|index| Worker::start(identity(index, &format!("u{index}")), timeouts)).collect();
    let tunnel = common::Tunnel::to(workers[1].group.local_addr());
    let mut addresses = addresses(&workers);
    addresses[1].0 = tunnel.address.to_string();
    let placement = placement(1, 1, &addresses);
    workers.iter().for_each(|worker| worker.place(&placement));
    workers.iter().for_each(|worker| until("connected", || worker.connected()));
    let (x, routes) = batch(4, 0);
    assert!(exchange(&*workers[0].group, 0, &x, &routes).is_ok());

    tunnel.blocked.store(true, Ordering::Release);
    let started = Instant::now();
    let lost = exchange(&*workers[0].group, 0, &x, &routes);
    assert!(matches!(lost, Err(FabricError::PeerLost { worker: 1, .. })), "{lost:?}");
    assert!(started.elapsed() < Duration::from_secs(30), "the heartbeat notices it, not the ask's deadline");
    tunnel.blocked.store(false, Ordering::Release);
    until("it works again", || exchange(&*workers[0].group, 0, &x, &routes).is_ok());
}

#[test]
fn a_second_copy_serves_while_its_first_holder_is_away() {
    let mut workers: Vec<Worker> =
        (0..3).map(|i| Worker::start(identity(i, &format!("u{i}")), quick())).collect();
    let mut placement = placement(1, 1, &addresses(&workers));
    for copies in placement.layers.iter_mut().flatten() {
        copies.push((copies[0] + 1) % 3);
    }
    workers.iter().for_each(|worker| worker.place(&placement));
    workers.iter().for_each(|worker| until("connected", || worker.connected()));
    let (x, routes) = batch(9, 2);
    let expected = exchange(&one_process(1), 1, &x, &routes).unwrap();
    drop(workers.remove(1));
    until("the loss is seen", || workers[0].group.peers().iter().any(|peer| !peer.connected));
    assert_eq!(exchange(&*workers[0].group, 1, &x, &routes).unwrap(), expected);
}

#[test]
fn a_placement_update_under_load_loses_no_exchange_of_workers_that_stay() {
    let workers = group(2, 2, quick());
    let (x, routes) = batch(6, 3);
    let expected = exchange(&one_process(1), 2, &x, &routes).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for epoch in 2..12 {
                let placement = placement(epoch, 2, &addresses(&workers));
                workers.iter().for_each(|worker| worker.place(&placement));
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        for worker in &workers {
            let (x, routes, expected) = (&x, &routes, &expected);
            scope.spawn(move || {
                for _ in 0..200 {
                    assert_eq!(exchange(&*worker.group, 2, x, routes).as_ref(), Ok(expected));
                }
            });
        }
    });
    assert_eq!(workers[0].group.epoch(), Some(11));
}

#[test]
fn an_asker_of_another_placement_revision_or_checkpoint_reads_why_it_is_refused() {
    type Change = fn(&mut Identity);
    let cases: [(&str, u64, Change); 5] = [
        ("revision \"other\"", 1, |i| i.revision = "other".into()),
        ("checkpoint digest \"bad\"", 1, |i| i.digest = "bad".into()),
        ("hidden size 48", 1, |i| i.hidden = 48),
        ("group \"toy-1\"", 1, |i| i.group = "toy-1".into()),
        ("placement epoch 7", 7, |_| ()),
    ];
    for (reason, epoch, change) in cases {
        let mut odd = identity(1, "u1");
        change(&mut odd);
        let workers = [Worker::start(identity(0, "u0"), quick()), Worker::start(odd, quick())];
        workers[0].place(&placement(1, 1, &addresses(&workers)));
        workers[1].place(&placement(epoch, 1, &addresses(&workers)));
        until(reason, || message_of_peer(&workers[1]).contains(reason));
        assert!(message_of_peer(&workers[1]).contains("refused"));
        assert!(!workers[1].connected() && !workers[0].connected());
    }
}

#[test]
fn a_stale_life_of_a_worker_cannot_rejoin_and_its_connection_is_cut() {
    let workers = group(2, 1, quick());
    let (x, routes) = batch(3, 0);
    let replacement = Worker::start(identity(1, "second-life"), quick());
    let placement = placement(2, 1, &[workers[0].address(), replacement.address()]);
    workers[0].place(&placement);
    replacement.place(&placement);
    until("the replacement is in", || workers[0].connected() && replacement.connected());
    // the old one still believes in epoch 1: it was cut off, dials again, and is told why not
    until("the stale one is refused", || message_of_peer(&workers[1]).contains("placement epoch 1"));
    assert!(exchange(&*workers[1].group, 0, &x, &routes).is_err());
    assert!(exchange(&*workers[0].group, 0, &x, &routes).is_ok());
}

#[test]
fn an_expert_that_its_holder_lacks_is_named_and_the_link_survives() {
    let workers = group(2, 1, quick());
    let wider = {
        let mut placement = placement(2, 1, &addresses(&workers));
        placement.layers[0].iter_mut().for_each(|copies| *copies = vec![1]);
        placement
    };
    // worker 0 believes that worker 1 holds all; worker 1 still has the placement of before
    workers[0].place(&wider);
    let (x, routes) = batch(1, 0);
    let missing = exchange(&*workers[0].group, 0, &x, &routes);
    assert!(matches!(missing, Err(FabricError::NotResident { layer: 0, .. })), "{missing:?}");
    assert!(workers[0].connected());
}

#[test]
fn a_panic_in_an_expert_reaches_the_asker_as_an_error() {
    let workers = group(2, 1, quick());
    let table = belay_fabric::Table::new(placement(1, 1, &addresses(&workers))).unwrap();
    let bomb = common::Toy {
        resident: table.of_rank(1).collect(),
        held: std::sync::Arc::default(),
        panics_at: Some(1),
    };
    workers[1].group.update(table, vec![std::sync::Arc::new(bomb)]).unwrap();
    let routes = [belay_backend::Route { row: 0, expert: 1, weight: 1.0 }];
    let failed = exchange(&*workers[0].group, 0, &[1.0; common::HIDDEN], &routes);
    assert!(
        matches!(&failed, Err(FabricError::Protocol { worker: 1, cause }) if cause.contains("panicked")),
        "{failed:?}"
    );
    let routes = [belay_backend::Route { row: 0, expert: 3, weight: 1.0 }];
    assert!(
        exchange(&*workers[0].group, 0, &[1.0; common::HIDDEN], &routes).is_ok(),
        "the connection goes on"
    );
}

#[test]
fn garbage_from_a_stranger_is_refused_and_harms_nobody() {
    let workers = group(2, 1, quick());
    let address = workers[0].group.local_addr();
    let answers = |bytes: &[u8]| {
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // a reset instead of an orderly end is fine too, once the refusal is here
        let _ = stranger.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(answers(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").contains("not a belay fabric frame"));
    let mut newer = Vec::new();
    wire::encode_empty(&mut newer, wire::Kind::Ping);
    newer[4] = 9;
    assert!(answers(&newer).contains("version 9"));
    newer[4] = wire::VERSION as u8;
    assert!(answers(&newer).contains("begins with a hello"));
    let mut huge = newer.clone();
    huge[6] = wire::Kind::Hello as u8;
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(answers(&huge).contains("the limit is"));
    let (x, routes) = batch(2, 0);
    assert!(exchange(&*workers[1].group, 0, &x, &routes).is_ok());
}

#[test]
fn a_stranger_at_a_peers_address_never_counts_as_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lonely = Worker::start(identity(0, "u0"), quick());
    lonely.place(&placement(1, 1, &[lonely.address(), (address, "u1".into())]));
    let (mut dialled, _) = listener.accept().unwrap();
    dialled.write_all(b"SSH-2.0-not-a-worker-of-this-group").unwrap();
    until("the stranger is recognised", || message_of_peer(&lonely).contains("not a belay fabric frame"));
    assert!(!lonely.connected());
}

#[test]
fn shutdown_ends_every_thread_even_with_a_silent_stranger_connected() {
    let workers = group(2, 1, quick());
    let _silent = TcpStream::connect(workers[0].group.local_addr()).unwrap();
    let started = Instant::now();
    workers.iter().for_each(|worker| worker.group.shutdown());
    assert!(started.elapsed() < Duration::from_secs(5));
    let (x, routes) = batch(1, 0);
    assert!(exchange(&*workers[0].group, 0, &x, &routes).is_err());
}
