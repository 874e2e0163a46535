//! One trial: a group that is well, traffic, a fault, and what everybody saw.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use belay_e2e::{
    campaign::{
        row::Row,
        scenario::{CHAOS, Fault, Scenario},
    },
    coverage::Sampler,
    fixture::{Fixture, SOON, uids},
    ledger::Ledger,
    node::{self, Undo},
    timeline::Timeline,
    traffic::{Report, Traffic},
    variant::Variant,
    wait,
};

use crate::{
    Campaign,
    strike::{Target, time_a_move},
};

/// Clients that stream throughout.
const CLIENTS: usize = 4;
/// Answers that must come before the fault, and after it.
const ANSWERS: usize = 8;
/// Taken for the length of a recovery while none was measured.
const USUAL_RECOVERY: Duration = Duration::from_secs(12);

/// A row in any case: what went wrong is in it.
pub async fn run(campaign: &Campaign, scenario: &Scenario) -> Row {
    let mut row = Row::of(scenario, &campaign.provenance);
    let mut problems = Vec::new();
    if let Err(error) = try_run(campaign, scenario, &mut row, &mut problems).await {
        problems.push(format!("{error:#}"));
    }
    if let Err(error) = campaign.fixture.whole_cluster().await {
        problems.push(format!("{error:#}"));
    }
    row.problem = problems.join("; ");
    row
}

async fn try_run(
    campaign: &Campaign,
    scenario: &Scenario,
    row: &mut Row,
    problems: &mut Vec<String>,
) -> Result<()> {
    let fixture = &campaign.fixture;
    let workers = scenario.layout.workers;
    fixture.whole_cluster().await?;
    spread_out(fixture, &scenario.variant()).await?;
    let began = Instant::now();
    let sampler = Sampler::start(&fixture.models, CHAOS, began);
    let ledger = Ledger::start(&fixture.models, CHAOS, began);
    sampler.until_restored(Duration::ZERO, workers, scenario.copies, SOON).await?;
    ledger.until_quiet(SOON).await?;

    let whole = match scenario.fault {
        Fault::OperatorInMove => time_a_move(fixture, scenario, &sampler, &ledger).await?,
        _ => usual_recovery(campaign, scenario)?,
    };
    let target = Target::find(fixture, *scenario, whole).await?;
    let tunnel = match &target.node {
        Some(node) => fixture.gateway_off(node).await?,
        None => fixture.gateway()?,
    };
    let traffic = Traffic::start(&tunnel.url(), CHAOS, &fixture.long_streams().await?, CLIENTS)?;
    more(&traffic, ANSWERS).await?;
    let pods = uids(&fixture.models.workers(CHAOS)?);

    let since = sampler.now();
    let aftermath = target.strike(&sampler, &ledger).await?;
    let outcome = recover(fixture, scenario, &target, &sampler, &ledger, since).await;
    if outcome.is_ok() {
        more(&traffic, ANSWERS).await?;
    }
    aftermath.map_or(Ok(()), Undo::now)?;
    let report = traffic.stop().await;
    let timeline = sampler.timeline();
    println!("    {report}; {}", timeline.density());
    report.failed.iter().chain(&report.differing).for_each(|line| println!("    {line}"));

    row.right = report.right;
    row.failed = report.failed.len();
    row.differing = report.differing.len();
    row.first_s = report.pace.first.as_secs_f64();
    row.gap_s = report.pace.gap.as_secs_f64();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    row.noticed_s = seconds(timeline.noticed(since, &target.struck));
    row.serving_s = seconds(timeline.served_again(since, &target.struck));
    row.restored_s = seconds(outcome.as_ref().ok().copied());
    row.uncovered_s = timeline.uncovered(&target.struck).counted.as_secs_f64();
    row.operations = ledger.operations(since)?.epochs.len();

    if let Err(error) = outcome {
        problems.push(format!("{error:#}"));
    }
    let pods_stay = pods == uids(&fixture.models.workers(CHAOS)?);
    problems.extend(broken_promises(scenario, &target, &report, &timeline, since, pods_stay));
    if let Err(error) = ledger.check() {
        problems.push(format!("{error:#}"));
    }
    Ok(())
}

