//! A skewed load, which must lead to a move that evens it out, and an even one, which must lead to none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use belay_e2e::{
    admin::Admin,
    campaign::{
        csv,
        load::{Moment, Summary},
        scenario::{CHAOS, LAYOUTS, Layout},
        selection::{selects, setting},
    },
    fixture::{Fixture, SOON},
    ledger::Ledger,
    node,
    oracle::{Case, Expected, LoneWorker},
    routing::{Aim, Load, choose, imbalance_percent},
    traffic::Traffic,
    variant::{Rebalance, Variant},
    wait,
};
use serde_json::json;

use crate::Campaign;

/// Seconds between two rebalances at least.
const INTERVAL: u32 = 30;
/// Between two looks.
const STEP: Duration = Duration::from_secs(5);
/// Prompts to choose from, and the tokens of each by which they are judged.
const CANDIDATES: usize = 60;
const JUDGED: u32 = 60;
/// Tokens of a stream.
const STREAM: u32 = 150;
const CLIENTS: usize = 4;
const LAYOUT: Layout = LAYOUTS[1];

/// A mix of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    Skewed,
    Even,
}

pub const MIXES: [Mix; 2] = [Mix::Skewed, Mix::Even];

impl Mix {
    pub fn name(self) -> &'static str {
        match self {
            Self::Skewed => "skewed",
            Self::Even => "even",
        }
    }

    pub fn matches(self, filter: &str) -> bool {
        selects(filter, &format!("load/{}", self.name()))
    }

    /// Aim, and number of prompts.
    fn prompts(self) -> (Aim, usize) {
        match self {
            Self::Skewed => (Aim::Skewed, 4),
            Self::Even => (Aim::Even, 16),
        }
    }
}

/// One run: rows of the file, and an error for a broken promise.
pub async fn run(campaign: &Campaign, mix: Mix) -> Result<()> {
    let fixture = &campaign.fixture;
    fixture.whole_cluster().await?;
    // anew: a placement that knows of no load
    fixture.remove(CHAOS).await?;
    let off = Variant { redundant: LAYOUT.workers, ..Variant::new(CHAOS, LAYOUT.workers, LAYOUT.devices, 1) };
    let on = Variant {
        rebalance: Rebalance::OnImbalance { threshold_percent: 120, min_interval_seconds: INTERVAL },
        ..off.clone()
    };
    fixture.variant(if mix == Mix::Skewed { &off } else { &on }).await?;
    let began = Instant::now();
    let ledger = Ledger::start(&fixture.models, CHAOS, began);
    wait::until("a placement", SOON, || Ok(placement(&ledger)?.map(|_| ()))).await?;
    ledger.until_quiet(SOON).await?;
    let streams = streams(fixture, &ledger, mix).await?;
    let tunnel = fixture.gateway()?;
    let traffic = Traffic::start(&tunnel.url(), CHAOS, &streams, CLIENTS)?;
    wait::until("answers", SOON, || Ok((traffic.answered() >= 8).then_some(()))).await?;

    let mut watch = Looker::open(campaign, mix, &ledger, &traffic).await?;
    let interval = Duration::from_secs(u64::from(INTERVAL));
    let since = began.elapsed();
    let judged = match mix {
        Mix::Skewed => {
            watch.look_for(interval).await?;
            let switched = watch.now();
            let patch = json!({"spec": {"experts": on.experts()}}).to_string();
            fixture.models.run(&["patch", "mdep", CHAOS, "--type=merge", "-p", &patch])?;
            watch.look_for(3 * interval).await?;
            skew_is_gone(&watch.moments, switched + 2.0 * interval.as_secs_f64())
        }
        Mix::Even => {
            let minutes: u64 = setting("BELAY_EVEN_MINUTES", 10)?;
            watch.look_for(Duration::from_secs(60 * minutes)).await?;
            let epochs = ledger.operations(since)?.epochs;
            ensure_nothing_moved(&epochs)
        }
    };
    let report = traffic.stop().await;
    println!("    {report}");
    report.all_right(8)?;
    ledger.check()?;
    judged
}

fn skew_is_gone(moments: &[Moment], deadline: f64) -> Result<()> {
    let summary = Summary::of(moments).context("nothing was seen")?;
    println!("    {summary:?}");
    ensure!(summary.before_percent >= 120.0, "the load was not skewed: {:.0} %", summary.before_percent);
    ensure!(summary.moves > 0, "nothing moved at {:.0} %", summary.before_percent);
    let even_after = summary.even_after_s.context("the imbalance is not below 120 %")?;
    ensure!(
        even_after <= deadline,
        "the imbalance is below 120 % after {even_after:.0} s, not {deadline:.0} s"
    );
    Ok(())
}

