//! Where the experts of a group live: pure, deterministic.
//!
//! [`plan`] makes a placement out of facts: the model, how many copies are asked for, the workers, how much each expert
//! is used, and what is in force. The same facts always give the same placement, so it can be asked again at any moment
//! and by any leader. What it holds to:
//!
//! - Every expert has a copy on a usable rank if there is room for one of each.
//! - A rank has at most one copy of an expert. The `min` copies of an expert are on different workers; redundant ones
//!   share a worker only when no other can take them. Where filling stays even, copies are on other hosts and domains too.
//! - A worker never has to hold more than its limit, not even while a change goes on: what it has of the placement in
//!   force and what it gets both count.
//! - Nothing moves without need: [`Aim`] says what counts as need.
//!
//! | file | |
//! |---|---|
//! | `fleet` | the facts about model and workers, and what cannot be |
//! | `load` | how much experts are used; imbalance |
//! | `document` | the placement as a document: epoch, workers, what differs between two |
//! | `draft` | a placement in the making: layers, and the memory of workers |
//! | `replicas` | which experts have more copies |
//! | `pack` | which rank takes a copy |
//! | `repair`, `refill`, `shift` | what is missing; workers that came back empty; busy ranks |
//! | [`rebalance`] | whether a change for the sake of balance is worth it |
mod document;
mod draft;
mod fleet;
mod load;
mod pack;
pub mod rebalance;
mod refill;
mod repair;
mod replicas;
mod shift;

use belay_proto::admin::LayerPlacement;

pub use self::{
    document::{Move, advance, live_copies, moves, worker},
    fleet::{Copies, Fleet, Model, PlacementError, Worker},
    load::{Load, imbalance_percent},
};
use self::{draft::Draft, fleet::Seats};

/// What a plan may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Only what is missing or too much: copies on ranks that are not usable, experts with fewer or more copies than
    /// are asked for. A worker that is usable again gets only what is missing.
    Repair,
    /// That, and workers that hold less than a quarter of an even share get one: they came back empty. Where none does,
    /// this is `Repair`.
    Refill,
    /// What `Repair` does, then copies move so that the busiest ranks have less to do. No worse than what is in force,
    /// unless something was missing.
    Rebalance {
        /// Copies that may be loaded, those of the repair among them. A repair that needs more is still made whole.
        most_moves: u32,
    },
}

/// A placement, and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// By layer.
    pub layers: Vec<LayerPlacement>,
    /// Copies to load.
    pub moves: Vec<Move>,
    /// Copies that are asked for and are not there, because workers or room are missing.
    pub short: u32,
}

/// Plans the experts of a group.
///
/// `current` is what is in force; one of another shape than the model's counts as none. The first placement without
/// load, redundancy and unusable workers gives each rank a contiguous range: expert `e` of `E` goes to rank `⌊e·R/E⌋`
/// of `R`. An expert for which no usable rank has room keeps the ranks that it had, so that the document stays valid;
/// `short` counts it.
///
/// # Errors
/// When there can be no placement at all: see [`PlacementError`].
pub fn plan(
    model: &Model,
    copies: &Copies,
    fleet: &Fleet,
    load: Option<&Load>,
    current: Option<&[LayerPlacement]>,
    aim: Aim,
) -> Result<Planned, PlacementError> {
    fleet::check(model, copies, fleet)?;
    let current = current.filter(|layers| has_shape(layers, model));
    let seats = Seats::of(fleet);
    if seats.usable.is_empty() && current.is_none() {
        return Err(PlacementError::NoUsableRank);
    }
    let mut draft = Draft::new(model, copies, fleet, seats, load, current);
    match (current, aim) {
        (None, _) => {
            pack::spread(&mut draft, load.is_some())?;
            shift::shift(&mut draft, u32::MAX);
            pack::prefer(&mut draft);
        }
        (Some(_), aim) => {
            repair::repair(&mut draft);
            match aim {
                Aim::Repair => {}
                Aim::Refill => refill::refill(&mut draft),
                Aim::Rebalance { most_moves } => shift::shift(&mut draft, most_moves),
            }
        }
    }
    draft.finish(current)
}

fn has_shape(layers: &[LayerPlacement], model: &Model) -> bool {
    layers.len() == model.layers as usize
        && layers.iter().all(|layer| layer.experts.len() == model.experts as usize)
}
