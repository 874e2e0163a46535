//! A worker that holds every expert itself.

use std::sync::{Arc, Mutex, PoisonError};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};

use crate::assign::Assignment;
use crate::ranks::{RankScratch, check_shapes, compute_at};
use crate::{Stats, Table};

/// Fabric of a stand-alone worker: the ranks of one process hold all experts.
pub struct InProcess {
    table: Table,
    ranks: Vec<Arc<dyn ExpertCompute>>,
    hidden: usize,
    scratch: Mutex<(Assignment, RankScratch)>,
    stats: Arc<Stats>,
}

impl InProcess {
    /// A fabric over `ranks`, which hold the experts that `table` gives to the ranks of worker 0, for rows of
    /// `hidden` channels.
    #[must_use]
    pub fn new(table: Table, ranks: Vec<Arc<dyn ExpertCompute>>, hidden: usize) -> Self {
        Self { table, ranks, hidden, scratch: Mutex::default(), stats: Arc::default() }
    }

    /// Counters of this fabric.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }
}

impl Fabric for InProcess {
    fn exchange(&self, layer: u32, x: &[f32], routes: &[Route], y: &mut [f32]) -> Result<(), FabricError> {
        let started = std::time::Instant::now();
        check_shapes(0, self.hidden, x, routes, y)?;
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (assignment, buffers) = &mut *scratch;
        assignment.fill(&self.table, 0, |_| false, layer, routes)?;
        compute_at(&self.ranks, &assignment.local, layer, self.hidden, x, routes, y, buffers)?;
        self.stats.exchanged(routes.len(), started.elapsed());
        Ok(())
    }
}
