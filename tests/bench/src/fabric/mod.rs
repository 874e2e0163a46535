//! The fabric between two processes on loopback, against bare blocking TCP of the same bytes.
//!
//! Both run in turn, round by round, between the same two processes; a figure of one round is compared with the bare one
//! of the same round.

mod bare;
mod ends;
mod report;
mod shape;

use std::time::Instant;

use anyhow::{Context, Result};
use belay_backend::Fabric;

pub use ends::{Child, serve};
pub use report::{FabricRow, markdown, write};
pub use shape::Shape;

use crate::process::{busy_seconds, cpu_seconds};

/// Messages that are under way together where throughput is measured.
pub const WINDOW: usize = 16;
/// Messages of one exchange where throughput is measured.
const MESSAGES: usize = 64;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds of each case.
    pub rounds: usize,
    /// Messages of a round.
    pub messages: usize,
    /// Day, commit and machine, for every row.
    pub stamp: FabricRow,
}

/// Measures; `on_row` gets each row as it comes.
///
/// # Errors
/// A process can't be started, or a connection is lost.
pub fn run(plan: &Plan, mut on_row: impl FnMut(FabricRow)) -> Result<()> {
    let mut child = Child::start()?;
    for shape in Shape::ALL {
        let here = ends::Here::connect(&mut child, &shape)?;
        let mut raw = bare::Client::connect(child.bare())?;
        let exchange = Exchange::new(&shape);
        for round in 0..plan.rounds {
            let mut take = |case: &str, transport: &str, per: usize, body: &mut dyn FnMut() -> Result<()>| {
                let mut row = measure(plan.messages / per, child.pid(), body)?;
                row.case = format!("{}, {case}", shape.name);
                transport.clone_into(&mut row.transport);
                row.round = round;
                row.count(per);
                let FabricRow { date, commit, machine, .. } = plan.stamp.clone();
                on_row(FabricRow { date, commit, machine, ..row });
                anyhow::Ok(())
            };
            let (ask, result) = (shape.ask_bytes(), shape.result_bytes());
            take("one", "bare", 1, &mut || raw.round_trip(ask, result))?;
            let mut one = exchange.clone();
            take("one", "fabric", 1, &mut || one.ask(here.fabric(), 1))?;
            take("window", "bare", MESSAGES, &mut || raw.window(ask, result, MESSAGES, WINDOW))?;
            let mut many = exchange.clone();
            take("window", "fabric", MESSAGES, &mut || many.ask(here.fabric(), MESSAGES))?;
        }
    }
    for round in 0..plan.rounds {
        let local = ends::in_process()?;
        let mut exchange = Exchange::new(&Shape::ALL[0]);
        let mut row = measure(plan.messages, child.pid(), &mut || exchange.ask(&local, 1))?;
        row.case = "one process".into();
        row.transport = "fabric".into();
        row.round = round;
        let FabricRow { date, commit, machine, .. } = plan.stamp.clone();
        on_row(FabricRow { date, commit, machine, ..row });
    }
    Ok(())
}

/// Runs `body` so often, and says how long each took and what all processors did.
fn measure(times: usize, child: u32, body: &mut dyn FnMut() -> Result<()>) -> Result<FabricRow> {
    let times = times.max(10);
    for _ in 0..times / 10 {
        body()?;
    }
    let own = std::process::id();
    let cpu = || anyhow::Ok(cpu_seconds(own)? + cpu_seconds(child)?);
    let (cpu_before, busy_before, began) = (cpu()?, busy_seconds()?, Instant::now());
    let mut micros = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        body()?;
        micros.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu()? - cpu_before;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((times - 1) as f64 * share) as usize];
    Ok(FabricRow {
        messages: times,
        p50_us: at(0.5),
        p99_us: at(0.99),
        rate: times as f64 / seconds,
        cpu_us: used * 1e6 / times as f64,
        cpu_others_percent: (busy_seconds()? - busy_before - used).max(0.0) / (seconds * cores) * 100.0,
        ..FabricRow::default()
    })
}

/// Rows and routes of exchanges of one shape, repeated as often as needed.
#[derive(Clone)]
struct Exchange {
    shape: Shape,
    x: Vec<f32>,
    routes: Vec<belay_backend::Route>,
    y: Vec<f32>,
}

impl Exchange {
    fn new(shape: &Shape) -> Self {
        Self { shape: *shape, x: Vec::new(), routes: Vec::new(), y: Vec::new() }
    }

    fn ask(&mut self, fabric: &dyn Fabric, messages: usize) -> Result<()> {
        let hidden = self.shape.hidden;
        if self.routes.len() != messages * self.shape.routes() {
            self.routes = self.shape.exchange(messages);
            self.x = (0..messages * self.shape.rows * hidden).map(|i| (i % 97) as f32 * 0.5).collect();
            self.y = vec![0.0; self.routes.len() * hidden];
        }
        fabric.exchange(0, &self.x, &self.routes, &mut self.y, &mut || {}).context("exchange")
    }
}
