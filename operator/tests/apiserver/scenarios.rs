//! What is played through, one after the other on one control plane.
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use belay_crds::{ModelDeployment, ModelDeploymentStatus};
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{ConfigMap, Pod, Secret, Service},
    events::v1::Event,
    policy::v1::{Eviction, PodDisruptionBudget},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    control_plane::{ADMIN, ControlPlane, OPERATOR, free_port},
    install::install,
    metrics,
    played_gateway::PlayedGateway,
    played_nodes::PlayedNodes,
    settled::{condition, settled},
};

pub const NAMESPACE: &str = "default";

pub struct Cluster {
    pub plane: ControlPlane,
    pub client: Client,
    pub nodes: PlayedNodes,
    pub gateway: PlayedGateway,
    operator: Option<Child>,
    /// Where the operator shows its metrics.
    metrics: u16,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_operator();
    }
}

pub async fn all(programs: &Path) {
    let plane = ControlPlane::start(programs).await;
    let client = plane.client(ADMIN).await;
    install(&client).await;
    let nodes = PlayedNodes::start(client.clone(), &["node-a", "node-b"]).await;
    let gateway = PlayedGateway::start().await;
    let mut cluster = Cluster { plane, client, nodes, gateway, operator: None, metrics: 0 };
    cluster.start_operator("worker:1");

    eprintln!("-- starts_a_group");
    cluster.starts_a_group().await;
    eprintln!("-- refuses_an_eviction_of_the_only_group");
    cluster.refuses_an_eviction_of_the_only_group().await;
    eprintln!("-- replaces_a_deleted_pod_alone");
    cluster.replaces_a_deleted_pod_alone().await;
    eprintln!("-- moves_experts_off_a_cordoned_node");
    cluster.moves_experts_off_a_cordoned_node().await;
    eprintln!("-- copies_of_experts_let_one_pod_go");
    cluster.copies_of_experts_let_one_pod_go().await;
    eprintln!("-- crashes_in_a_recovery_lose_nothing");
    cluster.crashes_in_a_recovery_lose_nothing().await;
    eprintln!("-- crashes_in_a_rebalance_repeat_nothing");
    cluster.crashes_in_a_rebalance_repeat_nothing().await;
    eprintln!("-- watches_that_hang_mislead_nobody");
    Box::pin(cluster.watches_that_hang_mislead_nobody()).await;
    eprintln!("-- scales_up_and_drains_on_the_way_down");
    cluster.scales_up_and_drains_on_the_way_down().await;
    eprintln!("-- upgrade_of_the_operator_moves_no_pod");
    cluster.upgrade_of_the_operator_moves_no_pod().await;
    eprintln!("-- rolls_group_by_group");
    cluster.rolls_group_by_group().await;
    eprintln!("-- tells_why_a_revision_fails_and_lets_the_old_one_serve");
    cluster.tells_why_a_revision_fails_and_lets_the_old_one_serve().await;
    eprintln!("-- tells_that_ranks_outnumber_experts");
    cluster.tells_that_ranks_outnumber_experts().await;
    eprintln!("-- scales_with_the_load_to_zero_and_back");
    cluster.scales_with_the_load_to_zero_and_back().await;
    eprintln!("-- gives_way_to_somebody_else_who_scales");
    cluster.gives_way_to_somebody_else_who_scales().await;
    eprintln!("-- reports_without_doing");
    cluster.reports_without_doing().await;
    cluster.ascend().await;
    eprintln!("-- replaces_the_pods_of_a_lost_node");
    cluster.replaces_the_pods_of_a_lost_node().await;
    cluster.rollouts().await;
    eprintln!("-- leaves_nothing_behind");
    cluster.leaves_nothing_behind().await;
    eprintln!("-- deployments_that_rest_cost_the_api_server_nothing");
    cluster.deployments_that_rest_cost_the_api_server_nothing().await;
    assert_eq!(cluster.nodes.faults(), Vec::<String>::new(), "the protocol held all the time");
}

impl Cluster {
    pub fn start_operator(&mut self, image: &str) {
        self.metrics = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_belay-operator"));
        command
            .args([
                "run",
                "--worker-image",
                image,
                "--metrics-address",
                &format!("127.0.0.1:{}", self.metrics),
                "--node-lost-seconds",
                "2",
            ])
            // nobody replaces one that has lost the lease: a busy machine must not cost it that
            .args(["--lease-seconds", "15", "--gateways", self.gateway.address()])
            .env("KUBECONFIG", self.plane.kubeconfig(OPERATOR));
        self.operator = Some(command.spawn().unwrap());
    }

