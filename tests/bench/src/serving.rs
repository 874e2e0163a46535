//! The serving benchmark: the same requests through the bare forward, a worker, and a gateway with that worker, in turn.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::MissedTickBehavior;
use tonic::transport::Endpoint as Address;

use crate::bare::Bare;
use crate::load::{self, Http, Latencies, Mix, Record, Request, Target, percentile};
use crate::process::{Machine, Programs, Stack, StackOptions, busy_seconds, cpu_seconds};
use crate::report::Row;

/// Rows of a step at most, for all of them.
const STEP_TOKENS: usize = 256;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Options of a worker that are measured.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Name in the report.
    pub name: &'static str,
    args: &'static [&'static str],
    /// Whether the worker is also asked without the gateway.
    alone: bool,
}

/// What all of them share.
const COMMON: [&str; 2] = ["--step-tokens", "256"];

impl Variant {
    /// Every request is computed, token by token: what the bare forward does.
    pub const PLAIN: Self =
        Self { name: "", args: &["--prefix-cache", "off", "--draft-tokens", "0"], alone: true };
    /// Prompts go on from what others have in common with them.
    pub const PREFIX: Self =
        Self { name: "prefix cache", args: &["--prefix-cache", "on", "--draft-tokens", "0"], alone: false };
    /// The model's draft stage guesses one token ahead.
    pub const GUESS: Self =
        Self { name: "one guess", args: &["--prefix-cache", "off", "--draft-tokens", "1"], alone: false };
}

/// A benchmark of one model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name in the report.
    pub model: String,
    /// Its checkpoint.
    pub dir: PathBuf,
    /// What the worker is told.
    pub variants: Vec<Variant>,
    /// Clients at a time, and requests in all, of each run.
    pub loads: Vec<(usize, usize)>,
    /// Factor by which prompts and answers are shorter than those of the mix.
    pub shorter: usize,
    /// Times that each run is repeated.
    pub repetitions: usize,
    /// Programs that serve.
    pub programs: Programs,
    /// Day of the report.
    pub date: String,
    /// Commit of the report.
    pub commit: String,
}

/// One way to have requests answered.
struct Served<'a> {
    stack: &'a Stack,
    target: Target,
    setup: &'static str,
    settings: &'static str,
}

/// Runs it; `done` hears each row.
///
/// # Errors
/// A process that does not start, or a request that is not answered as it should be.
pub async fn run(plan: &Plan, logs: &Path, mut done: impl FnMut(Row)) -> Result<()> {
    let bare = Bare::load(&plan.dir)?;
    let mut stacks = Vec::new();
    for variant in &plan.variants {
        stacks.push(Stack::start(&stack_options(plan, variant, logs)?).await?);
    }
    let served = served(plan, &stacks)?;
    let machine = Machine::this()?;
    let base = Row {
        date: plan.date.clone(),
        commit: plan.commit.clone(),
        machine: format!("{}; {} cores; {} GiB", machine.processor, machine.cores, machine.memory_gib),
        model: plan.model.clone(),
        ..Row::default()
    };
    for &(clients, count) in &plan.loads {
        for repetition in 0..plan.repetitions {
            // new texts each time, so that nothing is remembered from the time before
            let seed = (clients * 1000 + repetition) as u64;
            let requests = Mix::new(&plan.model, seed, plan.shorter)?.take(count);
            let base = Row { concurrency: clients, repetition, ..base.clone() };
            if repetition == 0 {
                warm_up(&bare, &served, &plan.model, clients).await?;
            }
            done(bare_row(&bare, &requests, clients, &base)?);
            for way in &served {
                let base = Row { setup: way.setup.into(), settings: way.settings.into(), ..base.clone() };
                let row = served_row(way.stack, &way.target, &requests, clients, &base).await;
                done(row.with_context(|| format!("{} {}, {clients} clients", way.setup, way.settings))?);
            }
        }
    }
    Ok(())
}

fn stack_options(plan: &Plan, variant: &Variant, logs: &Path) -> Result<StackOptions> {
    let logs = logs.join(if variant.name.is_empty() { "plain" } else { variant.name });
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    Ok(StackOptions {
        programs: plan.programs.clone(),
        model_dir: plan.dir.clone(),
        model: plan.model.clone(),
        worker_args: COMMON.iter().chain(variant.args).map(ToString::to_string).collect(),
        logs,
    })
}

