//! What gateways measure, as the decision needs it.
use std::collections::VecDeque;

use belay_proto::gateway::Histogram;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    gateways::{Measure, Totals},
    group::Group,
    scaling::{FirstToken, Heard, Signals},
};

/// How far back times to first tokens count.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// Between two states that are kept.
const APART: SignedDuration = SignedDuration::from_secs(5);

/// The signals of a deployment. `all`: whether every gateway has answered.
pub fn signals(
    measure: &Measure,
    all: bool,
    first_token: FirstToken,
    groups: &[Group],
    now: Timestamp,
) -> Signals {
    let revisions = measure.totals.revisions.values();
    Signals {
        measured: now - SignedDuration::try_from(measure.age).unwrap_or(SignedDuration::MAX / 4),
        heard: if all { Heard::All } else { Heard::Some },
        held: measure.held,
        held_tokens: measure.held_tokens,
        outstanding: measure.outstanding,
        outstanding_tokens: measure.outstanding_tokens,
        idle_seconds: measure.idle.as_secs(),
        served_tokens: revisions.map(|revision| revision.prompt_tokens + revision.completion_tokens).sum(),
        first_token,
        kv_percent: kv_percent(groups),
    }
}

/// How full the caches of workers that serve are, in percent of all that they may hold together; `None`: no worker says.
fn kv_percent(groups: &[Group]) -> Option<u64> {
    let serving = groups.iter().filter(|group| !group.draining()).flat_map(Group::pods);
    let statuses = serving.filter(|(_, pod)| pod.serves()).filter_map(|(_, pod)| pod.status());
    let (used, limit) = statuses.fold((0u64, 0u64), |(used, limit), status| {
        (used.saturating_add(status.kv_bytes), limit.saturating_add(status.kv_bytes_limit))
    });
    used.saturating_mul(100).checked_div(limit)
}

/// Times to first tokens at several moments, so that there is one of a minute ago.
#[derive(Debug, Default)]
pub struct FirstTokens {
    kept: VecDeque<(Timestamp, Totals)>,
}

impl FirstTokens {
    /// Takes note of what was counted so far; gives what was counted in the last minute, or since somebody looks.
    pub fn note(&mut self, totals: &Totals, now: Timestamp) -> FirstToken {
        while self.kept.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.kept.pop_front();
        }
        let before = self.kept.front().map(|(_, totals)| totals);
        let counted = before.map(|before| totals.since(before).first_token).unwrap_or_default();
        if self.kept.back().is_none_or(|(at, _)| now.duration_since(*at) >= APART) {
            // of a state, only the times are asked for later
            let times = Totals { first_token: totals.first_token.clone(), ..Totals::default() };
            self.kept.push_back((now, times));
        }
        FirstToken { samples: counted.counts.iter().sum(), p90_milliseconds: p90(&counted) }
    }
}

/// The time, in milliseconds, below which nine of ten are; within a bucket, they are taken to be spread evenly.
fn p90(histogram: &Histogram) -> u64 {
    let total: u64 = histogram.counts.iter().sum();
    let rank = total as f64 * 0.9;
    let (mut below, mut low, mut high) = (0.0, 0.0, histogram.first);
    for (index, count) in histogram.counts.iter().map(|count| *count as f64).enumerate() {
        // the last bucket has no upper end
        let last = index + 1 == histogram.counts.len();
        if count > 0.0 && below + count >= rank {
            let seconds = if last { low } else { low + (high - low) * (rank - below) / count };
            return (seconds * 1000.0) as u64;
        }
        below += count;
        (low, high) = (high, high * histogram.factor);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(counts: &[u64]) -> Totals {
        let first_token = Histogram { first: 0.1, factor: 2.0, counts: counts.to_vec(), sum: 0.0 };
        Totals { first_token, ..Totals::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn times_of_the_last_minute_count() {
        let mut times = FirstTokens::default();
        assert_eq!(times.note(&totals(&[1000, 0, 0, 0]), at(0)).samples, 0, "before anybody looked");
        // 90 below 0.2 s, 10 below 0.4 s
        let seen = times.note(&totals(&[1000, 90, 10, 0]), at(10));
        assert_eq!((seen.samples, seen.p90_milliseconds), (100, 200));
        for second in (15..70).step_by(5) {
            times.note(&totals(&[1000, 90, 10, 0]), at(second));
        }
        let later = times.note(&totals(&[1000, 90, 20, 0]), at(75));
        assert_eq!((later.samples, later.p90_milliseconds), (10, 380), "those of a minute ago are forgotten");
    }

    #[test]
    fn caches_of_workers_that_serve_count() {
        use belay_proto::admin::{Phase, WorkerStatus};

        use crate::group::WorkerPod;
        let pod = |kv_bytes: u64, ready: bool| {
            let mut status = WorkerStatus { kv_bytes, kv_bytes_limit: 400, ..WorkerStatus::default() };
            status.set_phase(Phase::Ready);
            Some(WorkerPod { ready, worker: Some(Ok(status)), ..WorkerPod::default() })
        };
        let group = |slots| Group { slots, ..Group::default() };
        let groups = [group(vec![pod(100, true), pod(300, true)]), group(vec![pod(400, false)])];
        assert_eq!(kv_percent(&groups), Some(50));
        assert_eq!(kv_percent(&groups[1..]), None);
    }

    #[test]
    fn what_is_beyond_all_buckets_is_at_least_as_late_as_the_last() {
        assert_eq!(p90(&totals(&[0, 0, 0, 5]).first_token), 400);
        assert_eq!(p90(&Histogram::default()), 0);
    }
}
