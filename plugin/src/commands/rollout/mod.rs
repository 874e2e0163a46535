//! `kubectl belay rollout`: how far a change of the spec has come, and which revisions there were; stops it, lets it go on,
//! promotes it, takes it back.

mod history;
mod progress;
mod promote;

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::progress::Progress;
use crate::{
    cli::{Access, Outcome},
    cluster::Cluster,
};

/// Between two looks.
const STEP: Duration = Duration::from_millis(500);

/// Options of `rollout`.
#[derive(Args, Debug)]
pub struct RolloutArgs {
    /// What about it
    #[command(subcommand)]
    pub command: RolloutCommand,
}

/// What to do about a rollout.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Tell how far it is, until it is over: its strategy, the shares of requests, its steps, what the analysis finds
    ///
    /// Over is: complete, paused, as far as spec.rollout.partition lets it go, or waiting for a person to promote it. A revision
    /// that was taken back, or that is stuck, ends it with exit code 1.
    Status {
        /// The ModelDeployment
        name: String,
        /// Look once; exit code 1 if it is not over
        #[arg(long)]
        once: bool,
        /// Give up after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        timeout: u64,
    },
    /// List the revisions, the newest first
    History {
        /// The ModelDeployment
        name: String,
        /// As JSON, with all that a revision is made from
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Stop it where it is
    Pause {
        /// The ModelDeployment
        name: String,
    },
    /// Let it go on
    Resume {
        /// The ModelDeployment
        name: String,
    },
    /// Promote a canary or preview at once, whatever it waits for, also one that was taken back
    ///
    /// Sets the annotation serving.belay.dev/promote to the revision of the spec and the time. Refused if nothing waits.
    Promote {
        /// The ModelDeployment
        name: String,
    },
    /// Ask for an earlier revision again
    ///
    /// Sets spec.model and spec.group to what they were. The groups are replaced as the rest of the spec says.
    Undo {
        /// The ModelDeployment
        name: String,
        /// Which one [default: the one before the present one]
        #[arg(long, value_name = "REVISION")]
        to_revision: Option<String>,
    },
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Does it.
///
/// # Errors
/// If the deployment does not exist or may not be changed, there is no such revision, or the rollout is not over in time.
pub async fn run(args: &RolloutArgs, access: &Access) -> Result<Outcome> {
    let cluster = Cluster::open(access).await?;
    match &args.command {
        RolloutCommand::Status { name, once, timeout } => {
            let timeout = if *once { Duration::ZERO } else { Duration::from_secs(*timeout) };
            status(&cluster, name, timeout).await
        }
        RolloutCommand::History { name, output } => history::show(&cluster, name, *output).await,
        RolloutCommand::Pause { name } => set_progress(&cluster, name, "Paused").await,
        RolloutCommand::Resume { name } => set_progress(&cluster, name, "Automatic").await,
        RolloutCommand::Promote { name } => promote::run(&cluster, name).await,
        RolloutCommand::Undo { name, to_revision } => undo(&cluster, name, to_revision.as_deref()).await,
    }
}

async fn status(cluster: &Cluster, name: &str, timeout: Duration) -> Result<Outcome> {
    let end = tokio::time::Instant::now() + timeout;
    let mut told = String::new();
    loop {
        let progress = Progress::of(&cluster.deployment(name).await?);
        let text = progress.to_string();
        if text != told {
            writeln!(io::stdout(), "{text}")?;
            told = text;
        }
        if progress.is_over() {
            return match progress.failure() {
                Some(why) => bail!("modeldeployment {}/{name}: {why}", cluster.namespace()),
                None => Ok(Outcome::Done),
            };
        }
        if tokio::time::Instant::now() >= end {
            bail!("modeldeployment {}/{name}: the rollout is not over", cluster.namespace());
        }
        tokio::time::sleep(STEP).await;
    }
}

async fn set_progress(cluster: &Cluster, name: &str, value: &str) -> Result<Outcome> {
    let deployment = cluster.deployment(name).await?;
    let at = format!("modeldeployment {}/{name}", cluster.namespace());
    let now = deployment.at("/spec/rollout/progress").and_then(Value::as_str).unwrap_or("Automatic");
    if now == value {
        writeln!(io::stdout(), "{at}: spec.rollout.progress is {value} already")?;
        return Ok(Outcome::Done);
    }
    cluster.merge(name, &json!({"spec": {"rollout": {"progress": value}}})).await?;
    writeln!(io::stdout(), "{at}: spec.rollout.progress set to {value}")?;
    Ok(Outcome::Done)
}

async fn undo(cluster: &Cluster, name: &str, to: Option<&str>) -> Result<Outcome> {
    let deployment = cluster.deployment(name).await?;
    let at = format!("modeldeployment {}/{name}", cluster.namespace());
    let revisions = cluster.revisions(&deployment).await?;
    let present = deployment.at("/status/updatedRevision").and_then(Value::as_str).unwrap_or_default();
    let names = || revisions.iter().map(|revision| revision.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen = match to {
        Some(to) => revisions.iter().find(|revision| revision.name == to),
        None => revisions.iter().find(|revision| revision.name != present),
    };
    let Some(chosen) = chosen else {
        match to {
            Some(to) => bail!("{at}: no revision {to}; it has {}", names()),
            None => bail!("{at}: there is no revision before {present}"),
        }
    };
    if chosen.name == present {
        writeln!(io::stdout(), "{at}: revision {present} is asked for already")?;
        return Ok(Outcome::Done);
    }
    let (model, group) = (&chosen.data["content"]["model"], &chosen.data["content"]["group"]);
    if !model.is_object() || !group.is_object() {
        bail!("{at}: revision {} is of a kind that this program does not know", chosen.name);
    }
    cluster.replace(name, &[("/spec/model", model), ("/spec/group", group)]).await?;
    writeln!(io::stdout(), "{at}: back to revision {} (it was {present})", chosen.name)?;
    if deployment.at("/spec/rollout/progress").and_then(Value::as_str) == Some("Paused") {
        writeln!(io::stdout(), "Rollouts are paused: kubectl belay rollout resume {name}")?;
    }
    Ok(Outcome::Done)
}
