//! `/metrics`, `/healthz` and `/readyz`.
use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

struct Shared {
    metrics: Metrics,
    connected: watch::Receiver<bool>,
}

/// Serves until `stop`. `connected` says whether the API server has answered: a follower that waits for the lease is
/// ready, too.
///
/// # Errors
/// When the address cannot be bound or serving fails.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    connected: watch::Receiver<bool>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Shared { metrics, connected }));
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await.context("serve metrics")
}

async fn text(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    match shared.metrics.text() {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, kind, error.to_string()),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if *shared.connected.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet")
    }
}
