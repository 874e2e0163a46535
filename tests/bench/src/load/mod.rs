//! Clients: one request, and many of them at a time.

mod closed_loop;
mod grpc;
mod http;
mod mix;
mod record;
mod sse;

pub use closed_loop::{Target, run};
pub use http::{Answer, Http};
pub use mix::{END_OF_SEQUENCE, Endpoint, Mix, Prompt, Request};
pub use record::{Latencies, Record, percentile};
pub use sse::{Events, Piece};
