//! The operator's program against a real API server, with its own role and nothing more. Nodes, scheduler and workers
//! are played; the cluster tests have real ones. Needs etcd, kube-apiserver and kube-controller-manager (see
//! `control_plane::programs`); says so and passes where they are missing.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]

#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "apiserver/played_nodes.rs"]
mod played_nodes;
#[path = "apiserver/scenarios.rs"]
mod scenarios;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_keeps_its_promises_against_a_real_api_server() {
    let Some(programs) = control_plane::programs() else {
        eprintln!(
            "SKIPPED: etcd, kube-apiserver and kube-controller-manager are not in BELAY_KUBERNETES_BIN"
        );
        return;
    };
    scenarios::all(&programs).await;
}
