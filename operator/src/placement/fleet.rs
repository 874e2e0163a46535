//! The facts that a placement is made from.
use std::collections::BTreeMap;

use belay_proto::admin::ModelCard;
use thiserror::Error;

/// What is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Layers with routed experts.
    pub layers: u32,
    /// Routed experts in a layer.
    pub experts: u32,
    /// Bytes of one copy; 0: unknown, then no limit holds.
    pub expert_bytes: u64,
}

impl From<&ModelCard> for Model {
    fn from(card: &ModelCard) -> Self {
        Self { layers: card.layers, experts: card.experts, expert_bytes: card.expert_bytes }
    }
}

/// How many copies are asked for: `spec.experts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Of every expert, each on another worker; at least 1.
    pub min: u32,
    /// In each layer beyond those.
    pub redundant: u32,
}

impl Default for Copies {
    fn default() -> Self {
        Self { min: 1, redundant: 0 }
    }
}

/// A worker of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Whether its ranks may be given experts.
    pub usable: bool,
    /// Bytes that its ranks may hold of experts together; `None`: no limit is known.
    pub bytes_limit: Option<u64>,
    /// Machine that it runs on. Workers of unknown hosts count as being on one.
    pub host: Option<String>,
    /// What fails together beyond a host: a superpod or a zone. Unknown ones count as one.
    pub domain: Option<String>,
}

impl Default for Worker {
    fn default() -> Self {
        Self { usable: true, bytes_limit: None, host: None, domain: None }
    }
}

/// The workers of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// By index. Rank `r` belongs to worker `r / ranks_per_worker`.
    pub workers: Vec<Worker>,
    /// Ranks of each.
    pub ranks_per_worker: u32,
}

impl Fleet {
    /// So many usable workers without limits, on unknown hosts.
    pub fn new(workers: u32, ranks_per_worker: u32) -> Self {
        Self { workers: vec![Worker::default(); workers as usize], ranks_per_worker }
    }

    /// Ranks of all workers, usable or not.
    pub fn ranks(&self) -> u32 {
        number(self.workers.len()).saturating_mul(self.ranks_per_worker)
    }

    /// Whether a rank may be given experts.
    pub fn usable(&self, rank: u32) -> bool {
        let worker = rank.checked_div(self.ranks_per_worker);
        worker.and_then(|worker| self.workers.get(worker as usize)).is_some_and(|worker| worker.usable)
    }
}

/// Why a group cannot have a placement.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// Some ranks would hold no expert at all.
    #[error(
        "{workers} workers with {devices_per_worker} devices each are {ranks} ranks, but the model has only \
         {experts} experts in a layer ({copies} copies): a rank must hold at least one; use fewer workers or devices"
    )]
    MoreRanksThanExperts {
        /// Workers of the group.
        workers: u32,
        /// Ranks of a worker.
        devices_per_worker: u32,
        /// Ranks of the group.
        ranks: u32,
        /// Routed experts in a layer.
        experts: u32,
        /// Copies in a layer that are asked for.
        copies: u32,
    },
    /// The worker's model card has no layers.
    #[error("the model card has no layers")]
    NoLayers,
    /// No worker can be given experts.
    #[error("no worker of the group is usable")]
    NoUsableRank,
    /// One copy of each expert is more than the usable workers may hold.
    #[error(
        "one copy of each expert takes {bytes} bytes, but the {workers} usable workers may hold {allowed} together; \
         worker {worker}, the smallest, would need {worker_bytes} bytes and is allowed {worker_allowed}"
    )]
    DoesNotFit {
        /// Bytes of one copy of each expert that has none yet.
        bytes: u64,
        /// Bytes that the usable workers may still hold.
        allowed: u64,
        /// Usable workers.
        workers: u32,
        /// The one that may hold least.
        worker: u32,
        /// Its even share, in bytes.
        worker_bytes: u64,
        /// What it may still hold, in bytes.
        worker_allowed: u64,
    },
}

