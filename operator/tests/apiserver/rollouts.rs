//! Canaries and previews, with a gateway that tells what clients see.
use belay_crds::{ModelDeployment, ModelDeploymentStatus, TrafficRole};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    played_gateway::{Conduct, GOOD},
    scenarios::Cluster,
    settled::{condition, settled},
};

const NAME: &str = "tide";

impl Cluster {
    pub async fn rollouts(&mut self) {
        eprintln!("-- canary_goes_to_the_end_also_with_another_operator");
        self.canary_goes_to_the_end_also_with_another_operator().await;
        eprintln!("-- canary_that_fails_is_taken_back");
        self.canary_that_fails_is_taken_back().await;
        eprintln!("-- slow_canary_is_taken_back_and_a_report_is_only_told");
        self.slow_canary_is_taken_back_and_a_report_is_only_told().await;
        eprintln!("-- a_third_revision_is_compared_with_the_first_and_the_first_needs_no_proof");
        self.a_third_revision_is_compared_with_the_first_and_the_first_needs_no_proof().await;
        eprintln!("-- preview_goes_over_when_a_person_says_so");
        self.preview_goes_over_when_a_person_says_so().await;
        self.api::<ModelDeployment>().delete(NAME, &DeleteParams::foreground()).await.unwrap();
    }

    async fn image(&self, image: &str) {
        self.change(NAME, json!({ "group": { "template": { "image": image } } })).await;
    }

    fn both_conduct(&self, status: &ModelDeploymentStatus, new: Conduct) {
        let rollout = status.rollout.as_ref().unwrap();
        self.gateway.conduct(NAME, rollout.stable_revision.as_ref().unwrap(), GOOD);
        self.gateway.conduct(NAME, &rollout.revision, new);
    }

    async fn canary_goes_to_the_end_also_with_another_operator(&mut self) {
        self.create(NAME, spec()).await;
        let first = self.until(NAME, "three groups", |s| settled(s) && s.ready_replicas == 3).await;
        assert_eq!(first.traffic, vec![], "nothing to share");
        let old = first.current_revision.clone().unwrap();

        self.image("worker:canary-1").await;
        let promise = |status: &ModelDeploymentStatus| {
            assert!(status.ready_replicas >= 3, "maxUnavailable is 0: {status:#?}");
            assert!(status.replicas <= 4, "maxSurge is 1: {status:#?}");
            let sum: i32 = status.traffic.iter().map(|share| share.weight_percent).sum();
            assert!(sum == 100 || status.traffic.is_empty(), "{:?}", status.traffic);
        };
        let at = |percent| move |s: &ModelDeploymentStatus| share(s, TrafficRole::Canary) == Some(percent);
        let status = self.until_while(NAME, "the first share", at(25), promise).await;
        assert_eq!(share(&status, TrafficRole::Stable), Some(75));
        assert_eq!(status.current_revision.as_deref(), Some(old.as_str()));
        let (holding, reason, message) = condition(&status, "Progressing");
        assert_eq!((holding.as_str(), reason.as_str()), ("True", "RolloutHolding"), "{message}");
        // nobody asks: it waits for requests, and another operator waits on
        let waits = |s: &ModelDeploymentStatus| {
            let message = s.rollout.as_ref().and_then(|rollout| rollout.message.clone());
            message.is_some_and(|message| message.contains("fewer than 20 requests are answered"))
        };
        self.until_while(NAME, "it waits for requests", waits, promise).await;
        self.stop_operator();
        self.start_operator("worker:1");
        self.both_conduct(&status, GOOD);
        self.until_while(NAME, "the second share", at(60), promise).await;
        let done =
            |s: &ModelDeploymentStatus| settled(s) && s.current_revision.as_deref() != Some(old.as_str());
        let last = self.until_while(NAME, "promoted", done, promise).await;
        assert_eq!((last.replicas, last.updated_replicas), (3, 3));
        assert_eq!(last.rollout.unwrap().phase, "Complete");
        self.until_told(NAME, &["TrafficShifted", "RolloutPromoted"]).await;
    }

    async fn canary_that_fails_is_taken_back(&mut self) {
        self.gateway.rest();
        let before = self.uids(NAME).await;
        self.image("worker:canary-2").await;
        let shares = |s: &ModelDeploymentStatus| share(s, TrafficRole::Canary) == Some(25);
        let status = self.until(NAME, "the first share", shares).await;
        self.both_conduct(&status, Conduct { failing: 6, ..GOOD });
        let keeps = |s: &ModelDeploymentStatus| assert!(s.ready_replicas >= 3, "{s:#?}");
        let back = |s: &ModelDeploymentStatus| {
            condition(s, "Progressing").1 == "RolledBack" && s.replicas == 3 && s.updated_replicas == 0
        };
        let status = self.until_while(NAME, "taken back", back, keeps).await;
        let rollback = status.rollout.clone().unwrap().last_rollback.unwrap();
        assert_eq!(rollback.reason, "ErrorsIncreased", "{rollback:?}");
        assert!(rollback.message.contains("failed (60.0 %)"), "{rollback:?}");
        assert_eq!(share(&status, TrafficRole::Canary), Some(0));
        assert_eq!(condition(&status, "Degraded").1, "RolledBack");
        assert_eq!(self.uids(NAME).await, before, "the groups that served serve");
        self.until_told(NAME, &["RolledBack"]).await;
        // it stays so with another operator; the spec that was good is good again without any proof
        self.stop_operator();
        self.start_operator("worker:1");
        self.image("worker:canary-1").await;
        let status = self.until_while(NAME, "the old spec", settled, keeps).await;
        assert_eq!(self.uids(NAME).await, before);
        assert_eq!(
            status.rollout.unwrap().last_rollback.unwrap().reason,
            "ErrorsIncreased",
            "it is remembered"
        );
    }

