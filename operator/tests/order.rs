//! The order of writes: what a crash in between leaves must tell the next leader what was under way.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use std::sync::{Arc, Mutex};

use belay_operator::{
    cache::Cache,
    group::Group,
    reconcile::{
        apply::{Applied, apply},
        build::build,
        observe::{Objects, Observed},
        plan::plan,
    },
    rollout::Evidence,
    worker_client::WorkerClient,
};
use belay_proto::admin::Phase;
use common::{IMAGE, at, group, record, validated};
use http::{Request, Response};
use kube::{Client, client::Body};

/// Applies what is due for `groups`; an API server that agrees to everything writes down what it is asked.
async fn written(mut groups: Vec<Group>) -> (Vec<String>, Applied) {
    for slot in groups.iter_mut().flat_map(|group| &mut group.slots).flatten() {
        slot.ip = None; // there is nobody to call
    }
    let log = Arc::new(Mutex::new(vec![]));
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let writer = Arc::clone(&log);
    let server = tokio::spawn(async move {
        while let Some((request, respond)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let kind_and_name = parts.uri.path().rsplit_once("/coast/").unwrap().1.to_owned();
            let line = format!("{} {kind_and_name}", parts.method);
            writer.lock().unwrap().push(line);
            let body = body.collect_bytes().await.unwrap();
            // the answer to a write is the object; to a deletion, any object of the kind
            let answer =
                if parts.method == "DELETE" { br#"{"metadata":{}}"#.to_vec() } else { body.to_vec() };
            respond.send_response(Response::new(Body::from(answer)));
        }
    });
    let wanted = validated("harbour");
    let revisions = if groups.is_empty() { vec![] } else { vec![record("harbour")] };
    let plan = plan(&wanted, &groups, &revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    let observed = Observed { groups, revisions, objects: Objects::default(), now: at(0) };
    let prepared = build(&wanted, &observed, &plan).unwrap();
    let client = Client::new(service, "coast");
    let applied = apply(&client, &Cache::default(), &WorkerClient::default(), "coast", &observed, prepared)
        .await
        .unwrap();
    drop(client);
    server.await.unwrap();
    let log = log.lock().unwrap().clone();
    (log, applied)
}

#[track_caller]
fn before(log: &[String], first: &str, then: &str) {
    let last_of_first = log.iter().rposition(|line| line.contains(first));
    let first_of_then = log.iter().position(|line| line.contains(then));
    assert!(
        last_of_first.is_some() && first_of_then.is_some() && last_of_first < first_of_then,
        "\"{first}\" must come before \"{then}\": {log:#?}"
    );
}

#[tokio::test]
async fn revision_then_records_of_groups_then_pods() {
    let (log, applied) = written(vec![]).await;
    before(&log, "PATCH controllerrevisions/", "POST secrets");
    before(&log, "POST secrets", "PATCH services/");
    before(&log, "PATCH services/", "POST pods");
    assert_eq!(log.iter().filter(|line| line.starts_with("POST pods")).count(), 6);
    assert_eq!(applied.created_groups.len(), 2);
}

#[tokio::test]
async fn drain_is_recorded_before_any_pod_is_marked_and_marked_before_it_is_deleted() {
    let record = record("harbour");
    let groups = (0..3).map(|n| group(&record, "harbour", n, Phase::Ready)).collect();
    let (log, applied) = written(groups).await;
    before(&log, "PATCH services/harbour-dcd10987-2", "PATCH pods/harbour-dcd10987-2-");
    assert!(!log.iter().any(|line| line.starts_with("DELETE pods")), "{log:#?}");
    assert_eq!(applied.drained_groups, ["harbour-dcd10987-2"]);
}

#[tokio::test]
async fn record_of_a_group_goes_last() {
    let record = record("harbour");
    let mut groups: Vec<Group> = (0..3).map(|n| group(&record, "harbour", n, Phase::Ready)).collect();
    groups[2].draining_since = Some(at(-10));
    groups[2].slots = vec![None; 3];
    let (log, applied) = written(groups).await;
    before(&log, "DELETE configmaps/harbour-dcd10987-2-placement", "DELETE services/harbour-dcd10987-2");
    before(&log, "DELETE secrets/harbour-dcd10987-2-fabric-", "DELETE services/harbour-dcd10987-2");
    assert_eq!(applied.cleared_groups, ["harbour-dcd10987-2"]);
}
