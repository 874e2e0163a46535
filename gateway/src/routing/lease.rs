//! A worker lent to a request.
use std::{sync::Arc, time::Instant};

use tonic::transport::Channel;

use crate::{discovery::Worker, measure::Burden};

use super::{Fleet, Route, live::Live};

/// One request on one worker. Counts towards its load until dropped.
pub struct Lease {
    fleet: Arc<Fleet>,
    worker: Arc<Live>,
    epoch: u64,
    stage: Stage,
    /// On the worker and on the model.
    burden: Burden<2>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Accepted,
    Served,
    Failed,
}

impl Lease {
    pub(super) fn new(fleet: Arc<Fleet>, worker: Arc<Live>, route: &Route) -> Self {
        let burden = Burden::new([worker.load.clone(), route.meter.outstanding.clone()], route.work);
        let epoch = worker.circuit().take();
        Self { fleet, worker, epoch, stage: Stage::Asked, burden }
    }

    /// The worker's channel.
    pub fn channel(&self) -> Channel {
        self.worker.channel.clone()
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker.info
    }

    /// Whether the worker took the request.
    pub fn is_accepted(&self) -> bool {
        matches!(self.stage, Stage::Accepted | Stage::Served)
    }

    /// The worker took the request.
    pub fn accepted(&mut self) {
        if self.stage == Stage::Asked {
            self.stage = Stage::Accepted;
            if self.worker.circuit().accepted(self.epoch) {
                self.fleet.wake_waiting();
            }
        }
    }

    /// So many tokens came: what the request has still to do shrinks.
    pub fn produced(&mut self, tokens: usize) {
        self.burden.produced(tokens as u64);
    }

    /// The worker answered something useful.
    pub fn served(&mut self) {
        self.accepted();
        if self.stage == Stage::Accepted {
            self.stage = Stage::Served;
            self.worker.circuit().served(self.epoch);
        }
    }

    /// The worker is not able to serve: it rests.
    pub fn failed(&mut self) {
        self.stage = Stage::Failed;
        if self.worker.circuit().failed(self.epoch, Instant::now()) {
            self.fleet.wake_waiting();
        }
        self.fleet.notice_failure();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.stage == Stage::Asked && self.worker.circuit().abandoned(self.epoch) {
            self.fleet.wake_waiting();
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("worker", &self.worker.info.name).field("stage", &self.stage).finish()
    }
}
