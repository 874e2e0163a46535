//! KEDA with the operator's external scaler.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    campaign::scaling::Run,
    fixture::{SOON, SYSTEM},
    history::{History, setters},
    http,
    kubectl::condition,
    wait,
};
use serde_json::{Value, json};

use crate::{
    load::{self, MOST, TOKENS},
    stage::{NAME, Stage},
};

/// From zero by one request that waits, up with the load, to one group and to zero after it.
pub async fn from_zero_and_back(stage: &Stage, run: &mut Run) -> Result<()> {
    stage.install(&["operator.kedaScaler.enabled=true"])?;
    let played = played(stage, run).await;
    // its finalizer is KEDA's: what it made must go before the operator's port does
    let cleared = stage.clear().await;
    let restored = stage.install(&[]);
    played.and(cleared).and(restored)
}

async fn played(stage: &Stage, run: &mut Run) -> Result<()> {
    let models = &stage.fixture.models;
    stage.apply(json!({ "replicas": 0 }))?;
    stage.fixture.settled(NAME, 0).await?;
    let history = History::follow(models, NAME);
    models.apply(&scaled_object(stage)?)?;
    wait::until("KEDA takes the ScaledObject", SOON, || {
        let object = models.get(&["scaledobject", NAME])?;
        match condition(&object, "Ready") {
            Some((status, _, _)) if status == "True" => Ok(Some(())),
            other => bail!("Ready {other:?}"),
        }
    })
    .await?;
    load::pass(Duration::from_secs(10)).await;
    ensure!(history.moments().iter().all(|moment| moment.state.wanted == 0), "groups without a request");

    let asked = history.now();
    let case = stage.streams.first().context("no streams")?;
    let client = reqwest::Client::new();
    let answer =
        http::complete(&client, &stage.gateways.url, NAME, &case.prompt, case.ids.len(), |_| {}).await?;
    let woken = history.wanted(1, asked).context("an answer, though no group was wanted")?;
    let answered = history.now();
    ensure!(answer.text == case.text, "the request that woke it was answered otherwise: {}", answer.text);
    run.right += 1;
    run.first_s = answer.pace.first.as_secs_f64();

    let played = async {
        load::surge(stage, run, &history, Duration::from_secs(20)).await?;
        let tokens = external_metric(stage)?;
        load::ebb(stage, run, &history, 0).await?;
        Ok::<String, anyhow::Error>(tokens)
    };
    let played = played.await;
    let judged = load::judge_path(run, &history, 1);
    let setters = setters(&history.moments());
    run.saw = format!(
        "a group wanted {:.1} s after the request, which was answered after {:.1} s; {} of {TOKENS} tokens a group under load; set by {setters:?}",
        (woken - asked).as_secs_f64(),
        (answered - asked).as_secs_f64(),
        played.as_ref().map_or("?", String::as_str),
    );
    played?;
    judged?;
    ensure!(
        !setters.iter().any(|setter| setter.starts_with("belay")),
        "spec.replicas was set by {setters:?}"
    );
    Ok(())
}

/// The example, with a small target and short times.
fn scaled_object(stage: &Stage) -> Result<String> {
    let example = stage.example("keda.yaml")?;
    let changes = [
        ("belay-operator-scaler.belay.svc", format!("belay-operator-scaler.{SYSTEM}.svc")),
        ("maxReplicaCount: 4", format!("maxReplicaCount: {MOST}\n  pollingInterval: 5")),
        ("cooldownPeriod: 600", format!("cooldownPeriod: 15\n  advanced: {}", behavior())),
        ("target: \"4096\"", format!("activeSeconds: \"10\"\n      target: \"{TOKENS}\"")),
    ];
    changes.iter().try_fold(example, |text, (old, new)| {
        ensure!(text.matches(old).count() == 1, "examples/scaling/keda.yaml has no {old:?}");
        Ok(text.replace(old, new))
    })
}

/// JSON is YAML.
fn behavior() -> Value {
    json!({ "horizontalPodAutoscalerConfig": {
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": 15 } },
    } })
}

/// What KEDA's own HorizontalPodAutoscaler read last.
fn external_metric(stage: &Stage) -> Result<String> {
    let hpa = stage
        .fixture
        .models
        .get(&["horizontalpodautoscalers.v2.autoscaling", &format!("keda-hpa-{NAME}")])?;
    let metric = &hpa["status"]["currentMetrics"][0]["external"];
    let name = metric["metric"]["name"].as_str().unwrap_or_default();
    ensure!(name.ends_with("outstandingTokens"), "the metric is {metric}");
    let value = metric["current"]["averageValue"].as_str();
    value.map(str::to_owned).with_context(|| format!("no value: {}", hpa["status"]))
}
