//! Promotes what waits, or was taken back.

use std::io::{self, Write as _};

use anyhow::{Result, bail};
use belay_crds::labels::PROMOTE;
use jiff::Timestamp;

use crate::{
    cli::Outcome,
    cluster::{Cluster, Deployment},
};

/// Asks for it.
pub async fn run(cluster: &Cluster, name: &str) -> Result<Outcome> {
    let deployment = cluster.deployment(name).await?;
    let at = format!("modeldeployment {}/{name}", cluster.namespace());
    let revision = match waiting(&deployment) {
        Ok(revision) => revision,
        Err(why) => bail!("{at}: {why}"),
    };
    // only a word that was not there before counts
    let word = format!("{revision}/{}", Timestamp::now());
    cluster.annotate(name, PROMOTE, &word).await?;
    writeln!(io::stdout(), "{at}: revision {revision} is to be promoted now. To look:")?;
    writeln!(io::stdout(), "  kubectl belay rollout status {name} -n {}", cluster.namespace())?;
    Ok(Outcome::Done)
}

/// The revision that waits, or why there is none.
fn waiting(deployment: &Deployment) -> Result<&str, String> {
    if deployment.number("/status/observedGeneration") != deployment.generation() {
        return Err("the operator has not seen the newest spec yet; ask again".to_owned());
    }
    let revision = deployment.word("/status/updatedRevision");
    let phase = deployment.word("/status/rollout/phase");
    let is_new = |traffic: &&serde_json::Value| {
        traffic["revision"] == revision && matches!(traffic["role"].as_str(), Some("Canary" | "Preview"))
    };
    // what was taken back may be overruled
    if phase != "RolledBack" && deployment.list("/status/traffic").find(is_new).is_none() {
        let strategy = match deployment.word("/spec/rollout/strategy") {
            "" | "RollingUpdate" => ": strategy RollingUpdate waits for nobody",
            _ => "",
        };
        return Err(format!("no canary or preview waits to be promoted{strategy}"));
    }
    Ok(revision)
}
