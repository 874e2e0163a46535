//! How many groups there should be: promises that hold whatever happens, and the order of the rules.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use belay_crds::{AutoscalingSpec, AutoscalingStatus, ScalingReason as Reason};
use belay_operator::scaling::{
    Decision, FirstToken, Groups, Heard, Memory, Scale, Signals, Terms, View, decide, report,
};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

fn terms(spec: Value) -> Terms {
    let spec: AutoscalingSpec = serde_json::from_value(spec).unwrap();
    Terms::new(&spec).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn signals(second: i64, tokens: u64) -> Signals {
    Signals {
        measured: at(second),
        heard: Heard::All,
        held: 0,
        held_tokens: 0,
        outstanding: tokens.div_ceil(500),
        outstanding_tokens: tokens,
        idle_seconds: 0,
        served_tokens: 0,
        first_token: FirstToken::default(),
        kv_percent: None,
    }
}

fn ready(ready: u32) -> Groups {
    Groups { ready, ..Groups::default() }
}

/// Decides and does it, as the operator would.
fn step(
    terms: &Terms,
    memory: &mut Memory,
    groups: Groups,
    current: &mut u32,
    second: i64,
    signals: Option<&Signals>,
) -> Decision {
    let view = View { current: *current, groups, rolling_out: false, signals };
    let decision = decide(terms, &view, memory, at(second));
    if decision.desired != *current {
        memory.scaled(Scale {
            at: at(second),
            from: *current,
            to: decision.desired,
            reason: decision.reason,
        });
        *current = decision.desired;
    }
    decision
}

/// One decision without a past.
fn once(spec: Value, current: u32, groups: Groups, signals: Option<&Signals>) -> Decision {
    let view = View { current, groups, rolling_out: false, signals };
    decide(&terms(spec), &view, &mut Memory::default(), at(0))
}

#[test]
fn most_groups_alone_are_a_spec() {
    let spec = json!({ "maxReplicas": 4 });
    for (tokens, desired, reason) in [
        (16384, 1, Reason::AsLoadAsks),
        (18000, 1, Reason::AsLoadAsks),
        (20000, 2, Reason::LoadAboveTarget),
        (200_000, 4, Reason::LoadAboveTarget),
    ] {
        let decision = once(spec.clone(), 1, ready(1), Some(&signals(0, tokens)));
        assert_eq!((decision.desired, decision.reason), (desired, reason), "{tokens}: {decision:?}");
    }
    let decision = once(spec, 4, ready(4), Some(&signals(0, 200_000)));
    assert_eq!((decision.desired, decision.reason), (4, Reason::AtMaximum));
    assert!(
        decision.message.contains("targetOutstandingTokensPerReplica 16384 asks for 13"),
        "{}",
        decision.message
    );
}

#[test]
fn measurement_that_asks_for_most_groups_counts() {
    let spec = json!({ "maxReplicas": 20, "targetQueuedTokensPerReplica": 1000,
        "targetOutstandingTokensPerReplica": 10000, "targetTimeToFirstTokenMilliseconds": 1000,
        "targetKvUsePercent": 50 });
    let calm = Signals {
        first_token: FirstToken { samples: 50, p90_milliseconds: 1000 },
        kv_percent: Some(50),
        ..signals(0, 40_000)
    };
    let asks = |signals: Signals| once(spec.clone(), 4, ready(4), Some(&signals)).desired;
    assert_eq!(asks(calm.clone()), 4);
    assert_eq!(asks(Signals { held_tokens: 6_500, ..calm.clone() }), 7);
    assert_eq!(asks(Signals { outstanding_tokens: 55_000, ..calm.clone() }), 6);
    assert_eq!(asks(Signals { kv_percent: Some(80), ..calm.clone() }), 7);
    let slow = |p90_milliseconds| FirstToken { samples: 50, p90_milliseconds };
    assert_eq!(asks(Signals { first_token: slow(1500), ..calm.clone() }), 6);
    assert_eq!(asks(Signals { first_token: slow(90_000), ..calm }), 8, "a time tells no distance");
}

#[test]
fn time_to_first_token_says_nothing_of_groups_that_have_just_begun() {
    let terms = terms(json!({ "maxReplicas": 9, "targetTimeToFirstTokenMilliseconds": 1000 }));
    let slow = |second| Signals {
        first_token: FirstToken { samples: 50, p90_milliseconds: 5000 },
        ..signals(second, 5_000)
    };
    let (mut memory, mut current) = (Memory::default(), 1);
    let mut run =
        |second, groups| step(&terms, &mut memory, groups, &mut current, second, Some(&slow(second))).desired;
    assert_eq!(run(0, ready(0)), 1);
    assert_eq!(run(100, ready(1)), 1, "it has just begun");
    assert_eq!(run(161, ready(1)), 2);
    assert_eq!(run(170, Groups { ready: 1, loading: 1, ..Groups::default() }), 2);
    assert_eq!(run(300, ready(2)), 2);
    assert_eq!(run(359, ready(2)), 2);
    assert_eq!(run(361, ready(2)), 4);
}

#[test]
fn missing_old_and_incomplete_signals_make_it_no_fewer() {
    let spec = json!({ "minReplicas": 0, "maxReplicas": 9, "idleSecondsToZero": 5, "behavior": {
        "scaleDown": { "stabilizationWindowSeconds": 0 } } });
    let quiet = Signals { idle_seconds: 1_000, ..signals(0, 0) };
    let busy = Signals { outstanding: 1, ..quiet.clone() };
    assert_eq!(once(spec.clone(), 5, ready(5), Some(&busy)).desired, 1, "the proof that it would go down");
    let missing = once(spec.clone(), 5, ready(5), None);
    assert_eq!((missing.desired, missing.reason), (5, Reason::SignalsMissing));
    let old = once(spec.clone(), 5, ready(5), Some(&Signals { measured: at(-11), ..quiet.clone() }));
    assert_eq!((old.desired, old.reason), (5, Reason::SignalsIncomplete));
    let some = Signals { heard: Heard::Some, ..quiet };
    let incomplete = once(spec.clone(), 5, ready(5), Some(&some));
    assert_eq!((incomplete.desired, incomplete.reason), (5, Reason::SignalsIncomplete));
    // what some say is at least what there is
    let more = once(spec, 5, ready(5), Some(&Signals { outstanding_tokens: 110_000, ..some }));
    assert_eq!((more.desired, more.reason), (7, Reason::LoadAboveTarget));
    // one of two measurements is not there
    let both = json!({ "maxReplicas": 9, "targetOutstandingTokensPerReplica": 10000, "targetKvUsePercent": 50,
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } } });
    let half = once(both, 5, ready(5), Some(&signals(0, 10)));
    assert_eq!((half.desired, half.reason), (5, Reason::SignalsIncomplete));
}

