//! The installed chart and the nano deployment that most tests use.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    env::Env,
    kubectl::{Kubectl, Ran, condition, run},
    node,
    oracle::{self, Case, Expected, LoneWorker},
    tunnel::Tunnel,
    variant::{self, Variant},
    wait,
};

/// Namespace of operator and gateway.
pub const SYSTEM: &str = "belay-system";
/// Namespace of the models; its pods must pass the restricted pod security level.
pub const MODELS: &str = "models";
/// Name of the ModelDeployment, and of the model that clients ask for.
pub const NANO: &str = "nano";
/// How long anything may take that is not about a lost node.
pub const SOON: Duration = Duration::from_secs(120);

/// The environment, and the two namespaces.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Places and tools.
    pub env: Env,
    /// `kubectl` for operator and gateway.
    pub system: Kubectl,
    /// `kubectl` for the models.
    pub models: Kubectl,
}

/// That of this process's environment.
///
/// # Errors
/// Names the variable that is missing.
pub fn fixture() -> Result<Fixture> {
    let env = Env::read()?;
    let (system, models) = (Kubectl::new(&env, SYSTEM), Kubectl::new(&env, MODELS));
    Ok(Fixture { env, system, models })
}

impl Fixture {
    /// `helm` against the test cluster.
    ///
    /// # Errors
    /// With what `helm` said.
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
    ///
    /// # Errors
    /// If the path is not UTF-8.
    pub fn chart(&self) -> Result<String> {
        let path = self.env.root.join("charts/belay");
        Ok(path.to_str().context("the checkout's path is not UTF-8")?.to_owned())
    }

    /// Installs or upgrades the chart with the demo's values, and `--set` pairs of one's own.
    ///
    /// # Errors
    /// With what `helm` said.
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
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn nano(&self) -> Result<Value> {
        let manifest = std::fs::read_to_string(self.env.root.join("examples/nano.yaml"))?;
        self.models.apply(&manifest)?;
        self.settled(NANO, 1).await
    }

    /// Waits until exactly `replicas` groups are ready and up to date, and nothing is left of others.
    ///
    /// # Errors
    /// If that does not come about.
    pub async fn settled(&self, name: &str, replicas: u64) -> Result<Value> {
        wait::until(&format!("{name} with {replicas} groups"), SOON, || {
            let object = self.models.deployment(name)?;
            let status = &object["status"];
            let observed = status["observedGeneration"] == object["metadata"]["generation"];
            let counted = ["replicas", "readyReplicas", "updatedReplicas"]
                .iter()
                .all(|key| status[key].as_u64().unwrap_or(0) == replicas);
            let pods = self.models.workers(name)?.len() as u64;
            let of_a_group = object["spec"]["group"]["workers"].as_u64().context("spec.group.workers")?;
            if observed && counted && pods == replicas * of_a_group {
                return Ok(Some(object));
            }
            bail!("{pods} pods, generation {}, status {status}", object["metadata"]["generation"])
        })
        .await
    }