fn served<'a>(plan: &Plan, stacks: &'a [Stack]) -> Result<Vec<Served<'a>>> {
    let mut ways = Vec::new();
    for (variant, stack) in plan.variants.iter().zip(stacks) {
        let settings = variant.name;
        if variant.alone {
            let channel = Address::from_shared(format!("http://{}", stack.worker_grpc))?.connect_lazy();
            let target = Target::Worker { channel, model: plan.model.clone() };
            ways.push(Served { stack, target, setup: "worker", settings });
        }
        let target = Target::OpenAi { at: stack.api, http: Http::new() };
        ways.push(Served { stack, target, setup: "gateway", settings });
    }
    Ok(ways)
}

/// A few short requests of other texts: pages of the weights, connections, buffers.
async fn warm_up(bare: &Bare, served: &[Served<'_>], model: &str, clients: usize) -> Result<()> {
    let requests = Mix::new(model, u64::MAX, 4)?.take(clients.max(8));
    bare.run(&requests, clients, STEP_TOKENS)?;
    for way in served {
        load::run(&way.target, &requests, clients).await?;
    }
    Ok(())
}

fn bare_row(bare: &Bare, requests: &[Request], clients: usize, base: &Row) -> Result<Row> {
    let own = std::process::id();
    let (busy, cpu) = (busy_seconds()?, cpu_seconds(own)?);
    let run = bare.run(requests, clients, STEP_TOKENS)?;
    let cpu_worker_s = cpu_seconds(own)? - cpu;
    let others = busy_seconds()? - busy - cpu_worker_s;
    Ok(Row {
        setup: "bare".into(),
        requests: requests.len(),
        prompt_tokens: requests.iter().map(|request| request.prompt_ids.len() as u64).sum(),
        output_tokens: requests.iter().map(|request| u64::from(request.output_tokens)).sum(),
        seconds: run.seconds,
        cpu_worker_s,
        cpu_others_percent: share(others, run.seconds),
        ..base.clone()
    })
}

async fn served_row(
    stack: &Stack,
    target: &Target,
    requests: &[Request],
    clients: usize,
    base: &Row,
) -> Result<Row> {
    let pids = [stack.worker.pid(), stack.gateway.pid(), std::process::id()];
    let times =
        || -> Result<[f64; 3]> { Ok([cpu_seconds(pids[0])?, cpu_seconds(pids[1])?, cpu_seconds(pids[2])?]) };
    let (busy, before) = (busy_seconds()?, times()?);
    let begin = Instant::now();
    let (records, kv_peak_bytes) = with_memory(stack, load::run(target, requests, clients)).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = times()?;
    let [cpu_worker_s, cpu_gateway_s, cpu_clients_s] = [0, 1, 2].map(|at| after[at] - before[at]);
    let others = busy_seconds()? - busy - cpu_worker_s - cpu_gateway_s - cpu_clients_s;
    let sum = |value: fn(&Record) -> u32| records.iter().map(|record| u64::from(value(record))).sum();
    let latencies = Latencies::of(&records);
    Ok(Row {
        requests: records.len(),
        prompt_tokens: sum(|record| record.prompt_tokens),
        cached_tokens: sum(|record| record.cached_tokens),
        output_tokens: sum(|record| record.output_tokens),
        seconds,
        ttft_p50_ms: percentile(&latencies.first, 0.5),
        ttft_p99_ms: percentile(&latencies.first, 0.99),
        itl_p50_ms: percentile(&latencies.between, 0.5),
        itl_p99_ms: percentile(&latencies.between, 0.99),
        kv_peak_bytes,
        cpu_worker_s,
        cpu_gateway_s,
        cpu_clients_s,
        cpu_others_percent: share(others, seconds),
        ..base.clone()
    })
}

/// Part of the machine's processors, in percent. Times of `/proc` are rounded: a little below zero is zero.
fn share(cpu_seconds: f64, seconds: f64) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    (100.0 * cpu_seconds / (seconds * cores)).max(0.0)
}

/// Looks at the worker's memory while `work` goes on, and once behind it.
async fn with_memory<T>(stack: &Stack, work: impl Future<Output = Result<T>>) -> Result<(T, u64)> {
    let mut peak = 0.0f64;
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok((done?, peak as u64)),
            _ = looks.tick() => peak = peak.max(stack.worker_metrics().await?.get("belay_kv_cache_bytes")?),
        }
    }
}
