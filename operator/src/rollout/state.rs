//! What is written down about a rollout, so that another leader goes on with it.
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::revision::Record;

/// How far the rollout of a revision is: JSON in an annotation of its ControllerRevision.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Number of the revision that this is about. One that comes back later has another, and begins anew.
    pub number: i64,
    /// When it began.
    pub began: Timestamp,
    /// When it last got on.
    pub moved: Timestamp,
    /// Which step it is at: of a canary as in the spec; of a preview 0 before requests go over and 1 after.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step: u32,
    /// Since when the step's groups are ready and have its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it was found good: from then on it is what the next one is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Timestamp>,
    /// Why it was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// What the annotation that promotes said when this began, or was taken back: only another word counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion_seen: Option<String>,
}

/// Why a revision was taken back.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// In a word.
    pub reason: String,
    /// With numbers.
    pub message: String,
    /// When.
    pub time: Timestamp,
}

impl State {
    /// Of a rollout that begins.
    pub fn new(number: i64, now: Timestamp) -> Self {
        Self {
            number,
            began: now,
            moved: now,
            step: 0,
            since: None,
            promoted: None,
            rejected: None,
            promotion_seen: None,
        }
    }

    /// What is known of `target`, or a new state. `is_stable`: it is the one that was found good last, and needs no other proof.
    pub fn of(target: &Record, is_stable: bool, asked: Option<&str>, now: Timestamp) -> Self {
        let known = target.state.clone();
        match known {
            Some(state) if state.number == target.number => state,
            Some(state) if is_stable => Self { number: target.number, rejected: None, ..state },
            _ => Self { promotion_seen: asked.map(str::to_owned), ..Self::new(target.number, now) },
        }
    }
}

/// The revision that was found good last.
pub fn stable(revisions: &[Record]) -> Option<&Record> {
    let promoted = |record: &Record| record.state.as_ref().and_then(|state| state.promoted);
    revisions
        .iter()
        .filter(|record| promoted(record).is_some())
        .max_by_key(|record| (promoted(record), record.number))
}

fn is_zero(step: &u32) -> bool {
    *step == 0
}
