//! Everything a ModelDeployment owns, as it is now: looked at in full each time, so that no single event matters.
use std::{collections::BTreeMap, sync::Arc};

use belay_crds::{ModelDeployment, labels};
use belay_epoch::Intent;
use belay_proto::admin::WorkerStatus;
use futures::future::join_all;
use k8s_openapi::{
    api::{
        apps::v1::ControllerRevision,
        core::v1::{ConfigMap, Event, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::build;
use crate::{
    cache::Key,
    context::Context,
    faults,
    group::{Group, WorkerPod},
    nodes::Nodes,
    recovery::Rebalances,
    revision::{Data, Record},
    rollout::State,
    trouble,
};

/// Key of the placement in force in its ConfigMap.
pub const PLACEMENT_KEY: &str = "placement.json";

/// Key of the change under way, in the same ConfigMap.
pub const OPERATION_KEY: &str = "operation.json";

/// The objects as the API server has them, as far as the cache keeps them.
#[derive(Default)]
pub struct Objects {
    /// Pods of workers.
    pub pods: Vec<Arc<Pod>>,
    /// Headless Services: the records of groups.
    pub services: Vec<Arc<Service>>,
    /// Placements.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// Revisions.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Disruption budgets.
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
}

/// What nobody but pods and workers themselves can tell.
#[derive(Default)]
pub struct Answers {
    /// Warnings about pods that do not start, by pod UID.
    pub events: BTreeMap<String, Vec<Event>>,
    /// What workers say, by pod UID.
    pub workers: BTreeMap<String, Result<WorkerStatus, String>>,
}

/// What was seen.
pub struct Observed {
    /// Groups, by name.
    pub groups: Vec<Group>,
    /// Revisions that are kept.
    pub revisions: Vec<Record>,
    /// The objects behind it.
    pub objects: Objects,
    /// When.
    pub now: Timestamp,
}

/// Looks at everything. Load is asked for if it is older than `load_seconds`.
///
/// # Errors
/// When the API server had to be asked and does not answer. A worker that does not answer is an observation, not an error.
pub async fn observe(
    context: &Context,
    deployment: &ModelDeployment,
    load_seconds: i64,
) -> Result<Observed, kube::Error> {
    let client = &context.client;
    let name = deployment.name_any();
    let namespace = deployment.namespace().unwrap_or_default();
    let uid = deployment.uid().unwrap_or_default();
    let key = Key { namespace: namespace.clone(), name: name.clone() };
    let objects = context.cache.look(client, &key, &uid).await?;
    let now = Timestamp::now();
    let answers = ask(context, &namespace, &objects.pods, now).await?;
    let revisions: Vec<Record> = objects.revisions.iter().filter_map(|object| record(object)).collect();
    let lost_after = context.settings.node_lost_seconds;
    let mut groups = assemble(&name, &objects, &revisions, &answers, &context.nodes, lost_after, now);
    if let Some(spec) = &deployment.spec.group.ascend {
        let policy = deployment.spec.device_faults.clone().unwrap_or_default();
        let resource = build::resource(&deployment.spec.group, spec);
        context.faults.note(&policy, resource, &objects.pods, &mut groups, now);
    }
    for pod in groups.iter_mut().flat_map(|group| &mut group.slots).flatten() {
        pod.fault = pod.status().and_then(faults::lost).or(pod.fault.take());
    }
    context.attendance.note(&namespace, &name, &mut groups, now);
    let asked = deployment.annotations().get(labels::REBALANCE).map(String::as_str);
    context.loads.refresh(&context.workers, &namespace, &mut groups, load_seconds, asked, now).await;
    Ok(Observed { groups, revisions, objects, now })
}

/// Asks every running worker, and the events about every pod that does not start.
async fn ask(
    context: &Context,
    namespace: &str,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Result<Answers, kube::Error> {
    let statuses = pods.iter().filter(|pod| runs(pod)).map(async |pod: &Arc<Pod>| {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone())?;
        let uid = pod.uid()?;
        let answer = match context.workers.status(&ip).await {
            Ok(status) if status.uid != uid => Err(format!("a worker with another UID answers at {ip}")),
            Ok(status) => Ok(status),
            Err(error) => Err(error.to_string()),
        };
        Some((uid, answer))
    });
    let warnings = pods.iter().filter(|pod| trouble::needs_events(pod)).map(async |pod: &Arc<Pod>| {
        let Some(uid) = pod.uid() else { return Ok(None) };
        let warnings = context.warnings.about(&context.client, namespace, pod, now).await?;
        Ok::<_, kube::Error>(Some((uid, warnings)))
    });
    let (statuses, warnings) = tokio::join!(join_all(statuses), join_all(warnings));
    let mut answers = Answers { workers: statuses.into_iter().flatten().collect(), ..Answers::default() };
    for warning in warnings {
        answers.events.extend(warning?);
    }
    Ok(answers)
}

/// Puts pods, Services, placements and answers together into groups. Pure.
pub fn assemble(
    deployment: &str,
    objects: &Objects,
    revisions: &[Record],
    answers: &Answers,
    nodes: &dyn Nodes,
    node_lost_seconds: i64,
    now: Timestamp,
) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for service in &objects.services {
        if let Some(group) = entry(&mut groups, deployment, &**service) {
            group.recorded = true;
            group.draining_since = time(&**service, labels::DRAINING_SINCE);
            group.first_ready = time(&**service, labels::FIRST_READY);
        }
    }
    for pod in &objects.pods {
        let index = pod.labels().get(labels::WORKER).and_then(|worker| worker.parse::<usize>().ok());
        if let (Some(index), Some(group)) = (index, entry(&mut groups, deployment, &**pod)) {
            if group.slots.len() <= index {
                group.slots.resize(index + 1, None);
            }
            let seen = worker_pod(pod, answers, nodes, node_lost_seconds, now);
            // a mark without a record: somebody removed the Service; the drain goes on, its clock starts anew
            if seen.marked_draining && !group.recorded {
                group.draining_since.get_or_insert(now);
            }
            if let Some(slot) = group.slots.get_mut(index) {
                *slot = Some(seen);
            }
        }
    }
    for config_map in &objects.config_maps {
        // without Service and pods it is a left-over, not a group
        let name = config_map.labels().get(labels::GROUP);
        if let Some(group) = name.and_then(|name| groups.get_mut(name)) {
            group.intent = Intent {
                in_force: document(config_map, PLACEMENT_KEY),
                operation: document(config_map, OPERATION_KEY),
            };
            group.rebalances = rebalances(config_map);
            group.written = config_map.resource_version();
        }
    }
    for group in groups.values_mut() {
        let record = revisions.iter().find(|record| record.revision == group.revision);
        let workers = record.and_then(|record| usize::try_from(record.data.content.group.workers).ok());
        group.slots.resize(workers.unwrap_or(0).max(group.slots.len()), None);
        group.note_unreached();
    }
    groups.into_values().collect()
}

fn entry<'a, K: Resource>(
    groups: &'a mut BTreeMap<String, Group>,
    deployment: &str,
    object: &K,
) -> Option<&'a mut Group> {
    let name = object.labels().get(labels::GROUP)?;
    let revision = object.labels().get(labels::REVISION)?;
    Some(groups.entry(name.clone()).or_insert_with(|| Group {
        name: name.clone(),
        revision: revision.clone(),
        ordinal: labels::group_ordinal(deployment, revision, name).unwrap_or(u32::MAX),
        ..Group::default()
    }))
}

