//! `belay-operator run`: puts the parts together and takes them down again.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use futures::channel::mpsc;
use kube::{
    Client, Config,
    client::ClientBuilder,
    runtime::{
        events::{Recorder, Reporter},
        reflector,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    analysis::Analyses,
    attendance::Attendance,
    autoscaler::Autoscaler,
    backoff::Backoff,
    cache::Cache,
    context::{Context, Settings},
    controller,
    error::describe,
    external_scaler,
    faults::Faults,
    gateways::Gateways,
    http,
    lease::{self, LeaseConfig},
    loads::Loads,
    metrics::Metrics,
    requests::CountRequests,
    telemetry::{self, LogFormat},
    warnings::Warnings,
    worker_client::WorkerClient,
};

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Look after ModelDeployments of this namespace only. Default: of all namespaces.
    #[arg(long, env = "BELAY_NAMESPACE")]
    namespace: Option<String>,
    /// Worker image of ModelDeployments that name none. It is recorded with each revision; changing it moves no pod.
    #[arg(long, env = "BELAY_WORKER_IMAGE")]
    worker_image: Option<String>,
    /// Seconds after which the pods of a node that does not respond are given up and made anew elsewhere.
    #[arg(long, env = "BELAY_NODE_LOST_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..))]
    node_lost_seconds: i64,
    /// Namespace in which Ascend's device plugin reports faults. Empty: faults are not looked at.
    #[arg(long, env = "BELAY_DEVICE_INFO_NAMESPACE", default_value = "kube-system")]
    device_info_namespace: String,
    /// What the names of its reports begin with; the name of the node follows.
    #[arg(long, env = "BELAY_DEVICE_INFO_PREFIX", default_value = "mindx-dl-deviceinfo-")]
    device_info_prefix: String,
    /// Name of the Lease by which one of several operators is chosen.
    #[arg(long, env = "BELAY_LEASE_NAME", default_value = "belay-operator")]
    lease_name: String,
    /// Namespace of the Lease. Default: the operator's own.
    #[arg(long, env = "BELAY_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,
    /// Seconds that a Lease holds without being renewed: how long a dead operator is missed.
    #[arg(long, env = "BELAY_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..))]
    lease_seconds: u64,
    /// Who this process is in the Lease: unique. Default: the host name and a random part.
    #[arg(long, env = "BELAY_IDENTITY")]
    identity: Option<String>,
    /// HOST:PORT at which gateways tell what they measure; each address of HOST is one. Without it, rollouts are not analysed
    /// by what clients see, and there is no autoscaling.
    #[arg(long, env = "BELAY_GATEWAYS")]
    gateways: Option<String>,
    /// Address at which KEDA may ask as of an external scaler. Default: it is not served.
    #[arg(long, env = "BELAY_SCALER_LISTEN")]
    scaler_listen: Option<SocketAddr>,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "BELAY_METRICS_ADDRESS", default_value = "0.0.0.0:8080")]
    metrics_address: SocketAddr,
    /// What to log: a level, or levels by module.
    #[arg(long, env = "BELAY_LOG", default_value = "info")]
    log: String,
    /// How log lines look.
    #[arg(long, env = "BELAY_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or must not go on: the lease was lost.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    telemetry::start(&args.log, args.log_format)?;
    let metrics = Metrics::default();
    let client = client(&metrics).await.context("find the API server")?;
    let stop = CancellationToken::new();
    let (connected, is_connected) = watch::channel(false);
    let (leading, mut leads) = watch::channel(false);

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn(http::serve(args.metrics_address, metrics.clone(), is_connected, stop.clone()));
    tasks.spawn(until_signal(stop.clone()));
    // also while another one leads: the scaler is asked of all, and a new leader knows what was counted before
    let gateways = Arc::new(Gateways::new(args.gateways.clone()));
    tasks.spawn(ask(gateways.clone(), stop.clone()));
    if let Some(address) = args.scaler_listen {
        tasks.spawn(external_scaler::serve(address, gateways.clone(), stop.clone()));
    }

    // the lease outlives the controller, so that its last writes are still covered
    let lease_stop = CancellationToken::new();
    let config = lease_config(&args, &client);
    tasks.spawn({
        let (client, stop) = (client.clone(), lease_stop.clone());
        async move { lease::run(client, config, leading, stop).await.context("leader election") }
    });

    let mut work =
        std::pin::pin!(work(&args, client, metrics.clone(), gateways, connected, &mut leads, &stop));
    let outcome = tokio::select! {
        result = &mut work => result,
        result = first_end(&mut tasks) => match result {
            // a signal: what is under way may finish
            Ok(()) => tokio::time::timeout(Duration::from_secs(10), work).await.unwrap_or(Ok(())),
            // the lease is lost or a part broke: nothing more may be done
            broken => broken,
        },
    };
    metrics.set_leader(false);
    stop.cancel();
    lease_stop.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(10), rest).await.is_err() {
        warn!("some parts did not end in time");
    }
    if let Err(error) = &outcome {
        error!(error = format!("{error:#}"), "stopped");
    }
    outcome
}

