//! When experts move for the sake of balance, and when they do not.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]

use std::time::Duration;

use belay_operator::placement::{
    Aim, Copies, Fleet, Load, Model, imbalance_percent, plan,
    rebalance::{Change, Decision, Hold, Price, Terms, chance_percent, decide},
};
use belay_proto::admin::{ExpertCopies, ExpertLoad, LayerLoad, LayerPlacement};
use proptest::prelude::*;

const MEGABYTE: u64 = 1 << 20;

fn terms() -> Terms {
    Terms {
        threshold_percent: 130,
        min_interval: Duration::from_secs(300),
        since_last: None,
        most_moves: 1000,
        price: Price::default(),
    }
}

/// Numbers that look random, the same for a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// Each of so many tokens goes to as many different experts, all equally likely.
fn routed_evenly(model: &Model, tokens: u64, experts_per_token: u64, dice: &mut Dice) -> Load {
    let experts = u64::from(model.experts);
    let layer = |dice: &mut Dice| {
        let mut counts = vec![0; model.experts as usize];
        for _ in 0..tokens {
            let mut chosen = vec![];
            while (chosen.len() as u64) < experts_per_token.min(experts) {
                let expert = dice.next(experts);
                if !chosen.contains(&expert) {
                    chosen.push(expert);
                    counts[expert as usize] += 1000;
                }
            }
        }
        counts
    };
    Load::new((0..model.layers).map(|_| layer(dice)).collect())
}

struct Group {
    model: Model,
    copies: Copies,
    fleet: Fleet,
    current: Vec<LayerPlacement>,
}

impl Group {
    fn new(layers: u32, experts: u32, workers: u32, per_worker: u32, copies: Copies) -> Self {
        let model = Model { layers, experts, expert_bytes: 35 * MEGABYTE };
        let fleet = Fleet::new(workers, per_worker);
        let current = plan(&model, &copies, &fleet, None, None, Aim::Repair).unwrap().layers;
        Self { model, copies, fleet, current }
    }

    fn decide(&self, load: &Load, terms: &Terms) -> Decision {
        decide(&self.model, &self.copies, &self.fleet, load, &self.current, terms).unwrap()
    }
}

fn moved(decision: Decision) -> Change {
    match decision {
        Decision::Move(change) => *change,
        Decision::Hold(hold) => panic!("{hold}"),
    }
}

fn held(decision: Decision) -> Hold {
    match decision {
        Decision::Hold(hold) => hold,
        Decision::Move(change) => panic!("{change:?}"),
    }
}

/// Experts 0 to 3 of 32, all on the first of 8 ranks, get as many tokens as all others together.
fn lopsided(tokens: u64) -> (Group, Load) {
    let group = Group::new(2, 32, 4, 2, Copies::default());
    let layer =
        (0..32).map(|expert| if expert < 4 { tokens * 1000 / 8 } else { tokens * 1000 / 56 }).collect();
    (group, Load::new(vec![layer; 2]))
}

proptest! {
    /// Whatever the group and however few or many tokens: what an even router does moves nothing.
    #[test]
    fn even_load_moves_nothing(
        layers in 1u32..4, workers in 1u32..6, per_worker in 1u32..4, more in 0u32..24,
        min in 1u32..3, redundant in 0u32..6, tokens in 0u64..3000, experts_per_token in 1u64..7,
        threshold_percent in 101u32..160, seed in any::<u64>(),
    ) {
        let copies = Copies { min, redundant };
        let group = Group::new(layers, workers * per_worker + more, workers, per_worker, copies);
        let load = routed_evenly(&group.model, tokens, experts_per_token, &mut Dice(seed));
        let terms = Terms { threshold_percent, ..terms() };
        let decision = group.decide(&load, &terms);
        prop_assert!(matches!(decision, Decision::Hold(_)), "{:?}", decision);
    }

    /// The measure of chance is above what an even router shows, and not absurdly so.
    #[test]
    fn chance_bounds_what_an_even_router_shows(
        layers in 1u32..5, workers in 2u32..6, per_rank in 1u32..5, tokens in 1u64..2000, seed in any::<u64>(),
    ) {
        let group = Group::new(layers, workers * 2 * per_rank, workers, 2, Copies::default());
        let load = routed_evenly(&group.model, tokens, 1, &mut Dice(seed));
        let shown = f64::from(imbalance_percent(&group.current, Some(&load), &group.fleet)) - 100.0;
        let bound = chance_percent(&load, &group.model, &group.fleet) - 100.0;
        prop_assert!(shown <= bound, "{shown} > {bound}");
        let per_rank = tokens as f64 / f64::from(workers * 2);
        prop_assert!(bound <= 100.0 * (12.0 / per_rank.sqrt() + 8.0 / per_rank), "{bound} for {per_rank}");
    }

    /// Skewed load that is seen for long moves experts, and well: never worse, never more than may be.
    #[test]
    fn skewed_load_that_is_certain_moves_experts(hot in 0u32..8, factor in 3u64..9, most_moves in 8u32..60) {
        let group = Group::new(3, 64, 4, 2, Copies { min: 1, redundant: 8 });
        let weigh = |expert: u32| if expert / 8 == hot { factor * 10_000_000 } else { 10_000_000 };
        let load = Load::new(vec![(0..64).map(weigh).collect(); 3]);
        let change = moved(group.decide(&load, &Terms { most_moves, ..terms() }));
        prop_assert!(change.planned.moves.len() <= most_moves as usize);
        prop_assert_eq!(change.bytes, change.planned.moves.len() as u64 * 35 * MEGABYTE);
        let now = imbalance_percent(&change.planned.layers, Some(&load), &group.fleet);
        prop_assert_eq!(now, change.after_percent);
        prop_assert!(3 * (change.before_percent - now) >= change.before_percent - 100);
        prop_assert!(change.gain_seconds > change.cost_seconds);
    }
}

