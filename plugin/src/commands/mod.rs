//! The subcommands, one file each.

pub mod chat;
pub mod experts;
pub mod inject;
pub mod logs;
pub mod plan;
pub mod rank_table;
pub mod rebalance;
pub mod rollout;
pub mod status;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::{Access, Outcome};

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how a deployment does: its revisions, groups and pods, what loads, drains or fails
    ///
    /// A line for each pod: the phase that its worker tells (or, where the worker is not heard, what the pod is), its node, the
    /// requests that it has, and while it reads the checkpoint how far it is, how fast, and what is left. Above, the conditions
    /// that matter and the rollout; below, the last events of an hour. Without NAME: a line for each deployment.
    Status(status::StatusArgs),
    /// Talk with the model, or ask it one thing
    ///
    /// Asks a gateway if one is ready, else a worker, either through a port-forward. The conversation is kept: each question comes
    /// with all that was said before. Ctrl-C stops an answer, Ctrl-D ends. Reasoning is shown faintly, and only on a terminal.
    Chat(chat::ChatArgs),
    /// Show where the experts are, how much load each copy has, and what moves
    ///
    /// A row for each rank, a column for each expert; where the terminal is too narrow, a column for several. A cell says
    /// what the rank holds, and by colour or digit how much load goes to that copy; the legend below the picture explains
    /// the signs.
    ///
    /// With --watch: q quits, arrows scroll, [ and ] choose a layer, a shows all layers together.
    Experts(experts::ExpertsArgs),
    /// Break a worker on purpose, or end that
    ///
    /// Says first what will happen, and asks. The workers must have been started with fault injection: the variable
    /// BELAY_FAULT_INJECTION=on in spec.group.template.env.
    Inject(inject::InjectArgs),
    /// Show the logs of all workers as one
    ///
    /// Each line is behind the name of its pod. Without --follow, lines are in the order of their time.
    Logs(logs::LogsArgs),
    /// Tell what would happen if a ModelDeployment were applied: what changes, in which steps, and whether it fits
    ///
    /// Nothing is changed. The API server's admission looks at it first (a dry run). Then the operator's own decisions are played
    /// through on the groups and nodes as they are: which groups are made and removed and in which order, on which nodes their
    /// pods find room, what stalls and what would help. Not looked at: volumes, quotas, rules about pods beside others,
    /// preemption of other pods.
    ///
    /// Exit codes: 0 it fits; 1 it does not fit, or is refused; 2 that could not be found out.
    Plan(plan::PlanArgs),
    /// Write the rank table of a group on NPUs: which rank is on which host and device
    ///
    /// Belay's workers find each other without one. It is for people who compare, and for programs that run beside them on the same
    /// devices. What it says is what Ascend's device plugin wrote on the pods and their nodes; where that is incomplete or
    /// contradicts itself, there is no table, but what is missing on which pod.
    RankTable(rank_table::RankTableArgs),
    /// Ask the operator to spread the load anew, once
    ///
    /// Sets the annotation serving.belay.dev/rebalance to the present time. What moves, `experts --watch` shows.
    Rebalance(rebalance::RebalanceArgs),
    /// Follow a rollout, pause it, let it go on, promote it, take it back; list revisions
    Rollout(rollout::RolloutArgs),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub async fn run(self, access: &Access) -> Result<Outcome> {
        match self {
            Self::Status(args) => Box::pin(status::run(&args, access)).await,
            Self::Chat(args) => chat::run(&args, access).await,
            Self::Experts(args) => experts::run(&args, access).await,
            Self::Inject(args) => inject::run(&args, access).await,
            Self::Logs(args) => logs::run(&args, access).await,
            Self::Plan(args) => Box::pin(plan::run(&args, access)).await,
            Self::RankTable(args) => rank_table::run(&args, access).await,
            Self::Rebalance(args) => rebalance::run(&args, access).await,
            Self::Rollout(args) => rollout::run(&args, access).await,
        }
    }
}
