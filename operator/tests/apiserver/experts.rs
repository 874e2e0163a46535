//! Experts and evictions: the API server itself decides who may go.
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use belay_crds::ModelDeploymentStatus;
use k8s_openapi::api::{core::v1::Pod, policy::v1::Eviction};
use kube::{ResourceExt as _, api::PostParams};
use serde_json::{Value, json};

use crate::{
    scenarios::Cluster,
    settled::{condition, settled},
};

/// No moment in which an expert has no copy.
fn covered(status: &ModelDeploymentStatus) {
    assert_eq!(condition(status, "ExpertsCovered").0, "True", "{status:#?}");
    assert!(status.experts.as_ref().unwrap().min_live_copies >= 1, "{status:#?}");
}

impl Cluster {
    /// Asks the API server to evict a pod: whether it does.
    async fn evict(&self, pod: &Pod) -> bool {
        let eviction = Eviction { metadata: pod.metadata.clone(), delete_options: None };
        let answer: Result<Value, kube::Error> = self
            .api::<Pod>()
            .create_subresource("eviction", &pod.name_any(), &PostParams::default(), &eviction)
            .await;
        match answer {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 429 => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// As `kubectl drain` does: asks until it may.
    async fn evict_when_allowed(&self, pod: &Pod) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.evict(pod).await {
            covered(&self.status("nano").await);
            assert!(
                Instant::now() < end,
                "{} may not leave: {:#?}",
                pod.name_any(),
                self.status("nano").await
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn moves_experts_off_a_cordoned_node(&self) {
        let before = self.status("nano").await.groups[0].placement_epoch;
        let pods = self.pods("nano").await;
        let on = |pod: &Pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap();
        let leaving = pods.iter().find(|pod| on(pod) == "node-b").unwrap();
        assert!(!self.evict(leaving).await, "it holds the only copies of its experts");
        self.nodes.cordon(&self.client, "node-b", true).await;
        self.evict_when_allowed(leaving).await;
        let evacuated = self.nodes.worker(&leaving.uid().unwrap(), |worker| worker.member.resident().len());
        assert_eq!(evacuated, 0, "its experts had moved");
        let gone = leaving.uid().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while self.uids("nano").await.contains(&gone) {
            covered(&self.status("nano").await);
            assert!(Instant::now() < end, "the pod stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let back = |status: &ModelDeploymentStatus| settled(status) && status.ready_replicas == 1;
        let status = self.until_while("nano", "the pod is back elsewhere", back, covered).await;
        assert!(status.groups[0].placement_epoch > before);
        let end = Instant::now() + Duration::from_secs(30);
        // its successor has experts again
        loop {
            let held = self.status("nano").await.groups[0].ranks.iter().map(|rank| rank.experts).min();
            if held > Some(0) {
                break;
            }
            assert!(Instant::now() < end, "it got no experts: {:#?}", self.status("nano").await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.nodes.cordon(&self.client, "node-b", false).await;
    }

    pub async fn copies_of_experts_let_one_pod_go(&self) {
        let before = self.uids("nano").await;
        self.change("nano", json!({ "experts": { "minCopies": 2 } })).await;
        let twice = |status: &ModelDeploymentStatus| {
            settled(status) && status.experts.as_ref().is_some_and(|experts| experts.min_live_copies == 2)
        };
        let status = self.until_while("nano", "two copies of each expert", twice, covered).await;
        assert_eq!(status.experts.as_ref().unwrap().copies, 32);
        let epoch = status.groups[0].placement_epoch;
        assert_eq!(self.uids("nano").await, before, "no pod moved");

        let pods = self.pods("nano").await;
        self.evict_when_allowed(&pods[1]).await;
        assert!(!self.evict(&pods[0]).await, "the other holds the only copies now");
        let again =
            |status: &ModelDeploymentStatus| twice(status) && status.groups[0].placement_epoch > epoch;
        let serves = |status: &ModelDeploymentStatus| {
            covered(status);
            assert_eq!(condition(status, "Available").0, "True", "{status:#?}");
        };
        let status = self.until_while("nano", "two copies again", again, serves).await;
        assert_eq!(status.ready_replicas, 1);
        let after: BTreeSet<String> = self.uids("nano").await;
        assert_eq!(before.intersection(&after).count(), 1);

        self.change("nano", json!({ "experts": { "minCopies": 1 } })).await;
        let once = |status: &ModelDeploymentStatus| {
            settled(status) && status.experts.as_ref().is_some_and(|experts| experts.copies == 16)
        };
        self.until_while("nano", "one copy of each expert", once, covered).await;
    }
}
