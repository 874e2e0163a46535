//! Kubernetes objects become the routing table. Pure.
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use belay_crds::labels;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::DynamicObject};

use super::{Loading, Model, Role, Share, Table, Worker};

const GRPC_PORT_NAME: &str = "grpc";
const GRPC_PORT: i32 = 50051;

/// What matters of a ModelDeployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    created: i64,
    namespace: String,
    name: String,
    model: String,
    shares: Vec<Share>,
    loading: Vec<Loading>,
}

impl Deployment {
    /// Reads an object; `None` if it has no name.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let name = object.metadata.name.clone()?;
        let model = object.data.pointer("/spec/model/name").and_then(|value| value.as_str());
        Some(Self {
            created: object.creation_timestamp().map(|time| time.0.as_second()).unwrap_or_default(),
            namespace: object.namespace().unwrap_or_default(),
            model: model.map_or_else(|| name.clone(), str::to_owned),
            shares: shares(object),
            loading: loading(object),
            name,
        })
    }

    /// Who has the better claim to a model name comes first: the older one.
    fn claim(&self) -> (i64, &str, &str) {
        (self.created, &self.namespace, &self.name)
    }
}

/// `status.traffic`; entries that cannot be read are left out.
fn shares(object: &DynamicObject) -> Vec<Share> {
    let Some(traffic) = object.data.pointer("/status/traffic").and_then(|value| value.as_array()) else {
        return Vec::new();
    };
    let read = |entry: &serde_json::Value| {
        let share = share(entry);
        if share.is_none() {
            let deployment = object.name_any();
            tracing::warn!(deployment, %entry, "an entry of status.traffic cannot be read and does not count");
        }
        share
    };
    traffic.iter().filter_map(read).collect()
}

/// `status.groups[].loading`, of groups that will serve.
fn loading(object: &DynamicObject) -> Vec<Loading> {
    let groups = object.data.pointer("/status/groups").and_then(|value| value.as_array());
    let read = |group: &serde_json::Value| {
        let bytes = |name: &str| group.pointer("/loading")?.get(name)?.as_u64();
        if group.get("draining").and_then(serde_json::Value::as_bool) == Some(true) {
            return None;
        }
        Some(Loading {
            group: group.get("name")?.as_str()?.to_owned(),
            bytes_done: bytes("bytesDone")?,
            bytes_total: bytes("bytesTotal")?,
        })
    };
    groups.into_iter().flatten().filter_map(read).collect()
}

fn share(entry: &serde_json::Value) -> Option<Share> {
    let weight = entry.get("weightPercent")?.as_u64()?;
    let role = match entry.get("role")?.as_str()? {
        "Stable" => Role::Stable,
        "Canary" => Role::Canary,
        "Preview" => Role::Preview,
        _ => return None,
    };
    Some(Share {
        revision: entry.get("revision")?.as_str()?.to_owned(),
        weight_percent: u32::try_from(weight).ok().filter(|weight| *weight <= 100)?,
        role,
    })
}

/// The table of these objects.
///
/// A pod serves the model of its annotation, which can differ from the deployment's current one while a rollout
/// renames it. Two deployments that claim one model name: the older one has it, the other's pods get no requests.
pub fn table(deployments: &[Deployment], pods: &[Arc<Pod>]) -> Table {
    let mut by_claim: Vec<&Deployment> = deployments.iter().collect();
    by_claim.sort_by_key(|deployment| deployment.claim());
    let mut table = Table::default();
    let mut owners: BTreeMap<String, &Deployment> = BTreeMap::new();
    for deployment in &by_claim {
        let owner = *owners.entry(deployment.model.clone()).or_insert(deployment);
        belong(table.models.entry(deployment.model.clone()).or_default(), owner);
    }
    let by_name: HashMap<(&str, &str), &Deployment> =
        by_claim.iter().map(|d| ((d.namespace.as_str(), d.name.as_str()), *d)).collect();
    for pod in pods {
        let name = pod.labels().get(labels::MODEL_DEPLOYMENT).map(String::as_str).unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(deployment) = by_name.get(&(namespace, name)) else { continue };
        if has_ended(pod) {
            continue;
        }
        let model = pod.annotations().get(labels::MODEL).unwrap_or(&deployment.model);
        let owner = *owners.entry(model.clone()).or_insert(deployment);
        if owner != *deployment {
            continue;
        }
        let entry = table.models.entry(model.clone()).or_default();
        belong(entry, owner);
        entry.known += 1;
        entry.ready.extend(worker(pod));
    }
    for model in table.models.values_mut() {
        model.ready.sort_by(|a, b| a.id.cmp(&b.id));
    }
    table
}