#[test]
fn lopsided_load_is_evened_out() {
    let (group, load) = lopsided(100_000);
    let change = moved(group.decide(&load, &terms()));
    assert_eq!(change.before_percent, 400);
    assert!(change.after_percent <= 130, "{change:?}");
}

#[test]
fn few_tokens_prove_nothing_and_more_are_needed_for_less() {
    let percent = |tokens| {
        let (group, load) = lopsided(tokens);
        group.decide(&load, &terms())
    };
    let Hold::Chance { percent: 400, chance_percent: chance } = held(percent(20)) else { panic!() };
    assert!(chance > 250, "{chance}");
    moved(percent(1000));

    // what the documentation says of the number of tokens
    for (ranks, layers, experts_per_token, tokens) in [(128, 61, 6, 40_000u64), (16, 61, 6, 4_000)] {
        let model = Model { layers, experts: ranks, expert_bytes: 1 };
        let fleet = Fleet::new(ranks, 1);
        let even = |tokens: u64| {
            let each = tokens * 1000 * experts_per_token / u64::from(ranks);
            let load = Load::new(vec![vec![each; ranks as usize]; layers as usize]);
            chance_percent(&load, &model, &fleet)
        };
        assert!(even(tokens / 2) > 115.0 && even(tokens * 3 / 2) < 115.0, "{} {}", even(tokens), ranks);
        assert!(even(tokens / 20) > 150.0 && even(tokens * 3 / 20) < 150.0, "{}", even(tokens / 10));
    }
}

#[test]
fn interval_threshold_and_price_hold_back() {
    let (group, load) = lopsided(100_000);
    let since = |seconds| Terms { since_last: Some(Duration::from_secs(seconds)), ..terms() };
    assert_eq!(held(group.decide(&load, &since(299))), Hold::TooSoon { left: Duration::from_secs(1) });
    moved(group.decide(&load, &since(300)));
    let high = Terms { threshold_percent: 401, ..terms() };
    assert_eq!(held(group.decide(&load, &high)), Hold::Even { percent: 400, threshold_percent: 401 });
    let slow = Price { bytes_per_second: 100_000, ..Price::default() };
    let Hold::NotWorth { gain_seconds, cost_seconds } =
        held(group.decide(&load, &Terms { price: slow, ..terms() }))
    else {
        panic!()
    };
    assert!(gain_seconds < cost_seconds && gain_seconds > 50.0, "{gain_seconds} {cost_seconds}");
    let none = Terms { most_moves: 0, ..terms() };
    assert_eq!(held(group.decide(&load, &none)), Hold::NothingBetter { percent: 400, after_percent: 400 });
}

/// One expert that is more than a rank's share, and no redundant copies to give it: there is nothing to gain.
#[test]
fn what_cannot_be_better_is_left() {
    let group = Group::new(1, 8, 8, 1, Copies::default());
    let mut counts = vec![1_000_000; 8];
    counts[3] = 9_000_000;
    let load = Load::new(vec![counts]);
    assert!(matches!(held(group.decide(&load, &terms())), Hold::NothingBetter { .. }));
    // after a change, the same load asks for none
    let (mut group, load) = lopsided(100_000);
    group.current = moved(group.decide(&load, &terms())).planned.layers;
    assert!(matches!(group.decide(&load, &terms()), Decision::Hold(_)));
}

#[test]
fn imbalance_is_the_busiest_rank_over_the_mean_summed_over_layers() {
    let on = |ranks: &[u32]| ExpertCopies { ranks: ranks.to_vec() };
    let layers = vec![
        LayerPlacement { experts: vec![on(&[0]), on(&[1]), on(&[0, 1])] },
        LayerPlacement { experts: vec![on(&[1]), on(&[1]), on(&[0])] },
    ];
    let load = Load::new(vec![vec![300, 100, 200], vec![100, 100, 100]]);
    let mut fleet = Fleet::new(2, 1);
    // busiest 400 and 200, mean 300 and 150
    assert_eq!(imbalance_percent(&layers, Some(&load), &fleet), 133);
    // no load: the first layer is even, the second 2 to 1
    assert_eq!(imbalance_percent(&layers, None, &fleet), 117);
    // a layer that nobody used does not count
    let first = Load::new(vec![vec![300, 100, 200], vec![0, 0, 0]]);
    assert_eq!(imbalance_percent(&layers, Some(&first), &fleet), 133);
    assert_eq!(imbalance_percent(&layers, Some(&Load::default()), &fleet), 100);
    // one rank alone is even
    fleet.workers[1].usable = false;
    assert_eq!(imbalance_percent(&layers, Some(&load), &fleet), 100);
}

#[test]
fn reports_of_workers_are_added_and_strangers_left_out() {
    let report = |counts: &[&[u64]]| ExpertLoad {
        layers: counts.iter().map(|layer| LayerLoad { millitokens: layer.to_vec() }).collect(),
        ..ExpertLoad::default()
    };
    let model = Model { layers: 2, experts: 2, expert_bytes: 1 };
    let reports = [
        report(&[&[1, 2], &[3, 4]]),
        report(&[&[10, 20], &[30, 40]]),
        report(&[&[5, 5]]),
        report(&[&[1], &[1]]),
    ];
    let load = Load::sum(&model, &reports);
    assert_eq!(load, Load::new(vec![vec![11, 22], vec![33, 44]]));
    assert!((load.routes(1) - 0.077).abs() < 1e-9);
}
