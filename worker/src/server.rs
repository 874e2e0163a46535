//! The process: listeners, tasks, signals, and the way out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use belay_backend::Backend;
use belay_proto::admin::Phase;
use belay_proto::admin::admin_server::AdminServer;
use belay_proto::inference::inference_server::InferenceServer;
use belay_proto::kserve::grpc_inference_service_server::GrpcInferenceServiceServer;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::ServeConfig;
use crate::context::Context;
use crate::devices::Devices;
use crate::grpc::MAX_MESSAGE_BYTES;
use crate::grpc::admin::AdminService;
use crate::grpc::inference::InferenceService;
use crate::grpc::kserve::KserveService;
use crate::lifecycle;
use crate::{http, metrics};

/// How often an idle client connection is asked whether it still lives: a client that vanished holds a session.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long open streams may take to end once the engine has stopped.
const CLOSING: Duration = Duration::from_secs(5);
/// How long peers must not have asked for experts before a drained worker leaves them.
const PEERS_QUIET: Duration = Duration::from_secs(1);
/// How long a drained worker waits for that at most.
const PEERS_PATIENCE: Duration = Duration::from_secs(15);

/// Where a worker listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Inference, KServe, health, reflection.
    pub grpc: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// Peers; `None` stand-alone.
    pub fabric: Option<SocketAddr>,
    /// Metrics and probes.
    pub http: SocketAddr,
}

/// A running worker.
pub struct Worker {
    context: Arc<Context>,
    addresses: Addresses,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Ends inference and everything that depends on the engine.
    stop: CancellationToken,
    /// Ends admin and HTTP, last of all.
    stop_admin: CancellationToken,
}

