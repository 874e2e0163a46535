//! Rounds: exchanges of a whole group between the devices themselves, for backends whose devices can do that.
//!
//! The ranks of several workers sit in a circle. In a round each of them gets the rows that the others have for its
//! experts, computes them, and sends the results back; who has no rows takes part all the same. What is computed is what a
//! [`Fabric`](crate::Fabric) computes otherwise, with the same bits: only the way of the rows is another one.

use crate::{Backend, ExpertCompute, FabricError, Route};

/// A place in a circle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// By what the ranks find each other, as [`Collective::root`] made it.
    pub root: Vec<u8>,
    /// Ranks in the circle.
    pub ranks: u32,
    /// Which of them this is.
    pub rank: u32,
}

/// The ranks of this worker, as far as their devices exchange rows with those of other workers.
pub trait Collective: Send + Sync {
    /// By what the ranks of one circle find each other; the first rank of this worker has to be the first of the circle.
    ///
    /// # Errors
    /// [`FabricError::Local`].
    fn root(&self) -> Result<Vec<u8>, FabricError>;

    /// Takes a seat with the `rank`-th rank of this worker; waits until all others have come. What is returned stays on the
    /// thread that asked.
    ///
    /// # Errors
    /// [`FabricError::Local`].
    fn join(&self, rank: u32, seat: &Seat) -> Result<Box<dyn Sitting>, FabricError>;
}

/// What an asker has for a round.
#[derive(Clone, Debug, Default)]
pub struct RoundAsk {
    /// Layer of the experts.
    pub layer: u32,
    /// `[rows, hidden]`.
    pub x: Vec<f32>,
    /// By rank of the circle: routes, those of one expert one after the other.
    pub routes: Vec<Vec<Route>>,
}

/// What an asker gets in a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundAnswer {
    /// A row for each route, those of the circle's first rank first, in the order of the ask. Undefined for a rank that lacks
    /// an expert.
    pub y: Vec<f32>,
    /// By rank of the circle: the first expert of the ask that it does not have.
    pub missing: Vec<Option<u32>>,
}

/// A rank in a circle. Used by one thread; dropping it leaves the circle.
pub trait Sitting {
    /// Takes part in a round. All ranks of the circle have to, or the others wait. `goes_on` is asked now and then while
    /// the others are waited for; after it said no, the circle is of no more use.
    ///
    /// # Errors
    /// [`FabricError::Local`]; the circle is of no more use then.
    fn round(
        &mut self,
        ask: Option<&RoundAsk>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<RoundAnswer>, FabricError>;
}

/// Experts of a rank, computed from rows that are on its device.
pub trait DeviceExperts<B: Backend>: ExpertCompute {
    /// `y[place_i] = weight_i · expert_i(x[row_i])` for each `(place, route)`; `x` and `y` have rows of the model's hidden
    /// size. A row's result has the same bits whatever else is in the call. The results are queued, not waited for.
    ///
    /// # Errors
    /// [`FabricError::NotResident`] if an expert is not loaded here; [`FabricError::Local`].
    fn compute_on_device(
        &self,
        layer: u32,
        x: &B::Buffer,
        routes: &[(u32, Route)],
        y: &mut B::Buffer,
    ) -> Result<(), FabricError>;
}
