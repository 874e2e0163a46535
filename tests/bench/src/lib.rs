//! Serving benchmark, soak test, and the random models they run on.
#![forbid(unsafe_code)]

pub mod commands;
pub mod model;
