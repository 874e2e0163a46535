//! `kubectl belay logs`: the logs of a deployment's workers as one.
use std::io::{self, Write as _};

use anyhow::{Result, bail};
use belay_crds::labels;
use clap::Args;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{
    cli::{Access, Outcome},
    cluster::{Cluster, Deployment},
    logs::{
        line::Prefixes,
        tail::{self, From, Item},
    },
    terminal::{line::Line, output::Output},
};

/// Options of `logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The ModelDeployment
    pub name: String,

    /// One group only [default: all]
    #[arg(short, long, value_name = "NAME")]
    pub group: Option<String>,

    /// One worker of each group only, from 0 [default: all]
    #[arg(short, long, value_name = "NUMBER")]
    pub worker: Option<u32>,

    /// Go on with what comes, of pods that come later too, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,

    /// What the containers wrote before their last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,

    /// Nothing that is older: 30s, 5m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = since)]
    pub since: Option<SignedDuration>,

    /// So many of the last lines of each pod [default: all]
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i64).range(0..))]
    pub tail: Option<i64>,

    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

fn since(text: &str) -> Result<SignedDuration, String> {
    match text.parse::<SignedDuration>() {
        Ok(duration) if duration.as_secs() > 0 => Ok(duration),
        Ok(_) => Err("must be at least a second".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Shows them.
///
/// # Errors
/// When the API server does not answer, there are no such pods, or none of them has a log.
pub async fn run(args: &LogsArgs, access: &Access) -> Result<Outcome> {
    let cluster = Cluster::open(access).await?;
    let deployment = cluster.deployment(&args.name).await?;
    let pods = chosen(&cluster, &deployment, args).await?;
    let at = format!("modeldeployment {}/{}", cluster.namespace(), args.name);
    if pods.is_empty() && !args.follow {
        bail!("{at}: {}", nothing(args));
    }
    let from = From {
        tail: args.tail,
        since_seconds: args.since.map(|since| since.as_secs()),
        previous: args.previous,
    };
    let output = Output::standard(args.no_color);
    let mut prefixes = Prefixes::default();
    prefixes.expect(pods.iter().map(Pod::name_any));
    let show = |item: Item| match item {
        Item::Line(pod, text) => write(&prefixes.put(&pod, &text), output),
        Item::Trouble(why) => Ok(writeln!(io::stderr(), "{why}")?),
    };
    if args.follow {
        tail::follow(&cluster.pods(), async || chosen(&cluster, &deployment, args).await, &from, show)
            .await?;
        return Ok(Outcome::Done);
    }
    let names: Vec<String> = pods.iter().map(Pod::name_any).collect();
    match tail::once(&cluster.pods(), &names, &from, show).await? {
        0 => bail!("{at}: no pod has a log"),
        _ => Ok(Outcome::Done),
    }
}

fn nothing(args: &LogsArgs) -> String {
    let of = |what: &str, value: Option<String>| {
        value.map_or_else(String::new, |value| format!(" of {what} {value}"))
    };
    let (group, worker) = (args.group.clone(), args.worker.map(|worker| worker.to_string()));
    format!("it has no pods{}{}", of("group", group), of("worker", worker))
}

/// The pods that are asked for, by group and worker.
async fn chosen(cluster: &Cluster, deployment: &Deployment, args: &LogsArgs) -> Result<Vec<Pod>> {
    let mut pods = cluster.owned(deployment).await?.pods;
    let place = |pod: &Pod| {
        let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
        (label(labels::GROUP), label(labels::WORKER).parse::<u32>().ok())
    };
    pods.retain(|pod| {
        let (group, worker) = place(pod);
        args.group.as_ref().is_none_or(|wanted| *wanted == group)
            && args.worker.is_none_or(|wanted| Some(wanted) == worker)
    });
    pods.sort_by_key(place);
    Ok(pods)
}

fn write(line: &Line, output: Output) -> Result<()> {
    let text = if output.coloured { line.coloured() } else { line.plain() };
    let mut to = io::stdout().lock();
    writeln!(to, "{text}")?;
    to.flush()?;
    Ok(())
}
