//! A worker whose engine has stopped by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::sync::Arc;

use belay_engine::{Draft, Engine, EngineConfig, Memory, Segment, StateError, StepError, StepModel};
use belay_proto::admin::{
    ExpertCopies, GroupWorker, LayerPlacement, Phase, Placement, SetPlacementRequest, WorkerStatus,
};
use belay_worker::server::Worker;
use common::{
    admin, ask, cases, channel, generate, http_get, ids, inference, nano, retry_hint, stand_alone, started,
    status, wait_phase,
};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Panics where the engine makes room for a request: no step is there to catch it.
struct Dying;

impl StepModel for Dying {
    type State = ();
    type Snapshot = ();

    fn vocab_size(&self) -> usize {
        2048
    }

    fn max_context(&self) -> usize {
        4096
    }

    fn block_tokens(&self) -> usize {
        128
    }

    fn max_drafts(&self) -> usize {
        0
    }

    fn cache_key(&self) -> u64 {
        0
    }

    fn memory(&self) -> Memory {
        Memory { limit: 1 << 20, used: 0 }
    }

    fn state_bytes(&self, tokens: usize) -> usize {
        tokens
    }

    fn step_bytes(&self, tokens: usize, step: usize) -> usize {
        tokens + step
    }

    fn new_state(&self) -> Result<(), StateError> {
        panic!("a bug of the engine's")
    }

    fn reserve(&self, _: &mut (), _: usize) -> Result<(), StateError> {
        unreachable!("there is no state")
    }

    fn snapshot(&self, (): &()) -> Result<(), StateError> {
        unreachable!("there is no state")
    }

    fn restore(&self, (): &()) -> Result<(), StateError> {
        unreachable!("there is no snapshot")
    }

    fn rewind(&self, _: &mut (), _: usize) -> Result<(), StateError> {
        unreachable!("there is no state")
    }

    fn forward(&self, _: &mut [Segment<'_, ()>], _: &mut Vec<f32>) -> Result<(), StepError> {
        unreachable!("there is no state to step with")
    }

    fn draft(&self, _: &mut [Draft<'_, ()>], _: &mut Vec<u32>) -> Result<(), StepError> {
        unreachable!("there is no state to guess with")
    }
}

/// Puts an engine in place that dies of its first request, and sends that.
async fn kill_engine(worker: &Worker) -> WorkerStatus {
    let context = worker.context();
    let tokenizer = Arc::clone(context.engine.load_full().unwrap().tokenizer());
    let dying = Engine::start(Dying, tokenizer, EngineConfig::default()).unwrap();
    context.engine.swap(Some(Arc::new(dying))).unwrap().shutdown();
    let lost = generate(&mut inference(worker).await, ask(ids(&[5]))).await.unwrap_err();
    assert_eq!((lost.code(), retry_hint(&lost)), (Code::Unavailable, Some("step-lost")));
    wait_phase(&mut admin(worker.addresses().admin).await, Phase::Failed).await
}

async fn assert_out_of_service(worker: &Worker, failed: &WorkerStatus) {
    assert_eq!(failed.reason, "EngineStopped");
    assert_eq!(failed.message, "the step loop panicked: a bug of the engine's");
    let addresses = worker.addresses();
    let (code, body) = http_get(addresses.http, "/readyz").await;
    assert_eq!((code, body), (503, format!("failed: EngineStopped: {}\n", failed.message)));
    assert_eq!(http_get(addresses.http, "/healthz").await.0, 503, "only a restart helps");
    let mut health = HealthClient::new(channel(addresses.grpc).await);
    let mut says = async || {
        let request = HealthCheckRequest { service: String::new() };
        health.check(request).await.unwrap().into_inner().status()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while says().await != ServingStatus::NotServing {
        assert!(std::time::Instant::now() < deadline, "health still says serving");
    }
    let refused = generate(&mut inference(worker).await, ask(ids(&[5]))).await.unwrap_err();
    assert_eq!((refused.code(), retry_hint(&refused)), (Code::Unavailable, Some("not-ready")));
}

#[tokio::test]
async fn a_stand_alone_worker_leaves_ready_and_says_why() {
    let worker = stand_alone(&[]).await;
    let failed = kill_engine(&worker).await;
    assert_out_of_service(&worker, &failed).await;
    worker.stop().await;
}

#[tokio::test]
async fn in_a_group_no_placement_makes_it_ready_again() {
    let extra = ["--group", "g-0", "--revision", "r", "--group-workers", "1", "--pod-uid", "life"];
    let worker = started(&nano().join("bf16"), &extra).await;
    let addresses = worker.addresses();
    let mut operator = admin(addresses.admin).await;
    wait_phase(&mut operator, Phase::WaitingForPlacement).await;
    let me = GroupWorker {
        index: 0,
        fabric_address: addresses.fabric.unwrap().to_string(),
        uid: "life".into(),
        ..GroupWorker::default()
    };
    let layer = LayerPlacement { experts: vec![ExpertCopies { ranks: vec![0] }; 16] };
    let placement = |epoch| SetPlacementRequest {
        in_force: Some(Placement {
            epoch,
            group: "g-0".into(),
            revision: "r".into(),
            ranks_per_worker: 1,
            workers: vec![me.clone()],
            layers: vec![layer.clone(); 5],
            expert_bytes: 0,
        }),
        ..SetPlacementRequest::default()
    };
    operator.set_placement(placement(1)).await.unwrap();
    wait_phase(&mut operator, Phase::Ready).await;
    let case = &cases("fact", 1)[0];
    let answer = generate(&mut inference(&worker).await, ask(ids(&case.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, case.greedy_ids);

    let failed = kill_engine(&worker).await;
    // accepted or not, it changes nothing
    let _ = operator.set_placement(placement(2)).await;
    assert_out_of_service(&worker, &failed).await;
    assert_eq!(status(&mut operator).await.phase(), Phase::Failed);
    worker.stop().await;
}
