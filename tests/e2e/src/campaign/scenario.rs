//! What is tried: a fault on a shape of the group, so many times.

use std::{fmt, time::Duration};

use crate::variant::Variant;

/// Name of the deployment that is struck.
pub const CHAOS: &str = "chaos";

/// Points at which the operator is killed.
pub const POINTS: u32 = 20;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// SIGKILL of a worker's process; its pod stays.
    Kill,
    /// A worker's pod is deleted without grace.
    DeletePod,
    /// The node of a worker stops.
    StopNode,
    /// A worker's process is stopped for 5 s, and goes on.
    Starve,
    /// Nothing passes between two workers for 5 s.
    Partition,
    /// SIGKILL of two workers' processes at once.
    KillTwo,
    /// SIGKILL of a worker's process while copies move.
    KillInMove,
    /// As [`Self::DeletePod`], and the leading operator is killed at a point of the recovery.
    OperatorInRecovery,
    /// The leading operator is killed at a point of a move.
    OperatorInMove,
}

/// The faults whose place in time does not vary.
const PLAIN: [Fault; 6] =
    [Fault::Kill, Fault::DeletePod, Fault::StopNode, Fault::Starve, Fault::Partition, Fault::KillInMove];

impl Fault {
    /// Name in files and filters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::DeletePod => "delete-pod",
            Self::StopNode => "stop-node",
            Self::Starve => "starve-5s",
            Self::Partition => "partition-5s",
            Self::KillTwo => "kill-two",
            Self::KillInMove => "kill-in-move",
            Self::OperatorInRecovery => "operator-in-recovery",
            Self::OperatorInMove => "operator-in-move",
        }
    }

    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Kill => "worker killed (SIGKILL)",
            Self::DeletePod => "pod deleted without grace",
            Self::StopNode => "node stopped",
            Self::Starve => "worker stopped for 5 s (SIGSTOP)",
            Self::Partition => "two workers cut off from each other for 5 s",
            Self::KillTwo => "two workers killed at once",
            Self::KillInMove => "worker killed while copies move",
            Self::OperatorInRecovery => "pod deleted, operator killed meanwhile",
            Self::OperatorInMove => "operator killed while copies move",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let others = [Self::KillTwo, Self::OperatorInRecovery, Self::OperatorInMove];
        PLAIN.into_iter().chain(others).find(|fault| fault.name() == name)
    }

    /// Whether a worker loses what it holds.
    #[must_use]
    pub fn loses_a_worker(self) -> bool {
        !matches!(self, Self::Starve | Self::Partition | Self::OperatorInMove)
    }
}

/// Workers and ranks of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Pods of the group.
    pub workers: u32,
    /// Ranks of a pod.
    pub devices: u32,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.workers, self.devices)
    }
}

/// The two layouts of four ranks.
pub const LAYOUTS: [Layout; 2] = [Layout { workers: 2, devices: 2 }, Layout { workers: 4, devices: 1 }];

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scenario {
    /// What goes wrong.
    pub fault: Fault,
    /// Of the group.
    pub layout: Layout,
    /// `spec.experts.minCopies`.
    pub copies: u32,
    /// Among equal ones; the point, from 0 to [`POINTS`] - 1, if the operator is killed.
    pub repetition: u32,
}

impl Scenario {
    /// Everything that is tried, `repeats` times: in the order of layout and copies, so that the group changes seldom.
    #[must_use]
    pub fn all(repeats: u32) -> Vec<Self> {
        let mut all = Vec::new();
        for layout in LAYOUTS {
            for copies in [1, 2] {
                let two = (layout.workers > 2).then_some(Fault::KillTwo);
                for fault in PLAIN.into_iter().chain(two) {
                    all.extend((0..repeats).map(|repetition| Self { fault, layout, copies, repetition }));
                }
                if layout == LAYOUTS[0] && copies == 2 {
                    for fault in [Fault::OperatorInRecovery, Fault::OperatorInMove] {
                        all.extend((0..POINTS).map(|repetition| Self { fault, layout, copies, repetition }));
                    }
                }
            }
        }
        all
    }

