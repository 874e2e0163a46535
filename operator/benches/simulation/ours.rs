//! The operator's own decision.
use belay_crds::AutoscalingSpec;
use belay_operator::scaling::{FirstToken, Groups, Heard, Memory, Scale, Signals, Terms, View, decide};
use jiff::{SignedDuration, Timestamp};

use super::{Autoscaler, plant::Plant};

/// Seconds between two looks.
const EVERY: f64 = 2.0;

/// The operator's own decision, under a spec.
pub struct Belay {
    terms: Terms,
    memory: Memory,
    start: u32,
    next: f64,
}

impl Belay {
    pub fn new(spec: serde_json::Value, start: u32) -> Self {
        let spec: AutoscalingSpec = serde_json::from_value(spec).unwrap();
        Self { terms: Terms::new(&spec).unwrap(), memory: Memory::default(), start, next: 0.0 }
    }
}

impl Autoscaler for Belay {
    fn name(&self) -> &'static str {
        "belay"
    }

    fn start(&self) -> u32 {
        self.start
    }

    fn look(&mut self, now: f64, current: u32, plant: &Plant) -> u32 {
        if now < self.next {
            return current;
        }
        self.next = now + EVERY;
        let seen = plant.seen(now);
        let at = Timestamp::UNIX_EPOCH + SignedDuration::from_millis((now * 1000.0) as i64);
        let signals = Signals {
            measured: at,
            heard: Heard::All,
            held: seen.held,
            held_tokens: seen.held_tokens,
            outstanding: seen.running,
            outstanding_tokens: seen.running_tokens,
            idle_seconds: seen.idle_seconds as u64,
            served_tokens: seen.served_tokens,
            first_token: FirstToken { samples: seen.first_tokens, p90_milliseconds: seen.first_token_p90 },
            kv_percent: None,
        };
        let groups = Groups {
            ready: seen.ready,
            loading: seen.loading,
            failing: 0,
            eta_seconds: (seen.loading > 0).then_some(seen.eta as u32),
        };
        let view = View { current, groups, rolling_out: false, signals: Some(&signals) };
        let decision = decide(&self.terms, &view, &mut self.memory, at);
        if decision.desired != current {
            let step = Scale { at, from: current, to: decision.desired, reason: decision.reason };
            self.memory.scaled(step);
        }
        decision.desired
    }
}
