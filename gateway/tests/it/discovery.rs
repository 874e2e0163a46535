//! Discovery follows the Kubernetes API, and outlives it.
//!
//! The API server here speaks just enough of the protocol (list, watch) to be followed and to go away; how a real one
//! behaves is what the cluster tests see.
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use belay_gateway::{
    discovery::kubernetes,
    routing::{ConnectOptions, Fleet, PolicyName},
};
use futures::StreamExt;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::broadcast,
    task::{JoinHandle, JoinSet},
};
use tokio_stream::wrappers::BroadcastStream;

use crate::support::eventually;

/// What the API server knows, and the changes since.
#[derive(Clone)]
struct Cluster {
    deployments: Arc<Mutex<Vec<Value>>>,
    pods: Arc<Mutex<Vec<Value>>>,
    changes: broadcast::Sender<(&'static str, Value)>,
    /// How often it was started. It forgets what changed before: who asks for that has to list again.
    life: Arc<AtomicUsize>,
}

impl Cluster {
    fn new() -> Self {
        Self {
            deployments: Arc::default(),
            pods: Arc::default(),
            changes: broadcast::channel(64).0,
            life: Arc::default(),
        }
    }

    fn add_pod(&self, name: &str) -> Value {
        let pod = pod(name);
        self.pods.lock().unwrap().push(pod.clone());
        self.tell("pods", "ADDED", &pod);
        pod
    }

    fn tell(&self, kind: &'static str, what: &str, object: &Value) {
        let _ = self.changes.send((kind, json!({"type": what, "object": object})));
    }

    async fn serve(&self, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        self.life.fetch_add(1, Ordering::SeqCst);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        let server = tokio::spawn(async move {
            // dropped with this task, so that connections go away as well
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                });
            }
        });
        (address, server)
    }
}

async fn answer(State(cluster): State<Cluster>, request: Request) -> Response {
    let (kind, list, objects) = match request.uri().path() {
        "/api/v1/pods" => ("pods", "PodList", &cluster.pods),
        "/apis/serving.belay.dev/v1alpha1/modeldeployments" => {
            ("deployments", "ModelDeploymentList", &cluster.deployments)
        }
        _ => return Response::builder().status(404).body(Body::empty()).unwrap(),
    };
    let query = request.uri().query().unwrap_or_default();
    if kind == "pods" {
        assert!(query.contains("labelSelector=app.kubernetes.io%2Fname%3Dbelay-worker"), "{query}");
    }
    let life = cluster.life.load(Ordering::SeqCst);
    let is_watch = query.contains("watch=true");
    let body = if is_watch && !query.contains(&format!("resourceVersion={life}")) {
        let expired = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                             "message": "too old resource version", "reason": "Expired", "code": 410});
        Body::from(json!({"type": "ERROR", "object": expired}).to_string() + "\n")
    } else if is_watch {
        let lines = BroadcastStream::new(cluster.changes.subscribe()).filter_map(move |change| async move {
            let (of, event) = change.ok()?;
            (of == kind).then(|| Ok::<_, std::io::Error>(Bytes::from(format!("{event}\n"))))
        });
        Body::from_stream(lines)
    } else {
        let items = objects.lock().unwrap().clone();
        Body::from(
            json!({"kind": list, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})
                .to_string(),
        )
    };
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

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
    let client = Client::try_from(Config::new(format!("http://{api}").parse().unwrap())).unwrap();
    (fleet.clone(), tokio::spawn(kubernetes::watch(client, None, fleet)))
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
    let mut pod = cluster.add_pod("p0");
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
    cluster.add_pod("p0");
    let (api, server) = cluster.serve("127.0.0.1:0".parse().unwrap()).await;
    let (fleet, watch) = follow(api);
    eventually("a worker is ready", || ready(&fleet) == Some(1)).await;
    eventually("two watches", || cluster.changes.receiver_count() == 2).await;

    server.abort();
    eventually("the connections are gone", || cluster.changes.receiver_count() == 0).await;
    // long enough for several attempts to reach it
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(ready(&fleet), Some(1));

    cluster.add_pod("p1");
    let (_, server) = cluster.serve(api).await;
    eventually("the news of the meantime", || ready(&fleet) == Some(2)).await;
    watch.abort();
    server.abort();
}
