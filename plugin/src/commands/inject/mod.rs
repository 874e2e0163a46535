//! `kubectl belay inject`: breaks a worker on purpose, to see that nobody notices.

pub mod forecast;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Result, bail};
use belay_proto::admin::{Fault, InjectRequest};
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep_until};

use crate::{
    answers::{Answers, WorkerPod},
    cli::{Access, Outcome},
    cluster::Cluster,
    observe::Observer,
    picture::view::View,
    terminal::progress,
    workers::WorkerError,
};

/// How long the end of a process may take to reach the API server.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How often the API server is asked for it.
const END_PERIOD: Duration = Duration::from_millis(500);

/// Options of `inject`.
#[derive(Args, Debug)]
pub struct InjectArgs {
    /// What to break
    #[command(subcommand)]
    pub fault: FaultCommand,
}

/// Faults.
#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// End a worker's process as if it were killed: all its ranks are lost
    ///
    /// Its container starts again by itself.
    RankLoss {
        /// Which worker
        #[command(flatten)]
        target: Target,
    },
    /// Let a worker answer its peers late
    SlowRank {
        /// Which worker
        #[command(flatten)]
        target: Target,
        /// Time added to each answer
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        delay_ms: u32,
        /// How long it lasts; 0: until `inject none`
        #[arg(long, default_value_t = 30)]
        seconds: u32,
    },
    /// Let nothing pass between a worker and others; connections stay open and silent
    Partition {
        /// Which worker
        #[command(flatten)]
        target: Target,
        /// The workers that it is cut off from [default: all others]
        #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
        with_workers: Vec<u32>,
        /// How long it lasts; 0: until `inject none`
        #[arg(long, default_value_t = 30)]
        seconds: u32,
    },
    /// End what was injected before
    None {
        /// The ModelDeployment
        name: String,
        /// One group only [default: all]
        #[arg(short, long, value_name = "NAME")]
        group: Option<String>,
        /// One worker only [default: all]
        #[arg(short, long, value_name = "NUMBER")]
        worker: Option<u32>,
    },
}

/// One worker.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The ModelDeployment
    pub name: String,

    /// The group; needed if there are several
    #[arg(short, long, value_name = "NAME")]
    pub group: Option<String>,

    /// The worker, from 0
    #[arg(short, long, value_name = "NUMBER")]
    pub worker: u32,

    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Breaks what is asked for.
///
/// # Errors
/// When there is no such worker, it refuses, or does not answer.
pub async fn run(args: &InjectArgs, access: &Access) -> Result<Outcome> {
    let observer = Observer::new(Cluster::open(access).await?);
    match &args.fault {
        FaultCommand::None { name, group, worker } => {
            end(&observer, name, group.as_deref(), *worker).await.map(|()| Outcome::Done)
        }
        FaultCommand::RankLoss { target }
        | FaultCommand::SlowRank { target, .. }
        | FaultCommand::Partition { target, .. } => breaks(&observer, target, &args.fault).await,
    }
}

/// The request that a command stands for.
pub fn request(command: &FaultCommand) -> InjectRequest {
    let (fault, seconds, delay_milliseconds, workers) = match command {
        FaultCommand::RankLoss { .. } => (Fault::Exit, 0, 0, vec![]),
        FaultCommand::SlowRank { delay_ms, seconds, .. } => (Fault::Slow, *seconds, *delay_ms, vec![]),
        FaultCommand::Partition { with_workers, seconds, .. } => {
            (Fault::Partition, *seconds, 0, with_workers.clone())
        }
        FaultCommand::None { .. } => (Fault::None, 0, 0, vec![]),
    };
    InjectRequest { fault: fault.into(), seconds, delay_milliseconds, workers }
}

