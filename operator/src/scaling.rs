//! How many groups there should be: pure. Load, groups and time in; a number, its reason and its numbers out.
//!
//! It is the algorithm of a HorizontalPodAutoscaler, with what that cannot know: groups that load count as capacity, what
//! they will drain is no need of its own, and a group is not given up while the others could not do its work.
//! `docs/reference/scaling.md` has the formulas and the order of the rules.
//!
//! Promises:
//! - Never more groups than the bounds of the time allow, and never fewer.
//! - Nothing that is missing, old or incomplete makes it fewer.
//! - Fewer only when nothing within the stabilisation window asked for more, counted anew by each process; to zero only
//!   when every gateway has said that it is idle for long enough.
//! - Within any period of a policy no more changes than the policy lets, restarts of the operator included. Bounds, the
//!   way to zero and the way back from it are not held up by policies.
mod contest;
mod decide;
mod demand;
mod history;
mod memory;
mod rates;
mod report;
mod schedule;
mod signals;
mod terms;

pub use self::{
    decide::{Decision, View, decide},
    demand::{Measure, Metric},
    history::Scale,
    memory::Memory,
    report::report,
    schedule::{Bounds, Window},
    signals::{FirstToken, Groups, Heard, Signals},
    terms::{Rules, Targets, Terms, TermsError},
};
