use proptest::prelude::*;

use super::*;
use crate::rollout::{Serving, protected};

fn of(age: Age, ordinal: u32, health: Health) -> Group {
    let name = match age {
        Age::New => "new",
        Age::Before => "old",
        Age::Older => "older",
    };
    Group { name: format!("{name}-{ordinal}"), ordinal, age, health, draining: false }
}

fn group(updated: bool, ordinal: u32, health: Health) -> Group {
    of(if updated { Age::New } else { Age::Before }, ordinal, health)
}

/// All the way.
fn step(budget: Budget, groups: &[Group]) -> Step {
    super::step(budget, Reach::all_but(0, budget.desired), true, groups)
}

fn creates(ordinals: &[u32]) -> Step {
    Step { create: ordinals.to_vec(), ..Step::default() }
}

fn drains(names: &[&str]) -> Step {
    Step { drain: names.iter().map(|&name| name.to_owned()).collect(), ..Step::default() }
}

fn budget(desired: u32, surge: u32, unavailable: u32) -> Budget {
    Budget { desired, surge, unavailable }
}

#[test]
fn scaling_up_fills_the_lowest_free_ordinals() {
    let groups = [group(true, 0, Health::Ready), group(true, 2, Health::Ready)];
    assert_eq!(step(budget(4, 1, 0), &groups), creates(&[1, 3]));
}

#[test]
fn scaling_down_takes_unready_groups_first_then_the_highest_ordinal() {
    let groups = [
        group(true, 0, Health::Starting),
        group(true, 1, Health::Ready),
        group(true, 2, Health::Ready),
        group(true, 3, Health::Broken),
    ];
    assert_eq!(step(budget(3, 1, 0), &groups).drain, ["new-3"]);
    assert_eq!(step(budget(2, 1, 0), &groups).drain, ["new-3", "new-0"]);
    assert_eq!(step(budget(1, 1, 0), &groups).drain, ["new-3", "new-0", "new-2"]);
    assert_eq!(step(budget(0, 1, 0), &groups).drain.len(), 4);
}

#[test]
fn rollout_starts_a_new_group_before_it_drains_an_old_one() {
    let mut groups = vec![group(false, 0, Health::Ready), group(false, 1, Health::Ready)];
    assert_eq!(step(budget(2, 1, 0), &groups), creates(&[0]));
    groups.push(group(true, 0, Health::Starting));
    assert_eq!(step(budget(2, 1, 0), &groups), Step::default());
    groups[2].health = Health::Ready;
    assert_eq!(step(budget(2, 1, 0), &groups), drains(&["old-1"]));
}

#[test]
fn without_surge_an_old_group_goes_first() {
    let groups = [group(false, 0, Health::Ready), group(false, 1, Health::Ready)];
    assert_eq!(step(budget(2, 0, 1), &groups), drains(&["old-1"]));
}

#[test]
fn draining_group_holds_its_devices() {
    let mut groups = [group(false, 0, Health::Ready), group(false, 1, Health::Ready)];
    groups[1].draining = true;
    assert_eq!(step(budget(2, 0, 1), &groups), Step::default());
}

#[test]
fn broken_old_groups_do_not_block_the_fix() {
    let groups = [group(false, 0, Health::Broken), group(false, 1, Health::Broken)];
    let decided = step(budget(2, 0, 1), &groups);
    assert_eq!(decided.drain.len(), 2);
    let groups = [group(false, 0, Health::Broken)];
    assert_eq!(step(budget(1, 1, 0), &groups), Step { create: vec![0], ..drains(&["old-0"]) });
}

#[test]
fn old_group_that_recovers_is_kept_until_the_new_revision_works() {
    let mut groups = vec![group(false, 0, Health::Starting), group(true, 0, Health::Starting)];
    assert_eq!(step(budget(1, 1, 0), &groups), Step::default());
    groups[1].health = Health::Ready;
    assert_eq!(step(budget(1, 1, 0), &groups).drain, ["old-0"]);
}

