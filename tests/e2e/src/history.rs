//! How many groups a deployment was to have over time, and who said so.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    kubectl::Kubectl,
    watch::{Change, Watch},
};

/// What a version of the deployment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `spec.replicas`.
    pub wanted: u64,
    /// `status.readyReplicas`.
    pub ready: u64,
    /// Field managers that own `spec.replicas`.
    pub owners: BTreeSet<String>,
    /// `status.rollout.analysis`: name, verdict and message.
    pub checks: Vec<(String, String, String)>,
}

/// Since when it was so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since the history began.
    pub at: Duration,
    /// What was so.
    pub state: State,
}

/// Every state of one deployment; ends when dropped.
#[derive(Debug)]
pub struct History {
    began: Instant,
    moments: Arc<Mutex<Vec<Moment>>>,
    _watch: Watch,
}

impl History {
    /// Follows a deployment.
    #[must_use]
    pub fn follow(kubectl: &Kubectl, name: &str) -> Self {
        let began = Instant::now();
        let moments = Arc::<Mutex<Vec<Moment>>>::default();
        let shared = Arc::clone(&moments);
        let what = ["modeldeployments.serving.belay.dev", name, "--show-managed-fields"];
        let watch = Watch::start(kubectl, &what, move |Change { gone, object }| {
            let state = State::of(&object);
            let mut moments = guard(&shared);
            if !gone && moments.last().is_none_or(|last| last.state != state) {
                moments.push(Moment { at: began.elapsed(), state });
            }
        });
        Self { began, moments, _watch: watch }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// All moments so far.
    #[must_use]
    pub fn moments(&self) -> Vec<Moment> {
        guard(&self.moments).clone()
    }

    /// When at least so many groups were ready for the first time from `since` on.
    #[must_use]
    pub fn ready(&self, least: u64, since: Duration) -> Option<Duration> {
        first(&self.moments(), since, |state| state.ready >= least)
    }

    /// When exactly so many groups were wanted for the first time from `since` on.
    #[must_use]
    pub fn wanted(&self, exactly: u64, since: Duration) -> Option<Duration> {
        first(&self.moments(), since, |state| state.wanted == exactly)
    }
}

/// The first moment from `since` on at which it was so: that of the change, or `since` if it was so already.
fn first(moments: &[Moment], since: Duration, is_so: impl Fn(&State) -> bool) -> Option<Duration> {
    let before = moments.iter().rfind(|moment| moment.at <= since).filter(|moment| is_so(&moment.state));
    let later = || moments.iter().find(|moment| moment.at > since && is_so(&moment.state));
    before.map(|_| since).or_else(|| later().map(|moment| moment.at))
}

/// The numbers that were wanted, one after the other.
#[must_use]
pub fn path(moments: &[Moment]) -> Vec<u64> {
    let mut path: Vec<u64> = moments.iter().map(|moment| moment.state.wanted).collect();
    path.dedup();
    path
}

/// How often a path changes its direction.
#[must_use]
pub fn turns(path: &[u64]) -> usize {
    let ups: Vec<bool> = path.windows(2).map(|pair| pair[1] > pair[0]).collect();
    ups.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// Who set each number but the first.
#[must_use]
pub fn setters(moments: &[Moment]) -> BTreeSet<String> {
    let changed = |pair: &&[Moment]| pair[0].state.wanted != pair[1].state.wanted;
    moments.windows(2).filter(changed).flat_map(|pair| pair[1].state.owners.clone()).collect()
}

impl State {
    /// Of an object with its managed fields.
    fn of(object: &Value) -> Self {
        let fields = object["metadata"]["managedFields"].as_array();
        let owns = |entry: &&Value| !entry["fieldsV1"]["f:spec"]["f:replicas"].is_null();
        let owners = fields.into_iter().flatten().filter(owns);
        let status = &object["status"];
        let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let checks = status["rollout"]["analysis"].as_array().into_iter().flatten();
        Self {
            wanted: object["spec"]["replicas"].as_u64().unwrap_or(0),
            ready: status["readyReplicas"].as_u64().unwrap_or(0),
            owners: owners.map(|entry| text(entry, "manager")).collect(),
            checks: checks
                .map(|check| (text(check, "name"), text(check, "verdict"), text(check, "message")))
                .collect(),
        }
    }
}

fn guard(moments: &Mutex<Vec<Moment>>) -> MutexGuard<'_, Vec<Moment>> {
    moments.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn moment(second: u64, wanted: u64, ready: u64, owner: &str) -> Moment {
        let state = State { wanted, ready, owners: [owner.to_owned()].into(), ..State::default() };
        Moment { at: Duration::from_secs(second), state }
    }

    #[test]
    fn a_path_has_turns_and_setters() {
        let moments = [
            moment(0, 1, 1, "kubectl"),
            moment(5, 3, 1, "a"),
            moment(9, 3, 3, "b"),
            moment(20, 2, 3, "c"),
            moment(30, 1, 1, "c"),
        ];
        assert_eq!(path(&moments), [1, 3, 2, 1]);
        assert_eq!(
            (turns(&path(&moments)), turns(&[1, 2, 1, 2]), turns(&[1]), turns(&[0, 1, 4])),
            (1, 2, 0, 0)
        );
        assert_eq!(setters(&moments), ["a".to_owned(), "c".to_owned()].into());
    }

    #[test]
    fn a_moment_is_the_first_from_then_on() {
        let moments = [moment(0, 1, 1, ""), moment(5, 3, 1, ""), moment(9, 3, 3, "")];
        let second = Duration::from_secs;
        let ready = |least, since| first(&moments, second(since), |state| state.ready >= least);
        assert_eq!(ready(3, 2), Some(second(9)));
        assert_eq!(ready(3, 12), Some(second(12)), "it is so already");
        assert_eq!(ready(4, 0), None);
        assert_eq!(first(&moments, second(6), |state| state.wanted == 1), None, "it was so before");
    }

    #[test]
    fn a_version_says_who_owns_its_number() {
        let entry = |manager: &str, spec: Value| json!({"manager": manager, "fieldsV1": {"f:spec": spec}});
        let object = json!({
            "metadata": {"managedFields": [entry("helm", json!({"f:model": {}})), entry("hpa", json!({"f:replicas": {}}))]},
            "spec": {"replicas": 2},
            "status": {"readyReplicas": 1, "rollout": {"analysis": [{"name": "Q", "verdict": "Good", "message": "1"}]}},
        });
        let state = State::of(&object);
        assert_eq!((state.wanted, state.ready, state.owners), (2, 1, ["hpa".to_owned()].into()));
        assert_eq!(state.checks, [("Q".to_owned(), "Good".to_owned(), "1".to_owned())]);
    }
}
