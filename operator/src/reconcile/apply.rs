//! Carries prepared objects and calls out.
//!
//! Order matters where a crash in between must leave a state that the next leader understands: what is about to happen
//! to a group is written on its Service first (its key even before that: a group that exists is never given another one); an
//! intent is in its ConfigMap before a worker hears of it, and pods that it relies on may not be evicted any more by then; a
//! group's Service goes last.
mod pod_groups;

use std::sync::Arc;

use belay_crds::{Reason, labels};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{ConfigMap, Pod, Secret, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;
use tracing::{debug, info, warn};

use super::{
    build::{IntentWrite, NewPod, Prepared},
    observe::{OPERATION_KEY, Observed},
    plan::{Cause, Removal},
};
use crate::{
    cache::{Cache, Cached, Tracked},
    events::Note,
    worker_client::{WorkerClient, WorkerError},
};

/// What came of it: the only thing besides observations that status is made from.
#[derive(Debug, Default)]
pub struct Applied {
    /// Groups that exist from now on.
    pub created_groups: Vec<String>,
    /// Groups that are gone from now on.
    pub cleared_groups: Vec<String>,
    /// Groups that drain from now on.
    pub drained_groups: Vec<String>,
    /// Pods that the API server refused to create, and why.
    pub refused: Vec<(String, String)>,
    /// Groups whose pods nobody would find nodes for, and why: they are not created.
    pub unscheduled: Vec<(String, String)>,
    /// Groups whose intent was written.
    pub intents: Vec<String>,
    /// Workers that refused their placement, and why.
    pub push_failures: Vec<(String, String)>,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// Whether anything was changed.
    pub changed: bool,
}

/// A call to the API server that failed.
#[derive(Debug, Error)]
#[error("{verb} {object}")]
pub struct ApplyError {
    verb: &'static str,
    object: String,
    /// Why.
    #[source]
    pub source: kube::Error,
}

trait OrContext<T> {
    fn or_context(self, verb: &'static str, object: &str) -> Result<T, ApplyError>;
}

impl<T> OrContext<T> for Result<T, kube::Error> {
    fn or_context(self, verb: &'static str, object: &str) -> Result<T, ApplyError> {
        self.map_err(|source| ApplyError { verb, object: object.to_owned(), source })
    }
}

/// Carries everything out.
///
/// # Errors
/// When the API server fails or refuses something that it should not refuse.
pub async fn apply(
    client: &Client,
    cache: &Cache,
    workers: &WorkerClient,
    namespace: &str,
    observed: &Observed,
    prepared: Prepared,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    let objects = &observed.objects;
    let uid = prepared.owner_uid.clone();
    let revisions = cache.tracked::<ControllerRevision>(client, namespace, &uid);
    let services = cache.tracked::<Service>(client, namespace, &uid);
    let config_maps = cache.tracked::<ConfigMap>(client, namespace, &uid);
    let budgets = cache.tracked::<PodDisruptionBudget>(client, namespace, &uid);
    let pods = cache.tracked::<Pod>(client, namespace, &uid);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);

    // nothing that follows may rely on a pod that may be evicted
    try_join_all(prepared.hold.iter().map(|(name, uid)| set_may_leave(&pods, name, uid, false))).await?;
    if let Some(revision) = &prepared.revision
        && upsert(&revisions, &objects.revisions, revision).await?
    {
        applied.changed = true;
        let name = revision.name_any();
        // how far its rollout is, is written on it as well
        let is_in_force =
            |known: &Arc<ControllerRevision>| known.name_any() == name && known.revision == revision.revision;
        if objects.revisions.iter().any(is_in_force) {
            debug!(revision = name, "rollout goes on");
        } else {
            applied.notes.push(Note::normal(
                Reason::RevisionCreated,
                "Record",
                &name,
                format!("revision {name} is in force"),
            ));
        }
    }
    for key in &prepared.keys {
        create_key(&secrets, key).await?;
    }
    for service in &prepared.services {
        applied.changed |= upsert(&services, &objects.services, service).await?;
    }
    note_groups(&mut applied, &prepared);

    let removals = prepared.removals.iter().map(|(_, removal)| remove_pod(&pods, removal));
    applied.changed |= !try_join_all(removals).await?.is_empty();
    note_removals(&mut applied, &prepared.removals);

    applied.unscheduled = pod_groups::write(client, namespace, &prepared.pod_groups).await?;
    let has_scheduler = |new: &&NewPod| {
        let group = new.pod.labels().get(labels::GROUP);
        !applied.unscheduled.iter().any(|(name, _)| Some(name) == group)
    };
    let new_pods: Vec<&NewPod> = prepared.pods.iter().filter(has_scheduler).collect();
    for (name, result) in join_all(new_pods.iter().map(|new| create_pod(&pods, new))).await {
        settle_created(&mut applied, &prepared.pods, name, result)?;
    }

    try_join_all(prepared.marks.iter().map(|(name, uid)| mark_draining(&pods, name, uid))).await?;
    applied.changed |= !prepared.marks.is_empty();
    for (call, answer) in
        join_all(prepared.tells.iter().map(async |call| (call, workers.set_drain(&call.ip).await))).await
    {
        if let Err(error) = answer {
            warn!(pod = call.pod, %error, "worker was not told that it drains; it is asked again");
        }
    }

    for write in &prepared.intents {
        write_intent(&config_maps, write).await?;
        applied.intents.push(write.group.clone());
        applied.changed = true;
    }
    let pushes = prepared
        .pushes
        .iter()
        .map(async |(call, request)| (call, workers.set_placement(&call.ip, request.clone()).await));
    for (call, answer) in join_all(pushes).await {
        match answer {
            Ok(()) => debug!(pod = call.pod, "placement pushed"),
            Err(WorkerError::Refused { message, .. }) => {
                applied.push_failures.push((call.pod.clone(), message))
            }
            Err(error) => debug!(pod = call.pod, %error, "placement not pushed; it is tried again"),
        }
        applied.changed = true;
    }

    applied.changed |= settle_budget(&budgets, &objects.budgets, prepared.budget.as_ref()).await?;
    try_join_all(prepared.release.iter().map(|(name, uid)| set_may_leave(&pods, name, uid, true))).await?;

    for pod_group in &prepared.cleared_pod_groups {
        pod_groups::delete(client, namespace, pod_group).await?;
    }
    for group in prepared.cleared_groups {
        delete(&config_maps, &labels::placement_name(&group)).await?;
        delete_key(&secrets, &labels::fabric_key_name(&group, &prepared.owner_uid)).await?;
        delete(&services, &group).await?;
        applied.notes.push(Note::normal(
            Reason::GroupRemoved,
            "Remove",
            &group,
            format!("group {group} is removed"),
        ));
        applied.cleared_groups.push(group);
        applied.changed = true;
    }
    for name in &prepared.stray_config_maps {
        delete(&config_maps, name).await?;
    }
    for revision in &prepared.forget {
        let stale =
            objects.revisions.iter().find(|object| object.labels().get(labels::REVISION) == Some(revision));
        if let Some(object) = stale {
            delete(&revisions, &object.name_any()).await?;
        }
    }
    applied.created_groups = prepared.created_groups;
    applied.drained_groups = prepared.drained_groups;
    Ok(applied)
}

fn note_groups(applied: &mut Applied, prepared: &Prepared) {
    let changes = [
        (&prepared.created_groups, Reason::GroupCreated, "Create", "is created"),
        (&prepared.ready_groups, Reason::GroupReady, "Start", "takes requests"),
        (&prepared.drained_groups, Reason::Draining, "Drain", "finishes its requests and will be removed"),
    ];
    for (groups, reason, action, what) in changes {
        for group in groups {
            applied.notes.push(Note::normal(reason, action, group, format!("group {group} {what}")));
        }
    }
}

fn note_removals(applied: &mut Applied, removals: &[(String, Removal)]) {
    for (group, removal) in removals {
        let pod = &removal.pod;
        match &removal.cause {
            Cause::NodeLost(node) => applied.notes.push(Note::warning(
                Reason::NodeLost,
                "Replace",
                pod,
                format!("node {node} does not respond: pod {pod} is given up and will run elsewhere"),
            )),
            Cause::Ended(why) => applied.notes.push(Note::warning(
                Reason::PodReplaced,
                "Replace",
                pod,
                format!("pod {pod} has ended ({why}) and is replaced"),
            )),
            Cause::DeviceFault(why) => applied.notes.push(Note::warning(
                Reason::DeviceFault,
                "Replace",
                pod,
                format!("pod {pod} is removed and will run elsewhere: {why}"),
            )),
            Cause::DrainTimeOver => applied.notes.push(Note::warning(
                Reason::Draining,
                "Drain",
                pod,
                format!(
                    "the drain time of group {group} is over: pod {pod} is removed with requests under way"
                ),
            )),
            Cause::Drained => {}
        }
        info!(pod, cause = ?removal.cause, "pod removed");
    }
}

fn settle_created(
    applied: &mut Applied,
    pods: &[NewPod],
    name: String,
    result: Result<(), kube::Error>,
) -> Result<(), ApplyError> {
    match result {
        Ok(()) => {
            applied.changed = true;
            if pods.iter().any(|new| new.replaces && new.pod.metadata.name.as_ref() == Some(&name)) {
                let text = format!("pod {name} was gone and is created again");
                applied.notes.push(Note::normal(Reason::PodReplaced, "Replace", &name, text));
            }
            Ok(())
        }
        // a pod of an earlier deployment of this name, or of another life of the slot, is on its way out
        Err(kube::Error::Api(status)) if status.code == 409 => {
            applied.changed = true;
            Ok(())
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            applied.refused.push((name, status.message.clone()));
            Ok(())
        }
        Err(source) => Err(ApplyError { verb: "create pod", object: name, source }),
    }
}

/// A pod is created, never patched: its spec cannot change, and what changes means a new life of the slot.
async fn create_pod(api: &Tracked<'_, Pod>, new: &NewPod) -> (String, Result<(), kube::Error>) {
    let params = PostParams { field_manager: Some(labels::OPERATOR.to_owned()), ..PostParams::default() };
    let created = match &new.scheduling_group {
        None => api.create(&params, &new.pod).await,
        Some(group) => {
            // a field of newer versions of Kubernetes than the type
            let mut object = serde_json::to_value(&new.pod).unwrap_or(Value::Null);
            if let Some(Value::Object(spec)) = object.get_mut("spec") {
                spec.insert("schedulingGroup".to_owned(), json!({ "podGroupName": group }));
            }
            api.create_value(&params, &object).await
        }
    };
    (new.pod.name_any(), created.map(drop))
}

async fn remove_pod(api: &Tracked<'_, Pod>, removal: &Removal) -> Result<(), ApplyError> {
    let params = DeleteParams {
        grace_period_seconds: removal.grace_seconds,
        preconditions: Some(Preconditions { uid: Some(removal.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&removal.pod, &params).await {
        // gone already, or another life of the slot
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop).or_context("delete pod", &removal.pod),
    }
}

/// Sets nothing but the annotation; the UID keeps it from touching another life of the slot.
async fn mark_draining(api: &Tracked<'_, Pod>, name: &str, uid: &str) -> Result<(), ApplyError> {
    let mark = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            annotations: Some([(labels::DRAINING.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    };
    match api.patch(name, &PatchParams::apply(labels::OPERATOR).force(), &Patch::Apply(&mark)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop).or_context("mark pod", name),
    }
}

/// Says whether a pod may be evicted. A field manager of its own, so that nothing else that is applied to pods matters.
async fn set_may_leave(api: &Tracked<'_, Pod>, name: &str, uid: &str, may: bool) -> Result<(), ApplyError> {
    let label = may.then(|| [(labels::MAY_LEAVE.to_owned(), "true".to_owned())].into());
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        labels: label,
        ..ObjectMeta::default()
    };
    let pod = Pod { metadata, ..Pod::default() };
    match api.patch(name, &PatchParams::apply(labels::LEAVE_MANAGER).force(), &Patch::Apply(&pod)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop).or_context("label pod", name),
    }
}

/// The key of a group is there already if an earlier attempt to make the group got no further.
async fn create_key(api: &Api<Secret>, key: &Secret) -> Result<(), ApplyError> {
    let params = PostParams { field_manager: Some(labels::OPERATOR.to_owned()), ..PostParams::default() };
    match api.create(&params, key).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop).or_context("create secret", &key.name_any()),
    }
}

