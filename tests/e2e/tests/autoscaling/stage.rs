//! What every scenario needs: a deployment, streams with their right tokens, and a way to the gateways.

use anyhow::{Context, Result, bail};
use belay_e2e::{
    fixture::{Fixture, SOON},
    oracle::{Expected, LoneWorker},
    service::NodePort,
    variant::{self, Variant},
    wait,
};
use serde_json::Value;

/// Name of the deployment, and of what scales it.
pub const NAME: &str = "tide";

/// See the module.
pub struct Stage {
    pub fixture: Fixture,
    pub gateways: NodePort,
    /// Long streams after short prompts.
    pub streams: Vec<Expected>,
    /// Streams after prompts that fill a block of the prefix cache.
    pub documents: Vec<Expected>,
}

impl Stage {
    pub async fn new(fixture: Fixture) -> Result<Self> {
        let documents = {
            let mut cases = fixture.cases(&["doc"], usize::MAX)?;
            cases.retain(|case| (140..200).contains(&case.prompt_ids.len()));
            cases.truncate(4);
            cases
        };
        let worker = LoneWorker::start(&fixture.env).await?;
        let streams = worker.long_streams(&fixture.cases(&["fact", "code"], 6)?, 150).await?;
        let documents = worker.long_streams(&documents, 40).await?;
        drop(worker);
        install(&fixture, &[])?;
        Ok(Self { gateways: NodePort::to_gateways(&fixture)?, fixture, streams, documents })
    }

    /// Two gateways, and what a scenario wants otherwise.
    pub fn install(&self, set: &[&str]) -> Result<()> {
        install(&self.fixture, set)
    }

    /// Takes away what an earlier scenario left.
    pub async fn clear(&self) -> Result<()> {
        let models = &self.fixture.models;
        models.run(&["delete", "hpa", NAME, "--ignore-not-found"])?;
        if models.try_run(&["get", "crd", "scaledobjects.keda.sh"], None)?.ok {
            models.run(&["delete", "scaledobject", NAME, "--ignore-not-found", "--timeout=60s"])?;
        }
        self.fixture.remove(NAME).await?;
        wait::until("the deployment is gone", SOON, || {
            let left = models.try_run(&["get", "mdep", NAME], None)?;
            Ok((!left.ok && left.stderr.contains("NotFound")).then_some(()))
        })
        .await?;
        self.fixture.whole_cluster().await
    }

    /// Applies the deployment: groups of two workers with one rank each, and `spec` over it, as a merge patch.
    pub fn apply(&self, spec: Value) -> Result<()> {
        let mut manifest: Value = serde_json::from_str(&Variant::new(NAME, 2, 1, 1).manifest())?;
        merge(&mut manifest["spec"], spec);
        self.fixture.models.apply(&variant::volumes(&self.fixture.env)?)?;
        self.fixture.models.apply(&manifest.to_string())
    }

    /// Changes it.
    pub fn patch(&self, what: &str, patch: &Value) -> Result<()> {
        self.fixture.models.run(&["patch", what, NAME, "--type=merge", "-p", &patch.to_string()]).map(drop)
    }

    /// One of the examples, for this deployment.
    pub fn example(&self, file: &str) -> Result<String> {
        let path = self.fixture.env.root.join("examples/scaling").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if !text.contains("name: nano\n") {
            bail!("{file} does not scale nano");
        }
        Ok(text
            .replace("name: nano\n", &format!("name: {NAME}\n"))
            .replace("modelDeployment: nano", &format!("modelDeployment: {NAME}")))
    }

    /// Events of one reason about the deployment.
    pub fn events(&self, reason: &str) -> Result<usize> {
        let selector = format!("involvedObject.name={NAME},reason={reason}");
        Ok(self.fixture.models.list(&["events", "--field-selector", &selector])?.len())
    }
}

fn install(fixture: &Fixture, set: &[&str]) -> Result<()> {
    let mut all = vec!["gateway.replicas=2"];
    all.extend_from_slice(set);
    fixture.install(&all).map(drop)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(&key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
