//! `belay.admin.v1.Admin`, for the operator.

use std::sync::Arc;
use std::time::Duration;

use belay_proto::admin::admin_server::Admin;
use belay_proto::admin::{
    GetStatusRequest, ModelCard, PeerStatus, Phase, SetDrainRequest, SetDrainResponse, SetPlacementRequest,
    SetPlacementResponse, WorkerStatus,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::placement::{self, PlacementRefusal};
use crate::state::State;

/// How long SetPlacement waits for a worker that is still reading the checkpoint's headers.
const HEADERS_WAIT: Duration = Duration::from_secs(3);

/// Status, placement and drain of one worker.
#[derive(Clone, Debug)]
pub struct AdminService(pub Arc<Context>);

impl AdminService {
    fn status(&self) -> WorkerStatus {
        let context = &self.0;
        let State { phase, message, reason, card, epoch, draining, ranks } = context.shared.get();
        let (load_bytes_done, load_bytes_total) = context.shared.loaded();
        let peers = context.group.load().as_ref().map_or_else(Vec::new, |group| group.peers());
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
            peers: peers
                .into_iter()
                .map(|peer| PeerStatus {
                    worker: peer.worker,
                    connected: peer.connected,
                    message: peer.message,
                })
                .collect(),
        }
    }

    /// The card, which comes a moment after the start: a placement may be quicker.
    async fn card(&self) -> Result<ModelCard, Status> {
        let mut states = self.0.shared.watch();
        let opened = states.wait_for(|state| state.card.is_some() || state.phase == Phase::Failed);
        match timeout(HEADERS_WAIT, opened).await {
            Ok(Ok(state)) => state
                .card
                .clone()
                .ok_or_else(|| Status::failed_precondition(format!("{}: {}", state.reason, state.message))),
            _ => Err(Status::unavailable("the checkpoint's headers are not read yet")),
        }
    }

    async fn place(&self, document: belay_proto::admin::Placement) -> Result<(), Status> {
        let context = &self.0;
        let Some(slot) = context.slot() else {
            return Err(Status::failed_precondition("this worker stands alone and holds every expert"));
        };
        placement::accept(&document, &slot, &self.card().await?).map_err(refused)?;
        let mut outcome = Ok(());
        // decided under the lock of the watch: of two calls at once, the older one can't win
        context.placement.send_if_modified(|current| {
            outcome = placement::follows(&document, current.as_deref());
            let is_new = outcome.is_ok() && current.as_deref() != Some(&document);
            if is_new {
                *current = Some(Arc::new(document));
            }
            is_new
        });
        outcome.map_err(refused)
    }
}

fn refused(refusal: PlacementRefusal) -> Status {
    match refusal {
        PlacementRefusal::NotForThisWorker(why) => Status::failed_precondition(why),
        PlacementRefusal::Malformed(why) => Status::invalid_argument(why),
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
        let document =
            request.into_inner().placement.ok_or_else(|| Status::invalid_argument("placement: missing"))?;
        let (epoch, outcome) = (document.epoch, self.place(document).await);
        if let Err(status) = &outcome {
            tracing::warn!(epoch, reason = status.message(), "refused a placement");
        }
        outcome.map(|()| Response::new(SetPlacementResponse {}))
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
