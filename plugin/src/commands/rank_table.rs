//! `kubectl belay rank-table`: the rank table of a group on NPUs.
use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use belay_crds::{AscendChip, labels};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt as _};

use crate::{
    cli::{Access, Outcome},
    cluster::{Cluster, Deployment},
    rank_table::{self, facts::WorkerFacts},
};

/// Options of `rank-table`.
#[derive(Args, Debug)]
pub struct RankTableArgs {
    /// The ModelDeployment
    pub name: String,

    /// The group [default: the only one]
    #[arg(short, long, value_name = "NAME")]
    pub group: Option<String>,

    /// The chip, which decides the version: A2 1.0, A3 1.2, 950 2.0 [default: that of the spec]
    #[arg(long, value_enum)]
    pub chip: Option<Chip>,

    /// Where to write it [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// As in `spec.group.ascend.chip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Chip {
    /// Ascend 910B
    #[value(name = "A2")]
    A2,
    /// Ascend 910C
    #[value(name = "A3")]
    A3,
    /// Ascend 950PR
    #[value(name = "Ascend950PR")]
    Ascend950PR,
    /// Ascend 950DT
    #[value(name = "Ascend950DT")]
    Ascend950DT,
}

impl From<Chip> for AscendChip {
    fn from(chip: Chip) -> Self {
        match chip {
            Chip::A2 => Self::A2,
            Chip::A3 => Self::A3,
            Chip::Ascend950PR => Self::Ascend950PR,
            Chip::Ascend950DT => Self::Ascend950DT,
        }
    }
}

/// Writes the table.
///
/// # Errors
/// When there is no such group, something that the table needs is not known, or the file can't be written.
pub async fn run(args: &RankTableArgs, access: &Access) -> Result<Outcome> {
    let cluster = Cluster::open(access).await?;
    let deployment = cluster.deployment(&args.name).await?;
    let at = format!("modeldeployment {}/{}", cluster.namespace(), args.name);
    let chip = match args.chip {
        Some(chip) => chip.into(),
        None => chip_of(&deployment).with_context(|| at.clone())?,
    };
    let pods = pods_of(&cluster, &deployment, args.group.as_deref()).await.with_context(|| at.clone())?;
    let nodes = nodes_of(&cluster, &pods).await;
    let facts: Vec<WorkerFacts> = pods.iter().map(|pod| WorkerFacts::of(pod, node_of(&nodes, pod))).collect();
    let table = rank_table::make(chip, &facts).with_context(|| at.clone())?;
    let text = serde_json::to_string_pretty(&table).context("rank table")? + "\n";
    match &args.output {
        Some(file) => std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?,
        None => io::stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(Outcome::Done)
}

fn chip_of(deployment: &Deployment) -> Result<AscendChip> {
    match deployment.at("/spec/group/ascend/chip") {
        Some(chip) => serde_json::from_value(chip.clone()).context("spec.group.ascend.chip"),
        None => bail!("spec.group.ascend.chip is not set: only groups on NPUs have a rank table"),
    }
}

/// The pods of the group that stay. One that is on its way out has handed its devices back, or will.
async fn pods_of(cluster: &Cluster, deployment: &Deployment, group: Option<&str>) -> Result<Vec<Pod>> {
    let mut groups: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in cluster.owned(deployment).await?.pods {
        let labelled = (pod.labels().get(labels::GROUP), pod.labels().get(labels::WORKER));
        if let (Some(group), Some(_)) = labelled {
            groups.entry(group.clone()).or_default().push(pod);
        }
    }
    let names = groups.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut pods = match group {
        _ if groups.is_empty() => bail!("it has no pods"),
        Some(group) => {
            groups.remove(group).with_context(|| format!("no pods of group {group}; it has {names}"))?
        }
        None if groups.len() > 1 => bail!("it has several groups, and each its own table: --group {names}"),
        None => groups.into_values().flatten().collect(),
    };
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(pods)
}

/// The nodes of the pods. Whoever may not read nodes gets a table that was not compared with their labels.
async fn nodes_of(cluster: &Cluster, pods: &[Pod]) -> BTreeMap<String, Node> {
    let api = Api::<Node>::all(cluster.client());
    let mut nodes = BTreeMap::new();
    for name in pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()) {
        if nodes.contains_key(&name) {
            continue;
        }
        match api.get(&name).await {
            Ok(node) => _ = nodes.insert(name, node),
            Err(error) => {
                let why = crate::error::describe(&error);
                // nobody is left to tell if standard error is closed
                let _ = writeln!(io::stderr(), "node {name}: {why}: its labels are not looked at");
            }
        }
    }
    nodes
}

fn node_of<'a>(nodes: &'a BTreeMap<String, Node>, pod: &Pod) -> Option<&'a Node> {
    nodes.get(pod.spec.as_ref()?.node_name.as_ref()?)
}
