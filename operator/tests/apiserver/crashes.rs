//! An operator that dies at any point: the reconcile is dropped at a random await, also while an answer of the API server
//! is under way, and another one goes on with nothing but what is written.
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use belay_crds::{ModelDeployment, ModelDeploymentStatus, RebalancePolicy};
use belay_operator::{
    analysis::Analyses,
    attendance::Attendance,
    autoscaler::Autoscaler,
    backoff::Backoff,
    cache::Cache,
    context::{Context, Settings},
    controller,
    faults::Faults,
    gateways::Gateways,
    loads::Loads,
    metrics::Metrics,
    reconcile::reconcile,
    warnings::Warnings,
    worker_client::WorkerClient,
};
use belay_proto::admin::Placement;
use futures::channel::mpsc;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
    runtime::{
        events::{Recorder, Reporter},
        reflector::{self, Store},
    },
};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{control_plane::OPERATOR, scenarios::Cluster, settled::settled};

/// Crashes of each kind of operation at least.
const CRASHES: u32 = 20;
/// Crashes in one operation at most: then it may end.
const IN_A_ROW: u32 = 4;
/// A reconcile is polled about that often.
const POLLS: u64 = 60;

/// A future that ends when it has been polled so often.
struct DropAfter<F> {
    inner: Pin<Box<F>>,
    polls: u64,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        self.inner.as_mut().poll(context).map(Some)
    }
}

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Operators that die.
struct Mortal<'a> {
    cluster: &'a Cluster,
    nodes: Store<Node>,
    operator: Operator,
    random: Random,
    crashes: u32,
}

/// One of them, until it dies.
struct Operator {
    context: Arc<Context>,
    /// Its watches die with it.
    watches: AbortOnDropHandle<()>,
}

impl<'a> Mortal<'a> {
    async fn new(cluster: &'a Cluster, stop: &CancellationToken) -> Self {
        let client = cluster.plane.client(OPERATOR).await;
        let (nodes, writer) = reflector::store();
        // nobody reads what is news: every round looks anyway
        let (changed, _) = mpsc::unbounded();
        tokio::spawn(controller::watch_nodes(client, writer, changed, stop.clone()));
        nodes.wait_until_ready().await.unwrap();
        let operator = born(cluster, &nodes).await;
        Self { cluster, nodes, operator, random: Random(7), crashes: 0 }
    }

    async fn look(&self) -> ModelDeployment {
        self.cluster.api::<ModelDeployment>().get("nano").await.unwrap()
    }

    /// Reconciles until it is done, dying on the way.
    async fn until(&mut self, what: &str, done: impl Fn(&ModelDeploymentStatus) -> bool) {
        let end = Instant::now() + Duration::from_secs(90);
        let mut left = IN_A_ROW;
        loop {
            let deployment = self.look().await;
            if deployment.status.as_ref().is_some_and(&done) {
                return;
            }
            assert!(Instant::now() < end, "not reached: {what}; {:#?}", deployment.status);
            let context = Arc::clone(&self.operator.context);
            let work = Box::pin(async move { reconcile(&context, &deployment).await.map(drop) });
            let polls = if left > 0 { 1 + self.random.below(POLLS) } else { u64::MAX };
            match (DropAfter { inner: work, polls }).await {
                None => {
                    left -= 1;
                    self.crashes += 1;
                    self.operator = born(self.cluster, &self.nodes).await;
                }
                // a conflict with what a dead one wrote last is looked at again, as the controller does
                Some(Err(_)) | Some(Ok(())) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn placement(&self) -> Placement {
        let group = self.look().await.status.unwrap().groups[0].name.clone();
        let config_map: ConfigMap = self.cluster.api().get(&format!("{group}-placement")).await.unwrap();
        serde_json::from_str(&config_map.data.unwrap()["placement.json"]).unwrap()
    }
}

async fn born(cluster: &Cluster, nodes: &Store<Node>) -> Operator {
    let client = cluster.plane.client(OPERATOR).await;
    let reporter = Reporter { controller: "belay-operator".into(), instance: None };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        nodes: nodes.clone(),
        cache: Cache::default(),
        workers: WorkerClient::default(),
        attendance: Attendance::default(),
        faults: Faults::new("", ""),
        loads: Loads::default(),
        gateways: Arc::new(Gateways::new(None)),
        autoscaler: Autoscaler::default(),
        analyses: Analyses::default(),
        warnings: Warnings::default(),
        settings: Settings { worker_image: Some("worker:1".into()), node_lost_seconds: 2 },
        metrics: Metrics::default(),
        backoff: Backoff::default(),
        client,
    });
    let of = Arc::clone(&context);
    let (news, _) = mpsc::unbounded();
    let watches = tokio::spawn(async move { of.cache.watch(&of.client, None, news).await });
    context.cache.wait_until_ready().await;
    Operator { context, watches: AbortOnDropHandle::new(watches) }
}

impl Cluster {
    pub async fn crashes_in_a_recovery_lose_nothing(&mut self) {
        self.stop_operator();
        {
            let stop = CancellationToken::new();
            let mut operators = Mortal::new(self, &stop).await;
            // a few copies a round, so that there is something to interrupt
            self.nodes.set_pace(2);
            while operators.crashes < CRASHES {
                let before = operators.placement().await;
                let pods = self.pods("nano").await;
                let victim = &pods[operators.crashes as usize % pods.len()];
                self.api::<Pod>().delete(&victim.name_any(), &DeleteParams::default()).await.unwrap();
                let epoch = i64::try_from(before.epoch).unwrap();
                let next = Some(epoch + 1);
                let back = |s: &ModelDeploymentStatus| settled(s) && s.groups[0].placement_epoch == next;
                operators.until("recovered by one change", back).await;
                assert_eq!(operators.placement().await.layers, before.layers, "experts are where they were");
            }
            stop.cancel();
        }
        assert_eq!(self.nodes.faults(), Vec::<String>::new());
        self.nodes.set_pace(usize::MAX);
        self.start_operator("worker:1");
    }

