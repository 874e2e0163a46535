//! What the cluster tests share: the environment, `kubectl`, a way into the cluster, an oracle that knows the
//! right tokens, traffic that checks every answer, faults, and what workers and operator say meanwhile.
//!
//! The tests use the cluster as a user does: through `kubectl`, `helm` and the gateway's address.
#![forbid(unsafe_code)]

pub mod admin;
pub mod campaign;
pub mod checkpoint;
pub mod client;
pub mod coverage;
pub mod env;
pub mod fixture;
pub mod herd;
pub mod history;
pub mod http;
pub mod kubectl;
pub mod ledger;
pub mod node;
pub mod oracle;
pub mod prometheus;
pub mod routing;
pub mod service;
pub mod timeline;
pub mod traffic;
pub mod tunnel;
pub mod variant;
pub mod wait;
pub mod watch;