/// A client whose calls are counted.
async fn client(metrics: &Metrics) -> anyhow::Result<Client> {
    let config = Config::infer().await?;
    Ok(ClientBuilder::try_from(config)?.with_layer(&CountRequests(metrics.clone())).build())
}

/// Waits for the lease, then works until `stop`.
async fn work(
    args: &RunArgs,
    client: Client,
    metrics: Metrics,
    gateways: Arc<Gateways>,
    connected: watch::Sender<bool>,
    leads: &mut watch::Receiver<bool>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let namespace = args.namespace.as_deref();
    let deployments = controller::deployments(&client, namespace);
    while let Err(error) = controller::probe(&deployments).await {
        warn!(
            error = describe(&error),
            "modeldeployments.serving.belay.dev cannot be listed (is the definition installed?)"
        );
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    connected.send_replace(true);
    info!(namespace = namespace.unwrap_or("*"), "waiting for the lease");
    tokio::select! {
        led = leads.wait_for(|&leads| leads) => drop(led.context("leader election ended")?),
        () = stop.cancelled() => return Ok(()),
    }
    metrics.set_leader(true);

    let (nodes, writer) = reflector::store();
    let (changed, nodes_changed) = mpsc::unbounded();
    let reporter = Reporter { controller: "belay-operator".into(), instance: std::env::var("HOSTNAME").ok() };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        cache: Cache::default(),
        workers: WorkerClient::default(),
        attendance: Attendance::default(),
        faults: Faults::new(&args.device_info_namespace, &args.device_info_prefix),
        loads: Loads::default(),
        gateways,
        autoscaler: Autoscaler::default(),
        analyses: Analyses::default(),
        warnings: Warnings::default(),
        settings: Settings {
            worker_image: args.worker_image.clone(),
            node_lost_seconds: args.node_lost_seconds,
        },
        backoff: Backoff::default(),
        nodes: nodes.clone(),
        client: client.clone(),
        metrics,
    });
    let control_context = Arc::clone(&context);
    let control = async {
        // without the nodes, every pod would look as if its node were gone
        tokio::select! {
            ready = nodes.wait_until_ready() => ready.context("watch of nodes ended")?,
            () = stop.cancelled() => return Ok(()),
        }
        controller::run(control_context, namespace, nodes_changed, stop.clone()).await;
        anyhow::Ok(())
    };
    let faults = context.faults.watch(client.clone(), changed.clone(), stop.clone());
    let nodes = controller::watch_nodes(client, writer, changed, stop.clone());
    let (done, (), ()) = tokio::join!(control, nodes, faults);
    done
}

fn lease_config(args: &RunArgs, client: &Client) -> LeaseConfig {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    let duration = Duration::from_secs(args.lease_seconds);
    LeaseConfig {
        namespace: args.lease_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned()),
        name: args.lease_name.clone(),
        identity: args
            .identity
            .clone()
            .unwrap_or_else(|| format!("{host}-{}", uuid::Uuid::new_v4().simple())),
        duration,
        retry: duration / 7,
    }
}

/// Ends with the first part that ends.
async fn first_end(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match tasks.join_next().await {
        Some(ended) => ended.context("a part panicked")?,
        None => bail!("nothing runs"),
    }
}

/// Asks gateways until `stop`, if there are any.
async fn ask(gateways: Arc<Gateways>, stop: CancellationToken) -> anyhow::Result<()> {
    gateways.run(stop.clone()).await;
    stop.cancelled().await;
    Ok(())
}

async fn until_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        () = stop.cancelled() => {}
    }
    stop.cancel();
    Ok(())
}
