//! Which groups voluntary disruptions must leave alone: pure.
use super::Budget;

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
