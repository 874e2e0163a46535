//! Requests go to revisions by their shares, and to one of them when asked.
use std::{collections::BTreeMap, sync::atomic::Ordering};

use belay_gateway::{config::Config, run::Gateway};
use belay_proto::inference::inference_client::InferenceClient;
use clap::Parser;
use http::{Method, Request};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    Fault, MODEL, Worker, channel, eventually, generate, http as client, ids, kubernetes, measured, request,
};

/// A gateway that discovers two workers, `old` and `new`, each of a revision of that name.
struct Rollout {
    cluster: kubernetes::Cluster,
    old: Worker,
    new: Worker,
    gateway: Gateway,
    server: JoinHandle<()>,
}

impl Drop for Rollout {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn deployment(traffic: &Value) -> Value {
    json!({"apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
           "metadata": {"name": "flash", "namespace": "prod", "resourceVersion": "1", "uid": "d"},
           "spec": {"model": {"name": MODEL}}, "status": {"traffic": traffic}})
}

fn pod(revision: &str, worker: &Worker) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": revision, "namespace": "prod", "uid": revision, "resourceVersion": "1", "labels": {
               "app.kubernetes.io/name": "belay-worker", "serving.belay.dev/model-deployment": "flash",
               "serving.belay.dev/revision": revision}},
           "spec": {"containers": [{"name": "worker", "ports": [{"name": "grpc",
                                                                 "containerPort": worker.address.port()}]}]},
           "status": {"phase": "Running", "podIP": "127.0.0.1",
                      "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn traffic(canary_percent: u32, role: &str) -> Value {
    json!([{"revision": "old", "weightPercent": 100 - canary_percent, "role": "Stable"},
           {"revision": "new", "weightPercent": canary_percent, "role": role}])
}

