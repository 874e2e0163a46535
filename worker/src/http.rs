//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::context::Context;

#[derive(Clone)]
struct Pages {
    context: Arc<Context>,
    registry: Arc<Registry>,
}

/// The pages of one worker.
pub fn router(context: Arc<Context>, registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .with_state(Pages { context, registry: Arc::new(registry) })
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")).into_response(),
    }
}

/// The process lives, unless its engine has died: then only a restart helps.
async fn alive(State(pages): State<Pages>) -> Response {
    match pages.context.engine_stopped() {
        None => "ok\n".into_response(),
        Some(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the engine has stopped: {reason}\n")).into_response()
        }
    }
}

async fn ready(State(pages): State<Pages>) -> Response {
    match pages.context.shared.get().refusal() {
        None => "ready\n".into_response(),
        Some(refusal) => (StatusCode::SERVICE_UNAVAILABLE, format!("{refusal}\n")).into_response(),
    }
}