fn worker_pod(
    pod: &Pod,
    answers: &Answers,
    nodes: &dyn Nodes,
    node_lost_seconds: i64,
    now: Timestamp,
) -> WorkerPod {
    let uid = pod.uid().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let no_events = vec![];
    let events = answers.events.get(&uid).unwrap_or(&no_events);
    let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let node_silent = on_silent_node(pod, nodes, node_lost_seconds, now);
    let worker = answers.workers.get(&uid).cloned();
    let node_state = node.as_deref().and_then(|node| nodes.state(node));
    let why = || [status.reason, status.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
    WorkerPod {
        name: pod.name_any(),
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        node_leaving: node_state.as_ref().is_some_and(|state| state.unschedulable),
        domain: node_state.and_then(|state| state.domain),
        fault: None,
        node_silent,
        // a kubelet may be away while its pods go on: who answers is alive
        node_lost: node_silent && !matches!(worker, Some(Ok(_))),
        node,
        ready,
        running: runs(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ended: ended.then(why),
        marked_draining: pod.annotations().get(labels::DRAINING).is_some_and(|value| value == "true"),
        may_leave: pod.labels().get(labels::MAY_LEAVE).is_some_and(|value| value == "true"),
        restarts: restarts(pod),
        trouble: trouble::of_pod(pod, events, now),
        worker,
        unreached: false,
        uid,
    }
}

/// Whether the worker process runs, as far as the kubelet has told.
fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let state = statuses.and_then(|statuses| statuses.first()).and_then(|status| status.state.as_ref());
    state.is_some_and(|state| state.running.is_some())
}

fn restarts(pod: &Pod) -> u32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let restarts = statuses.into_iter().flatten().map(|status| status.restart_count).sum::<i32>();
    u32::try_from(restarts).unwrap_or(0)
}

fn on_silent_node(pod: &Pod, nodes: &dyn Nodes, node_lost_seconds: i64, now: Timestamp) -> bool {
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else { return false };
    match nodes.state(node) {
        Some(state) => state.lost(node_lost_seconds, now),
        // a node that was just added may not be known here yet
        None => pod
            .creation_timestamp()
            .is_some_and(|created| now.as_second() - created.0.as_second() >= node_lost_seconds),
    }
}

fn time<K: Resource>(object: &K, annotation: &str) -> Option<Timestamp> {
    object.annotations().get(annotation)?.parse().ok()
}

fn document<T: DeserializeOwned>(config_map: &ConfigMap, key: &str) -> Option<T> {
    let text = config_map.data.as_ref()?.get(key)?;
    let read = serde_json::from_str(text);
    read.inspect_err(
        |error| warn!(config_map = config_map.name_any(), key, %error, "not readable; it is made anew"),
    )
    .ok()
}

fn rebalances(config_map: &ConfigMap) -> Rebalances {
    let text = config_map.annotations().get(labels::REBALANCES);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn state(object: &ControllerRevision) -> Option<State> {
    let text = object.annotations().get(labels::ROLLOUT)?;
    let read = serde_json::from_str(text);
    read.inspect_err(
        |error| warn!(revision = object.name_any(), %error, "how far its rollout is cannot be read"),
    )
    .ok()
}

/// A revision, from the object that keeps it; `None` if it is not readable.
pub fn record(object: &ControllerRevision) -> Option<Record> {
    let revision = object.labels().get(labels::REVISION)?.clone();
    match serde_json::from_value::<Data>(object.data.clone()?.0) {
        Ok(data) => Some(Record { revision, number: object.revision, data, state: state(object) }),
        Err(error) => {
            warn!(revision = object.name_any(), %error, "revision is not readable");
            None
        }
    }
}
