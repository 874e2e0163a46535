//! Where a request goes: the live workers, the shares of their revisions, and the policy that picks one of them.
mod circuit;
mod fleet;
pub mod hash;
mod lease;
mod least_load;
mod live;
mod route;
mod shares;

pub use circuit::{Circuit, Gate};
pub use fleet::{Fleet, ModelState, Pick, View};
pub use lease::Lease;
pub use least_load::LeastLoad;
pub use live::ConnectOptions;
pub use route::{Affinity, Route, Target, Unknown, Wanted};
pub use shares::Turns;

/// A worker that could take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Requests of this gateway that it serves now.
    pub outstanding: usize,
}

/// Picks one of the candidates. Policies hold no request state: outcomes reach them through the candidates.
pub trait Policy: Send + Sync {
    /// Index of the chosen candidate; `None` only when there is none.
    fn pick(&self, candidates: &[Candidate]) -> Option<usize>;
}

/// Policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyName {
    /// The worker with the fewest outstanding requests; ties rotate
    LeastLoad,
}

impl PolicyName {
    /// A new policy of this name.
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            Self::LeastLoad => Box::new(LeastLoad::default()),
        }
    }
}
