//! How many groups each measurement asks for.
use jiff::Timestamp;

use super::{
    memory::Memory,
    signals::{Groups, Signals},
    terms::Terms,
};

/// Fewest requests in a minute whose times say something.
const SAMPLES: u64 = 5;

/// Times to first tokens are of the last minute: for so long after groups were added they tell of the time before.
const SETTLE_SECONDS: i64 = 60;

/// Shortest time in which what waits is to be drained, in seconds; longer if groups take longer to load.
const DRAIN_SECONDS: f64 = 30.0;

/// How far the load may come up to what groups do, before one of them is needed.
const BUSY: f64 = 0.85;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Tokens that wait at gateways, for each group.
    QueuedTokens,
    /// Tokens that wait or are a worker's, for each group.
    OutstandingTokens,
    /// Milliseconds to the first token.
    FirstToken,
    /// Percent of the caches of groups that are ready.
    KvUse,
}

impl Measure {
    /// The field of `spec.autoscaling` with the target.
    pub fn field(self) -> &'static str {
        match self {
            Self::QueuedTokens => "targetQueuedTokensPerReplica",
            Self::OutstandingTokens => "targetOutstandingTokensPerReplica",
            Self::FirstToken => "targetTimeToFirstTokenMilliseconds",
            Self::KvUse => "targetKvUsePercent",
        }
    }

    /// Whether it is what waits, rather than what that leads to.
    pub fn is_queue(self) -> bool {
        matches!(self, Self::QueuedTokens | Self::OutstandingTokens)
    }
}

/// One measurement, its target, and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// What is measured.
    pub measure: Measure,
    /// What was measured, in the unit of the target; `None`: not known.
    pub current: Option<u64>,
    /// The target.
    pub target: u64,
    /// Groups that it asks for; `None`: not known.
    pub groups: Option<u32>,
}

/// Everything that is measured, against its target.
pub(super) fn metrics(
    terms: &Terms,
    signals: &Signals,
    groups: Groups,
    current: u32,
    memory: &Memory,
    now: Timestamp,
) -> Vec<Metric> {
    let targets = terms.targets;
    let ask = Ask { terms, groups, current, rate_known: memory.rates.per_group().is_some() };
    let mut metrics = vec![];
    let mut note = |measure, target: Option<u64>, look: &dyn Fn(u64) -> (Option<u64>, Option<u32>)| {
        if let Some(target) = target {
            let (current, groups) = look(target);
            metrics.push(Metric { measure, current, target, groups });
        }
    };
    let share = |tokens: u64| tokens / u64::from(current.max(1));
    note(Measure::QueuedTokens, targets.queued_tokens, &|target| {
        (Some(share(signals.held_tokens)), Some(ask.total(signals.held_tokens, target)))
    });
    note(Measure::OutstandingTokens, targets.outstanding_tokens, &|target| {
        (Some(share(signals.tokens())), Some(ask.total(signals.tokens(), target)))
    });
    note(Measure::FirstToken, targets.first_token_milliseconds, &|target| {
        let settled = memory.ready.1.is_none_or(|at| now.as_second() - at.as_second() >= SETTLE_SECONDS);
        match signals.first_token.samples {
            samples if samples >= SAMPLES => {
                let measured = signals.first_token.p90_milliseconds;
                (Some(measured), Some(ask.latency(measured, target, settled)))
            }
            // nobody asks, so nobody waits
            0 if signals.quiet() => (None, Some(ask.latency(0, target, settled))),
            _ => (None, None),
        }
    });
    note(Measure::KvUse, targets.kv_percent, &|target| {
        (signals.kv_percent, signals.kv_percent.map(|percent| ask.share(percent, target)))
    });
    metrics
}

/// Whether the groups that are ready have enough to do, so that what they do is what they can.
pub(super) fn full(metrics: &[Metric], current: u32, ready: u32) -> bool {
    ready > 0
        && metrics.iter().any(|metric| {
            let Some(measured) = metric.current else { return false };
            if metric.measure.is_queue() {
                measured.saturating_mul(u64::from(current)) >= metric.target.saturating_mul(u64::from(ready))
            } else {
                measured >= metric.target
            }
        })
}

struct Ask<'a> {
    terms: &'a Terms,
    groups: Groups,
    current: u32,
    /// Whether it is known what a group does while targets are just reached.
    rate_known: bool,
}

impl Ask<'_> {
    /// Whether it differs from what it should be by so little that nothing is done about it.
    fn near(&self, measured: u64, wanted: u64) -> bool {
        let rules = if measured > wanted { &self.terms.up } else { &self.terms.down };
        measured.abs_diff(wanted).saturating_mul(100)
            <= wanted.saturating_mul(u64::from(rules.tolerance_percent))
    }

    /// A sum that is to be shared out.
    fn total(&self, sum: u64, target: u64) -> u32 {
        if self.near(sum, target.saturating_mul(u64::from(self.current))) {
            return self.current;
        }
        number(sum.div_ceil(target))
    }

    /// A mean over the groups that are ready.
    fn share(&self, mean: u64, target: u64) -> u32 {
        if self.groups.ready == 0 || self.near(mean, target) {
            return self.current;
        }
        number(mean.saturating_mul(u64::from(self.groups.ready)).div_ceil(target))
    }

    /// A time. It grows without bound when there is a little too much to do, and hardly falls when there is far too little:
    /// so it tells the direction, and not how far.
    fn latency(&self, measured: u64, target: u64, settled: bool) -> u32 {
        let ready = u64::from(self.groups.ready);
        if self.groups.ready == 0 || self.near(measured, target) {
            self.current
        } else if measured > target {
            let asked = number((ready * measured.min(2 * target)).div_ceil(target));
            // it says nothing of groups that do not serve yet, or have just begun
            let more = settled && self.groups.loading == 0;
            if more { asked.max(self.current) } else { self.current }
        } else if self.groups.loading > 0 || measured > target * 4 / 5 {
            self.current
        } else if measured < target / 2 && self.rate_known {
            // how many are enough is known better by what they do
            1
        } else {
            self.current.saturating_sub(1)
        }
    }
}

/// How many groups are enough for what comes, and to drain soon what waits; `None`: it is not known what comes, or what a
/// group does.
pub(super) fn enough(memory: &Memory, terms: &Terms, signals: &Signals, groups: Groups) -> Option<u32> {
    let per_group = memory.rates.per_group()?;
    let load = memory.rates.newest_load()?;
    let queue = match (terms.targets.outstanding_tokens, terms.targets.queued_tokens) {
        (Some(target), _) => (signals.tokens(), target),
        (None, Some(target)) => (signals.held_tokens, target),
        (None, None) => return None,
    };
    let excess = queue.0.saturating_sub(queue.1.saturating_mul(u64::from(groups.capacity())));
    let time = f64::from(groups.eta_seconds.unwrap_or(0)).max(DRAIN_SECONDS);
    Some(ceil((load + excess as f64 / time) / per_group))
}

/// How many groups have enough to do with what comes, if that is known: fewer would have too much.
pub(super) fn busy(memory: &Memory) -> Option<u32> {
    Some(ceil(memory.rates.load()? / (memory.rates.per_group()? * BUSY)))
}

fn number(groups: u64) -> u32 {
    u32::try_from(groups).unwrap_or(u32::MAX)
}

fn ceil(groups: f64) -> u32 {
    groups.ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
