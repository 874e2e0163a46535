//! Contract 1: the same bits for one rank, several ranks, and several workers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{EXPERTS, HIDDEN, LAYERS, batch, exchange, group, one_process, quick};

#[test]
fn ranks_of_one_process_equal_one_rank_bit_for_bit() {
    let alone = one_process(1);
    for ranks in [2, 3, 4, EXPERTS as u32] {
        let sharded = one_process(ranks);
        for layer in 0..LAYERS as u32 {
            for rows in [1, 2, 17] {
                let (x, routes) = batch(rows, layer);
                assert_eq!(exchange(&alone, layer, &x, &routes), exchange(&sharded, layer, &x, &routes));
            }
        }
    }
}

#[test]
fn two_workers_of_two_ranks_equal_one_rank_bit_for_bit() {
    let alone = one_process(1);
    let workers = group(2, 2, quick());
    for layer in 0..LAYERS as u32 {
        for rows in [1, 3, 40] {
            let (x, routes) = batch(rows, layer);
            let expected = exchange(&alone, layer, &x, &routes).unwrap();
            for worker in &workers {
                assert_eq!(exchange(&*worker.group, layer, &x, &routes).unwrap(), expected);
            }
        }
    }
    let stats = workers[0].group.stats().snapshot();
    assert_eq!(stats.latency.count, 9);
    assert!(
        stats.rows_sent > 0 && stats.bytes_sent > 0 && stats.bytes_received > 0 && stats.routes_served > 0
    );
}

#[test]
fn an_empty_exchange_is_fine() {
    let workers = group(2, 1, quick());
    assert_eq!(exchange(&*workers[0].group, 0, &[0.0; HIDDEN], &[]), Ok(vec![]));
}

#[test]
fn workers_that_ask_each_other_at_the_same_time_do_not_wait_for_one_another() {
    let workers = group(3, 2, quick());
    let alone = one_process(1);
    std::thread::scope(|scope| {
        for worker in &workers {
            // two asking threads each: exchanges of one worker overlap as well
            for thread in 0..2u32 {
                let alone = &alone;
                scope.spawn(move || {
                    for step in 0..60u32 {
                        // large enough to fill socket buffers in both directions
                        let rows = if step % 20 == 0 { 4000 } else { 5 };
                        let (x, routes) = batch(rows, step + thread);
                        let layer = step % LAYERS as u32;
                        let expected = exchange(alone, layer, &x, &routes).unwrap();
                        assert_eq!(exchange(&*worker.group, layer, &x, &routes).unwrap(), expected);
                    }
                });
            }
        }
    });
}

#[test]
fn shapes_that_disagree_are_refused_before_anything_is_read() {
    let workers = group(2, 1, quick());
    let (x, mut routes) = batch(2, 0);
    routes[0].row = 2;
    let refused = exchange(&*workers[0].group, 0, &x, &routes).unwrap_err();
    assert!(refused.to_string().contains("row 2 of 2"), "{refused}");
    let refused = exchange(&*workers[0].group, 0, &x[1..], &routes).unwrap_err();
    assert!(refused.to_string().contains("channels"), "{refused}");
}
