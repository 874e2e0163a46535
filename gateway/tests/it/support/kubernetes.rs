//! A Kubernetes API server that speaks just enough of the protocol (list, watch) to be followed and to go away; how a real
//! one behaves is what the cluster tests see.
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
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

/// A client of the server at this address.
pub fn client(api: SocketAddr) -> Client {
    Client::try_from(Config::new(format!("http://{api}").parse().unwrap())).unwrap()
}

/// What the API server knows, and the changes since.
#[derive(Clone)]
pub struct Cluster {
    pub deployments: Arc<Mutex<Vec<Value>>>,
    pub pods: Arc<Mutex<Vec<Value>>>,
    pub changes: broadcast::Sender<(&'static str, Value)>,
    /// How often it was started. It forgets what changed before: who asks for that has to list again.
    life: Arc<AtomicUsize>,
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            deployments: Arc::default(),
            pods: Arc::default(),
            changes: broadcast::channel(64).0,
            life: Arc::default(),
        }
    }

    pub fn add_pod(&self, pod: &Value) {
        self.pods.lock().unwrap().push(pod.clone());
        self.tell("pods", "ADDED", pod);
    }

    pub fn tell(&self, kind: &'static str, what: &str, object: &Value) {
        let _ = self.changes.send((kind, json!({"type": what, "object": object})));
    }

    pub async fn serve(&self, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
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
