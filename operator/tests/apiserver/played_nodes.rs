//! Plays the scheduler, the kubelets and the workers: pods get a node, an address on loopback, and a real gRPC server
//! of the admin service behind it. What a worker does is reduced to what the operator can see of it; its side of the epoch
//! protocol is the real one. What must hold whatever happens is checked over all workers, round by round.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use belay_epoch::{
    document::Refusal,
    invariants::{self, Snapshot},
    member::Member,
};
use belay_operator::worker_client::ADMIN_PORT;
use belay_proto::admin::{
    ExpertLoad, GetExpertLoadRequest, GetExpertsRequest, GetStatusRequest, InjectRequest, InjectResponse,
    LayerLoad, ModelCard, Phase, Placement, ResidentExperts, SetDrainRequest, SetDrainResponse,
    SetPlacementRequest, SetPlacementResponse, WorkerStatus,
    admin_server::{Admin, AdminServer},
};
use k8s_openapi::{
    api::core::v1::{Binding, ConfigMap, Node, ObjectReference, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use crate::worker::Worker;

#[derive(Default)]
struct State {
    /// By pod UID.
    workers: BTreeMap<String, Worker>,
    lost_nodes: BTreeSet<String>,
    cordoned: BTreeSet<String>,
    card: ModelCard,
    failure: Option<(String, String)>,
    /// Copies that a worker loads in a round.
    pace: usize,
    /// By expert, the same in all layers: what every worker says that it sent there.
    load: Vec<u64>,
    /// What was found that must not be.
    faults: Vec<String>,
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
        let mut state = self.state.lock().unwrap();
        let worker = state.workers.get_mut(&self.uid).unwrap();
        match worker.member.accept(&request.into_inner()) {
            Ok(change) if change.target || change.in_force => {
                (worker.status.prepare_bytes_done, worker.status.prepare_bytes_total) = (0, 0);
            }
            Ok(_) => {}
            Err(refusal) => {
                if matches!(refusal, Refusal::Conflict(_) | Refusal::Malformed(_)) {
                    state.faults.push(format!("{}: {refusal}", self.uid));
                }
                return Err(Status::failed_precondition(refusal.to_string()));
            }
        }
        Ok(Response::new(SetPlacementResponse {}))
    }

    async fn get_expert_load(
        &self,
        _: Request<GetExpertLoadRequest>,
    ) -> Result<Response<ExpertLoad>, Status> {
        let state = self.state.lock().unwrap();
        let layer = LayerLoad { millitokens: state.load.clone() };
        let layers = if state.load.is_empty() { vec![] } else { vec![layer; state.card.layers as usize] };
        Ok(Response::new(ExpertLoad { layers, half_life_seconds: 1.0 }))
    }

    async fn get_experts(&self, _: Request<GetExpertsRequest>) -> Result<Response<ResidentExperts>, Status> {
        Err(Status::unimplemented("nobody asks here"))
    }

    async fn inject(&self, _: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        Err(Status::permission_denied("nothing is broken on purpose here"))
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
            expert_bytes: 100,
            digest: "d".into(),
            ..ModelCard::default()
        };
        this.state.lock().unwrap().pace = usize::MAX;
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

    /// A node takes no pods any more, or takes them again.
    pub async fn cordon(&self, client: &Client, name: &str, cordoned: bool) {
        let api: Api<Node> = Api::all(client.clone());
        let patch = Patch::Merge(json!({ "spec": { "unschedulable": cordoned } }));
        api.patch(name, &PatchParams::default(), &patch).await.unwrap();
        let mut state = self.state.lock().unwrap();
        if cordoned {
            state.cordoned.insert(name.to_owned());
        } else {
            state.cordoned.remove(name);
        }
    }

    /// How many copies a worker loads in a round of 100 ms.
    pub fn set_pace(&self, copies: usize) {
        self.state.lock().unwrap().pace = copies;
    }

    /// What every worker says that it sent to each expert of a layer, in thousandths of a token.
    pub fn set_load(&self, load: Vec<u64>) {
        self.state.lock().unwrap().load = load;
    }

    /// What was found that must not be.
    pub fn faults(&self) -> Vec<String> {
        self.state.lock().unwrap().faults.clone()
    }

    /// Lets every worker work for a round, then checks the invariants of the protocol.
    async fn work(&self, client: &Client, pods: &[Pod]) {
        let mut groups: BTreeMap<String, Vec<(String, Member, bool)>> = BTreeMap::new();
        {
            let mut state = self.state.lock().unwrap();
            let pace = state.pace;
            let lost = state.lost_nodes.clone();
            for pod in pods {
                let uid = pod.uid().unwrap();
                let terminating = pod.metadata.deletion_timestamp.is_some();
                if let Some(worker) = state.workers.get_mut(&uid) {
                    let lives = !lost.contains(&worker.node) && !terminating;
                    if lives {
                        worker.work(pace);
                    }
                    let group = groups.entry(worker.status.group.clone()).or_default();
                    group.push((uid, worker.member.clone(), lives));
                }
            }
        }
        for (group, members) in groups {
            // read after the workers were: it is never behind them
            let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
            let Ok(Some(config_map)) = api.get_opt(&format!("{group}-placement")).await else { continue };
            let text = config_map.data.unwrap_or_default().remove("placement.json").unwrap_or_default();
            let Ok(placement) = serde_json::from_str::<Placement>(&text) else { continue };
            let workers = members.iter().map(|(_, member, lives)| invariants::Worker::of(member, *lives));
            let snapshot = Snapshot { in_force: Some(&placement), workers: workers.collect() };
            let found: Vec<String> = invariants::check(&snapshot)
                .iter()
                .map(|violation| format!("{group}: {violation}"))
                .collect();
            self.state.lock().unwrap().faults.extend(found);
        }
    }

    /// Sets and reads what a worker is.
    pub fn worker<T>(&self, uid: &str, look: impl FnOnce(&mut Worker) -> T) -> T {
        look(self.state.lock().unwrap().workers.get_mut(uid).unwrap())
    }

    async fn play(self, client: Client, nodes: Vec<String>) {
        let mut servers: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
        let mut next_ip = 1u16;
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
            self.work(&client, &list.items).await;
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
        next_ip: &mut u16,
    ) -> kube::Result<()> {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let (name, uid) = (pod.name_any(), pod.uid().unwrap());
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            let index: usize = pod.labels()["serving.belay.dev/worker"].parse().unwrap();
            let down: BTreeSet<String> = {
                let state = self.state.lock().unwrap();
                state.lost_nodes.union(&state.cordoned).cloned().collect()
            };
            let up: Vec<&String> = nodes.iter().filter(|node| !down.contains(*node)).collect();
            if up.is_empty() {
                return Ok(());
            }
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
                let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 0)) + u32::from(*next_ip));
                *next_ip += 1;
                self.begin(pod, ip, servers);
                ip.to_string()
            }
        };
        let ready =
            self.worker(&uid, |worker| worker.status.phase() == Phase::Ready && !worker.status.draining);
        let ready = if ready { "True" } else { "False" };
        let told =
            pod.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == ready)
            });
        if told {
            return Ok(()); // a kubelet says things once
        }
        let condition = json!([{ "type": "Ready", "status": ready }]);
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": condition,
            "containerStatuses": [{ "name": "worker", "image": "x", "imageID": "x", "ready": ready == "True",
                "restartCount": 0, "state": { "running": {} } }] } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }

    fn begin(&self, pod: &Pod, ip: Ipv4Addr, servers: &mut BTreeMap<String, JoinHandle<()>>) {
        let uid = pod.uid().unwrap();
        let mut state = self.state.lock().unwrap();
        let mut worker = Worker::of(pod, &state.card);
        if let Some((reason, message)) = &state.failure {
            worker.status.set_phase(Phase::Failed);
            worker.status.reason.clone_from(reason);
            worker.status.message.clone_from(message);
        }
        state.workers.insert(uid.clone(), worker);
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
