//! Canaries under constant traffic: a good one takes over, one that answers otherwise never gets a request, one that refuses
//! what the old revision answers is taken back, and so is one that is slower.

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    checkpoint,
    fixture::{Fixture, NANO, SOON, fixture, uids},
    traffic::Traffic,
    wait,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_a_good_canary_takes_over() -> Result<()> {
    let fixture = fixture()?;
    let before = fixture.nano().await?;
    let streams = fixture.long_streams().await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 4).then_some(()))).await?;
    let env = json!([{ "name": "BELAY_MAX_QUEUED", "value": "201" }]);
    patch(&fixture, json!({ "rollout": canary(&fixture)?, "group": { "template": { "env": env } } }))?;
    let shared = until(&fixture, "half of the requests", |status| {
        let share = |role: &str| {
            let all = status["traffic"].as_array();
            all.and_then(|all| all.iter().find(|share| share["role"] == role))
                .map(|share| share["weightPercent"].clone())
        };
        share("Canary") == Some(json!(50)) && share("Stable") == Some(json!(50))
    })
    .await?;
    ensure!(shared["readyReplicas"] == 2, "{shared}");
    let checks = shared["rollout"]["analysis"].as_array().context("analysis")?;
    ensure!(checks.iter().any(|check| check["name"] == "Parity" && check["verdict"] == "Good"), "{checks:?}");
    let after = fixture.settled(NANO, 1).await?;
    ensure!(after["status"]["currentRevision"] != before["status"]["currentRevision"], "{after}");
    let answered = traffic.answered();
    wait::until("traffic", SOON, || Ok((traffic.answered() >= answered + 8).then_some(()))).await?;
    let report = traffic.stop().await;
    println!("{report}");
    report.all_right(16)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_a_canary_that_answers_otherwise_gets_no_request() -> Result<()> {
    let fixture = fixture()?;
    let models = std::env::var("BELAY_MODELS").context("BELAY_MODELS")?;
    checkpoint::perturb(&fixture.env.nano(), &std::path::Path::new(&models).join("nano/perturbed"))?;
    patch(&fixture, json!({ "rollout": canary(&fixture)? }))?;
    fixture.settled(NANO, 1).await?;
    let pods = uids(&fixture.models.workers(NANO)?);
    let streams = fixture.long_streams().await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    let source = |path: &str| json!({ "model": { "source": { "persistentVolumeClaim": { "path": path } } } });
    patch(&fixture, source("perturbed"))?;
    let status = taken_back(&fixture, "AnswersDiffer").await?;
    println!("{}", status["rollout"]["lastRollback"]["message"]);
    patch(&fixture, source("bf16"))?;
    fixture.settled(NANO, 1).await?;
    ensure!(pods == uids(&fixture.models.workers(NANO)?), "pods of the stable revision were replaced");
    let report = traffic.stop().await;
    println!("{report}");
    report.all_right(8)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_a_canary_that_refuses_requests_is_taken_back() -> Result<()> {
    let fixture = fixture()?;
    let mut rollout = canary(&fixture)?;
    rollout["analysis"]["parity"] = Value::Null; // or it would not come so far
    patch(&fixture, json!({ "rollout": rollout }))?;
    fixture.settled(NANO, 1).await?;
    let pods = uids(&fixture.models.workers(NANO)?);
    let streams = fixture.long_streams().await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 6)?;
    // a mistake that no probe sees: no prompt fits
    patch(&fixture, json!({ "model": { "maxContextTokens": 4 } }))?;
    let status = taken_back(&fixture, "ErrorsIncreased").await?;
    println!("{}", status["rollout"]["lastRollback"]["message"]);
    let report = traffic.stop().await;
    println!("{report}");
    ensure!(report.differing.is_empty(), "{:?}", report.differing);
    ensure!(!report.failed.is_empty(), "nobody met the canary");
    // from now on everything is right again, on the pods that were there before
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 8).then_some(()))).await?;
    patch(&fixture, json!({ "model": { "maxContextTokens": null } }))?;
    fixture.settled(NANO, 1).await?;
    ensure!(pods == uids(&fixture.models.workers(NANO)?), "pods of the stable revision were replaced");
    traffic.stop().await.all_right(8)?;
    patch(&fixture, json!({ "rollout": null }))?;
    fixture.nano().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_a_canary_that_is_slower_is_taken_back() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let mut rollout = canary(&fixture)?;
    // parity is asked beside the traffic of others; here it would only take time
    rollout["analysis"]["parity"] = Value::Null;
    patch(&fixture, json!({ "rollout": rollout }))?;
    fixture.settled(NANO, 1).await?;
    let pods = uids(&fixture.models.workers(NANO)?);
    let streams = fixture.streams(&["doc.long"], 20).await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 6)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 12).then_some(()))).await?;
    // prompts of some hundred tokens are read token by token, each time anew: every answer is right, and late
    let environment = fixture.models.deployment(NANO)?["spec"]["group"]["template"]["env"].clone();
    let mut slow = environment.as_array().cloned().unwrap_or_default();
    slow.push(json!({ "name": "BELAY_STEP_TOKENS", "value": "1" }));
    let set = |cache: Value, environment: Value| {
        let group = json!({ "template": { "env": environment }, "cache": cache });
        patch(&fixture, json!({ "group": group }))
    };
    set(json!({ "prefix": "Disabled" }), Value::Array(slow))?;
    let status = taken_back(&fixture, "FirstTokenSlower").await?;
    println!("{}", status["rollout"]["lastRollback"]["message"]);
    let report = traffic.stop().await;
    println!("{report}");
    report.all_right(16)?;
    set(Value::Null, environment)?;
    patch(&fixture, json!({ "rollout": null }))?;
    fixture.settled(NANO, 1).await?;
    ensure!(pods == uids(&fixture.models.workers(NANO)?), "pods of the stable revision were replaced");
    fixture.nano().await?;
    Ok(())
}

/// One step: half of the requests for five seconds, looked at every three.
fn canary(fixture: &Fixture) -> Result<Value> {
    let prompts: Vec<String> =
        fixture.cases(&["fact", "doc", "code"], 4)?.into_iter().map(|case| case.prompt).collect();
    Ok(json!({
        "strategy": "Canary",
        "canary": { "steps": [{ "weightPercent": 50, "holdSeconds": 5 }] },
        "analysis": {
            "intervalSeconds": 3,
            "minRequests": 10,
            // two revisions share two processors here, with whatever else runs on them
            "maxTimeToFirstTokenIncreasePercent": 300,
            "maxInterTokenIncreasePercent": 300,
            // the same weights give the same numbers, whatever the batch and the sharding
            "parity": { "prompts": prompts, "maxTokens": 64, "maxLogprobDifferenceThousandths": 1 },
        },
    }))
}

fn patch(fixture: &Fixture, spec: Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    fixture.models.run(&["patch", "mdep", NANO, "--type=merge", "-p", &patch]).map(drop)
}

async fn until(fixture: &Fixture, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(what, SOON, || {
        let status = fixture.models.deployment(NANO)?["status"].clone();
        if wanted(&status) { Ok(Some(status)) } else { bail!("status {status}") }
    })
    .await
}

/// Waits until the new revision was taken back for this reason, and its pods are gone.
async fn taken_back(fixture: &Fixture, reason: &str) -> Result<Value> {
    until(fixture, &format!("taken back for {reason}"), |status| {
        let rollout = &status["rollout"];
        rollout["phase"] == "RolledBack"
            && rollout["lastRollback"]["reason"] == reason
            && (&status["replicas"], &status["updatedReplicas"]) == (&json!(1), &json!(0))
    })
    .await
}
