//! How far an operation is, for status and people.

use std::fmt;

use belay_proto::admin::Placement;

use crate::{
    Intent, Phase,
    conductor::{self, Member},
    document,
};

/// How far an operation is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of new copies that are loaded.
    pub bytes_done: u64,
    /// Bytes of all copies that are new with the target, over all workers.
    pub bytes_total: u64,
    /// Workers that it waits for, by index.
    pub waiting_for: Vec<Waiting>,
}

/// A worker that an operation waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Index of the worker.
    pub worker: u32,
    /// UID of the pod that is meant.
    pub uid: String,
    /// What is awaited.
    pub why: Why,
}

/// What is awaited of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its pod is not there any more, or its node is lost.
    NotLive,
    /// It does not answer.
    Silent,
    /// It cannot load the copies.
    Error(String),
    /// It loads copies.
    Loading {
        /// Bytes that are there.
        done: u64,
        /// Bytes that are new for this worker.
        total: u64,
    },
    /// It still uses an earlier placement, or none.
    Uses {
        /// Epoch in use; 0 for none.
        epoch: u64,
    },
    /// It still holds copies of earlier placements.
    Holds {
        /// Epoch up to which it has dropped what is not needed.
        retired: u64,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "worker {}", self.worker)?;
        match &self.why {
            Why::NotLive => write!(out, ": pod {} is not live", self.uid),
            Why::Silent => write!(out, " does not answer"),
            Why::Error(error) => write!(out, " cannot prepare: {error}"),
            Why::Loading { done, total } => write!(out, " loads: {done} of {total} bytes"),
            Why::Uses { epoch: 0 } => write!(out, " uses no placement yet"),
            Why::Uses { epoch } => write!(out, " still uses epoch {epoch}"),
            Why::Holds { .. } => write!(out, " still holds copies of earlier placements"),
        }
    }
}

/// How far the intent's operation is; `None` without one.
#[must_use]
pub fn progress(intent: &Intent, members: &[Member]) -> Option<Progress> {
    let (operation, in_force) = (intent.operation.as_ref()?, intent.in_force.as_ref()?);
    let leads_to = operation.target.as_ref().unwrap_or(in_force);
    let mut progress = Progress::default();
    for index in conductor::named(leads_to) {
        let total = if operation.phase == Phase::Prepare { new_bytes(in_force, leads_to, index) } else { 0 };
        let done = bytes_done(leads_to, index, members, total);
        progress.bytes_total += total;
        progress.bytes_done += done;
        if let Some(why) = why(operation.phase, leads_to, index, members, (done, total)) {
            let uid = document::uid(leads_to, index).unwrap_or_default().to_owned();
            progress.waiting_for.push(Waiting { worker: index, uid, why });
        }
    }
    let outside = |member: &&Member| conductor::living(leads_to, member.index, members).is_none();
    if operation.phase == Phase::Commit {
        for member in members.iter().filter(outside).filter(|member| conductor::lags(in_force, member)) {
            let epoch = member.status.as_ref().map_or(0, |status| status.in_force);
            progress.waiting_for.push(Waiting {
                worker: member.index,
                uid: member.uid.clone(),
                why: Why::Uses { epoch },
            });
        }
    }
    Some(progress)
}

/// Bytes that a worker has to load when `to` follows `from`; everything if another pod has the slot then.
#[must_use]
pub fn new_bytes(from: &Placement, to: &Placement, worker: u32) -> u64 {
    let stays = document::uid(from, worker) == document::uid(to, worker);
    let held = if stays { document::copies(from, worker) } else { Default::default() };
    document::copies(to, worker).difference(&held).count() as u64 * to.expert_bytes
}

fn bytes_done(leads_to: &Placement, index: u32, members: &[Member], total: u64) -> u64 {
    let member = conductor::living(leads_to, index, members);
    member.and_then(|member| member.status.as_ref()).map_or(0, |status| {
        if status.prepared == leads_to.epoch { total } else { status.prepare_bytes_done.min(total) }
    })
}

fn why(
    phase: Phase,
    leads_to: &Placement,
    index: u32,
    members: &[Member],
    (done, total): (u64, u64),
) -> Option<Why> {
    let Some(member) = conductor::living(leads_to, index, members) else {
        // from Commit on, members that died are not waited for
        return (phase == Phase::Prepare).then_some(Why::NotLive);
    };
    let Some(status) = &member.status else { return Some(Why::Silent) };
    match phase {
        Phase::Prepare if status.prepared == leads_to.epoch => None,
        Phase::Prepare => Some(status.prepare_error.clone().map_or(Why::Loading { done, total }, Why::Error)),
        Phase::Commit => (status.in_force != leads_to.epoch).then_some(Why::Uses { epoch: status.in_force }),
        Phase::Retire => (status.retired < leads_to.epoch).then_some(Why::Holds { retired: status.retired }),
    }
}
