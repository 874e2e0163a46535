//! What the cluster tests share: the environment, `kubectl`, a way into the cluster, an oracle that knows the
//! right tokens, and traffic that checks every answer.
//!
//! The tests use the cluster as a user does: through `kubectl`, `helm` and the gateway's address.
#![forbid(unsafe_code)]

pub mod client;
pub mod env;
pub mod kubectl;
pub mod oracle;
pub mod traffic;
pub mod tunnel;
pub mod wait;