    async fn slow_canary_is_taken_back_and_a_report_is_only_told(&mut self) {
        self.gateway.rest();
        let slow = Conduct { bucket: 58, ..GOOD };
        self.image("worker:canary-3").await;
        let shares = |s: &ModelDeploymentStatus| share(s, TrafficRole::Canary) == Some(25);
        let status = self.until(NAME, "the first share", shares).await;
        self.both_conduct(&status, slow);
        let back = |s: &ModelDeploymentStatus| condition(s, "Progressing").1 == "RolledBack";
        let status = self.until(NAME, "taken back", back).await;
        assert_eq!(status.rollout.unwrap().last_rollback.unwrap().reason, "FirstTokenSlower");

        self.gateway.rest();
        // nobody is held up by a verdict, so the first step is long enough for one
        let steps = |seconds: i32| json!({ "steps": [{ "weightPercent": 25, "holdSeconds": seconds }, { "weightPercent": 60, "holdSeconds": 1 }] });
        let report = json!({ "rollout": { "analysis": { "policy": "Report" }, "canary": steps(10) } });
        self.change(NAME, report).await;
        self.image("worker:canary-4").await;
        let status = self.until(NAME, "the first share", shares).await;
        self.both_conduct(&status, slow);
        let told = |s: &ModelDeploymentStatus| {
            let checks = s.rollout.iter().flat_map(|rollout| &rollout.analysis);
            checks.into_iter().any(|check| check.name == "FirstToken" && check.verdict == "Bad")
        };
        self.until(NAME, "it is told", told).await;
        self.until(NAME, "and changes nothing", |s| settled(s) && s.updated_replicas == 3).await;
        self.until_told(NAME, &["AnalysisReported"]).await;
        let rollback = json!({ "rollout": { "analysis": { "policy": "Rollback" }, "canary": steps(1) } });
        self.change(NAME, rollback).await;
    }

    async fn a_third_revision_is_compared_with_the_first_and_the_first_needs_no_proof(&mut self) {
        self.gateway.rest();
        let first = self.status(NAME).await.current_revision.unwrap();
        self.image("worker:canary-5").await;
        let shares = |s: &ModelDeploymentStatus| share(s, TrafficRole::Canary) == Some(25);
        let second = self.until(NAME, "a canary", shares).await.rollout.unwrap().revision;
        self.image("worker:canary-6").await;
        let keeps = |s: &ModelDeploymentStatus| assert!(s.ready_replicas >= 3, "{s:#?}");
        let third = |s: &ModelDeploymentStatus| shares(s) && s.rollout.as_ref().unwrap().revision != second;
        let status = self.until_while(NAME, "another canary", third, keeps).await;
        assert_eq!(status.rollout.unwrap().stable_revision.as_deref(), Some(first.as_str()));
        let only = |s: &ModelDeploymentStatus| s.groups.iter().all(|group| group.revision != second);
        self.until_while(NAME, "the second one is gone", only, keeps).await;
        self.image("worker:canary-4").await;
        let status = self.until_while(NAME, "back to the first", settled, keeps).await;
        assert_eq!(status.current_revision.as_deref(), Some(first.as_str()));
        assert!(status.groups.iter().all(|group| group.revision == first), "{status:#?}");
    }

    async fn preview_goes_over_when_a_person_says_so(&mut self) {
        self.gateway.rest();
        let first = self.status(NAME).await.current_revision.unwrap();
        let rollout = json!({ "strategy": "BlueGreen", "canary": null, "analysis": null,
            "blueGreen": { "promotion": "Manual", "keepOldSeconds": 2 } });
        self.change(NAME, json!({ "rollout": rollout, "group": { "template": { "image": "worker:blue" } } }))
            .await;
        let waits = |s: &ModelDeploymentStatus| condition(s, "Progressing").1 == "WaitingForPromotion";
        let status = self.until(NAME, "it waits", waits).await;
        assert_eq!((status.ready_replicas, status.updated_replicas), (6, 3));
        assert_eq!(share(&status, TrafficRole::Preview), Some(0));
        let asked = json!({ "metadata": { "annotations": { "serving.belay.dev/promote": status.updated_revision } } });
        let api = self.api::<ModelDeployment>();
        api.patch(NAME, &PatchParams::default(), &Patch::Merge(asked)).await.unwrap();
        let over = |s: &ModelDeploymentStatus| share(s, TrafficRole::Preview) == Some(100);
        let status = self.until(NAME, "requests go over", over).await;
        assert_eq!(status.ready_replicas, 6, "the old ones are kept for a while");
        let done = |s: &ModelDeploymentStatus| settled(s) && s.replicas == 3;
        let status = self.until(NAME, "the old ones are gone", done).await;
        assert_ne!(status.current_revision, Some(first));
    }
}

fn share(status: &ModelDeploymentStatus, role: TrafficRole) -> Option<i32> {
    status.traffic.iter().find(|share| share.role == role).map(|share| share.weight_percent)
}

fn spec() -> Value {
    json!({
        "model": { "source": { "hostPath": { "path": "/models/nano" } } },
        "replicas": 3,
        "group": { "workers": 2, "device": "CPU", "devicesPerWorker": 2, "template": { "image": "worker:first" } },
        "rollout": {
            "strategy": "Canary",
            "canary": { "steps": [
                { "weightPercent": 25, "holdSeconds": 1 }, { "weightPercent": 60, "holdSeconds": 1 },
            ] },
            "analysis": { "intervalSeconds": 1, "minRequests": 20 },
        },
    })
}
