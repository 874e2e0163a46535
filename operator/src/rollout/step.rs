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

impl Reach {
    /// All the way, but for `kept` of the `desired` groups.
    pub fn all_but(kept: u32, desired: u32) -> Self {
        let before = kept.min(desired);
        Self::Split { new: desired - before, before }
    }
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
    /// So many groups of the new revision and of the one before. Together they may be more than the wanted ones, as far as
    /// the surge goes. Where there is no revision before, all are new.
    Split {
        /// Groups of the new revision.
        new: u32,
        /// Groups of the revision before.
        before: u32,
    },
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
    let (updated, kept) = match reach {
        _ if !has_before => (budget.desired, 0),
        Reach::Split { new, before } => (new, before),
        Reach::Paused if before.is_empty() => (budget.desired, 0),
        Reach::Paused => {
            let updated = count(new.iter()).min(budget.desired);
            (updated, budget.desired - updated)
        }
    };

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

/// How many there are.
pub(crate) fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
