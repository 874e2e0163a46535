//! The epoch protocol: how a group's placement changes in two phases. Pure decisions of both sides, the operator's
//! ([`conductor`]) and the worker's ([`member`]); and what must hold whatever happens ([`invariants`]).
#![forbid(unsafe_code)]

pub mod conductor;
pub mod document;
mod intent;
pub mod invariants;
pub mod member;
pub mod progress;

pub use intent::{Intent, Kind, Operation, Phase};
