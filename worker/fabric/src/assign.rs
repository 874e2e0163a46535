//! Who computes which route of an exchange. Pure.

use belay_backend::{FabricError, Route};

use crate::Table;

/// Routes of one exchange by who computes them; each list holds indices into the routes, ascending.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    /// By local rank.
    pub local: Vec<Vec<u32>>,
    /// By worker index; empty for this worker itself.
    pub remote: Vec<Vec<u32>>,
}

impl Assignment {
    /// Empties the lists and keeps their memory.
    fn reset(&mut self, ranks: usize, workers: usize) {
        self.local.resize_with(ranks, Vec::new);
        self.remote.resize_with(workers, Vec::new);
        self.local.iter_mut().chain(&mut self.remote).for_each(Vec::clear);
    }

    /// Gives each route to a holder: a rank of this worker if one has the expert (no network), else the first
    /// holder whose worker is live.
    pub(crate) fn fill(
        &mut self,
        table: &Table,
        me: u32,
        live: impl Fn(u32) -> bool,
        layer: u32,
        routes: &[Route],
    ) -> Result<(), FabricError> {
        let ranks = table.ranks_per_worker();
        self.reset(ranks as usize, table.workers().len());
        for (index, route) in routes.iter().enumerate() {
            let holders = table.holders(layer, route.expert);
            if let Some(rank) = holders.iter().find(|rank| table.worker_of(**rank) == me) {
                self.local[(rank % ranks) as usize].push(index as u32);
                continue;
            }
            let worker = holders.iter().map(|rank| table.worker_of(*rank)).find(|worker| live(*worker));
            match worker {
                Some(worker) => self.remote[worker as usize].push(index as u32),
                None => return Err(unreachable_expert(table, layer, route.expert)),
            }
        }
        Ok(())
    }
}

impl Assignment {
    /// Gives each route to a rank of this worker, for a peer that asked for it.
    pub(crate) fn fill_local(
        &mut self,
        table: &Table,
        me: u32,
        layer: u32,
        routes: &[Route],
    ) -> Result<(), FabricError> {
        let ranks = table.ranks_per_worker();
        self.reset(ranks as usize, 0);
        for (index, &Route { expert, .. }) in routes.iter().enumerate() {
            let rank = table.holders(layer, expert).iter().find(|rank| table.worker_of(**rank) == me);
            let rank = rank.ok_or(FabricError::NotResident { layer, expert })?;
            self.local[(rank % ranks) as usize].push(index as u32);
        }
        Ok(())
    }
}

fn unreachable_expert(table: &Table, layer: u32, expert: u32) -> FabricError {
    match table.holders(layer, expert).first() {
        Some(rank) => FabricError::PeerLost {
            worker: table.worker_of(*rank),
            cause: format!("no live holder of expert {expert} of layer {layer}"),
        },
        None => FabricError::NotResident { layer, expert },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, WorkerEntry};

    fn table() -> Table {
        let worker = |index| WorkerEntry { index, address: String::new(), uid: String::new() };
        Table::new(Placement {
            epoch: 1,
            ranks_per_worker: 2,
            workers: (0..3).map(worker).collect(),
            layers: vec![vec![vec![0], vec![3], vec![5, 2], vec![4, 1]]],
        })
        .unwrap()
    }

    fn route(expert: u32) -> Route {
        Route { row: 0, expert, weight: 1.0 }
    }

    #[test]
    fn a_local_copy_comes_first_then_the_first_live_one() {
        let routes: Vec<Route> = (0..4).map(route).collect();
        let mut assignment = Assignment::default();
        assignment.fill(&table(), 0, |_| true, 0, &routes).unwrap();
        assert_eq!(assignment.local, [vec![0], vec![3]]);
        assert_eq!(assignment.remote, [vec![], vec![1], vec![2]]);

        assignment.fill(&table(), 0, |worker| worker != 2, 0, &routes).unwrap();
        assert_eq!(
            assignment.remote,
            [vec![], vec![1, 2], vec![]],
            "the second copy serves while worker 2 is away"
        );
    }

    #[test]
    fn an_expert_without_a_live_holder_names_its_worker() {
        let failed = Assignment::default().fill(&table(), 0, |worker| worker != 1, 0, &[route(1)]);
        assert!(matches!(failed, Err(FabricError::PeerLost { worker: 1, .. })), "{failed:?}");
        let unknown = Assignment::default().fill(&table(), 0, |_| true, 0, &[route(9)]);
        assert_eq!(unknown, Err(FabricError::NotResident { layer: 0, expert: 9 }));
    }
}
