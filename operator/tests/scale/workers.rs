//! The workers of all pods, in one process: every pod's address is on loopback, and who is called is known by the address that
//! was dialled. A worker's side of the epoch protocol is the real one; it loads at once.
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use belay_operator::worker_client::ADMIN_PORT;
use belay_proto::admin::{
    ExpertLoad, GetExpertLoadRequest, GetExpertsRequest, GetStatusRequest, InjectRequest, InjectResponse,
    ModelCard, ResidentExperts, SetDrainRequest, SetDrainResponse, SetPlacementRequest, SetPlacementResponse,
    WorkerStatus,
    admin_server::{Admin, AdminServer},
};
use futures::StreamExt as _;
use futures::stream::unfold;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::server::TcpConnectInfo};

use crate::worker::Worker;

/// All of them.
#[derive(Clone, Default)]
pub struct Workers {
    by_address: Arc<Mutex<HashMap<IpAddr, Worker>>>,
    calls: Arc<AtomicU64>,
}

/// Ends a pod that is to be deleted, as its kubelet does: this one, and not whoever has its name by now. (kwok goes by the name, and
/// once it is late it ends each successor.)
async fn end(client: Client, pod: Pod) {
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap());
    let this = Preconditions { uid: pod.uid(), resource_version: None };
    let now =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(this), ..DeleteParams::default() };
    match pods.delete(&pod.name_any(), &now).await {
        Ok(_) => {}
        // somebody else was quicker
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => panic!("{}: {error}", pod.name_any()),
    }
}

type Dialled = mpsc::Sender<io::Result<TcpStream>>;

/// Passes on every connection to an address.
async fn listen(ip: IpAddr, dialled: Dialled) {
    let listener = TcpListener::bind((ip, ADMIN_PORT)).await.unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap(); // as workers do
        if dialled.send(Ok(stream)).await.is_err() {
            return;
        }
    }
}

impl Workers {
    /// Answers for every worker from now on.
    pub fn start(client: Client, card: ModelCard) -> Self {
        let this = Self::default();
        let (dialled, connections) = mpsc::channel(64);
        let server = tonic::transport::Server::builder().add_service(AdminServer::new(this.clone()));
        let connections =
            unfold(connections, async |mut from: mpsc::Receiver<_>| Some((from.recv().await?, from)));
        tokio::spawn(async move { server.serve_with_incoming(connections).await.unwrap() });
        let watches = this.clone();
        tokio::spawn(async move { watches.follow(client, card, dialled).await });
        this
    }

    /// Calls that were answered so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// A worker begins with the address of its pod, and ends with the pod.
    async fn follow(self, client: Client, card: ModelCard, dialled: Dialled) {
        let mut doors: HashMap<IpAddr, AbortOnDropHandle<()>> = HashMap::new();
        let config = watcher::Config::default().labels("app.kubernetes.io/name=belay-worker");
        let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), config).default_backoff());
        while let Some(event) = events.next().await {
            let Ok(event) = event else { continue };
            let mut all = self.by_address.lock().unwrap();
            // kwok may give a pod that has no node yet what was meant for the one before it of the same name
            let address = |pod: &Pod| {
                pod.spec.as_ref()?.node_name.as_ref()?;
                pod.status.as_ref()?.pod_ip.as_ref()?.parse::<IpAddr>().ok()
            };
            match event {
                watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)
                    if pod.metadata.deletion_timestamp.is_some() =>
                {
                    tokio::spawn(end(client.clone(), pod));
                }
                watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                    let Some(ip) = address(&pod) else { continue };
                    let known =
                        all.get(&ip).is_some_and(|worker| Some(&worker.status.uid) == pod.uid().as_ref());
                    if !known {
                        all.insert(ip, Worker::of(&pod, &card));
                        let door = || AbortOnDropHandle::new(tokio::spawn(listen(ip, dialled.clone())));
                        doors.entry(ip).or_insert_with(door);
                    }
                }
                watcher::Event::Delete(pod) => {
                    let gone = address(&pod).filter(|ip| {
                        all.get(ip).is_some_and(|worker| Some(&worker.status.uid) == pod.uid().as_ref())
                    });
                    if let Some(ip) = gone {
                        all.remove(&ip);
                        doors.remove(&ip);
                    }
                }
                watcher::Event::Init | watcher::Event::InitDone => {}
            }
        }
    }

    fn with<R, T>(&self, request: &Request<R>, answer: impl FnOnce(&mut Worker) -> T) -> Result<T, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let dialled = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::local_addr);
        let ip = dialled.ok_or_else(|| Status::internal("no address"))?.ip();
        let mut all = self.by_address.lock().unwrap();
        let worker = all.get_mut(&ip).ok_or_else(|| Status::unavailable("no worker runs here"))?;
        worker.work(usize::MAX);
        Ok(answer(worker))
    }
}

#[tonic::async_trait]
impl Admin for Workers {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<WorkerStatus>, Status> {
        self.with(&request, |worker| Response::new(worker.status.clone()))
    }

    async fn set_placement(
        &self,
        request: Request<SetPlacementRequest>,
    ) -> Result<Response<SetPlacementResponse>, Status> {
        let accepted = self.with(&request, |worker| worker.member.accept(request.get_ref()).map(drop))?;
        accepted.map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
        Ok(Response::new(SetPlacementResponse {}))
    }

    async fn get_expert_load(
        &self,
        request: Request<GetExpertLoadRequest>,
    ) -> Result<Response<ExpertLoad>, Status> {
        self.with(&request, |_| Response::new(ExpertLoad { layers: vec![], half_life_seconds: 1.0 }))
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
        let draining = request.get_ref().draining;
        self.with(&request, |worker| {
            worker.status.draining = draining;
            Response::new(SetDrainResponse { requests_in_flight: worker.status.requests_in_flight })
        })
    }
}
