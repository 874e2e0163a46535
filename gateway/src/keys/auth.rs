//! Nothing but health and reflection is answered without a key.
use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{anthropic, edge::ApiError, life::Failure, openai, request_id::RequestId};

use super::Keyring;

/// What load balancers and tools ask before they can know a key.
const OPEN: [&str; 4] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
];

/// Gives each request its key; refuses it, in the form of its API, if it shows none that is known.
pub async fn authenticate(State(ring): State<Arc<Keyring>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.iter().any(|open| path.starts_with(open)) {
        return next.run(request).await;
    }
    match ring.of(request.headers()) {
        Some(key) => {
            request.extensions_mut().insert(key);
            next.run(request).await
        }
        None => refuse(&request),
    }
}

fn refuse(request: &Request) -> Response {
    let failure = Failure::Unauthenticated;
    if openai::is_grpc(request.headers()) {
        return tonic::Status::from(failure).into_http::<axum::body::Body>();
    }
    if request.uri().path().starts_with("/v1/messages") {
        let id = request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::new);
        return anthropic::respond(Err(failure.into()), &id);
    }
    ApiError::from(failure).into_response()
}
