//! Decisions become objects: pure, no client.
mod budget;
mod pod;
mod revision;
mod service;

use std::collections::BTreeMap;

use belay_crds::labels;
use belay_proto::admin::Placement;
use k8s_openapi::{
    api::{
        apps::v1::ControllerRevision,
        core::v1::{ConfigMap, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use thiserror::Error;

use super::{
    observe::{Observed, PLACEMENT_KEY},
    plan::{Intent, Plan, Removal},
    validate::Validated,
};
use crate::{group::Group, revision::Record};

pub use self::pod::pod;

/// Objects and calls, ready to be carried out in the order of the fields.
#[derive(Default)]
pub struct Prepared {
    /// The revision, if it must be recorded.
    pub revision: Option<ControllerRevision>,
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
    /// Pods to create.
    pub pods: Vec<NewPod>,
    /// Pods to mark as draining: name and UID.
    pub marks: Vec<(String, String)>,
    /// Workers to tell that they drain.
    pub tells: Vec<Call>,
    /// Placements.
    pub placements: Vec<ConfigMap>,
    /// Workers to tell their placement.
    pub pushes: Vec<(Call, Placement)>,
    /// The disruption budget; `None`: there must be none.
    pub budget: Option<PodDisruptionBudget>,
    /// Groups whose objects go.
    pub cleared_groups: Vec<String>,
    /// ConfigMaps that belong to no group.
    pub stray_config_maps: Vec<String>,
    /// Revisions to forget.
    pub forget: Vec<String>,
}

/// A pod to create.
pub struct NewPod {
    /// The object.
    pub pod: Box<Pod>,
    /// Whether the slot had a pod before.
    pub replaces: bool,
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
    let mut prepared = Prepared { forget: plan.forget.clone(), ..Prepared::default() };
    if plan.record_target {
        prepared.revision = Some(revision::revision(wanted, &plan.target)?);
    }
    for name in plan.created_groups(&wanted.name) {
        let group = Group { name: name.clone(), revision: plan.target.revision.clone(), ..Group::default() };
        prepared.services.push(service::service(wanted, &group, None, None));
        let workers = u32::try_from(plan.target.data.content.group.workers).unwrap_or(0);
        for worker in 0..workers {
            let pod = Box::new(pod(wanted, &plan.target, &name, worker));
            prepared.pods.push(NewPod { pod, replaces: false });
        }
        prepared.created_groups.push(name);
    }
    for group_plan in &plan.groups {
        if let Some(group) = observed.groups.iter().find(|group| group.name == group_plan.name) {
            let record = [&plan.target]
                .into_iter()
                .chain(&observed.revisions)
                .find(|record| record.revision == group.revision);
            let removals = group_plan.remove.iter().cloned().map(|removal| (group.name.clone(), removal));
            prepared.removals.extend(removals);
            intent(&mut prepared, wanted, group, record, &group_plan.intent)?;
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

fn intent(
    prepared: &mut Prepared,
    wanted: &Validated,
    group: &Group,
    record: Option<&Record>,
    intent: &Intent,
) -> Result<(), BuildError> {
    match intent {
        Intent::Run { create, placement, push, first_ready } => {
            prepared.services.push(service::service(wanted, group, None, group.first_ready.or(*first_ready)));
            if first_ready.is_some() {
                prepared.ready_groups.push(group.name.clone());
            }
            if let Some(record) = record {
                for &worker in create {
                    let pod = Box::new(pod(wanted, record, &group.name, worker));
                    prepared.pods.push(NewPod { pod, replaces: group.placement.is_some() });
                }
            }
            if let Some(placement) = placement {
                prepared.placements.push(placement_config_map(wanted, group, placement)?);
                prepared.pushes.extend(calls(group, push).map(|call| (call, placement.clone())));
            }
        }
        Intent::Drain { since, mark, tell } => {
            prepared.services.push(service::service(wanted, group, Some(*since), group.first_ready));
            if group.draining_since.is_none() {
                prepared.drained_groups.push(group.name.clone());
            }
            let marked = group.pods().filter(|(index, _)| mark.contains(index));
            prepared.marks.extend(marked.map(|(_, pod)| (pod.name.clone(), pod.uid.clone())));
            prepared.tells.extend(calls(group, tell));
        }
        Intent::Clear => prepared.cleared_groups.push(group.name.clone()),
    }
    Ok(())
}

fn calls<'a>(group: &'a Group, workers: &'a [u32]) -> impl Iterator<Item = Call> + 'a {
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

fn placement_config_map(
    wanted: &Validated,
    group: &Group,
    placement: &Placement,
) -> Result<ConfigMap, BuildError> {
    let text = serde_json::to_string(placement)
        .map_err(|source| BuildError::Json { what: format!("placement of {}", group.name), source })?;
    let name = labels::placement_name(&group.name);
    Ok(ConfigMap {
        metadata: metadata(wanted, name, Some(&group.revision), Some(&group.name)),
        data: Some(BTreeMap::from([(PLACEMENT_KEY.to_owned(), text)])),
        ..ConfigMap::default()
    })
}

/// RFC 3339 in whole seconds: what annotations carry.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
