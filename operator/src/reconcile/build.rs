//! Decisions become objects: pure but for the keys of new groups, no client.
mod ascend;
mod budget;
mod intent;
mod key;
mod pod;
mod pod_group;
mod revision;
mod service;

use std::collections::BTreeMap;

use belay_crds::{Scheduler, labels};
use belay_proto::admin::SetPlacementRequest;
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{ConfigMap, Pod, Secret, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::api::ObjectMeta;
use thiserror::Error;

use super::{
    observe::Observed,
    plan::{Course, Experts, NewGroup, Plan, Removal},
    validate::Validated,
};
use crate::{group::Group, pod_group::PodGroup, revision::Record};

pub use self::{
    ascend::{resource, superpod_block},
    pod::pod,
};

/// Objects and calls, ready to be carried out in the order of the fields.
#[derive(Default)]
pub struct Prepared {
    /// UID of the deployment.
    pub owner_uid: String,
    /// The revision, if it must be recorded.
    pub revision: Option<ControllerRevision>,
    /// Keys of the groups that did not exist.
    pub keys: Vec<Secret>,
    /// A record of each group, with what is under way for it.
    pub services: Vec<Service>,
    /// Groups that did not exist.
    pub created_groups: Vec<String>,
    /// Groups that start to drain.
    pub drained_groups: Vec<String>,
    /// Groups that are ready for the first time.
    pub ready_groups: Vec<String>,
    /// Pods to delete.
    pub removals: Vec<(String, Removal)>,
    /// What says that pods of a group get nodes together, of groups with pods to create.
    pub pod_groups: Vec<PodGroup>,
    /// Pods to create.
    pub pods: Vec<NewPod>,
    /// Pods to mark as draining: name and UID.
    pub marks: Vec<(String, String)>,
    /// Workers to tell that they drain.
    pub tells: Vec<Call>,
    /// Pods that may not be evicted any more, before anything relies on them: name and UID.
    pub hold: Vec<(String, String)>,
    /// Intents that change.
    pub intents: Vec<IntentWrite>,
    /// Workers to tell their placement.
    pub pushes: Vec<(Call, SetPlacementRequest)>,
    /// Pods that may be evicted from now on: name and UID.
    pub release: Vec<(String, String)>,
    /// The disruption budget; `None`: there must be none.
    pub budget: Option<PodDisruptionBudget>,
    /// PodGroups of groups whose objects go.
    pub cleared_pod_groups: Vec<PodGroup>,
    /// Groups whose objects go.
    pub cleared_groups: Vec<String>,
    /// ConfigMaps that belong to no group.
    pub stray_config_maps: Vec<String>,
    /// Revisions to forget.
    pub forget: Vec<String>,
}

/// An intent to write: only over the one that it was made from.
pub struct IntentWrite {
    /// Its group.
    pub group: String,
    /// The whole of it.
    pub config_map: ConfigMap,
    /// Whether there is none yet.
    pub is_new: bool,
}

/// A pod to create.
pub struct NewPod {
    /// The object.
    pub pod: Box<Pod>,
    /// Whether the slot had a pod before.
    pub replaces: bool,
    /// Kubernetes' own PodGroup that it is scheduled with.
    pub scheduling_group: Option<String>,
}

/// A worker to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its pod.
    pub pod: String,
    /// Its address.
    pub ip: String,
}

