//! The life of a worker: open → (placement) → load → connect → ready, and on from there.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use belay_backend::{Backend, Fabric};
use belay_engine::{Engine, EngineConfig, Observer, ServedModel};
use belay_fabric::{Group, Identity, InProcess, Table, Timeouts};
use belay_model::{CacheOptions, Checkpoint, Model};
use belay_proto::admin::{self, Phase};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::config::Switch;
use crate::context::Context;
use crate::loader::{self, LoadError, Opened, Ranks, proto_card};
use crate::placement::{self, Slot};

/// How often the life cycle looks whether the engine still runs.
const ENGINE_CHECK: Duration = Duration::from_secs(1);

/// Fewest tokens that a request must be able to have.
const LEAST_CONTEXT: usize = 128;

/// Why a life ended early, apart from the failed phase: the process itself is broken.
type Fatal = anyhow::Error;

/// Leads one worker through its life until `stop`; the failed phase waits there as well.
///
/// `fabric` is the listener for peers; unused stand-alone.
///
/// # Errors
/// When a thread can't be started or a blocking task panics.
pub async fn live<B: Backend + 'static>(
    context: Arc<Context>,
    backend: Arc<B>,
    fabric: Option<TcpListener>,
    stop: CancellationToken,
) -> Result<(), Fatal> {
    let life = async {
        match (context.slot(), fabric) {
            (Some(slot), Some(listener)) => grouped(&context, backend, slot, listener, &stop).await,
            _ => alone(&context, backend, &stop).await,
        }
    };
    // that ends the life: no placement and no peer makes this worker ready again
    let ended = tokio::select! {
        ended = life => ended,
        why = engine_stops(&context) => Err(Ending::EngineStopped(why)),
    };
    match ended {
        Ok(()) => {}
        Err(Ending::Failed(error)) => context.shared.fail(error.reason(), error.to_string()),
        Err(Ending::EngineStopped(why)) => context.shared.fail("EngineStopped", why),
        Err(Ending::Fatal(error)) => return Err(error),
    }
    // a failed worker stays up and says why
    stop.cancelled().await;
    Ok(())
}

/// Waits until the engine has stopped by itself, and says why.
async fn engine_stops(context: &Context) -> String {
    loop {
        tokio::time::sleep(ENGINE_CHECK).await;
        if let Some(why) = context.engine_stopped() {
            return why;
        }
    }
}

enum Ending {
    Failed(LoadError),
    EngineStopped(String),
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
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, Ending> {
    let outcome = spawn_blocking(work).await.map_err(|panic| anyhow::anyhow!("loading panicked: {panic}"))?;
    Ok(outcome?)
}

async fn open(context: &Arc<Context>) -> Result<Opened, Ending> {
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
    backend: Arc<B>,
    stop: &CancellationToken,
) -> Result<(), Ending> {
    let opened = open(context).await?;
    let card = opened.checkpoint.card();
    let hidden = opened.checkpoint.config().hidden_size;
    let ranks = context.config.devices_per_worker;
    let table = Table::stand_alone(card.layers as usize, card.experts as usize, ranks)
        .map_err(|error| LoadError::Options(error.to_string()))?;
    let ranks = Arc::new(Ranks::new(&backend, &opened.checkpoint, 0, ranks));
    let model = load(context, &backend, &opened.checkpoint, &ranks, &table).await?;
    let fabric = InProcess::new(table, ranks.compute(), hidden);
    context.fabric_stats.store(Some(fabric.stats()));
    start_engine(context, model, Arc::new(fabric), &opened)?;
    context.shared.enter(Phase::Ready, "");
    stop.cancelled().await;
    Ok(())
}

async fn grouped<B: Backend + 'static>(
    context: &Arc<Context>,
    backend: Arc<B>,
    slot: Slot,
    listener: TcpListener,
    stop: &CancellationToken,
) -> Result<(), Ending> {
    let opened = open(context).await?;
    let peers_changed = Arc::new(Notify::new());
    let group = start_group(context, &opened.checkpoint, &slot, listener, Arc::clone(&peers_changed))?;
    let ranks = Arc::new(Ranks::new(&backend, &opened.checkpoint, slot.worker, slot.ranks));
    let mut placements = context.placement.subscribe();
    context.shared.enter(Phase::WaitingForPlacement, "waiting for SetPlacement");
    mounted_placement(context, &slot).await;

    let mut in_force: Option<u64> = None;
    loop {
        let newest = placements.borrow_and_update().clone();
        if let Some(document) = newest.filter(|document| in_force != Some(document.epoch)) {
            let card = context.shared.get().card.unwrap_or_default();
            let table = placement::accept(&document, &slot, &card)
                .map_err(|refusal| LoadError::Options(format!("placement: {refusal}")))?;
            if in_force.is_none() {
                let model = load(context, &backend, &opened.checkpoint, &ranks, &table).await?;
                start_engine(context, model, Arc::clone(&group) as Arc<dyn Fabric>, &opened)?;
            } else {
                load_more(context, &opened.checkpoint, &ranks, &table).await?;
            }
            group.update(table.clone(), ranks.compute())?;
            ranks.retire(&table);
            in_force = Some(document.epoch);
            context.shared.change(|state| {
                state.epoch = document.epoch;
                state.ranks = ranks.status();
            });
            tracing::info!(epoch = document.epoch, "placement in force");
        }
        if in_force.is_some() {
            follow_peers(context, &group);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = placements.changed() => {}
            () = peers_changed.notified() => {}
        }
    }
}

