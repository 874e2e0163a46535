//! A group as people see it: everything that the picture shows, and what `-o json` prints.
use std::collections::BTreeMap;

use belay_proto::admin::Coverage;
use serde::Serialize;

use super::{
    copies::{Copies, State},
    operation::OperationView,
    units::clean,
    workers::{Presence, Slots, WorkerView},
};
use crate::answers::{Answers, GroupAnswers};

/// A ModelDeployment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Name.
    pub deployment: String,
    /// Namespace.
    pub namespace: String,
    /// When this was seen, RFC 3339.
    pub time: String,
    /// What its conditions complain of.
    pub troubles: Vec<String>,
    /// Its groups.
    pub groups: Vec<GroupView>,
}

impl View {
    /// What the answers mean.
    pub fn of(answers: &Answers) -> Self {
        Self {
            deployment: answers.deployment.clone(),
            namespace: answers.namespace.clone(),
            time: answers.taken.to_string(),
            troubles: answers.troubles.iter().map(|trouble| clean(trouble)).collect(),
            groups: answers.groups.iter().map(|group| GroupView::of(group, answers)).collect(),
        }
    }
}

/// One group.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupView {
    /// Name.
    pub name: String,
    /// Revision.
    pub revision: String,
    /// Epoch in force; 0 before the first placement.
    pub epoch: u64,
    /// Experts and their copies.
    pub experts: ExpertsView,
    /// Imbalance of load over the ranks that live, in percent of even; absent without load.
    pub imbalance_percent: Option<u64>,
    /// The change under way.
    pub operation: Option<OperationView>,
    /// By index.
    pub workers: Vec<WorkerView>,
    /// By number.
    pub ranks: Vec<RankView>,
    /// What could not be read, for people.
    pub notes: Vec<String>,
    /// Every copy.
    #[serde(serialize_with = "layers", rename = "layers")]
    pub copies: Copies,
}

/// How well experts are covered, as the worker says that sees fewest; without such a report, as the ranks' own words add
/// up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpertsView {
    /// (layer, expert) pairs.
    pub total: u32,
    /// Pairs that have a live copy.
    pub covered: u32,
    /// Live copies of the pair that has the fewest.
    pub min_live_copies: u32,
    /// Copies beyond the placement, for ranks that are lost.
    pub adopted: u32,
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RankView {
    /// Number in the group.
    pub rank: u32,
    /// Its worker.
    pub worker: u32,
    /// (layer, expert) copies that it holds.
    pub copies: u32,
    /// Bytes of these.
    pub expert_bytes: u64,
    /// Thousandths of a token that go to it.
    pub load_millitokens: u64,
}

impl GroupView {
    fn of(group: &GroupAnswers, answers: &Answers) -> Self {
        let slots = Slots::of(group);
        let copies = Copies::of(group, &slots);
        let workers: Vec<WorkerView> = slots.list().iter().map(|slot| WorkerView::of(group, slot)).collect();
        let ranks = ranks(group, &copies, &slots);
        Self {
            name: group.name.clone(),
            revision: group.revision.clone(),
            epoch: group.placement.as_ref().map_or(0, |placement| placement.epoch),
            experts: experts(group, &copies),
            imbalance_percent: imbalance_percent(&copies, &ranks, &slots),
            operation: OperationView::of(group, answers.taken),
            workers,
            ranks,
            notes: group.notes.iter().map(|note| clean(note)).collect(),
            copies,
        }
    }

    /// Copies of one worker that nobody else has: what stands still until survivors have adopted them.
    pub fn sole_copies(&self, worker: u32) -> u32 {
        let is_there = |rank: u32| self.ranks.iter().any(|view| view.rank == rank && view.worker == worker);
        let of_worker = self.copies.list.iter().filter(|copy| copy.state.is_live() && is_there(copy.rank));
        let mut live: BTreeMap<(u32, u32), (u32, u32)> = BTreeMap::new();
        for copy in of_worker {
            let entry = live.entry((copy.layer, copy.expert)).or_insert((0, copy.live_copies));
            entry.0 += 1;
        }
        // several ranks of a worker are lost together
        u32::try_from(live.values().filter(|(here, all)| here == all).count()).unwrap_or(u32::MAX)
    }
}

