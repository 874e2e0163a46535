//! Wires the parts, and takes them down in order.
use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use belay_telemetry::Exporter;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    discovery::{fixed, kubernetes},
    edge, grpc,
    keys::{self, Keyring},
    life::{Dispatcher, Limits},
    measure::Measurements,
    observe::{self, Flights, Health, Metrics},
    routing::{self, ConnectOptions, Fleet},
    serve::{self, App},
};

/// Runs until SIGTERM or SIGINT, then drains.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let traces = Exporter::start("belay-gateway")?;
    let mut gateway = Gateway::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = gateway.broken() => return Err(error),
    }
    gateway.shut_down().await;
    if let Some(traces) = traces {
        // what is not sent in this time is not worth a slow end
        let stopping = tokio::task::spawn_blocking(move || traces.stop());
        let _ = tokio::time::timeout(Duration::from_secs(5), stopping).await;
    }
    Ok(())
}

/// A running gateway.
pub struct Gateway {
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where metrics and health listen.
    pub metrics: SocketAddr,
    config: Config,
    flights: Flights,
    health: std::sync::Arc<Health>,
    grpc_health: tonic_health::server::HealthReporter,
    /// Accept loops, discovery and probes: none of them ends by itself.
    tasks: JoinSet<()>,
    api_stop: CancellationToken,
    api_connections: TaskTracker,
    metrics_stop: CancellationToken,
    metrics_connections: TaskTracker,
}

impl Gateway {
    /// Binds and serves.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let client = if config.workers.is_empty() {
            Some(kube::Client::try_default().await.context(
                "no Kubernetes API found; without Kubernetes, name the workers: --worker NAME=HOST:PORT",
            )?)
        } else {
            None
        };
        Self::start_with(config, client).await
    }

    /// As [`Self::start`]; with a client it discovers by that one, without by the workers that the flags name.
    pub async fn start_with(config: Config, client: Option<kube::Client>) -> anyhow::Result<Self> {
        let connect =
            ConnectOptions { connect: config.connect_seconds, keep_alive: config.keep_alive_seconds };
        let fleet = Fleet::new(config.policy.build(), connect);
        let metrics = Metrics::new(fleet.clone());
        let measurements = Measurements::new(fleet.clone());
        let health = Health::new(fleet.clone());
        let limits = Limits {
            hold_requests: config.hold_requests,
            hold: config.hold_seconds,
            hedge_after: config.hedge_after,
            message_bytes: config.max_body_bytes,
        };
        let app = App {
            dispatcher: Dispatcher::new(fleet.clone(), metrics.clone(), limits),
            flights: Flights::default(),
            health: health.clone(),
            max_body_bytes: config.max_body_bytes,
            body_time: config.body_seconds,
        };
        let (grpc_health, routes) = grpc::routes(app.clone()).await?;
        let flights = app.flights.clone();

        let mut tasks = JoinSet::new();
        tasks.spawn(routing::probe(fleet.clone()));
        match client {
            Some(client) => _ = tasks.spawn(kubernetes::watch(client, config.namespace.clone(), fleet)),
            None => fleet.update(&fixed::table(&config.workers, edge::unix_seconds())),
        }

        let keyring = match &config.keys_file {
            Some(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(keys::FileError::from)?;
                let ring = Keyring::new(keys::read(&text)?, config.replicas);
                metrics.keys_are_current(true);
                tasks.spawn(keys::watch(path.clone(), text, ring.clone(), metrics.clone()));
                Some(ring)
            }
            None => None,
        };
        let (api, api_stop, api_connections) =
            listen(&mut tasks, config.listen, serve::router(app, routes, keyring)).await?;
        let (metrics, metrics_stop, metrics_connections) =
            listen(&mut tasks, config.metrics_listen, observe::router(metrics, health.clone(), measurements))
                .await?;
        tracing::info!(%api, %metrics, policy = ?config.policy, "gateway serves");
        Ok(Self {
            api,
            metrics,
            config,
            flights,
            health,
            grpc_health,
            tasks,
            api_stop,
            api_connections,
            metrics_stop,
            metrics_connections,
        })
    }

    /// Ends only if a part has died.
    pub async fn broken(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Err(error)) => anyhow::Error::new(error).context("a part of the gateway died"),
            Some(Ok(())) | None => anyhow::anyhow!("a part of the gateway ended"),
        }
    }

    /// Not ready any more → lame duck → no new connections → the last request ends, or time is up.
    pub async fn shut_down(mut self) {
        self.health.leave();
        grpc::leave(&self.grpc_health).await;
        let Config { lame_duck_seconds, drain_seconds, .. } = self.config;
        tracing::info!(in_flight = self.flights.count(), "shutting down");
        // this wait is for others: load balancers that have yet to see that the gateway is not ready
        tokio::time::sleep(lame_duck_seconds).await;
        self.api_stop.cancel();
        self.api_connections.close();
        let drained = tokio::time::timeout(drain_seconds, async {
            self.flights.none().await;
            self.api_connections.wait().await;
        });
        match drained.await {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!(in_flight = self.flights.count(), "time is up, requests are cut off"),
        }
        self.metrics_stop.cancel();
        self.metrics_connections.close();
        self.tasks.shutdown().await;
    }
}

async fn listen(
    tasks: &mut JoinSet<()>,
    address: SocketAddr,
    router: axum::Router,
) -> anyhow::Result<(SocketAddr, CancellationToken, TaskTracker)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("a listener has no address")?;
    let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(serve::serve(listener, router, stop.clone(), connections.clone()));
    Ok((address, stop, connections))
}