/// Waits until the group is as it was, by the workers, the operator's own record and the status; how long it took.
async fn recover(
    fixture: &Fixture,
    scenario: &Scenario,
    target: &Target,
    sampler: &Sampler,
    ledger: &Ledger,
    since: Duration,
) -> Result<Duration> {
    if scenario.fault.loses_a_worker() {
        // without this an answer from before the fault could pass for the recovery
        sampler
            .until("the loss is noticed", SOON, |timeline| timeline.noticed(since, &target.struck))
            .await?;
    }
    let moves = matches!(scenario.fault, Fault::KillInMove | Fault::OperatorInMove);
    let moved = if moves { ledger.until_over(since, SOON).await? - since } else { Duration::ZERO };
    let restored = sampler.until_restored(since, scenario.layout.workers, scenario.copies, SOON).await?;
    ledger.until_quiet(SOON).await?;
    fixture.settled(CHAOS, 1).await?;
    if let Some(lost) = &target.node {
        for pod in fixture.models.workers(CHAOS)? {
            ensure!(node::of(&pod)? != lost, "{} is still on {lost}", node::name(&pod)?);
        }
    }
    if scenario.fault == Fault::OperatorInMove {
        let epochs = ledger.operations(since)?.epochs;
        ensure!(epochs.len() == 1, "one change was asked for, and {epochs:?} are the operations");
    }
    Ok(restored.max(moved))
}

fn broken_promises(
    scenario: &Scenario,
    target: &Target,
    report: &Report,
    timeline: &Timeline,
    since: Duration,
    pods_stay: bool,
) -> Vec<String> {
    let mut broken = Vec::new();
    if !(report.failed.is_empty() && report.differing.is_empty()) {
        broken.push(format!("{} failed and {} differ", report.failed.len(), report.differing.len()));
    }
    if let Err(error) = report.stalled_at_most(scenario.longest_stall()) {
        broken.push(error.to_string());
    }
    let uncovered = timeline.uncovered(&target.struck);
    if scenario.covered_throughout() && !uncovered.held() {
        let first = uncovered.first.unwrap_or_else(|| "between two samples".into());
        let (counted, bare) = (uncovered.counted.as_secs_f64(), uncovered.bare.as_secs_f64());
        broken.push(format!("no coverage for {counted:.3} s, and no holder for {bare:.3} s: {first}"));
    }
    if scenario.fault == Fault::Starve {
        if let Some(after) = timeline.given_up(since, &target.struck) {
            broken.push(format!(
                "a worker that was only stopped was given up after {:.1} s",
                after.as_secs_f64()
            ));
        }
        if !pods_stay {
            broken.push("a pod was replaced though its worker was only stopped".into());
        }
    }
    broken.extend(timeline.fallen_epochs());
    broken
}

/// The group, well, with its pods on as many nodes as there are.
async fn spread_out(fixture: &Fixture, variant: &Variant) -> Result<()> {
    let group = |object: &serde_json::Value| {
        let number = |key: &str| object["spec"]["group"][key].as_u64().unwrap_or(0);
        (number("workers"), number("devicesPerWorker"))
    };
    let other = fixture
        .models
        .deployment(CHAOS)
        .is_ok_and(|object| group(&object) != (u64::from(variant.workers), u64::from(variant.devices)));
    if other {
        // another revision would roll out beside the old one: slower than anew
        fixture.remove(CHAOS).await?;
    }
    for _ in 0..3 {
        fixture.variant(variant).await?;
        let pods = fixture.models.workers(CHAOS)?;
        let nodes = pods.iter().map(|pod| node::of(pod)).collect::<Result<BTreeSet<_>>>()?;
        if nodes.len() > 1 {
            return Ok(());
        }
        fixture.remove(CHAOS).await?;
    }
    bail!("the scheduler puts every worker on one node")
}

/// How long the recovery takes in which the operator is to be killed, by what was measured without that.
fn usual_recovery(campaign: &Campaign, scenario: &Scenario) -> Result<Duration> {
    let mut measured: Vec<f64> = campaign
        .rows()?
        .iter()
        .filter(|row| row.fault == Fault::DeletePod.name() && row.layout == scenario.layout.to_string())
        .filter(|row| row.copies == scenario.copies && row.problem.is_empty())
        .filter_map(|row| row.restored_s)
        .collect();
    measured.sort_by(f64::total_cmp);
    Ok(measured.get(measured.len() / 2).map_or(USUAL_RECOVERY, |&seconds| Duration::from_secs_f64(seconds)))
}

async fn more(traffic: &Traffic, count: usize) -> Result<()> {
    let before = traffic.answered();
    let enough = || Ok((traffic.answered() >= before + count).then_some(()));
    wait::until("answers", SOON, enough).await
}
