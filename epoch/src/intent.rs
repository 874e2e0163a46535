//! What is written down in the API server before anything is done: all that a change must survive.

use belay_proto::admin::Placement;
use serde::{Deserialize, Serialize};

/// The intended state of a group's placement. Kept in the group's ConfigMap, both parts in one write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// In force, or to be put in force now. `None` before the first placement.
    pub in_force: Option<Placement>,
    /// The change under way.
    pub operation: Option<Operation>,
}

/// A change under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Epoch that it leads to: also what tells one operation from another.
    pub epoch: u64,
    /// Why placements change.
    pub kind: Kind,
    /// How far it is.
    pub phase: Phase,
    /// What it leads to; only while it is prepared, since it is in force from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Placement>,
    /// For people.
    pub reason: String,
    /// When it began, RFC 3339.
    pub started: String,
}

/// Why placements change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A worker was replaced, or is gone for long: its share goes to its successor, or to the others.
    Recover,
    /// Load is spread anew.
    Rebalance,
    /// A worker is about to leave: its experts move first.
    Evacuate,
    /// The spec asks for other copies.
    Respecify,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// New copies are loaded; the old placement is in force.
    Prepare,
    /// The new placement is in force; workers take it over one by one, and all old copies are still there.
    Commit,
    /// All workers use the new placement: copies that it does not need go.
    Retire,
}

impl Intent {
    /// The highest epoch that is named; 0 for none.
    #[must_use]
    pub fn highest_epoch(&self) -> u64 {
        let in_force = self.in_force.as_ref().map_or(0, |placement| placement.epoch);
        in_force.max(self.operation.as_ref().map_or(0, |operation| operation.epoch))
    }
}
