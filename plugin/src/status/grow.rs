//! Answers become a tree: pure, but for the paces that are kept from look to look.
use std::collections::BTreeMap;

use belay_crds::labels;
use belay_operator::trouble;
use belay_proto::admin::{Phase, WorkerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::ResourceExt as _;
use serde_json::Value;

use super::{
    pace::{self, Pace},
    tree::{Age, ConditionView, EventView, GroupView, LoadView, PodView, RevisionView, Teller, Tree},
};
use crate::{
    cluster::{Deployment, facts::Owned},
    picture::units::clean,
};

/// Events that are told.
const EVENTS: usize = 5;

/// Events that are older are no news.
const EVENT_SECONDS: i64 = 3600;

/// All that was answered at one look.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The deployment.
    pub deployment: Deployment,
    /// Pods and Services.
    pub owned: Owned,
    /// What workers say of themselves, by pod UID. Those that do not run were not asked.
    pub workers: BTreeMap<String, Result<WorkerStatus, String>>,
    /// Events about it and its pods.
    pub events: Vec<Event>,
    /// When.
    pub now: Timestamp,
}

/// The tree.
pub fn tree(seen: &Seen, pace: &mut Pace) -> Tree {
    let deployment = &seen.deployment;
    let text = |path: &str| deployment.word(path).to_owned();
    let uids: Vec<String> = seen.owned.pods.iter().filter_map(Pod::uid).collect();
    pace.keep(&uids);
    let model = match deployment.word("/spec/model/name") {
        "" => deployment.name.clone(),
        name => name.to_owned(),
    };
    Tree {
        name: deployment.name.clone(),
        namespace: deployment.namespace.clone(),
        model,
        time: seen.now.to_string(),
        observed: deployment.generation().is_some()
            && deployment.number("/status/observedGeneration") == deployment.generation(),
        desired: deployment.number("/spec/replicas").unwrap_or(1),
        ready: deployment.number("/status/readyReplicas").unwrap_or(0),
        updated: deployment.number("/status/updatedReplicas").unwrap_or(0),
        strategy: match text("/spec/rollout/strategy") {
            none if none.is_empty() => "RollingUpdate".to_owned(),
            strategy => strategy,
        },
        conditions: conditions(deployment),
        rollout: deployment.at("/status/rollout").cloned(),
        revisions: revisions(seen, pace),
        events: events(&seen.events, seen.now),
    }
}

/// The conditions of a deployment.
pub fn conditions(deployment: &Deployment) -> Vec<ConditionView> {
    let word = |value: &Value, key: &str| clean(value[key].as_str().unwrap_or_default());
    let view = |condition: &Value| ConditionView {
        kind: word(condition, "type"),
        status: word(condition, "status"),
        reason: word(condition, "reason"),
        message: word(condition, "message"),
    };
    deployment.list("/status/conditions").map(view).collect()
}

fn revisions(seen: &Seen, pace: &mut Pace) -> Vec<RevisionView> {
    let deployment = &seen.deployment;
    let (updated, current) =
        (deployment.word("/status/updatedRevision"), deployment.word("/status/currentRevision"));
    let mut revisions: BTreeMap<String, RevisionView> = BTreeMap::new();
    let mut entry = |name: &str| {
        let age = match name {
            _ if name == updated => Age::Updated,
            _ if name == current => Age::Current,
            _ => Age::Older,
        };
        let blank = RevisionView { name: name.to_owned(), age, ..RevisionView::default() };
        revisions.entry(name.to_owned()).or_insert(blank);
    };
    let groups = groups(seen, pace);
    for (revision, _) in &groups {
        entry(revision);
    }
    for traffic in deployment.list("/status/traffic") {
        entry(traffic["revision"].as_str().unwrap_or_default());
    }
    for traffic in deployment.list("/status/traffic") {
        if let Some(view) = revisions.get_mut(traffic["revision"].as_str().unwrap_or_default()) {
            view.traffic_percent = traffic["weightPercent"].as_i64();
            view.traffic_role = traffic["role"].as_str().map(str::to_owned);
        }
    }
    for (revision, group) in groups {
        if let Some(view) = revisions.get_mut(&revision) {
            view.groups.push(group);
        }
    }
    let mut list: Vec<RevisionView> = revisions.into_values().collect();
    list.sort_by_key(|revision| revision.age as u8);
    list
}

