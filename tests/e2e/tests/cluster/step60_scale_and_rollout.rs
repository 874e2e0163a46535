//! Scaling and rolling out under constant traffic: no request fails, no token differs.

use anyhow::{Context, Result, ensure};
use belay_e2e::{
    fixture::{NANO, SOON, fixture, uids},
    kubectl::run,
    traffic::Traffic,
    wait,
};

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
