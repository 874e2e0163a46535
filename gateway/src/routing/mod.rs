//! Where a request goes: the live workers, the shares of their revisions, and the policy that picks one of them.
mod bounded;
mod circuit;
mod fleet;
pub mod hash;
mod lease;
mod least_load;
mod live;
mod prefix_affinity;
mod prober;
mod progress;
mod route;
mod session_affinity;
mod shares;

pub use circuit::{Circuit, Due, Gate};
pub use fleet::{Fleet, ModelState, Pick, View};
pub use lease::Lease;
pub use least_load::LeastLoad;
pub use live::ConnectOptions;
pub use prefix_affinity::PrefixAffinity;
pub use prober::probe;
pub use route::{Affinity, Route, Target, Unknown, Wanted};
pub use session_affinity::SessionAffinity;
pub use shares::Turns;

/// A worker that could take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Requests of this gateway that it has now.
    pub requests: u64,
    /// Tokens that they have still to do: an estimate.
    pub tokens: u64,
    /// Hash of its id: the same on every gateway.
    pub identity: u64,
}

/// Picks one of the candidates. Policies hold no request state: outcomes reach them through the candidates.
pub trait Policy: Send + Sync {
    /// Index of the chosen candidate; `None` only when there is none.
    fn pick(&self, candidates: &[Candidate], affinity: Affinity) -> Option<usize>;
}

/// Policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyName {
    /// The worker with the fewest outstanding tokens; ties rotate
    LeastLoad,
    /// One worker for prompts that begin alike, unless it has more than 1.25 times the mean to do
    PrefixAffinity,
    /// One worker for each session, unless it has more than 1.25 times the mean to do
    SessionAffinity,
}

impl PolicyName {
    /// A new policy of this name.
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            Self::LeastLoad => Box::new(LeastLoad::default()),
            Self::PrefixAffinity => Box::new(PrefixAffinity::default()),
            Self::SessionAffinity => Box::new(SessionAffinity::default()),
        }
    }
}
