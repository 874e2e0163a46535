//! Copies of the experts, of a group and of all.
use belay_crds::{ExpertsStatus, GroupExpertsStatus};

use super::{View, number};
use crate::{coverage, group::Group, placement};

/// Changes of the imbalance that are noise: the status is not written for them.
const NOISE_PERCENT: i64 = 3;

impl View<'_> {
    /// Over all groups that do not drain.
    pub(super) fn experts(&self) -> Option<ExpertsStatus> {
        let placed: Vec<_> = self.live().filter_map(|group| Some((group, group.placement()?))).collect();
        let copies = placement::live_copies(
            placed.iter().map(|(group, placement)| (*placement, group.live_workers(placement))),
        );
        let fewest = copies.iter().min().copied().map(i64::from)?;
        let coverages: Vec<_> = placed.iter().filter_map(|(group, _)| coverage::of(group)).collect();
        let adopted: u64 = coverages.iter().map(|coverage| coverage.adopted).sum();
        // both are certain; adopted copies are known by number only
        let seen: i64 = coverages.iter().map(|coverage| i64::from(coverage.min_live_copies)).sum();
        let imbalance = placed.iter().filter_map(|(group, _)| self.intended(group)?.imbalance_percent).max();
        let before = self.previous.and_then(|status| status.experts.as_ref()?.imbalance_percent);
        Some(ExpertsStatus {
            total: i64::try_from(copies.len()).unwrap_or(i64::MAX),
            copies: copies.iter().map(|&copies| i64::from(copies)).sum::<i64>() + number(adopted),
            min_live_copies: fewest.max(seen),
            imbalance_percent: steady(before, imbalance),
            placement_epoch: placed.iter().map(|(_, placement)| number(placement.epoch)).max(),
        })
    }

    /// Of one group.
    pub(super) fn group_experts(&self, group: &Group) -> Option<GroupExpertsStatus> {
        let coverage = coverage::of(group)?;
        let intended = self.intended(group);
        let before = self.previous_line(group).and_then(|line| line.experts.as_ref()?.imbalance_percent);
        Some(GroupExpertsStatus {
            covered: number(coverage.total - coverage.uncovered),
            total: number(coverage.total),
            min_live_copies: i64::from(coverage.min_live_copies),
            adopted: number(coverage.adopted),
            missing_copies: intended.map_or(0, |intended| i64::from(intended.short)),
            imbalance_percent: steady(before, intended.and_then(|intended| intended.imbalance_percent)),
        })
    }
}

/// What was told before, unless it differs by more than noise.
fn steady(before: Option<i64>, now: Option<u32>) -> Option<i64> {
    let now = now.map(i64::from)?;
    Some(before.filter(|before| (before - now).abs() < NOISE_PERCENT).unwrap_or(now))
}
