//! An API server with the objects of one deployment, which forwards ports as the real one does: over a websocket with
//! a channel for the bytes and one for errors.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kubectl_belay::answers::{GroupAnswers, WorkerPod};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, handshake::derive_accept_key, protocol::Role},
};

const ADMIN_PORT: u16 = 50052;

/// How often a log that is followed is looked at.
const LOG_PERIOD: Duration = Duration::from_millis(20);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What it knows.
#[derive(Debug, Default)]
pub struct Objects {
    pub deployment: Value,
    pub config_maps: Vec<Value>,
    pub pods: Vec<Value>,
    pub revisions: Vec<Value>,
    /// Other collections, by path.
    pub lists: BTreeMap<String, Vec<Value>>,
    /// Where the admin port of a pod is.
    pub workers: BTreeMap<String, SocketAddr>,
    /// Where other ports of pods are.
    pub ports: BTreeMap<(String, u16), SocketAddr>,
    /// What containers wrote, by pod; a line has its time in front.
    pub logs: BTreeMap<String, Vec<String>>,
    /// Queries of log requests.
    pub log_queries: Vec<String>,
    /// Bodies of patches of the deployment.
    pub patches: Vec<Value>,
    /// How often a pod was read by its name.
    pub pod_reads: u32,
    /// From this read on, pods have started once more.
    pub restarts_after: Option<u32>,
}

/// A server that runs until it is dropped.
pub struct ApiServer {
    pub objects: Arc<Mutex<Objects>>,
    directory: tempfile::TempDir,
    server: JoinHandle<()>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let objects = Arc::new(Mutex::new(Objects::default()));
        let known = Arc::clone(&objects);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let known = Arc::clone(&known);
                let service = service_fn(move |request| answer(Arc::clone(&known), request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
                // a client that goes away is no error
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let context = json!({"cluster": "played", "user": "nobody", "namespace": "models"});
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "played",
            "clusters": [{"name": "played", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "played", "context": context}],
        });
        std::fs::write(directory.path().join("config"), kubeconfig.to_string()).unwrap();
        Self { objects, directory, server }
    }

    /// Knows this deployment of one group.
    pub fn knows(&self, group: &GroupAnswers, deployment_spec: Value) {
        let mut objects = self.objects.lock().unwrap();
        objects.deployment = json!({
            "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "nano", "namespace": "models", "uid": "uid-nano", "generation": 7},
            "spec": deployment_spec,
            "status": {"groups": [{"name": group.name, "revision": group.revision}]},
        });
        let mut data = json!({"placement.json": serde_json::to_string(&group.placement).unwrap()});
        if let Some(operation) = &group.operation {
            data["operation.json"] = serde_json::to_string(operation).unwrap().into();
        }
        let name = format!("{}-placement", group.name);
        objects.config_maps = vec![json!({"metadata": metadata(&name, &name, group, None), "data": data})];
        objects.pods = group.pods.iter().map(|answer| pod(&answer.pod, group)).collect();
    }

    /// Knows a revision of it, and what that was made from.
    pub fn knows_revision(&self, revision: &str, number: i64, image: &str) {
        let group = GroupAnswers { revision: revision.to_owned(), ..GroupAnswers::default() };
        let mut metadata = metadata(&format!("nano-{revision}"), revision, &group, None);
        metadata["creationTimestamp"] = format!("2026-11-{:02}T10:00:00Z", number + 1).into();
        let content = json!({
            "model": {"name": "nano", "source": {"hostPath": {"path": format!("/models/{number}")}}},
            "group": {"workers": 2, "devicesPerWorker": 2, "device": "CPU"},
        });
        self.objects.lock().unwrap().revisions.push(json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": number,
            "data": {"content": content, "image": image},
        }));
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// Runs the program on this cluster, without a terminal.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().await.unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-belay"));
        command.args(arguments).arg("--kubeconfig").arg(self.kubeconfig());
        command.env("COLUMNS", "80").stdin(std::process::Stdio::null()).kill_on_drop(true);
        command
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn metadata(name: &str, uid: &str, group: &GroupAnswers, worker: Option<u32>) -> Value {
    let mut labels = json!({
        "app.kubernetes.io/managed-by": "belay-operator",
        "serving.belay.dev/model-deployment": "nano",
        "serving.belay.dev/group": group.name,
        "serving.belay.dev/revision": group.revision,
    });
    if let Some(worker) = worker {
        labels["serving.belay.dev/worker"] = worker.to_string().into();
    }
    let owner = json!({
        "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment", "name": "nano", "uid": "uid-nano",
    });
    json!({"name": name, "namespace": "models", "uid": uid, "labels": labels, "ownerReferences": [owner]})
}

