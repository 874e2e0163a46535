//! The operator's program against a real API server, with its own role and nothing more. Nodes, scheduler and workers
//! are played; the cluster tests have real ones. Needs etcd, kube-apiserver and kube-controller-manager in
//! `BELAY_KUBERNETES_BIN`, which `make unit` sets; says so and passes where that is not set.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "some of what the tests share is for the scale test only")]

#[path = "apiserver/ascend.rs"]
mod ascend;
#[path = "apiserver/audit.rs"]
mod audit;
#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/crashes.rs"]
mod crashes;
#[path = "apiserver/experts.rs"]
mod experts;
#[path = "apiserver/install.rs"]
mod install;
#[path = "apiserver/metrics.rs"]
mod metrics;
#[path = "apiserver/played_gateway.rs"]
mod played_gateway;
#[path = "apiserver/played_nodes.rs"]
mod played_nodes;
#[path = "apiserver/rollouts.rs"]
mod rollouts;
#[path = "apiserver/scaling.rs"]
mod scaling;
#[path = "apiserver/scenarios.rs"]
mod scenarios;
#[path = "apiserver/settled.rs"]
mod settled;
#[path = "apiserver/steady.rs"]
mod steady;
#[path = "apiserver/worker.rs"]
mod worker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_keeps_its_promises_against_a_real_api_server() {
    let Some(programs) = control_plane::programs() else {
        eprintln!("SKIPPED: BELAY_KUBERNETES_BIN is not set; run it with `make unit`");
        return;
    };
    Box::pin(scenarios::all(&programs)).await;
}
