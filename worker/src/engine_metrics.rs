//! What the engine measures of steps and requests.

use std::time::Duration;

use belay_engine::{RequestReport, StepReport};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// Makes the histogram of a phase.
#[derive(Clone, Copy, Debug)]
struct StepBuckets;

impl MetricConstructor<Histogram> for StepBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0])
    }
}

/// Histograms that are filled on the engine's thread: none of them waits for a reader.
#[derive(Debug)]
pub struct EngineMetrics {
    inter_token: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    step_tokens: Histogram,
    step: Family<PhaseLabels, Histogram, StepBuckets>,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0])
}

fn tokens() -> Histogram {
    Histogram::new((0..20).step_by(2).map(|power| f64::from(1_u32 << power)))
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            inter_token: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
            ]),
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            step_tokens: tokens(),
            step: Family::new_with_constructor(StepBuckets),
        }
    }
}

impl EngineMetrics {
    /// Makes them known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(name, help, histogram.clone());
        };
        add("inter_token_latency_seconds", "Between two tokens of a request", &self.inter_token);
        add("request_queue_time_seconds", "From the arrival of a request until it ran", &self.queue);
        add("request_prefill_time_seconds", "From there to its first token", &self.prefill);
        add("request_decode_time_seconds", "From its first token to its last", &self.decode);
        add("request_prompt_tokens", "Tokens of a request's prompt", &self.prompt_tokens);
        add("request_generation_tokens", "Tokens that a request produced", &self.generation_tokens);
        add("iteration_tokens", "Tokens fed in a step", &self.step_tokens);
        registry.register("step_seconds", "Time of a step by what it was spent on", self.step.clone());
    }

    /// A step is over.
    pub fn step(&self, report: &StepReport) {
        let phases = [
            ("plan", report.plan),
            ("draft", report.draft),
            ("forward", report.forward),
            ("choose", report.choose),
        ];
        for (phase, time) in phases {
            self.step.get_or_create(&PhaseLabels { phase }).observe(time.as_secs_f64());
        }
        self.step_tokens.observe((report.prefill_rows + report.decode_rows) as f64);
    }

    /// A request got a token.
    pub fn token(&self, gap: Duration) {
        self.inter_token.observe(gap.as_secs_f64());
    }

    /// A request has ended.
    pub fn finished(&self, report: &RequestReport) {
        self.queue.observe(report.queued.as_secs_f64());
        if let Some(prefill) = report.prefill {
            self.prefill.observe(prefill.as_secs_f64());
        }
        if let Some(decode) = report.decode {
            self.decode.observe(decode.as_secs_f64());
        }
        self.prompt_tokens.observe(f64::from(report.usage.prompt_tokens));
        self.generation_tokens.observe(f64::from(report.produced));
    }
}
