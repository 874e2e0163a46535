//! `spec.autoscaling`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use belay_e2e::{
    campaign::scaling::Run,
    fixture::SOON,
    herd,
    history::{History, setters},
    node, wait,
};
use serde_json::{Value, json};

use crate::{
    load::{self, MOST, TOKENS},
    stage::{NAME, Stage},
};

const AUTOSCALER: &str = "belay-autoscaler";
/// Streams of a herd.
const HERD: usize = 60;
/// Of a deployment that may go to zero.
const IDLE_SECONDS: u64 = 15;

/// One group, as many as many clients ask for, fewer clients, one group.
pub async fn under_load(stage: &Stage, run: &mut Run) -> Result<()> {
    stage.apply(autoscaling(&json!({ "minReplicas": 1, "maxReplicas": MOST })))?;
    stage.fixture.settled(NAME, 1).await?;
    let history = History::follow(&stage.fixture.models, NAME);
    let played = async {
        load::surge(stage, run, &history, Duration::from_secs(30)).await?;
        load::ripple(stage, run, 3, Duration::from_secs(45)).await?;
        load::ebb(stage, run, &history, 1).await
    };
    let played = played.await;
    let judged = load::judge_path(run, &history, 1);
    let setters = setters(&history.moments());
    run.saw = format!("set by {}; {}", words(&setters), last_reason(stage)?);
    played.and(judged)?;
    ensure!(setters == [AUTOSCALER.to_owned()].into(), "spec.replicas was set by {setters:?}");
    Ok(())
}

/// To zero, and a herd for which there is room.
pub async fn herd(stage: &Stage, run: &mut Run) -> Result<()> {
    let herd = at_zero(stage, run, &[]).await?;
    ensure!(herd.refusals.is_empty(), "{} were sent away, though there was room", herd.refusals.len());
    ensure!(herd.at_once == HERD, "{} of {HERD} were answered when they first asked", herd.at_once);
    Ok(())
}

/// To zero, and a herd for two thirds of which there is room.
pub async fn bounded_herd(stage: &Stage, run: &mut Run) -> Result<()> {
    let room = 20;
    let herd = at_zero(stage, run, &[&format!("gateway.holdRequests={room}")]).await;
    let restored = stage.install(&[]);
    let herd = herd?;
    restored?;
    let sent_away = HERD - herd.at_once;
    ensure!(
        sent_away >= HERD - 2 * room,
        "only {sent_away} of {HERD} were sent away with room for {room} at each"
    );
    // kube-proxy picks a gateway for each connection: that one of them gets none but ten of sixty is out of all chance
    ensure!(herd.at_once > room, "only {} of {HERD} were answered when they first asked", herd.at_once);
    Ok(())
}

/// Waits for zero groups, sends a herd, and waits for zero groups again.
async fn at_zero(stage: &Stage, run: &mut Run, set: &[&str]) -> Result<herd::Herd> {
    stage.install(set)?;
    let bounds = json!({ "minReplicas": 0, "maxReplicas": 2, "idleSecondsToZero": IDLE_SECONDS });
    stage.apply(autoscaling(&bounds))?;
    let history = History::follow(&stage.fixture.models, NAME);
    wait::until("no group without a request", SOON, || Ok(history.wanted(0, Duration::ZERO))).await?;
    stage.fixture.settled(NAME, 0).await?;
    let before = taken(stage)?;
    let since = history.now();
    let herd = herd::rush(&stage.gateways.url, NAME, &stage.streams, HERD, SOON).await;
    let woken = history.ready(1, since);
    run.up_s = woken.map(|at| (at - since).as_secs_f64());
    run.right = herd.right;
    run.failed = herd.failed.len();
    run.refused = herd.refusals.len();
    run.differing = herd.differing.len();
    run.first_s = herd.pace.first.as_secs_f64();
    let ended = history.now();
    let shares = shares(&before, &taken(stage)?);
    println!("    {} right, {} of them at once, {} sent away", herd.right, herd.at_once, herd.refusals.len());
    let emptied = load::ebb(stage, run, &history, 0).await;
    // to zero, up to the load, and to zero again
    let judged = load::judge_path(run, &history, 2);
    let zero = history.wanted(0, ended);
    let rested = zero.map_or_else(|| "never".to_owned(), |at| format!("{:.0} s", (at - ended).as_secs_f64()));
    let asked: Vec<String> = shares.iter().map(|share| format!("{share:.0}")).collect();
    let waits: Vec<u64> = herd.refusals.iter().filter_map(|refusal| refusal.retry_after).collect();
    let told = match (waits.iter().min(), waits.iter().max()) {
        (Some(least), Some(most)) => format!("; told to come back after {least} to {most} s"),
        _ => String::new(),
    };
    run.saw = format!(
        "{} of {HERD} answered when they first asked; requests at each gateway: {}{told}; zero groups wanted {rested} after the last answer",
        herd.at_once,
        asked.join(" and "),
    );
    herd.all_served()?;
    emptied?;
    judged?;
    woken.context("no group got ready")?;
    ensure!(stage.events("Woken")? > 0, "no event Woken");
    ensure!(
        shares.len() == 2 && shares.iter().all(|share| *share > 0.0),
        "a gateway was not asked: {shares:?}"
    );
    let early =
        zero.is_some_and(|at| at + Duration::from_secs(3) < ended + Duration::from_secs(IDLE_SECONDS));
    ensure!(!early, "to zero {rested} after the last answer, where {IDLE_SECONDS} s must pass");
    Ok(herd)
}

/// Small targets and short times; `over` are the bounds.
fn autoscaling(over: &Value) -> Value {
    let mut spec = json!({
        "targetOutstandingTokensPerReplica": TOKENS,
        "behavior": { "scaleDown": { "stabilizationWindowSeconds": 20 } },
    });
    for (key, value) in over.as_object().into_iter().flatten() {
        spec[key.as_str()] = value.clone();
    }
    // spec.replicas is left to the autoscaler, as GitOps has it
    json!({ "replicas": null, "autoscaling": spec })
}

fn last_reason(stage: &Stage) -> Result<String> {
    let status = stage.fixture.models.deployment(NAME)?["status"]["autoscaling"].take();
    let rate = &status["tokensPerSecondPerReplica"];
    Ok(format!("{} tokens/s a group; at the end {}: {}", rate, status["reason"], status["message"]))
}

fn words(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(" and ")
}

/// Requests that each gateway has finished for the deployment.
fn taken(stage: &Stage) -> Result<BTreeMap<String, f64>> {
    let system = &stage.fixture.system;
    let pods = system.list(&["pods", "-l", "app.kubernetes.io/component=gateway"])?;
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let mut taken = BTreeMap::new();
    for pod in pods.iter().filter(stays) {
        let name = node::name(pod)?;
        let text = system.pod_http(name, 9090, "/metrics")?;
        let model = format!("model=\"{NAME}\"");
        let of_model = text
            .lines()
            .filter(|line| line.starts_with("belay_gateway_requests_total{") && line.contains(&model));
        let count = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        taken.insert(name.to_owned(), of_model.filter_map(count).sum());
    }
    Ok(taken)
}

/// What each has taken in between.
fn shares(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<f64> {
    after.iter().map(|(pod, count)| count - before.get(pod).copied().unwrap_or(0.0)).collect()
}