fn belong(model: &mut Model, owner: &Deployment) {
    model.created = owner.created;
    model.namespace.clone_from(&owner.namespace);
    model.deployment.clone_from(&owner.name);
    model.shares.clone_from(&owner.shares);
    model.loading.clone_from(&owner.loading);
}

/// The worker in a pod, if it takes new requests: ready, not being deleted, not marked as draining.
fn worker(pod: &Pod) -> Option<Worker> {
    let is_draining = pod.annotations().get(labels::DRAINING).is_some_and(|value| value == "true");
    if pod.metadata.deletion_timestamp.is_some() || is_draining || !is_ready(pod) {
        return None;
    }
    let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
    let port = u16::try_from(grpc_port(pod)).ok()?;
    Some(Worker {
        id: pod.uid().unwrap_or_default(),
        name: pod.name_any(),
        address: std::net::SocketAddr::new(ip, port).to_string(),
        revision: pod.labels().get(labels::REVISION).cloned().unwrap_or_default(),
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn grpc_port(pod: &Pod) -> i32 {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.name.as_deref() == Some(GRPC_PORT_NAME))
        .map(|port| port.container_port)
        .next()
        .unwrap_or(GRPC_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(name: &str, model: Option<&str>, created: &str) -> Deployment {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "serving.belay.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": "prod", "creationTimestamp": created},
            "spec": {"model": model.map_or(json!({}), |name| json!({"name": name}))},
        }))
        .unwrap();
        Deployment::of(&object).unwrap()
    }

    /// A ready pod of deployment `flash`, changed by `with` (a JSON merge patch in spirit: objects are merged).
    fn pod(name: &str, with: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {
                "name": name, "namespace": "prod", "uid": format!("uid-{name}"),
                "labels": {
                    "app.kubernetes.io/name": "belay-worker",
                    "serving.belay.dev/model-deployment": "flash",
                    "serving.belay.dev/revision": "0123abcd",
                },
                "annotations": {"serving.belay.dev/model": "v4-flash"},
            },
            "spec": {"containers": [{"name": "worker", "ports": [
                {"name": "admin", "containerPort": 50052}, {"name": "grpc", "containerPort": 50061},
            ]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        merge(&mut pod, with);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn merge(into: &mut Value, with: Value) {
        match (into, with) {
            (Value::Object(into), Value::Object(with)) => {
                for (key, value) in with {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, with) => *into = with,
        }
    }

    fn flash() -> Vec<Deployment> {
        vec![deployment("flash", Some("v4-flash"), "2026-11-01T00:00:00Z")]
    }

    fn counts(table: &Table, model: &str) -> (usize, usize) {
        (table.models[model].known, table.models[model].ready.len())
    }

    #[test]
    fn a_ready_pod_becomes_a_worker_of_its_model() {
        let table = table(&flash(), &[pod("p0", json!({}))]);
        let expected = Worker {
            id: "uid-p0".into(),
            name: "p0".into(),
            address: "10.0.0.7:50061".into(),
            revision: "0123abcd".into(),
        };
        assert_eq!(table.models["v4-flash"].ready, [expected]);
        assert_eq!(table.models["v4-flash"].created, 1_793_491_200);
    }

    #[test]
    fn the_model_is_named_after_the_deployment_by_default() {
        let table = table(&[deployment("flash", None, "2026-11-01T00:00:00Z")], &[]);
        assert_eq!(table.models.keys().collect::<Vec<_>>(), ["flash"]);
    }

    #[test]
    fn a_model_without_ready_workers_is_known() {
        assert_eq!(counts(&table(&flash(), &[]), "v4-flash"), (0, 0));
    }

    #[test]
    fn pods_that_take_no_requests_are_known_but_not_ready() {
        for (what, with) in [
            ("not ready", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})),
            ("no conditions", json!({"status": {"conditions": null}})),
            ("being deleted", json!({"metadata": {"deletionTimestamp": "2026-11-01T00:00:00Z"}})),
            ("draining", json!({"metadata": {"annotations": {"serving.belay.dev/draining": "true"}}})),
            ("no address", json!({"status": {"podIP": null}})),
            ("odd address", json!({"status": {"podIP": "nowhere"}})),
        ] {
            assert_eq!(counts(&table(&flash(), &[pod("p0", with)]), "v4-flash"), (1, 0), "{what}");
        }
    }

    #[test]
    fn pods_that_ended_or_belong_to_nobody_are_not_known() {
        for (what, with) in [
            ("ended", json!({"status": {"phase": "Failed"}})),
            (
                "other deployment",
                json!({"metadata": {"labels": {"serving.belay.dev/model-deployment": "gone"}}}),
            ),
            ("same name elsewhere", json!({"metadata": {"namespace": "other"}})),
        ] {
            assert_eq!(counts(&table(&flash(), &[pod("p0", with)]), "v4-flash"), (0, 0), "{what}");
        }
    }

    #[test]
    fn draining_says_true_or_it_does_not_count() {
        let with = json!({"metadata": {"annotations": {"serving.belay.dev/draining": "false"}}});
        assert_eq!(counts(&table(&flash(), &[pod("p0", with)]), "v4-flash"), (1, 1));
    }

    #[test]
    fn ipv6_addresses_and_the_default_port() {
        let with = json!({"status": {"podIP": "fd00::7"}, "spec": {"containers": [{"name": "worker"}]}});
        assert_eq!(
            table(&flash(), &[pod("p0", with)]).models["v4-flash"].ready[0].address,
            "[fd00::7]:50051"
        );
    }

    #[test]
    fn a_renamed_model_is_served_under_both_names_while_pods_of_both_run() {
        let renamed = [deployment("flash", Some("v4-flash-new"), "2026-11-01T00:00:00Z")];
        let new = json!({"metadata": {"annotations": {"serving.belay.dev/model": "v4-flash-new"}}});
        let table = table(&renamed, &[pod("old", json!({})), pod("new", new)]);
        assert_eq!(counts(&table, "v4-flash"), (1, 1));
        assert_eq!(counts(&table, "v4-flash-new"), (1, 1));
    }

    #[test]
    fn a_model_knows_its_deployment_and_the_shares_of_its_revisions() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "flash", "namespace": "prod"}, "spec": {},
            "status": {"traffic": [
                {"revision": "0123abcd", "weightPercent": 90, "role": "Stable"},
                {"revision": "4567cdef", "weightPercent": 10, "role": "Canary", "a field of a later version": 1},
                {"revision": "odd role", "weightPercent": 10, "role": "Shadow"},
                {"revision": "too much", "weightPercent": 101, "role": "Canary"},
                {"revision": "too little", "weightPercent": -1, "role": "Canary"},
                {"weightPercent": 10, "role": "Canary"},
                "nonsense",
            ], "groups": [
                {"name": "flash-0123abcd-0", "loading": {"bytesDone": 5, "bytesTotal": 9}},
                {"name": "flash-0123abcd-1"},
                {"name": "flash-0123abcd-2", "draining": true, "loading": {"bytesDone": 5, "bytesTotal": 9}},
            ]},
        }))
        .unwrap();
        let model = table(&[Deployment::of(&object).unwrap()], &[]).models.remove("flash").unwrap();
        assert_eq!((model.namespace.as_str(), model.deployment.as_str()), ("prod", "flash"));
        let loading = Loading { group: "flash-0123abcd-0".into(), bytes_done: 5, bytes_total: 9 };
        assert_eq!(model.loading, [loading]);
        let share =
            |revision: &str, weight_percent, role| Share { revision: revision.into(), weight_percent, role };
        assert_eq!(model.shares, [share("0123abcd", 90, Role::Stable), share("4567cdef", 10, Role::Canary)]);
    }

    #[test]
    fn the_older_deployment_has_a_model_name_that_two_claim() {
        let mut claims = flash();
        claims.push(deployment("younger", Some("v4-flash"), "2026-11-02T00:00:00Z"));
        let younger = json!({"metadata": {"labels": {"serving.belay.dev/model-deployment": "younger"}}});
        for _ in 0..2 {
            let table = table(&claims, &[pod("p0", younger.clone()), pod("p1", json!({}))]);
            let names: Vec<_> =
                table.models["v4-flash"].ready.iter().map(|worker| worker.name.as_str()).collect();
            assert_eq!(names, ["p1"]);
            claims.reverse();
        }
    }
}
