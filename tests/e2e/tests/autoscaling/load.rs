//! Load that comes, stays and goes, and what becomes of the groups meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use belay_e2e::{
    campaign::scaling::Run,
    fixture::SOON,
    history::{History, path, turns},
    traffic::{Report, Traffic},
    wait,
};

use crate::stage::{NAME, Stage};

/// Clients of the great load: more outstanding tokens than the targets of [`MOST`] groups.
pub const CLIENTS: usize = 12;
/// Most groups of every scenario.
pub const MOST: u64 = 3;
/// Tokens that a group may have before it: a client has 85 on average.
pub const TOKENS: u64 = 256;

/// Streams until `most` groups are ready, and for as long as `stays` after that. Fills in how long the way up took.
pub async fn surge(stage: &Stage, run: &mut Run, history: &History, stays: Duration) -> Result<()> {
    let traffic = Traffic::start(&stage.gateways.url, NAME, &stage.streams, CLIENTS)?;
    let since = history.now();
    let up =
        wait::until("the groups that the load asks for", 2 * SOON, || Ok(history.ready(MOST, since))).await;
    if let Ok(up) = &up {
        run.up_s = Some((*up - since).as_secs_f64());
        pass(stays).await;
    }
    let report = traffic.stop().await;
    println!("    {CLIENTS} clients: {report}");
    note(run, &report);
    up.and(report.all_right(CLIENTS))
}

/// Streams of fewer clients for a while.
pub async fn ripple(stage: &Stage, run: &mut Run, clients: usize, lasts: Duration) -> Result<()> {
    let traffic = Traffic::start(&stage.gateways.url, NAME, &stage.streams, clients)?;
    pass(lasts).await;
    let report = traffic.stop().await;
    println!("    {clients} clients: {report}");
    note(run, &report);
    report.all_right(clients)
}

/// After the load's end: until `least` groups are left, and then long enough to see that it stays so. Fills in how long it
/// took.
pub async fn ebb(stage: &Stage, run: &mut Run, history: &History, least: u64) -> Result<()> {
    let since = history.now();
    wait::until("fewer groups", 2 * SOON, || Ok(history.wanted(least, since))).await?;
    stage.fixture.settled(NAME, least).await?;
    run.down_s = Some((history.now() - since).as_secs_f64());
    let before = path(&history.moments());
    pass(Duration::from_secs(20)).await;
    let after = path(&history.moments());
    ensure!(before == after, "without load it goes on from {before:?} to {after:?}");
    Ok(())
}

/// The way of `spec.replicas`, which may turn at most so often and leave the bounds never.
pub fn judge_path(run: &mut Run, history: &History, most_turns: usize) -> Result<()> {
    let path = path(&history.moments());
    run.turns = turns(&path);
    run.groups = path.iter().map(u64::to_string).collect::<Vec<_>>().join(" > ");
    ensure!(run.turns <= most_turns, "{} turns, where {most_turns} are the most: {}", run.turns, run.groups);
    ensure!(path.iter().all(|groups| *groups <= MOST), "more than {MOST} groups: {}", run.groups);
    Ok(())
}

/// Counts what clients saw.
pub fn note(run: &mut Run, report: &Report) {
    run.right += report.right;
    run.failed += report.failed.len();
    run.differing += report.differing.len();
    run.first_s = run.first_s.max(report.pace.first.as_secs_f64());
}

/// The load itself is what is waited for here: it lasts so long.
pub async fn pass(time: Duration) {
    let began = Instant::now();
    tokio::time::sleep(time).await;
    println!("    {:.0} s pass", began.elapsed().as_secs_f64());
}
