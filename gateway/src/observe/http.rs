//! `/metrics`, `/healthz`, `/readyz`; and over gRPC what the operator reads.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};

use crate::{measure::Measurements, routing::Fleet};

use super::Metrics;

/// Whether the gateway wants to be sent requests.
#[derive(Debug)]
pub struct Health {
    fleet: Arc<Fleet>,
    leaving: AtomicBool,
}

impl Health {
    /// Of a gateway with this fleet.
    pub fn new(fleet: Arc<Fleet>) -> Arc<Self> {
        Arc::new(Self { fleet, leaving: AtomicBool::new(false) })
    }

    /// From now on: not ready.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether it is not to be ready any more.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Ready, or why not. Workers do not matter here: requests for models without one are held.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.is_leaving() {
            Err("shutting down")
        } else if !self.fleet.view().synced {
            Err("models and workers are not known yet")
        } else {
            Ok(())
        }
    }
}

/// Everything on the metrics address.
pub fn router(metrics: Arc<Metrics>, health: Arc<Health>, measurements: Measurements) -> Router {
    let measurements = measurements.routes().into_axum_router().reset_fallback();
    Router::new()
        .route("/metrics", get(move || exposition(metrics)))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(health)
        .merge(measurements)
}

async fn exposition(metrics: Arc<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readiness(State(health): State<Arc<Health>>) -> Response {
    match health.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
