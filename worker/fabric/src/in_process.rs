//! A worker that holds every expert itself.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use belay_backend::{ExpertCompute, Fabric, FabricError, Route};

use crate::group::DEFAULT_HALF_LIFE;
use crate::load::LoadCounter;
use crate::ranks::{RankScratch, check_shapes, compute_at};
use crate::sync::lock;
use crate::{Loads, RowFormat, Stats, Table};

/// Fabric of a stand-alone worker: the ranks of one process hold all experts.
pub struct InProcess {
    table: Table,
    ranks: Vec<Arc<dyn ExpertCompute>>,
    hidden: usize,
    format: RowFormat,
    scratch: Mutex<Scratch>,
    stats: Arc<Stats>,
    load: LoadCounter,
}

#[derive(Default)]
struct Scratch {
    by_rank: Vec<Vec<u32>>,
    rows: Vec<u32>,
    rounded: Vec<f32>,
    ranks: RankScratch,
}

impl InProcess {
    /// A fabric over `ranks`, which hold the experts that `table` gives to the ranks of worker 0, for rows of
    /// `hidden` channels.
    #[must_use]
    pub fn new(table: Table, ranks: Vec<Arc<dyn ExpertCompute>>, hidden: usize) -> Self {
        let load = counter(&table, DEFAULT_HALF_LIFE);
        let (format, scratch, stats) = (RowFormat::F32, Mutex::default(), Arc::default());
        Self { table, ranks, hidden, format, scratch, stats, load }
    }

    /// Rounds rows as a group does whose rows travel in `format`.
    #[must_use]
    pub fn with_format(mut self, format: RowFormat) -> Self {
        self.format = format;
        self
    }

    /// Counts loads with another half-life than a minute.
    #[must_use]
    pub fn with_half_life(mut self, half_life: Duration) -> Self {
        self.load = counter(&self.table, half_life);
        self
    }

    /// Counters of this fabric.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Rows routed to each expert.
    #[must_use]
    pub fn loads(&self) -> Loads {
        self.load.read(Instant::now())
    }
}

fn counter(table: &Table, half_life: Duration) -> LoadCounter {
    LoadCounter::new(half_life, &table.experts_by_layer().collect::<Vec<_>>())
}

impl Fabric for InProcess {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        let started = Instant::now();
        let experts = self.table.experts_by_layer().nth(layer as usize).unwrap_or(0);
        check_shapes(0, self.hidden, x, (layer, experts), routes, y)?;
        let mut scratch = lock(&self.scratch);
        let Scratch { by_rank, rows, rounded, ranks } = &mut *scratch;
        by_rank.resize_with(self.ranks.len(), Vec::new);
        by_rank.iter_mut().for_each(Vec::clear);
        rows.clear();
        rows.resize(experts, 0);
        for (index, &Route { expert, .. }) in (0u32..).zip(routes) {
            let rank =
                self.table.holders(layer, expert).iter().find(|rank| self.table.worker_of(**rank) == 0);
            let list = rank.and_then(|&rank| by_rank.get_mut(rank as usize));
            list.ok_or(FabricError::NotResident { layer, expert })?.push(index);
            rows[expert as usize] += 1;
        }
        for (expert, &rows) in (0u32..).zip(rows.iter()).filter(|(_, rows)| **rows > 0) {
            self.load.add(layer, expert, rows);
        }
        self.load.tick(started);
        let x = if self.format == RowFormat::F32 {
            x
        } else {
            rounded.clear();
            rounded.extend_from_slice(x);
            self.format.round(rounded, self.hidden);
            rounded
        };
        compute_at(&self.ranks, by_rank, layer, self.hidden, x, routes, y, ranks)
            .map_err(|(_, error)| error)?;
        self.format.round(y, self.hidden);
        drop(scratch);
        meanwhile();
        self.stats.exchanged(routes.len(), started.elapsed());
        Ok(())
    }
}