async fn breaks(observer: &Observer, target: &Target, command: &FaultCommand) -> Result<Outcome> {
    let tally = observer.tally();
    let look = observer.look(&target.name, target.group.as_deref());
    let answers = progress::during(|| tally.words(), look).await?;
    let (place, pod) = choose(&answers, target)?;
    let view = View::of(&answers);
    let Some(group) = view.groups.get(place) else { bail!("group {place} is gone") };
    let request = request(command);
    let others: Vec<u32> =
        group.workers.iter().map(|worker| worker.worker).filter(|worker| *worker != target.worker).collect();
    if let Some(nobody) = request.workers.iter().find(|worker| !others.contains(worker)) {
        bail!("group {}: worker {} can't be cut off from worker {nobody}", group.name, target.worker);
    }

    let namespace = observer.cluster().namespace();
    for line in forecast::forecast(group, pod, &request) {
        writeln!(io::stdout(), "{line}")?;
    }
    if !target.yes && !confirmed()? {
        writeln!(io::stderr(), "Nothing was done.")?;
        return Ok(Outcome::NotConfirmed);
    }
    match observer.workers().inject(&pod.name, request.clone()).await {
        Ok(()) => (),
        // a process that ends as if killed may take its answer along
        Err(WorkerError::Unreachable(why)) if request.fault() == Fault::Exit => {
            let ended =
                progress::during(|| format!("waiting for pod {} to end ...", pod.name), ended(observer, pod));
            if !ended.await? {
                bail!("pod {namespace}/{}: it still runs, and did not answer: {why}", pod.name);
            }
        }
        Err(error) => bail!(refusal(namespace, pod, &error)),
    }
    writeln!(io::stdout(), "Done. To look:")?;
    writeln!(
        io::stdout(),
        "  kubectl belay experts {} -n {namespace} --group {} --watch",
        target.name,
        group.name
    )?;
    if request.fault() != Fault::Exit {
        writeln!(io::stdout(), "To end it now:")?;
        writeln!(io::stdout(), "  kubectl belay inject none {} -n {namespace}", target.name)?;
    }
    Ok(Outcome::Done)
}

/// The group's place in the answers, and the pod.
fn choose<'a>(answers: &'a Answers, target: &Target) -> Result<(usize, &'a WorkerPod)> {
    let what = format!("modeldeployment {}/{}", answers.namespace, answers.deployment);
    let group = match answers.groups.as_slice() {
        [] => bail!("{what}: it has no groups"),
        [group] => group,
        several => {
            let names: Vec<&str> = several.iter().map(|group| group.name.as_str()).collect();
            bail!("{what}: it has several groups; choose one with --group: {}", names.join(", "))
        }
    };
    match group.pods.iter().find(|pod| pod.pod.worker == target.worker) {
        Some(pod) => Ok((0, &pod.pod)),
        None => {
            let there: Vec<u32> = group.pods.iter().map(|pod| pod.pod.worker).collect();
            let there = crate::picture::units::ranges(&there);
            bail!(
                "group {}: it has no pod of worker {}; pods are there of workers {there}",
                group.name,
                target.worker
            )
        }
    }
}

async fn end(observer: &Observer, name: &str, group: Option<&str>, worker: Option<u32>) -> Result<()> {
    let deployment = observer.cluster().deployment(name).await?;
    let groups = observer.cluster().groups(&deployment, group).await?;
    let namespace = observer.cluster().namespace();
    let pods = groups.iter().flat_map(|group| &group.pods);
    let pods: Vec<&WorkerPod> = pods.filter(|pod| worker.is_none_or(|worker| worker == pod.worker)).collect();
    if pods.is_empty() {
        bail!("modeldeployment {namespace}/{name}: it has no such worker");
    }
    let nothing = InjectRequest { fault: Fault::None.into(), ..InjectRequest::default() };
    let calls = pods.iter().map(|pod| observer.workers().inject(&pod.name, nothing.clone()));
    let mut failures = vec![];
    for (pod, outcome) in pods.iter().zip(futures::future::join_all(calls).await) {
        match outcome {
            Ok(()) => writeln!(io::stdout(), "pod {namespace}/{}: no fault", pod.name)?,
            Err(error) => failures.push(refusal(namespace, pod, &error)),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n       "));
    }
    Ok(())
}

/// Why a worker did not do it, and what helps.
pub fn refusal(namespace: &str, pod: &WorkerPod, error: &WorkerError) -> String {
    let place = format!("pod {namespace}/{}", pod.name);
    match error {
        WorkerError::Forbidden(_) => format!(
            "{place}: the worker was not started with fault injection. Set BELAY_FAULT_INJECTION to \"on\" in \
             spec.group.template.env of the ModelDeployment; its pods are then replaced"
        ),
        WorkerError::Refused(why) => format!("{place}: the worker refused: {why}"),
        WorkerError::Unreachable(why) => format!("{place}: the worker does not answer: {why}"),
        WorkerError::Unknown => format!("{place}: {error}"),
    }
}

/// Asks on standard error. Without a person there, `--yes` has to say it.
fn confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody is there to confirm it: give --yes");
    }
    write!(io::stderr(), "Go on? [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Whether this life of the pod, or of its container, came to an end within the limit.
async fn ended(observer: &Observer, pod: &WorkerPod) -> Result<bool> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let now = observer.cluster().pod(&pod.name).await?;
        if now.is_none_or(|now| now.uid != pod.uid || now.restarts > pod.restarts) {
            return Ok(true);
        }
        let next = Instant::now() + END_PERIOD;
        if next > deadline {
            return Ok(false);
        }
        sleep_until(next).await;
    }
}
