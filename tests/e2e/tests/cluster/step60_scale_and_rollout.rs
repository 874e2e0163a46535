//! Scaling and rolling out under constant traffic: no request fails, no token differs.

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    fixture::{Fixture, NANO, SOON, fixture, uids},
    kubectl::run,
    traffic::Traffic,
    wait,
};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_scale_1_3_1_under_traffic() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let streams = fixture.long_streams().await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 4).then_some(()))).await?;
    for replicas in [3, 1] {
        fixture.models.run(&["scale", "mdep", NANO, &format!("--replicas={replicas}")])?;
        fixture.settled(NANO, replicas).await?;
        let before = traffic.answered();
        wait::until("traffic", SOON, || Ok((traffic.answered() >= before + 8).then_some(()))).await?;
    }
    let report = traffic.stop().await;
    println!("{} streams over 1 -> 3 -> 1", report.right);
    report.all_right(20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_an_image_change_under_traffic() -> Result<()> {
    let fixture = fixture()?;
    let before = fixture.nano().await?;
    let streams = fixture.long_streams().await?;
    let pod = &fixture.models.workers(NANO)?[0];
    let image = pod["spec"]["containers"][0]["image"].as_str().context("image")?;
    let other = format!("{}:e2e-other", image.rsplit_once(':').context("tag")?.0);
    // the same content under another tag: what changes is the image of the spec
    for node in
        run(&fixture.env.tool("kind"), ["get", "nodes", "--name", &fixture.env.cluster], None)?.stdout.lines()
    {
        let tag = ["exec", node, "ctr", "-n", "k8s.io", "images", "tag", "--force", image, &other];
        let ran = run("docker".as_ref(), tag, None)?;
        ensure!(ran.ok, "{node}: {}", ran.stderr);
    }
    let old = uids(&fixture.models.workers(NANO)?);
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 4).then_some(()))).await?;
    let patch = format!(r#"{{"spec":{{"group":{{"template":{{"image":"{other}"}}}}}}}}"#);
    fixture.models.run(&["patch", "mdep", NANO, "--type=merge", "-p", &patch])?;
    let after = wait::until("the other image everywhere", SOON, || {
        let pods = fixture.models.workers(NANO)?;
        let all = pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == other.as_str());
        Ok((all && pods.len() == 2).then_some(()))
    })
    .await
    .map(|()| fixture.settled(NANO, 1));
    let after = after?.await?;
    let answered = traffic.answered();
    wait::until("traffic", SOON, || Ok((traffic.answered() >= answered + 8).then_some(()))).await?;
    let report = traffic.stop().await;
    println!("{} streams over an image change", report.right);
    report.all_right(16)?;
    ensure!(before["status"]["currentRevision"] != after["status"]["currentRevision"], "{after}");
    let new = uids(&fixture.models.workers(NANO)?);
    ensure!(new.iter().all(|pod| !old.contains(pod)), "{new:?} and {old:?} share pods");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_an_operator_upgrade_moves_no_pod() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    let before = uids(&fixture.models.workers(NANO)?);
    let operator = uids(&fixture.system.list(&["pods", "-l", "app.kubernetes.io/component=operator"])?);
    fixture.install(&["operator.logLevel=debug"])?;
    fixture.settled(NANO, 1).await?;
    ensure!(
        operator != uids(&fixture.system.list(&["pods", "-l", "app.kubernetes.io/component=operator"])?),
        "the upgrade did not replace the operator"
    );
    ensure!(before == uids(&fixture.models.workers(NANO)?), "worker pods changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_a_rollout_to_one_of_two_groups_is_taken_back_under_traffic() -> Result<()> {
    let fixture = fixture()?;
    fixture.nano().await?;
    fixture.models.run(&["scale", "mdep", NANO, "--replicas=2"])?;
    let whole = fixture.settled(NANO, 2).await?;
    let (before, env) = (&whole["status"]["updatedRevision"], &whole["spec"]["group"]["template"]["env"]);
    let streams = fixture.long_streams().await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 4).then_some(()))).await?;
    let patch = |spec: &str| {
        let patch = format!(r#"{{"spec":{spec}}}"#);
        fixture.models.run(&["patch", "mdep", NANO, "--type=merge", "-p", &patch])
    };
    let other = r#"[{"name":"BELAY_MAX_QUEUED","value":"200"}]"#;

    patch(&format!(r#"{{"group":{{"template":{{"env":{other}}}}},"rollout":{{"partition":1}}}}"#))?;
    let after = rests(&fixture, "RolloutPartitioned", 1).await?;
    ensure!(
        after["status"]["updatedRevision"] != *before && after["status"]["currentRevision"] == *before,
        "{after}"
    );
    patch(r#"{"rollout":{"partition":2}}"#)?;
    rests(&fixture, "RolloutPartitioned", 0).await?;
    patch(r#"{"rollout":{"progress":"Paused","partition":0}}"#)?;
    rests(&fixture, "RolloutPaused", 0).await?;
    // what was there before is asked for again: nothing has to move
    let pods = uids(&fixture.models.workers(NANO)?);
    patch(&format!(r#"{{"group":{{"template":{{"env":{env}}}}},"rollout":{{"progress":"Automatic"}}}}"#))?;
    let back = fixture.settled(NANO, 2).await?;
    ensure!(back["status"]["updatedRevision"] == *before, "{back}");
    ensure!(pods == uids(&fixture.models.workers(NANO)?), "pods were replaced");

    let answered = traffic.answered();
    wait::until("traffic", SOON, || Ok((traffic.answered() >= answered + 8).then_some(()))).await?;
    let report = traffic.stop().await;
    println!("{} streams over a rollout to one of two groups and back", report.right);
    report.all_right(16)?;
    fixture.models.run(&["scale", "mdep", NANO, "--replicas=1"])?;
    fixture.settled(NANO, 1).await?;
    Ok(())
}

/// Waits until the rollout stays where it is for this reason, with two ready groups of which so many are updated.
async fn rests(fixture: &Fixture, reason: &str, updated: u64) -> Result<Value> {
    wait::until(&format!("{reason} with {updated} updated"), SOON, || {
        let object = fixture.models.deployment(NANO)?;
        let status = &object["status"];
        let number = |key: &str| status[key].as_u64().unwrap_or(0);
        let observed = status["observedGeneration"] == object["metadata"]["generation"];
        let counted =
            (number("replicas"), number("readyReplicas"), number("updatedReplicas")) == (2, 2, updated);
        let stays = status["conditions"]
            .as_array()
            .is_some_and(|list| list.iter().any(|c| c["type"] == "Progressing" && c["reason"] == reason));
        if observed && counted && stays { Ok(Some(object)) } else { bail!("status {status}") }
    })
    .await
}
