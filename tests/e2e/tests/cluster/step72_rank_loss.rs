//! The loss of ranks under streaming load, in the eyes of the clients, of the workers (asked every 50 ms) and of what
//! the operator wrote down. The long campaign, `make chaos`, tries more of this, more often.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use belay_e2e::{
    coverage::Sampler,
    fixture::{Fixture, NANO, SOON, fixture, uids},
    ledger::Ledger,
    node::{self, Process},
    traffic::{Report, Traffic},
    tunnel::Tunnel,
    variant::Variant,
    wait,
};
use serde_json::json;

/// Workers of the group: 2 × 2 ranks.
const WORKERS: u32 = 2;
/// The longest that a stream may stand still where every expert has a copy left, and where it has none.
const WITH_COPIES: Duration = Duration::from_secs(3);
const WITHOUT_COPIES: Duration = Duration::from_secs(15);

/// A group under load, watched from all sides.
struct Scene {
    fixture: Fixture,
    sampler: Sampler,
    ledger: Ledger,
    traffic: Traffic,
    /// Keeps the clients' way open.
    _tunnel: Tunnel,
}

impl Scene {
    /// The example with `copies` copies of every expert, and clients that have begun. The clients come by a gateway
    /// that is not on `off`.
    async fn with(copies: u32, off: impl FnOnce(&Fixture) -> Result<Option<String>>) -> Result<Self> {
        let fixture = fixture()?;
        fixture.nano().await?;
        let experts = Variant::new(NANO, WORKERS, 2, copies).experts();
        let patch = json!({"spec": {"experts": experts}}).to_string();
        fixture.models.run(&["patch", "mdep", NANO, "--type=merge", "-p", &patch])?;
        let began = Instant::now();
        let sampler = Sampler::start(&fixture.models, NANO, began);
        let ledger = Ledger::start(&fixture.models, NANO, began);
        sampler.until_restored(Duration::ZERO, WORKERS, copies, SOON).await?;
        ledger.until_quiet(SOON).await?;
        fixture.settled(NANO, 1).await?;
        let streams = fixture.long_streams().await?;
        let tunnel = match off(&fixture)? {
            Some(node) => fixture.gateway_off(&node).await?,
            None => fixture.gateway()?,
        };
        let traffic = Traffic::start(&tunnel.url(), NANO, &streams, 4)?;
        let scene = Self { fixture, sampler, ledger, traffic, _tunnel: tunnel };
        scene.more_answers(8).await?;
        Ok(scene)
    }

    async fn more_answers(&self, count: usize) -> Result<()> {
        let before = self.traffic.answered();
        let enough = || Ok((self.traffic.answered() >= before + count).then_some(()));
        wait::until("traffic", SOON, enough).await
    }

