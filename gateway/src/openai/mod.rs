//! The OpenAI HTTP API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`; `/tokenize`, `/detokenize` as in vLLM.
mod answer;
pub mod chat;
pub mod completions;
mod constraint;
mod logprobs;
mod messages;
mod models;
mod options;
mod stream;
pub mod tokenize;
pub mod tools;
mod usage;

pub use messages::BETWEEN_PARTS;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, header};

use crate::{edge::ApiError, serve::App};

/// The routes of the API.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .with_state(app)
}

/// What is at no other route. Answers in the caller's language: gRPC callers get a gRPC status.
pub async fn not_found(request: Request) -> Response {
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented(format!("unknown method {}", request.uri().path()))
            .into_http::<axum::body::Body>();
    }
    ApiError::unknown_path(request.uri().path()).into_response()
}

/// A known route asked with a wrong method.
pub async fn wrong_method(request: Request) -> Response {
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).into_response()
}

/// Whether the caller speaks gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
