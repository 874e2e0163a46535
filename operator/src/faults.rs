//! Faults of devices, as the device plugin of a node reports them: what was reported, what a deployment wants done about it, and
//! which of its pods it is about.
//!
//! | file | |
//! |---|---|
//! | `report` | what a report says |
//! | `judge` | what follows for a pod: pure |
//! | `watch` | the reports of all nodes, kept up to date |
mod judge;
mod report;
mod watch;

pub use self::{
    judge::{DEVICE_LOST, Devices, Finding, action, judge, lost},
    report::{Fault, Level, read},
    watch::Faults,
};
