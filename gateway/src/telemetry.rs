//! Logs: structured, on stderr, never with prompt or answer text. Traces: a span for each request of the API.
use std::io::IsTerminal;

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use belay_telemetry::Span;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging for the process. `RUST_LOG` sets levels; the default is `info`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

tokio::task_local! {
    static SPAN: Span;
}

/// Gives each request a span, below the client's if that sends W3C trace context.
pub async fn trace(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("unknown path", MatchedPath::as_str);
    let name = format!("{} {path}", request.method());
    let span = Span::server(name, |key| request.headers().get(key)?.to_str().ok());
    SPAN.scope(span, next.run(request)).await
}

/// The span of the request that this task handles. A stream that outlives the handler keeps a clone.
pub fn span() -> Span {
    SPAN.try_with(Clone::clone).unwrap_or_default()
}
