//! What the gateway shows of itself.
mod flight;
mod http;
mod metrics;
mod record;

pub use flight::{Flight, Flights};
pub use http::{Health, router};
pub use metrics::{Metrics, RetryKind};
pub use record::Record;
