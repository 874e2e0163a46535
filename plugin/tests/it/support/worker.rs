//! A worker's admin service with scripted answers, behind a real socket.
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use belay_proto::admin::{
    ExpertLoad, Fault, GetExpertLoadRequest, GetExpertsRequest, GetStatusRequest, InjectRequest,
    InjectResponse, ResidentExperts, SetDrainRequest, SetDrainResponse, SetPlacementRequest,
    SetPlacementResponse, WorkerStatus,
    admin_server::{Admin, AdminServer},
};
use kubectl_belay::answers::WorkerAnswer;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What it says and does.
#[derive(Clone, Debug)]
pub struct Script {
    pub answer: WorkerAnswer,
    /// Whether it was started with fault injection.
    pub breakable: bool,
    /// Whether it never answers.
    pub hangs: bool,
    /// Whether it is of a version that has nothing but GetStatus.
    pub old: bool,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    injected: Mutex<Vec<InjectRequest>>,
    /// Its process: ended, it takes its connections along.
    process: Mutex<Option<Runtime>>,
}

/// A worker that runs until it is dropped, or killed.
pub struct PlayedWorker {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl PlayedWorker {
    pub async fn start(answer: WorkerAnswer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Script { answer, breakable: true, hangs: false, old: false };
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            injected: Mutex::default(),
            process: Mutex::default(),
        });
        let service = AdminServer::new(Service(Arc::clone(&shared)));
        let serve = tonic::transport::Server::builder().add_service(service);
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        process.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            serve.serve_with_incoming(incoming).await.unwrap();
        });
        *shared.process.lock().unwrap() = Some(process);
        Self { address, shared }
    }

    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    pub fn injected(&self) -> Vec<InjectRequest> {
        self.shared.injected.lock().unwrap().clone()
    }
}

impl Drop for PlayedWorker {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Shared {
    /// The process ends: nobody listens any more, and connections break.
    fn end(&self) {
        let process = self.process.lock().unwrap().take();
        if let Some(process) = process {
            process.shutdown_background();
        }
    }
}

struct Service(Arc<Shared>);

impl Service {
    async fn script(&self, is_old_call: bool) -> Result<Script, Status> {
        let script = self.0.script.lock().unwrap().clone();
        if script.hangs {
            std::future::pending::<()>().await;
        }
        match script.old && !is_old_call {
            true => Err(Status::unimplemented("")),
            false => Ok(script),
        }
    }
}

fn tell<T>(answer: Result<T, String>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(Status::failed_precondition)
}

#[tonic::async_trait]
impl Admin for Service {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<WorkerStatus>, Status> {
        Ok(Response::new(self.script(true).await?.answer.status))
    }

    async fn get_experts(&self, _: Request<GetExpertsRequest>) -> Result<Response<ResidentExperts>, Status> {
        tell(self.script(false).await?.answer.experts)
    }

    async fn get_expert_load(
        &self,
        _: Request<GetExpertLoadRequest>,
    ) -> Result<Response<ExpertLoad>, Status> {
        tell(self.script(false).await?.answer.load)
    }

    async fn inject(&self, request: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        let request = request.into_inner();
        if !self.script(false).await?.breakable {
            return Err(Status::permission_denied("fault injection is off"));
        }
        self.0.injected.lock().unwrap().push(request.clone());
        if request.fault() == Fault::Exit {
            self.0.end();
            // the answer is lost with the process
            std::future::pending::<()>().await;
        }
        Ok(Response::new(InjectResponse {}))
    }

    async fn set_placement(
        &self,
        _: Request<SetPlacementRequest>,
    ) -> Result<Response<SetPlacementResponse>, Status> {
        panic!("only the operator places")
    }

    async fn set_drain(&self, _: Request<SetDrainRequest>) -> Result<Response<SetDrainResponse>, Status> {
        panic!("only the operator drains")
    }
}
