//! Which worker and rank holds which expert: a placement, checked once.

/// A placement as it was written down; see `belay.admin.v1.Placement`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Increases with every change.
    pub epoch: u64,
    /// Rank r belongs to worker r / `ranks_per_worker`.
    pub ranks_per_worker: u32,
    /// One for each worker of the group, in any order.
    pub workers: Vec<WorkerEntry>,
    /// `[layer][expert]` = ranks that hold a copy, preferred first.
    pub layers: Vec<Vec<Vec<u32>>>,
    /// Bytes of one expert; 0 while unknown.
    pub expert_bytes: u64,
}

/// Where a worker of the group is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkerEntry {
    /// Index within the group.
    pub index: u32,
    /// `host:port` of its fabric listener; empty while unknown.
    pub address: String,
    /// UID of its pod; empty: nobody is there, its ranks hold nothing.
    pub uid: String,
    /// Bytes that its ranks may hold of experts, all together; 0: no limit is known.
    pub expert_bytes_limit: u64,
}

/// What is wrong with a placement.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlacementError {
    /// No ranks, or no workers.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Indices of workers are not 0, 1, 2, ...
    #[error("workers: index {0} is missing, doubled or out of range")]
    Workers(u32),
    /// An expert without a copy.
    #[error("layers[{layer}].experts[{expert}]: no rank holds it")]
    Uncovered {
        /// Layer index.
        layer: usize,
        /// Expert index.
        expert: usize,
    },
    /// A rank that the group does not have, or the same one twice.
    #[error(
        "layers[{layer}].experts[{expert}]: rank {rank} is doubled or not among the group's {ranks} ranks"
    )]
    Rank {
        /// Layer index.
        layer: usize,
        /// Expert index.
        expert: usize,
        /// The rank.
        rank: u32,
        /// Ranks of the group.
        ranks: u32,
    },
}

/// A checked placement.
#[derive(Clone, Debug)]
pub struct Table {
    placement: Placement,
}

impl Table {
    /// Checks a placement.
    ///
    /// # Errors
    /// [`PlacementError`] naming the field.
    pub fn new(mut placement: Placement) -> Result<Self, PlacementError> {
        if placement.ranks_per_worker == 0 {
            return Err(PlacementError::Zero("ranks_per_worker"));
        }
        if placement.workers.is_empty() {
            return Err(PlacementError::Zero("workers"));
        }
        placement.workers.sort_by_key(|worker| worker.index);
        for (index, worker) in placement.workers.iter().enumerate() {
            if worker.index as usize != index {
                return Err(PlacementError::Workers(worker.index));
            }
        }
        let ranks =
            (placement.workers.len() as u64 * u64::from(placement.ranks_per_worker)).min(u64::from(u32::MAX));
        let ranks = ranks as u32;
        for (layer, experts) in placement.layers.iter().enumerate() {
            for (expert, copies) in experts.iter().enumerate() {
                if copies.is_empty() {
                    return Err(PlacementError::Uncovered { layer, expert });
                }
                for (position, &rank) in copies.iter().enumerate() {
                    if rank >= ranks || copies[..position].contains(&rank) {
                        return Err(PlacementError::Rank { layer, expert, rank, ranks });
                    }
                }
            }
        }
        Ok(Self { placement })
    }

    /// Every expert of every layer on the ranks of one worker, dealt in contiguous blocks; an uneven split gives
    /// the first ranks one more.
    ///
    /// # Errors
    /// [`PlacementError`] if `ranks` is 0.
    pub fn stand_alone(layers: usize, experts: usize, ranks: u32) -> Result<Self, PlacementError> {
        if ranks == 0 {
            return Err(PlacementError::Zero("ranks_per_worker"));
        }
        let owner = |expert: usize| (expert * ranks as usize / experts.max(1)) as u32;
        let layer: Vec<Vec<u32>> = (0..experts).map(|expert| vec![owner(expert)]).collect();
        Self::new(Placement {
            epoch: 0,
            ranks_per_worker: ranks,
            workers: vec![WorkerEntry::default()],
            layers: vec![layer; layers],
            expert_bytes: 0,
        })
    }