fn ensure_nothing_moved(epochs: &[u64]) -> Result<()> {
    ensure!(epochs.is_empty(), "the load was even, and yet there were the operations {epochs:?}");
    Ok(())
}

fn placement(ledger: &Ledger) -> Result<Option<belay_proto::admin::Placement>> {
    Ok(ledger.entries()?.pop().and_then(|entry| entry.intent.in_force))
}

/// Prompts of the mix, by where a lone worker routes their tokens, with the right answers.
async fn streams(fixture: &Fixture, ledger: &Ledger, mix: Mix) -> Result<Vec<Expected>> {
    let placement = placement(ledger)?.context("no placement")?;
    let skills = ["fact", "doc", "code", "json", "tool.call", "think.add", "think.count", "small.spell"];
    let mut cases = fixture.cases(&skills, usize::MAX)?;
    let step = (cases.len() / CANDIDATES).max(1);
    cases = cases.into_iter().step_by(step).collect();
    let worker = LoneWorker::start(&fixture.env).await?;
    let mut loads = Vec::new();
    for case in &cases {
        let (begun, before) = (Instant::now(), worker.load().await?);
        worker.long_streams(std::slice::from_ref(case), JUDGED).await?;
        loads.push(worker.load().await?.since(&before, begun.elapsed().as_secs_f64()));
    }
    ensure!(loads.iter().all(|load| load.total() > 0.0), "the worker does not count tokens");
    let (aim, count) = mix.prompts();
    let ranks = LAYOUT.workers * LAYOUT.devices;
    let (chosen, percent) = choose(&loads, &placement.layers, ranks as usize, count, aim);
    let chosen: Vec<Case> = chosen.into_iter().map(|index| cases[index].clone()).collect();
    let names: Vec<&str> = chosen.iter().map(|case| case.id.as_str()).collect();
    println!("    prompts {}: imbalance {percent:.0} % of {} candidates", names.join(", "), cases.len());
    worker.long_streams(&chosen, STREAM).await
}

/// Looks at load, placement and throughput.
struct Looker<'a> {
    campaign: &'a Campaign,
    mix: Mix,
    ledger: &'a Ledger,
    traffic: &'a Traffic,
    workers: Vec<Admin>,
    began: Instant,
    last: (Instant, Vec<Load>, usize),
    moments: Vec<Moment>,
}

impl<'a> Looker<'a> {
    async fn open(
        campaign: &'a Campaign,
        mix: Mix,
        ledger: &'a Ledger,
        traffic: &'a Traffic,
    ) -> Result<Self> {
        let models = &campaign.fixture.models;
        let mut workers = Vec::new();
        for pod in models.workers(CHAOS)? {
            workers.push(Admin::open(models, node::name(&pod)?).await?);
        }
        let loads = loads(&mut workers).await?;
        let (began, moments) = (Instant::now(), Vec::new());
        let last = (began, loads, traffic.tokens());
        Ok(Self { campaign, mix, ledger, traffic, workers, began, last, moments })
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    async fn look_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep(STEP).await; // a look is about the time before it
            self.look().await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<()> {
        let (now, loads, tokens) = (Instant::now(), loads(&mut self.workers).await?, self.traffic.tokens());
        let seconds = (now - self.last.0).as_secs_f64();
        let new = loads.iter().zip(&self.last.1).map(|(new, old)| new.since(old, seconds));
        let load = new.fold(Load::default(), |sum, load| sum.and(&load));
        let placement = placement(self.ledger)?.context("no placement")?;
        let moment = Moment {
            provenance: self.campaign.provenance.clone(),
            mix: self.mix.name().to_owned(),
            layout: LAYOUT.to_string(),
            interval_s: INTERVAL,
            at_s: self.now(),
            imbalance_percent: imbalance_percent(
                &placement.layers,
                (LAYOUT.workers * LAYOUT.devices) as usize,
                &load,
            ),
            tokens_per_s: (tokens - self.last.2) as f64 / seconds,
            epoch: placement.epoch,
        };
        println!(
            "    {:4.0} s: epoch {}, imbalance {:.0} %, {:.0} tokens/s",
            moment.at_s, moment.epoch, moment.imbalance_percent, moment.tokens_per_s
        );
        csv::append(&self.campaign.load, &moment)?;
        self.moments.push(moment);
        self.last = (now, loads, tokens);
        Ok(())
    }
}

async fn loads(workers: &mut [Admin]) -> Result<Vec<Load>> {
    let mut loads = Vec::new();
    for worker in workers {
        loads.push(worker.load().await?);
    }
    Ok(loads)
}
