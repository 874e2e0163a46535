//! What went wrong, as gRPC statuses. Clients and the gateway decide by code and by the metadata `belay-retry`.

use std::time::Duration;

use belay_engine::{FailureKind, SubmitError};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::state::Refusal;

/// Metadata key that says that a request is sound and where it stands: `draining`, `not-ready` or `step-lost`.
pub const RETRY_KEY: &str = "belay-retry";

fn retryable(cause: &'static str, message: String) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(RETRY_KEY, MetadataValue::from_static(cause));
    Status::with_metadata(Code::Unavailable, message, metadata)
}

/// Metadata key that says when to ask again, in milliseconds.
pub const RETRY_AFTER_KEY: &str = "belay-retry-after-ms";

fn overloaded(message: String, retry_after: Duration) -> Status {
    let mut metadata = MetadataMap::new();
    let milliseconds = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    metadata.insert(RETRY_AFTER_KEY, MetadataValue::from(milliseconds));
    Status::with_metadata(Code::ResourceExhausted, message, metadata)
}

/// This worker takes no requests now.
#[must_use]
pub fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Draining => retryable("draining", "this worker is draining".into()),
        Refusal::NotReady(why) => retryable("not-ready", format!("this worker is not ready: {why}")),
    }
}

/// The engine did not take a request.
#[must_use]
pub fn not_submitted(error: SubmitError) -> Status {
    match error {
        SubmitError::Invalid { .. } => Status::invalid_argument(error.to_string()),
        SubmitError::Overloaded { retry_after, .. } => overloaded(error.to_string(), retry_after),
        SubmitError::Unavailable(_) => retryable("draining", error.to_string()),
    }
}

/// A request that was taken failed.
#[must_use]
pub fn failed(message: String, kind: FailureKind, is_draining: bool) -> Status {
    match kind {
        FailureKind::Cancelled => Status::cancelled(message),
        FailureKind::DeadlineExceeded => Status::deadline_exceeded(message),
        FailureKind::Broken => Status::internal(message),
        FailureKind::Lost if is_draining => retryable("draining", message),
        FailureKind::Lost => retryable("step-lost", message),
    }
}

/// The model asked for is not the one served.
#[must_use]
pub fn unknown_model(asked: &str, served: &str) -> Status {
    Status::not_found(format!("model {asked:?} is not served here; this worker serves {served:?}"))
}

/// A field of the request is wrong.
#[must_use]
pub fn invalid(field: &str, message: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_of(status: &Status) -> Option<&str> {
        status.metadata().get(RETRY_KEY).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn each_cause_has_its_code_and_retry_hint() {
        let invalid = not_submitted(SubmitError::Invalid { field: "top_p", message: "is 7".into() });
        assert_eq!((invalid.code(), invalid.message()), (Code::InvalidArgument, "top_p: is 7"));
        let full = SubmitError::Overloaded { queued: 3, retry_after: Duration::from_millis(1500) };
        let full = not_submitted(full);
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(full.metadata().get(RETRY_AFTER_KEY).unwrap(), "1500");
        let draining = not_submitted(SubmitError::Unavailable("draining".into()));
        assert_eq!((draining.code(), retry_of(&draining)), (Code::Unavailable, Some("draining")));
        assert_eq!(retry_of(&refused(Refusal::Draining)), Some("draining"));
        assert_eq!(retry_of(&refused(Refusal::NotReady("loading".into()))), Some("not-ready"));
        assert_eq!(retry_of(&failed("x".into(), FailureKind::Lost, false)), Some("step-lost"));
        assert_eq!(retry_of(&failed("x".into(), FailureKind::Lost, true)), Some("draining"));
        assert_eq!(failed("x".into(), FailureKind::Broken, true).code(), Code::Internal);
        let unknown = unknown_model("a", "b");
        assert!(unknown.message().contains("\"a\"") && unknown.message().contains("\"b\""));
    }
}
