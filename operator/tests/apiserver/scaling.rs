//! Autoscaling: what a gateway tells becomes `spec.replicas`, and groups.
use std::time::{Duration, Instant};

use belay_crds::{ModelDeployment, ScalingReason};
use belay_proto::gateway::Model;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    scenarios::{Cluster, NAMESPACE, spec},
    settled::settled,
};

fn busy(tokens: u64) -> Model {
    Model { outstanding: tokens.div_ceil(100), outstanding_tokens: tokens, ..Model::default() }
}

fn idle() -> Model {
    Model { idle_milliseconds: 3_600_000, ..Model::default() }
}

impl Cluster {
    async fn wanted(&self, name: &str) -> i32 {
        self.api::<ModelDeployment>().get(name).await.unwrap().spec.replicas
    }

    pub async fn scales_with_the_load_to_zero_and_back(&mut self) {
        let mut scaled = spec();
        scaled["autoscaling"] = json!({ "minReplicas": 0, "maxReplicas": 3, "idleSecondsToZero": 2,
            "targetOutstandingTokensPerReplica": 1000,
            "behavior": { "scaleDown": { "stabilizationWindowSeconds": 3600 } } });
        self.gateway.tell(NAMESPACE, "scaled", busy(900));
        self.create("scaled", scaled).await;
        self.until("scaled", "one group", |s| settled(s) && s.ready_replicas == 1).await;
        self.gateway.tell(NAMESPACE, "scaled", busy(2500));
        let three = self.until("scaled", "three groups", |s| settled(s) && s.ready_replicas == 3).await;
        let autoscaling = three.autoscaling.unwrap();
        assert_eq!((autoscaling.desired_replicas, autoscaling.max_replicas), (3, 3));
        let last = autoscaling.recent_scales.last().unwrap();
        assert_eq!((last.to, last.reason), (3, ScalingReason::LoadAboveTarget));
        assert_eq!(autoscaling.last_scale_time.as_ref(), Some(&last.time));
        self.until_told("scaled", &["ScaledUp"]).await;
        // the field belongs to autoscaling, as it would to a HorizontalPodAutoscaler
        let object = self.api::<ModelDeployment>().get("scaled").await.unwrap();
        let owns = object.managed_fields().iter().any(|entry| {
            entry.manager.as_deref() == Some("belay-autoscaler")
                && entry.subresource.as_deref() == Some("scale")
        });
        assert!(owns, "{:?}", object.managed_fields());

        // another leader knows what was done, and takes none of it back
        self.stop_operator();
        self.start_operator("worker:2");
        self.gateway.tell(NAMESPACE, "scaled", busy(900));
        let less = |status: &belay_crds::ModelDeploymentStatus| {
            let reason = status.autoscaling.as_ref().map(|autoscaling| autoscaling.reason);
            reason == Some(ScalingReason::Stabilizing)
        };
        let after = self.until("scaled", "less would do, later", less).await;
        assert_eq!(after.autoscaling.unwrap().recent_scales, autoscaling.recent_scales);
        assert_eq!(self.wanted("scaled").await, 3);

        self.gateway.tell(NAMESPACE, "scaled", idle());
        let asleep = self.until("scaled", "no group", |s| s.replicas == 0).await;
        assert_eq!(asleep.autoscaling.unwrap().reason, ScalingReason::Idle);
        self.until_told("scaled", &["ScaledToZero"]).await;
        self.gateway.tell(NAMESPACE, "scaled", Model { held: 1, held_tokens: 100, ..Model::default() });
        self.until("scaled", "awake", |s| settled(s) && s.ready_replicas == 1).await;
        self.until_told("scaled", &["Woken"]).await;
    }

    /// Of "scaled" with one group, as the scenario before leaves it.
    pub async fn gives_way_to_somebody_else_who_scales(&self) {
        self.gateway.tell(NAMESPACE, "scaled", busy(2500));
        let end = Instant::now() + Duration::from_secs(60);
        let mut ours = 0;
        loop {
            let status = self.status("scaled").await.autoscaling.unwrap();
            if status.reason == ScalingReason::ScalingContested {
                break;
            }
            if self.wanted("scaled").await != 1 {
                ours += 1;
                self.scale("scaled", 1).await;
            }
            assert!(Instant::now() < end, "no contest after {ours} contradictions: {status:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!((3..=4).contains(&ours), "{ours}");
        self.until_told("scaled", &["ScalingContested"]).await;
        assert_eq!(self.wanted("scaled").await, 1, "it is theirs");
    }

    /// Of "scaled", as the scenario before leaves it.
    pub async fn reports_without_doing(&self) {
        let autoscaling = json!({ "autoscaling": { "mode": "Report", "minReplicas": 2, "maxReplicas": 3,
            "idleSecondsToZero": null } });
        self.change("scaled", autoscaling).await;
        let told = |status: &belay_crds::ModelDeploymentStatus| {
            let autoscaling = status.autoscaling.as_ref();
            autoscaling.is_some_and(|autoscaling| autoscaling.min_replicas == 2)
        };
        self.until("scaled", "what would be is told", told).await;
        assert_eq!(self.wanted("scaled").await, 1);
        // without autoscaling nothing is left of it
        self.change("scaled", json!({ "autoscaling": null })).await;
        self.until("scaled", "no word of autoscaling", |status| status.autoscaling.is_none()).await;
        self.scale("scaled", 2).await;
        self.until("scaled", "two groups", |s| settled(s) && s.ready_replicas == 2).await;
        // admission refuses what makes no sense
        let patch =
            Patch::Merge(json!({ "spec": { "autoscaling": { "minReplicas": 5, "maxReplicas": 3 } } }));
        let answer =
            self.api::<ModelDeployment>().patch("scaled", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(answer.to_string().contains("autoscaling.minReplicas must be at most"), "{answer}");
        // and what only the operator knows is told
        let nowhere = json!({ "autoscaling": { "maxReplicas": 3, "schedule": [
            { "start": "08:00", "durationMinutes": 60, "timeZone": "Europe/Nowhere", "minReplicas": 2 }] } });
        self.change("scaled", nowhere).await;
        let refused = |status: &belay_crds::ModelDeploymentStatus| {
            let (_, reason, message) = crate::settled::condition(status, "Degraded");
            reason == "InvalidSpec" && message.contains("Europe/Nowhere")
        };
        self.until("scaled", "the zone is refused", refused).await;
        self.api::<ModelDeployment>().delete("scaled", &DeleteParams::default()).await.unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !self.pods("scaled").await.is_empty() {
            assert!(Instant::now() < end, "pods of a deleted deployment stay");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
