//! Which groups to create and which to drain next: pure.
//!
//! One function decides scaling up, scaling down and rolling out, because they share one budget. It looks at what
//! exists now and at nothing else, so that it can be asked again at any moment and by any leader.
//!
//! Promises:
//! - Groups that exist (draining ones too: they hold their devices) never exceed `desired + surge` by our doing.
//! - We never drain a ready group when fewer than `desired − unavailable` would stay ready.
//! - Groups of an old revision that cannot work and that nobody asked to keep are never waited for: they are drained at
//!   once, which frees their devices for the fix.

/// How many groups there should be, and how far a rollout may stray from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Wanted groups.
    pub desired: u32,
    /// Groups that may exist on top.
    pub surge: u32,
    /// Wanted groups that may be missing.
    pub unavailable: u32,
}

impl Budget {
    fn promised(self) -> u32 {
        self.desired.saturating_sub(self.unavailable)
    }

    fn most(self) -> u32 {
        self.desired + self.surge
    }
}

/// How far a rollout is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// So many of the wanted groups stay with the revision before.
    AllBut(u32),
    /// No further than it is: groups of other revisions stay, and those that are missing are made from the revision
    /// before. Where there are none, there is nothing to pause.
    Paused,
}

/// How a group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// There is evidence that it does not get ready by itself.
    Broken,
    /// Not ready, but nothing says that it won't be.
    Starting,
    /// Every worker takes requests.
    Ready,
}

/// Which revision a group is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// The one that the spec asks for.
    New,
    /// The one before it, of which a rollout that does not go all the way leaves groups.
    Before,
    /// Any other.
    Older,
}

/// What the decision needs to know about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its number within its revision.
    pub ordinal: u32,
    /// Its revision.
    pub age: Age,
    /// How it does.
    pub health: Health,
    /// Whether it drains. There is no way back from it.
    pub draining: bool,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Ordinals of groups of the new revision to create.
    pub create: Vec<u32>,
    /// Ordinals of groups of the revision before to create.
    pub create_before: Vec<u32>,
    /// Names of groups to drain.
    pub drain: Vec<String>,
}

/// Decides the next step. `has_before`: whether there is a revision before the new one that groups can be made from.
pub fn step(budget: Budget, reach: Reach, has_before: bool, groups: &[Group]) -> Step {
    let live: Vec<&Group> = groups.iter().filter(|group| !group.draining).collect();
    let of = |age: Age| -> Vec<&Group> { live.iter().filter(|group| group.age == age).copied().collect() };
    let (new, mut before, mut older) = (of(Age::New), of(Age::Before), of(Age::Older));
    if reach == Reach::Paused {
        before.append(&mut older);
    }
    let kept = match reach {
        _ if !has_before => 0,
        Reach::AllBut(kept) => kept.min(budget.desired),
        Reach::Paused if before.is_empty() => 0,
        Reach::Paused => budget.desired.saturating_sub(count(new.iter())),
    };
    let updated = budget.desired - kept;

    let too_many_new = surplus(&new, updated);
    let too_many_before = surplus(&before, kept);
    let mut leaving: Vec<&Group> = too_many_before.into_iter().chain(older).collect();
    // the worst first; among equals the highest ordinal
    leaving.sort_by_key(|group| (group.health, std::cmp::Reverse(group.ordinal)));
    let waiting =
        count(live.iter().filter(|group| group.health != Health::Ready && !leaving.contains(group)));
    let mut still = Still {
        ready: count(live.iter().filter(|group| group.health == Health::Ready)),
        live: count(live.iter()),
    };
    let mut drain = Vec::new();
    for group in too_many_new {
        // it never was ready, or there are enough others that are
        if group.health != Health::Ready || still.ready > budget.promised() {
            still.drain(group, &mut drain);
        }
    }
    for group in leaving {
        let may_go = match group.health {
            Health::Broken => true,
            // it may come back: keep it until the others have shown that they work
            Health::Starting => still.live > budget.promised() + waiting,
            Health::Ready => still.ready > budget.promised(),
        };
        if may_go {
            still.drain(group, &mut drain);
        }
    }

    let room = budget.most().saturating_sub(count(groups.iter()));
    let missing_new = updated.saturating_sub(count(new.iter())).min(room);
    let missing_before = kept.saturating_sub(count(before.iter())).min(room - missing_new);
    Step {
        create: free_ordinals(groups, Age::New, missing_new),
        create_before: free_ordinals(groups, Age::Before, missing_before),
        drain,
    }
}

/// Groups that are left, as drains are decided.
struct Still {
    ready: u32,
    live: u32,
}

impl Still {
    fn drain(&mut self, group: &Group, drain: &mut Vec<String>) {
        drain.push(group.name.clone());
        self.live -= 1;
        self.ready -= u32::from(group.health == Health::Ready);
    }
}

