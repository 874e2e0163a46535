//! The long campaign (`make chaos`): every fault on every shape of the group, again and again, under streaming load.
//! Each trial is a row of docs/operations/reliability/*.csv, and docs/reliability.md is rendered from them.
//!
//! A campaign that was cut off goes on where it was: rows of the same commit are not measured again.
//!   BELAY_CHAOS          words, separated by commas: only trials whose name has one of them
//!   BELAY_CHAOS_REPEATS  trials of each kind (3)
//!   BELAY_CHAOS_AGAIN    1: also those that have a row
//!   BELAY_EVEN_MINUTES   how long an even load is watched (10)

mod load;
mod strike;
mod trial;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use belay_e2e::{
    campaign::{
        csv,
        load::Moment,
        page,
        provenance::Provenance,
        row::Row,
        scenario::{CHAOS, Scenario},
        selection::setting,
    },
    fixture::{Fixture, NANO, fixture},
};

/// What all trials share.
struct Campaign {
    fixture: Fixture,
    provenance: Provenance,
    faults: PathBuf,
    load: PathBuf,
    page: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            println!("{broken} trials broke a promise");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// How many trials broke a promise.
async fn run() -> Result<usize> {
    let filter = std::env::var("BELAY_CHAOS").unwrap_or_default();
    let again = setting("BELAY_CHAOS_AGAIN", 0)? == 1;
    let campaign = Campaign::open()?;
    let open = campaign.open_trials(&filter, setting("BELAY_CHAOS_REPEATS", 3)?, again)?;
    let mixes = campaign.open_mixes(&filter, again)?;
    let all = open.len() + mixes.len();
    println!("{all} trials, commit {}", campaign.provenance.commit);
    if all == 0 {
        campaign.publish()?;
        return Ok(0);
    }
    campaign.fixture.install(&[])?;
    campaign.fixture.remove(NANO).await?;
    let mut broken = 0;
    for (index, scenario) in open.iter().enumerate() {
        println!("[{}/{all}] {scenario}", index + 1);
        let row = trial::run(&campaign, scenario).await;
        println!("    {}", if row.problem.is_empty() { "kept every promise" } else { &row.problem });
        broken += usize::from(!row.problem.is_empty());
        csv::append(&campaign.faults, &row)?;
        campaign.publish()?;
    }
    for (index, mix) in mixes.into_iter().enumerate() {
        println!("[{}/{all}] {}", open.len() + index + 1, mix.name());
        if let Err(error) = load::run(&campaign, mix).await {
            println!("    {error:#}");
            broken += 1;
        }
        campaign.publish()?;
    }
    campaign.fixture.remove(CHAOS).await?;
    Ok(broken)
}

impl Campaign {
    fn open() -> Result<Self> {
        let fixture = fixture()?;
        let docs = fixture.env.root.join("docs");
        Ok(Self {
            provenance: Provenance::of(&fixture.env)?,
            faults: docs.join("operations/reliability/faults.csv"),
            load: docs.join("operations/reliability/load.csv"),
            page: docs.join("reliability.md"),
            fixture,
        })
    }

    fn rows(&self) -> Result<Vec<Row>> {
        csv::read(&self.faults)
    }

    fn open_trials(&self, filter: &str, repeats: u32, again: bool) -> Result<Vec<Scenario>> {
        let rows = self.rows()?;
        let has_row =
            |scenario: &Scenario| rows.iter().any(|row| row.is_of(scenario, &self.provenance.commit));
        let mut all = Scenario::all(repeats);
        all.retain(|scenario| scenario.matches(filter) && (again || !has_row(scenario)));
        Ok(all)
    }

    fn open_mixes(&self, filter: &str, again: bool) -> Result<Vec<load::Mix>> {
        let moments: Vec<Moment> = csv::read(&self.load)?;
        let commit = &self.provenance.commit;
        let has_run = |mix: &load::Mix| {
            moments.iter().any(|moment| moment.provenance.commit == *commit && moment.mix == mix.name())
        };
        Ok(load::MIXES.into_iter().filter(|mix| mix.matches(filter) && (again || !has_run(mix))).collect())
    }

    fn publish(&self) -> Result<()> {
        page::publish(&self.page, &self.rows()?, &csv::read(&self.load)?)
    }
}
