//! The operator: a ModelDeployment becomes groups of worker pods.
#![forbid(unsafe_code)]

pub mod generate;
pub mod lease;
pub mod placement;
pub mod rbac;
pub mod revision;
pub mod rollout;
pub mod worker_client;
