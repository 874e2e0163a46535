//! Metrics in the manner of vLLM's, under the prefix `belay_`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use belay_engine::{FinishReason, Observer, RequestReport, Stats as EngineStats, StepReport};
use belay_fabric::{CircleState, Coverage, Health, PeerState, StatsSnapshot};
use belay_proto::admin::Phase;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::engine_metrics::EngineMetrics;
use crate::state::{State, phase_name};

/// Label set of metrics about requests that ended well.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishedLabels {
    finished_reason: &'static str,
}

/// Label set of metrics about requests that did not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedLabels {
    code: &'static str,
}

/// What is measured where it happens; the rest is read at scrape time.
#[derive(Debug)]
pub struct RequestMetrics {
    first_token: Histogram,
    whole: Histogram,
    finished: Family<FinishedLabels, Counter>,
    failed: Family<FailedLabels, Counter>,
    engine: EngineMetrics,
    /// Of the request that ended last.
    report: Mutex<Option<RequestReport>>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            first_token: Histogram::new([
                0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
            ]),
            whole: Histogram::new([
                0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
            ]),
            finished: Family::default(),
            failed: Family::default(),
            engine: EngineMetrics::default(),
            report: Mutex::default(),
        }
    }
}

impl RequestMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            self.first_token.clone(),
        );
        registry.register(
            "e2e_request_latency_seconds",
            "From the arrival of a request to its end",
            self.whole.clone(),
        );
        registry.register(
            "request_success",
            "Requests that ended with a finish reason",
            self.finished.clone(),
        );
        registry.register("request_failure", "Requests that ended otherwise", self.failed.clone());
        self.engine.register(registry);
    }

    /// Begins to measure a request.
    #[must_use]
    pub fn start(self: Arc<Self>) -> RequestTimer {
        RequestTimer { metrics: self, started: Instant::now(), has_tokens: false }
    }

    /// The engine's report of the request that has ended last, once; for the sink of that request.
    pub fn take_report(&self) -> Option<RequestReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Counts a request that never began.
    pub fn refused(&self, code: Code) {
        self.failed.get_or_create(&FailedLabels { code: code_name(code) }).inc();
    }
}

impl Observer for RequestMetrics {
    fn step(&self, report: &StepReport) {
        self.engine.step(report);
    }

    fn token(&self, gap: Duration) {
        self.engine.token(gap);
    }

    fn finished(&self, report: &RequestReport) {
        self.engine.finished(report);
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
    }
}

/// Measures one request.
#[derive(Debug)]
pub struct RequestTimer {
    metrics: Arc<RequestMetrics>,
    started: Instant,
    has_tokens: bool,
}

impl RequestTimer {
    /// Where it counts.
    #[must_use]
    pub fn metrics(&self) -> Arc<RequestMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Tokens came.
    pub fn tokens(&mut self) {
        if !std::mem::replace(&mut self.has_tokens, true) {
            self.metrics.first_token.observe(self.started.elapsed().as_secs_f64());
        }
    }

    /// One of the request's answers ended well.
    pub fn finished(&mut self, reason: &FinishReason) {
        let finished_reason = reason.as_str();
        self.metrics.finished.get_or_create(&FinishedLabels { finished_reason }).inc();
    }

    /// All of them have.
    pub fn over(&mut self) {
        self.metrics.whole.observe(self.started.elapsed().as_secs_f64());
    }

