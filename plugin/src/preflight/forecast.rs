//! What a worker will hold, and how long groups take to get ready, from what present ones have shown: pure.
use std::collections::BTreeMap;

use belay_crds::Device;
use belay_operator::{
    group::Group,
    reconcile::{build, validate::Validated},
    revision::Record,
};
use belay_proto::admin::ModelCard;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt as _;
use serde::Serialize;

use super::amount;

/// What workers keep for requests unless the spec says otherwise.
const DEFAULT_CACHE: &str = "4Gi";

/// Bytes that a worker of the new revision will hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Weights that every worker holds.
    pub dense_bytes: u64,
    /// Experts of all its ranks, if they are spread evenly.
    pub expert_bytes: u64,
    /// Experts of one rank.
    pub rank_expert_bytes: u64,
    /// For requests and prefixes.
    pub cache_bytes: u64,
    /// All of these.
    pub total_bytes: u64,
    /// Memory limit of its container; absent if it has none, or if its memory is that of NPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Group whose worker told the model's sizes.
    pub told_by: String,
    /// What does not fit; absent if all does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What does not fit into a worker, or a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Whether the group can't get ready with it.
    pub fatal: bool,
    /// What it is.
    pub message: String,
}

/// From the card of a running worker that reads the same checkpoint. `None` if there is none.
pub fn memory(wanted: &Validated, target: &Record, groups: &[Group], revisions: &[Record]) -> Option<Memory> {
    let source = &target.data.content.model.source;
    let reads_same = |group: &&Group| {
        let record = revisions.iter().find(|record| record.revision == group.revision);
        record.is_some_and(|record| record.data.content.model.source == *source)
    };
    let card = |group: &Group| group.pods().find_map(|(_, pod)| pod.status()?.card.clone());
    let (group, card) = groups.iter().filter(reads_same).find_map(|group| Some((group, card(group)?)))?;
    Some(of_card(wanted, target, &card, group.name.clone()))
}

fn of_card(wanted: &Validated, target: &Record, card: &ModelCard, told_by: String) -> Memory {
    let spec = &target.data.content.group;
    let count = |number: i32| u64::try_from(number).unwrap_or(1).max(1);
    let (workers, ranks_per_worker) = (count(spec.workers), count(spec.devices_per_worker));
    let ranks = workers * ranks_per_worker;
    let (layers, experts) = (u64::from(card.layers), u64::from(card.experts));
    let of_copies = |in_layer: u64, over: u64| {
        let copies = layers.saturating_mul(in_layer);
        copies.div_ceil(over).saturating_mul(card.expert_bytes)
    };
    let copies = experts.saturating_mul(u64::from(wanted.experts.copies.min))
        + u64::from(wanted.experts.copies.redundant);
    let cache = spec.cache.as_ref().and_then(|cache| cache.memory.clone());
    let quantity = |text: &str| amount::bytes(&Quantity(text.to_owned()));
    let cache_bytes = quantity(cache.as_deref().unwrap_or(DEFAULT_CACHE)).unwrap_or(0);
    let expert_bytes = of_copies(copies, workers);
    // on NPUs, weights and requests are in the devices' memory, of which the container's limit says nothing
    let limit_bytes = match spec.device {
        Device::CPU => memory_limit(&build::pod(wanted, target, "forecast", 0)),
        Device::Ascend => None,
    };
    let own_limit = spec.expert_memory.as_deref().and_then(quantity);
    let beside = card.dense_bytes.saturating_add(cache_bytes);
    let room = own_limit.or(limit_bytes.map(|limit| limit.saturating_sub(beside)));
    let problem = if experts < ranks {
        Some(Problem {
            fatal: true,
            message: format!("the group has {ranks} ranks, and the model {experts} experts in a layer"),
        })
    } else {
        room.and_then(|room| no_room(room, of_copies(experts, workers), expert_bytes))
    };
    Memory {
        dense_bytes: card.dense_bytes,
        expert_bytes,
        rank_expert_bytes: of_copies(copies, ranks),
        cache_bytes,
        total_bytes: beside.saturating_add(expert_bytes),
        limit_bytes,
        told_by,
        problem,
    }
}

fn no_room(room: u64, least: u64, wanted: u64) -> Option<Problem> {
    use crate::picture::units::bytes;
    let (fatal, needed, what) = match (least > room, wanted > room) {
        (true, _) => (true, least, "one copy of each expert"),
        (false, true) => (false, wanted, "the copies that spec.experts asks for"),
        (false, false) => return None,
    };
    let message = format!("{what} take {} in a worker, and there is room for {}", bytes(needed), bytes(room));
    Some(Problem { fatal, message })
}

fn memory_limit(pod: &Pod) -> Option<u64> {
    let container = pod.spec.as_ref()?.containers.first()?;
    amount::bytes(container.resources.as_ref()?.limits.as_ref()?.get("memory")?)
}

/// How long groups took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pace {
    /// Seconds from a group's creation until it was ready first: the median.
    pub ready_seconds: u64,
    /// Of so many groups.
    pub groups: usize,
    /// Seconds from a pod's creation until it had a node: the median over pods; absent if nothing tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_seconds: Option<u64>,
    /// From then until its process ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_seconds: Option<u64>,
    /// From then until it was ready: reading the checkpoint, above all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_seconds: Option<u64>,
}

/// From present groups that were ready, and from others by what events tell: `(created, ready)` of each.
pub fn pace(
    services: &[Service],
    past: &BTreeMap<String, (Timestamp, Timestamp)>,
    pods: &[Pod],
) -> Option<Pace> {
    let mut spans: BTreeMap<String, u64> = BTreeMap::new();
    for (group, (created, ready)) in past {
        spans.extend(seconds(*created, *ready).map(|span| (group.clone(), span)));
    }
    for service in services {
        let ready = service.annotations().get(belay_crds::labels::FIRST_READY);
        let ready = ready.and_then(|time| time.parse::<Timestamp>().ok());
        let created = service.creation_timestamp().map(|time| time.0);
        let span = created.zip(ready).and_then(|(created, ready)| seconds(created, ready));
        spans.extend(span.map(|span| (service.name_any(), span)));
    }
    let phases: Vec<[Option<u64>; 3]> = pods.iter().map(phases).collect();
    let phase = |index: usize| median(phases.iter().filter_map(|phases| *phases.get(index)?).collect());
    Some(Pace {
        ready_seconds: median(spans.values().copied().collect())?,
        groups: spans.len(),
        scheduled_seconds: phase(0),
        started_seconds: phase(1),
        loaded_seconds: phase(2),
    })
}

/// Seconds that a pod took to get a node, to start, and to load. A pod that was restarted tells nothing of the last two.
fn phases(pod: &Pod) -> [Option<u64>; 3] {
    let status = pod.status.as_ref();
    let since = |kind: &str| {
        let conditions = status?.conditions.as_ref()?;
        let found = conditions.iter().find(|c| c.type_ == kind && c.status == "True")?;
        found.last_transition_time.as_ref().map(|time| time.0)
    };
    let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
    let first_life = container.filter(|container| container.restart_count == 0);
    let started = first_life.and_then(|container| {
        container.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|time| time.0)
    });
    let created = pod.creation_timestamp().map(|time| time.0);
    let (scheduled, ready) = (since("PodScheduled"), since("Ready"));
    let span = |from: Option<Timestamp>, to: Option<Timestamp>| seconds(from?, to?);
    [span(created, scheduled), span(scheduled, started), span(started, ready)]
}

fn seconds(from: Timestamp, to: Timestamp) -> Option<u64> {
    u64::try_from(to.as_second() - from.as_second()).ok()
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
