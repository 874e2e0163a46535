//! The nano deployment in other shapes: workers, ranks, copies, rebalancing.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::env::Env;

/// A shape of the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Name of the deployment, and of the model that clients ask for.
    pub name: String,
    /// Pods of the group.
    pub workers: u32,
    /// Ranks of a pod.
    pub devices: u32,
    /// Copies of every expert.
    pub min_copies: u32,
    /// Copies beyond those, in each layer.
    pub redundant: u32,
    /// When load is spread anew.
    pub rebalance: Rebalance,
}

/// `spec.experts.rebalance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Never: experts move for other reasons only.
    Off,
    /// By itself.
    OnImbalance {
        /// From this imbalance on.
        threshold_percent: u32,
        /// So long after the last time at least.
        min_interval_seconds: u32,
    },
}

impl Variant {
    /// One group of `workers` × `devices` ranks with `min_copies` copies, in which nothing is rebalanced.
    #[must_use]
    pub fn new(name: &str, workers: u32, devices: u32, min_copies: u32) -> Self {
        let name = name.to_owned();
        Self { name, workers, devices, min_copies, redundant: 0, rebalance: Rebalance::Off }
    }

    /// Ranks of the group.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.workers * self.devices
    }

    /// `spec.experts`.
    #[must_use]
    pub fn experts(&self) -> Value {
        let rebalance = match self.rebalance {
            Rebalance::Off => json!({"policy": "Off"}),
            Rebalance::OnImbalance { threshold_percent, min_interval_seconds } => json!({
                "policy": "OnImbalance",
                "thresholdPercent": threshold_percent,
                "minIntervalSeconds": min_interval_seconds,
            }),
        };
        json!({"minCopies": self.min_copies, "redundant": self.redundant, "rebalance": rebalance})
    }

    /// The ModelDeployment, as `kubectl apply` takes it.
    #[must_use]
    pub fn manifest(&self) -> String {
        json!({
            "apiVersion": "serving.belay.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": self.name},
            "spec": {
                "model": {
                    "source": {"persistentVolumeClaim": {"claimName": "nano", "path": "bf16"}},
                    "chat": {"defaultThinking": "Disabled"},
                },
                "replicas": 1,
                "group": {"workers": self.workers, "device": "CPU", "devicesPerWorker": self.devices},
                "experts": self.experts(),
            },
        })
        .to_string()
    }
}

/// What `examples/nano.yaml` makes beside the deployment: namespace, volume and claim.
///
/// # Errors
/// If the example can't be read, or does not end with the deployment.
pub fn volumes(env: &Env) -> Result<String> {
    let example = fs::read_to_string(env.root.join("examples/nano.yaml"))?;
    let (volumes, deployment) =
        example.rsplit_once("\n---\n").context("examples/nano.yaml is one document")?;
    anyhow::ensure!(
        deployment.contains("kind: ModelDeployment"),
        "examples/nano.yaml does not end with the deployment"
    );
    Ok(volumes.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_the_variant_is() {
        let variant = Variant {
            rebalance: Rebalance::OnImbalance { threshold_percent: 120, min_interval_seconds: 30 },
            redundant: 4,
            ..Variant::new("chaos", 4, 1, 2)
        };
        let manifest: Value = serde_json::from_str(&variant.manifest()).unwrap();
        let spec = &manifest["spec"];
        assert_eq!(manifest["metadata"]["name"], "chaos");
        assert_eq!(spec["group"], json!({"workers": 4, "device": "CPU", "devicesPerWorker": 1}));
        assert_eq!(
            spec["experts"],
            json!({"minCopies": 2, "redundant": 4, "rebalance":
                {"policy": "OnImbalance", "thresholdPercent": 120, "minIntervalSeconds": 30}})
        );
        assert_eq!(variant.ranks(), 4);
    }
}