/// Groups of a revision that are too many: those that are not ready first, then the highest ordinals.
fn surplus<'a>(groups: &[&'a Group], wanted: u32) -> Vec<&'a Group> {
    let mut candidates = groups.to_vec();
    candidates.sort_by_key(|group| (group.health, std::cmp::Reverse(group.ordinal)));
    candidates.truncate(groups.len().saturating_sub(usize::try_from(wanted).unwrap_or(usize::MAX)));
    candidates
}

/// The lowest ordinals that no group of the revision has, also none that drains.
fn free_ordinals(groups: &[Group], age: Age, wanted: u32) -> Vec<u32> {
    let taken = |ordinal: &u32| groups.iter().any(|group| group.age == age && group.ordinal == *ordinal);
    (0..).filter(|ordinal| !taken(ordinal)).take(usize::try_from(wanted).unwrap_or(usize::MAX)).collect()
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// A group that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its name.
    pub name: String,
    /// Whether all its workers do.
    pub complete: bool,
    /// Whether one of its pods is on a node that is being emptied.
    pub leaving: bool,
}

/// Which groups voluntary disruptions (node drains) must leave alone: all but as many as may be missing, and at least one.
/// A group on a node that is being emptied is given up first, so that the node can be emptied as long as another group
/// serves; but never a complete one for one that lacks a worker.
pub fn protected(budget: Budget, serving: &[Serving]) -> Vec<String> {
    let keep = budget.desired.saturating_sub(budget.unavailable.max(1)).max(1);
    let mut order: Vec<&Serving> = serving.iter().collect();
    order.sort_by_key(|group| (!group.complete, group.leaving, &group.name));
    let mut names: Vec<String> = order
        .into_iter()
        .take(usize::try_from(keep).unwrap_or(usize::MAX))
        .map(|group| group.name.clone())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        super::step(budget, Reach::AllBut(0), true, groups)
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
        assert_eq!(
            protected(budget(4, 1, 2), &ready(&[("a", false), ("b", true), ("c", false)])),
            ["a", "c"]
        );
        // one that lacks a worker is no reason to give up a complete one
        let mixed = [serving("a", false, false), serving("b", true, true)];
        assert_eq!(protected(budget(2, 1, 0), &mixed), ["b"]);
        assert_eq!(protected(budget(1, 1, 0), &mixed[..1]), ["a"], "nor is it anybody's spare");
    }

    #[test]
    fn partition_leaves_groups_of_the_revision_before() {
        let reach = Reach::AllBut(2);
        let mut groups: Vec<Group> = (0..3).map(|ordinal| group(false, ordinal, Health::Ready)).collect();
        assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), creates(&[0]));
        groups.push(group(true, 0, Health::Ready));
        assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), drains(&["old-2"]));
        groups.remove(2);
        assert_eq!(super::step(budget(3, 1, 0), reach, true, &groups), Step::default());
        // it grows on the side that is behind, and goes back if asked to
        let grown = super::step(budget(4, 1, 0), reach, true, &groups);
        assert_eq!(grown, creates(&[1]));
        let back = super::step(budget(3, 1, 0), Reach::AllBut(3), true, &groups);
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
        assert_eq!(super::step(budget(2, 1, 0), Reach::AllBut(1), true, &groups), Step::default());
    }

    fn health() -> impl Strategy<Value = Health> {
        prop_oneof![Just(Health::Broken), Just(Health::Starting), Just(Health::Ready)]
    }

    fn budgets() -> impl Strategy<Value = Budget> {
        (0u32..5, 0u32..3, 0u32..3)
            .prop_filter("both zero is refused at admission", |(_, surge, unavailable)| {
                surge + unavailable > 0
            })
            .prop_map(|(desired, surge, unavailable)| budget(desired, surge, unavailable))
    }

    fn groups() -> impl Strategy<Value = Vec<Group>> {
        let age = prop_oneof![3 => Just(Age::New), 3 => Just(Age::Before), 1 => Just(Age::Older)];
        proptest::collection::vec((age, health(), any::<bool>()), 0..8).prop_map(|list| {
            let numbered = list.into_iter().enumerate();
            numbered
                .map(|(i, (age, health, draining))| Group { draining, ..of(age, i as u32, health) })
                .collect()
        })
    }

    fn reaches() -> impl Strategy<Value = Reach> {
        prop_oneof![2 => Just(Reach::AllBut(0)), 2 => (0u32..6).prop_map(Reach::AllBut), 1 => Just(Reach::Paused)]
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
            budget in budgets(), kept in 0u32..6, has_before in any::<bool>(), start in groups(),
            order in proptest::collection::vec(any::<u8>(), 300),
        ) {
            let decide = |groups: &[Group]| super::step(budget, Reach::AllBut(kept), has_before, groups);
            let groups = play(budget, start, &order, decide, |_| true);
            let kept = if has_before { kept.min(budget.desired) } else { 0 };
            let of = |age: Age| count(groups.iter().filter(|group| group.age == age));
            prop_assert_eq!((of(Age::New), of(Age::Before), of(Age::Older)), (budget.desired - kept, kept, 0));
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
}
