//! The operator: a ModelDeployment becomes groups of worker pods.
#![forbid(unsafe_code)]

pub mod analysis;
pub mod attendance;
pub mod autoscaler;
pub mod backoff;
pub mod cache;
pub mod context;
pub mod controller;
pub mod coverage;
pub mod error;
pub mod events;
pub mod external_scaler;
pub mod faults;
pub mod gateways;
pub mod generate;
pub mod group;
pub mod http;
pub mod lease;
pub mod loads;
pub mod metrics;
pub mod nodes;
pub mod placement;
pub mod pod_group;
pub mod rbac;
pub mod reconcile;
pub mod recovery;
pub mod requests;
pub mod revision;
pub mod rollout;
pub mod run;
pub mod scaling;
pub mod telemetry;
pub mod trouble;
pub mod warnings;
pub mod worker_client;
