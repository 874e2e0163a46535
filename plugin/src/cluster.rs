//! What the API server knows of a ModelDeployment. Objects are read leniently: a field of a newer or older version must
//! not hide the rest.
pub mod facts;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use belay_crds::{ModelDeployment, labels};
use belay_epoch::Operation;
use belay_proto::admin::Placement;
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DynamicObject, ListParams, ObjectList, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::ApiResource,
};
use serde::de::DeserializeOwned;

use crate::{
    answers::{GroupAnswers, WorkerPod},
    cli::Access,
};

/// Key of the placement in force in a group's ConfigMap.
pub const PLACEMENT_KEY: &str = "placement.json";
/// Key of the change under way.
pub const OPERATION_KEY: &str = "operation.json";

/// A namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
}

/// A ModelDeployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// When it was made.
    pub created: Option<jiff::Timestamp>,
    uid: String,
    generation: Option<i64>,
    annotations: BTreeMap<String, String>,
    /// `spec`, `status`.
    data: serde_json::Value,
}

/// What groups were made from at some time.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Its hash.
    pub name: String,
    /// The highest is the newest.
    pub number: i64,
    /// When it was first asked for.
    pub created: String,
    /// Content and image.
    pub data: serde_json::Value,
}

/// A group, as far as the API server knows it.
#[derive(Clone, Debug)]
pub struct Group {
    /// All but what its workers say.
    pub known: GroupAnswers,
    /// Its pods, by worker.
    pub pods: Vec<WorkerPod>,
}

