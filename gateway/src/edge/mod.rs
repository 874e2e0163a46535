//! What the HTTP APIs share: bodies, typed fields, errors, whole and streamed answers. Each API only translates.
mod answer;
mod body;
mod error;
mod events;
pub mod fields;
mod serve;
mod stream;
mod tally;

pub use answer::{Answer, Answers, ToolCall};
pub use error::{ApiError, ErrorBody};
pub use events::{EventBuffer, json};
pub use serve::{Asked, Begun, Names, begin, object, whole};
pub use stream::{Framer, respond};
pub use tally::Tally;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
