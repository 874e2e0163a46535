//! Warnings about pods that do not start: asked for now and then and for a whole namespace, not at each look at each pod. The
//! API server reads all events of a namespace to find those of one pod.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

/// Seconds that a pod gets to start before anybody asks what keeps it.
const PATIENCE: i64 = 3;

/// Seconds that an answer is good for.
const FRESH: i64 = 5;

/// The last answer for a namespace. Who asks holds the lock, so that others wait for the same answer.
type Answer = Arc<tokio::sync::Mutex<Option<(Timestamp, HashMap<String, Vec<Event>>)>>>;

/// The last answers, by namespace.
#[derive(Debug, Default)]
pub struct Warnings {
    known: Mutex<HashMap<String, Answer>>,
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
        if !has_had_time(pod, now) {
            return Ok(vec![]);
        }
        let answer = self.answer(namespace);
        let mut answer = answer.lock().await;
        if answer.as_ref().is_none_or(|(at, _)| now.as_second() - at.as_second() >= FRESH) {
            let params = ListParams::default().fields("involvedObject.kind=Pod,type=Warning");
            let list = Api::<Event>::namespaced(client.clone(), namespace).list(&params).await?;
            *answer = Some((now, by_pod(list.items)));
        }
        let uid = pod.uid().unwrap_or_default();
        Ok(answer.as_ref().and_then(|(_, events)| events.get(&uid)).cloned().unwrap_or_default())
    }

    fn answer(&self, namespace: &str) -> Answer {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(namespace.to_owned()).or_default())
    }
}

/// Whether a pod is old enough to be asked about.
fn has_had_time(pod: &Pod, now: Timestamp) -> bool {
    let created = pod.creation_timestamp().map(|time| time.0);
    created.is_none_or(|created| now.as_second() - created.as_second() >= PATIENCE)
}

fn by_pod(events: Vec<Event>) -> HashMap<String, Vec<Event>> {
    let mut all: HashMap<String, Vec<Event>> = HashMap::new();
    for mut event in events {
        event.metadata.managed_fields = None;
        if let Some(uid) = event.involved_object.uid.clone() {
            all.entry(uid).or_default().push(event);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(uid: &str) -> Pod {
        let metadata = json!({ "name": uid, "uid": uid, "creationTimestamp": at(100).to_string() });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    #[tokio::test]
    async fn one_question_answers_for_all_pods_of_a_namespace_for_a_while() {
        let asked = Arc::new(AtomicU32::new(0));
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Some((_, respond)) = handle.next_request().await {
                count.fetch_add(1, Ordering::SeqCst);
                let event =
                    json!({ "metadata": {}, "involvedObject": { "uid": "a" }, "reason": "FailedMount" });
                let list = json!({ "metadata": {}, "items": [event] });
                respond.send_response(Response::new(Body::from(list.to_string().into_bytes())));
            }
        });
        let client = Client::new(service, "coast");
        let warnings = Warnings::default();
        let about = async |uid: &str, now: i64| {
            warnings.about(&client, "coast", &pod(uid), at(now)).await.unwrap().len()
        };
        assert_eq!((about("a", 102).await, asked.load(Ordering::SeqCst)), (0, 0), "it has just begun");
        assert_eq!((about("a", 103).await, asked.load(Ordering::SeqCst)), (1, 1));
        assert_eq!((about("b", 107).await, asked.load(Ordering::SeqCst)), (0, 1));
        assert_eq!((about("a", 108).await, asked.load(Ordering::SeqCst)), (1, 2));
    }
}
