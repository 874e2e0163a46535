//! The operator with a thousand deployments (`make scale`): a real etcd, API server, scheduler and garbage collector; nodes and
//! kubelets by kwok; one process that answers for all workers. What it finds is in docs/performance.md.
//!
//!   BELAY_KUBERNETES_BIN    folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok
//!   BELAY_OPERATOR          the program that is measured (that of this build)
//!   BELAY_SCALE_DEPLOYMENTS how many (1000), of one group each
//!   BELAY_SCALE_WORKERS     pods of a group (4)
//!   BELAY_SCALE_CSV         where lines are added (docs/operations/scale.csv)
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "some of what the other tests need is not needed here")]

#[path = "apiserver/audit.rs"]
mod audit;
#[path = "apiserver/control_plane.rs"]
mod control_plane;
#[path = "scale/fleet.rs"]
mod fleet;
#[path = "scale/histogram.rs"]
mod histogram;
#[path = "apiserver/install.rs"]
mod install;
#[path = "scale/kwok.rs"]
mod kwok;
#[path = "apiserver/metrics.rs"]
mod metrics;
#[path = "scale/operator.rs"]
mod operator;
#[path = "scale/process.rs"]
mod process;
#[path = "scale/report.rs"]
mod report;
#[path = "apiserver/settled.rs"]
mod settled;
#[path = "apiserver/worker.rs"]
mod worker;
#[path = "scale/workers.rs"]
mod workers;

use std::path::PathBuf;

use belay_proto::admin::ModelCard;
use control_plane::{ADMIN, ControlPlane};
use fleet::Fleet;
pub use fleet::until;
use operator::{Measured, Operator};
use workers::Workers;

/// Pods of a node, about.
const PODS_PER_NODE: usize = 40;

/// Looks at each deployment, on average, while nothing happens.
const LOOKS: u64 = 6;

/// One deployment of so many is changed, and one loses a pod, while the others rest.
const CHURN: usize = 10;

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let programs =
        control_plane::programs().expect("BELAY_KUBERNETES_BIN is not set: run it with `make scale`");
    let (size, workers) = (setting("BELAY_SCALE_DEPLOYMENTS", 1000), setting("BELAY_SCALE_WORKERS", 4));
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let csv = std::env::var_os("BELAY_SCALE_CSV")
        .map_or_else(|| root.join("docs/operations/scale.csv"), PathBuf::from);

    let mut plane = ControlPlane::start(&programs).await;
    let client = plane.client(ADMIN).await;
    install::install(&client).await;
    kwok::start(&mut plane, &programs, &client, (size * workers).div_ceil(PODS_PER_NODE).max(2)).await;
    let card = ModelCard {
        layers: 2,
        experts: 8,
        experts_per_token: 2,
        expert_bytes: 100,
        digest: "d".into(),
        ..ModelCard::default()
    };
    let answers = Workers::start(client.clone(), card);
    let fleet = Fleet::new(client, size, workers).await;
    let mut audit = plane.audit();
    let mut operator = Operator::start(&plane);
    operator.until_it_leads().await;
    let mut phases = vec![];
    let all_settled = async || fleet.settled().await == size;

    let measured = Measured::begin(&operator, &mut audit, &answers).await;
    fleet.apply().await;
    until("every deployment is ready", 1800, all_settled).await;
    let mut made = measured.end("make", &operator, &mut audit, &answers).await;
    let seconds = fleet.apply_to_pods();
    assert_eq!(seconds.len(), size, "every deployment got its pods");
    made.apply_to_pods = Some((seconds[size / 2], seconds[size * 99 / 100]));
    phases.push(made);

    let what_follows = operator.reconciles().await + 2 * size as u64;
    until("what follows is over", 600, async || operator.reconciles().await >= what_follows).await;
    let measured = Measured::begin(&operator, &mut audit, &answers).await;
    let looked = operator.reconciles().await + LOOKS * size as u64;
    until("each was looked at", 1800, async || operator.reconciles().await >= looked).await;
    phases.push(measured.end("rest", &operator, &mut audit, &answers).await);

    let measured = Measured::begin(&operator, &mut audit, &answers).await;
    let part = (size / CHURN).max(1);
    tokio::join!(fleet.roll(part, "worker:2"), fleet.lose_pods(part));
    until("every deployment is ready again", 1800, all_settled).await;
    phases.push(measured.end("change", &operator, &mut audit, &answers).await);

    let what_follows = operator.reconciles().await + 2 * size as u64;
    until("what follows is over", 600, async || operator.reconciles().await >= what_follows).await;
    // another one takes over: it has to look at everything before it knows that there is nothing to do
    operator.stop();
    drop(audit.calls());
    operator = Operator::start(&plane);
    operator.until_it_leads().await;
    let measured = Measured::begin_anew(&mut audit, &answers);
    until("each was looked at", 600, async || operator.reconciles().await >= size as u64).await;
    phases.push(measured.end("restart", &operator, &mut audit, &answers).await);

    report::publish(&csv, size, size * workers, &phases);
    for phase in phases.iter().filter(|phase| matches!(phase.name, "rest" | "restart")) {
        assert_eq!(phase.writes, 0, "nothing is written in {:?}", phase.name);
    }
}
