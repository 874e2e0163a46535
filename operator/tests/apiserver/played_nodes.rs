//! Plays the scheduler, the kubelets and the workers: pods get a node, an address on loopback, and a real gRPC server
//! of the admin service behind it. What a worker does is reduced to what the operator can see of it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use belay_operator::worker_client::ADMIN_PORT;
use belay_proto::admin::{
    GetStatusRequest, ModelCard, Phase, Placement, RankStatus, SetDrainRequest, SetDrainResponse,
    SetPlacementRequest, SetPlacementResponse, WorkerStatus,
    admin_server::{Admin, AdminServer},
};
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// What tests set and see of a worker.
#[derive(Clone, Debug, Default)]
pub struct Worker {
    pub node: String,
    pub status: WorkerStatus,
    pub placement: Option<Placement>,
}

#[derive(Default)]
struct State {
    /// By pod UID.
    workers: BTreeMap<String, Worker>,
    lost_nodes: BTreeSet<String>,
    card: ModelCard,
    failure: Option<(String, String)>,
}

/// The played part of the cluster.
#[derive(Clone)]
pub struct PlayedNodes {
    state: Arc<Mutex<State>>,
}

struct Server {
    uid: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// A worker on a lost node says nothing, also on connections that exist.
    async fn unless_lost(&self) {
        let lost = {
            let state = self.state.lock().unwrap();
            state.lost_nodes.contains(&state.workers[&self.uid].node)
        };
        if lost {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl Admin for Server {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<WorkerStatus>, Status> {
        self.unless_lost().await;
        Ok(Response::new(self.state.lock().unwrap().workers[&self.uid].status.clone()))
    }

    async fn set_placement(
        &self,
        request: Request<SetPlacementRequest>,
    ) -> Result<Response<SetPlacementResponse>, Status> {
        self.unless_lost().await;
        let placement = request.into_inner().placement.unwrap();
        let mut state = self.state.lock().unwrap();
        let worker = state.workers.get_mut(&self.uid).unwrap();
        let status = &mut worker.status;
        if placement.epoch < status.placement_epoch || placement.group != status.group {
            return Err(Status::failed_precondition("older or not ours"));
        }
        if placement.workers[status.worker as usize].uid != self.uid {
            return Err(Status::failed_precondition("for another life of this slot"));
        }
        status.placement_epoch = placement.epoch;
        status.ranks = vec![RankStatus::default(); placement.ranks_per_worker as usize];
        status.set_phase(Phase::Ready);
        worker.placement = Some(placement);
        Ok(Response::new(SetPlacementResponse {}))
    }

    async fn set_drain(
        &self,
        request: Request<SetDrainRequest>,
    ) -> Result<Response<SetDrainResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        let status = &mut state.workers.get_mut(&self.uid).unwrap().status;
        status.draining = request.into_inner().draining;
        Ok(Response::new(SetDrainResponse { requests_in_flight: status.requests_in_flight }))
    }
}

impl PlayedNodes {
    /// Makes nodes and begins to play them.
    pub async fn start(client: Client, nodes: &[&str]) -> Self {
        let this = Self { state: Arc::default() };
        this.state.lock().unwrap().card = ModelCard {
            layers: 2,
            experts: 8,
            experts_per_token: 2,
            digest: "d".into(),
            ..ModelCard::default()
        };
        let api: Api<Node> = Api::all(client.clone());
        for name in nodes {
            let node = Node {
                metadata: ObjectMeta { name: Some((*name).into()), ..ObjectMeta::default() },
                ..Node::default()
            };
            api.create(&PostParams::default(), &node).await.unwrap();
            set_node_ready(&client, name, "True").await;
        }
        let played = this.clone();
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        drop(tokio::spawn(async move { played.play(client, nodes).await }));
        this
    }

    /// A node stops: its kubelet says nothing any more, its workers do not answer.
    pub async fn lose_node(&self, client: &Client, name: &str) {
        self.state.lock().unwrap().lost_nodes.insert(name.to_owned());
        set_node_ready(client, name, "Unknown").await;
    }

    /// Workers that start from now on fail.
    pub fn fail_new_workers(&self, failure: Option<(&str, &str)>) {
        self.state.lock().unwrap().failure = failure.map(|(reason, message)| (reason.into(), message.into()));
    }

    /// Sets and reads what a worker is.
    pub fn worker<T>(&self, uid: &str, look: impl FnOnce(&mut Worker) -> T) -> T {
        look(self.state.lock().unwrap().workers.get_mut(uid).unwrap())
    }

    async fn play(self, client: Client, nodes: Vec<String>) {
        let mut servers: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
        let mut next_ip = 1u8;
        loop {
            let pods: Api<Pod> = Api::all(client.clone());
            let Ok(list) =
                pods.list(&ListParams::default().labels("app.kubernetes.io/name=belay-worker")).await
            else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue; // the control plane is on its way out
            };
            let uids: BTreeSet<String> = list.iter().filter_map(|pod| pod.uid()).collect();
            servers.retain(|uid, server| {
                let stays = uids.contains(uid);
                if !stays {
                    server.abort();
                }
                stays
            });
            for pod in list {
                // objects may vanish in between: the next round sees
                let _ = self.step(&client, &nodes, &pod, &mut servers, &mut next_ip).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn step(
        &self,
        client: &Client,
        nodes: &[String],
        pod: &Pod,
        servers: &mut BTreeMap<String, JoinHandle<()>>,
        next_ip: &mut u8,
    ) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            let index: usize = pod.labels()["serving.belay.dev/worker"].parse().unwrap();
            let lost = self.state.lock().unwrap().lost_nodes.clone();
            let up: Vec<&String> = nodes.iter().filter(|node| !lost.contains(*node)).collect();
            let binding = Binding {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                target: ObjectReference {
                    kind: Some("Node".into()),
                    name: Some(up[index % up.len()].clone()),
                    ..ObjectReference::default()
                },
            };
            let _: serde_json::Value =
                api.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
            return Ok(());
        };
        if self.state.lock().unwrap().lost_nodes.contains(&node) {
            if let Some(server) = servers.remove(&uid) {
                server.abort();
            }
            return Ok(());
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if let Some(server) = servers.remove(&uid) {
                server.abort();
            }
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            api.delete(&name, &now).await?;
            return Ok(());
        }
        let present = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let ip = match present {
            Some(ip) => ip,
            None => {
                let ip = Ipv4Addr::new(127, 0, 1, *next_ip);
                *next_ip += 1;
                self.begin(pod, ip, servers);
                ip.to_string()
            }
        };
        let ready =
            self.worker(&uid, |worker| worker.status.phase() == Phase::Ready && !worker.status.draining);
        let condition = json!([{ "type": "Ready", "status": if ready { "True" } else { "False" } }]);
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": condition,
            "containerStatuses": [{ "name": "worker", "image": "x", "imageID": "x", "ready": ready,
                "restartCount": 0, "state": { "running": {} } }] } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    fn begin(&self, pod: &Pod, ip: Ipv4Addr, servers: &mut BTreeMap<String, JoinHandle<()>>) {
        let uid = pod.uid().unwrap();
        let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
        let label = |key: &str| pod.labels()[&format!("serving.belay.dev/{key}")].clone();
        let mut status = WorkerStatus {
            group: label("group"),
            revision: label("revision"),
            worker: label("worker").parse().unwrap(),
            uid: uid.clone(),
            ..WorkerStatus::default()
        };
        let mut state = self.state.lock().unwrap();
        status.card = Some(state.card.clone());
        status.set_phase(Phase::WaitingForPlacement);
        if let Some((reason, message)) = &state.failure {
            status.set_phase(Phase::Failed);
            status.reason.clone_from(reason);
            status.message.clone_from(message);
        }
        state.workers.insert(uid.clone(), Worker { node, status, placement: None });
        let service = AdminServer::new(Server { uid: uid.clone(), state: self.state.clone() });
        let address = SocketAddr::new(IpAddr::V4(ip), ADMIN_PORT);
        let serving = tonic::transport::Server::builder().add_service(service).serve(address);
        servers.insert(uid, tokio::spawn(async move { serving.await.unwrap() }));
    }
}

async fn set_node_ready(client: &Client, name: &str, ready: &str) {
    let api: Api<Node> = Api::all(client.clone());
    let since = Timestamp::now().to_string();
    let status = json!({ "status": { "conditions": [
        { "type": "Ready", "status": ready, "lastTransitionTime": since } ] } });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}