#[test]
fn node_drain_may_take_one_group_but_never_the_last() {
    let serving = |name: &str, complete, leaving| Serving { name: name.to_owned(), complete, leaving };
    let ready = |names: &[(&str, bool)]| -> Vec<Serving> {
        names.iter().map(|(name, leaving)| serving(name, true, *leaving)).collect()
    };
    assert_eq!(protected(budget(1, 1, 0), &ready(&[("a", true)])), ["a"]);
    assert_eq!(protected(budget(2, 1, 0), &ready(&[("a", true), ("b", false)])), ["b"]);
    assert_eq!(protected(budget(2, 1, 0), &ready(&[("a", false), ("b", false)])), ["a"]);
    assert_eq!(protected(budget(4, 1, 2), &ready(&[("a", false), ("b", true), ("c", false)])), ["a", "c"]);
    // one that lacks a worker is no reason to give up a complete one
    let mixed = [serving("a", false, false), serving("b", true, true)];
    assert_eq!(protected(budget(2, 1, 0), &mixed), ["b"]);
    assert_eq!(protected(budget(1, 1, 0), &mixed[..1]), ["a"], "nor is it anybody's spare");
}

#[test]
fn partition_leaves_groups_of_the_revision_before() {
    let reach = Reach::all_but(2, 3);
    let mut groups: Vec<Group> = (0..3).map(|ordinal| group(false, ordinal, Health::Ready)).collect();
    assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), creates(&[0]));
    groups.push(group(true, 0, Health::Ready));
    assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), drains(&["old-2"]));
    groups.remove(2);
    assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), Step::default());
    // it grows on the side that is behind, and goes back if asked to
    let grown = super::step(budget(4, 1, 0), Reach::all_but(2, 4), true, &groups);
    assert_eq!(grown, creates(&[1]));
    let back = super::step(budget(3, 1, 0), Reach::all_but(3, 3), true, &groups);
    assert_eq!(back, Step { create_before: vec![2], ..Step::default() });
    let alone = super::step(budget(3, 1, 0), reach, false, &groups[2..]);
    assert_eq!(alone, creates(&[1, 2]), "nothing to leave groups of");
}

#[test]
fn pause_stops_a_rollout_where_it_is_and_still_scales() {
    let groups = [group(false, 0, Health::Ready), group(true, 0, Health::Ready)];
    let paused = |desired| super::step(budget(desired, 1, 0), Reach::Paused, true, &groups);
    assert_eq!(paused(2), Step::default());
    assert_eq!(paused(3), Step { create_before: vec![1], ..Step::default() });
    assert_eq!(paused(1), drains(&["old-0"]));
    let complete = super::step(budget(2, 1, 0), Reach::Paused, true, &groups[1..]);
    assert_eq!(complete, creates(&[1]), "it is over: nobody goes back to an older revision");
    let nothing = super::step(budget(2, 1, 0), Reach::Paused, true, &[]);
    assert_eq!(nothing, creates(&[0, 1]), "what is new altogether is not a rollout");
    let third = [of(Age::Older, 0, Health::Ready), group(false, 0, Health::Ready)];
    assert_eq!(super::step(budget(2, 1, 0), Reach::Paused, true, &third), Step::default());
}

#[test]
fn groups_that_are_kept_are_not_drained_for_being_broken() {
    let groups = [group(false, 0, Health::Broken), group(true, 0, Health::Ready)];
    assert_eq!(super::step(budget(2, 1, 0), Reach::all_but(1, 2), true, &groups), Step::default());
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Health::Broken), Just(Health::Starting), Just(Health::Ready)]
}

fn budgets() -> impl Strategy<Value = Budget> {
    (0u32..5, 0u32..3, 0u32..3)
        .prop_filter("both zero is refused at admission", |(_, surge, unavailable)| surge + unavailable > 0)
        .prop_map(|(desired, surge, unavailable)| budget(desired, surge, unavailable))
}

fn groups() -> impl Strategy<Value = Vec<Group>> {
    let age = prop_oneof![3 => Just(Age::New), 3 => Just(Age::Before), 1 => Just(Age::Older)];
    proptest::collection::vec((age, health(), any::<bool>()), 0..8).prop_map(|list| {
        let numbered = list.into_iter().enumerate();
        numbered.map(|(i, (age, health, draining))| Group { draining, ..of(age, i as u32, health) }).collect()
    })
}

fn reaches() -> impl Strategy<Value = Reach> {
    let split = (0u32..6, 0u32..6).prop_map(|(new, before)| Reach::Split { new, before });
    prop_oneof![4 => split, 1 => Just(Reach::Paused)]
}

