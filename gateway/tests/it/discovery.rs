//! Discovery follows the Kubernetes API, and outlives it.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use belay_gateway::{
    discovery::kubernetes,
    routing::{ConnectOptions, Fleet, PolicyName},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    eventually,
    kubernetes::{Cluster, client},
};

fn deployment() -> Value {
    json!({"apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
           "metadata": {"name": "flash", "namespace": "prod", "resourceVersion": "1", "uid": "d"},
           "spec": {"model": {"name": "v4-flash", "a field of a later version": 1}}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": name, "namespace": "prod", "uid": name, "resourceVersion": "1", "labels": {
               "app.kubernetes.io/name": "belay-worker", "serving.belay.dev/model-deployment": "flash"}},
           "spec": {"containers": []},
           "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn follow(api: SocketAddr) -> (Arc<Fleet>, JoinHandle<()>) {
    let second = Duration::from_secs(1);
    let fleet =
        Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions { connect: second, keep_alive: second });
    (fleet.clone(), tokio::spawn(kubernetes::watch(client(api), None, fleet)))
}

fn ready(fleet: &Fleet) -> Option<usize> {
    fleet.view().models.get("v4-flash").map(belay_gateway::routing::ModelState::ready)
}

#[tokio::test]
async fn workers_come_and_go_as_the_api_says() {
    let cluster = Cluster::new();
    let (api, server) = cluster.serve("127.0.0.1:0".parse().unwrap()).await;
    let (fleet, watch) = follow(api);
    eventually("the first look", || fleet.view().synced).await;
    assert_eq!(ready(&fleet), None);
    // until both watches have begun, the objects would be missed
    eventually("two watches", || cluster.changes.receiver_count() == 2).await;
    cluster.tell("deployments", "ADDED", &deployment());
    eventually("the model is known", || ready(&fleet) == Some(0)).await;
    let mut pod = pod("p0");
    cluster.add_pod(&pod);
    eventually("a worker is ready", || ready(&fleet) == Some(1)).await;
    pod["metadata"]["annotations"] = json!({"serving.belay.dev/draining": "true"});
    cluster.tell("pods", "MODIFIED", &pod);
    eventually("it drains", || ready(&fleet) == Some(0)).await;
    assert_eq!(fleet.view().models["v4-flash"].known, 1);
    cluster.tell("pods", "DELETED", &pod);
    eventually("it is gone", || fleet.view().models["v4-flash"].known == 0).await;
    cluster.tell("deployments", "DELETED", &deployment());
    eventually("the model is unknown", || ready(&fleet).is_none()).await;
    watch.abort();
    server.abort();
}

#[tokio::test]
async fn the_last_state_stays_while_the_api_is_away() {
    let cluster = Cluster::new();
    cluster.deployments.lock().unwrap().push(deployment());
    cluster.add_pod(&pod("p0"));
    let (api, server) = cluster.serve("127.0.0.1:0".parse().unwrap()).await;
    let (fleet, watch) = follow(api);
    eventually("a worker is ready", || ready(&fleet) == Some(1)).await;
    eventually("two watches", || cluster.changes.receiver_count() == 2).await;

    server.abort();
    eventually("the connections are gone", || cluster.changes.receiver_count() == 0).await;
    // long enough for several attempts to reach it
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(ready(&fleet), Some(1));

    cluster.add_pod(&pod("p1"));
    let (_, server) = cluster.serve(api).await;
    eventually("the news of the meantime", || ready(&fleet) == Some(2)).await;
    watch.abort();
    server.abort();
}