/// Groups with the revision of each, by name.
fn groups(seen: &Seen, pace: &mut Pace) -> Vec<(String, GroupView)> {
    let mut groups: BTreeMap<String, (String, GroupView)> = BTreeMap::new();
    for status in seen.deployment.list("/status/groups") {
        let Some(name) = status["name"].as_str() else { continue };
        let count = |key: &str| status[key].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        let view = GroupView {
            name: name.to_owned(),
            ready_workers: count("readyWorkers"),
            workers: count("workers"),
            draining: status["draining"].as_bool().unwrap_or(false),
            requests_in_flight: status["requestsInFlight"].as_u64(),
            message: status["message"].as_str().map(clean),
            ..GroupView::default()
        };
        let revision = status["revision"].as_str().unwrap_or_default().to_owned();
        groups.insert(name.to_owned(), (revision, view));
    }
    let of = |labels: &BTreeMap<String, String>| {
        let revision = labels.get(labels::REVISION).cloned().unwrap_or_default();
        Some((labels.get(labels::GROUP)?.clone(), revision))
    };
    for service in &seen.owned.services {
        let Some((name, revision)) = of(service.labels()) else { continue };
        let (_, group) = groups.entry(name.clone()).or_insert_with(|| (revision, blank(&name)));
        group.draining_since = draining_since(service);
        group.draining |= group.draining_since.is_some();
    }
    for pod in &seen.owned.pods {
        let Some((name, revision)) = of(pod.labels()) else { continue };
        let (_, group) = groups.entry(name.clone()).or_insert_with(|| (revision, blank(&name)));
        if let Some(view) = self::pod(pod, seen, pace) {
            group.pods.push(view);
        }
    }
    for (_, group) in groups.values_mut() {
        finish(group);
    }
    groups.into_values().collect()
}

fn blank(name: &str) -> GroupView {
    GroupView { name: name.to_owned(), ..GroupView::default() }
}

fn draining_since(service: &Service) -> Option<String> {
    service.annotations().get(labels::DRAINING_SINCE).cloned()
}

/// What follows from a group's pods: they know more, and later, than the status.
fn finish(group: &mut GroupView) {
    group.pods.sort_by_key(|pod| pod.worker);
    let told: Vec<u64> = group.pods.iter().filter_map(|pod| pod.requests_in_flight).collect();
    if !told.is_empty() {
        group.requests_in_flight = Some(told.iter().sum());
    }
    if !group.pods.is_empty() {
        let ready = group.pods.iter().filter(|pod| pod.ready).count();
        group.ready_workers = u32::try_from(ready).unwrap_or(u32::MAX);
    }
    let pods = u32::try_from(group.pods.len()).unwrap_or(u32::MAX);
    group.workers = group.workers.max(pods);
    let loads: Vec<LoadView> = group.pods.iter().filter_map(|pod| pod.loading).collect();
    group.loading = pace::together(&loads);
}

fn pod(pod: &Pod, seen: &Seen, pace: &mut Pace) -> Option<PodView> {
    let worker = pod.labels().get(labels::WORKER)?.parse().ok()?;
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let leaves = pod.metadata.deletion_timestamp.is_some();
    let (phase, message) = of_pod(pod, &seen.events, ready, seen.now);
    let uid = pod.uid().unwrap_or_default();
    let mut view = PodView {
        name: pod.name_any(),
        worker,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        phase,
        told_by: Teller::Pod,
        ready: ready && !leaves,
        draining: pod.annotations().get(labels::DRAINING).is_some_and(|value| value == "true"),
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        message,
        ..PodView::default()
    };
    match seen.workers.get(&uid) {
        Some(Ok(told)) => {
            let started = started(pod);
            by_worker(&mut view, told, |done, total| pace.of(&uid, seen.now, started, done, total));
            if leaves {
                view.phase = format!("{}, Terminating", view.phase);
            }
        }
        // what the pod says about itself is nearer to the cause
        Some(Err(why)) => view.message = view.message.or_else(|| Some(clean(why))),
        None => (),
    }
    Some(view)
}