    /// Those whose name has one of the words of a filter, which are separated by commas; all, if there is none.
    #[must_use]
    pub fn matches(&self, filter: &str) -> bool {
        super::selection::selects(filter, &self.to_string())
    }

    /// The group that is struck.
    #[must_use]
    pub fn variant(&self) -> Variant {
        Variant::new(CHAOS, self.layout.workers, self.layout.devices, self.copies)
    }

    /// The longest that a stream may stand still: with a copy left of everything the loss of a worker is a pause of
    /// 3 s, without one something has to be loaded again.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        let copy_left = self.copies > 1 && self.fault.loses_a_worker() && self.fault != Fault::KillTwo;
        Duration::from_secs(if copy_left || self.fault == Fault::OperatorInMove { 3 } else { 15 })
    }

    /// Whether every expert must have a live copy throughout, or one whose holder is only silent, in the eyes of the
    /// workers that are not struck.
    #[must_use]
    pub fn covered_throughout(&self) -> bool {
        self.copies > 1 && self.fault != Fault::KillTwo
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, layout, copies, repetition } = self;
        write!(f, "{layout}/copies-{copies}/{}/{repetition}", fault.name())
    }
}

/// A delay that lies within the given part of `parts` equal parts of `whole`, somewhere in it: points that are random,
/// the same each time, and leave no part out.
#[must_use]
pub fn point(whole: Duration, part: u32, parts: u32) -> Duration {
    // splitmix64
    let mut bits = u64::from(part).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let within = (bits >> 11) as f64 / (1_u64 << 53) as f64;
    whole.mul_f64((f64::from(part) + within) / f64::from(parts))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_trial_has_a_name_of_its_own() {
        let all = Scenario::all(3);
        let names: HashSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), all.len());
        // two layouts, two numbers of copies: six faults; two at once where there are four; twenty points twice
        assert_eq!(all.len(), 4 * 6 * 3 + 2 * 3 + 2 * 20);
        for scenario in all {
            assert_eq!(Fault::named(scenario.fault.name()), Some(scenario.fault));
        }
    }

    #[test]
    fn a_filter_is_words_of_the_name() {
        let matching = |filter: &str| Scenario::all(1).iter().filter(|one| one.matches(filter)).count();
        assert_eq!(matching(""), Scenario::all(1).len());
        assert_eq!(matching("4x1/copies-2/kill/"), 1);
        assert_eq!(matching("stop-node, starve"), 8);
        assert_eq!(matching("operator-in-recovery"), 20);
        assert_eq!(matching("nothing"), 0);
    }

    #[test]
    fn points_are_spread_over_the_whole_and_repeat() {
        let whole = Duration::from_secs(20);
        for part in 0..POINTS {
            let at = point(whole, part, POINTS).as_secs_f64();
            assert!((f64::from(part)..f64::from(part + 1)).contains(&at), "{part}: {at}");
            assert_eq!(point(whole, part, POINTS), point(whole, part, POINTS));
        }
    }

    #[test]
    fn a_copy_left_makes_the_promise_tighter() {
        let of = |fault, copies| Scenario { fault, layout: LAYOUTS[1], copies, repetition: 0 };
        let seconds = |fault, copies| of(fault, copies).longest_stall().as_secs();
        assert_eq!((seconds(Fault::Kill, 2), seconds(Fault::Kill, 1)), (3, 15));
        assert_eq!((seconds(Fault::StopNode, 2), seconds(Fault::KillTwo, 2)), (3, 15));
        assert!(of(Fault::StopNode, 2).covered_throughout() && !of(Fault::StopNode, 1).covered_throughout());
        assert!(!of(Fault::KillTwo, 2).covered_throughout());
    }
}
