//! Rank tables of HCCL: which ranks a group has, on which host and device each is.
//!
//! Workers need none, since they find each other by root information. A table is for people who compare, and for programs that run
//! beside Belay on the same pods. [`annotation`] is what Ascend's device plugin wrote on a pod, [`facts`] all that is known of a
//! worker, [`decide`] makes the [`table`] of it, or says what is missing. Nothing here asks a cluster.
pub mod annotation;
pub mod decide;
pub mod error;
pub mod facts;
pub mod levels;
pub mod table;

pub use decide::make;
pub use error::RankTableError;