    /// As a crash would: the lease is not released.
    pub fn stop_operator(&mut self) {
        if let Some(mut operator) = self.operator.take() {
            operator.kill().unwrap();
            operator.wait().unwrap();
        }
    }

    /// A counter of the operator.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = metrics::text(self.metrics).await;
        metrics::value(&text, name)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn create(&self, name: &str, spec: Value) {
        let object = json!({ "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": { "name": name }, "spec": spec });
        let object: ModelDeployment = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap();
    }

    pub async fn change(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.api::<ModelDeployment>().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn status(&self, name: &str) -> ModelDeploymentStatus {
        self.api::<ModelDeployment>().get(name).await.unwrap().status.unwrap_or_default()
    }

    /// Waits until the status is as wanted. While waiting, `always` must hold.
    pub async fn until_while(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ModelDeploymentStatus) -> bool,
        always: impl Fn(&ModelDeploymentStatus),
    ) -> ModelDeploymentStatus {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.status(name).await;
            always(&status);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < end, "not reached: {what}; status: {status:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ModelDeploymentStatus) -> bool,
    ) -> ModelDeploymentStatus {
        self.until_while(name, what, wanted, |_| {}).await
    }

    pub async fn pods(&self, name: &str) -> Vec<Pod> {
        let params = ListParams::default().labels(&format!("serving.belay.dev/model-deployment={name}"));
        self.api::<Pod>().list(&params).await.unwrap().items
    }

    pub async fn uids(&self, name: &str) -> BTreeSet<String> {
        self.pods(name).await.iter().filter_map(|pod| pod.uid()).collect()
    }

    async fn starts_a_group(&self) {
        self.create("nano", spec()).await;
        let status = self.until("nano", "one ready group", settled).await;
        assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (1, 1, 1));
        assert_eq!(status.current_revision, status.updated_revision);
        for (kind, wanted) in [
            ("Available", "True"),
            ("Progressing", "False"),
            ("ExpertsCovered", "True"),
            ("Degraded", "False"),
        ] {
            assert_eq!(condition(&status, kind).0, wanted, "{kind}: {status:#?}");
        }
        let experts = status.experts.unwrap();
        assert_eq!((experts.total, experts.copies, experts.min_live_copies), (16, 16, 1));
        let group = &status.groups[0];
        assert_eq!((group.ready_workers, group.placement_epoch), (2, Some(1)));
        assert_eq!(group.message, None);

