//! A plain HorizontalPodAutoscaler on `/scale`, with CPU from metrics-server.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    campaign::scaling::Run,
    fixture::SOON,
    history::{History, setters},
    kubectl::condition,
    wait,
};
use serde_json::{Value, json};

use crate::{
    load::{self, MOST},
    stage::{NAME, Stage},
};

/// As `managedFields` has it.
const CONTROLLER: &str = "kube-controller-manager";

/// One group, as many as the CPU asks for, one group; nobody but the HorizontalPodAutoscaler sets the number.
pub async fn under_load(stage: &Stage, run: &mut Run) -> Result<()> {
    stage.apply(json!({ "replicas": 1 }))?;
    stage.fixture.settled(NAME, 1).await?;
    let history = History::follow(&stage.fixture.models, NAME);
    stage.fixture.models.apply(&stage.example("hpa.yaml")?)?;
    let quick = json!({ "scaleDown": { "stabilizationWindowSeconds": 15 } });
    stage.patch("hpa", &json!({ "spec": { "maxReplicas": MOST, "behavior": quick } }))?;
    wait::until("the autoscaler reads a metric", SOON, || reads(stage).map(Some)).await?;
    let idle = utilization(stage)?;
    let played = async {
        load::surge(stage, run, &history, Duration::from_secs(30)).await?;
        let busy = utilization(stage)?;
        load::ebb(stage, run, &history, 1).await?;
        Ok::<i64, anyhow::Error>(busy)
    };
    let played = played.await;
    let judged = load::judge_path(run, &history, 1);
    let setters = setters(&history.moments());
    let busy = played.as_ref().map_or_else(|_| "?".to_owned(), i64::to_string);
    run.saw =
        format!("CPU {idle} % of its request idle, {busy} % under load, target 70 %; set by {setters:?}");
    played?;
    judged?;
    ensure!(setters == [CONTROLLER.to_owned()].into(), "spec.replicas was set by {setters:?}");
    let status = stage.fixture.models.deployment(NAME)?["status"].take();
    ensure!(status["autoscaling"].is_null(), "the operator has its own opinion: {}", status["autoscaling"]);
    ensure!(stage.events("ScalingContested")? == 0, "the operator contests the number");
    Ok(())
}

/// That it can, and by what.
fn reads(stage: &Stage) -> Result<()> {
    let hpa = autoscaler(stage)?;
    match condition(&hpa, "ScalingActive") {
        Some((status, _, _)) if status == "True" => utilization(stage).map(drop),
        other => bail!("ScalingActive {other:?}"),
    }
}

fn autoscaler(stage: &Stage) -> Result<Value> {
    stage.fixture.models.get(&["horizontalpodautoscalers.v2.autoscaling", NAME])
}

/// Percent of what the pods request, as the autoscaler saw it last.
fn utilization(stage: &Stage) -> Result<i64> {
    let hpa = autoscaler(stage)?;
    let current = &hpa["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"];
    current.as_i64().with_context(|| format!("no utilization: {}", hpa["status"]))
}
