//! Traces of requests, by OpenTelemetry. Off unless the environment names a collector.
//!
//! A [`Span`] is handed along with its request. W3C trace context goes in and out with the headers of calls; with
//! traces off it still passes through, so that a worker behind a silent gateway has its parent.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::SystemTime;

use opentelemetry::propagation::{Injector, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value, global};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;

/// Variables that name the collector, as OpenTelemetry defines them; the first one is for traces alone.
pub const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
#[error("traces: {0}")]
pub struct Error(#[from] ExporterBuildError);

/// Sends spans to the collector (OTLP over gRPC), on a thread of its own.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts it for the process, if a collector is named. Within a tokio runtime only.
    ///
    /// # Errors
    /// [`Error`] if the collector's address is none.
    pub fn start(service: &'static str) -> Result<Option<Self>, Error> {
        let is_named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !ENDPOINTS.iter().any(is_named) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().build()?;
        let mut resource = Resource::builder();
        if !is_named(&"OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(service);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }

    /// Sends what is left, and ends. May take seconds.
    pub fn stop(self) {
        // nobody is left to hear of an error
        let _ = self.0.shutdown();
    }
}

/// A stretch of a request's life. Ends with its last clone.
#[derive(Clone, Debug, Default)]
pub struct Span(Context);

impl Span {
    /// Of a request that came in; `header` gives the values of its headers.
    #[must_use]
    pub fn server<'a>(name: impl Into<String>, header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let given = ["traceparent", "tracestate"].map(|key| Some((key.to_owned(), header(key)?.to_owned())));
        let given: HashMap<String, String> = given.into_iter().flatten().collect();
        let parent = TraceContextPropagator::new().extract(&given);
        let tracer = global::tracer("belay");
        let builder = SpanBuilder::from_name(name.into()).with_kind(SpanKind::Server);
        Self(parent.with_span(tracer.build_with_context(builder, &parent)))
    }

    /// Whether anybody will see it: if not, attributes need not be made.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0.span().is_recording()
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        self.0.span().set_attribute(KeyValue::new(key, value));
    }

    /// Something happened.
    pub fn event(&self, name: &'static str, key: &'static str, value: impl Into<Value>) {
        self.0.span().add_event(name, vec![KeyValue::new(key, value)]);
    }

    /// It did not go well.
    pub fn fail(&self, why: impl Into<String>) {
        self.0.span().set_status(Status::error(why.into()));
    }

    /// A part of it that is over.
    pub fn part(&self, name: &'static str, start: SystemTime, end: SystemTime) {
        let builder = SpanBuilder::from_name(name).with_start_time(start);
        global::tracer("belay").build_with_context(builder, &self.0).end_with_timestamp(end);
    }

    /// Writes its context into the headers of a call.
    pub fn inject(&self, set: impl FnMut(&str, String)) {
        TraceContextPropagator::new().inject_context(&self.0, &mut Setter(set));
    }
}

struct Setter<F>(F);

impl<F: FnMut(&str, String)> Injector for Setter<F> {
    fn set(&mut self, key: &str, value: String) {
        (self.0)(key, value);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traceparent(span: &Span) -> String {
        let mut found = String::new();
        span.inject(|key, value| {
            if key == "traceparent" {
                found = value;
            }
        });
        found
    }

    /// One test, because the exporter is the process's.
    #[test]
    fn context_passes_through_and_spans_hang_together() {
        let header = |key: &str| (key == "traceparent").then_some(PARENT);
        let silent = Span::server("off", header);
        assert_eq!((silent.is_recording(), traceparent(&silent).as_str()), (false, PARENT));
        assert_eq!(traceparent(&Span::default()), "");
        assert_eq!(traceparent(&Span::server("off", |_| Some("nonsense"))), "");

        let exporter = InMemorySpanExporter::default();
        global::set_tracer_provider(
            SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build(),
        );
        let span = Span::server("on", header);
        let inside = traceparent(&span);
        assert!(inside.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && inside != PARENT);
        span.set("k", 5_i64);
        span.fail("why");
        let now = SystemTime::now();
        span.part("part", now, now + Duration::from_secs(1));
        let clone = span.clone();
        drop(span);
        assert_eq!(exporter.get_finished_spans().unwrap().len(), 1, "a clone keeps it open");
        drop(clone);
        let spans = exporter.get_finished_spans().unwrap();
        let [part, whole] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(part.parent_span_id, whole.span_context.span_id());
        assert_eq!(whole.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!((whole.name.as_ref(), whole.attributes.len()), ("on", 1));
        assert_eq!(whole.status, Status::error("why"));
    }
}
