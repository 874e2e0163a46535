//! Autoscaling of all deployments that ask for it: what is remembered of each between two looks, and the write to
//! `/scale`. What is decided is in [`crate::scaling`].
mod measure;
mod progress;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use belay_crds::{AutoscalingMode, AutoscalingStatus, ModelDeployment, Reason, ScalingReason, labels};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::info;

use self::{measure::FirstTokens, progress::Progress};
use crate::{
    events::Note,
    gateways::Gateways,
    group::Group,
    scaling::{Decision, Memory, Scale, Terms, View, decide, report},
};

/// Between two looks at a deployment that somebody uses, at least.
const EVERY: SignedDuration = SignedDuration::from_secs(2);

/// The same while requests wait.
const WHILE_HELD: SignedDuration = SignedDuration::from_secs(1);

/// Namespace and name.
type Key = (String, String);

/// What is remembered of all deployments with autoscaling.
#[derive(Debug, Default)]
pub struct Autoscaler {
    known: Mutex<BTreeMap<Key, Known>>,
}

#[derive(Debug)]
struct Known {
    /// Tells one life of the name from the next.
    uid: String,
    memory: Memory,
    first_tokens: FirstTokens,
    progress: Progress,
    looked: Timestamp,
    /// When the status last said something new.
    told: Timestamp,
}

/// What came of a look.
#[derive(Debug)]
pub struct Look {
    /// For the status.
    pub status: AutoscalingStatus,
    /// What `spec.replicas` is to be set to, once the status is written.
    pub scale: Option<Scale>,
    /// Whether nobody asks for anything and nothing is to be done about it.
    pub settled: bool,
    /// What to tell people, if it is not about `scale`.
    pub notes: Vec<Note>,
}

/// What a look sees, beside what gateways say.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The deployment.
    pub deployment: &'a ModelDeployment,
    /// `spec.replicas`.
    pub current: u32,
    /// All groups.
    pub groups: &'a [Group],
    /// The newest revision.
    pub target: &'a str,
    /// Now.
    pub now: Timestamp,
}

impl Autoscaler {
    /// Whether `current` is what `spec.replicas` was last seen or set to.
    pub fn expects(&self, deployment: &ModelDeployment, current: u32) -> bool {
        let known = self.lock();
        let known = known.get(&key(deployment)).filter(|known| Some(&known.uid) == deployment.uid().as_ref());
        known.and_then(|known| known.memory.expected()).is_none_or(|expected| expected == current)
    }

    /// Looks at a deployment, and decides.
    pub fn look(&self, terms: &Terms, gateways: &Gateways, scene: &Scene<'_>) -> Look {
        let Scene { deployment, current, now, .. } = *scene;
        let previous = deployment.status.as_ref().and_then(|status| status.autoscaling.as_ref());
        let uid = deployment.uid().unwrap_or_default();
        let key = key(deployment);
        let measured = gateways.measure(&key.0, &key.1);
        let mut all = self.lock();
        let known = all.entry(key).or_insert_with(|| Known::new(uid.clone(), previous));
        if known.uid != uid {
            *known = Known::new(uid, previous);
        }
        known.looked = now;
        let signals = measured.map(|measure| {
            let first_token = known.first_tokens.note(&measure.totals, now);
            measure::signals(&measure, gateways.silent() == 0, first_token, scene.groups, now)
        });
        let groups = known.progress.groups(scene.groups, current, now);
        let rolling_out =
            scene.groups.iter().any(|group| !group.draining() && group.revision != scene.target);
        let view = View { current, groups, rolling_out, signals: signals.as_ref() };
        let decision = decide(terms, &view, &mut known.memory, now);

        let scale = (terms.mode == AutoscalingMode::Automatic && decision.desired != current)
            .then_some(Scale { at: now, from: current, to: decision.desired, reason: decision.reason });
        if let Some(scale) = scale {
            known.memory.scaled(scale);
        }
        let status = report(&decision, &known.memory, previous.map(|previous| (previous, known.told)), now);
        if previous != Some(&status) {
            known.told = now;
        }
        let quiet = signals.as_ref().is_none_or(|signals| signals.quiet());
        Look {
            settled: quiet && scale.is_none() && current <= decision.bounds.min.max(1),
            notes: contested(&decision, previous),
            status,
            scale,
        }
    }