#[test]
fn sleeps_after_idle_time_and_wakes_at_once() {
    let spec = json!({ "minReplicas": 0, "maxReplicas": 9, "idleSecondsToZero": 60 });
    let terms = terms(spec);
    let (mut memory, mut current) = (Memory::default(), 3);
    let quiet = |second, idle| Signals { idle_seconds: idle, ..signals(second, 0) };
    let mut run = |second, groups, signals: Signals| {
        let decision = step(&terms, &mut memory, groups, &mut current, second, Some(&signals));
        (decision.desired, decision.reason)
    };
    assert_eq!(
        run(-60, ready(3), quiet(-60, 500)),
        (3, Reason::Stabilizing),
        "a gateway that is older than this"
    );
    assert_eq!(run(0, ready(3), quiet(0, 59)), (3, Reason::Stabilizing));
    assert_eq!(run(1, ready(3), Signals { outstanding: 1, ..quiet(1, 60) }).0, 3);
    assert_eq!(run(2, ready(3), quiet(2, 60)), (0, Reason::Idle));
    assert_eq!(run(3, ready(0), quiet(3, 61)), (0, Reason::Idle));
    assert_eq!(
        run(4, ready(0), Signals { held: 1, held_tokens: 10, ..quiet(4, 0) }),
        (1, Reason::RequestWaits)
    );
    // the herd behind it: as many as the load asks for, within the policies
    let herd = Signals { held: 900, held_tokens: 900_000, ..quiet(5, 0) };
    let loading = Groups { loading: 1, ..Groups::default() };
    assert_eq!(run(5, loading, herd), (4, Reason::LoadAboveTarget));
}

#[test]
fn one_group_stays_until_it_has_been_idle_for_long_enough() {
    let spec = json!({ "minReplicas": 0, "maxReplicas": 9 });
    let (terms, mut memory, mut current) = (terms(spec), Memory::default(), 1);
    for second in [0, 599] {
        let seen = Signals { idle_seconds: 1000, ..signals(second, 0) };
        let decision = step(&terms, &mut memory, ready(1), &mut current, second, Some(&seen));
        assert_eq!((decision.desired, decision.reason), (1, Reason::AtMinimum));
        let words = format!("{second} of 600 seconds");
        assert!(decision.message.contains(&words), "{}", decision.message);
    }
    let seen = Signals { idle_seconds: 1000, ..signals(600, 0) };
    assert_eq!(step(&terms, &mut memory, ready(1), &mut current, 600, Some(&seen)).reason, Reason::Idle);
}

