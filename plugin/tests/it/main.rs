//! Tests of `kubectl belay`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]

mod ascend;
mod chat;
mod commands;
mod logs;
mod picture;
mod preflight;
mod properties;
mod rank_table;
mod rollout;
mod status;
mod support;
mod workers;