    /// Waits until all is as before, and judges what everybody saw. `struck` are the workers that were hit at `since`.
    async fn end(self, since: Duration, copies: u32, struck: &[u32]) -> Result<Report> {
        let restored = self.sampler.until_restored(since, WORKERS, copies, SOON).await?;
        self.ledger.until_quiet(SOON).await?;
        self.fixture.settled(NANO, 1).await?;
        self.more_answers(8).await?;
        let report = self.traffic.stop().await;
        let timeline = self.sampler.timeline();
        let seconds = |time: Option<Duration>| {
            time.map_or_else(|| "–".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        println!("{report}");
        println!(
            "noticed after {}, serving again after {}, all copies again after {}; operations {:?}; {}",
            seconds(timeline.noticed(since, struck)),
            seconds(timeline.served_again(since, struck)),
            seconds(Some(restored)),
            self.ledger.operations(since)?.epochs,
            timeline.density()
        );
        report.all_right(16)?;
        self.ledger.check()?;
        let fallen = timeline.fallen_epochs();
        ensure!(fallen.is_empty(), "{fallen:?}");
        if copies > 1 {
            let uncovered = timeline.uncovered(struck);
            ensure!(uncovered.held(), "{uncovered:?}");
        }
        Ok(report)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_with_copies_a_killed_worker_is_a_pause() -> Result<()> {
    let scene = Scene::with(2, |_| Ok(None)).await?;
    let victim = Process::of(&scene.fixture.worker(NANO, 1)?)?;
    let since = scene.sampler.now();
    victim.signal("KILL")?;
    scene.sampler.until("the loss is noticed", SOON, |timeline| timeline.noticed(since, &[1])).await?;
    scene.end(since, 2, &[1]).await?.stalled_at_most(WITH_COPIES)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_without_copies_a_killed_workers_experts_are_loaded_again() -> Result<()> {
    let scene = Scene::with(1, |_| Ok(None)).await?;
    let victim = Process::of(&scene.fixture.worker(NANO, 0)?)?;
    let since = scene.sampler.now();
    victim.signal("KILL")?;
    scene.sampler.until("the loss is noticed", SOON, |timeline| timeline.noticed(since, &[0])).await?;
    scene.end(since, 1, &[0]).await?.stalled_at_most(WITHOUT_COPIES)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_a_starved_worker_is_not_given_up() -> Result<()> {
    let scene = Scene::with(2, |_| Ok(None)).await?;
    let pods = uids(&scene.fixture.models.workers(NANO)?);
    let victim = Process::of(&scene.fixture.worker(NANO, 1)?)?;
    let since = scene.sampler.now();
    let starving = victim.starve()?;
    tokio::time::sleep(Duration::from_secs(5)).await; // the fault itself
    starving.now()?;
    let (operations, given_up) = {
        scene.sampler.until_restored(since, WORKERS, 2, SOON).await?;
        (scene.ledger.operations(since)?, scene.sampler.timeline().given_up(since, &[1]))
    };
    let fixture = scene.fixture.clone();
    let noticed = scene.sampler.timeline().noticed(since, &[1]);
    scene.end(since, 2, &[1]).await?.stalled_at_most(WITHOUT_COPIES)?;
    ensure!(noticed.is_some(), "nobody noticed that worker 1 did not answer");
    ensure!(given_up.is_none(), "worker 1 was given up after {given_up:?}");
    ensure!(operations.epochs.is_empty(), "operations {operations:?} though nobody was lost");
    ensure!(pods == uids(&fixture.models.workers(NANO)?), "a pod was replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_a_drain_of_a_node_with_sole_copies_leaves_no_moment_without_coverage() -> Result<()> {
    let node_of = |fixture: &Fixture| Ok(Some(node::of(&fixture.worker(NANO, 1)?)?.to_owned()));
    let scene = Scene::with(1, node_of).await?;
    let fixture = scene.fixture.clone();
    let node = node_of(&fixture)?.context("a node")?;
    let before = uids(&fixture.models.workers(NANO)?);
    let since = scene.sampler.now();
    let system = fixture.system.clone();
    let drained = tokio::task::spawn_blocking({
        let node = node.clone();
        move || node::drain(&system, &node, 110)
    });
    let cordon = drained.await??;
    println!("drained after {:.1} s", (scene.sampler.now() - since).as_secs_f64());
    for pod in fixture.models.workers(NANO)? {
        let leaves = !pod["metadata"]["deletionTimestamp"].is_null();
        // a pod that is on no node yet is not on this one
        let stays = pod["spec"]["nodeName"].as_str() == Some(node.as_str()) && !leaves;
        ensure!(!stays, "{} is still on {node}", node::name(&pod)?);
    }
    scene.sampler.until_restored(since, WORKERS, 1, SOON).await?;
    let (uncovered, density) = {
        let timeline = scene.sampler.timeline();
        (timeline.uncovered(&[]), timeline.density())
    };
    let report = scene.end(since, 1, &[]).await?;
    ensure!(uncovered.held(), "{uncovered:?} ({density})");
    report.stalled_at_most(WITHOUT_COPIES)?;
    ensure!(before != uids(&fixture.models.workers(NANO)?), "no worker moved: the drain showed nothing");
    cordon.now()?;
    fixture.whole_cluster().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_an_operator_killed_in_a_recovery_is_followed_by_one_that_goes_on() -> Result<()> {
    let scene = Scene::with(2, |_| Ok(None)).await?;
    let fixture = scene.fixture.clone();
    let operator = Process::of(&node::leading_operator(&fixture.system).await?)?;
    let victim = fixture.worker(NANO, 1)?;
    let since = scene.sampler.now();
    let victim = node::name(&victim)?.to_owned();
    fixture.models.run(&["delete", "pod", &victim, "--grace-period=0", "--force", "--wait=false"])?;
    // as soon as anybody knows: the operator has just begun
    scene.sampler.until("the loss is noticed", SOON, |timeline| timeline.noticed(since, &[1])).await?;
    operator.signal("KILL")?;
    scene.end(since, 2, &[1]).await?.stalled_at_most(WITH_COPIES)?;
    fixture.whole_cluster().await
}
