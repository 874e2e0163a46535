//! Changes under load (`make e2e-report`): each is made while clients stream, and every token is compared. A change is a row
//! of docs/operations/reliability/changes.csv, and docs/reliability.md is rendered from it.
//!   BELAY_REPORT          words, separated by commas: only changes whose name has one of them
//!   BELAY_REPORT_REPEATS  how often each is made (1)

mod events;

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::{Result, ensure};
use belay_e2e::{
    campaign::{
        change::Change,
        csv, page,
        provenance::Provenance,
        selection::{selects, setting},
    },
    fixture::{Fixture, NANO, SOON, fixture},
    oracle::{Expected, LoneWorker},
    service::NodePort,
    traffic::Traffic,
    variant::Variant,
    wait,
};
use events::{EVENTS, Event};

/// Name of the deployment.
const TIDE: &str = "tide";
const CLIENTS: usize = 6;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            println!("{broken} changes were not as they should be");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// How many changes were not as they should be.
async fn run() -> Result<usize> {
    let fixture = fixture()?;
    let docs = fixture.env.root.join("docs");
    let (file, page) = (docs.join("operations/reliability/changes.csv"), docs.join("reliability.md"));
    let provenance = Provenance::of(&fixture.env)?;
    let filter = std::env::var("BELAY_REPORT").unwrap_or_default();
    let repeats: u32 = setting("BELAY_REPORT_REPEATS", 1)?;
    let events: Vec<&Event> = EVENTS.iter().filter(|event| selects(&filter, event.name)).collect();
    ensure!(!events.is_empty(), "no change is called {filter}");
    fixture.install(&["gateway.replicas=2"])?;
    fixture.remove(NANO).await?;
    let gateways = NodePort::to_gateways(&fixture)?;
    let streams = streams(&fixture).await?;
    let mut broken = 0;
    for repetition in 0..repeats {
        for event in &events {
            println!("{} ({} of {repeats})", event.name, repetition + 1);
            let change = change(&fixture, event, &gateways, &streams, &provenance, repetition).await;
            println!("    {}", if change.problem.is_empty() { "as it should be" } else { &change.problem });
            broken += usize::from(!change.problem.is_empty());
            publish(&file, &page, &change)?;
        }
    }
    fixture.remove(TIDE).await?;
    Ok(broken)
}

fn publish(file: &Path, page: &Path, change: &Change) -> Result<()> {
    csv::append(file, change)?;
    page::publish_changes(page, &csv::read(file)?)
}

/// Long and short ones.
async fn streams(fixture: &Fixture) -> Result<Vec<Expected>> {
    let cases = fixture.cases(&["fact", "doc", "code"], 6)?;
    let worker = LoneWorker::start(&fixture.env).await?;
    let long = worker.long_streams(&cases, 150).await?;
    let short = worker.long_streams(&cases, 8).await?;
    Ok(long.into_iter().zip(short).flat_map(|(long, short)| [long, short]).collect())
}

/// Makes one change under load.
async fn change(
    fixture: &Fixture,
    event: &Event,
    gateways: &NodePort,
    streams: &[Expected],
    provenance: &Provenance,
    repetition: u32,
) -> Change {
    let row = Change {
        provenance: provenance.clone(),
        event: event.title.to_owned(),
        repetition,
        ..Change::default()
    };
    match measured(fixture, event, gateways, streams, row.clone()).await {
        Ok(row) => row,
        Err(error) => Change { problem: format!("{error:#}"), ..row },
    }
}

async fn measured(
    fixture: &Fixture,
    event: &Event,
    gateways: &NodePort,
    streams: &[Expected],
    row: Change,
) -> Result<Change> {
    fixture.whole_cluster().await?;
    fixture.remove(TIDE).await?;
    fixture.variant(&Variant::new(TIDE, 2, 2, 1)).await?;
    fixture.models.run(&["scale", "mdep", TIDE, &format!("--replicas={}", event.groups)])?;
    fixture.settled(TIDE, event.groups).await?;
    let traffic = Traffic::start(&gateways.url, TIDE, streams, CLIENTS)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 12).then_some(()))).await?;
    let began = Instant::now();
    let made = event.make(fixture, TIDE).await;
    let took_s = began.elapsed().as_secs_f64();
    // what the change leaves must work as well
    let answered = traffic.answered();
    let goes_on =
        wait::until("traffic", SOON, || Ok((traffic.answered() >= answered + 12).then_some(()))).await;
    let report = traffic.stop().await;
    println!("    {report}; {took_s:.0} s");
    let judged = made.and(goes_on).and(report.all_right(20));
    Ok(Change {
        right: report.right,
        failed: report.failed.len(),
        differing: report.differing.len(),
        first_s: report.pace.first.as_secs_f64(),
        gap_s: report.pace.gap.as_secs_f64(),
        took_s,
        problem: judged.err().map(|error| format!("{error:#}")).unwrap_or_default(),
        ..row
    })
}
