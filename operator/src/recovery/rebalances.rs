//! What was done about load so far. It is kept beside the intent, in the same write, so that a rebalance which was asked for
//! is neither forgotten nor done twice by another leader.
use belay_epoch::{Intent, Kind, Phase};
use serde::{Deserialize, Serialize};

use super::balance::Proposal;

/// What was done about load so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalances {
    /// Value of the annotation that was heard last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<String>,
    /// The one whose copies are being loaded. It counts for nothing if something else comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Rebalance>,
    /// The last one that came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Rebalance>,
}

/// One rebalance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// Epoch of its placement.
    pub epoch: u64,
    /// When it began; once it is in force, since when it is (RFC 3339).
    pub time: String,
    /// Imbalance before, in percent.
    pub before_percent: u32,
    /// Imbalance as expected.
    pub after_percent: u32,
    /// Imbalance that was measured later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_percent: Option<u32>,
    /// Bytes of experts that were loaded for it.
    pub moved_bytes: u64,
    /// Value of the annotation that asked for it; `None`: the operator's own decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
}

impl Rebalances {
    /// Whether the annotation's value asks for something that was neither done nor begun.
    pub fn is_news(&self, asked: Option<&str>) -> bool {
        let begun = self.begun.as_ref().and_then(|begun| begun.asked.as_deref());
        asked.is_some() && asked != self.heard.as_deref() && asked != begun
    }

    /// The record that goes with `next`. A group that gets its first placement has heard whatever was asked before.
    #[must_use]
    pub fn follow(
        &self,
        before: &Intent,
        next: &Intent,
        proposal: Option<&Proposal>,
        asked: Option<&str>,
        now: &str,
    ) -> Self {
        let mut record = self.clone();
        if before.in_force.is_none() && next.in_force.is_some() {
            record.heard = asked.map(str::to_owned);
        }
        let in_force = next.in_force.as_ref().map_or(0, |placement| placement.epoch);
        let preparing = next
            .operation
            .as_ref()
            .filter(|operation| operation.kind == Kind::Rebalance && operation.phase == Phase::Prepare);
        match record.begun.take() {
            Some(begun) if begun.epoch == in_force => {
                record.heard = begun.asked.clone().or(record.heard);
                record.last = Some(Rebalance { time: now.to_owned(), ..begun });
            }
            Some(begun) if preparing.is_some_and(|operation| operation.epoch == begun.epoch) => {
                record.begun = Some(begun);
            }
            _ => {}
        }
        if record.begun.is_none()
            && let (Some(operation), Some(proposal)) = (preparing, proposal)
        {
            record.begun = Some(Rebalance {
                epoch: operation.epoch,
                time: now.to_owned(),
                before_percent: proposal.before_percent,
                after_percent: proposal.after_percent,
                measured_percent: None,
                moved_bytes: proposal.bytes,
                asked: proposal.asked.clone(),
            });
        }
        record
    }
}