fn apply(groups: &mut Vec<Group>, step: &Step) {
    for group in groups.iter_mut() {
        group.draining |= step.drain.contains(&group.name);
    }
    groups.extend(step.create.iter().map(|&ordinal| group(true, ordinal, Health::Starting)));
    groups.extend(step.create_before.iter().map(|&ordinal| group(false, ordinal, Health::Starting)));
}

fn serving(groups: &[Group]) -> u32 {
    count(groups.iter().filter(|group| !group.draining && group.health == Health::Ready))
}

/// Steps and the world take turns, until nothing is left to happen: a drain ends, or a group that can gets ready.
fn play(
    budget: Budget,
    mut groups: Vec<Group>,
    order: &[u8],
    decide: impl Fn(&[Group]) -> Step,
    can: impl Fn(&Group) -> bool,
) -> Vec<Group> {
    for &choice in order {
        let before = serving(&groups);
        let decided = decide(&groups);
        apply(&mut groups, &decided);
        assert!(serving(&groups) >= before.min(budget.promised()), "fewer are ready than promised");
        let pending: Vec<usize> = (0..groups.len())
            .filter(|&i| groups[i].draining || (groups[i].health != Health::Ready && can(&groups[i])))
            .collect();
        if pending.is_empty() && decided == Step::default() {
            break;
        }
        if let Some(&i) = pending.get(choice as usize % pending.len().max(1)) {
            if groups[i].draining {
                groups.remove(i);
            } else {
                groups[i].health = Health::Ready;
            }
        }
    }
    groups
}

proptest! {
    #[test]
    fn one_step_keeps_the_promises(
        budget in budgets(), reach in reaches(), has_before in any::<bool>(), before in groups(),
    ) {
        let decided = super::step(budget, reach, has_before, &before);
        let mut after = before.clone();
        apply(&mut after, &decided);
        prop_assert!(serving(&after) >= serving(&before).min(budget.promised()));
        prop_assert!(after.len() <= before.len().max(budget.most() as usize));
        let mut names: Vec<&str> = after.iter().map(|group| group.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        prop_assert_eq!(names.len(), after.len(), "a name twice");
        prop_assert!(has_before || decided.create_before.is_empty());
        for name in &decided.drain {
            let group = before.iter().find(|group| group.name == *name).unwrap();
            prop_assert!(!group.draining, "drained twice");
        }
        let has_old = before.iter().any(|group| !group.draining && group.age != Age::New);
        if reach == Reach::Paused && has_before && has_old {
            prop_assert!(decided.create.is_empty(), "a rollout that is paused goes on");
        }
    }

    /// Whatever the start, and in whatever order groups get ready and drains end: there is the wanted number of
    /// groups in the end, as many of each revision as the reach says, and nothing else is left.
    #[test]
    fn converges(
        budget in budgets(), kept in 0u32..6, extra in 0u32..3, has_before in any::<bool>(), start in groups(),
        order in proptest::collection::vec(any::<u8>(), 300),
    ) {
        // a canary keeps a group more than are wanted, if the surge allows it
        let kept = kept.min(budget.desired);
        let reach = Reach::Split { new: budget.desired - kept, before: kept + extra.min(budget.surge) };
        let decide = |groups: &[Group]| super::step(budget, reach, has_before, groups);
        let groups = play(budget, start, &order, decide, |_| true);
        let of = |age: Age| count(groups.iter().filter(|group| group.age == age));
        let Reach::Split { new, before } = reach else { unreachable!() };
        let expected = if has_before { (new, before, 0) } else { (budget.desired, 0, 0) };
        prop_assert_eq!((of(Age::New), of(Age::Before), of(Age::Older)), expected);
        prop_assert!(groups.iter().all(|g| g.health == Health::Ready && !g.draining));
    }

    /// Groups of other revisions that never get ready do not keep the new one from taking over.
    #[test]
    fn the_broken_never_block_the_fix(
        budget in budgets(), start in groups(), order in proptest::collection::vec(any::<u8>(), 300),
    ) {
        let mut start = start;
        for group in &mut start {
            if group.age != Age::New && group.health == Health::Starting {
                group.health = Health::Broken;
            }
        }
        let decide = |groups: &[Group]| step(budget, groups);
        let groups = play(budget, start, &order, decide, |group| group.age == Age::New);
        prop_assert_eq!(groups.len() as u32, budget.desired);
        prop_assert!(groups.iter().all(|g| g.age == Age::New && g.health == Health::Ready));
    }
}