    /// One group of another shape, ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn variant(&self, variant: &Variant) -> Result<Value> {
        self.models.apply(&variant::volumes(&self.env)?)?;
        self.models.apply(&variant.manifest())?;
        self.settled(&variant.name, 1).await
    }

    /// Deletes a deployment, if there is one, and waits until its pods are gone.
    ///
    /// # Errors
    /// If they do not go.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.models.run(&["delete", "mdep", name, "--ignore-not-found", "--wait=false"])?;
        wait::until(&format!("{name} is gone"), SOON, || {
            let pods = self.models.workers(name)?.len();
            if pods == 0 { Ok(Some(())) } else { bail!("{pods} pods") }
        })
        .await
    }

    /// The pod of a worker.
    ///
    /// # Errors
    /// If there is none that stays.
    pub fn worker(&self, deployment: &str, worker: u32) -> Result<Value> {
        let pods = self.models.workers(deployment)?;
        let stays = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null();
        let label = "serving.belay.dev/worker";
        pods.into_iter()
            .find(|pod| stays(pod) && pod["metadata"]["labels"][label] == worker.to_string().as_str())
            .with_context(|| format!("{deployment} has no worker {worker}"))
    }

    /// A tunnel to a gateway pod that does not run on `node`. After the loss of a node all of them may run on the
    /// other one: then one is moved.
    ///
    /// # Errors
    /// If none gets ready elsewhere.
    pub async fn gateway_off(&self, node: &str) -> Result<Tunnel> {
        if let Ok(tunnel) = Tunnel::to_gateway(&self.system, Some(node)) {
            return Ok(tunnel);
        }
        self.system.run(&["cordon", node])?;
        let moved = self.move_a_gateway(node).await;
        self.system.run(&["uncordon", node])?;
        moved
    }

    async fn move_a_gateway(&self, node: &str) -> Result<Tunnel> {
        let pods = self.system.list(&["pods", "-l", "app.kubernetes.io/component=gateway"])?;
        let pod = pods.first().context("there is no gateway pod")?;
        self.system.run(&["delete", "pod", node::name(pod)?, "--wait=false"])?;
        wait::until("a gateway on another node", SOON, || {
            Tunnel::to_gateway(&self.system, Some(node)).map(Some)
        })
        .await
    }

    /// Waits until a node is ready, and every pod of the system namespace with it.
    ///
    /// # Errors
    /// If that does not come about.
    pub async fn whole_cluster(&self) -> Result<()> {
        wait::until("every node and system pod is ready", SOON, || {
            for node in self.system.list(&["nodes"])? {
                let ready = condition(&node, "Ready").is_some_and(|ready| ready.0 == "True");
                if !ready || node["spec"]["unschedulable"] == true {
                    bail!("{} is not ready", node["metadata"]["name"]);
                }
            }
            for pod in self.system.list(&["pods"])? {
                if pod["status"]["containerStatuses"][0]["ready"] != true {
                    bail!("{} is not ready", node::name(&pod)?);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// A tunnel to a gateway pod.
    ///
    /// # Errors
    /// If none is ready.
    pub fn gateway(&self) -> Result<Tunnel> {
        Tunnel::to_gateway(&self.system, None)
    }

    /// Eval prompts of some kinds, short enough to be quick.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn cases(&self, skills: &[&str], count: usize) -> Result<Vec<Case>> {
        let mut cases = oracle::cases(&self.env)?;
        cases.retain(|case| skills.contains(&case.skill.as_str()));
        cases.truncate(count);
        Ok(cases)
    }

    /// Long streams with the tokens that a lone worker process gives.
    ///
    /// # Errors
    /// If the worker can't answer.
    pub async fn long_streams(&self) -> Result<Vec<Expected>> {
        static STREAMS: OnceLock<Vec<Expected>> = OnceLock::new();
        if let Some(streams) = STREAMS.get() {
            return Ok(streams.clone());
        }
        let streams = self.streams(&["fact", "doc", "code"], 150).await?;
        Ok(STREAMS.get_or_init(|| streams).clone())
    }

    /// Streams of so many tokens after prompts of these kinds, with what a lone worker process gives.
    ///
    /// # Errors
    /// If the worker can't answer.
    pub async fn streams(&self, skills: &[&str], tokens: u32) -> Result<Vec<Expected>> {
        let worker = LoneWorker::start(&self.env).await?;
        worker.long_streams(&self.cases(skills, 6)?, tokens).await
    }
}

/// UIDs by pod name.
#[must_use]
pub fn uids(pods: &[Value]) -> Vec<(String, String)> {
    let text = |pod: &Value, key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
    let mut uids: Vec<_> = pods.iter().map(|pod| (text(pod, "name"), text(pod, "uid"))).collect();
    uids.sort();
    uids
}