/// Whether the group could have a placement if all its workers were usable.
pub(super) fn check(model: &Model, copies: &Copies, fleet: &Fleet) -> Result<(), PlacementError> {
    if model.layers == 0 {
        return Err(PlacementError::NoLayers);
    }
    let (workers, ranks) = (number(fleet.workers.len()), fleet.ranks());
    if ranks == 0 {
        return Err(PlacementError::NoUsableRank);
    }
    let each = copies.min.clamp(1, workers);
    let slots = model.experts.saturating_mul(each).saturating_add(copies.redundant);
    if ranks > slots || model.experts == 0 {
        return Err(PlacementError::MoreRanksThanExperts {
            workers,
            devices_per_worker: fleet.ranks_per_worker,
            ranks,
            experts: model.experts,
            copies: slots,
        });
    }
    Ok(())
}

/// The fleet in numbers: where each rank is.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    /// Ranks that may be given experts, in order.
    pub usable: Vec<u32>,
    /// Workers with such ranks, in order.
    pub workers: Vec<u32>,
    /// Ranks of a worker.
    pub per_worker: u32,
    /// By rank: whether it may be given experts.
    open: Vec<bool>,
    /// By worker.
    host: Vec<u32>,
    /// By worker.
    domain: Vec<u32>,
}

impl Seats {
    pub fn of(fleet: &Fleet) -> Self {
        let ranks = fleet.ranks();
        let open: Vec<bool> = (0..ranks).map(|rank| fleet.usable(rank)).collect();
        let workers =
            (0u32..).zip(&fleet.workers).filter(|(_, worker)| worker.usable).map(|(index, _)| index);
        Self {
            usable: (0..ranks).filter(|&rank| open[rank as usize]).collect(),
            workers: workers.collect(),
            per_worker: fleet.ranks_per_worker,
            open,
            host: numbered(fleet.workers.iter().map(|worker| worker.host.as_deref())),
            domain: numbered(fleet.workers.iter().map(|worker| worker.domain.as_deref())),
        }
    }

    /// Ranks of all workers.
    pub fn ranks(&self) -> usize {
        self.open.len()
    }

    pub fn is_usable(&self, rank: u32) -> bool {
        self.open.get(rank as usize).copied().unwrap_or(false)
    }

    pub fn worker(&self, rank: u32) -> u32 {
        rank / self.per_worker
    }

    pub fn host(&self, rank: u32) -> u32 {
        self.host[self.worker(rank) as usize]
    }

    pub fn domain(&self, rank: u32) -> u32 {
        self.domain[self.worker(rank) as usize]
    }

    /// On how many different workers, hosts and domains these ranks are.
    pub fn spread(&self, ranks: &[u32]) -> Spread {
        Spread {
            workers: different(ranks, |rank| self.worker(rank)),
            hosts: different(ranks, |rank| self.host(rank)),
            domains: different(ranks, |rank| self.domain(rank)),
        }
    }
}

/// On how many different workers, hosts and domains the copies of an expert are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spread {
    pub workers: u32,
    pub hosts: u32,
    pub domains: u32,
}

impl Spread {
    /// Whether a change from `before` takes away nothing that `min` copies can have.
    pub fn keeps(self, before: Self, min: u32) -> bool {
        self.workers >= before.workers.min(min)
            && self.hosts >= before.hosts.min(min)
            && self.domains >= before.domains.min(min)
    }
}

fn different(ranks: &[u32], of: impl Fn(u32) -> u32) -> u32 {
    let first = |index: usize| !ranks[..index].iter().any(|&earlier| of(earlier) == of(ranks[index]));
    number((0..ranks.len()).filter(|&index| first(index)).count())
}

fn numbered<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Vec<u32> {
    let mut known = BTreeMap::new();
    names
        .map(|name| {
            let next = number(known.len());
            *known.entry(name).or_insert(next)
        })
        .collect()
}

pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
