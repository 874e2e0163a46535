//! Long random schedules over larger groups: what [`model`](model.rs) looks at whole for small ones. `PROPTEST_CASES` tries
//! more of them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::sync::Arc;

use belay_epoch::{Intent, Phase};
use proptest::{prelude::*, strategy::ValueTree};
use world::{Action, Budget, Fault, Layout, Setup, State};

const LAYERS: usize = 2;

/// One to three copies of each expert, anywhere.
fn layout(ranks: u32, experts: u32) -> impl Strategy<Value = Layout> {
    let all: Vec<u32> = (0..ranks).collect();
    let copies = proptest::sample::subsequence(all, 1..=3).prop_shuffle();
    let layer = proptest::collection::vec(copies, experts as usize);
    proptest::collection::vec(layer, LAYERS)
}

fn setup() -> impl Strategy<Value = Setup> {
    (4u32..7, 1u32..3, 6u32..10).prop_flat_map(|(workers, ranks, experts)| {
        let layouts = proptest::collection::vec(layout(workers * ranks, experts), 4);
        layouts.prop_map(move |layouts| Setup {
            workers,
            ranks,
            experts,
            layouts,
            operators: 2,
            asks_one_by_one: true,
            loads_one_by_one: true,
            budget: Budget { changes: 6, deaths: 3, restarts: 3, losses: 3 },
            fault: None,
        })
    })
}

/// What kind of action, and which of them.
fn schedule(steps: usize) -> impl Strategy<Value = Vec<(u8, u16)>> {
    proptest::collection::vec((0u8..100, any::<u16>()), steps)
}

fn is_of_kind(action: Action, kind: u8) -> bool {
    match action {
        Action::Observe(_) => kind < 14,
        Action::Act(_) => (14..28).contains(&kind),
        Action::Ask(..) => (28..40).contains(&kind),
        Action::Deliver(..) => (40..62).contains(&kind),
        Action::Load(_) => (62..86).contains(&kind),
        Action::Drop(_) => (86..95).contains(&kind),
        Action::Crash(_) => kind == 95,
        Action::Want(_) => kind == 96,
        Action::Restart(..) => kind == 97,
        Action::Replace(_) | Action::Find(_) => kind == 98,
        Action::Lose(_) | Action::End(_) => kind == 99,
    }
}

/// The state after the schedule, or the first one that is broken.
fn run(setup: &Setup, schedule: &[(u8, u16)]) -> State {
    let mut state = setup.start_placed();
    for &(kind, which) in schedule {
        let mut actions = vec![];
        setup.actions(&state, &mut actions);
        actions.retain(|action| is_of_kind(*action, kind));
        if actions.is_empty() {
            continue;
        }
        // what changes nothing is passed over
        let first = usize::from(which) % actions.len();
        let next =
            (0..actions.len()).find_map(|at| setup.step(&state, actions[(first + at) % actions.len()]));
        state = next.unwrap_or(state);
        if !setup.violations(&state).is_empty() {
            break;
        }
    }
    state
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(96), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn invariants_hold_and_the_end_is_what_is_wanted(setup in setup(), schedule in schedule(500)) {
        let state = run(&setup, &schedule);
        let violations = setup.violations(&state);
        prop_assert!(violations.is_empty(), "{violations:?}");
        let end = setup.converge(&state);
        prop_assert!(end.is_some(), "does not converge from\n{}", state.describe());
    }

    /// Whatever an operator knew and when: epochs in force rise, and an epoch has one meaning.
    #[test]
    fn the_history_goes_forward(setup in setup(), schedule in schedule(300)) {
        let state = run(&setup, &schedule);
        let mut meaning = std::collections::BTreeMap::new();
        let mut last: &Intent = &Intent::default();
        for intent in &state.history {
            let epoch = |intent: &Intent| intent.in_force.as_ref().map_or(0, |placement| placement.epoch);
            prop_assert!(epoch(intent) >= epoch(last) && intent.highest_epoch() >= last.highest_epoch());
            let target = intent.operation.as_ref().and_then(|operation| operation.target.as_ref());
            for document in target.into_iter().chain(&intent.in_force) {
                prop_assert_eq!(*meaning.entry(document.epoch).or_insert(document), document);
            }
            last = intent;
        }
    }

    /// An intent that was lost, or replaced by an old one, is made anew.
    #[test]
    fn a_lost_or_old_intent_is_overcome(setup in setup(), schedule in schedule(300), back in any::<prop::sample::Index>()) {
        let mut state = run(&setup, &schedule);
        let old = back.index(state.history.len());
        state.history.push(Arc::clone(&state.history[old]));
        let end = setup.converge(&state);
        prop_assert!(end.is_some(), "does not converge from\n{}", state.describe());
        prop_assert!(end.unwrap().intent().highest_epoch() >= state.history[old].highest_epoch());
    }
}

/// Random schedules go far enough to tell a wrong decision from a right one.
#[test]
fn wrong_decisions_are_noticed() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut operations = 0;
    for fault in [Fault::CommitsEarly, Fault::RetiresEarly, Fault::DropsEarly, Fault::WritesBlindly] {
        let noticed = (0..64).any(|_| {
            let (setup, schedule) = (setup(), schedule(500)).new_tree(&mut runner).unwrap().current();
            let setup = Setup { fault: Some(fault), ..setup };
            let state = run(&setup, &schedule);
            let is_retired = |intent: &&Arc<Intent>| {
                intent.operation.as_ref().is_some_and(|operation| operation.phase == Phase::Retire)
            };
            operations += state.history.iter().filter(is_retired).count();
            !setup.violations(&state).is_empty()
        });
        assert!(noticed, "{fault:?}");
    }
    assert!(operations > 0);
}