    /// Epoch of the placement.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.placement.epoch
    }

    /// Ranks of each worker.
    #[must_use]
    pub fn ranks_per_worker(&self) -> u32 {
        self.placement.ranks_per_worker
    }

    /// Workers of the group, by index.
    #[must_use]
    pub fn workers(&self) -> &[WorkerEntry] {
        &self.placement.workers
    }

    /// Bytes of one expert; 0 while unknown.
    #[must_use]
    pub fn expert_bytes(&self) -> u64 {
        self.placement.expert_bytes
    }

    /// `(layers, experts of the first layer)`.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.placement.layers.len(), self.placement.layers.first().map_or(0, Vec::len))
    }

    /// Experts of each layer.
    pub fn experts_by_layer(&self) -> impl Iterator<Item = usize> + '_ {
        self.placement.layers.iter().map(Vec::len)
    }

    /// Ranks that hold a copy, preferred first; empty for an expert that the placement does not know.
    #[must_use]
    pub fn holders(&self, layer: u32, expert: u32) -> &[u32] {
        self.placement
            .layers
            .get(layer as usize)
            .and_then(|experts| experts.get(expert as usize))
            .map_or(&[], Vec::as_slice)
    }

    /// Worker of a rank.
    #[must_use]
    pub fn worker_of(&self, rank: u32) -> u32 {
        rank / self.placement.ranks_per_worker
    }

    /// Every (layer, expert) with the ranks that hold it, layers ascending, then experts.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (u32, u32, &[u32])> + '_ {
        self.placement.layers.iter().enumerate().flat_map(|(layer, experts)| {
            let numbered = experts.iter().enumerate();
            numbered.map(move |(expert, copies)| (layer as u32, expert as u32, copies.as_slice()))
        })
    }

    /// Whether `uid` is the worker of index `worker`.
    pub(crate) fn names(&self, worker: u32, uid: &str) -> bool {
        let entry = self.placement.workers.get(worker as usize);
        entry.is_some_and(|entry| !entry.uid.is_empty() && entry.uid == uid)
    }

    /// Every (layer, expert) that a rank holds, layers ascending.
    pub fn of_rank(&self, rank: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.placement.layers.iter().enumerate().flat_map(move |(layer, experts)| {
            experts
                .iter()
                .enumerate()
                .filter(move |(_, copies)| copies.contains(&rank))
                .map(move |(expert, _)| (layer as u32, expert as u32))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_workers() -> Placement {
        let entry = |index: u32| WorkerEntry {
            index,
            address: format!("h{index}:1"),
            uid: format!("u{index}"),
            ..WorkerEntry::default()
        };
        Placement {
            epoch: 3,
            ranks_per_worker: 2,
            workers: vec![entry(1), entry(0)],
            layers: vec![vec![vec![0], vec![3, 1]], vec![vec![2], vec![1]]],
            expert_bytes: 0,
        }
    }

    #[test]
    fn holders_and_shares_follow_the_placement() {
        let table = Table::new(two_workers()).unwrap();
        assert_eq!(table.workers()[1].uid, "u1");
        assert_eq!(table.holders(0, 1), [3, 1]);
        assert_eq!(table.worker_of(3), 1);
        assert_eq!(table.of_rank(1).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
        assert!(table.holders(7, 0).is_empty() && table.holders(0, 9).is_empty());
    }

    #[test]
    fn a_broken_placement_is_refused_with_its_field() {
        let broken = |change: fn(&mut Placement)| {
            let mut placement = two_workers();
            change(&mut placement);
            Table::new(placement).map(|_| ()).unwrap_err().to_string()
        };
        assert!(broken(|p| p.ranks_per_worker = 0).contains("ranks_per_worker"));
        assert!(broken(|p| p.workers.clear()).contains("workers"));
        assert!(broken(|p| p.workers[0].index = 0).contains("index"));
        assert!(broken(|p| p.layers[1][0].clear()).contains("layers[1].experts[0]"));
        assert!(broken(|p| p.layers[0][1].push(4)).contains("rank 4"));
        assert!(broken(|p| p.layers[0][1].push(3)).contains("rank 3"));
    }

    #[test]
    fn stand_alone_covers_each_expert_once_and_evenly() {
        for ranks in 1..=7u32 {
            let table = Table::stand_alone(3, 16, ranks).unwrap();
            let shares: Vec<usize> = (0..ranks).map(|rank| table.of_rank(rank).count() / 3).collect();
            assert_eq!(shares.iter().sum::<usize>(), 16);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }
}