fn start_group(
    context: &Context,
    checkpoint: &Checkpoint,
    slot: &Slot,
    listener: TcpListener,
    peers_changed: Arc<Notify>,
) -> Result<Arc<Group>, Ending> {
    let identity = Identity {
        group: slot.group.clone(),
        revision: slot.revision.clone(),
        digest: checkpoint.card().digest.clone(),
        worker: slot.worker,
        uid: slot.uid.clone(),
        hidden: checkpoint.config().hidden_size as u32,
    };
    let timeouts =
        Timeouts { ask: Duration::from_secs(context.config.fabric_timeout_seconds), ..Timeouts::default() };
    let group = Arc::new(Group::start(identity, listener, timeouts, move || peers_changed.notify_one())?);
    context.fabric_stats.store(Some(group.stats()));
    context.group.store(Some(Arc::clone(&group)));
    Ok(group)
}

/// Takes the mounted placement if there is one that fits; what does not fit is waited out, since a newer one comes
/// by SetPlacement.
async fn mounted_placement(context: &Arc<Context>, slot: &Slot) {
    let Some(path) = context.config.placement_file.clone() else { return };
    let document = match tokio::fs::read(&path).await {
        Ok(json) => serde_json::from_slice::<admin::Placement>(&json).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error.to_string()),
    };
    let card = context.shared.get().card.unwrap_or_default();
    let taken = document.and_then(|document| {
        placement::accept(&document, slot, &card).map_err(|refusal| refusal.to_string())?;
        context.placement.send_if_modified(|current| {
            let is_newer = current.as_ref().is_none_or(|current| current.epoch < document.epoch);
            if is_newer {
                *current = Some(Arc::new(document));
            }
            is_newer
        });
        Ok(())
    });
    if let Err(reason) = taken {
        tracing::warn!(path = %path.display(), reason, "the mounted placement does not fit");
        context.shared.enter(
            Phase::WaitingForPlacement,
            format!("waiting for SetPlacement; the mounted placement does not fit: {reason}"),
        );
    }
}

/// The first load: dense weights and this worker's share of the experts.
async fn load<B: Backend + 'static>(
    context: &Arc<Context>,
    backend: &Arc<B>,
    checkpoint: &Arc<Checkpoint>,
    ranks: &Arc<Ranks<B>>,
    table: &Table,
) -> Result<Model<B>, Ending> {
    context.shared.enter(Phase::Loading, "loading weights");
    let started = std::time::Instant::now();
    let work = (Arc::clone(backend), Arc::clone(checkpoint), Arc::clone(ranks), Arc::clone(&context.shared));
    let table = table.clone();
    let cache = CacheOptions { memory: context.config.memory, format: context.config.kv_format };
    let model = blocking(move || {
        let (backend, checkpoint, ranks, shared) = work;
        loader::load(&backend, &checkpoint, &ranks, &table, cache, &shared)
    })
    .await?;
    context.shared.change(|state| state.ranks = ranks.status());
    let (bytes, _) = context.shared.loaded();
    tracing::info!(bytes, seconds = started.elapsed().as_secs_f64(), "loaded");
    Ok(model)
}

/// Experts that a later placement adds. The worker goes on serving with the placement in force meanwhile.
async fn load_more<B: Backend + 'static>(
    context: &Arc<Context>,
    checkpoint: &Checkpoint,
    ranks: &Arc<Ranks<B>>,
    table: &Table,
) -> Result<(), Ending> {
    let bytes = ranks.missing_bytes(table, checkpoint);
    if bytes == 0 {
        return Ok(());
    }
    let (ranks, shared, table) = (Arc::clone(ranks), Arc::clone(&context.shared), table.clone());
    blocking(move || {
        let (done, _) = shared.loaded();
        ranks.load(&table, &shared, done, done + bytes)
    })
    .await
}

fn start_engine<B: Backend + 'static>(
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

/// Ready while every peer of the placement is connected, else connecting.
fn follow_peers(context: &Context, group: &Group) {
    let away: Vec<String> = group
        .peers()
        .iter()
        .filter(|peer| !peer.connected)
        .map(|peer| format!("worker {}: {}", peer.worker, peer.message))
        .collect();
    if away.is_empty() {
        context.shared.enter(Phase::Ready, "");
    } else {
        context.shared.enter(Phase::Connecting, away.join("; "));
    }
}
