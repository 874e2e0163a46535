//! Requests that wait, go on elsewhere, or are asked of two.
use std::sync::{Arc, atomic::Ordering};

use axum::body::Body;
use http::Request;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::{
    Fault, MODEL, Worker, answer, eventually, gateway, generate, http as client, ids, measured, metric,
    metric_becomes, request,
};

/// Asks with a key; the request has this id.
fn ask(api: std::net::SocketAddr, key: &'static str, id: String) -> JoinHandle<client::Answer> {
    let body = json!({"model": MODEL, "prompt": "p", "max_tokens": 2}).to_string();
    let request = Request::post(format!("http://{api}/v1/completions"))
        .header("x-api-key", key)
        .header("x-request-id", id)
        .body(Body::from(body))
        .unwrap();
    tokio::spawn(async move { client::read(client::send(request).await).await })
}

#[tokio::test]
async fn those_who_wait_are_served_in_turn_by_key() {
    let path = std::env::temp_dir().join(format!("belay-keys-{}", uuid::Uuid::new_v4()));
    std::fs::write(&path, "[{name: a, key: a}, {name: b, key: b}]").unwrap();
    let worker = Worker::start().await;
    worker.script.draining.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[&format!("--keys-file={}", path.display())]).await;
    let mut asking = Vec::new();
    let mut held = 0.0;
    // the first is being tried again and again; the others stand behind it
    for (key, index) in [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)] {
        asking.push(ask(gateway.api, key, format!("{key}{index}")));
        held += 1.0;
        metric_becomes(&gateway, "belay_gateway_requests_held", |value| value >= held).await;
    }
    worker.script.draining.store(false, Ordering::SeqCst);
    for asked in asking {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    let order: Vec<String> = worker.script.seen().into_iter().map(|seen| seen.request_id).collect();
    let place = |id: &str| order.iter().position(|seen| seen == id).unwrap();
    assert!(place("b0") < place("a2") && place("b1") < place("a3"), "{order:?}");
    assert!(["a0", "a1", "a2", "a3"].map(place).is_sorted(), "{order:?}");
    assert!(place("b0") < place("b1"), "{order:?}");
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn a_late_first_token_is_asked_of_another_worker_and_comes_once() {
    let (slow, quick) = (Worker::start().await, Worker::start().await);
    slow.script.stalled.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&slow, &quick], &["--hedge-after=0.05"]).await;
    let expected: Vec<u32> = answer("p", 7, 6).iter().map(|byte| u32::from(*byte) + 1000).collect();
    for _ in 0..4 {
        let pieces = generate(&gateway, request("p", 6)).await.unwrap();
        assert_eq!(ids(&pieces), expected);
        let usages = pieces.iter().filter(|piece| piece.usage.is_some()).count();
        assert_eq!(usages, 2, "first and last, as ever");
    }
    eventually("the late ones are cancelled", || slow.active() == 0).await;
    assert_eq!(quick.script.seen().len(), 4);
    let hedged = slow.script.seen().len();
    assert!(hedged > 0, "the slow one is asked as well");
    let hedges = "belay_gateway_retries_total{model=\"nano\",kind=\"hedge\"}";
    assert_eq!(metric(&gateway, hedges).await, hedged as f64);
    let revision = &measured(&gateway).await.models[0].revisions[0];
    assert_eq!([revision.served, revision.failed], [4, 0], "the slower of two has not failed");
}

#[tokio::test]
async fn a_first_attempt_that_fails_leaves_it_to_the_second() {
    let first = Worker::start().await;
    first.script.stalled.store(true, Ordering::SeqCst);
    let second = Worker::start().await;
    second.script.stalled.store(true, Ordering::SeqCst);
    let gateway = Arc::new(gateway(&[&first, &second], &["--hedge-after=0.02"]).await);
    let asking = tokio::spawn({
        let gateway = gateway.clone();
        async move { generate(&gateway, request("p", 6)).await }
    });
    eventually("both are asked", || first.active() == 1 && second.active() == 1).await;
    drop(first);
    second.script.stalled.store(false, Ordering::SeqCst);
    assert_eq!(ids(&asking.await.unwrap().unwrap()).len(), 6);
    assert_eq!(second.script.seen().len(), 1);
}

#[tokio::test]
async fn no_request_is_lost_for_want_of_retries() {
    // more failures at once than a quiet model has retries for in one second
    let dying = Worker::with_faults(&[Fault::StepLost(0); 30]).await;
    let gateway = Arc::new(gateway(&[&dying], &[]).await);
    let asking: Vec<_> = (0..30)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move { generate(&gateway, request("p", 3)).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(ids(&asked.await.unwrap().unwrap()).len(), 3);
    }
}

#[tokio::test]
async fn the_turns_of_a_conversation_go_to_one_worker() {
    let workers = [Worker::start().await, Worker::start().await, Worker::start().await];
    let gateway = gateway(&workers.each_ref(), &["--policy=prefix-affinity"]).await;
    let mut messages =
        vec![json!({"role": "system", "content": "be kind"}), json!({"role": "user", "content": "hi"})];
    for turn in 1..=5 {
        let body = json!({"model": MODEL, "messages": messages, "max_tokens": 2});
        assert_eq!(client::post(gateway.api, "/v1/chat/completions", &body).await.status, 200);
        let counts = workers.each_ref().map(|worker| worker.script.seen().len());
        assert!(counts.contains(&turn), "{counts:?}");
        messages.push(json!({"role": "assistant", "content": "hello"}));
        messages.push(json!({"role": "user", "content": format!("turn {turn}")}));
    }
}
