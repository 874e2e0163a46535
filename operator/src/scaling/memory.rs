//! What a decision needs to know of the past.
use belay_crds::AutoscalingStatus;
use jiff::Timestamp;

use super::{
    contest::Contest,
    history::{self, Asked, Scale},
    rates::Rates,
};

/// What is remembered of a deployment between two decisions. What must survive this process is in its status, see
/// [`Memory::recall`]; the rest is built up anew, which makes nothing happen earlier.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub(super) asked: Asked,
    pub(super) steps: Vec<Scale>,
    pub(super) rates: Rates,
    pub(super) contest: Contest,
    /// The number of groups after the last decision; `None` before the first.
    pub(super) expected: Option<u32>,
    /// When the first look was.
    pub(super) began: Option<Timestamp>,
    /// Groups that were ready at the last look, and when there were last more than before.
    pub(super) ready: (Option<u32>, Option<Timestamp>),
}

impl Memory {
    /// What the status of a deployment says.
    pub fn recall(status: Option<&AutoscalingStatus>) -> Self {
        let Some(status) = status else { return Self::default() };
        let steps = status.recent_scales.iter().filter_map(|record| {
            let groups = |value: i32| u32::try_from(value).ok();
            let at = record.time.parse().ok()?;
            Some(Scale { at, from: groups(record.from)?, to: groups(record.to)?, reason: record.reason })
        });
        let rate = status.tokens_per_second_per_replica.and_then(|rate| u64::try_from(rate).ok());
        Self { steps: steps.collect(), rates: Rates::new(rate), ..Self::default() }
    }

    /// The number of groups is about to be set.
    pub fn scaled(&mut self, step: Scale) {
        history::note(&mut self.steps, step);
        self.expected = Some(step.to);
    }

    /// The number of groups could not be set after all.
    pub fn not_scaled(&mut self) {
        if let Some(step) = self.steps.pop() {
            self.expected = Some(step.from);
        }
    }

    /// The number of groups after the last decision; `None` before the first.
    pub fn expected(&self) -> Option<u32> {
        self.expected
    }

    /// Seconds for which nobody has asked for anything, as far as this process and the last step up allow to say: a
    /// gateway that is older than the deployment tells of a time when there was nothing to ask.
    pub(super) fn idle_seconds(&self, told: u64, now: Timestamp) -> u64 {
        let up = self.steps.iter().rev().find(|step| step.to > step.from).map(|step| step.at);
        let since = self.began.into_iter().chain(up).map(|at| now.as_second() - at.as_second());
        since.filter_map(|seconds| u64::try_from(seconds).ok()).fold(told, u64::min)
    }

    /// How it was set lately, oldest first.
    pub fn steps(&self) -> &[Scale] {
        &self.steps
    }

    /// Tokens in a second that a group does while there is enough to do.
    pub fn tokens_per_second_per_group(&self) -> Option<u64> {
        self.rates.per_group().map(|rate| rate as u64)
    }
}