/// Writes an intent over the one that it was made from; somebody else's write in between is a conflict. Merged, not applied:
/// what is not intended any more must go, whoever wrote it.
async fn write_intent(api: &Tracked<'_, ConfigMap>, write: &IntentWrite) -> Result<(), ApplyError> {
    let name = write.config_map.name_any();
    let field_manager = Some(labels::OPERATOR.to_owned());
    let written = if write.is_new {
        api.create(&PostParams { field_manager, ..PostParams::default() }, &write.config_map).await
    } else {
        let mut body = serde_json::to_value(&write.config_map).unwrap_or(Value::Null);
        for (part, key) in [("/data", OPERATION_KEY), ("/metadata/annotations", labels::REBALANCES)] {
            if let Some(Value::Object(part)) = body.pointer_mut(part) {
                part.entry(key).or_insert(Value::Null);
            }
        }
        let params = PatchParams { field_manager, ..PatchParams::default() };
        api.patch(&name, &params, &Patch::Merge(&body)).await
    };
    written.map(drop).or_context("write intent", &name)
}

async fn settle_budget(
    api: &Tracked<'_, PodDisruptionBudget>,
    present: &[Arc<PodDisruptionBudget>],
    wanted: Option<&PodDisruptionBudget>,
) -> Result<bool, ApplyError> {
    let mut changed = false;
    if let Some(wanted) = wanted {
        changed |= upsert(api, present, wanted).await?;
    }
    for stale in
        present.iter().filter(|object| wanted.is_none_or(|wanted| wanted.name_any() != object.name_any()))
    {
        delete(api, &stale.name_any()).await?;
        changed = true;
    }
    Ok(changed)
}

