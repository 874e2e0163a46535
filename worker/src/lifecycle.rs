//! The life of a worker: open → (placement) → load → connect → ready, and on from there.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use belay_backend::{Backend, Fabric};
use belay_engine::{Engine, EngineConfig, Observer, ServedModel};
use belay_fabric::{InProcess, Table};
use belay_model::{CacheOptions, Checkpoint, Model};
use belay_proto::admin::Phase;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::config::Switch;
use crate::context::Context;
use crate::devices::Devices;
use crate::group_life::grouped;
use crate::loader::{self, LoadError, Opened, proto_card};
use crate::ranks::{Copy, Ranks};

/// How often the life cycle looks whether engine and devices are still there.
const LOOK: Duration = Duration::from_millis(250);

/// Fewest tokens that a request must be able to have.
const LEAST_CONTEXT: usize = 128;

/// Why a life ended early, apart from the failed phase: the process itself is broken.
pub(crate) type Fatal = anyhow::Error;

/// Leads one worker through its life until `stop`; the failed phase waits there as well.
///
/// `fabric` is the listener for peers; unused stand-alone.
///
/// # Errors
/// When a thread can't be started or a blocking task panics.
pub async fn live<B: Backend + 'static>(
    context: Arc<Context>,
    devices: Devices<B>,
    fabric: Option<TcpListener>,
    stop: CancellationToken,
) -> Result<(), Fatal> {
    let watched = devices.clone();
    let life = async {
        match fabric {
            Some(listener) => grouped(&context, devices, listener, &stop).await,
            None => alone(&context, devices, &stop).await,
        }
    };
    // that ends the life: no placement and no peer makes this worker ready again
    let ended = tokio::select! {
        ended = life => ended,
        ending = breaks(&context, &watched) => Err(ending),
    };
    match ended {
        Ok(()) => {}
        Err(Ending::Failed(error)) => context.shared.fail(error.reason(), error.to_string()),
        Err(Ending::EngineStopped(why)) => context.shared.fail("EngineStopped", why),
        Err(Ending::DeviceLost(why)) => {
            context.shared.fail("DeviceLost", why);
            leave(&context).await;
        }
        Err(Ending::Fatal(error)) => return Err(error),
    }
    // a failed worker stays up and says why
    stop.cancelled().await;
    Ok(())
}

/// Waits until a device is lost or the engine has stopped by itself.
async fn breaks<B: Backend>(context: &Context, devices: &Devices<B>) -> Ending {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(why) = devices.lost() {
            return Ending::DeviceLost(why);
        }
        if let Some(why) = context.engine_stopped() {
            return Ending::EngineStopped(why);
        }
    }
}

/// Ends what a worker without its devices can't go on with: requests, which go on elsewhere, and its part in the group,
/// so that the others look for its experts elsewhere at once.
async fn leave(context: &Arc<Context>) {
    let context = Arc::clone(context);
    let leaving = spawn_blocking(move || {
        if let Some(engine) = context.engine.swap(None) {
            engine.shutdown();
        }
        if let Some(group) = context.group.swap(None) {
            group.shutdown();
        }
    });
    if let Err(error) = leaving.await {
        tracing::error!(%error, "the worker could not leave its group");
    }
}

/// Why a life ended.
pub(crate) enum Ending {
    /// The checkpoint or the options.
    Failed(LoadError),
    /// The engine, by itself.
    EngineStopped(String),
    /// A device can do nothing more.
    DeviceLost(String),
    /// The process is broken.
    Fatal(Fatal),
}

impl From<LoadError> for Ending {
    fn from(error: LoadError) -> Self {
        Self::Failed(error)
    }
}

impl From<Fatal> for Ending {
    fn from(error: Fatal) -> Self {
        Self::Fatal(error)
    }
}

impl From<std::io::Error> for Ending {
    fn from(error: std::io::Error) -> Self {
        Self::Fatal(error.into())
    }
}

/// Runs blocking work; a panic in it is fatal.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, Ending> {
    let outcome = spawn_blocking(work).await.map_err(|panic| anyhow::anyhow!("loading panicked: {panic}"))?;
    Ok(outcome?)
}

/// Reads the checkpoint's headers and tells the card.
pub(crate) async fn open(context: &Arc<Context>) -> Result<Opened, Ending> {
    let config = context.config.clone();
    let opened = blocking(move || loader::open(&config)).await?;
    let mut card = proto_card(opened.checkpoint.card());
    if let Some(limit) = context.config.max_context_tokens {
        card.max_context_tokens = limit;
    }
    tracing::info!(layers = card.layers, experts = card.experts, digest = card.digest, "checkpoint");
    context.shared.change(|state| state.card = Some(card));
    Ok(opened)
}