#[test]
fn groups_that_cannot_start_are_not_added_to() {
    let groups = Groups { ready: 1, failing: 1, ..Groups::default() };
    let decision = once(json!({ "maxReplicas": 9 }), 2, groups, Some(&signals(0, 500_000)));
    assert_eq!((decision.desired, decision.reason), (2, Reason::GroupsFailing));
    let decision = once(json!({ "maxReplicas": 9 }), 2, ready(2), Some(&signals(0, 500_000)));
    assert_eq!(decision.desired, 6);
}

#[test]
fn rollout_holds_it_only_if_the_spec_says_so() {
    for (during, desired, reason) in
        [("Hold", 2, Reason::RolloutUnderWay), ("Continue", 6, Reason::LoadAboveTarget)]
    {
        let terms = terms(json!({ "maxReplicas": 9, "duringRollout": during }));
        let signals = signals(0, 500_000);
        let view = View { current: 2, groups: ready(2), rolling_out: true, signals: Some(&signals) };
        let decision = decide(&terms, &view, &mut Memory::default(), at(0));
        assert_eq!((decision.desired, decision.reason), (desired, reason));
        // bounds are no matter of load
        let view = View { current: 12, ..view };
        let decision = decide(&terms, &view, &mut Memory::default(), at(0));
        assert_eq!((decision.desired, decision.reason), (9, Reason::OutOfBounds));
    }
}

#[test]
fn number_that_somebody_sets_stands_for_as_long_as_anything_that_was_asked_for() {
    let terms = terms(json!({ "maxReplicas": 9 }));
    let (mut memory, mut current) = (Memory::default(), 1);
    for second in 0..10 {
        step(&terms, &mut memory, ready(1), &mut current, second, Some(&signals(second, 100)));
    }
    current = 5;
    for second in 10..309 {
        assert_eq!(
            step(&terms, &mut memory, ready(5), &mut current, second, Some(&signals(second, 100))).desired,
            5
        );
    }
    step(&terms, &mut memory, ready(5), &mut current, 310, Some(&signals(310, 100)));
    assert_eq!(current, 1);
}

#[test]
fn contest_for_the_number_of_groups_is_given_up_for_a_while() {
    let terms = terms(json!({ "maxReplicas": 9 }));
    let (mut memory, mut current) = (Memory::default(), 1);
    let mut reasons = vec![];
    for second in 0..60 {
        // somebody else holds it at 1
        let decision =
            step(&terms, &mut memory, ready(1), &mut current, second, Some(&signals(second, 60_000)));
        reasons.push(decision.reason);
        current = 1;
    }
    let ours = reasons.iter().filter(|reason| **reason == Reason::LoadAboveTarget).count();
    assert_eq!((ours, reasons[59]), (3, Reason::ScalingContested), "{reasons:?}");
}

/// A load that is the same all the time, and groups that do so much of it and take so long to load.
struct Plant {
    arrives: f64,
    per_group: f64,
    load_seconds: i64,
    waiting: f64,
    served: f64,
    loading: Vec<i64>,
    ready: u32,
}

