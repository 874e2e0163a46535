//! Which experts of a group have a live copy: pure.
//!
//! Two sources: the placement in force with the workers that hold their share of it, and what workers themselves see, which
//! includes copies that they adopted for lost ranks.
use belay_proto::admin::{Coverage as Report, Phase, Placement};

use crate::{group::Group, placement};

/// Live copies of the experts of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// (layer, expert) pairs of the model.
    pub total: u64,
    /// Pairs without a live copy.
    pub uncovered: u64,
    /// Live copies of the pair that has the fewest.
    pub min_live_copies: u32,
    /// Copies beyond the placement.
    pub adopted: u64,
    /// Live copies of each pair by the placement alone, layers one after the other.
    pub copies: Vec<u32>,
}

/// How the experts of a group are covered; `None` before the first placement.
pub fn of(group: &Group) -> Option<Coverage> {
    let placement = group.placement()?;
    let copies = placement::live_copies([(placement, group.live_workers(placement))]);
    let missing = copies.iter().filter(|&&copies| copies == 0).count() as u64;
    let fewest = copies.iter().min().copied().unwrap_or(0);
    // one that does not see its peers is not proof that nobody does
    let seen = || reports(group, placement);
    let uncovered = seen().map(|report| u64::from(report.uncovered)).min().unwrap_or(missing).min(missing);
    let most_seen = seen().map(|report| report.min_live_copies).max().unwrap_or(0);
    Some(Coverage {
        total: copies.len() as u64,
        uncovered,
        min_live_copies: fewest.max(most_seen),
        adopted: seen().map(|report| u64::from(report.adopted)).sum(),
        copies,
    })
}

/// What the workers of the placement say that hold their experts.
fn reports<'a>(group: &'a Group, placement: &'a Placement) -> impl Iterator<Item = &'a Report> + 'a {
    group.pods().filter(|(_, pod)| pod.holds_experts(placement)).filter_map(|(_, pod)| {
        let status = pod.status()?;
        let knows = matches!(status.phase(), Phase::Ready | Phase::Connecting);
        status.coverage.as_ref().filter(|coverage| knows && coverage.epoch > 0)
    })
}
