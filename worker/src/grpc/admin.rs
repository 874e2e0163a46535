//! `belay.admin.v1.Admin`, for the operator.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use belay_epoch::document::Refusal;
use belay_fabric::{Fault, Health, Loads, PeerState};
use belay_proto::admin::admin_server::Admin;
use belay_proto::admin::{
    Coverage, ExpertLoad, Fault as WireFault, GetExpertLoadRequest, GetExpertsRequest, GetStatusRequest,
    InjectRequest, InjectResponse, LayerLoad, PeerHealth, PeerStatus, Phase, ResidentExperts,
    SetDrainRequest, SetDrainResponse, SetPlacementRequest, SetPlacementResponse, WorkerStatus,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::config::Switch;
use crate::context::Context;
use crate::state::State;

/// How long SetPlacement waits for a worker that is still reading the checkpoint's headers.
const HEADERS_WAIT: Duration = Duration::from_secs(3);

/// Status, placement and drain of one worker.
#[derive(Clone, Debug)]
pub struct AdminService(pub Arc<Context>);

impl AdminService {
    fn status(&self) -> WorkerStatus {
        let context = &self.0;
        let state = context.shared.get();
        let State { phase, message, reason, card, epoch, prepared, retired, prepare_error, draining, ranks } =
            state;
        let (load_bytes_done, load_bytes_total) = context.shared.loaded();
        let (prepare_bytes_done, prepare_bytes_total) = context.shared.prepared();
        let group = context.group.load();
        let cache = context.engine_stats().map(|stats| (stats.kv_bytes as u64, stats.kv_bytes_limit as u64));
        let (kv_bytes, kv_bytes_limit) = cache.unwrap_or_default();
        let limit = context.ranks.load().as_ref().and_then(|ranks| ranks.limit());
        WorkerStatus {
            group: context.config.group_name().unwrap_or_default().into(),
            revision: context.config.revision.clone(),
            worker: context.config.worker_index,
            uid: context.uid.clone(),
            phase: phase.into(),
            message,
            reason: reason.into(),
            card,
            placement_epoch: epoch,
            load_bytes_done,
            load_bytes_total,
            requests_in_flight: context.shared.in_flight() as u32,
            draining,
            ranks,
            peers: group
                .as_ref()
                .map_or_else(Vec::new, |group| group.peers())
                .into_iter()
                .map(peer)
                .collect(),
            prepared_epoch: prepared,
            retired_epoch: retired,
            prepare_bytes_done,
            prepare_bytes_total,
            prepare_error,
            expert_bytes_limit: limit.unwrap_or(0),
            coverage: group.as_ref().map(|group| coverage(group.coverage())),
            known_epoch: context.membership.with(|member| member.known_epoch()).unwrap_or(0),
            kv_bytes,
            kv_bytes_limit,
            process: context.process.clone(),
        }
    }

    /// Takes an intent. The card comes a moment after the start: an operator may be quicker.
    async fn place(&self, request: &SetPlacementRequest) -> Result<(), Status> {
        let context = &self.0;
        if context.config.group_name().is_none() {
            return Err(Status::failed_precondition("this worker stands alone and holds every expert"));
        }
        let mut states = context.shared.watch();
        let begun = states.wait_for(|state| state.phase != Phase::Starting);
        let began = matches!(timeout(HEADERS_WAIT, begun).await, Ok(Ok(_)));
        match context.membership.accept(request) {
            Some(outcome) => outcome.map_err(refused),
            None if began => {
                let state = context.shared.get();
                Err(Status::failed_precondition(format!("{}: {}", state.reason, state.message)))
            }
            None => Err(Status::unavailable("the checkpoint's headers are not read yet")),
        }
    }

    fn inject(&self, request: &InjectRequest) -> Result<(), Status> {
        let context = &self.0;
        if context.config.fault_injection != Switch::On {
            return Err(Status::permission_denied(
                "this worker was not started with fault injection (BELAY_FAULT_INJECTION=on)",
            ));
        }
        let fault = match request.fault() {
            WireFault::Exit => {
                tracing::warn!("fault injection: exit");
                // as if killed: nothing is drained, nothing is closed
                std::process::abort();
            }
            WireFault::None => Fault::None,
            WireFault::Slow => {
                Fault::Slow(Duration::from_millis(u64::from(request.delay_milliseconds.max(1))))
            }
            WireFault::Partition => Fault::Partition(request.workers.clone()),
        };
        let group = context.group.load_full();
        let group = group.ok_or_else(|| Status::failed_precondition("this worker has no peers"))?;
        tracing::warn!(?fault, seconds = request.seconds, "fault injection");
        let ends = fault != Fault::None && request.seconds > 0;
        let number = context.faults.fetch_add(1, Ordering::Relaxed) + 1;
        group.inject(fault);
        if ends {
            let seconds = Duration::from_secs(u64::from(request.seconds));
            let context = Arc::clone(context);
            tokio::spawn(async move {
                tokio::time::sleep(seconds).await;
                // a later fault has a time of its own
                if context.faults.load(Ordering::Relaxed) == number {
                    group.inject(Fault::None);
                }
            });
        }
        Ok(())
    }

    fn load(&self) -> ExpertLoad {
        let (group, alone) = (self.0.group.load(), self.0.alone.load());
        let loads = group.as_ref().map(|group| group.loads());
        let Some(Loads { half_life, layers }) = loads.or_else(|| alone.as_ref().map(|alone| alone.loads()))
        else {
            return ExpertLoad::default();
        };
        let layers = layers.into_iter().map(|millitokens| LayerLoad { millitokens }).collect();
        ExpertLoad { layers, half_life_seconds: half_life.as_secs_f64() }
    }
}

fn peer(peer: PeerState) -> PeerStatus {
    let health = match peer.health {
        Health::Live => PeerHealth::Live,
        Health::Suspect => PeerHealth::Suspect,
        Health::Lost => PeerHealth::Lost,
    };
    PeerStatus {
        worker: peer.worker,
        connected: peer.health == Health::Live,
        message: peer.message,
        health: health.into(),
    }
}

fn coverage(coverage: belay_fabric::Coverage) -> Coverage {
    Coverage {
        epoch: coverage.epoch,
        experts: coverage.experts,
        uncovered: coverage.uncovered,
        min_live_copies: coverage.min_live,
        adopted: coverage.adopted,
        uncovered_milliseconds: coverage.uncovered_for.as_millis() as u64,
        silent_milliseconds: coverage.silent_for.as_millis() as u64,
    }
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Malformed(why) => Status::invalid_argument(why),
        other => Status::failed_precondition(other.to_string()),
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<WorkerStatus>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn set_placement(
        &self,
        request: Request<SetPlacementRequest>,
    ) -> Result<Response<SetPlacementResponse>, Status> {
        let request = request.into_inner();
        let epoch = request.in_force.as_ref().map_or(0, |document| document.epoch);
        let outcome = self.place(&request).await;
        if let Err(status) = &outcome {
            tracing::warn!(epoch, reason = status.message(), "refused a placement");
        }
        outcome.map(|()| Response::new(SetPlacementResponse {}))
    }

    async fn get_expert_load(
        &self,
        _request: Request<GetExpertLoadRequest>,
    ) -> Result<Response<ExpertLoad>, Status> {
        Ok(Response::new(self.load()))
    }

    async fn get_experts(
        &self,
        _request: Request<GetExpertsRequest>,
    ) -> Result<Response<ResidentExperts>, Status> {
        let ranks = self.0.ranks.load().as_ref().map_or_else(Vec::new, |ranks| ranks.bits());
        Ok(Response::new(ResidentExperts { ranks }))
    }

    async fn inject(&self, request: Request<InjectRequest>) -> Result<Response<InjectResponse>, Status> {
        self.inject(request.get_ref()).map(|()| Response::new(InjectResponse {}))
    }

    async fn set_drain(
        &self,
        request: Request<SetDrainRequest>,
    ) -> Result<Response<SetDrainResponse>, Status> {
        let draining = request.into_inner().draining;
        self.0.shared.change(|state| state.draining = draining);
        tracing::info!(draining, in_flight = self.0.shared.in_flight(), "drain");
        Ok(Response::new(SetDrainResponse { requests_in_flight: self.0.shared.in_flight() as u32 }))
    }
}