    /// Watches that tell nothing any more, on connections that look alive: what an operator wrote it must see nevertheless.
    pub async fn watches_that_hang_mislead_nobody(&mut self) {
        self.stop_operator();
        {
            let stop = CancellationToken::new();
            let operators = Mortal::new(self, &stop).await;
            operators.operator.watches.abort();
            let before = self.uids("nano").await;
            for replicas in [2, 1] {
                self.scale("nano", replicas).await;
                let end = Instant::now() + Duration::from_secs(120);
                loop {
                    let deployment = operators.look().await;
                    let status = deployment.status.clone().unwrap_or_default();
                    assert!(status.replicas <= 2, "nothing is made twice: {status:#?}");
                    if settled(&status) && (status.replicas, status.ready_replicas) == (replicas, replicas) {
                        break;
                    }
                    assert!(Instant::now() < end, "not reached: {replicas} groups; {status:#?}");
                    reconcile(&operators.operator.context, &deployment).await.unwrap();
                }
            }
            assert_eq!(self.uids("nano").await, before, "the first group was left alone");
            stop.cancel();
        }
        self.start_operator("worker:1");
    }

    pub async fn crashes_in_a_rebalance_repeat_nothing(&mut self) {
        self.stop_operator();
        let manual = json!({ "policy": RebalancePolicy::Manual });
        self.change("nano", json!({ "experts": { "rebalance": manual } })).await;
        {
            let stop = CancellationToken::new();
            let mut operators = Mortal::new(self, &stop).await;
            self.nodes.set_pace(1);
            let mut asked = 0;
            while operators.crashes < CRASHES {
                let before = operators.placement().await;
                // two experts that share a rank get all there is to do
                let experts = &before.layers[0].experts;
                let shares = |a: usize, b: usize| a != b && experts[a].ranks[0] == experts[b].ranks[0];
                let pairs = (0..8).flat_map(|a| (0..8).map(move |b| (a, b)));
                let (a, b) = pairs.filter(|&(a, b)| shares(a, b)).nth(asked % 3).unwrap();
                let load = |e: usize| if e == a || e == b { 1_000_000_000 } else { 1000 };
                self.nodes.set_load((0..8).map(load).collect());
                asked += 1;
                let value = format!("ask-{asked}");
                let patch = Patch::Merge(
                    json!({ "metadata": { "annotations": { "serving.belay.dev/rebalance": value } } }),
                );
                let api = self.api::<ModelDeployment>();
                api.patch("nano", &PatchParams::default(), &patch).await.unwrap();
                let done = |s: &ModelDeploymentStatus| {
                    let last = s.groups[0].last_rebalance.as_ref();
                    settled(s) && last.is_some_and(|last| last.reason == value)
                };
                operators.until("rebalanced", done).await;
                let after = operators.placement().await;
                assert_eq!(after.epoch, before.epoch + 1, "once for each time that it was asked for");
                assert_ne!(after.layers, before.layers);
            }
            stop.cancel();
        }
        assert_eq!(self.nodes.faults(), Vec::<String>::new());
        self.nodes.set_pace(usize::MAX);
        self.nodes.set_load(vec![]);
        self.start_operator("worker:1");
    }
}