impl Worker {
    /// Binds every address and begins the life cycle; answers on the admin port from the start.
    ///
    /// # Errors
    /// Options that contradict each other, or an address that can't be bound.
    pub async fn start<B: Backend>(config: ServeConfig, devices: Devices<B>) -> anyhow::Result<Self> {
        config.validate()?;
        let admin = bind("admin", config.admin_listen).await?;
        let http = bind("http", config.http_listen).await?;
        let grpc = bind("grpc", config.grpc_listen).await?;
        let fabric = match config.group_name() {
            None => None,
            Some(_) => Some(
                std::net::TcpListener::bind(config.fabric_listen)
                    .with_context(|| format!("fabric: cannot listen on {}", config.fabric_listen))?,
            ),
        };
        let addresses = Addresses {
            grpc: grpc.local_addr()?,
            admin: admin.local_addr()?,
            fabric: fabric.as_ref().map(std::net::TcpListener::local_addr).transpose()?,
            http: http.local_addr()?,
        };
        let model_name = config.served_name()?;
        let context = Arc::new(Context::new(config, model_name, devices.fused()));
        tracing::info!(
            model = context.model_name,
            uid = context.uid,
            grpc = %addresses.grpc,
            admin = %addresses.admin,
            fabric = %addresses.fabric.map_or_else(|| "none".into(), |address| address.to_string()),
            http = %addresses.http,
            "listening"
        );
        let mut worker = Self {
            context,
            addresses,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            stop_admin: CancellationToken::new(),
        };
        worker.serve_admin(admin);
        worker.serve_http(http);
        worker.serve_grpc(grpc).await?;
        let live = lifecycle::live(Arc::clone(&worker.context), devices, fabric, worker.stop.clone());
        worker.tasks.spawn(async move { ("life cycle", live.await) });
        Ok(worker)
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What its services share.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn serve_admin(&mut self, listener: TcpListener) {
        let service = AdminServer::new(AdminService(Arc::clone(&self.context)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming(listener), self.stop_admin.clone().cancelled_owned());
        self.tasks.spawn(async move { ("admin", serving.await.map_err(Into::into)) });
    }

    fn serve_http(&mut self, listener: TcpListener) {
        let source = Arc::clone(&self.context) as Arc<dyn metrics::Source>;
        let registry = metrics::registry(&self.context.requests, source);
        let serving = axum::serve(listener, http::router(Arc::clone(&self.context), registry))
            .with_graceful_shutdown(self.stop_admin.clone().cancelled_owned());
        self.tasks.spawn(async move { ("http", serving.await.map_err(Into::into)) });
    }

    async fn serve_grpc(&mut self, listener: TcpListener) -> anyhow::Result<()> {
        let inference = InferenceServer::new(InferenceService(Arc::clone(&self.context)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let kserve = GrpcInferenceServiceServer::new(KserveService(Arc::clone(&self.context)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let descriptors = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(belay_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // the admin service is on a port of its own
                .with_service_name("belay.inference.v1.Inference")
                .with_service_name("inference.GRPCInferenceService")
                .with_service_name("grpc.health.v1.Health")
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        // a new reporter says SERVING
        set_health(&reporter, ServingStatus::NotServing).await;
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(inference)
            .add_service(kserve)
            .add_service(health)
            .add_service(descriptors().build_v1()?)
            .add_service(descriptors().build_v1alpha()?)
            .serve_with_incoming_shutdown(incoming(listener), self.stop.clone().cancelled_owned());
        self.tasks.spawn(async move { ("grpc", serving.await.map_err(Into::into)) });
        let report = report_health(Arc::clone(&self.context), reporter, self.stop.clone());
        self.tasks.spawn(async move {
            report.await;
            ("health", Ok(()))
        });
        Ok(())
    }

    /// Serves until `signal` comes, then drains, which a second one cuts short, and stops.
    ///
    /// # Errors
    /// If a task ends by itself.
    pub async fn run_until(mut self, mut signal: impl AsyncFnMut()) -> anyhow::Result<()> {
        tokio::select! {
            () = signal() => {}
            ended = self.tasks.join_next() => {
                let failure = match ended {
                    Some(Ok((name, Ok(())))) => anyhow!("{name} ended by itself"),
                    Some(Ok((name, Err(error)))) => error.context(name),
                    Some(Err(error)) => anyhow!(error),
                    None => anyhow!("nothing is served"),
                };
                self.stop().await;
                return Err(failure);
            }
        }
        tokio::select! {
            () = self.drain() => {}
            () = signal() => tracing::warn!("a second signal: leaving at once"),
        }
        self.stop().await;
        Ok(())
    }

    /// Refuses new requests and waits for those in flight, then for peers to stop asking; bounded by the drain time.
    pub async fn drain(&self) {
        let deadline = Instant::now() + self.context.config.drain_time();
        self.context.shared.change(|state| state.draining = true);
        let mut in_flight = self.context.shared.watch_in_flight();
        tracing::info!(in_flight = self.context.shared.in_flight(), "draining");
        // an error is a deadline that passed, or a sender that can't be gone
        let drained = timeout_at(deadline, in_flight.wait_for(|count| *count == 0)).await.is_ok();
        if !drained {
            tracing::warn!(in_flight = self.context.shared.in_flight(), "the drain time is over");
            return;
        }
        let patience = deadline.min(Instant::now() + PEERS_PATIENCE);
        if timeout_at(patience, self.peers_are_quiet()).await.is_err() {
            tracing::warn!("leaving while peers still ask for experts");
        }
    }

    /// Peers that drain at the same time may still need this worker's experts for their last requests.
    async fn peers_are_quiet(&self) {
        let Some(stats) = self.context.fabric_stats.load_full() else { return };
        if self.context.group.load().as_ref().is_none_or(|group| group.peers().is_empty()) {
            return;
        }
        let mut served = stats.snapshot().routes_served;
        loop {
            tokio::time::sleep(PEERS_QUIET).await;
            let now = stats.snapshot().routes_served;
            if now == served {
                return;
            }
            served = now;
        }
    }

    /// Ends everything: requests in flight end with a retryable status.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let (engine, group) = (self.context.engine.swap(None), self.context.group.swap(None));
        let ending = spawn_blocking(move || {
            if let Some(engine) = engine {
                engine.shutdown();
            }
            if let Some(group) = group {
                group.shutdown();
            }
        });
        if let Err(error) = ending.await {
            tracing::error!(%error, "stopping the engine failed");
        }
        self.stop_admin.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(CLOSING, all).await.is_err() {
            // connections whose clients don't take what is theirs
            self.tasks.shutdown().await;
        }
        tracing::info!("stopped");
    }
}

async fn bind(name: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{name}: cannot listen on {address}"))
}

fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Keeps the health service in step with the state.
async fn report_health(context: Arc<Context>, reporter: HealthReporter, stop: CancellationToken) {
    let mut states = context.shared.watch();
    loop {
        let serves = {
            let state = states.borrow_and_update();
            state.phase == Phase::Ready && !state.draining
        };
        let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        set_health(&reporter, status).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

async fn set_health(reporter: &HealthReporter, status: ServingStatus) {
    for service in ["", "belay.inference.v1.Inference", "inference.GRPCInferenceService"] {
        reporter.set_service_status(service, status).await;
    }
}
