//! The Anthropic Messages API: `/v1/messages`, `/v1/messages/count_tokens`. Beta headers are taken and ignored.
mod answer;
mod content;
mod count;
mod error;
pub mod request;
mod stream;

pub use error::respond;

use axum::{Router, routing::post};

use crate::serve::App;

/// The routes of the API.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/messages", post(answer::create))
        .route("/v1/messages/count_tokens", post(count::count))
        .with_state(app)
}
