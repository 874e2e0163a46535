//! Shutting down loses nothing that runs and waits for nothing that does not.
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use http::Method;
use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{LONG, MODEL, Worker, eventually, gateway, http as client};

#[tokio::test]
async fn a_running_stream_is_finished_before_the_end() {
    let worker = Worker::start().await;
    worker.script.stalled.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let (api, metrics) = (gateway.api, gateway.metrics);
    assert_eq!(client::get(metrics, "/readyz").await.status, 200);
    let body = json!({"model": MODEL, "prompt": "p", "max_tokens": 5, "stream": true}).to_string();
    let stream = client::open(api, Method::POST, "/v1/completions", body).await;
    eventually("the stream runs", || worker.active() == 1).await;

    let down = tokio::spawn(gateway.shut_down());
    let refused = async {
        while TcpStream::connect(api).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, refused).await.expect("no new connections");
    let ready = client::get(metrics, "/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text().trim()), (503, "shutting down"));
    assert_eq!(client::get(metrics, "/healthz").await.status, 200);
    assert!(!down.is_finished(), "the stream still runs");

    worker.script.stalled.store(false, Ordering::SeqCst);
    let answer = client::read(stream).await;
    assert_eq!(answer.chunks().last().unwrap()["choices"][0]["finish_reason"], "length");
    tokio::time::timeout(LONG, down).await.expect("an end").unwrap();
}

#[tokio::test]
async fn new_requests_are_served_while_load_balancers_catch_up() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &["--lame-duck-seconds=2"]).await;
    let (api, metrics) = (gateway.api, gateway.metrics);
    let body = json!({"model": MODEL, "prompt": "p", "max_tokens": 5});
    let before = client::post(api, "/v1/completions", &body).await;
    assert_eq!(before.headers.get("connection"), None, "clients keep their connections");
    let down = tokio::spawn(gateway.shut_down());
    let leaving = async { while client::get(metrics, "/readyz").await.status == 200 {} };
    tokio::time::timeout(LONG, leaving).await.unwrap();
    let last = client::post(api, "/v1/completions", &body).await;
    assert_eq!(last.status, 200);
    assert_eq!(
        last.headers["connection"], "close",
        "or the next request may cross the end of the connection"
    );
    tokio::time::timeout(LONG, down).await.expect("an end").unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_when_time_is_up() {
    let worker = Worker::start().await;
    worker.script.stalled.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &["--drain-seconds=0.2"]).await;
    let body = json!({"model": MODEL, "prompt": "p", "stream": true}).to_string();
    let _stream = client::open(gateway.api, Method::POST, "/v1/completions", body).await;
    let begin = Instant::now();
    tokio::time::timeout(LONG, gateway.shut_down()).await.expect("an end");
    assert!(begin.elapsed() >= Duration::from_millis(200), "it was given its time");
}

#[tokio::test]
async fn an_idle_gateway_does_not_wait() {
    let worker = Worker::start().await;
    // more than this test may take
    let gateway = gateway(&[&worker], &["--drain-seconds=600"]).await;
    let idle = TcpStream::connect(gateway.api).await.unwrap();
    client::get(gateway.api, "/v1/models").await;
    tokio::time::timeout(LONG, gateway.shut_down()).await.expect("an end");
    drop(idle);
}
