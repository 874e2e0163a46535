//! The installed chart and the nano deployment that most steps use.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};
use belay_e2e::{
    env::Env,
    kubectl::{Kubectl, Ran, run},
    oracle::{self, Case, Expected, LoneWorker},
    tunnel::Tunnel,
    wait,
};
use serde_json::Value;

/// Namespace of operator and gateway.
pub const SYSTEM: &str = "belay-system";
/// Namespace of the models; its pods must pass the restricted pod security level.
pub const MODELS: &str = "models";
/// Name of the ModelDeployment, and of the model that clients ask for.
pub const NANO: &str = "nano";
/// How long anything may take that is not about a lost node.
pub const SOON: Duration = Duration::from_secs(120);

pub struct Fixture {
    pub env: Env,
    pub system: Kubectl,
    pub models: Kubectl,
}

/// The environment, and the two namespaces.
pub fn fixture() -> Result<Fixture> {
    let env = Env::read()?;
    let (system, models) = (Kubectl::new(&env, SYSTEM), Kubectl::new(&env, MODELS));
    Ok(Fixture { env, system, models })
}

impl Fixture {
    /// `helm` against the test cluster.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", SYSTEM];
        all.extend_from_slice(args);
        let ran: Ran = run(&self.env.tool("helm"), all, None)?;
        if !ran.ok {
            bail!("helm {}: {}{}", args.join(" "), ran.stderr, ran.stdout);
        }
        Ok(ran.stdout)
    }

    /// The chart's folder.
    pub fn chart(&self) -> Result<String> {
        let path = self.env.root.join("charts/belay");
        Ok(path.to_str().context("the checkout's path is not UTF-8")?.to_owned())
    }

    /// Installs or upgrades the chart with the demo's values, and `--set` pairs of one's own.
    pub fn install(&self, set: &[&str]) -> Result<String> {
        let chart = self.chart()?;
        let mut args =
            vec!["upgrade", "--install", "belay", &chart, "--create-namespace", "--wait", "--timeout", "3m"];
        for pair in set {
            args.extend_from_slice(&["--set", pair]);
        }
        self.helm(&args)
    }

    /// The example as users apply it, with one group and no surplus.
    pub async fn nano(&self) -> Result<Value> {
        let manifest = std::fs::read_to_string(self.env.root.join("examples/nano.yaml"))?;
        self.models.apply(&manifest)?;
        self.settled(NANO, 1).await
    }

    /// Waits until exactly `replicas` groups are ready and up to date, and nothing is left of others.
    pub async fn settled(&self, name: &str, replicas: u64) -> Result<Value> {
        let pods_of_a_group = 2;
        wait::until(&format!("{name} with {replicas} groups"), SOON, || {
            let object = self.models.deployment(name)?;
            let status = &object["status"];
            let observed = status["observedGeneration"] == object["metadata"]["generation"];
            let counted = ["replicas", "readyReplicas", "updatedReplicas"]
                .iter()
                .all(|key| status[key].as_u64().unwrap_or(0) == replicas);
            let pods = self.models.workers(name)?.len() as u64;
            if observed && counted && pods == replicas * pods_of_a_group {
                return Ok(Some(object));
            }
            bail!("{pods} pods, generation {}, status {status}", object["metadata"]["generation"])
        })
        .await
    }

    /// A tunnel to a gateway pod.
    pub fn gateway(&self) -> Result<Tunnel> {
        Tunnel::to_gateway(&self.env, &self.system, None)
    }

    /// Eval prompts of some kinds, short enough to be quick.
    pub fn cases(&self, skills: &[&str], count: usize) -> Result<Vec<Case>> {
        let mut cases = oracle::cases(&self.env)?;
        cases.retain(|case| skills.contains(&case.skill.as_str()));
        cases.truncate(count);
        Ok(cases)
    }

    /// Long streams with the tokens that a lone worker process gives.
    pub async fn long_streams(&self) -> Result<Vec<Expected>> {
        static STREAMS: OnceLock<Vec<Expected>> = OnceLock::new();
        if let Some(streams) = STREAMS.get() {
            return Ok(streams.clone());
        }
        let worker = LoneWorker::start(&self.env).await?;
        let streams = worker.long_streams(&self.cases(&["fact", "doc", "code"], 6)?, 150).await?;
        Ok(STREAMS.get_or_init(|| streams).clone())
    }
}

/// UIDs by pod name.
pub fn uids(pods: &[Value]) -> Vec<(String, String)> {
    let text = |pod: &Value, key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
    let mut uids: Vec<_> = pods.iter().map(|pod| (text(pod, "name"), text(pod, "uid"))).collect();
    uids.sort();
    uids
}
