//! What would happen if a ModelDeployment were applied, without changing anything. [`gather`] asks the cluster; the rest is
//! pure: [`compare`] says what differs, [`course`] plays the rollout through with the operator's own decisions, [`pack`] finds
//! nodes for pods, [`forecast`] tells memory and time, [`judge`] makes a verdict of it all, [`text`] makes lines.

pub mod amount;
pub mod compare;
pub mod course;
pub mod demand;
pub mod documents;
pub mod forecast;
pub mod gather;
pub mod judge;
pub mod pack;
pub mod report;
pub mod room;
pub mod text;