impl Cluster {
    /// The cluster that the flags, or kubectl's configuration, mean. Nothing is asked of it yet.
    ///
    /// # Errors
    /// If there is no usable configuration.
    pub async fn open(access: &Access) -> Result<Self> {
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&access.kubeconfig, &access.context) {
            (Some(file), _) => {
                let what = || format!("kubeconfig {}", file.display());
                let kubeconfig = Kubeconfig::read_from(file).with_context(what)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(what)?
            }
            (None, Some(context)) => {
                Config::from_kubeconfig(&options).await.with_context(|| format!("context {context}"))?
            }
            (None, None) => Config::infer().await.context("no cluster is configured")?,
        };
        let namespace = access.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config).context("client of the API server")?, namespace })
    }

    /// The namespace that is looked at.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The client of its API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Pods of the namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// ModelDeployments of the namespace.
    pub fn deployments(&self) -> Api<DynamicObject> {
        Api::namespaced_with(
            self.client.clone(),
            &self.namespace,
            &ApiResource::erase::<ModelDeployment>(&()),
        )
    }

    /// Reads a ModelDeployment.
    ///
    /// # Errors
    /// If it does not exist, or can't be read.
    pub async fn deployment(&self, name: &str) -> Result<Deployment> {
        let object = self.deployments().get(name).await.with_context(|| self.what(name))?;
        Ok(Deployment::of(object))
    }

    /// The revisions of a deployment, the newest first.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn revisions(&self, deployment: &Deployment) -> Result<Vec<Revision>> {
        let params = ListParams::default().labels(&labels::selector(&deployment.name));
        let api = Api::<ControllerRevision>::namespaced(self.client.clone(), &self.namespace);
        let list = api.list(&params).await;
        let list = list.with_context(|| format!("revisions of {}", self.what(&deployment.name)))?;
        let mut revisions: Vec<Revision> = owned(list, &deployment.uid)
            .into_iter()
            .filter_map(|object| {
                Some(Revision {
                    name: object.labels().get(labels::REVISION)?.clone(),
                    number: object.revision,
                    created: object.creation_timestamp().map_or_else(String::new, |time| time.0.to_string()),
                    data: object.data?.0,
                })
            })
            .collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
        Ok(revisions)
    }

    /// Sets an annotation of a ModelDeployment.
    ///
    /// # Errors
    /// If it does not exist, or may not be changed.
    pub async fn annotate(&self, name: &str, key: &str, value: &str) -> Result<()> {
        self.merge(name, &serde_json::json!({"metadata": {"annotations": {key: value}}})).await
    }

    /// Changes fields of a ModelDeployment.
    ///
    /// # Errors
    /// If it does not exist, or may not be changed so.
    pub async fn merge(&self, name: &str, patch: &serde_json::Value) -> Result<()> {
        self.patch(name, &Patch::Merge(patch)).await
    }

    /// Replaces whole parts of a ModelDeployment, which must be there.
    ///
    /// # Errors
    /// If it does not exist, or may not be changed so.
    pub async fn replace(&self, name: &str, parts: &[(&str, &serde_json::Value)]) -> Result<()> {
        let operation = |(path, value): &(&str, &serde_json::Value)| serde_json::json!({"op": "replace", "path": path, "value": value});
        let operations: serde_json::Value = parts.iter().map(operation).collect();
        let operations = serde_json::from_value(operations).context("a patch")?;
        self.patch(name, &Patch::<serde_json::Value>::Json(operations)).await
    }

    async fn patch<P: serde::Serialize + std::fmt::Debug>(&self, name: &str, patch: &Patch<P>) -> Result<()> {
        let params =
            PatchParams { field_manager: Some("kubectl-belay".to_owned()), ..PatchParams::default() };
        self.deployments().patch(name, &params, patch).await.map(drop).with_context(|| self.what(name))
    }

    /// The groups of a deployment, by name: all, or the one that is asked for.
    ///
    /// # Errors
    /// If pods or ConfigMaps can't be read, or there is no group of that name.
    pub async fn groups(&self, deployment: &Deployment, only: Option<&str>) -> Result<Vec<Group>> {
        let params = ListParams::default().labels(&labels::selector(&deployment.name));
        let (pods, maps) = (self.pods(), Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace));
        let what = |kind: &str| format!("{kind} of {}", self.what(&deployment.name));
        let (pods, maps) = tokio::join!(pods.list(&params), maps.list(&params));
        let pods = owned(pods.with_context(|| what("pods"))?, &deployment.uid);
        let maps = owned(maps.with_context(|| what("ConfigMaps"))?, &deployment.uid);
        let mut groups = assemble(deployment, &pods, &maps);
        if let Some(only) = only {
            let names: Vec<String> = groups.iter().map(|group| group.known.name.clone()).collect();
            groups.retain(|group| group.known.name == only);
            if groups.is_empty() && names.is_empty() {
                bail!("{}: it has no groups", self.what(&deployment.name));
            } else if groups.is_empty() {
                bail!("{}: no group {only}; it has {}", self.what(&deployment.name), names.join(", "));
            }
        }
        Ok(groups)
    }

    /// A pod as it is now; `None` if there is none of the name.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn pod(&self, name: &str) -> Result<Option<WorkerPod>> {
        let pod =
            self.pods().get_opt(name).await.with_context(|| format!("pod {}/{name}", self.namespace))?;
        Ok(pod.as_ref().and_then(worker_pod).map(|(_, pod)| pod))
    }

    fn what(&self, name: &str) -> String {
        format!("modeldeployment {}/{name}", self.namespace)
    }
}

impl Deployment {
    /// From the API object.
    pub fn of(object: DynamicObject) -> Self {
        Self {
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            created: object.creation_timestamp().map(|time| time.0),
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation,
            annotations: object.metadata.annotations.unwrap_or_default(),
            data: object.data,
        }
    }

    /// Tells it from others of its name.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// One of its annotations.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// Which spec this is.
    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// What a path of its spec or status says, as `/spec/replicas`.
    pub fn at(&self, path: &str) -> Option<&serde_json::Value> {
        self.data.pointer(path)
    }

