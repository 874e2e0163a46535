//! One worker's attempt to answer a request.
use belay_proto::inference::GenerateResponse;
use belay_telemetry::Span;
use tonic::{Status, Streaming};

use crate::{
    discovery::Worker,
    measure::{self, Outcome},
    routing::{Lease, Route},
};

use super::{Call, Verdict, outcome, verdict};

/// See the module. Dropped, the worker stops.
#[derive(Debug)]
pub(super) struct Attempt {
    lease: Lease,
    pieces: Option<Streaming<GenerateResponse>>,
    measured: measure::Attempt,
}

impl Attempt {
    /// By this worker.
    pub(super) fn new(route: &Route, lease: Lease) -> Self {
        let measured = measure::Attempt::new(route.meter.revision(&lease.worker().revision));
        Self { lease, pieces: None, measured }
    }

    /// The worker.
    pub(super) fn worker(&self) -> &Worker {
        self.lease.worker()
    }

    /// Asks. Ends when the worker has accepted or refused.
    pub(super) async fn ask(&mut self, call: &Call, span: &Span) -> Result<(), Status> {
        self.pieces = Some(call.ask(self.lease.channel(), span).await?);
        self.lease.accepted();
        span.event("asked", "worker", self.worker().name.clone());
        tracing::debug!(request = call.request_id(), worker = self.worker().name, "asked");
        Ok(())
    }

    /// The next piece. A stream that ends is lost: the piece with the finish reason must be the last that is asked for.
    pub(super) async fn piece(&mut self) -> Result<GenerateResponse, Status> {
        let piece = match &mut self.pieces {
            Some(pieces) => pieces.message().await?,
            None => None,
        };
        let piece = piece.ok_or_else(|| Status::unavailable("the stream ended without a finish reason"))?;
        self.lease.served();
        self.lease.produced(piece.ids.len());
        self.measured.piece(&piece);
        Ok(piece)
    }

    /// It answered to the end.
    pub(super) fn finish(self) {
        self.measured.end(Outcome::Served);
    }

    /// It failed in this way. The worker is given back, for whoever decides what it means for the request.
    pub(super) fn fail(self, status: &Status) -> Lease {
        if let Some(outcome) = outcome(status) {
            self.measured.end(outcome);
        }
        self.lease
    }

    /// It failed in this way, which means nothing for the request.
    pub(super) fn give_up(self, status: &Status) {
        let mut lease = self.fail(status);
        if verdict(status) == Verdict::Elsewhere {
            lease.failed();
        }
    }
}
