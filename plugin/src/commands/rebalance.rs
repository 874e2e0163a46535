//! `kubectl belay rebalance`: asks the operator to spread the load anew.
use std::io::{self, Write as _};

use anyhow::Result;
use belay_crds::labels::REBALANCE;
use clap::Args;
use jiff::Timestamp;

use crate::{
    cli::{Access, Outcome},
    cluster::{Cluster, Deployment},
};

/// Options of `rebalance`.
#[derive(Args, Debug)]
pub struct RebalanceArgs {
    /// The ModelDeployment
    pub name: String,
}

/// Sets the annotation to the present time.
///
/// # Errors
/// When there is no such deployment, it may not be changed, or its policy is `Off`.
pub async fn run(args: &RebalanceArgs, access: &Access) -> Result<Outcome> {
    let cluster = Cluster::open(access).await?;
    let deployment = cluster.deployment(&args.name).await?;
    let where_ = format!("modeldeployment {}/{}", cluster.namespace(), args.name);
    if policy(&deployment) == "Off" {
        anyhow::bail!(
            "{where_}: spec.experts.rebalance.policy is Off: nothing would move; set it to Manual or OnImbalance"
        );
    }
    let now = Timestamp::now().to_string();
    cluster.annotate(&args.name, REBALANCE, &now).await?;
    let mut to = io::stdout().lock();
    writeln!(to, "{where_}: {REBALANCE} set to {now}")?;
    writeln!(
        to,
        "The operator moves copies if that makes the load more even; requests go on meanwhile. To look:"
    )?;
    writeln!(to, "  kubectl belay experts {} -n {} --watch", args.name, cluster.namespace())?;
    Ok(Outcome::Done)
}

/// The policy of the spec, or its default.
fn policy(deployment: &Deployment) -> &str {
    deployment
        .at("/spec/experts/rebalance/policy")
        .and_then(|policy| policy.as_str())
        .unwrap_or("OnImbalance")
}
