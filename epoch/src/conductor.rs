//! The operator's side: which intent to write next, and whom to tell what.
//!
//! All that is remembered is the [`Intent`] in the API server. An operator reads it, calls [`next`], writes the result under
//! an optimistic lock if it differs, and only then sends [`requests`] of what it wrote. So intents have one order,
//! whoever wrote them, and a leader that was replaced can do no more than repeat old requests, which workers refuse.

use belay_proto::admin::{GroupWorker, LayerPlacement, Placement, SetPlacementRequest, WorkerStatus};

use crate::{Intent, Kind, Operation, Phase, document};

/// The pod of a slot at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Index of the worker in its group.
    pub index: u32,
    /// UID of the pod.
    pub uid: String,
    /// The pod exists, does not terminate for good, and its node is not lost.
    pub lives: bool,
    /// What its worker says. `None` if it does not answer, or has failed for good.
    pub status: Option<MemberStatus>,
}

/// What a worker says about its placements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Epoch that it uses; 0 for none.
    pub in_force: u64,
    /// Epoch of the newest placement whose copies are all there; 0 for none.
    pub prepared: u64,
    /// Epoch of the newest placement that nothing but its copies is held for; 0 for none.
    pub retired: u64,
    /// The highest epoch that it was told of, in force or target; 0 for none.
    pub known: u64,
    /// Bytes of the target that are loaded.
    pub prepare_bytes_done: u64,
    /// Bytes of the target that were missing when it came.
    pub prepare_bytes_total: u64,
    /// Why the target cannot be prepared there.
    pub prepare_error: Option<String>,
}

impl From<&WorkerStatus> for MemberStatus {
    fn from(status: &WorkerStatus) -> Self {
        Self {
            in_force: status.placement_epoch,
            prepared: status.prepared_epoch,
            retired: status.retired_epoch,
            known: status.known_epoch,
            prepare_bytes_done: status.prepare_bytes_done,
            prepare_bytes_total: status.prepare_bytes_total,
            prepare_error: (!status.prepare_error.is_empty()).then(|| status.prepare_error.clone()),
        }
    }
}

/// The placement that should be in force, without its epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Group name.
    pub group: String,
    /// Revision.
    pub revision: String,
    /// Ranks of each worker.
    pub ranks_per_worker: u32,
    /// By index, one for each worker of the group.
    pub workers: Vec<GroupWorker>,
    /// By layer.
    pub layers: Vec<LayerPlacement>,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Why placements change, if this is a change.
    pub kind: Kind,
    /// For people.
    pub reason: String,
}

impl Wanted {
    /// The document under an epoch.
    #[must_use]
    pub fn placement(&self, epoch: u64) -> Placement {
        Placement {
            epoch,
            group: self.group.clone(),
            revision: self.revision.clone(),
            ranks_per_worker: self.ranks_per_worker,
            workers: self.workers.clone(),
            layers: self.layers.clone(),
            expert_bytes: self.expert_bytes,
        }
    }

    fn says(&self, document: &Placement) -> bool {
        self.group == document.group
            && self.revision == document.revision
            && self.ranks_per_worker == document.ranks_per_worker
            && self.expert_bytes == document.expert_bytes
            && self.workers == document.workers
            && self.layers == document.layers
    }
}

/// The intent to write; equal to the old one if nothing is to be changed. One step at a time.
///
/// `members` are the pods of the slots now, at most one for each. `highest_seen_epoch` is the highest that anybody reported,
/// members included or not. `wanted` is `None` while that is not known: then an operation goes on, and none begins.
/// `now` is the time, RFC 3339.
///
/// The first placement is in force at once. So is one after the intent was lost (somebody was told of a later epoch than
/// it names), but as an operation from Commit on, so that copies of what was used before stay until all use it.
///
/// An operation is never given up for nothing: if what is in force is wanted again, that becomes the target under an epoch of
/// its own. Its copies are there, so it takes a moment; and an epoch that was told to somebody never means anything else.
#[must_use]
pub fn next(
    intent: &Intent,
    wanted: Option<&Wanted>,
    members: &[Member],
    highest_seen_epoch: u64,
    now: &str,
) -> Intent {
    let new_epoch = highest_epoch(intent, members).max(highest_seen_epoch) + 1;
    let Some(in_force) = intent.in_force.as_ref().filter(|_| !is_outdated(intent, members)) else {
        return wanted.map_or_else(|| intent.clone(), |wanted| at_once(wanted, members, new_epoch, now));
    };
    let prepare = |wanted: &Wanted| Intent {
        in_force: Some(in_force.clone()),
        operation: Some(begin(wanted, new_epoch, Phase::Prepare, now)),
    };
    let Some(operation) = &intent.operation else {
        return wanted.filter(|wanted| !wanted.says(in_force)).map_or_else(|| intent.clone(), prepare);
    };
    let go_on = |in_force: &Placement, phase| Intent {
        in_force: Some(in_force.clone()),
        operation: Some(Operation { phase, target: None, ..operation.clone() }),
    };
    match operation.phase {
        Phase::Prepare => {
            let target = operation.target.as_ref();
            if let Some(wanted) = wanted.filter(|wanted| !target.is_some_and(|target| wanted.says(target))) {
                return prepare(wanted);
            }
            let prepared = target.filter(|target| is_prepared(target, members));
            prepared.map_or_else(|| intent.clone(), |target| go_on(target, Phase::Commit))
        }
        Phase::Commit if is_committed(in_force, members) => go_on(in_force, Phase::Retire),
        Phase::Retire if is_retired(in_force, members) => {
            Intent { in_force: Some(in_force.clone()), operation: None }
        }
        Phase::Commit | Phase::Retire => intent.clone(),
    }
}