fn pod(pod: &WorkerPod, group: &GroupAnswers) -> Value {
    let container = json!({
        "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": pod.restarts,
        "state": {"running": {"startedAt": "2026-11-27T10:00:00Z"}},
    });
    let condition = |kind: &str| json!({"type": kind, "status": "True"});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata(&pod.name, &pod.uid, group, Some(pod.worker)),
        "spec": {"nodeName": pod.node, "containers": []},
        "status": {
            "phase": "Running", "containerStatuses": [container],
            "conditions": [condition("PodScheduled"), condition("Ready")],
        },
    })
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    response.body(Full::new(body.to_string().into()).boxed_unsync()).unwrap()
}

fn not_found(what: &str) -> Response<Body> {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("{what} not found"),
    });
    reply(StatusCode::NOT_FOUND, &status)
}

async fn answer(
    objects: Arc<Mutex<Objects>>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let list = |kind: &str, items: &[Value]| {
        reply(StatusCode::OK, &json!({"apiVersion": "v1", "kind": kind, "metadata": {}, "items": items}))
    };
    let own = "/apis/serving.belay.dev/v1alpha1/namespaces/models/modeldeployments/";
    let core = "/api/v1/namespaces/models/";
    if let Some(name) = path.strip_prefix(own) {
        let known = objects.lock().unwrap().deployment.clone();
        if known["metadata"]["name"] != name {
            return Ok(not_found(&format!("modeldeployments.serving.belay.dev \"{name}\"")));
        }
        if request.method() == Method::PATCH {
            let body = request.body_mut().collect().await.unwrap().to_bytes();
            objects.lock().unwrap().patches.push(serde_json::from_slice(&body).unwrap());
        }
        return Ok(reply(StatusCode::OK, &known));
    }
    let whole = ["/apis/serving.belay.dev/v1alpha1/modeldeployments", own.trim_end_matches('/')];
    if whole.contains(&path.as_str()) {
        let known = objects.lock().unwrap().deployment.clone();
        return Ok(list(
            "ModelDeploymentList",
            if known.is_null() { &[] } else { std::slice::from_ref(&known) },
        ));
    }
    if let Some(items) = objects.lock().unwrap().lists.get(&path) {
        return Ok(list("List", items));
    }
    if let Some(name) = path.strip_prefix("/api/v1/nodes/") {
        let nodes = objects.lock().unwrap().lists.get("/api/v1/nodes").cloned().unwrap_or_default();
        let node = nodes.into_iter().find(|node| node["metadata"]["name"] == name);
        return Ok(
            node.map_or_else(|| not_found(&format!("nodes \"{name}\"")), |node| reply(StatusCode::OK, &node))
        );
    }
    if path == "/apis/apps/v1/namespaces/models/controllerrevisions" {
        return Ok(list("ControllerRevisionList", &objects.lock().unwrap().revisions));
    }
    let mut parts = path.strip_prefix(core).unwrap_or_default().split('/');
    Ok(match (parts.next(), parts.next(), parts.next()) {
        (Some("pods"), None, _) => {
            let selector = request.uri().query().and_then(|query| query.split_once("labelSelector="));
            let selector = selector.map_or("", |(_, rest)| rest.split('&').next().unwrap());
            let selector = selector.replace("%2F", "/").replace("%3D", "=").replace("%2C", ",");
            let mut pods = objects.lock().unwrap().pods.clone();
            for (key, value) in selector.split(',').filter_map(|term| term.split_once('=')) {
                pods.retain(|pod| pod["metadata"]["labels"][key] == value);
            }
            list("PodList", &pods)
        }
        (Some("configmaps"), None, _) => list("ConfigMapList", &objects.lock().unwrap().config_maps),
        (Some("pods"), Some(name), None) => {
            let mut objects = objects.lock().unwrap();
            objects.pod_reads += 1;
            let restarted = objects.restarts_after.is_some_and(|reads| objects.pod_reads > reads);
            let pod = objects.pods.iter().find(|pod| pod["metadata"]["name"] == name).cloned();
            match pod {
                Some(mut pod) => {
                    if restarted {
                        pod["status"]["containerStatuses"][0]["restartCount"] = 1.into();
                    }
                    reply(StatusCode::OK, &pod)
                }
                None => not_found(&format!("pods \"{name}\"")),
            }
        }
        (Some("pods"), Some(name), Some("portforward")) => {
            let port: u16 = request.uri().query().unwrap().rsplit_once("ports=").unwrap().1.parse().unwrap();
            let objects = objects.lock().unwrap();
            let address = match port {
                ADMIN_PORT => objects.workers.get(name),
                port => objects.ports.get(&(name.to_owned(), port)),
            };
            match address.copied() {
                Some(address) => upgrade(&mut request, port, address),
                None => not_found(&format!("pods \"{name}\"")),
            }
        }
        (Some("pods"), Some(name), Some("log")) => {
            let query = request.uri().query().unwrap().to_owned();
            let known = objects.lock().unwrap().logs.contains_key(name);
            objects.lock().unwrap().log_queries.push(query.clone());
            match known {
                true => log(Arc::clone(&objects), name.to_owned(), query.contains("follow=true")),
                false => not_found(&format!("log of pod \"{name}\"")),
            }
        }
        _ => not_found(&path),
    })
}

