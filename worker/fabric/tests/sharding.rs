//! Contract 1: the same bits for one rank, several ranks, and several workers, for any copies and row format.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use belay_backend::{Fabric, FabricError, Route};
use belay_fabric::{Options, RowFormat};
use common::{
    EXPERTS, HIDDEN, LAYERS, Worker, all_connected, batch, exchange, group, group_with, identity,
    one_process, options, placement, quick, reference, two_copies,
};
use proptest::prelude::*;

#[test]
fn ranks_of_one_process_equal_one_rank_bit_for_bit() {
    for format in RowFormat::ALL {
        let alone = one_process(1, format);
        for ranks in [2, 3, 4, EXPERTS as u32] {
            let sharded = one_process(ranks, format);
            for layer in 0..LAYERS as u32 {
                for rows in [1, 2, 17] {
                    let (x, routes) = batch(rows, layer);
                    assert_eq!(exchange(&alone, layer, &x, &routes), exchange(&sharded, layer, &x, &routes));
                }
            }
        }
    }
}

#[test]
fn two_workers_of_two_ranks_equal_one_rank_bit_for_bit() {
    let workers = group(2, 2, quick());
    for layer in 0..LAYERS as u32 {
        for rows in [1, 3, 40] {
            let (x, routes) = batch(rows, layer);
            let expected = reference(layer, &x, &routes);
            for worker in &workers {
                assert_eq!(worker.exchange(layer, &x, &routes).unwrap(), expected);
            }
        }
    }
    let stats = workers[0].group.stats().snapshot();
    assert_eq!(stats.latency.count, 9);
    assert!(
        stats.rows_sent > 0 && stats.bytes_sent > 0 && stats.bytes_received > 0 && stats.routes_served > 0
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_copies_and_format_give_the_bits_of_one_process(
        format in prop::sample::select(RowFormat::ALL.to_vec()),
        copies in prop::collection::vec(prop::collection::btree_set(0u32..6, 1..4), LAYERS * EXPERTS),
        rows in 1usize..30, layer in 0..LAYERS as u32, salt in any::<u8>(),
    ) {
        let layers: Vec<Vec<Vec<u32>>> = copies
            .chunks(EXPERTS)
            .map(|experts| experts.iter().map(|ranks| ranks.iter().copied().collect()).collect())
            .collect();
        let start = |index: u32| {
            let identity = belay_fabric::Identity { format, ..identity(index, &format!("u{index}")) };
            Worker::start(identity, 2, options(quick()))
        };
        let workers: Vec<Worker> = (0..3).map(start).collect();
        let placement = placement(1, 2, &workers.iter().collect::<Vec<_>>(), layers);
        workers.iter().for_each(|worker| worker.place(&placement));
        all_connected(&workers);
        let (x, routes) = batch(rows, u32::from(salt));
        let expected = exchange(&one_process(1, format), layer, &x, &routes).unwrap();
        for worker in &workers {
            prop_assert_eq!(&worker.exchange(layer, &x, &routes).unwrap(), &expected);
        }
    }
}

#[test]
fn copies_share_the_work() {
    let workers = group_with(2, 1, &options(quick()), two_copies(2, 1));
    let (x, routes) = batch(40, 0);
    workers[0].exchange(0, &x, &routes).unwrap();
    let (here, there) = (workers[0].toys.computed(), workers[1].toys.computed());
    assert_eq!(here + there, routes.len());
    assert!(here.abs_diff(there) <= routes.len() / 4, "{here} here, {there} there");
}

#[test]
fn an_exchange_in_many_small_pieces_gives_the_same_bits() {
    let small = Options { ask_bytes: 1000, ..options(quick()) };
    let workers = group_with(2, 1, &small, common::one_copy(2));
    for rows in [1, 50, 4000] {
        let (x, routes) = batch(rows, 5);
        let expected = reference(1, &x, &routes);
        assert_eq!(workers[0].exchange(1, &x, &routes).unwrap(), expected, "{rows} rows");
    }
}

#[test]
fn an_empty_exchange_is_fine() {
    let workers = group(2, 1, quick());
    assert_eq!(workers[0].exchange(0, &[0.0; HIDDEN], &[]), Ok(vec![]));
}

#[test]
fn workers_that_ask_each_other_at_the_same_time_do_not_wait_for_one_another() {
    let workers = group(3, 2, quick());
    std::thread::scope(|scope| {
        for worker in &workers {
            // two asking threads each: exchanges of one worker overlap as well
            for thread in 0..2u32 {
                scope.spawn(move || {
                    let alone = one_process(1, RowFormat::F32);
                    for step in 0..60u32 {
                        // large enough to fill socket buffers in both directions
                        let rows = if step % 20 == 0 { 4000 } else { 5 };
                        let (x, routes) = batch(rows, step + thread);
                        let layer = step % LAYERS as u32;
                        let expected = exchange(&alone, layer, &x, &routes).unwrap();
                        assert_eq!(worker.exchange(layer, &x, &routes).unwrap(), expected);
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
    let refused = workers[0].exchange(0, &x, &routes).unwrap_err();
    assert!(refused.to_string().contains("row 2 of 2"), "{refused}");
    let refused = workers[0].exchange(0, &x[1..], &routes).unwrap_err();
    assert!(refused.to_string().contains("channels"), "{refused}");
    let unknown = [Route { row: 0, expert: 99, weight: 1.0 }];
    for fabric in [&*workers[0].group as &dyn Fabric, &one_process(1, RowFormat::F32)] {
        let refused = exchange(fabric, 0, &[0.0; HIDDEN], &unknown);
        assert_eq!(refused, Err(FabricError::NotResident { layer: 0, expert: 99 }));
        assert!(exchange(fabric, 9, &[0.0; HIDDEN], &unknown).is_err());
    }
}

#[test]
fn loads_count_the_routes_of_the_asker() {
    let workers = group(2, 1, quick());
    let alone = one_process(2, RowFormat::F32);
    let (x, routes) = batch(20, 0);
    workers[0].exchange(2, &x, &routes).unwrap();
    exchange(&alone, 2, &x, &routes).unwrap();
    let mut expected = vec![0.0; EXPERTS];
    routes.iter().for_each(|route| expected[route.expert as usize] += 1000.0);
    for loads in [workers[0].group.loads(), alone.loads()] {
        assert_eq!(loads.layers.len(), LAYERS);
        assert!(loads.layers[0].iter().all(|&milli| milli == 0));
        for (&milli, &rows) in loads.layers[2].iter().zip(&expected) {
            // counts decay from the moment that they were made
            assert!(milli as f64 <= rows && milli as f64 >= rows * 0.5, "{milli} of {rows}");
        }
    }
    assert!(workers[1].group.loads().layers[2].iter().all(|&milli| milli == 0), "it asked nothing");
}
