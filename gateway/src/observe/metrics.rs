//! Prometheus metrics of the gateway.
use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    keys::Reason,
    measure::Attempts,
    routing::{Fleet, ModelState},
};

/// Labels of a finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    model: String,
    path: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Counted {
    model: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    key: String,
    limit: String,
}

/// When another attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryKind {
    /// Before the first token.
    Retry,
    /// After it: the stream was continued on another worker.
    Resume,
    /// None failed, but the first token was late: a second worker was asked.
    Hedge,
}

/// All metrics. Labels are bounded: models are known ones, paths are routes.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Finished, Counter>,
    retries: Family<Counted, Counter>,
    tokens: Family<Counted, Counter>,
    limited: Family<Limited, Counter>,
    keys_current: Gauge,
    first_token: Family<OfModel, Histogram, fn() -> Histogram>,
    duration: Family<OfModel, Histogram, fn() -> Histogram>,
    /// Requests being served.
    pub in_flight: Gauge,
    /// Requests that wait for a worker.
    pub held: Gauge,
}

impl Metrics {
    /// Metrics of a gateway with this fleet.
    pub fn new(fleet: Arc<Fleet>) -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("belay_gateway"),
            requests: Family::default(),
            retries: Family::default(),
            tokens: Family::default(),
            limited: Family::default(),
            keys_current: Gauge::default(),
            first_token: Family::new_with_constructor(latency),
            duration: Family::new_with_constructor(latency),
            in_flight: Gauge::default(),
            held: Gauge::default(),
        };
        let Self {
            registry,
            requests,
            retries,
            tokens,
            limited,
            keys_current,
            first_token,
            duration,
            in_flight,
            held,
        } = &mut metrics;
        registry.register("limited_requests", "Requests beyond a limit of their API key", limited.clone());
        let help = "1 while the API keys in use are those of the file";
        registry.register("keys_current", help, keys_current.clone());
        registry.register("requests", "Finished requests", requests.clone());
        registry.register("requests_in_flight", "Requests being served", in_flight.clone());
        registry.register("requests_held", "Requests that wait for a worker", held.clone());
        registry.register("retries", "Further attempts at requests", retries.clone());
        registry.register("tokens", "Tokens of finished requests", tokens.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From the request to its first token",
            first_token.clone(),
        );
        registry.register("request_duration_seconds", "From the request to its end", duration.clone());
        registry.register_collector(Box::new(Attempts(fleet.clone())));
        registry.register_collector(Box::new(Workers(fleet)));
        Arc::new(metrics)
    }

    /// The exposition text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Another attempt is made.
    pub fn retry(&self, model: &str, kind: RetryKind) {
        let kind = match kind {
            RetryKind::Retry => "retry",
            RetryKind::Resume => "resume",
            RetryKind::Hedge => "hedge",
        };
        self.retries.get_or_create(&Counted { model: model.to_owned(), kind }).inc();
    }

    /// A key has reached a limit. Keys and limits are few.
    pub fn limited(&self, key: &str, limit: Reason) {
        let labels = Limited { key: key.to_owned(), limit: limit.to_string() };
        self.limited.get_or_create(&labels).inc();
    }

    /// Whether the keys in use are those of the file.
    pub fn keys_are_current(&self, are: bool) {
        self.keys_current.set(are.into());
    }

    pub(super) fn first_token(&self, model: &str, seconds: f64) {
        self.first_token.get_or_create(&OfModel { model: model.to_owned() }).observe(seconds);
    }

    pub(super) fn finished(&self, model: &str, path: &'static str, code: String, seconds: f64) {
        let labels = Finished { model: model.to_owned(), path: path.to_owned(), code };
        self.requests.get_or_create(&labels).inc();
        self.duration.get_or_create(&OfModel { model: model.to_owned() }).observe(seconds);
    }

    pub(super) fn tokens(&self, model: &str, prompt: u32, completion: u32) {
        for (kind, count) in [("prompt", prompt), ("completion", completion)] {
            self.tokens.get_or_create(&Counted { model: model.to_owned(), kind }).inc_by(count.into());
        }
    }
}

/// 1 ms to 2 minutes and a bit, by doubling.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

type Count = fn(&ModelState) -> usize;

/// Workers by model, read from the fleet when asked for: models that are gone leave no series behind.
#[derive(Debug)]
struct Workers(Arc<Fleet>);

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let view = self.0.view();
        let gauges: [(&str, &str, Count); 2] = [
            ("workers_known", "Workers that exist", |state| state.known),
            ("workers_ready", "Workers that take requests, as discovery sees it", |state| state.ready()),
        ];
        for (name, help, count) in gauges {
            let gauge = ConstGauge::new(0i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (model, state) in &view.models {
                let labels = OfModel { model: model.clone() };
                let gauge = ConstGauge::new(i64::try_from(count(state)).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