/// What a container wrote; followed, also what it writes from now on, until its pod is gone.
fn log(objects: Arc<Mutex<Objects>>, pod: String, follow: bool) -> Response<Body> {
    let lines = futures::stream::unfold((objects, pod, 0), move |(objects, pod, told)| async move {
        loop {
            let known = objects.lock().unwrap().logs.get(&pod).cloned()?;
            if known.len() > told {
                let text = known[told..].iter().map(|line| line.clone() + "\n").collect::<String>();
                return Some((Ok(Frame::data(Bytes::from(text))), (objects, pod, known.len())));
            }
            if !follow {
                return None;
            }
            tokio::time::sleep(LOG_PERIOD).await;
        }
    });
    Response::new(StreamBody::new(lines).boxed_unsync())
}

fn upgrade(request: &mut Request<Incoming>, port: u16, address: SocketAddr) -> Response<Body> {
    let key = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgraded.await.unwrap());
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        // a client that goes away is no error
        drop(forward(socket, port, address).await);
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
        .body(Full::default().boxed_unsync())
        .unwrap()
}

/// Channel 0 has the bytes, channel 1 an error; the first frame of each is the port.
async fn forward<S>(
    socket: WebSocketStream<S>,
    port: u16,
    address: SocketAddr,
) -> Result<(), tungstenite::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = socket.split();
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        to_client.send(Message::binary(vec![channel, low, high])).await?;
    }
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("failed to connect to localhost:{port} inside namespace: {error}");
            to_client.send(Message::binary([&[1], text.as_bytes()].concat())).await?;
            // the real one keeps the socket open
            while from_client.next().await.transpose()?.is_some() {}
            return Ok(());
        }
    };
    let (mut read, mut write) = stream.split();
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            message = from_client.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) if bytes.first() == Some(&0) => write.write_all(&bytes[1..]).await?,
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => (),
            },
            length = read.read(&mut buffer) => match length? {
                0 => return to_client.close().await,
                length => to_client.send(Message::binary([&[0], &buffer[..length]].concat())).await?,
            },
        }
    }
}