async fn alone<B: Backend + 'static>(
    context: &Arc<Context>,
    devices: Devices<B>,
    stop: &CancellationToken,
) -> Result<(), Ending> {
    let opened = open(context).await?;
    let card = opened.checkpoint.card();
    let hidden = opened.checkpoint.config().hidden_size;
    let ranks = context.config.devices_per_worker;
    let table = Table::stand_alone(card.layers as usize, card.experts as usize, ranks)
        .map_err(|error| LoadError::Options(error.to_string()))?;
    let wanted: Vec<Vec<_>> = (0..ranks).map(|rank| table.of_rank(rank).collect()).collect();
    let limit = context.config.expert_memory.map(|bytes| bytes as u64);
    let ranks = Arc::new(Ranks::new(&devices, &opened.checkpoint, 0, ranks, limit));
    context.ranks.store(Some(Arc::new(Arc::clone(&ranks) as _)));
    let model = load(context, devices.dense(), &opened.checkpoint, &ranks, wanted).await?;
    let fabric =
        Arc::new(InProcess::new(table, ranks.compute(), hidden).with_format(context.config.fabric_format));
    context.fabric_stats.store(Some(fabric.stats()));
    context.alone.store(Some(Arc::clone(&fabric)));
    start_engine(context, model, fabric, &opened)?;
    context.shared.enter(Phase::Ready, "");
    stop.cancelled().await;
    Ok(())
}

/// Dense weights, then all experts.
async fn load<B: Backend + 'static>(
    context: &Arc<Context>,
    backend: &Arc<B>,
    checkpoint: &Arc<Checkpoint>,
    ranks: &Arc<Ranks<B>>,
    wanted: Vec<Vec<Copy>>,
) -> Result<Model<B>, Ending> {
    context.shared.enter(Phase::Loading, "loading weights");
    let started = std::time::Instant::now();
    let work = (Arc::clone(backend), Arc::clone(checkpoint), Arc::clone(ranks), Arc::clone(&context.shared));
    let cache = CacheOptions { memory: context.config.memory, format: context.config.kv_format };
    let model = blocking(move || {
        let (backend, checkpoint, ranks, shared) = work;
        let base = checkpoint.card().dense_bytes;
        let total = base + ranks.missing_bytes(&wanted);
        let model = loader::dense(&backend, &checkpoint, cache, total, &shared)?;
        ranks.load(&wanted, &|| false, &mut |done| shared.load_progress(base + done, total))?;
        Ok(model)
    })
    .await?;
    context.shared.change(|state| state.ranks = ranks.status());
    let (bytes, _) = context.shared.loaded();
    tracing::info!(bytes, seconds = started.elapsed().as_secs_f64(), "loaded");
    Ok(model)
}

/// Starts the engine over what is loaded.
pub(crate) fn start_engine<B: Backend + 'static>(
    context: &Context,
    model: Model<B>,
    fabric: Arc<dyn Fabric>,
    opened: &Opened,
) -> Result<(), Ending> {
    let options = &context.config;
    let config = EngineConfig {
        max_context: options.max_context_tokens.map(|tokens| tokens as usize),
        max_sessions: options.max_sessions as usize,
        max_queued: options.max_queued as usize,
        step_tokens: options.step_tokens as usize,
        prefix_cache: options.prefix_cache == Switch::On,
        ..EngineConfig::default()
    };
    let model = ServedModel::new(model, fabric);
    let observer = Arc::clone(&context.requests) as Arc<dyn Observer>;
    let engine = Engine::start_observed(model, Arc::clone(&opened.tokenizer), config, observer)?;
    // without a wish for the context, whatever fits will do, if it is enough to say anything at all
    let needed = options.max_context_tokens.map_or(LEAST_CONTEXT, |tokens| tokens as usize);
    let fits = engine.max_context();
    if fits < needed {
        engine.shutdown();
        return Err(Ending::Failed(LoadError::Options(format!(
            "BELAY_KV_MEMORY: {} bytes hold the state of {fits} tokens, but a request of {needed} must fit",
            options.memory
        ))));
    }
    context.engine.store(Some(Arc::new(engine)));
    Ok(())
}
