//! Why a request could not be answered. Every way in (HTTP, gRPC) translates this and nothing else.
use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataValue};

use crate::keys::Refusal;

use super::eta;

/// What a worker without an estimate is given to make room.
const REST: Duration = Duration::from_secs(1);

/// Seconds of a `retry-after`: rounded up, never 0, never more than a day.
pub fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).clamp(1, 86_400)
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The gateway wants a key, and the request shows none that it knows.
    #[error("a known API key is needed: as a bearer token in 'authorization', or in 'x-api-key'")]
    Unauthenticated,
    /// The key may not ask for this model.
    #[error("this API key may not ask for the model '{0}'")]
    Forbidden(String),
    /// The key has taken what it may take for now.
    #[error("this API key has reached its limit: {}", .0.reason)]
    Limited(Refusal),
    /// No deployment serves this model.
    #[error("the model '{0}' does not exist")]
    UnknownModel(String),
    /// The model is there, but nothing of the revision asked for (`MODEL@REVISION`).
    #[error("the model '{model}' has no revision '{revision}'")]
    UnknownRevision {
        /// Served model name.
        model: String,
        /// As it was asked for.
        revision: String,
    },
    /// A worker found the request unsound; its words.
    #[error("{0}")]
    Invalid(String),
    /// Every ready worker is busy to the brim.
    #[error("every worker of '{model}' is overloaded: {reason}")]
    Overloaded {
        /// Served model name.
        model: String,
        /// The worker's words.
        reason: String,
        /// When the worker expects to have room.
        after: Option<Duration>,
    },
    /// Too many requests wait for a worker already.
    #[error("no worker of '{model}' is ready, and {held} requests are waiting already")]
    HoldFull {
        /// Served model name.
        model: String,
        /// Requests that wait.
        held: usize,
        /// When it is worth asking again.
        after: Duration,
    },
    /// No worker became ready in time.
    #[error("no worker of '{model}' became ready within {} s", waited.as_secs_f32())]
    HoldTimeout {
        /// Served model name.
        model: String,
        /// How long the request waited.
        waited: Duration,
        /// When it is worth asking again.
        after: Duration,
    },
    /// Worker after worker was lost while it served this request.
    #[error("{0} workers in a row were lost while serving this request")]
    Lost(u32),
    /// The client's time for the request is over.
    #[error("the request's deadline has passed")]
    Deadline,
    /// A worker failed in a way that another would repeat.
    #[error("the worker failed: {0}")]
    Worker(String),
}

impl Failure {
    /// When it is worth asking again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { after, .. } => Some(after.unwrap_or(REST)),
            Self::HoldFull { after, .. } | Self::HoldTimeout { after, .. } => Some(*after),
            Self::Lost(_) => Some(eta::UNKNOWN),
            Self::Limited(refusal) => Some(refusal.after),
            Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::UnknownModel(_)
            | Self::UnknownRevision { .. }
            | Self::Invalid(_)
            | Self::Deadline
            | Self::Worker(_) => None,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::Unauthenticated => Code::Unauthenticated,
            Failure::Forbidden(_) => Code::PermissionDenied,
            Failure::UnknownModel(_) | Failure::UnknownRevision { .. } => Code::NotFound,
            Failure::Invalid(_) => Code::InvalidArgument,
            Failure::Limited(_) | Failure::Overloaded { .. } | Failure::HoldFull { .. } => {
                Code::ResourceExhausted
            }
            Failure::HoldTimeout { .. } | Failure::Lost(_) => Code::Unavailable,
            Failure::Deadline => Code::DeadlineExceeded,
            Failure::Worker(_) => Code::Internal,
        };
        let mut status = Self::new(code, failure.to_string());
        if let Some(after) = failure.retry_after() {
            status.metadata_mut().insert("retry-after", MetadataValue::from(whole_seconds(after)));
        }
        status
    }
}
