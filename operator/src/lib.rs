//! The operator: a ModelDeployment becomes groups of worker pods.
#![forbid(unsafe_code)]

pub mod generate;
pub mod rbac;
