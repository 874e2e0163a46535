//! Warnings about pods that do not start: asked for now and then, not at each look. The API server reads all events of a
//! namespace to find those of one pod.
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

/// Seconds that a pod gets to start before anybody asks what keeps it.
const PATIENCE: i64 = 3;

/// Seconds between two questions about a pod.
const BETWEEN: i64 = 5;

/// Seconds after which nobody needs an answer any more: the pod has started, or is gone.
const KEPT: i64 = 60;

/// The last answers, by pod UID.
#[derive(Debug, Default)]
pub struct Warnings {
    known: Mutex<HashMap<String, (Timestamp, Vec<Event>)>>,
}

impl Warnings {
    /// The warnings about a pod, as far as they are known.
    ///
    /// # Errors
    /// When the API server was asked and did not answer.
    pub async fn about(
        &self,
        client: &Client,
        namespace: &str,
        pod: &Pod,
        now: Timestamp,
    ) -> Result<Vec<Event>, kube::Error> {
        let uid = pod.uid().unwrap_or_default();
        let known = self.lock().get(&uid).cloned();
        let asked = known.as_ref().map(|(at, _)| *at);
        if !is_due(pod.creation_timestamp().map(|time| time.0), asked, now) {
            return Ok(known.map(|(_, events)| events).unwrap_or_default());
        }
        let params = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        let events = Api::<Event>::namespaced(client.clone(), namespace).list(&params).await?.items;
        let mut known = self.lock();
        known.retain(|_, (at, _)| now.as_second() - at.as_second() < KEPT);
        known.insert(uid, (now, events.clone()));
        Ok(events)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Timestamp, Vec<Event>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to ask about a pod that was created and last asked about at these times.
fn is_due(created: Option<Timestamp>, asked: Option<Timestamp>, now: Timestamp) -> bool {
    let since = |time: Timestamp| now.as_second() - time.as_second();
    created.is_none_or(|created| since(created) >= PATIENCE)
        && asked.is_none_or(|asked| since(asked) >= BETWEEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_pods_and_those_just_asked_about_are_left_alone() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let due = |created, asked, now| is_due(created, asked, at(now).unwrap());
        assert!(!due(at(100), None, 102));
        assert!(due(at(100), None, 103));
        assert!(!due(at(100), at(103), 107));
        assert!(due(at(100), at(103), 108));
        assert!(due(None, None, 0), "one without a time is asked about");
    }
}