    /// The request ended with an error.
    pub fn failed(&mut self, code: Code) {
        self.metrics.refused(code);
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Cancelled => "CANCELLED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}

/// Everything that is read when somebody scrapes.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The worker's state.
    pub state: State,
    /// Requests in flight.
    pub in_flight: usize,
    /// Bytes done and to do.
    pub loaded: (u64, u64),
    /// Fused operators of the devices, and whether they are used.
    pub fused: Vec<(&'static str, bool)>,
    /// Counters of the engine, once there is one.
    pub engine: Option<EngineStats>,
    /// Counters of the fabric, once there is one.
    pub fabric: Option<StatsSnapshot>,
    /// Connections to the other workers.
    pub peers: Vec<PeerState>,
    /// Workers whose devices exchange rows by themselves.
    pub circle: Option<CircleState>,
    /// Live copies of the experts, in a group with a placement in use.
    pub coverage: Option<Coverage>,
}

/// Where readings come from.
pub trait Source: std::fmt::Debug + Send + Sync + 'static {
    /// A reading of now.
    fn read(&self) -> Reading;
}

/// A registry of everything that a worker exports.
#[must_use]
pub fn registry(requests: &RequestMetrics, source: Arc<dyn Source>) -> Registry {
    let mut registry = Registry::with_prefix("belay");
    requests.register(&mut registry);
    registry.register_collector(Box::new(AtScrape(source)));
    registry
}

#[derive(Debug)]
struct AtScrape(Arc<dyn Source>);

/// Label sets are slices of these.
type Label<'a> = (&'a str, String);

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> std::fmt::Result {
        self.gauges(name, help, &[], [(String::new(), value)])
    }

    /// One series for each value, told apart by the label; no label if `label` is empty.
    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &[&str],
        values: impl IntoIterator<Item = (String, f64)>,
    ) -> std::fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (text, value) in values {
            let gauge = ConstGauge::new(value);
            match label.first() {
                Some(label) => {
                    let labels: [Label<'_>; 1] = [(label, text)];
                    gauge.encode(metric.encode_family(&labels)?)?;
                }
                None => return gauge.encode(metric),
            }
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> std::fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// One series for each value, told apart by the label.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: Vec<(String, u64)>,
    ) -> std::fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (text, value) in values {
            let labels: [Label<'_>; 1] = [(label, text)];
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn state(&mut self, reading: &Reading) -> std::fmt::Result {
        let state = &reading.state;
        let phases = [
            Phase::Starting,
            Phase::WaitingForPlacement,
            Phase::Loading,
            Phase::Connecting,
            Phase::Ready,
            Phase::Failed,
        ];
        let phases =
            phases.map(|phase| (phase_name(phase).replace(' ', "_"), f64::from(state.phase == phase)));
        self.gauges("phase", "1 for the phase that the worker is in", &["phase"], phases)?;
        self.gauge("draining", "1 while new requests are refused", f64::from(state.draining))?;
        self.gauge("placement_epoch", "Epoch of the placement in use", state.epoch as f64)?;
        self.gauge("requests_in_flight", "Requests whose stream is open", reading.in_flight as f64)?;
        let dense = state.card.as_ref().map_or(0, |card| card.dense_bytes);
        self.gauge("dense_bytes", "Bytes of the weights that every worker holds", dense as f64)?;
        let by_rank = |value: fn(&belay_proto::admin::RankStatus) -> f64| -> Vec<(String, f64)> {
            state.ranks.iter().map(|rank| (rank.rank.to_string(), value(rank))).collect()
        };
        let bytes = by_rank(|rank| rank.expert_bytes as f64);
        self.gauges("expert_bytes", "Bytes of the experts that a rank holds", &["rank"], bytes)?;
        let experts = by_rank(|rank| f64::from(rank.experts));
        self.gauges("experts", "Copies of (layer, expert) that a rank holds", &["rank"], experts)?;
        if !reading.fused.is_empty() {
            let fused = reading.fused.iter().map(|(name, used)| ((*name).to_owned(), f64::from(*used)));
            let help = "1 for a fused operator of the devices that is used, 0 for one that is not";
            self.gauges("fused_operator", help, &["operator"], fused)?;
        }
        self.gauge("load_bytes", "Bytes loaded so far", reading.loaded.0 as f64)?;
        self.gauge("load_bytes_expected", "Bytes to load", reading.loaded.1 as f64)
    }

    fn engine(&mut self, stats: &EngineStats) -> std::fmt::Result {
        self.gauge("num_requests_running", "Requests that take part in steps", stats.running as f64)?;
        self.gauge("num_requests_waiting", "Requests that wait for a place", stats.queued as f64)?;
        self.counter("prompt_tokens", "Tokens of prompts fed", stats.prefilled_tokens)?;
        self.counter("generation_tokens", "Tokens produced", stats.generated_tokens)?;
        self.counter("steps", "Steps that went well", stats.steps)?;
        self.counter("steps_lost", "Steps that were lost with their requests", stats.failed_steps)?;
        self.counter("num_preemptions", "Times that a request lost its place to another", stats.preemptions)?;
        self.counter(
            "prefix_cache_queries",
            "Tokens looked up in the prefix cache",
            stats.prefix_query_tokens,
        )?;
        self.counter("prefix_cache_hits", "Tokens found in the prefix cache", stats.prefix_hit_tokens)?;
        let by_place = |counts: &[u64]| -> Vec<(String, u64)> {
            counts.iter().enumerate().map(|(place, count)| (place.to_string(), *count)).collect()
        };
        let help = "Guessed tokens that were checked, by place";
        self.counters("spec_decode_num_draft_tokens", help, "position", by_place(&stats.drafted))?;
        let help = "Guessed tokens that were right, by place";
        self.counters("spec_decode_num_accepted_tokens", help, "position", by_place(&stats.accepted))?;
        let (used, cached) = (stats.kv_bytes as f64, stats.prefix_cache_bytes as f64);
        self.gauge("kv_cache_bytes", "Decode state of running requests", used)?;
        self.gauge("prefix_cache_bytes", "Decode state that only the prefix cache holds", cached)?;
        let limit = stats.kv_bytes_limit as f64;
        self.gauge("kv_cache_bytes_limit", "Upper bound of decode state and prefix cache together", limit)?;
        let share = if limit > 0.0 { used / limit } else { 0.0 };
        self.gauge("kv_cache_usage_perc", "Share of the limit that running requests hold, 0 to 1", share)
    }

    fn coverage(&mut self, coverage: &Coverage) -> std::fmt::Result {
        let uncovered = f64::from(coverage.uncovered);
        self.gauge("experts_uncovered", "Pairs (layer, expert) without a live copy", uncovered)?;
        let least = f64::from(coverage.min_live);
        self.gauge("expert_min_live_copies", "Live copies of the pair that has the fewest", least)?;
        let adopted = f64::from(coverage.adopted);
        self.gauge("experts_adopted", "Copies held here for ranks that are lost", adopted)?;
        let millis = coverage.uncovered_for.as_millis() as u64;
        self.counter(
            "experts_uncovered_milliseconds",
            "Time in which some pair had no live copy, since this worker saw all of them",
            millis,
        )?;
        let millis = coverage.silent_for.as_millis() as u64;
        self.counter(
            "experts_uncovered_silent_milliseconds",
            "Part of that time in which each such pair had a holder that was only silent",
            millis,
        )
    }

    fn fabric(&mut self, stats: &StatsSnapshot, reading: &Reading) -> std::fmt::Result {
        self.counter("fabric_routes", "Routes of exchanges, local ones included", stats.routes)?;
        self.counter("fabric_routes_served", "Routes computed for peers", stats.routes_served)?;
        self.counter("fabric_rows_sent", "Rows sent to peers", stats.rows_sent)?;
        self.counter("fabric_sent_bytes", "Bytes of asks sent to peers", stats.bytes_sent)?;
        self.counter("fabric_received_bytes", "Bytes of results from peers", stats.bytes_received)?;
        self.counter("fabric_exchanges_failed", "Exchanges that failed", stats.failed)?;
        let help = "Routes that were asked of somebody else after their first ask came to nothing";
        self.counter("fabric_rerouted", help, stats.rerouted)?;
        self.counter("fabric_rounds", "Exchanges from device to device", stats.rounds)?;
        self.counter("fabric_round_routes", "Routes of exchanges from device to device", stats.round_routes)?;
        let help = "Exchanges from device to device that came to nothing, and went over TCP";
        self.counter("fabric_rounds_failed", help, stats.rounds_failed)?;
        let workers = reading.circle.as_ref().map_or(0, |circle| circle.workers.len());
        let help =
            "Workers whose devices exchange rows by themselves, this one included; 0: rows go over TCP";
        self.gauge("fabric_circle_workers", help, workers as f64)?;
        let connected = reading
            .peers
            .iter()
            .map(|peer| (peer.worker.to_string(), f64::from(peer.health == Health::Live)));
        self.gauges("fabric_peer_connected", "1 if asks can be sent to a worker", &["worker"], connected)?;
        let latency = &stats.latency;
        let help = "Time of whole exchanges, dispatch to combine";
        let mut metric =
            self.0.encode_descriptor("fabric_exchange_seconds", help, None, MetricType::Histogram)?;
        metric.encode_histogram::<[(&str, &str); 0]>(latency.sum, latency.count, &latency.buckets, None)
    }
}

impl Collector for AtScrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let reading = self.0.read();
        let mut writer = Writer(encoder);
        writer.state(&reading)?;
        if let Some(stats) = &reading.engine {
            writer.engine(stats)?;
        }
        if let Some(stats) = &reading.fabric {
            writer.fabric(stats, &reading)?;
        }
        if let Some(coverage) = &reading.coverage {
            writer.coverage(coverage)?;
        }
        Ok(())
    }
}
