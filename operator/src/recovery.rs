//! What should become of the experts of a group: pure decisions on top of the planner ([`crate::placement`]) and the epoch
//! protocol ([`belay_epoch`]).
mod balance;
mod leave;
mod rebalances;
mod seats;
mod wanted;
mod words;

pub use self::{
    balance::{Proposal, is_measured, measured_imbalance, model_of, propose},
    leave::may_leave,
    rebalances::{Rebalance, Rebalances},
    seats::has_experts,
    wanted::{Ask, Decision, obstacle, want},
    words::{describe_copies, describe_ranks},
};

/// Seconds for which a slot without a living worker keeps its experts: a quick successor gets back what was there. Workers
/// that survive cover for it meanwhile, by copies that they have or adopt.
pub const GRACE_SECONDS: i64 = 30;

/// Seconds for which a node must have taken pods again before experts that moved away from it come back.
pub const STAY_SECONDS: i64 = 60;
