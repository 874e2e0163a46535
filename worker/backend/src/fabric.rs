//! What carries rows to experts and back, seen from the model.
//!
//! Contract 1 (exact): a fabric returns one output row for each route and never adds two of them up. The asker
//! sums the routes of a token in ascending expert order, so the result does not depend on who held an expert.

/// One token row on its way to one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Row of the asker's activation matrix.
    pub row: u32,
    /// Routed expert, `0..n_routed_experts`.
    pub expert: u32,
    /// Routing weight of this expert for this row; the expert's output is multiplied by it.
    pub weight: f32,
}

/// Computes routed experts that are resident here. Implemented by the model over a backend.
pub trait ExpertCompute: Send + Sync {
    /// `y[i] = weight_i * expert_i(x[row_i])` for each route i.
    ///
    /// `x` is `[rows, hidden]`, `y` is `[routes.len(), hidden]`. A row's result has the same bits whatever else is
    /// in the call.
    ///
    /// # Errors
    /// [`FabricError::NotResident`] if an expert of `routes` is not loaded here.
    fn compute(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError>;

    /// Whether an expert is loaded here at this moment.
    fn holds(&self, layer: u32, expert: u32) -> bool;
}

/// Dispatch and combine for one worker of a group.
pub trait Fabric: Send + Sync {
    /// Sends each route's row to a rank that holds its expert and waits for all results.
    ///
    /// Shapes as in [`ExpertCompute::compute`]; results come back in the order of `routes`. `meanwhile` is work of the
    /// asker that needs no result: it is run exactly once, while other processes compute; before an error, at most
    /// once.
    ///
    /// # Errors
    /// Any [`FabricError`]; `y` is then undefined and the step must not be used.
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError>;
}

/// Why an exchange failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FabricError {
    /// The placement names a holder, but the expert is not loaded there.
    #[error("expert {expert} of layer {layer} is not resident here")]
    NotResident {
        /// Layer index.
        layer: u32,
        /// Expert index.
        expert: u32,
    },
    /// No connection to the worker that holds the expert.
    #[error("worker {worker} is not reachable: {cause}")]
    PeerLost {
        /// Worker index within the group.
        worker: u32,
        /// What the transport said.
        cause: String,
    },
    /// The worker did not answer in time.
    #[error("worker {worker} did not answer within {millis} ms")]
    Timeout {
        /// Worker index within the group.
        worker: u32,
        /// The limit that passed.
        millis: u64,
    },
    /// The device that should compute the expert failed.
    #[error("experts: {0}")]
    Local(String),
    /// The peer refused or broke the protocol.
    #[error("worker {worker}: {cause}")]
    Protocol {
        /// Worker index within the group.
        worker: u32,
        /// What was wrong.
        cause: String,
    },
}