fn experts(group: &GroupAnswers, copies: &Copies) -> ExpertsView {
    let total = copies.shape.total();
    let reports: Vec<&Coverage> = group
        .pods
        .iter()
        .filter_map(|pod| pod.worker.as_ref().ok()?.status.coverage.as_ref())
        .filter(|report| report.epoch > 0)
        .collect();
    let adopted = copies.list.iter().filter(|copy| copy.state == State::Adopted).count();
    let counted = copies.coverage();
    let min_live_copies = reports.iter().map(|report| report.min_live_copies).min().unwrap_or(counted.0);
    let uncovered = reports.iter().map(|report| report.uncovered).max().unwrap_or(counted.1);
    ExpertsView {
        total,
        covered: total.saturating_sub(uncovered),
        min_live_copies,
        adopted: u32::try_from(adopted).unwrap_or(u32::MAX),
    }
}

fn ranks(group: &GroupAnswers, copies: &Copies, slots: &Slots) -> Vec<RankView> {
    let view = |rank: u32| RankView {
        rank,
        worker: rank / slots.ranks_per_worker,
        copies: 0,
        expert_bytes: 0,
        load_millitokens: 0,
    };
    let workers = u32::try_from(slots.list().len()).unwrap_or(u32::MAX);
    let mut ranks: BTreeMap<u32, RankView> =
        (0..workers.saturating_mul(slots.ranks_per_worker)).map(|rank| (rank, view(rank))).collect();
    for copy in &copies.list {
        let rank = ranks.entry(copy.rank).or_insert_with(|| view(copy.rank));
        rank.copies += u32::from(copy.state.is_resident());
        rank.load_millitokens = rank.load_millitokens.saturating_add(copy.load);
    }
    let told = group.pods.iter().filter_map(|pod| pod.worker.as_ref().ok()).flat_map(|w| &w.status.ranks);
    for status in told {
        if let Some(rank) = ranks.get_mut(&status.rank) {
            rank.expert_bytes = status.expert_bytes;
        }
    }
    ranks.into_values().collect()
}

/// 100 × Σ over layers of the busiest rank's load ÷ Σ over layers of the mean rank's load, over ranks that live.
fn imbalance_percent(copies: &Copies, ranks: &[RankView], slots: &Slots) -> Option<u64> {
    let is_live =
        |rank: &&RankView| matches!(slots.of_rank(rank.rank).presence, Presence::Answers | Presence::Unseen);
    let live = ranks.iter().filter(is_live).count();
    let mut by_layer: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
    for copy in copies.list.iter().filter(|copy| copy.load > 0) {
        *by_layer.entry(copy.layer).or_default().entry(copy.rank).or_default() += copy.load;
    }
    let busiest: u128 =
        by_layer.values().map(|ranks| u128::from(ranks.values().copied().max().unwrap_or(0))).sum();
    let all: u128 = by_layer.values().flat_map(|ranks| ranks.values()).map(|load| u128::from(*load)).sum();
    if all == 0 {
        return None;
    }
    u64::try_from((100 * busiest * live as u128 + all / 2) / all).ok()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExpertJson {
    load_millitokens: u64,
    live_copies: u32,
    copies: Vec<CopyJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CopyJson {
    rank: u32,
    state: State,
    load_millitokens: u64,
}

#[derive(Serialize)]
struct LayerJson {
    layer: u32,
    experts: Vec<ExpertJson>,
}

/// Layers that are named by a copy or a load, each with all of its experts.
fn layers<S: serde::Serializer>(copies: &Copies, serializer: S) -> Result<S::Ok, S::Error> {
    let mut layers: BTreeMap<u32, Vec<ExpertJson>> = BTreeMap::new();
    for layer in copies.layers() {
        let load = |expert: u32| copies.load_of(layer, expert);
        let blank = |expert| ExpertJson { load_millitokens: load(expert), live_copies: 0, copies: vec![] };
        layers.insert(layer, (0..copies.shape.experts).map(blank).collect());
    }
    for copy in &copies.list {
        let expert = layers.get_mut(&copy.layer).and_then(|layer| layer.get_mut(copy.expert as usize));
        if let Some(expert) = expert {
            expert.live_copies = copy.live_copies;
            let json = CopyJson { rank: copy.rank, state: copy.state, load_millitokens: copy.load };
            expert.copies.push(json);
        }
    }
    serializer.collect_seq(layers.into_iter().map(|(layer, experts)| LayerJson { layer, experts }))
}