impl Rollout {
    async fn start(shares: &Value) -> Self {
        let cluster = kubernetes::Cluster::new();
        let (old, new) = (Worker::start().await, Worker::start().await);
        cluster.deployments.lock().unwrap().push(deployment(shares));
        cluster.add_pod(&pod("old", &old));
        cluster.add_pod(&pod("new", &new));
        let (api, server) = cluster.serve("127.0.0.1:0".parse().unwrap()).await;
        let flags = ["belay-gateway", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"];
        let config = Config::parse_from(flags);
        let gateway = Gateway::start_with(config, Some(kubernetes::client(api))).await.unwrap();
        let ready = async { while client::get(gateway.metrics, "/readyz").await.status != 200 {} };
        tokio::time::timeout(crate::support::LONG, ready).await.unwrap();
        eventually("two watches", || cluster.changes.receiver_count() == 2).await;
        Self { cluster, old, new, gateway, server }
    }

    /// Changes the shares, and waits until they count.
    async fn share(&self, shares: &Value, counts: impl AsyncFn(&Self) -> bool) {
        self.cluster.tell("deployments", "MODIFIED", &deployment(shares));
        let waiting = async { while !counts(self).await {} };
        tokio::time::timeout(crate::support::LONG, waiting).await.expect("the shares must count");
    }

    /// Asks once for this model, in a session if there is one. The status, and the revision that answered.
    async fn ask(&self, model: &str, session: Option<&str>) -> (u16, Option<String>) {
        let session = session.map(|session| ("x-session-id", session));
        let answer = self.answer(model, session.as_slice()).await;
        let revision = answer.json()["system_fingerprint"].as_str().map(|print| print.replace("fp_", ""));
        (answer.status.as_u16(), revision)
    }

    /// Asks once for this model, with these headers.
    async fn answer(&self, model: &str, headers: &[(&str, &str)]) -> client::Answer {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/v1/chat/completions", self.gateway.api));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::from(body.to_string())).unwrap();
        client::read(client::send(request).await).await
    }

    async fn revision_of(&self, session: &str) -> String {
        self.ask(MODEL, Some(session)).await.1.unwrap()
    }
}

#[tokio::test]
async fn each_revision_has_its_share_exactly() {
    let rollout = Rollout::start(&traffic(20, "Canary")).await;
    for _ in 0..50 {
        rollout.ask(MODEL, None).await;
    }
    assert_eq!((rollout.old.script.seen().len(), rollout.new.script.seen().len()), (40, 10));
    let models = measured(&rollout.gateway).await.models;
    assert_eq!((models[0].namespace.as_str(), models[0].deployment.as_str()), ("prod", "flash"));
    let served: BTreeMap<&str, u64> =
        models[0].revisions.iter().map(|revision| (revision.revision.as_str(), revision.served)).collect();
    assert_eq!(served, [("old", 40), ("new", 10)].into());
}

#[tokio::test]
async fn a_session_stays_where_it_is_and_only_moves_to_the_canary() {
    let rollout = Rollout::start(&traffic(30, "Canary")).await;
    let sessions: Vec<String> = (0..12).map(|index| format!("session {index}")).collect();
    let mut before = Vec::new();
    for session in &sessions {
        let revision = rollout.revision_of(session).await;
        for _ in 0..3 {
            assert_eq!(rollout.revision_of(session).await, revision);
        }
        before.push(revision);
    }
    assert!(before.contains(&"old".to_owned()) && before.contains(&"new".to_owned()), "{before:?}");
    // the stable revision keeps nothing: that is how the new shares show
    let mover = &sessions[before.iter().position(|revision| revision == "old").unwrap()];
    rollout.share(&traffic(100, "Canary"), async |rollout| rollout.revision_of(mover).await == "new").await;
    for session in &sessions {
        assert_eq!(rollout.revision_of(session).await, "new");
    }
}

#[tokio::test]
async fn a_revision_can_be_asked_for_by_role_and_by_name() {
    let rollout = Rollout::start(&traffic(0, "Preview")).await;
    for _ in 0..4 {
        assert_eq!(rollout.ask(MODEL, None).await.1.as_deref(), Some("old"), "a preview gets no share");
    }
    for (suffix, revision) in [("preview", "new"), ("new", "new"), ("stable", "old"), ("old", "old")] {
        let (status, answered) = rollout.ask(&format!("{MODEL}@{suffix}"), None).await;
        assert_eq!((status, answered.as_deref()), (200, Some(revision)), "{suffix}");
    }
    for suffix in ["canary", "0123abcd", ""] {
        assert_eq!(rollout.ask(&format!("{MODEL}@{suffix}"), None).await.0, 404, "{suffix}");
    }
    assert_eq!(rollout.ask("other@new", None).await.0, 404);
    let body = json!({"model": format!("{MODEL}@canary"), "prompt": "p"});
    let error = client::post(rollout.gateway.api, "/v1/completions", &body).await.json()["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert!(error["message"].as_str().unwrap().contains("'canary'"), "{error}");
    let list = client::get(rollout.gateway.api, "/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1, "revisions are no models");
}

#[tokio::test]
async fn a_header_asks_for_a_revision_as_the_name_does() {
    let rollout = Rollout::start(&traffic(0, "Preview")).await;
    for (asked, revision) in [("preview", "new"), ("new", "new"), ("stable", "old"), ("old", "old")] {
        let answer = rollout.answer(MODEL, &[("x-belay-revision", asked)]).await;
        assert_eq!(answer.json()["system_fingerprint"], format!("fp_{revision}"), "{asked}");
    }
    for asked in ["canary", "0123abcd", ""] {
        let by_header = rollout.answer(MODEL, &[("x-belay-revision", asked)]).await;
        let by_name = rollout.answer(&format!("{MODEL}@{asked}"), &[]).await;
        assert_eq!(by_header.status, 404, "{asked}");
        assert_eq!(by_header.body, by_name.body);
    }
    let unknown = rollout.answer("other", &[("x-belay-revision", "stable")]).await;
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let twice = rollout.answer(&format!("{MODEL}@stable"), &[("x-belay-revision", "stable")]).await;
    assert_eq!((twice.status.as_u16(), &twice.json()["error"]["param"]), (400, &json!("model")));
    assert!(twice.text().contains("x-belay-revision"), "{}", twice.text());
    let before = rollout.new.script.seen().len();
    let mut call = tonic::Request::new(request("p", 2));
    call.metadata_mut().insert("x-belay-revision", "preview".parse().unwrap());
    let mut grpc = InferenceClient::new(channel(&rollout.gateway).await);
    let mut pieces = grpc.generate(call).await.unwrap().into_inner();
    while pieces.message().await.unwrap().is_some() {}
    assert_eq!(rollout.new.script.seen().len(), before + 1, "gRPC has it among its metadata");
}

#[tokio::test]
async fn a_revision_whose_workers_take_nothing_leaves_its_share() {
    let rollout = Rollout::start(&traffic(50, "Canary")).await;
    rollout.new.script.draining.store(true, Ordering::SeqCst);
    for _ in 0..6 {
        assert_eq!(rollout.ask(MODEL, None).await, (200, Some("old".into())));
    }
    rollout.new.script.draining.store(false, Ordering::SeqCst);
    rollout.old.script.draining.store(true, Ordering::SeqCst);
    // the stable one's share is left as well, even to one that has none
    rollout.share(&traffic(0, "Canary"), async |_| true).await;
    for _ in 0..6 {
        assert_eq!(rollout.ask(MODEL, None).await, (200, Some("new".into())));
    }
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_but_never_beyond_what_was_asked_for() {
    let rollout = Rollout::start(&traffic(50, "Canary")).await;
    rollout.new.script.faults.lock().unwrap().push_back(Fault::StepLost(3));
    let mut asked = request("p", 8);
    asked.model = format!("{MODEL}@canary");
    let pieces = generate(&rollout.gateway, asked).await.unwrap();
    assert_eq!(ids(&pieces).len(), 8);
    assert_eq!((rollout.old.script.seen().len(), rollout.new.script.seen().len()), (0, 2));
}
