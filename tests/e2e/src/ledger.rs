//! What the operator wrote down: every version of the groups' placement ConfigMaps, and whether it kept its rules.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use belay_epoch::{Intent, Operation, Phase};
use belay_proto::admin::Placement;
use serde_json::Value;

use crate::{
    kubectl::Kubectl,
    wait,
    watch::{Change, Watch},
};

/// One version of a group's ConfigMap.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Since the ledger began.
    pub at: Duration,
    /// UID of the ConfigMap: tells one life of a group from the next.
    pub uid: String,
    /// Placement in force and operation under way.
    pub intent: Intent,
}

/// Reads on until dropped.
#[derive(Debug)]
pub struct Ledger {
    entries: Arc<Mutex<Vec<Result<Entry, String>>>>,
    /// Tells of versions.
    _versions: Watch,
}

impl Ledger {
    /// Begins. `began` is zero of the entries' time.
    #[must_use]
    pub fn start(kubectl: &Kubectl, deployment: &str, began: Instant) -> Self {
        let entries = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&entries);
        let selector = format!("serving.belay.dev/model-deployment={deployment}");
        let versions = Watch::start(kubectl, &["configmaps", "--selector", &selector], move |change| {
            if let Some(entry) = entry(&change, began.elapsed()) {
                let entry = entry.map_err(|error| format!("{error:#}"));
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
            }
        });
        Self { entries, _versions: versions }
    }

    /// What was written so far.
    ///
    /// # Errors
    /// If a version cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone();
        entries.into_iter().collect::<Result<_, _>>().map_err(anyhow::Error::msg)
    }

    /// The operation under way, by the last version of any group.
    ///
    /// # Errors
    /// If a version cannot be read.
    pub fn under_way(&self) -> Result<Option<Operation>> {
        Ok(self.entries()?.pop().and_then(|entry| entry.intent.operation))
    }

    /// Waits for an operation that was written after `since`, and is in one of these phases; the phase.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn until_phase(&self, since: Duration, phases: &[Phase], limit: Duration) -> Result<Phase> {
        wait::until(&format!("an operation in {phases:?}"), limit, || {
            let entries = self.entries()?;
            let mut written = entries.iter().filter(|entry| entry.at >= since);
            Ok(written.find_map(|entry| {
                let phase = entry.intent.operation.as_ref()?.phase;
                phases.contains(&phase).then_some(phase)
            }))
        })
        .await
    }

    /// Waits until no operation is under way.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn until_quiet(&self, limit: Duration) -> Result<()> {
        wait::until("no operation under way", limit, || match self.under_way()? {
            None => Ok(Some(())),
            Some(operation) => bail!("{:?} of epoch {}", operation.phase, operation.epoch),
        })
        .await
    }

    /// Waits until an operation that was begun after `since` is over, with all that followed it; when it was.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn until_over(&self, since: Duration, limit: Duration) -> Result<Duration> {
        wait::until("an operation that is over", limit, || Ok(self.operations(since)?.over)).await
    }

    /// Epochs of the operations that were begun after `since`, in their order, and until when the last one lasted.
    ///
    /// # Errors
    /// If a version cannot be read.
    pub fn operations(&self, since: Duration) -> Result<Operations> {
        Ok(Operations::of(&self.entries()?, since))
    }

    /// Checks all that was written.
    ///
    /// # Errors
    /// With each rule that was broken.
    pub fn check(&self) -> Result<()> {
        let broken = broken_rules(&self.entries()?);
        if broken.is_empty() {
            return Ok(());
        }
        bail!("what the operator wrote breaks its rules:\n{}", broken.join("\n"))
    }
}

/// Operations after some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Their epochs.
    pub epochs: Vec<u64>,
    /// When the last one was over, if it is.
    pub over: Option<Duration>,
}

impl Operations {
    /// Of these entries.
    #[must_use]
    pub fn of(entries: &[Entry], since: Duration) -> Self {
        let mut all = Self::default();
        let before = entries.iter().take_while(|entry| entry.at < since).last().and_then(epoch_of);
        for entry in entries.iter().filter(|entry| entry.at >= since) {
            match epoch_of(entry).filter(|epoch| Some(*epoch) != before) {
                Some(epoch) => {
                    all.over = None;
                    if all.epochs.last() != Some(&epoch) {
                        all.epochs.push(epoch);
                    }
                }
                None if !all.epochs.is_empty() && all.over.is_none() => all.over = Some(entry.at),
                None => {}
            }
        }
        all
    }
}

