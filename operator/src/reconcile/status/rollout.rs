//! `status.rollout` and `status.traffic`.
use belay_crds::{LastRollback, RolloutStatus, TrafficRole, TrafficStatus};

use super::{View, small};
use crate::{
    reconcile::seconds,
    rollout::{Phase, Strategy},
};

impl View<'_> {
    /// How requests are shared.
    pub(super) fn traffic(&self) -> Vec<TrafficStatus> {
        let Some(before) = &self.plan.before else { return vec![] };
        let shares = self.plan.stage.shares.iter();
        let line = |share: &crate::rollout::Share| TrafficStatus {
            revision: match share.role {
                TrafficRole::Stable => before.revision.clone(),
                TrafficRole::Canary | TrafficRole::Preview => self.plan.target.revision.clone(),
            },
            weight_percent: small(share.percent),
            role: share.role,
        };
        shares.map(line).collect()
    }

    /// How far the rollout is.
    pub(super) fn rollout(&self) -> RolloutStatus {
        let stage = &self.plan.stage;
        let is_canary = !stage.shares.is_empty() && stage.state.rejected.is_none();
        let steps = match &self.wanted.rules.strategy {
            Strategy::Canary { steps } if is_canary => Some(i32::try_from(steps.len()).unwrap_or(i32::MAX)),
            _ => None,
        };
        let new_share = stage.shares.iter().find(|share| share.role != TrafficRole::Stable);
        let is_compared = self.wanted.analysis.is_some() && stage.phase != Phase::Complete;
        RolloutStatus {
            revision: self.plan.target.revision.clone(),
            stable_revision: self.plan.before.as_ref().map(|before| before.revision.clone()),
            phase: format!("{:?}", stage.phase),
            step: steps.map(|steps| small(stage.state.step + 1).min(steps)),
            steps,
            weight_percent: new_share.map(|share| small(share.percent)),
            since: stage.state.since.filter(|_| is_canary).map(seconds),
            message: (!stage.message.is_empty()).then(|| stage.message.clone()),
            analysis: if is_compared { self.plan.checks.clone() } else { vec![] },
            last_rollback: self.last_rollback(),
        }
    }

    /// Of this revision, or of one before it.
    fn last_rollback(&self) -> Option<LastRollback> {
        let rejected = self.plan.stage.state.rejected.as_ref().map(|why| LastRollback {
            revision: self.plan.target.revision.clone(),
            reason: why.reason.clone(),
            message: why.message.clone(),
            time: seconds(why.time),
        });
        rejected.or_else(|| self.previous?.rollout.as_ref()?.last_rollback.clone())
    }
}
