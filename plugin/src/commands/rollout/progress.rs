//! How far a rollout is, by the deployment's own status.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::{cluster::Deployment, picture::units::clean, status::text};

/// Phases of a rollout in which nothing more happens by itself.
const RESTING: [&str; 5] = ["Paused", "Partitioned", "WaitingForPromotion", "Stuck", "RolledBack"];

/// What the status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the operator has seen the newest spec.
    observed: bool,
    /// Condition `Progressing`: status, reason, message.
    moving: (String, String, String),
    desired: i64,
    ready: i64,
    updated: i64,
    revision: String,
    strategy: String,
    /// Shares of requests, in words; empty: none are set.
    shares: Vec<String>,
    /// What the operator says about the rollout, line by line.
    rollout: Vec<String>,
    /// `status.rollout.phase`; empty if the operator does not tell it.
    phase: String,
    /// Groups by revision: `(all, draining)`.
    groups: BTreeMap<String, (u32, u32)>,
    troubles: Vec<String>,
}

impl Progress {
    /// Of a deployment.
    pub fn of(deployment: &Deployment) -> Self {
        let number = |path: &str| deployment.at(path).and_then(Value::as_i64).unwrap_or(0);
        let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let conditions = deployment.at("/status/conditions").and_then(Value::as_array);
        let moving = conditions
            .and_then(|list| list.iter().find(|condition| condition["type"] == "Progressing"))
            .map(|found| (word(found, "status"), word(found, "reason"), word(found, "message")))
            .unwrap_or_default();
        let mut groups: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        for group in deployment.at("/status/groups").and_then(Value::as_array).into_iter().flatten() {
            let count = groups.entry(word(group, "revision")).or_default();
            count.0 += 1;
            count.1 += u32::from(group["draining"].as_bool().unwrap_or(false));
        }
        Self {
            observed: deployment.generation().is_some()
                && deployment.at("/status/observedGeneration").and_then(Value::as_i64)
                    == deployment.generation(),
            moving,
            desired: deployment.at("/spec/replicas").and_then(Value::as_i64).unwrap_or(1),
            ready: number("/status/readyReplicas"),
            updated: number("/status/updatedReplicas"),
            revision: deployment
                .at("/status/updatedRevision")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            strategy: match deployment.word("/spec/rollout/strategy") {
                "" => "RollingUpdate".to_owned(),
                strategy => clean(strategy),
            },
            shares: deployment.list("/status/traffic").map(share).collect(),
            rollout: rollout(deployment),
            phase: deployment.word("/status/rollout/phase").to_owned(),
            groups,
            troubles: deployment.troubles(),
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        let complete = self.updated >= self.desired && self.ready >= self.desired;
        let stays = matches!(self.moving.1.as_str(), "RolloutPaused" | "RolloutPartitioned");
        // an operator that tells of phases does not call a rollout over that still holds
        let goes_on = !self.phase.is_empty() && self.phase != "Complete";
        let rests = self.moving.0 == "False" && (stays || (complete && !goes_on));
        self.observed && (rests || RESTING.contains(&self.phase.as_str()))
    }

    /// Why it did not come to a good end, if it is over and did not.
    pub fn failure(&self) -> Option<&'static str> {
        match self.phase.as_str() {
            "RolledBack" => Some("the revision was taken back"),
            "Stuck" => Some("the rollout is stuck"),
            _ => None,
        }
    }
}

fn share(traffic: &Value) -> String {
    let word = |key: &str| clean(traffic[key].as_str().unwrap_or_default());
    let percent = traffic["weightPercent"].as_i64().unwrap_or(0);
    format!("{percent}% of requests to {} ({})", word("revision"), word("role").to_lowercase())
}

fn rollout(deployment: &Deployment) -> Vec<String> {
    let told = deployment.at("/status/rollout").map(text::rollout).unwrap_or_default();
    let check = |check: &Value| {
        let word = |key: &str| clean(check[key].as_str().unwrap_or_default());
        format!("analysis {}: {} ({})", word("name"), word("verdict"), word("message"))
    };
    let checks = deployment.list("/status/rollout/analysis").map(check);
    told.iter().map(|line| line.plain()).chain(checks).collect()
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, updated, desired, ready, moving: (_, reason, message), .. } = self;
        if !self.observed {
            return f.write_str("the operator has not seen the spec yet");
        }
        let groups = |count: &i64| if *count == 1 { "1 group".to_owned() } else { format!("{count} groups") };
        write!(f, "revision {revision}: {updated} of {} updated, {ready} ready", groups(desired))?;
        let others = self.groups.iter().filter(|(name, _)| *name != revision);
        for (name, (all, draining)) in others {
            write!(f, "; {} of {name}", groups(&i64::from(*all)))?;
            if *draining > 0 {
                write!(f, ", {draining} draining")?;
            }
        }
        write!(f, " ({reason}")?;
        if !message.is_empty() {
            write!(f, ": {message}")?;
        }
        write!(f, ")\n  strategy {}", self.strategy)?;
        self.shares.iter().try_for_each(|share| write!(f, "; {share}"))?;
        self.rollout.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        self.troubles.iter().try_for_each(|trouble| write!(f, "\n  {trouble}"))
    }
}
