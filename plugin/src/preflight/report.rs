//! What `plan` says. Field names are those of `-o json`: they stay.
use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    compare::Difference,
    course::Sequence,
    forecast::{Memory, Pace},
};

/// Everything about one ModelDeployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The answer.
    pub verdict: Verdict,
    /// Why, if it is not that all fits.
    pub reasons: Vec<String>,
    /// What the API server does not take, by field. Only if the verdict is `refused`.
    pub refusals: Vec<Refusal>,
    /// What differs from what is there.
    pub change: Change,
    /// How the operator gets there; absent if it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub course: Option<Sequence>,
    /// What the budget of groups is.
    pub budget: BudgetView,
    /// What one group of the new revision asks for, and what the groups on top of the wanted ones ask for.
    pub demand: Demands,
    /// What would help, if it does not fit.
    pub help: Vec<String>,
    /// What a worker will hold; absent until a worker has read the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// How long it takes; absent if no group of the deployment was ready yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// The answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// A node was found for every pod at every step.
    Fits,
    /// For some pod no node was found, or a worker has too little memory.
    DoesNotFit,
    /// The API server, or the operator, does not take it.
    Refused,
    /// What decides could not be looked at.
    #[default]
    Unknown,
}

/// A field that is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Its path; empty if it is about the whole.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// In a word.
    pub kind: ChangeKind,
    /// Field by field; empty for what is new.
    pub fields: Vec<Difference>,
    /// The revision that is asked for.
    pub revision: String,
    /// The one that is asked for now; absent for what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_revision: Option<String>,
    /// Whether there was this revision before, so that this goes back to it.
    pub goes_back: bool,
}

/// What differs, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// Nothing.
    #[default]
    None,
    /// The deployment is new.
    Creation,
    /// Only what does not reach pods.
    Settings,
    /// Pods are made from something else: groups are replaced.
    Revision,
}

/// The budget of groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetView {
    /// Groups that are wanted.
    pub desired: u32,
    /// Groups that may exist on top.
    pub surge: u32,
    /// Wanted groups that may be missing.
    pub unavailable: u32,
    /// Groups that exist now.
    pub present: u32,
}

/// What is asked for: thousandths of `cpu`, bytes of `memory`, whole ones of the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Demands {
    /// By one group.
    pub group: BTreeMap<String, i128>,
    /// By the groups on top of the wanted ones at the moment with the most.
    pub surge: BTreeMap<String, i128>,
}

/// How long it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// Seconds until the last group is ready, without drains.
    pub load_seconds: u64,
    /// Seconds for which steps, previews and old groups are held.
    pub hold_seconds: u64,
    /// Times that groups load one after the other.
    pub waves: u32,
    /// Seconds that drains may take on top: they take as long as the requests under way.
    pub drain_seconds_at_most: u64,
    /// From which the time is known.
    pub pace: Pace,
}