        let pods = self.pods("nano").await;
        assert_eq!(pods.len(), 2);
        let nodes: BTreeSet<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
        assert_eq!(nodes.len(), 2);
        // every worker was told the same placement, and it is in the ConfigMap
        let config_map: ConfigMap = self.api().get(&format!("{}-placement", group.name)).await.unwrap();
        let written: belay_proto::admin::Placement =
            serde_json::from_str(&config_map.data.unwrap()["placement.json"]).unwrap();
        for pod in &pods {
            let told = self.nodes.worker(&pod.uid().unwrap(), |worker| worker.member.in_force().cloned());
            assert_eq!(told.as_deref(), Some(&written));
        }
        let scale = self.api::<ModelDeployment>().get_scale("nano").await.unwrap();
        let selector = scale.status.unwrap().selector.unwrap();
        let selected = self.api::<Pod>().list(&ListParams::default().labels(&selector)).await.unwrap();
        assert_eq!(selected.items.len(), 1, "one pod stands for a group");
        self.until_told("nano", &["GroupCreated", "GroupReady"]).await;
    }

    async fn refuses_an_eviction_of_the_only_group(&self) {
        let pod = self.pods("nano").await.remove(0);
        let end = Instant::now() + Duration::from_secs(30);
        // the disruption controller needs a moment to have seen the pods
        loop {
            let budget: PodDisruptionBudget = self.api().get("nano").await.unwrap();
            if budget.status.is_some_and(|status| status.current_healthy == 2) {
                break;
            }
            assert!(Instant::now() < end, "the budget never counted two healthy pods");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let eviction = Eviction { metadata: pod.metadata.clone(), delete_options: None };
        let answer: Result<Value, kube::Error> = self
            .api::<Pod>()
            .create_subresource("eviction", &pod.name_any(), &PostParams::default(), &eviction)
            .await;
        let kube::Error::Api(refusal) = answer.unwrap_err() else {
            panic!("not an answer of the API server")
        };
        assert_eq!(refusal.code, 429, "{refusal:?}");
    }

    async fn replaces_a_deleted_pod_alone(&self) {
        let before = self.uids("nano").await;
        let victim = self.pods("nano").await.remove(1);
        self.api::<Pod>().delete(&victim.name_any(), &DeleteParams::default()).await.unwrap();
        let status =
            self.until("nano", "epoch 2", |s| settled(s) && s.groups[0].placement_epoch >= Some(2)).await;
        assert_eq!(status.ready_replicas, 1);
        let after = self.uids("nano").await;
        assert_eq!(before.intersection(&after).count(), 1, "the other worker is the same");
        self.until_told(
            "nano",
            &["PodReplaced", "RankLost", "RankReturned", "PlacementPreparing", "PlacementCommitted"],
        )
        .await;
    }

    async fn scales_up_and_drains_on_the_way_down(&self) {
        self.scale("nano", 3).await;
        let three = self.until("nano", "three groups", |s| settled(s) && s.ready_replicas == 3).await;
        assert_eq!(three.experts.unwrap().min_live_copies, 3);
        // a request is under way on the group that will go
        let last = three.groups.iter().map(|group| group.name.clone()).max().unwrap();
        let busy = self.pods("nano").await.into_iter().find(|pod| pod.name_any().starts_with(&last)).unwrap();
        self.nodes.worker(&busy.uid().unwrap(), |worker| worker.status.requests_in_flight = 1);
        self.scale("nano", 2).await;
        let draining = |status: &ModelDeploymentStatus| {
            status.groups.iter().any(|g| g.name == last && g.draining && g.requests_in_flight == Some(1))
        };
        self.until("nano", "the group drains", draining).await;
        let annotations = self.api::<Pod>().get(&busy.name_any()).await.unwrap().annotations().clone();
        assert_eq!(annotations.get("serving.belay.dev/draining").map(String::as_str), Some("true"));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(draining(&self.status("nano").await), "it waits for the request");
        self.nodes.worker(&busy.uid().unwrap(), |worker| worker.status.requests_in_flight = 0);
        self.until("nano", "the group is gone", |status| status.replicas == 2 && settled(status)).await;
        assert!(self.api::<Service>().get_opt(&last).await.unwrap().is_none());
        assert!(self.api::<ConfigMap>().get_opt(&format!("{last}-placement")).await.unwrap().is_none());
        self.scale("nano", 1).await;
        self.until("nano", "one group", |status| status.replicas == 1 && settled(status)).await;
    }

    async fn upgrade_of_the_operator_moves_no_pod(&mut self) {
        let before = self.uids("nano").await;
        self.stop_operator();
        self.start_operator("worker:2");
        self.scale("nano", 2).await;
        let status = self.until("nano", "two groups", |s| settled(s) && s.ready_replicas == 2).await;
        assert!(before.is_subset(&self.uids("nano").await));
        assert_eq!(status.current_revision, status.updated_revision);
        // one revision, one image: also for pods that are made now
        assert!(self.pods("nano").await.iter().all(|pod| image(pod) == "worker:1"));
        let revisions = self.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap();
        assert_eq!(revisions.items.len(), 1);
    }

    async fn rolls_group_by_group(&self) {
        let old = self.status("nano").await.current_revision.unwrap();
        self.change("nano", json!({ "group": { "template": { "image": "worker:3" } } })).await;
        let promise = |status: &ModelDeploymentStatus| {
            assert!(status.ready_replicas >= 2, "maxUnavailable is 0: {status:#?}");
            assert!(status.replicas <= 3, "maxSurge is 1: {status:#?}");
        };
        let done =
            |s: &ModelDeploymentStatus| settled(s) && s.updated_revision.as_deref() != Some(old.as_str());
        let status = self.until_while("nano", "rolled out", done, promise).await;
        assert_eq!(status.current_revision, status.updated_revision);
        assert!(self.pods("nano").await.iter().all(|pod| image(pod) == "worker:3"));
    }

    async fn tells_why_a_revision_fails_and_lets_the_old_one_serve(&self) {
        let words = "layers.1.ffn.experts.3.w1.weight: shape [8, 16], expected [16, 16]";
        self.nodes.fail_new_workers(Some(("CheckpointInvalid", words)));
        self.change("nano", json!({ "model": { "source": { "hostPath": { "path": "/models/broken" } } } }))
            .await;
        let told = |status: &ModelDeploymentStatus| {
            let (degraded, reason, message) = condition(status, "Degraded");
            degraded == "True" && reason == "CheckpointInvalid" && message.contains(words)
        };
        let keeps = |status: &ModelDeploymentStatus| assert!(status.ready_replicas >= 2, "{status:#?}");
        self.until_while("nano", "the failure is told", told, keeps).await;
        self.until_told("nano", &["CheckpointInvalid"]).await;
        // the fix is not held up by what is broken
        self.nodes.fail_new_workers(None);
        self.change("nano", json!({ "model": { "source": { "hostPath": { "path": "/models/nano" } } } }))
            .await;
        let status = self.until_while("nano", "back to normal", settled, keeps).await;
        assert_eq!(status.replicas, 2);
    }

    async fn tells_that_ranks_outnumber_experts(&self) {
        let mut wide = spec();
        wide["group"] = json!({ "workers": 3, "device": "CPU", "devicesPerWorker": 3 });
        self.create("wide", wide).await;
        let told = |status: &ModelDeploymentStatus| {
            let (_, reason, message) = condition(status, "Degraded");
            reason == "MoreRanksThanExperts" && message.contains("9 ranks") && message.contains("8 experts")
        };
        let status = self.until("wide", "the numbers are told", told).await;
        assert_eq!(condition(&status, "Available").0, "False");
        assert_eq!(condition(&status, "ExpertsCovered").1, "NotLoaded");
        self.api::<ModelDeployment>().delete("wide", &DeleteParams::default()).await.unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !self.pods("wide").await.is_empty() {
            assert!(Instant::now() < end, "pods of a deleted deployment stay");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn replaces_the_pods_of_a_lost_node(&self) {
        let before = self.status("nano").await;
        let lost = "node-b";
        self.nodes.lose_node(&self.client, lost).await;
        let noticed = |status: &ModelDeploymentStatus| condition(status, "ExpertsCovered").0 == "False";
        self.until("nano", "the loss is told", noticed).await;
        let back = self.until("nano", "all groups are back", |s| settled(s) && s.ready_replicas == 2).await;
        let names = |status: &ModelDeploymentStatus| -> BTreeSet<String> {
            status.groups.iter().map(|group| group.name.clone()).collect()
        };
        assert_eq!(names(&before), names(&back), "no group was restarted");
        for pod in self.pods("nano").await {
            assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("node-a"));
        }
        self.until_told("nano", &["NodeLost"]).await;
    }

    async fn leaves_nothing_behind(&self) {
        self.api::<ModelDeployment>().delete("nano", &DeleteParams::foreground()).await.unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let left = [
                left::<Pod>(self).await,
                left::<Service>(self).await,
                left::<ConfigMap>(self).await,
                left::<Secret>(self).await,
                left::<ControllerRevision>(self).await,
                left::<PodDisruptionBudget>(self).await,
                left::<ModelDeployment>(self).await,
            ]
            .concat();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left behind: {left:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn scale(&self, name: &str, replicas: i32) {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        self.api::<ModelDeployment>().patch_scale(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits for events: they follow the status.
    pub async fn until_told(&self, name: &str, reasons: &[&str]) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let events = self.events(name).await;
            let missing: Vec<&&str> = reasons.iter().filter(|reason| !events.contains(**reason)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "not told: {missing:?}; {events:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn events(&self, name: &str) -> BTreeSet<String> {
        let list = self.api::<Event>().list(&ListParams::default()).await.unwrap();
        let about = list.items.into_iter().filter(|event| {
            event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(name))
        });
        about.filter_map(|event| event.reason).collect()
    }
}

async fn left<K>(cluster: &Cluster) -> Vec<String>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let list = cluster.api::<K>().list(&ListParams::default()).await.unwrap();
    let ours = list.items.into_iter().filter(|object| {
        object.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "belay-operator")
            || K::kind(&()) == "ModelDeployment"
    });
    ours.map(|object| format!("{} {}", K::kind(&()), object.name_any())).collect()
}

/// One group of two workers with two ranks each.
pub fn spec() -> Value {
    json!({
        "model": { "source": { "hostPath": { "path": "/models/nano" } } },
        "group": { "workers": 2, "device": "CPU", "devicesPerWorker": 2 },
    })
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}
