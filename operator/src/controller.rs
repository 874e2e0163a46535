//! Watches, and what they lead to.
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use belay_crds::{ModelDeployment, labels};
use futures::{Stream, StreamExt as _, channel::mpsc, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::ControllerRevision,
        core::v1::{ConfigMap, Node, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
        controller::{Action, Config},
        predicates, reflector,
        reflector::{ObjectRef, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    backoff::{ErrorClass, key},
    context::Context,
    error::describe,
    nodes::{self, NodeState},
    reconcile::{ReconcileError, reconcile},
};

type Guarded = DeserializeGuard<ModelDeployment>;

/// Deployments that are worked on at the same time.
const CONCURRENCY: u16 = 16;

/// How long to gather events about a deployment before it is looked at: pods of a group change together.
const GATHER: Duration = Duration::from_millis(50);

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Works on every ModelDeployment of `namespace` (all, if `None`) until `stop`.
pub async fn run(
    context: Arc<Context>,
    namespace: Option<&str>,
    nodes_changed: mpsc::Receiver<()>,
    stop: CancellationToken,
) {
    let client = &context.client;
    let children = watcher::Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::OPERATOR));
    let (reader, writer) = reflector::store::<Guarded>();
    let roots = reflector(writer, watcher(api::<Guarded>(client, namespace), watcher::Config::default()))
        .default_backoff()
        .applied_objects()
        // our own status writes are no news; an annotation may ask for something
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let due = due(context.clone());
    Controller::for_stream(roots, reader)
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(GATHER))
        .owns(api::<Pod>(client, namespace), children.clone())
        .owns(api::<Service>(client, namespace), children.clone())
        .owns(api::<ConfigMap>(client, namespace), children.clone())
        .owns(api::<ControllerRevision>(client, namespace), children.clone())
        .owns(api::<PodDisruptionBudget>(client, namespace), children)
        .reconcile_all_on(nodes_changed)
        .reconcile_on(due)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(work, on_error, context.clone())
        .for_each(async |result| {
            if let Err(error) = result {
                debug!(error = describe(&error), "not reconciled");
            }
        })
        .await;
    info!("controller stopped");
}

/// Deployments whose load must be looked at, as gateways tell of it.
fn due(context: Arc<Context>) -> impl Stream<Item = ObjectRef<Guarded>> {
    let rounds = context.gateways.rounds();
    stream::unfold((context, rounds), async |(context, mut rounds)| {
        rounds.changed().await.ok()?;
        let due = context.autoscaler.due(&context.gateways, Timestamp::now());
        let refs = due.into_iter().map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
        Some((stream::iter(refs.collect::<Vec<_>>()), (context, rounds)))
    })
    .flatten()
}

async fn work(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let deployment = match &object.0 {
        Ok(deployment) => deployment,
        Err(invalid) => {
            // admission let it pass under another definition; the others must not suffer
            error!(deployment = key(&*object), error = invalid.error, "the object cannot be read");
            return Ok(Action::await_change());
        }
    };
    let began = Instant::now();
    let result = reconcile(&context, deployment).await;
    let class = result.as_ref().err().map(|error| class_of(error).as_str());
    context.metrics.observe_reconcile(began.elapsed(), class);
    if result.is_ok() {
        context.backoff.reset(&key(&*object));
    }
    if deployment.metadata.deletion_timestamp.is_some() {
        let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
        context.metrics.forget(&namespace, &name);
        context.gateways.forget(&namespace, &name);
        context.autoscaler.forget(&namespace, &name);
    }
    result
}

fn on_error(object: Arc<Guarded>, failure: &ReconcileError, context: Arc<Context>) -> Action {
    let class = class_of(failure);
    let key = key(&*object);
    let pause = context.backoff.next(&key, class);
    if class == ErrorClass::Conflict {
        debug!(deployment = key, error = describe(failure), "conflict; again at once");
    } else {
        error!(
            deployment = key,
            class = class.as_str(),
            error = describe(failure),
            ?pause,
            "reconcile failed"
        );
    }
    Action::requeue(pause)
}

fn class_of(failure: &ReconcileError) -> ErrorClass {
    match failure {
        ReconcileError::Observe(error) | ReconcileError::Status(error) | ReconcileError::Scale(error) => {
            ErrorClass::of(error)
        }
        ReconcileError::Apply(error) => ErrorClass::of(&error.source),
        ReconcileError::Build(_) => ErrorClass::Internal,
    }
}

/// Keeps the store of nodes up to date until `stop`, and tells when a node comes, goes, stops or starts answering, or
/// is cordoned. Heartbeats are not told.
pub async fn watch_nodes(
    client: Client,
    writer: Writer<Node>,
    mut changed: mpsc::Sender<()>,
    stop: CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client);
    let stream = watcher(nodes, watcher::Config::default()).default_backoff().modify(nodes::strip);
    let mut stream = std::pin::pin!(reflector(writer, stream));
    let mut known: HashMap<String, NodeState> = HashMap::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = stop.cancelled() => return,
        };
        let news = match event {
            None => return,
            Some(Err(error)) => {
                warn!(error = describe(&error), "watch of nodes broke; it is taken up again");
                false
            }
            Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                let state = NodeState::of(&node);
                known.insert(node.name_any(), state.clone()) != Some(state)
            }
            Some(Ok(watcher::Event::Delete(node))) => known.remove(&node.name_any()).is_some(),
            Some(Ok(watcher::Event::InitDone)) => true,
            Some(Ok(watcher::Event::Init)) => false,
        };
        // one waiting message is enough: it makes everything be looked at
        if news && changed.try_send(()).is_err() && changed.is_closed() {
            return;
        }
    }
}

/// Whether the API server serves our resource to us: asked before anything is started.
///
/// # Errors
/// When it does not.
pub async fn probe<K>(api: &Api<K>) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    api.list(&kube::api::ListParams::default().limit(1)).await.map(drop)
}

/// The api that [`probe`] is for.
pub fn deployments(client: &Client, namespace: Option<&str>) -> Api<Guarded> {
    api(client, namespace)
}