impl Plant {
    /// A second passes. `noise`: by how much the load is off, in percent.
    fn second(&mut self, now: i64, wanted: u32, noise: i32) -> (Groups, Signals) {
        let arrived = self.arrives * f64::from(100 + noise) / 100.0;
        let can = self.per_group * f64::from(self.ready);
        let done = (self.waiting + arrived).min(can);
        self.waiting += arrived - done;
        self.served += done;
        self.ready += u32::try_from(self.loading.iter().filter(|end| **end <= now).count()).unwrap();
        self.loading.retain(|end| *end > now);
        let there = self.ready + u32::try_from(self.loading.len()).unwrap();
        if wanted > there {
            self.loading.extend((there..wanted).map(|_| now + self.load_seconds));
        } else {
            let mut surplus = there - wanted;
            while surplus > 0 && self.loading.pop().is_some() {
                surplus -= 1;
            }
            self.ready -= surplus;
        }
        let eta = self.loading.iter().max().map(|end| u32::try_from(end - now).unwrap());
        let groups = Groups {
            ready: self.ready,
            loading: u32::try_from(self.loading.len()).unwrap(),
            failing: 0,
            eta_seconds: eta,
        };
        // what is being worked on: two seconds of work at full load
        let working = 2.0 * done;
        let signals =
            Signals { served_tokens: self.served as u64, ..signals(now, (self.waiting + working) as u64) };
        (groups, signals)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is seen, and in whatever order.
    #[test]
    fn number_is_always_within_the_bounds(
        min in 0u32..4, more in 1u32..6, start in 0u32..20,
        looks in prop::collection::vec((0u64..2_000_000, 0u32..20, 0u32..20, 0u32..3, 0u8..6, 0i64..400, 0u64..900), 1..60),
    ) {
        let max = min + more;
        let terms = terms(json!({ "minReplicas": min, "maxReplicas": max, "targetKvUsePercent": 60,
            "targetTimeToFirstTokenMilliseconds": 800, "targetOutstandingTokensPerReplica": 9000 }));
        let (mut memory, mut current, mut second) = (Memory::default(), start, 0);
        for (tokens, ready, loading, failing, kind, pause, idle) in looks {
            second += pause;
            let seen = Signals {
                held: tokens % 3, idle_seconds: idle, kv_percent: Some(tokens % 101), served_tokens: tokens,
                first_token: FirstToken { samples: tokens % 50, p90_milliseconds: tokens % 5000 },
                heard: if kind == 1 { Heard::Some } else { Heard::All },
                measured: at(second - if kind == 2 { 30 } else { 0 }),
                ..signals(second, tokens)
            };
            let groups = Groups { ready, loading, failing, eta_seconds: Some(60) };
            let before = current;
            let decision = step(&terms, &mut memory, groups, &mut current, second, (kind != 0).then_some(&seen));
            let outside = decision.reason == Reason::ScalingContested;
            prop_assert!(outside || (min..=max).contains(&decision.desired), "{decision:?}");
            // nothing that is not known makes it fewer, if the bounds do not
            if kind < 3 && (min..=max).contains(&before) {
                prop_assert!(decision.desired >= before, "{decision:?}");
            }
            if kind == 3 { current = start; } // somebody else
        }
    }

    #[test]
    fn more_load_never_asks_for_fewer_groups(
        current in 1u32..12, a in 0u64..400_000, b in 0u64..400_000, kv in 0u64..100, loading in 0u32..4,
    ) {
        let spec = json!({ "maxReplicas": 12, "targetOutstandingTokensPerReplica": 10000, "targetKvUsePercent": 70,
            "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } } });
        let desired = |tokens: u64| {
            let seen = Signals { kv_percent: Some(kv), ..signals(0, tokens) };
            let groups = Groups { ready: current.saturating_sub(loading), loading, ..Groups::default() };
            once(spec.clone(), current, groups, Some(&seen)).desired
        };
        prop_assert!(desired(a.min(b)) <= desired(a.max(b)));
    }

    /// A load that stays, but for noise, is met once: what is needed is started in one go, is enough, and stays.
    #[test]
    fn steady_load_is_met_without_flapping_and_without_scaling_twice(
        needed in 1.2f64..8.0, load_seconds in 5i64..900, seed in prop::collection::vec(-20i32..20, 40),
    ) {
        let terms = terms(json!({ "maxReplicas": 40, "targetOutstandingTokensPerReplica": 10000 }));
        let mut plant = Plant {
            arrives: needed * 2000.0, per_group: 2000.0, load_seconds,
            waiting: 0.0, served: 0.0, loading: vec![], ready: 1,
        };
        let known = AutoscalingStatus { tokens_per_second_per_replica: Some(2000), ..AutoscalingStatus::default() };
        let (mut memory, mut current) = (Memory::recall(Some(&known)), 1);
        let mut ups_and_downs = vec![];
        let mut most = 1;
        for second in 0..7200i64 {
            let noise = seed[usize::try_from(second / 3).unwrap() % seed.len()];
            let (groups, seen) = plant.second(second, current, noise);
            if second % 2 == 0 {
                let before = current;
                step(&terms, &mut memory, groups, &mut current, second, Some(&seen));
                if current != before { ups_and_downs.push(current > before); }
                most = most.max(current);
            }
        }
        let mean = f64::from(seed.iter().sum::<i32>()) / seed.len() as f64;
        let turns = ups_and_downs.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(turns <= 1, "up, and down again to what is needed: {ups_and_downs:?}");
        // what arrived while they loaded is to be drained in about the time that it took to load them
        let arrived = needed * (100.0 + mean.max(0.0)) / 100.0;
        let bound = 2.2 * arrived + 2.0;
        prop_assert!(f64::from(most) <= bound, "at most {bound}, but {most}");
        let enough = f64::from(current) >= needed * (100.0 + mean) / 100.0;
        prop_assert!(enough, "{current} for {needed}");
        prop_assert!(plant.waiting < 30_000.0, "drained in the end");
    }

    /// Over any stretch of time that a policy is for, restarts included.
    #[test]
    fn policies_hold_over_any_period(
        asks in prop::collection::vec(1u64..40, 20..300), restarts in prop::collection::vec(0usize..300, 0..6),
        up in 1i32..5, down in 1i32..4, up_period in 5i32..120, down_period in 5i32..120,
    ) {
        let terms = terms(json!({ "maxReplicas": 40, "targetOutstandingTokensPerReplica": 1000, "behavior": {
            "scaleUp": { "policies": [{ "type": "Groups", "value": up, "periodSeconds": up_period }] },
            "scaleDown": { "stabilizationWindowSeconds": 0,
                "policies": [{ "type": "Groups", "value": down, "periodSeconds": down_period }] } } }));
        let (mut memory, mut current) = (Memory::default(), 5u32);
        let mut seen = vec![];
        for (look, ask) in asks.iter().enumerate() {
            let second = 3 * i64::try_from(look).unwrap();
            let decision = step(&terms, &mut memory, ready(current), &mut current, second, Some(&signals(second, ask * 1000)));
            seen.push((second, current));
            if restarts.contains(&look) {
                memory = Memory::recall(Some(&report(&decision, &memory, None, at(second))));
            }
        }
        for (i, (from, before)) in seen.iter().enumerate() {
            for (to, after) in &seen[i..] {
                let change = i64::from(*after) - i64::from(*before);
                prop_assert!(to - from >= i64::from(up_period) || change <= i64::from(up));
                prop_assert!(to - from >= i64::from(down_period) || -change <= i64::from(down));
            }
        }
    }

    /// No fewer than anything within the window asked for, and not before a window has passed since a restart.
    #[test]
    fn down_only_when_nothing_within_the_window_asked_for_more(
        asks in prop::collection::vec(1u32..12, 20..200), restart in 0usize..200, window in 0i64..200,
    ) {
        let terms = terms(json!({ "maxReplicas": 12, "targetOutstandingTokensPerReplica": 1000, "behavior": {
            "scaleDown": { "stabilizationWindowSeconds": window, "tolerancePercent": 0 } } }));
        let (mut memory, mut current) = (Memory::default(), 6u32);
        let mut began = 0;
        for (look, _) in asks.iter().enumerate() {
            let second = 5 * i64::try_from(look).unwrap();
            if look == restart {
                let view = View { current, groups: ready(current), rolling_out: false, signals: None };
                let decision = decide(&terms, &view, &mut memory, at(second));
                memory = Memory::recall(Some(&report(&decision, &memory, None, at(second))));
                began = second;
            }
            let before = current;
            let seen = signals(second, u64::from(asks[look]) * 1000);
            step(&terms, &mut memory, ready(current), &mut current, second, Some(&seen));
            if current < before {
                let first = look - usize::try_from((window.max(1) - 1) / 5).unwrap().min(look);
                let most = asks[first..=look].iter().max().unwrap();
                prop_assert!(current >= *most, "{current} though {most} were asked for");
                prop_assert!(second - began >= window, "{window} s after {began}, not at {second}");
            }
        }
    }

    /// What is written down is what is read, and numbers that move a little are not written at all.
    #[test]
    fn status_is_read_back_and_not_written_for_nothing(tokens in 20_000u64..200_000, wiggle in 0u64..1500) {
        let terms = terms(json!({ "maxReplicas": 40 }));
        let (mut memory, mut current) = (Memory::default(), 1);
        let decision = step(&terms, &mut memory, ready(1), &mut current, 0, Some(&signals(0, tokens)));
        let status = report(&decision, &memory, None, at(0));
        let back = Memory::recall(Some(&status));
        prop_assert_eq!(back.steps(), memory.steps());
        // policies: it goes on where it was, the second look says something new, the third does not
        let second = step(&terms, &mut memory, ready(current), &mut current, 20, Some(&signals(20, tokens)));
        let settled = report(&second, &memory, Some((&status, at(0))), at(20));
        let third = step(&terms, &mut memory, ready(current), &mut current, 21, Some(&signals(21, tokens + wiggle / 2)));
        let again = report(&third, &memory, Some((&settled, at(20))), at(21));
        prop_assume!(third.reason == second.reason && third.desired == second.desired);
        prop_assert_eq!(again, settled);
    }
}