fn epoch_of(entry: &Entry) -> Option<u64> {
    entry.intent.operation.as_ref().map(|operation| operation.epoch)
}

/// `None` for what is no placement, or gone.
fn entry(change: &Change, at: Duration) -> Option<Result<Entry>> {
    let metadata = &change.object["metadata"];
    if change.gone || !metadata["name"].as_str()?.ends_with("-placement") {
        return None;
    }
    let uid = metadata["uid"].as_str()?.to_owned();
    let intent = intent(&change.object["data"]).with_context(|| format!("{}", metadata["name"]));
    Some(intent.map(|intent| Entry { at, uid, intent }))
}

fn intent(data: &Value) -> Result<Intent> {
    let text = |key: &str| data[key].as_str().filter(|text| !text.trim().is_empty());
    let in_force = text("placement.json").map(serde_json::from_str::<Option<Placement>>);
    let operation = text("operation.json").map(serde_json::from_str::<Option<Operation>>);
    Ok(Intent {
        in_force: in_force.transpose().context("placement.json")?.flatten(),
        operation: operation.transpose().context("operation.json")?.flatten(),
    })
}

/// What must hold from one version of a ConfigMap to the next, whatever happened to the operator in between:
/// one epoch has one content, epochs in force never fall, an operation's phases go one way, nothing replaces one that
/// has begun to commit, and what is in force while it commits is what it led to.
#[must_use]
pub fn broken_rules(entries: &[Entry]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut contents: BTreeMap<(&str, u64), &Placement> = BTreeMap::new();
    let mut last: BTreeMap<&str, &Intent> = BTreeMap::new();
    for Entry { at, uid, intent } in entries {
        let mut breaks = |rule: String| broken.push(format!("{:.2} s: {rule}", at.as_secs_f64()));
        let target = intent.operation.as_ref().and_then(|operation| operation.target.as_ref());
        for placement in intent.in_force.iter().chain(target) {
            let first = contents.entry((uid, placement.epoch)).or_insert(placement);
            if *first != placement {
                breaks(format!("epoch {} has two contents", placement.epoch));
            }
        }
        let alone =
            intent.operation.as_ref().and_then(|operation| broken_state(operation, in_force_epoch(intent)));
        let step = last.insert(uid, intent).and_then(|before| broken_step(before, intent));
        alone.into_iter().chain(step).for_each(breaks);
    }
    broken
}

fn in_force_epoch(intent: &Intent) -> u64 {
    intent.in_force.as_ref().map_or(0, |placement| placement.epoch)
}

fn broken_state(operation: &Operation, in_force: u64) -> Option<String> {
    let Operation { epoch, phase, target, .. } = operation;
    match (phase, target) {
        (Phase::Prepare, Some(target)) if target.epoch == *epoch => {
            (*epoch <= in_force).then(|| format!("epoch {epoch} is prepared while {in_force} is in force"))
        }
        (Phase::Prepare, _) => Some(format!("epoch {epoch} is prepared without target")),
        _ => (*epoch != in_force).then(|| format!("{phase:?} of epoch {epoch} while {in_force} is in force")),
    }
}

fn broken_step(before: &Intent, after: &Intent) -> Option<String> {
    let (was, is) = (in_force_epoch(before), in_force_epoch(after));
    if is < was {
        return Some(format!("epoch in force falls from {was} to {is}"));
    }
    let rank =
        |phase| [Phase::Prepare, Phase::Commit, Phase::Retire].iter().position(|&other| other == phase);
    match (&before.operation, &after.operation) {
        (Some(old), Some(new)) if old.epoch == new.epoch && rank(new.phase) < rank(old.phase) => {
            Some(format!("epoch {} goes back from {:?} to {:?}", old.epoch, old.phase, new.phase))
        }
        (Some(old), Some(new)) if old.epoch > new.epoch => {
            Some(format!("epoch {} is followed by epoch {}", old.epoch, new.epoch))
        }
        (Some(old), Some(new)) if old.epoch != new.epoch && old.phase == Phase::Commit => {
            Some(format!("epoch {} is replaced by {} while it commits", old.epoch, new.epoch))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