/// Why an object cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Something cannot be written as JSON.
    #[error("write {what} as JSON")]
    Json {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Builds everything that the plan asks for.
///
/// # Errors
/// When something cannot be written as JSON.
pub fn build(wanted: &Validated, observed: &Observed, plan: &Plan) -> Result<Prepared, BuildError> {
    let mut prepared =
        Prepared { owner_uid: wanted.owner.uid.clone(), forget: plan.forget.clone(), ..Prepared::default() };
    if plan.record_target {
        prepared.revision = Some(revision::revision(wanted, &plan.target)?);
    }
    for NewGroup { name, record } in &plan.create {
        let group = Group { name: name.clone(), revision: record.revision.clone(), ..Group::default() };
        prepared.keys.push(key::key(wanted, &group));
        prepared.services.push(service::service(wanted, &group, None, None));
        prepared.pod_groups.extend(pod_group::pod_group(wanted, record, name));
        let workers = u32::try_from(record.data.content.group.workers).unwrap_or(0);
        prepared.pods.extend((0..workers).map(|worker| new_pod(wanted, record, name, worker, false)));
        prepared.created_groups.push(name.clone());
    }
    for group_plan in &plan.groups {
        if let Some(group) = observed.groups.iter().find(|group| group.name == group_plan.name) {
            let record = [&plan.target]
                .into_iter()
                .chain(&observed.revisions)
                .find(|record| record.revision == group.revision);
            let removals = group_plan.remove.iter().cloned().map(|removal| (group.name.clone(), removal));
            prepared.removals.extend(removals);
            course(&mut prepared, wanted, group, record, &group_plan.course);
            experts(&mut prepared, wanted, group, &group_plan.experts)?;
        }
    }
    prepared.budget = budget::budget(wanted, &observed.groups, &plan.protected);
    prepared.stray_config_maps = observed
        .objects
        .config_maps
        .iter()
        .filter(|config_map| {
            let group = config_map.metadata.labels.as_ref().and_then(|labels| labels.get(labels::GROUP));
            !observed.groups.iter().any(|known| Some(&known.name) == group)
        })
        .filter_map(|config_map| config_map.metadata.name.clone())
        .collect();
    Ok(prepared)
}

fn course(
    prepared: &mut Prepared,
    wanted: &Validated,
    group: &Group,
    record: Option<&Record>,
    course: &Course,
) {
    match course {
        Course::Run { create, first_ready } => {
            prepared.services.push(service::service(wanted, group, None, group.first_ready.or(*first_ready)));
            if first_ready.is_some() {
                prepared.ready_groups.push(group.name.clone());
            }
            if let Some(record) = record.filter(|_| !create.is_empty()) {
                prepared.pod_groups.extend(pod_group::pod_group(wanted, record, &group.name));
                let replaces = group.placement().is_some();
                let new = |worker: &u32| new_pod(wanted, record, &group.name, *worker, replaces);
                prepared.pods.extend(create.iter().map(new));
            }
        }
        Course::Drain { since, mark, tell } => {
            prepared.services.push(service::service(wanted, group, Some(*since), group.first_ready));
            if group.draining_since.is_none() {
                prepared.drained_groups.push(group.name.clone());
            }
            let marked = group.pods().filter(|(index, _)| mark.contains(index));
            prepared.marks.extend(marked.map(|(_, pod)| (pod.name.clone(), pod.uid.clone())));
            prepared.tells.extend(calls(group, tell));
        }
        Course::Clear => {
            let pod_group = record.and_then(|record| pod_group::pod_group(wanted, record, &group.name));
            prepared.cleared_pod_groups.extend(pod_group);
            prepared.cleared_groups.push(group.name.clone());
        }
    }
}

fn new_pod(wanted: &Validated, record: &Record, group: &str, worker: u32, replaces: bool) -> NewPod {
    let scheduling = record.data.content.group.ascend.as_ref().and_then(|spec| spec.scheduling.as_ref());
    let is_gang = scheduling.is_some_and(|scheduling| scheduling.scheduler == Scheduler::Gang);
    NewPod {
        pod: Box::new(pod(wanted, record, group, worker)),
        replaces,
        scheduling_group: is_gang.then(|| group.to_owned()),
    }
}

fn experts(
    prepared: &mut Prepared,
    wanted: &Validated,
    group: &Group,
    experts: &Experts,
) -> Result<(), BuildError> {
    if experts.intent != group.intent || experts.rebalances != group.rebalances {
        prepared.intents.push(intent::write(wanted, group, experts)?);
    }
    for push in &experts.pushes {
        let call = calls(group, &[push.worker]).next();
        prepared.pushes.extend(call.map(|call| (call, push.request.clone())));
    }
    for (index, pod) in group.pods().filter(|(_, pod)| !pod.terminating) {
        let may_leave = experts.may_leave.contains(&index);
        if may_leave != pod.may_leave {
            let list = if may_leave { &mut prepared.release } else { &mut prepared.hold };
            list.push((pod.name.clone(), pod.uid.clone()));
        }
    }
    Ok(())
}

fn calls(group: &Group, workers: &[u32]) -> impl Iterator<Item = Call> {
    group
        .pods()
        .filter(|(index, _)| workers.contains(index))
        .filter_map(|(_, pod)| Some(Call { pod: pod.name.clone(), ip: pod.ip.clone()? }))
}

/// Metadata of everything that is made for a deployment; of a group, if one is given.
fn metadata(wanted: &Validated, name: String, revision: Option<&str>, group: Option<&str>) -> ObjectMeta {
    let mut labels = BTreeMap::from([
        (labels::NAME.to_owned(), labels::NAME_VALUE.to_owned()),
        (labels::MANAGED_BY.to_owned(), labels::OPERATOR.to_owned()),
        (labels::MODEL_DEPLOYMENT.to_owned(), wanted.name.clone()),
    ]);
    if let Some(revision) = revision {
        labels.insert(labels::REVISION.to_owned(), revision.to_owned());
    }
    if let Some(group) = group {
        labels.insert(labels::GROUP.to_owned(), group.to_owned());
    }
    ObjectMeta {
        name: Some(name),
        namespace: Some(wanted.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![wanted.owner.clone()]),
        ..ObjectMeta::default()
    }
}