fn begin(wanted: &Wanted, epoch: u64, phase: Phase, now: &str) -> Operation {
    Operation {
        epoch,
        kind: wanted.kind,
        phase,
        target: (phase == Phase::Prepare).then(|| wanted.placement(epoch)),
        reason: wanted.reason.clone(),
        started: now.to_owned(),
    }
}

fn at_once(wanted: &Wanted, members: &[Member], epoch: u64, now: &str) -> Intent {
    let anything_to_lose = members.iter().any(|member| uses(member) > 0);
    Intent {
        in_force: Some(wanted.placement(epoch)),
        operation: anything_to_lose.then(|| begin(wanted, epoch, Phase::Commit, now)),
    }
}

/// Somebody was told what this intent does not name, or uses what it has not put in force: it is of the past.
fn is_outdated(intent: &Intent, members: &[Member]) -> bool {
    let in_force = intent.in_force.as_ref().map_or(0, |placement| placement.epoch);
    let ahead = |member: &Member| knows(member) > intent.highest_epoch() || uses(member) > in_force;
    members.iter().any(ahead)
}

fn uses(member: &Member) -> u64 {
    member.status.as_ref().map_or(0, |status| status.in_force)
}

fn knows(member: &Member) -> u64 {
    let status = member.status.as_ref();
    status.map_or(0, |status| status.in_force.max(status.prepared).max(status.known))
}

fn highest_epoch(intent: &Intent, members: &[Member]) -> u64 {
    members.iter().map(knows).max().unwrap_or(0).max(intent.highest_epoch())
}

/// The living pod that a placement means by a slot.
pub(crate) fn living<'a>(placement: &Placement, index: u32, members: &'a [Member]) -> Option<&'a Member> {
    members
        .iter()
        .find(|member| member.index == index)
        .filter(|member| member.lives && document::is_member(placement, index, &member.uid))
}

/// Whether every worker that the target names has its copies.
fn is_prepared(target: &Placement, members: &[Member]) -> bool {
    named(target).all(|index| {
        let status = living(target, index, members).and_then(|member| member.status.as_ref());
        status.is_some_and(|status| status.prepared == target.epoch)
    })
}

/// Whether every living member uses the placement, and nobody who lives an earlier one.
fn is_committed(in_force: &Placement, members: &[Member]) -> bool {
    let reported = named(in_force)
        .filter_map(|index| living(in_force, index, members))
        .all(|member| member.status.as_ref().is_some_and(|status| status.in_force == in_force.epoch));
    reported && !members.iter().any(|member| lags(in_force, member))
}

fn is_retired(in_force: &Placement, members: &[Member]) -> bool {
    named(in_force)
        .filter_map(|index| living(in_force, index, members))
        .all(|member| member.status.as_ref().is_some_and(|status| status.retired >= in_force.epoch))
}

/// Indices of the workers that a placement names with a UID.
pub(crate) fn named(placement: &Placement) -> impl Iterator<Item = u32> + '_ {
    placement.workers.iter().filter(|worker| !worker.uid.is_empty()).map(|worker| worker.index)
}

/// A living pod that routes by an earlier placement; also one that is no member of the new one.
pub(crate) fn lags(in_force: &Placement, member: &Member) -> bool {
    member.lives && uses(member) > 0 && uses(member) < in_force.epoch
}

/// What to send, to living members that lack something of the intent: `(worker index, request)`. All get the same
/// document. Workers that do not answer get nothing; nor do pods that are members of neither placement, unless they use an
/// earlier one, which they shall stop to.
///
/// A worker that is at work on a request still lacks what it asks: the caller may leave out what that worker has taken already.
#[must_use]
pub fn requests(intent: &Intent, members: &[Member]) -> Vec<(u32, SetPlacementRequest)> {
    let Some(request) = request(intent) else { return vec![] };
    let lacking = members.iter().filter(|member| member.lives && lacks(&request, member));
    lacking.map(|member| (member.index, request.clone())).collect()
}

/// The one document that states an intent. Copies beyond what is in force may go whenever no Commit is under way: all that
/// lives uses what is in force by then.
#[must_use]
pub fn request(intent: &Intent) -> Option<SetPlacementRequest> {
    let in_force = intent.in_force.clone()?;
    let phase = intent.operation.as_ref().map(|operation| operation.phase);
    let retire_epoch = if phase == Some(Phase::Commit) { 0 } else { in_force.epoch };
    let target = intent.operation.as_ref().and_then(|operation| operation.target.clone());
    Some(SetPlacementRequest { in_force: Some(in_force), target, retire_epoch })
}

fn lacks(request: &SetPlacementRequest, member: &Member) -> bool {
    let (Some(in_force), Some(status)) = (&request.in_force, &member.status) else { return false };
    let is_member = |placement: &Placement| document::is_member(placement, member.index, &member.uid);
    let target = request.target.as_ref().filter(|target| is_member(target));
    (is_member(in_force) && (status.in_force < in_force.epoch || status.retired < request.retire_epoch))
        || target.is_some_and(|target| status.prepared < target.epoch)
        || lags(in_force, member)
}
