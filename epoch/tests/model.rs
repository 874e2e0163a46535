//! Every order in which things can happen to a small group: messages late, twice or never, operators that end between any
//! two steps or lead without knowing that they no longer do, workers that end, begin anew or are thought lost.
//!
//! `BELAY_MODEL_DEPTH=n` looks at everything at once, with two operators or three workers, n events deep: minutes from 11 on.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, Budget, Fault, Setup, State};

struct World {
    setup: Setup,
    start: State,
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // what is broken stays broken: the first step to it is what is looked for
        if self.setup.violations(state).is_empty() {
            self.setup.actions(state, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.setup.step(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(HOLD, |world: &Self, state: &State| world.setup.violations(state).is_empty()),
            Property::always(CONVERGES, |world: &Self, state: &State| world.setup.converge(state).is_some()),
            Property::sometimes("has converged after a change", |world: &Self, state: &State| {
                state.layout != world.start.layout && world.setup.has_converged(state)
            }),
        ]
    }
}

/// Two workers of one rank, one layer of two experts that change places.
fn two(budget: Budget) -> Setup {
    let layouts = vec![vec![vec![vec![0], vec![1]]], vec![vec![vec![1], vec![0]]]];
    Setup {
        workers: 2,
        ranks: 1,
        experts: 2,
        layouts,
        operators: 1,
        asks_one_by_one: false,
        loads_one_by_one: false,
        budget,
        fault: None,
    }
}

/// Three workers of one rank, two layers of three experts with one copy or two.
fn three(budget: Budget) -> Setup {
    let one = vec![vec![vec![0], vec![1], vec![2]]; 2];
    let more = vec![vec![vec![0, 1], vec![1], vec![0]], vec![vec![2], vec![1, 2], vec![0]]];
    Setup { workers: 3, experts: 3, layouts: vec![one, more], loads_one_by_one: true, ..two(budget) }
}

const HOLD: &str = "invariants hold";
const CONVERGES: &str = "converges once nothing fails any more";

/// Looks at every state. With `BELAY_MODEL_DEPTH` and a setup that is too large for that: to that depth.
fn explore(name: &str, world: World) {
    let began = std::time::Instant::now();
    let depth = std::env::var("BELAY_MODEL_DEPTH").ok().and_then(|depth| depth.parse().ok());
    let mut builder = world.checker().threads(1);
    if let Some(depth) = depth {
        builder = builder.target_max_depth(depth);
    }
    let checker = builder.spawn_bfs().join();
    println!(
        "{name}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    for property in [HOLD, CONVERGES] {
        if let Some(path) = checker.discovery(property) {
            let actions = path.clone().into_actions();
            let last = path.into_states().pop().unwrap();
            let violations = checker.model().setup.violations(&last);
            panic!("{name}: {property}: {violations:?} after {actions:?}\n{}", last.describe());
        }
    }
    if depth.is_none() {
        checker.assert_properties();
    }
}

fn budget(changes: u8, deaths: u8, restarts: u8, losses: u8) -> Budget {
    Budget { changes, deaths, restarts, losses }
}

/// A group that has its first placement.
fn placed(setup: Setup) -> World {
    World { start: setup.start_placed(), setup }
}

#[test]
fn first_placement() {
    let setup = Setup { loads_one_by_one: true, ..two(budget(1, 1, 0, 0)) };
    explore("first placement", World { start: setup.start(), setup });
}

#[test]
fn two_operators_and_changes_of_mind() {
    explore("two operators, two changes", placed(Setup { operators: 2, ..two(budget(2, 0, 0, 0)) }));
}

#[test]
fn two_operators_and_a_process_that_begins_anew() {
    explore("two operators, restart", placed(Setup { operators: 2, ..two(budget(1, 0, 1, 0)) }));
}

#[test]
fn pods_end_and_processes_begin_anew() {
    explore("death, restart", placed(two(budget(1, 1, 1, 0))));
}

#[test]
fn a_pod_that_is_given_up_goes_on() {
    explore("death, loss", placed(two(budget(1, 1, 0, 1))));
}

#[test]
fn a_pod_comes_back_and_processes_begin_anew() {
    explore("restart, loss", placed(two(budget(1, 0, 1, 1))));
}

#[test]
fn changes_of_mind_and_a_process_that_begins_anew() {
    explore("two changes, restart", placed(two(budget(2, 0, 1, 0))));
}

#[test]
fn three_workers() {
    explore("three workers, loss", placed(three(budget(1, 0, 0, 1))));
    explore("three workers, death", placed(three(budget(1, 1, 0, 0))));
}

#[test]
fn everything_at_once_to_some_depth() {
    if std::env::var_os("BELAY_MODEL_DEPTH").is_some() {
        explore("all, two operators", placed(Setup { operators: 2, ..two(budget(2, 1, 1, 1)) }));
        explore("all, three workers", placed(three(budget(2, 1, 1, 1))));
    }
}

/// A fault in a decision, and an invariant that it must break.
fn must_break(fault: Fault, invariant: &str, setup: Setup) {
    let setup = Setup { fault: Some(fault), ..setup };
    let checker =
        placed(setup).checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(HOLD).unwrap_or_else(|| panic!("{fault:?} is not noticed"));
    let violations = checker.model().setup.violations(&path.into_states().pop().unwrap());
    println!("{fault:?}: {violations:?}");
    assert!(violations.iter().any(|text| text.contains(invariant)), "{fault:?}: {violations:?}");
}

#[test]
fn commit_before_all_have_prepared_is_noticed() {
    must_break(Fault::CommitsEarly, "found", two(budget(1, 0, 0, 0)));
}

#[test]
fn retire_before_all_use_the_new_placement_is_noticed() {
    must_break(Fault::RetiresEarly, "found", two(budget(1, 0, 0, 0)));
}

#[test]
fn an_epoch_with_two_meanings_is_noticed() {
    let layouts = [[0, 1, 1], [0, 0, 1], [0, 1, 0]];
    let layouts = layouts.map(|ranks| vec![ranks.map(|rank| vec![rank]).to_vec()]).to_vec();
    must_break(Fault::ReusesEpoch, "found", Setup { experts: 3, layouts, ..two(budget(2, 0, 0, 0)) });
}

#[test]
fn a_target_forgotten_for_an_old_request_is_noticed() {
    must_break(Fault::Forgets, "found", two(budget(1, 0, 0, 0)));
}

#[test]
fn copies_dropped_unasked_are_noticed() {
    must_break(Fault::DropsEarly, "found", two(budget(1, 0, 0, 0)));
}

#[test]
fn a_target_in_use_before_commit_is_noticed() {
    must_break(Fault::UsesTarget, "forward", two(budget(1, 0, 0, 0)));
}

/// That both sides have an epoch in common is not enough: one that began anew with an old placement mounted, and was told
/// the target by a late request, would look for copies that are gone.
#[test]
fn admission_by_any_common_epoch_is_noticed() {
    must_break(Fault::ServesAny, "found", two(budget(1, 0, 1, 0)));
}

#[test]
fn a_write_without_a_lock_is_noticed() {
    must_break(Fault::WritesBlindly, "forward", Setup { operators: 2, ..two(budget(2, 0, 0, 0)) });
}
