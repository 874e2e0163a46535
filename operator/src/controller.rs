//! Watches, and what they lead to.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use belay_crds::ModelDeployment;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    channel::mpsc::{self, UnboundedReceiver, UnboundedSender},
    stream,
};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Node, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        Controller, Predicate as _, PredicateConfig, WatchStreamExt as _,
        controller::{Action, Config},
        predicates, reflector,
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    backoff::{ErrorClass, key},
    cache::{self, Key, Progress, Told},
    context::Context,
    error::describe,
    nodes::{self, NodeState},
    reconcile::{ReconcileError, reconcile},
};

type Guarded = DeserializeGuard<ModelDeployment>;

/// Deployments that are worked on at the same time.
const CONCURRENCY: u16 = 16;

/// How soon a deployment is looked at again that the watches were behind with. What they tell meanwhile may bring it sooner.
const PUT_OFF: Duration = Duration::from_millis(100);

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
    nodes_changed: UnboundedReceiver<String>,
    stop: CancellationToken,
) {
    let client = &context.client;
    let (reader, writer) = reflector::store::<Guarded>();
    let watched = watcher(api::<Guarded>(client, namespace), watcher::Config::default())
        .default_backoff()
        .modify(|deployment| deployment.meta_mut().managed_fields = None);
    let (told, mut listed) = (Arc::clone(&context), 0);
    let roots = reflector(writer, watched)
        // after the store has it: who waits for it finds it there
        .inspect_ok(move |event| note(told.cache.deployments(), &mut listed, event))
        .applied_objects()
        // our own status writes are no news; an annotation may ask for something
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let (news, changed) = mpsc::unbounded();
    let moved = Arc::clone(&context);
    let on_nodes = nodes_changed.flat_map(move |node| stream::iter(moved.cache.on_node(&node)));
    let store = reader.clone();
    let due = due(context.clone());
    let control = Controller::for_stream(roots, reader)
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(GATHER))
        .reconcile_on(stream::select(changed, on_nodes).map(reference))
        .reconcile_on(due)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(move |object, context| work(object, store.clone(), context), on_error, context.clone())
        .for_each(async |result| {
            if let Err(error) = result {
                debug!(error = describe(&error), "not reconciled");
            }
        });
    let control = async {
        tokio::select! {
            // what is not listed yet would look as if it were gone
            () = context.cache.wait_until_ready() => control.await,
            () = stop.cancelled() => {}
        }
    };
    // the watches go on until what is under way at the end is done
    tokio::select! {
        () = control => {}
        () = context.cache.watch(client, namespace, news) => {}
    }
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

fn reference(key: Key) -> ObjectRef<Guarded> {
    ObjectRef::new(&key.name).within(&key.namespace)
}

/// How far the watch of deployments is. A list counts once it is complete: `listed` is its newest version so far.
fn note(progress: &Progress, listed: &mut u64, event: &watcher::Event<Guarded>) {
    use watcher::Event;
    match event {
        Event::Init => {
            *listed = 0;
            progress.note(None, true, false);
        }
        Event::InitApply(deployment) => *listed = cache::version(deployment).unwrap_or(0).max(*listed),
        Event::InitDone => progress.note(Some(*listed), false, true),
        Event::Apply(deployment) | Event::Delete(deployment) => {
            progress.note(cache::version(deployment), false, false);
        }
    }
}

async fn work(
    object: Arc<Guarded>,
    store: Store<Guarded>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let Some(object) = fresh(object, &store, &context).await? else {
        context.metrics.put_off();
        return Ok(Action::requeue(PUT_OFF));
    };
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
        context.cache.forget(&deployment.uid().unwrap_or_default());
    }
    result
}

/// The deployment with the last status that was written: the next one is made from it. `None` while the watches are behind with
/// that, or with what it owns.
async fn fresh(
    object: Arc<Guarded>,
    store: &Store<Guarded>,
    context: &Context,
) -> Result<Option<Arc<Guarded>>, ReconcileError> {
    let uid = object.uid().unwrap_or_default();
    let owned = Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
    match context.cache.told(&owned, &uid).await {
        Told::All => Ok(Some(store.get(&ObjectRef::from_obj(&*object)).unwrap_or(object))),
        Told::Later => Ok(None),
        Told::Ask => {
            debug!(deployment = key(&*object), "the watch is behind: the API server is asked");
            let api: Api<Guarded> = api(&context.client, object.namespace().as_deref());
            api.get(&object.name_any())
                .await
                .map(|object| Some(Arc::new(object)))
                .map_err(ReconcileError::Observe)
        }
    }
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

/// Keeps the store of nodes up to date until `stop`, and tells which node comes, goes, stops or starts answering, or is
/// cordoned. Heartbeats are not told.
pub async fn watch_nodes(
    client: Client,
    writer: Writer<Node>,
    changed: UnboundedSender<String>,
    stop: CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client);
    let stream = watcher(nodes, watcher::Config::default()).default_backoff().modify(nodes::strip);
    let mut stream = std::pin::pin!(reflector(writer, stream));
    let (mut known, mut listed) = (HashMap::<String, NodeState>::new(), HashSet::new());
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            () = stop.cancelled() => return,
        };
        let news: Vec<String> = match event {
            None => return,
            Some(Err(error)) => {
                warn!(error = describe(&error), "watch of nodes broke; it is taken up again");
                vec![]
            }
            Some(Ok(watcher::Event::Init)) => {
                listed.clear();
                vec![]
            }
            Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                let (name, state) = (node.name_any(), NodeState::of(&node));
                listed.insert(name.clone());
                let is_news = known.insert(name.clone(), state.clone()) != Some(state);
                is_news.then_some(name).into_iter().collect()
            }
            Some(Ok(watcher::Event::Delete(node))) => {
                known.remove(&node.name_any());
                vec![node.name_any()]
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let gone: Vec<String> =
                    known.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| drop(known.remove(name)));
                gone
            }
        };
        for node in news {
            // nobody listens any more: the end is near
            let _ = changed.unbounded_send(node);
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