    /// The words at a path; empty if there are none.
    pub fn word(&self, path: &str) -> &str {
        self.at(path).and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    /// The number at a path.
    pub fn number(&self, path: &str) -> Option<i64> {
        self.at(path).and_then(serde_json::Value::as_i64)
    }

    /// The members of a list at a path.
    pub fn list(&self, path: &str) -> impl Iterator<Item = &serde_json::Value> {
        self.at(path).and_then(serde_json::Value::as_array).into_iter().flatten()
    }

    /// Its conditions that tell of trouble, as `Reason: message`.
    pub fn troubles(&self) -> Vec<String> {
        let conditions = self.at("/status/conditions").and_then(|list| list.as_array()).cloned();
        let word = |condition: &serde_json::Value, key: &str| {
            condition.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
        };
        let trouble = |condition: &serde_json::Value| {
            let (kind, status) = (word(condition, "type"), word(condition, "status"));
            let is_trouble = matches!(
                (kind.as_str(), status.as_str()),
                ("Degraded", "True") | ("ExpertsCovered" | "Available", "False")
            );
            is_trouble.then(|| {
                format!("{kind}={status} {}: {}", word(condition, "reason"), word(condition, "message"))
            })
        };
        conditions.iter().flatten().filter_map(trouble).collect()
    }
}

/// Only what this very deployment owns: an earlier one of the same name may still be on its way out.
fn owned<K: kube::Resource + Clone>(list: ObjectList<K>, uid: &str) -> Vec<K> {
    let ours = |object: &K| object.owner_references().iter().any(|owner| owner.uid == uid);
    list.items.into_iter().filter(ours).collect()
}

fn assemble(deployment: &Deployment, pods: &[Pod], maps: &[ConfigMap]) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let blank = |name: &str, labels: &BTreeMap<String, String>| Group {
        known: GroupAnswers {
            name: name.to_owned(),
            revision: labels.get(labels::REVISION).cloned().unwrap_or_default(),
            ..GroupAnswers::default()
        },
        pods: vec![],
    };
    // groups that wait for their first pod
    let listed = deployment.at("/status/groups").and_then(|groups| groups.as_array());
    for status in listed.into_iter().flatten() {
        if let Some(name) = status.get("name").and_then(|name| name.as_str()) {
            let group = groups.entry(name.to_owned()).or_insert_with(|| blank(name, &BTreeMap::new()));
            group.known.revision =
                status.get("revision").and_then(|word| word.as_str()).unwrap_or_default().to_owned();
        }
    }
    for pod in pods {
        if let Some((name, worker)) = worker_pod(pod) {
            groups.entry(name.clone()).or_insert_with(|| blank(&name, pod.labels())).pods.push(worker);
        }
    }
    for map in maps {
        let Some(name) = map.labels().get(labels::GROUP) else { continue };
        if map.name_any() != labels::placement_name(name) {
            continue;
        }
        let group = groups.entry(name.clone()).or_insert_with(|| blank(name, map.labels()));
        let mut notes = vec![];
        group.known.placement = parse::<Placement>(map, PLACEMENT_KEY, &mut notes);
        group.known.operation = parse::<Operation>(map, OPERATION_KEY, &mut notes);
        group.known.notes.extend(notes);
    }
    for group in groups.values_mut() {
        group.pods.sort_by_key(|pod| pod.worker);
    }
    groups.into_values().collect()
}

fn parse<T: DeserializeOwned>(map: &ConfigMap, key: &str, notes: &mut Vec<String>) -> Option<T> {
    let text = map.data.as_ref()?.get(key).filter(|text| !text.is_empty())?;
    // the key may also say that there is none
    match serde_json::from_str::<Option<T>>(text) {
        Ok(value) => value,
        Err(error) => {
            notes.push(format!("ConfigMap {}, key {key}: {error}", map.name_any()));
            None
        }
    }
}

/// The group and the facts of a worker's pod; `None` if its labels do not say that it is one.
fn worker_pod(pod: &Pod) -> Option<(String, WorkerPod)> {
    let group = pod.labels().get(labels::GROUP)?.clone();
    let worker = pod.labels().get(labels::WORKER)?.parse().ok()?;
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let facts = WorkerPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        worker,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        restarts: containers.iter().flat_map(|list| list.iter()).map(|status| status.restart_count).sum(),
    };
    Some((group, facts))
}
