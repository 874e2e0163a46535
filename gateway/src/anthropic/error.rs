//! Errors in Anthropic's shape.
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::{edge::ApiError, request_id::RequestId};

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The body: `{"type": "error", "error": {"type", "message"}}`.
pub fn body(error: &ApiError, id: &RequestId) -> Value {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "timeout_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    };
    let message = match &error.body.param {
        Some(param) if !error.body.message.contains(param.as_str()) => {
            format!("{param}: {}", error.body.message)
        }
        _ => error.body.message.clone(),
    };
    json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": id.0 })
}

/// A response, with the request's id where Anthropic's clients look for it.
pub fn respond(answer: Result<Response, ApiError>, id: &RequestId) -> Response {
    let mut response = answer.unwrap_or_else(|error| {
        let mut response = (error.status, axum::Json(body(&error, id))).into_response();
        error.retry_headers(response.headers_mut());
        response
    });
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
