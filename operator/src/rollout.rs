//! Which groups to create and which to drain next: pure.
//!
//! One function decides scaling up, scaling down and rolling out, because they share one budget. It looks at what
//! exists now and at nothing else, so that it can be asked again at any moment and by any leader.
//!
//! Promises:
//! - Groups that exist (draining ones too: they hold their devices) never exceed `desired + surge` by our doing.
//! - We never drain a ready group when fewer than `desired − unavailable` would stay ready.
//! - Groups of an old revision that cannot work are never waited for: they are drained at once, which frees their
//!   devices for the fix.

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

/// What the decision needs to know about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its number within its revision.
    pub ordinal: u32,
    /// Whether it is of the revision that the spec asks for.
    pub updated: bool,
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
    /// Names of groups to drain.
    pub drain: Vec<String>,
}

/// Decides the next step.
pub fn step(budget: Budget, groups: &[Group]) -> Step {
    let live: Vec<&Group> = groups.iter().filter(|group| !group.draining).collect();
    let (new, mut old): (Vec<&Group>, Vec<&Group>) = live.iter().partition(|group| group.updated);
    let unready_new = count(new.iter().filter(|group| group.health != Health::Ready));
    let ready = count(live.iter().filter(|group| group.health == Health::Ready));

    let mut drain: Vec<String> =
        surplus(&new, budget.desired).iter().map(|group| group.name.clone()).collect();
    let ready_surplus =
        count(surplus(&new, budget.desired).iter().filter(|group| group.health == Health::Ready));

    // the worst first; among equals the highest ordinal
    old.sort_by_key(|group| (group.health, std::cmp::Reverse(group.ordinal)));
    let mut still_ready = ready - ready_surplus;
    let mut still_live = count(live.iter()) - count(drain.iter());
    for group in old {
        let may_go = match group.health {
            Health::Broken => true,
            // it may come back: keep it until the new revision has shown that it works
            Health::Starting => still_live > budget.promised() + unready_new,
            Health::Ready => still_ready > budget.promised(),
        };
        if may_go {
            drain.push(group.name.clone());
            still_live -= 1;
            still_ready -= u32::from(group.health == Health::Ready);
        }
    }

    let room = budget.most().saturating_sub(count(groups.iter()));
    let missing = budget.desired.saturating_sub(count(new.iter()));
    Step { create: free_ordinals(groups, missing.min(room)), drain }
}

/// Groups of the new revision that are too many: those that are not ready first, then the highest ordinals.
fn surplus<'a>(new: &[&'a Group], desired: u32) -> Vec<&'a Group> {
    let mut candidates = new.to_vec();
    candidates.sort_by_key(|group| (group.health, std::cmp::Reverse(group.ordinal)));
    candidates.truncate(new.len().saturating_sub(usize::try_from(desired).unwrap_or(usize::MAX)));
    candidates
}

/// The lowest ordinals that no group of the new revision has, also none that drains.
fn free_ordinals(groups: &[Group], wanted: u32) -> Vec<u32> {
    let taken = |ordinal: &u32| groups.iter().any(|group| group.updated && group.ordinal == *ordinal);
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

    fn group(updated: bool, ordinal: u32, health: Health) -> Group {
        let name = format!("{}-{ordinal}", if updated { "new" } else { "old" });
        Group { name, ordinal, updated, health, draining: false }
    }

    fn budget(desired: u32, surge: u32, unavailable: u32) -> Budget {
        Budget { desired, surge, unavailable }
    }

    #[test]
    fn scaling_up_fills_the_lowest_free_ordinals() {
        let groups = [group(true, 0, Health::Ready), group(true, 2, Health::Ready)];
        assert_eq!(step(budget(4, 1, 0), &groups), Step { create: vec![1, 3], drain: vec![] });
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
        assert_eq!(step(budget(2, 1, 0), &groups), Step { create: vec![0], drain: vec![] });
        groups.push(group(true, 0, Health::Starting));
        assert_eq!(step(budget(2, 1, 0), &groups), Step::default());
        groups[2].health = Health::Ready;
        assert_eq!(step(budget(2, 1, 0), &groups), Step { create: vec![], drain: vec!["old-1".into()] });
    }

    #[test]
    fn without_surge_an_old_group_goes_first() {
        let groups = [group(false, 0, Health::Ready), group(false, 1, Health::Ready)];
        assert_eq!(step(budget(2, 0, 1), &groups), Step { create: vec![], drain: vec!["old-1".into()] });
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
        assert_eq!(step(budget(1, 1, 0), &groups), Step { create: vec![0], drain: vec!["old-0".into()] });
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
        proptest::collection::vec((any::<bool>(), health(), any::<bool>()), 0..8).prop_map(|list| {
            let numbered = list.into_iter().enumerate();
            numbered
                .map(|(i, (updated, health, draining))| Group {
                    draining,
                    ..group(updated, i as u32, health)
                })
                .collect()
        })
    }

    fn apply(groups: &mut Vec<Group>, step: &Step) {
        for group in groups.iter_mut() {
            group.draining |= step.drain.contains(&group.name);
        }
        groups.extend(step.create.iter().map(|&ordinal| group(true, ordinal, Health::Starting)));
    }

    fn serving(groups: &[Group]) -> u32 {
        count(groups.iter().filter(|group| !group.draining && group.health == Health::Ready))
    }

    proptest! {
        #[test]
        fn one_step_keeps_the_promises(budget in budgets(), before in groups()) {
            let decided = step(budget, &before);
            let mut after = before.clone();
            apply(&mut after, &decided);
            prop_assert!(serving(&after) >= serving(&before).min(budget.promised()));
            prop_assert!(after.len() <= before.len().max(budget.most() as usize));
            let mut ordinals: Vec<u32> = after.iter().filter(|g| g.updated).map(|g| g.ordinal).collect();
            ordinals.sort_unstable();
            ordinals.dedup();
            prop_assert_eq!(ordinals.len(), after.iter().filter(|g| g.updated).count());
            for name in &decided.drain {
                let group = before.iter().find(|group| group.name == *name).unwrap();
                prop_assert!(!group.draining, "drained twice");
            }
        }

        /// Whatever the start, and in whatever order groups get ready and drains end: the new revision is served
        /// by the wanted number of groups in the end, and nothing else is left.
        #[test]
        fn converges(budget in budgets(), start in groups(), order in proptest::collection::vec(any::<u8>(), 200)) {
            let mut groups = start;
            for choice in order {
                let before = serving(&groups);
                let decided = step(budget, &groups);
                apply(&mut groups, &decided);
                prop_assert!(serving(&groups) >= before.min(budget.promised()));
                // one thing happens in the world
                let pending: Vec<usize> = (0..groups.len())
                    .filter(|&i| groups[i].draining || (groups[i].updated && groups[i].health != Health::Ready))
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
            prop_assert_eq!(groups.len() as u32, budget.desired);
            prop_assert!(groups.iter().all(|g| g.updated && g.health == Health::Ready && !g.draining));
        }
    }
}
