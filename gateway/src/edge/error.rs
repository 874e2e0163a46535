//! Errors, in OpenAI's shape unless an edge translates them.
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use crate::life::{Failure, whole_seconds};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// An error as clients of the OpenAI API know it: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: ErrorBody,
    /// When it is worth asking again.
    pub retry_after: Option<Duration>,
}

/// The inner object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// Class of the error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, body: ErrorBody { message, kind, param: None, code }, retry_after: None }
    }

    /// 400 about the request as a whole.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message.into())
    }

    /// 400 about one parameter.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request(message);
        error.body.param = Some(param.into());
        error
    }

    /// 400: a required parameter is not there.
    pub fn missing(param: &str) -> Self {
        let mut error = Self::invalid(param, format!("missing required parameter: '{param}'"));
        error.body.code = Some("missing_required_parameter");
        error
    }

    /// 400: a parameter of the OpenAI API that is not served, set to something that matters.
    pub fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        let mut error = Self::invalid(&param, format!("'{param}' is not supported with this value"));
        error.body.code = Some("unsupported_parameter");
        error
    }

    /// 404 for a path.
    pub fn unknown_path(path: &str) -> Self {
        let message = format!("unknown path: {path}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    /// 405.
    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{method} is not allowed for {path}");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            Some("method_not_allowed"),
            message,
        )
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 408.
    pub fn slow_body(limit: Duration) -> Self {
        let message = format!("the request body did not arrive within {} s", limit.as_secs_f32());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", Some("request_timeout"), message)
    }

    /// Workers name the fields of their own request; clients of this API know them by other names. `names` has pairs
    /// of both.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Some(param) = &mut self.body.param {
            let end = param.find(['[', '.']).unwrap_or(param.len());
            if let Some((_, name)) = names.iter().find(|(of_worker, _)| *of_worker == &param[..end]) {
                param.replace_range(..end, name);
            }
        }
        self
    }

    /// The headers that say when to come back: whole seconds for everybody, milliseconds for OpenAI's clients.
    pub fn retry_headers(&self, headers: &mut HeaderMap) {
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
            let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds));
        }
    }

    /// The body, outer object included.
    pub fn json(&self) -> Value {
        json!({ "error": self.body })
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        let invalid = "invalid_request_error";
        let mut error = match &failure {
            Failure::Unauthenticated => {
                Self::new(StatusCode::UNAUTHORIZED, invalid, Some("invalid_api_key"), message)
            }
            Failure::Forbidden(_) => {
                let mut error = Self::new(StatusCode::FORBIDDEN, invalid, Some("model_not_allowed"), message);
                error.body.param = Some("model".to_owned());
                error
            }
            Failure::Limited(_) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
                message,
            ),
            Failure::UnknownModel(_) | Failure::UnknownRevision { .. } => {
                let mut error = Self::new(StatusCode::NOT_FOUND, invalid, Some("model_not_found"), message);
                error.body.param = Some("model".to_owned());
                error
            }
            Failure::Invalid(words) => {
                let (param, code) = blame(words);
                let mut error = Self::new(StatusCode::BAD_REQUEST, invalid, code, message);
                error.body.param = param;
                error
            }
            Failure::Overloaded { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("overloaded"), message)
            }
            Failure::HoldFull { .. } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("too_many_held_requests"),
                message,
            ),
            Failure::HoldTimeout { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                Some("no_ready_worker"),
                message,
            ),
            Failure::Lost(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                Some("workers_lost"),
                message,
            ),
            Failure::Deadline => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("deadline_exceeded"), message)
            }
            Failure::Worker(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("worker_failed"), message)
            }
        };
        error.retry_after = failure.retry_after();
        error
    }
}

/// Workers say `field: what is wrong`. The field becomes `param`, and a prompt that does not fit gets OpenAI's code.
fn blame(words: &str) -> (Option<String>, Option<&'static str>) {
    let is_name = |field: &&str| {
        !field.is_empty() && field.bytes().all(|b| b.is_ascii_alphanumeric() || b"_[].".contains(&b))
    };
    let field = words.split_once(": ").map(|(field, _)| field).filter(is_name);
    let is_long = words.contains("context") && (words.contains("do not fit") || words.contains("exceed"));
    (field.map(str::to_owned), is_long.then_some("context_length_exceeded"))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.json())).into_response();
        self.retry_headers(response.headers_mut());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_names_a_field_blames_a_parameter() {
        let error = ApiError::from(Failure::Invalid("top_p: must be in (0, 1]".into()));
        assert_eq!(error.body.param.as_deref(), Some("top_p"));
        assert_eq!(error.body.code, None);
        let long =
            "prompt: 600 tokens do not fit: the context holds 512, at least one of them for the output";
        let error = ApiError::from(Failure::Invalid(long.into()));
        assert_eq!(error.body.code, Some("context_length_exceeded"));
        let names = [("prompt", "messages"), ("functions", "tools")];
        assert_eq!(error.renamed(&names).body.param.as_deref(), Some("messages"));
        let tool = ApiError::invalid("functions[2].name", "").renamed(&names);
        assert_eq!(tool.body.param.as_deref(), Some("tools[2].name"));
        assert_eq!(ApiError::from(Failure::Invalid("no such thing: x".into())).body.param, None);
    }

    #[test]
    fn overload_and_gaps_say_when_to_come_back() {
        let held = Failure::HoldTimeout {
            model: "m".into(),
            waited: Duration::from_secs(60),
            after: Duration::from_secs(5),
        };
        let waiting = Failure::HoldFull { model: "m".into(), held: 256, after: Duration::from_secs(5) };
        let full = |after| Failure::Overloaded { model: "m".into(), reason: "busy".into(), after };
        let estimated = full(Some(Duration::from_millis(2001)));
        for (failure, status, seconds, milliseconds) in [
            (held, 503, "5", "5000"),
            (waiting, 429, "5", "5000"),
            (full(None), 429, "1", "1000"),
            (estimated, 429, "3", "2001"),
        ] {
            let response = ApiError::from(failure).into_response();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
            assert_eq!(response.headers()[RETRY_AFTER_MS], milliseconds);
        }
    }
}