fn by_worker(view: &mut PodView, told: &WorkerStatus, load: impl FnOnce(u64, u64) -> LoadView) {
    view.told_by = Teller::Worker;
    let name = told.phase().as_str_name();
    view.phase = name.strip_prefix("PHASE_").unwrap_or(name).to_owned();
    // as the operator sees it: a worker that contradicts the kubelet is believed
    view.ready &= told.phase() == Phase::Ready;
    view.draining |= told.draining;
    view.requests_in_flight = Some(u64::from(told.requests_in_flight));
    view.expert_bytes = Some(told.ranks.iter().fold(0u64, |sum, rank| sum.saturating_add(rank.expert_bytes)));
    let loads = told.phase() == Phase::Loading && told.load_bytes_total > 0;
    view.loading = loads.then(|| load(told.load_bytes_done, told.load_bytes_total));
    let words = match (told.phase(), told.reason.as_str()) {
        (Phase::Ready, _) => String::new(),
        (_, "") => clean(&told.message),
        (_, reason) => clean(&format!("{reason}: {}", told.message)),
    };
    view.message = view.message.take().filter(|_| !view.ready).or((!words.is_empty()).then_some(words));
}

/// Phase and message of a pod whose worker says nothing.
fn of_pod(pod: &Pod, events: &[Event], ready: bool, now: Timestamp) -> (String, Option<String>) {
    let uid = pod.uid();
    let about = |event: &&Event| event.involved_object.uid.is_some() && event.involved_object.uid == uid;
    let events: Vec<Event> = events.iter().filter(about).cloned().collect();
    let trouble = trouble::of_pod(pod, &events, now);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let phase = match (&trouble, phase) {
        _ if pod.metadata.deletion_timestamp.is_some() => "Terminating",
        (Some(trouble), _) => trouble.reason.as_str(),
        (None, "Pending") if !scheduled => "Unscheduled",
        (None, "Running") if ready => "Ready",
        (None, "Running") => "NotReady",
        (None, phase) => phase,
    };
    (phase.to_owned(), trouble.map(|trouble| clean(&trouble.message)))
}

/// When the worker's process was started.
fn started(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|time| time.0)
}

/// The last ones, the newest first.
fn events(events: &[Event], now: Timestamp) -> Vec<EventView> {
    let at = |event: &Event| {
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
        let last = series.map(|time| time.0).or(event.last_timestamp.as_ref().map(|time| time.0));
        last.or(event.event_time.as_ref().map(|time| time.0))
            .or(event.first_timestamp.as_ref().map(|time| time.0))
    };
    let view = |event: &Event| {
        let at = at(event)?;
        let age = now.as_second() - at.as_second();
        let of_pod = event.involved_object.kind.as_deref() == Some("Pod");
        let subject = match of_pod {
            true => event.involved_object.name.clone(),
            false => event.related.as_ref().and_then(|related| related.name.clone()),
        };
        let repeated = event.series.as_ref().and_then(|series| series.count);
        (age <= EVENT_SECONDS).then(|| {
            let view = EventView {
                time: at.to_string(),
                age_seconds: u64::try_from(age).unwrap_or(0),
                kind: clean(event.type_.as_deref().unwrap_or_default()),
                reason: clean(event.reason.as_deref().unwrap_or_default()),
                subject: clean(subject.as_deref().unwrap_or_default()),
                message: clean(event.message.as_deref().unwrap_or_default()),
                count: i64::from(repeated.or(event.count).unwrap_or(1)),
            };
            (at, view)
        })
    };
    let mut views: Vec<(Timestamp, EventView)> = events.iter().filter_map(view).collect();
    views.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    views.into_iter().take(EVENTS).map(|(_, view)| view).collect()
}
