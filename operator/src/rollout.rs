//! Rollouts: how far one is, and which groups come and go next. Pure: what exists, what was written down and the time go in,
//! decisions come out.
//!
//! [`advance`] decides how many groups of which revision there should be, and what share of the requests they get; [`step`] makes
//! that so, within the budget, one safe step at a time.
mod blue_green;
mod canary;
mod protect;
mod stage;
mod state;
mod step;

pub(crate) use self::step::count;
pub use self::{
    protect::{Serving, protected},
    stage::{Evidence, Gate, Happening, New, Phase, Rules, Share, Sight, Stage, Strategy, advance},
    state::{Rejected, State, stable},
    step::{Age, Budget, Group, Health, Reach, Step, step},
};