    /// The number of groups could not be set.
    pub fn failed(&self, deployment: &ModelDeployment) {
        if let Some(known) = self.lock().get_mut(&key(deployment)) {
            known.memory.not_scaled();
        }
    }

    /// Deployments that somebody uses, or wants to use, and that nobody has looked at for a while.
    pub fn due(&self, gateways: &Gateways, now: Timestamp) -> Vec<Key> {
        let looked: Vec<(Key, Timestamp)> =
            self.lock().iter().map(|(key, known)| (key.clone(), known.looked)).collect();
        let due = |(key, looked): &(Key, Timestamp)| {
            gateways.measure(&key.0, &key.1).is_some_and(|measure| {
                let since = now.duration_since(*looked);
                (measure.held > 0 && since >= WHILE_HELD) || (measure.outstanding > 0 && since >= EVERY)
            })
        };
        looked.into_iter().filter(due).map(|(key, _)| key).collect()
    }

    /// Forgets a deployment that is gone, or has no autoscaling any more.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(uid: String, previous: Option<&AutoscalingStatus>) -> Self {
        Self {
            uid,
            memory: Memory::recall(previous),
            first_tokens: FirstTokens::default(),
            progress: Progress::default(),
            looked: Timestamp::UNIX_EPOCH,
            told: Timestamp::UNIX_EPOCH,
        }
    }
}

fn key(deployment: &ModelDeployment) -> Key {
    (deployment.namespace().unwrap_or_default(), deployment.name_any())
}

/// A contest is told when it begins.
fn contested(decision: &Decision, previous: Option<&AutoscalingStatus>) -> Vec<Note> {
    let is = ScalingReason::ScalingContested;
    if decision.reason != is || previous.is_some_and(|previous| previous.reason == is) {
        return vec![];
    }
    vec![Note::warning(Reason::ScalingContested, "Scale", "spec.replicas", decision.message.clone())]
}

/// What `/scale` says at this moment: the watch may be behind.
///
/// # Errors
/// When the API server does not answer.
pub async fn replicas(client: &Client, deployment: &ModelDeployment) -> Result<Option<u32>, kube::Error> {
    let scale = api(client, deployment).get_scale(&deployment.name_any()).await?;
    Ok(scale.spec.and_then(|spec| spec.replicas).and_then(|replicas| u32::try_from(replicas).ok()))
}

/// Sets `spec.replicas`, as a HorizontalPodAutoscaler would, and says what to tell people.
///
/// # Errors
/// When the API server does not take it.
pub async fn scale(
    client: &Client,
    deployment: &ModelDeployment,
    scale: Scale,
    message: &str,
) -> Result<Note, kube::Error> {
    let patch = Patch::Merge(json!({ "spec": { "replicas": scale.to } }));
    let params = PatchParams { field_manager: Some(labels::AUTOSCALER.to_owned()), ..PatchParams::default() };
    api(client, deployment).patch_scale(&deployment.name_any(), &params, &patch).await?;
    let reason = match scale {
        Scale { to: 0, .. } => Reason::ScaledToZero,
        Scale { from: 0, .. } => Reason::Woken,
        Scale { from, to, .. } if to > from => Reason::ScaledUp,
        _ => Reason::ScaledDown,
    };
    let text = format!("from {} to {} groups ({:?}): {message}", scale.from, scale.to, scale.reason);
    info!(deployment = deployment.name_any(), namespace = deployment.namespace(), text, "scaled");
    Ok(Note::normal(reason, "Scale", "spec.replicas", text))
}

fn api(client: &Client, deployment: &ModelDeployment) -> Api<ModelDeployment> {
    Api::namespaced(client.clone(), &deployment.namespace().unwrap_or_default())
}
