//! Asks the cluster what the judgement needs. Nothing is changed: what is asked for goes through admission as a dry run.
use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, bail};
use belay_crds::ModelDeployment;
use belay_operator::{
    nodes::{NodeState, Nodes},
    reconcile::{
        observe::{self, Answers, Objects},
        validate::validate,
    },
    revision::{self, Record},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::{
    Error, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::Value;

use super::{
    course::DEFAULT_IMAGE,
    documents::{LAST_APPLIED, clean, merge_patch},
    judge::Facts,
    report::Refusal,
    room::Room,
};
use crate::{
    cluster::{Cluster, facts::Holdings},
    error::describe,
    status::look::Look,
};

/// How long a node may be silent before its pods are given up: the operator's default.
const NODE_LOST_SECONDS: i64 = 10;

/// Field manager of a dry run: that of `kubectl apply --server-side`.
const MANAGER: &str = "kubectl";

/// What admission said.
pub enum Admission {
    /// What would be stored.
    Taken(Box<DynamicObject>),
    /// What it does not take.
    Refused(Vec<Refusal>),
}

/// All nodes and pods of the cluster, or why they are not known.
pub type Inventory = Result<(Vec<Node>, Vec<Pod>), String>;

/// Has the API server look at a document as if it were applied.
///
/// # Errors
/// If the API server can't be asked, or not by this user.
pub async fn admit(
    cluster: &Cluster,
    document: &Value,
    present: Option<&DynamicObject>,
) -> Result<Admission> {
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    let wanted = clean(document.clone(), cluster.namespace());
    let last = present.and_then(|present| present.annotations().get(LAST_APPLIED));
    let last: Option<Value> = last.and_then(|text| serde_json::from_str(text).ok());
    let params = PatchParams::apply(MANAGER).dry_run().validation_strict();
    let api = cluster.deployments();
    let answer = match last {
        // as `kubectl apply` will do it
        Some(last) => {
            let patch = merge_patch(&clean(last, cluster.namespace()), &wanted);
            api.patch(name, &params, &Patch::Merge(patch)).await
        }
        None => api.patch(name, &params.force(), &Patch::Apply(wanted)).await,
    };
    match answer {
        Ok(object) => Ok(Admission::Taken(Box::new(object))),
        Err(Error::Api(status)) if is_refusal(&status) => Ok(Admission::Refused(refusals(&status))),
        Err(error) => Err(error).with_context(|| format!("modeldeployment {}/{name}", cluster.namespace())),
    }
}

/// Whether the answer is about the object; else it is about who asks, or about the server. A field that the schema does not
/// have is told as a failure of the server.
fn is_refusal(status: &kube::core::Status) -> bool {
    if status.message.contains("field not declared in schema") {
        return true;
    }
    let about_the_user = status.code == 403 && status.message.contains("cannot ");
    matches!(status.code, 400 | 403 | 409 | 413 | 422) && !about_the_user
}

/// Each cause by its field; the message as it is where there are none.
fn refusals(status: &kube::core::Status) -> Vec<Refusal> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let told: Vec<Refusal> =
        causes.map(|cause| Refusal { field: cause.field.clone(), message: cause.message.clone() }).collect();
    match told.is_empty() {
        true => vec![Refusal { field: String::new(), message: status.message.clone() }],
        false => told,
    }
}

/// The whole cluster, once for all documents.
pub async fn inventory(cluster: &Cluster) -> Inventory {
    cluster.inventory().await.map_err(|error| describe(error.as_ref()))
}

/// Everything about one deployment. `wanted`: what would be stored, `present`: what is.
///
/// # Errors
/// If the API server does not tell, or the object is none that this program knows.
pub async fn facts(
    cluster: &Cluster,
    wanted: DynamicObject,
    present: Option<DynamicObject>,
    inventory: &Inventory,
) -> Result<Facts> {
    let name = wanted.name_any();
    let wanted_spec = wanted.data["spec"].clone();
    let present_spec = present.as_ref().map(|present| present.data["spec"].clone());
    let mut wanted = typed(wanted)?;
    // what is new has none before it is stored
    wanted.metadata.uid.get_or_insert_with(|| "of-a-dry-run".to_owned());
    let now = Timestamp::now();
    let (holdings, events) = match &present {
        Some(present) => {
            let deployment = crate::cluster::Deployment::of(present.clone());
            let (holdings, events) = tokio::join!(cluster.holdings(&deployment), cluster.events(&deployment));
            (holdings?, events)
        }
        None => (Holdings::default(), vec![]),
    };
    let Holdings { pods, services, config_maps, revisions: kept } = holdings;
    let revisions: Vec<Record> = kept.iter().filter_map(observe::record).collect();
    let look = Look::new(cluster.clone());
    let workers = look.ask(&pods).await;
    let mut warnings: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for event in &events {
        let uid = event.involved_object.uid.clone().unwrap_or_default();
        warnings.entry(uid).or_default().push(event.clone());
    }
    let rooms = match inventory {
        Ok((nodes, all)) => Ok(nodes
            .iter()
            .map(|node| Room::of(node, all).with_context(|| format!("node {}", node.name_any())))
            .collect::<Result<Vec<Room>>>()?),
        Err(why) => Err(why.clone()),
    };
    let known: Vec<Node> = inventory.as_ref().map(|(nodes, _)| nodes.clone()).unwrap_or_default();
    let nodes = KnownNodes::new(&known, inventory.is_ok());
    let objects = Objects {
        pods: shared(pods.clone()),
        services: shared(services.clone()),
        config_maps: shared(config_maps),
        ..Objects::default()
    };
    let answers = Answers { events: warnings, workers };
    let groups = observe::assemble(&name, &objects, &revisions, &answers, &nodes, NODE_LOST_SECONDS, now);
    let present = present.map(typed).transpose()?;
    let present_revision = present.and_then(|present| {
        let content = validate(&present).ok()?.content;
        revision::choose(&content, &revisions, Some(DEFAULT_IMAGE)).ok().map(|record| record.revision)
    });
    Ok(Facts {
        wanted,
        wanted_spec,
        present_spec,
        present_revision,
        groups,
        pods,
        services,
        revisions,
        past: past(&events),
        rooms,
        now,
    })
}

/// As the operator keeps what its watches tell.
fn shared<T>(objects: Vec<T>) -> Vec<Arc<T>> {
    objects.into_iter().map(Arc::new).collect()
}

fn typed(object: DynamicObject) -> Result<ModelDeployment> {
    let name = object.name_any();
    let value = serde_json::to_value(object)?;
    match serde_json::from_value::<ModelDeployment>(value) {
        Ok(deployment) => Ok(deployment),
        Err(error) => bail!("modeldeployment {name} is of a kind that this program does not know: {error}"),
    }
}

/// When groups were created and ready first, by events that are still there.
fn past(events: &[Event]) -> BTreeMap<String, (Timestamp, Timestamp)> {
    let times = |reason: &str| -> BTreeMap<String, Timestamp> {
        let of_reason = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        let time = |event: &Event| {
            let first = event.first_timestamp.as_ref().map(|time| time.0);
            Some((
                event.related.as_ref()?.name.clone()?,
                first.or(event.event_time.as_ref().map(|time| time.0))?,
            ))
        };
        of_reason.filter_map(time).collect()
    };
    let (created, ready) = (times("GroupCreated"), times("GroupReady"));
    created
        .into_iter()
        .filter_map(|(group, created)| ready.get(&group).map(|ready| (group, (created, *ready))))
        .collect()
}

/// Nodes for the operator's eyes.
struct KnownNodes {
    states: BTreeMap<String, NodeState>,
    /// Whether a node that is not listed is gone; else nothing is known of any.
    complete: bool,
}

impl KnownNodes {
    fn new(nodes: &[Node], complete: bool) -> Self {
        let states = nodes.iter().map(|node| (node.name_any(), NodeState::of(node))).collect();
        Self { states, complete }
    }
}

impl Nodes for KnownNodes {
    fn state(&self, name: &str) -> Option<NodeState> {
        let well =
            NodeState { ready: true, since: Timestamp::UNIX_EPOCH, unschedulable: false, domain: None };
        match self.complete {
            true => self.states.get(name).cloned(),
            false => Some(well),
        }
    }
}
