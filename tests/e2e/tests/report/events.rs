//! The changes.

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    fixture::{Fixture, SOON},
    node, wait,
};
use serde_json::{Value, json};

/// One kind of change.
pub struct Event {
    /// By which it is selected.
    pub name: &'static str,
    /// For the page.
    pub title: &'static str,
    /// Groups before it.
    pub groups: u64,
    kind: Kind,
}

enum Kind {
    RollingUpdate,
    Canary,
    BlueGreen,
    Scale,
    Zero,
    Drain,
    RestartOperators,
    KillOperator,
    RestartGateways,
    KillWorker,
    DeleteWorker,
}

const fn event(name: &'static str, title: &'static str, groups: u64, kind: Kind) -> Event {
    Event { name, title, groups, kind }
}

pub const EVENTS: [Event; 11] = [
    event("rolling-update", "rolling update of 2 groups", 2, Kind::RollingUpdate),
    event("canary", "canary of 50 % with parity and analysis, to full", 2, Kind::Canary),
    event("blue-green", "blue/green of 1 group, old one kept for 5 s", 1, Kind::BlueGreen),
    event("scale", "scale 1 → 3 → 1", 1, Kind::Scale),
    event("zero", "scale 1 → 0 → 1", 1, Kind::Zero),
    event("drain", "kubectl drain of a node, and uncordon", 2, Kind::Drain),
    event("restart-operators", "rolling restart of the operators", 1, Kind::RestartOperators),
    event("kill-operator", "leading operator deleted without grace", 1, Kind::KillOperator),
    event("restart-gateways", "rolling restart of both gateways", 1, Kind::RestartGateways),
    event("kill-worker", "SIGKILL of a worker", 2, Kind::KillWorker),
    event("delete-worker", "kubectl delete pod of a worker", 2, Kind::DeleteWorker),
];

impl Event {
    /// Makes the change, and waits until it is complete.
    pub async fn make(&self, fixture: &Fixture, name: &str) -> Result<()> {
        let scale = |replicas: u64| {
            fixture.models.run(&["scale", "mdep", name, &format!("--replicas={replicas}")]).map(drop)
        };
        match self.kind {
            Kind::RollingUpdate => {
                patch(fixture, name, changed(json!({})))?;
                updated(fixture, name, self.groups).await
            }
            Kind::Canary => {
                patch(fixture, name, changed(canary(fixture)?))?;
                updated(fixture, name, self.groups).await
            }
            Kind::BlueGreen => {
                let rollout = json!({ "strategy": "BlueGreen", "blueGreen": { "keepOldSeconds": 5 } });
                patch(fixture, name, changed(rollout))?;
                updated(fixture, name, self.groups).await
            }
            Kind::Scale => {
                scale(3)?;
                fixture.settled(name, 3).await?;
                scale(1)?;
                fixture.settled(name, 1).await.map(drop)
            }
            Kind::Zero => {
                scale(0)?;
                fixture.settled(name, 0).await?;
                scale(1)?;
                fixture.settled(name, 1).await.map(drop)
            }
            Kind::Drain => drain(fixture, name, self.groups).await,
            Kind::RestartOperators => restart(fixture, "deployment/belay-operator").await,
            Kind::RestartGateways => restart(fixture, "deployment/belay-gateway").await,
            Kind::KillOperator => {
                let lease = fixture.system.get(&["lease", "belay-operator"])?;
                let holder = lease["spec"]["holderIdentity"].as_str().context("holderIdentity")?;
                // the identity is the pod's name and a random part
                let pod = holder.rsplit_once('-').context("holderIdentity")?.0;
                fixture.system.run(&["delete", "pod", pod, "--force", "--grace-period=0"])?;
                wait::until("another leader", SOON, || {
                    let lease = fixture.system.get(&["lease", "belay-operator"])?;
                    Ok((lease["spec"]["holderIdentity"] != holder).then_some(()))
                })
                .await?;
                fixture.whole_cluster().await
            }
            Kind::KillWorker => {
                node::Process::of(&fixture.worker(name, 1)?)?.signal("KILL")?;
                restored(fixture, name, self.groups).await
            }
            Kind::DeleteWorker => {
                let pod = fixture.worker(name, 1)?;
                fixture.models.run(&["delete", "pod", node::name(&pod)?, "--wait=false"])?;
                restored(fixture, name, self.groups).await
            }
        }
    }
}

/// A change that makes a new revision, rolled out like this.
fn changed(rollout: Value) -> Value {
    let env = json!([{ "name": "BELAY_MAX_QUEUED", "value": "199" }]);
    json!({ "rollout": rollout, "group": { "template": { "env": env } } })
}

fn canary(fixture: &Fixture) -> Result<Value> {
    let prompts: Vec<String> =
        fixture.cases(&["fact", "doc", "code"], 4)?.into_iter().map(|case| case.prompt).collect();
    Ok(json!({
        "strategy": "Canary",
        "canary": { "steps": [{ "weightPercent": 50, "holdSeconds": 10 }] },
        "analysis": {
            "intervalSeconds": 5,
            "minRequests": 20,
            "maxTimeToFirstTokenIncreasePercent": 100,
            "maxInterTokenIncreasePercent": 100,
            "parity": { "prompts": prompts, "maxTokens": 64, "maxLogprobDifferenceThousandths": 1 },
        },
    }))
}

fn patch(fixture: &Fixture, name: &str, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    fixture.models.run(&["patch", "mdep", name, "--type=merge", "-p", &patch]).map(drop)
}

/// Waits until every group has the new revision, and it was not taken back.
async fn updated(fixture: &Fixture, name: &str, groups: u64) -> Result<()> {
    let object = fixture.settled(name, groups).await?;
    let status = &object["status"];
    ensure!(status["rollout"]["lastRollback"].is_null(), "taken back: {}", status["rollout"]["lastRollback"]);
    ensure!(status["currentRevision"] == status["updatedRevision"], "{status}");
    Ok(())
}

/// Waits until every group is complete again after a loss was noticed.
async fn restored(fixture: &Fixture, name: &str, groups: u64) -> Result<()> {
    let missing = |object: &Value| object["status"]["readyReplicas"].as_u64().unwrap_or(0) < groups;
    wait::until("the loss is noticed", SOON, || Ok(missing(&fixture.models.deployment(name)?).then_some(())))
        .await?;
    fixture.settled(name, groups).await.map(drop)
}

async fn restart(fixture: &Fixture, what: &str) -> Result<()> {
    fixture.system.run(&["rollout", "restart", what])?;
    fixture.system.run(&["rollout", "status", what, "--timeout=180s"])?;
    fixture.whole_cluster().await
}

/// Empties a node as its owner would, and gives it back.
async fn drain(fixture: &Fixture, name: &str, groups: u64) -> Result<()> {
    let pod = fixture.worker(name, 0)?;
    let node = node::of(&pod)?.to_owned();
    let arguments = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"];
    let models = fixture.models.clone();
    let arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
    let drained = tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        models.run(&arguments)
    });
    let drained = drained.await?;
    fixture.system.run(&["uncordon", &node])?;
    drained?;
    for pod in fixture.models.workers(name)? {
        if pod["metadata"]["deletionTimestamp"].is_null() && node::of(&pod).is_ok_and(|at| at == node) {
            bail!("{} is still on {node}", node::name(&pod)?);
        }
    }
    fixture.settled(name, groups).await?;
    fixture.whole_cluster().await
}
