//! Autoscalers under load (`make e2e-autoscaling`): ours, a HorizontalPodAutoscaler with metrics-server, KEDA with our external
//! scaler; and a real Prometheus that judges a canary. A scenario is a row of docs/operations/reliability/autoscaling.csv, and
//! docs/operations/autoscaling.md is rendered from it.
//!   BELAY_AUTOSCALING          words, separated by commas: only scenarios whose name has one of them
//!   BELAY_AUTOSCALING_REPEATS  how often each is played (1)

mod canary;
mod hpa;
mod keda;
mod load;
mod ours;
mod stage;

use std::{path::Path, process::ExitCode};

use anyhow::{Result, ensure};
use belay_e2e::{
    campaign::{
        csv, page,
        provenance::Provenance,
        scaling::Run,
        selection::{selects, setting},
    },
    fixture::{NANO, fixture},
};
use stage::Stage;

/// What is played.
struct Scenario {
    /// By which it is selected.
    name: &'static str,
    /// For the page.
    title: &'static str,
    kind: Kind,
}

enum Kind {
    Load,
    Herd,
    BoundedHerd,
    Hpa,
    Keda,
    GoodCanary,
    BadCanary,
}

const fn scenario(name: &'static str, title: &'static str, kind: Kind) -> Scenario {
    Scenario { name, title, kind }
}

const SCENARIOS: [Scenario; 7] = [
    scenario("ours-load", "`spec.autoscaling`: 12 clients, then 3, then none", Kind::Load),
    scenario("ours-herd", "to zero when idle; 60 streams at once at zero, room for all", Kind::Herd),
    scenario("ours-bounded", "60 streams at once at zero, room for 20 at each gateway", Kind::BoundedHerd),
    scenario("hpa", "HorizontalPodAutoscaler on CPU: 12 clients, then none", Kind::Hpa),
    scenario("keda", "KEDA: one request at zero, 12 clients, then none", Kind::Keda),
    scenario("canary-good", "canary with two good PromQL queries", Kind::GoodCanary),
    scenario("canary-bad", "canary without a prefix cache, which a query forbids", Kind::BadCanary),
];

impl Scenario {
    /// Plays it, and fills in what is seen on the way.
    async fn play(&self, stage: &Stage, run: &mut Run) -> Result<()> {
        stage.clear().await?;
        match self.kind {
            Kind::Load => ours::under_load(stage, run).await,
            Kind::Herd => ours::herd(stage, run).await,
            Kind::BoundedHerd => ours::bounded_herd(stage, run).await,
            Kind::Hpa => hpa::under_load(stage, run).await,
            Kind::Keda => keda::from_zero_and_back(stage, run).await,
            Kind::GoodCanary => canary::good(stage, run).await,
            Kind::BadCanary => canary::bad(stage, run).await,
        }
    }
}

#[tokio::main(worker_threads = 4)]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            println!("{broken} scenarios were not as they should be");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// How many scenarios were not as they should be.
async fn run() -> Result<usize> {
    let fixture = fixture()?;
    let operations = fixture.env.root.join("docs/operations");
    let (file, page) = (operations.join("reliability/autoscaling.csv"), operations.join("autoscaling.md"));
    let provenance = Provenance::of(&fixture.env)?;
    let filter = std::env::var("BELAY_AUTOSCALING").unwrap_or_default();
    let repeats: u32 = setting("BELAY_AUTOSCALING_REPEATS", 1)?;
    let scenarios: Vec<&Scenario> =
        SCENARIOS.iter().filter(|scenario| selects(&filter, scenario.name)).collect();
    ensure!(!scenarios.is_empty(), "no scenario is called {filter}");
    fixture.remove(NANO).await?;
    let stage = Stage::new(fixture).await?;
    let mut broken = 0;
    for repetition in 0..repeats {
        for scenario in &scenarios {
            println!("{} ({} of {repeats})", scenario.name, repetition + 1);
            let scenario_title = scenario.title.to_owned();
            let mut run = Run {
                provenance: provenance.clone(),
                scenario: scenario_title,
                repetition,
                ..Run::default()
            };
            if let Err(error) = Box::pin(scenario.play(&stage, &mut run)).await {
                run.problem = format!("{error:#}");
            }
            println!("    {}; {}", run.groups, run.saw);
            println!("    {}", if run.problem.is_empty() { "as it should be" } else { &run.problem });
            broken += usize::from(!run.problem.is_empty());
            publish(&file, &page, &run)?;
        }
    }
    stage.clear().await?;
    Ok(broken)
}

fn publish(file: &Path, page: &Path, run: &Run) -> Result<()> {
    csv::append(file, run)?;
    page::publish_scaling(page, &csv::read(file)?)
}