/// Server-side apply, unless the object is there and says all this already. True if it was written.
async fn upsert<K>(api: &Tracked<'_, K>, present: &[Arc<K>], wanted: &K) -> Result<bool, ApplyError>
where
    K: Cached + Serialize,
{
    let name = wanted.name_any();
    let json = |object: &K| serde_json::to_value(object).unwrap_or(Value::Null);
    let wish = json(wanted);
    if present.iter().any(|object| object.name_any() == name && covers(&json(object), &wish)) {
        return Ok(false);
    }
    let params = PatchParams::apply(labels::OPERATOR).force();
    api.patch(&name, &params, &Patch::Apply(wanted))
        .await
        .or_context("apply", &format!("{} {name}", K::kind(&())))?;
    Ok(true)
}

/// Whether everything that `wanted` says is in `present`. What the API server adds does not count as a difference.
fn covers(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| present.get(key).is_some_and(|present| covers(present, wanted)))
        }
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len()
                && present.iter().zip(wanted).all(|(present, wanted)| covers(present, wanted))
        }
        _ => present == wanted,
    }
}

async fn delete<K: Cached>(api: &Tracked<'_, K>, name: &str) -> Result<(), ApplyError> {
    match api.delete(name, &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).or_context("delete", &format!("{} {name}", K::kind(&()))),
    }
}

async fn delete_key(api: &Api<Secret>, name: &str) -> Result<(), ApplyError> {
    match api.delete(name, &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).or_context("delete", &format!("secret {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let present = json!({ "a": { "b": 1, "added": 2 }, "list": [{ "x": 1, "default": true }] });
        assert!(covers(&present, &json!({ "a": { "b": 1 }, "list": [{ "x": 1 }] })));
        assert!(!covers(&present, &json!({ "a": { "b": 2 } })));
        assert!(!covers(&present, &json!({ "list": [] })));
        assert!(!covers(&present, &json!({ "c": null })));
    }
}
