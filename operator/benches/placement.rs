//! What a plan takes for a model of DeepSeek-V4-Pro's shape on 16 workers with 8 ranks each.
//!
//! `cargo bench -p belay-operator --bench placement`
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use belay_operator::placement::{
    Aim, Copies, Fleet, Load, Model, Planned, Worker, imbalance_percent, plan,
    rebalance::{self, Decision, Price, Terms},
};
use belay_proto::admin::LayerPlacement;

const MODEL: Model = Model { layers: 61, experts: 384, expert_bytes: 35 << 20 };
const COPIES: Copies = Copies { min: 1, redundant: 32 };
const ROUNDS: u64 = 15;

/// Tokens by Zipf's law, which experts are used most differing from layer to layer.
fn zipf(seed: u64, exponent: f64) -> Load {
    let mut state = seed;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let layer = |_| {
        let mut counts: Vec<u64> =
            (1..=MODEL.experts).map(|place| (1e9 / f64::from(place).powf(exponent)) as u64).collect();
        (1..counts.len()).rev().for_each(|index| counts.swap(index, random(index + 1)));
        counts
    };
    Load::new((0..MODEL.layers).map(layer).collect())
}

fn fleet() -> Fleet {
    let worker = |index: u32| Worker {
        bytes_limit: Some(80 << 30),
        host: Some(format!("host-{index}")),
        domain: Some(format!("superpod-{}", index / 8)),
        ..Worker::default()
    };
    Fleet { workers: (0..16).map(worker).collect(), ranks_per_worker: 8 }
}

fn make(fleet: &Fleet, load: Option<&Load>, current: Option<&[LayerPlacement]>, aim: Aim) -> Planned {
    plan(&MODEL, &COPIES, fleet, load, current, aim).unwrap()
}

/// Runs it once for each seed; prints how long that took and what came out of the last.
fn measure(name: &str, run: impl Fn(u64) -> (usize, u32)) {
    let mut times = Vec::new();
    let mut result = (0, 0);
    for seed in 1..=ROUNDS {
        let started = Instant::now();
        result = black_box(run(seed));
        times.push(started.elapsed());
    }
    times.sort();
    let (min, median): (Duration, Duration) = (times[0], times[times.len() / 2]);
    println!(
        "{name:42} min {min:9.1?}  median {median:9.1?}  moves {:6}  imbalance {} %",
        result.0, result.1
    );
}

fn main() {
    let whole = fleet();
    let mut short = whole.clone();
    short.workers[5].usable = false;
    let loads: Vec<Load> = (0..=ROUNDS).map(|seed| zipf(seed, 0.8)).collect();
    let load = |seed: u64| &loads[seed as usize];
    let result = |planned: &Planned, load: &Load, fleet: &Fleet| {
        (planned.moves.len(), imbalance_percent(&planned.layers, Some(load), fleet))
    };

    measure("from scratch, no load", |seed| {
        result(&make(&whole, None, None, Aim::Repair), load(seed), &whole)
    });
    measure("from scratch", |seed| {
        result(&make(&whole, Some(load(seed)), None, Aim::Repair), load(seed), &whole)
    });
    let placed = make(&whole, None, None, Aim::Repair).layers;
    let balanced = make(&whole, Some(load(0)), None, Aim::Repair).layers;
    measure("repair, one worker of 16 lost", |seed| {
        result(&make(&short, Some(load(seed)), Some(&balanced), Aim::Repair), load(seed), &short)
    });
    let repaired = make(&short, Some(load(0)), Some(&balanced), Aim::Repair).layers;
    measure("refill, that worker came back", |seed| {
        result(&make(&whole, Some(load(seed)), Some(&repaired), Aim::Refill), load(seed), &whole)
    });
    measure("imbalance of ranges", |seed| (0, imbalance_percent(&placed, Some(load(seed)), &whole)));
    for most_moves in [256, 2048, u32::MAX] {
        measure(&format!("rebalance ranges, at most {most_moves}"), |seed| {
            let aim = Aim::Rebalance { most_moves };
            result(&make(&whole, Some(load(seed)), Some(&placed), aim), load(seed), &whole)
        });
    }
    let terms = Terms {
        threshold_percent: 130,
        min_interval: Duration::from_secs(300),
        since_last: None,
        most_moves: 2048,
        price: Price::default(),
    };
    measure("decide, load turned over", |seed| {
        match rebalance::decide(&MODEL, &COPIES, &whole, load(seed), &balanced, &terms).unwrap() {
            Decision::Move(change) => (change.planned.moves.len(), change.after_percent),
            Decision::Hold(_) => (0, 0),
        }
    });
}
