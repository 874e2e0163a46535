//! The placement that a group should have.
//!
//! Experts stay where they are unless something asks for a change: a worker that has another pod, that is gone for long,
//! that is about to leave, or a spec that asks for other copies. While a slot waits for its next pod nothing moves at all.
use belay_crds::Reason;
use belay_epoch::{Kind, Phase, conductor::Wanted};
use belay_proto::admin::{GroupWorker, LayerPlacement, ModelCard, Placement};
use k8s_openapi::jiff::Timestamp;

use super::{
    GRACE_SECONDS,
    balance::model_of,
    seats::{Attends, attends, entry, held, holds_sole, left_lately, nobody},
    words::describe_ranks,
};
use crate::{
    group::{Group, Trouble, WorkerPod},
    placement::{self, Aim, Copies, Fleet, Model, PlacementError, Planned, Worker},
};

/// What is asked.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The group.
    pub group: &'a Group,
    /// Copies that the spec asks for.
    pub copies: Copies,
    /// Ranks of each worker.
    pub ranks_per_worker: u32,
    /// Whether the group is to stay when nodes are emptied.
    pub stays: bool,
    /// Time.
    pub now: Timestamp,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The placement that should be in force; `None` while that is not known.
    pub wanted: Option<Wanted>,
    /// Whether that is what is in force, every worker is there, and nobody leaves: time for other things.
    pub at_rest: bool,
    /// Copies that the spec asks for and that are not in it.
    pub short: u32,
    /// What stands in the way.
    pub problem: Option<Trouble>,
}

/// What keeps a group from having any placement, whatever happens to its workers: they read different checkpoints, or the
/// numbers of the spec do not fit the model.
pub fn obstacle(ask: &Ask<'_>) -> Option<Trouble> {
    if let Some(message) = disagreement(ask.group) {
        return Some(Trouble { reason: Reason::CheckpointMismatch, message });
    }
    let (_, card) = cards(ask.group).next()?;
    if ask.group.placement().is_some() {
        return None;
    }
    let fleet = Fleet::new(u32::try_from(ask.group.slots.len()).unwrap_or(u32::MAX), ask.ranks_per_worker);
    let plan = placement::plan(&Model::from(card), &ask.copies, &fleet, None, None, Aim::Repair);
    plan.err().and_then(|error| trouble(&error))
}

/// Decides where the experts of a group should be.
pub fn want(ask: &Ask<'_>) -> Decision {
    let problem = obstacle(ask);
    if problem.is_some() {
        return Decision { problem, ..Decision::default() };
    }
    let decided = match ask.group.placement() {
        None => first(ask),
        Some(in_force) => later(ask, in_force),
    };
    decided.unwrap_or_else(|error| Decision { problem: trouble(&error), ..Decision::default() })
}

fn trouble(error: &PlacementError) -> Option<Trouble> {
    let reason = match error {
        PlacementError::MoreRanksThanExperts { .. } => Reason::MoreRanksThanExperts,
        PlacementError::DoesNotFit { .. } => Reason::NoRoom,
        PlacementError::NoLayers => Reason::CheckpointInvalid,
        // all workers are gone, which is told anyway
        PlacementError::NoUsableRank => return None,
    };
    Some(Trouble { reason, message: error.to_string() })
}

fn cards(group: &Group) -> impl Iterator<Item = (&WorkerPod, &ModelCard)> {
    group.pods().filter_map(|(_, pod)| Some((pod, pod.status()?.card.as_ref()?)))
}

fn disagreement(group: &Group) -> Option<String> {
    let (first, card) = cards(group).next()?;
    let (other, _) = cards(group).find(|(_, other)| other.digest != card.digest)?;
    Some(format!("{} and {} read different checkpoints", first.name, other.name))
}

/// The first placement: as soon as every worker is there and has read its checkpoint.
fn first(ask: &Ask<'_>) -> Result<Decision, PlacementError> {
    let group = ask.group;
    let workers: Option<Vec<&WorkerPod>> = group
        .slots
        .iter()
        .map(|slot| {
            slot.as_ref().filter(|pod| pod.present() && pod.status().is_some_and(|s| s.card.is_some()))
        })
        .collect();
    let (Some(pods), Some((_, card))) = (workers, cards(group).next()) else {
        return Ok(Decision::default());
    };
    let entries: Vec<GroupWorker> = (0u32..).zip(pods).map(|(index, pod)| entry(index, pod, None)).collect();
    let fleet = fleet(ask, &entries, |_| true);
    let planned = placement::plan(&Model::from(card), &ask.copies, &fleet, None, None, Aim::Repair)?;
    let wanted = document(
        ask,
        entries,
        planned.layers,
        card.expert_bytes,
        Kind::Recover,
        "first placement".to_owned(),
    );
    Ok(Decision { wanted: Some(wanted), short: planned.short, ..Decision::default() })
}

/// A later one.
fn later(ask: &Ask<'_>, in_force: &Placement) -> Result<Decision, PlacementError> {
    let group = ask.group;
    let attends: Vec<Attends> =
        (0u32..).zip(&group.slots).map(|(index, _)| attends(group, index, ask.now)).collect();
    let present = |index: u32| attends.get(index as usize) == Some(&Attends::Present);
    let mut entries: Vec<GroupWorker> = (0u32..)
        .zip(&attends)
        .map(|(index, attends)| match (attends, group.pod(index)) {
            (Attends::Present, Some(pod)) => entry(index, pod, Some(in_force)),
            (Attends::Awaited, _) => {
                in_force.workers.get(index as usize).cloned().unwrap_or_else(|| nobody(index))
            }
            _ => nobody(index),
        })
        .collect();

    let mut decision = Decision::default();
    let planned = if attends.contains(&Attends::Awaited) {
        Planned {
            layers: in_force.layers.clone(),
            moves: vec![],
            short: short(&in_force.layers, ask.copies, attends.len()),
        }
    } else {
        let (planned, problem) = spread(ask, in_force, &entries, &present)?;
        decision.problem = problem;
        planned
    };
    decision.short = planned.short;
    let unchanged = planned.layers == in_force.layers;
    if !unchanged || entries != in_force.workers {
        // a change for another reason must not wait for who is not there: its ranks keep their experts, unnamed
        for (worker, attends) in entries.iter_mut().zip(&attends) {
            if *attends == Attends::Awaited && !lives(ask, worker) {
                *worker = nobody(worker.index);
            }
        }
    }
    if unchanged && let Some(wanted) = rebalance_goes_on(group, &entries) {
        decision.wanted = Some(wanted);
        return Ok(decision);
    }
    let (kind, reason) = why(ask, in_force, &entries, &planned.layers, &present);
    decision.at_rest = unchanged
        && entries == in_force.workers
        && attends.iter().all(|attends| *attends == Attends::Present)
        && decision.problem.is_none();
    let bytes = if in_force.expert_bytes > 0 {
        in_force.expert_bytes
    } else {
        // written before it was part of the document
        cards(group).next().map_or(0, |(_, card)| card.expert_bytes)
    };
    let bytes = if unchanged && entries == in_force.workers { in_force.expert_bytes } else { bytes };
    decision.wanted = Some(document(ask, entries, planned.layers, bytes, kind, reason));
    Ok(decision)
}

/// Plans anew for the workers that are there.
fn spread(
    ask: &Ask<'_>,
    in_force: &Placement,
    entries: &[GroupWorker],
    present: &dyn Fn(u32) -> bool,
) -> Result<(Planned, Option<Trouble>), PlacementError> {
    let model = model_of(in_force);
    let per_worker = in_force.ranks_per_worker;
    let plan = |barred: &[u32]| {
        let fleet = fleet(ask, entries, |index| present(index) && !barred.contains(&index));
        placement::plan(&model, &ask.copies, &fleet, None, Some(&in_force.layers), Aim::Refill)
    };
    let indices = 0..u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let leaves = |index: &u32| {
        let empty = held(&in_force.layers, per_worker, *index) == 0;
        let sole = || holds_sole(&in_force.layers, per_worker, *index, present);
        let leaving = ask.group.pod(*index).is_some_and(WorkerPod::leaving);
        let moves = (leaving && (empty || sole())) || (empty && left_lately(ask.group, *index, ask.now));
        ask.stays && present(*index) && moves
    };
    let leaving: Vec<u32> = indices.clone().filter(leaves).collect();
    let stuck = |planned: &Planned, gone: &dyn Fn(u32) -> bool| -> Option<Trouble> {
        let index =
            indices.clone().find(|&index| gone(index) && held(&planned.layers, per_worker, index) > 0)?;
        let copies = held(&planned.layers, per_worker, index);
        let bytes = copies.saturating_mul(model.expert_bytes);
        let pod = belay_crds::labels::pod_name(&ask.group.name, index);
        let message = format!(
            "the other workers have no room for {copies} experts ({bytes} bytes) of worker {index} (pod {pod})"
        );
        Some(Trouble { reason: Reason::NoRoom, message })
    };
    let gone = |index: u32| !present(index);
    if leaving.is_empty() {
        let planned = plan(&[])?;
        let problem = stuck(&planned, &gone);
        return Ok((planned, problem));
    }
    // all that leave at once, if the others have room; else one after the other
    let first = leaving.get(..1).unwrap_or_default();
    let mut refused = None;
    for barred in [leaving.as_slice(), first] {
        match plan(barred) {
            Ok(planned) => match stuck(&planned, &|index| gone(index) || barred.contains(&index)) {
                None => return Ok((planned, None)),
                problem => refused = problem,
            },
            Err(error) => {
                let pod = belay_crds::labels::pod_name(&ask.group.name, first.first().copied().unwrap_or(0));
                let message = format!("the experts of pod {pod} cannot move to other workers: {error}");
                refused = Some(Trouble { reason: Reason::NoRoom, message });
            }
        }
    }
    // what has left already stays where it went
    let empty: Vec<u32> =
        leaving.into_iter().filter(|index| held(&in_force.layers, per_worker, *index) == 0).collect();
    Ok((plan(&empty)?, refused))
}

/// Whether the worker of an entry may still be alive: then it is waited for.
fn lives(ask: &Ask<'_>, worker: &GroupWorker) -> bool {
    let members = ask.group.members(GRACE_SECONDS, ask.now);
    members.iter().any(|member| member.index == worker.index && member.uid == worker.uid && member.lives)
}

fn fleet(ask: &Ask<'_>, entries: &[GroupWorker], usable: impl Fn(u32) -> bool) -> Fleet {
    let workers = entries.iter().map(|entry| {
        let pod = ask.group.pod(entry.index);
        Worker {
            usable: usable(entry.index),
            bytes_limit: (entry.expert_bytes_limit > 0).then_some(entry.expert_bytes_limit),
            host: pod.and_then(|pod| pod.node.clone()),
            domain: pod.and_then(|pod| pod.domain.clone()),
        }
    });
    Fleet { workers: workers.collect(), ranks_per_worker: ask.ranks_per_worker }
}

fn document(
    ask: &Ask<'_>,
    workers: Vec<GroupWorker>,
    layers: Vec<LayerPlacement>,
    expert_bytes: u64,
    kind: Kind,
    reason: String,
) -> Wanted {
    Wanted {
        group: ask.group.name.clone(),
        revision: ask.group.revision.clone(),
        ranks_per_worker: ask.ranks_per_worker,
        workers,
        layers,
        expert_bytes,
        kind,
        reason,
    }
}

/// A rebalance that is being prepared goes on as it was decided, as long as the same workers are there.
fn rebalance_goes_on(group: &Group, entries: &[GroupWorker]) -> Option<Wanted> {
    let operation = group.intent.operation.as_ref()?;
    let target = operation.target.as_ref()?;
    let same =
        operation.kind == Kind::Rebalance && operation.phase == Phase::Prepare && target.workers == entries;
    same.then(|| Wanted {
        group: target.group.clone(),
        revision: target.revision.clone(),
        ranks_per_worker: target.ranks_per_worker,
        workers: target.workers.clone(),
        layers: target.layers.clone(),
        expert_bytes: target.expert_bytes,
        kind: operation.kind,
        reason: operation.reason.clone(),
    })
}

/// Why placements change, and in words.
fn why(
    ask: &Ask<'_>,
    in_force: &Placement,
    entries: &[GroupWorker],
    layers: &[LayerPlacement],
    present: &dyn Fn(u32) -> bool,
) -> (Kind, String) {
    let per_worker = in_force.ranks_per_worker;
    let of = |index: u32| {
        let pod = belay_crds::labels::pod_name(&ask.group.name, index);
        format!("worker {index} (pod {pod}, {})", describe_ranks(index, per_worker))
    };
    let others = entries.iter().zip(&in_force.workers).filter(|(now, before)| now != before);
    let changed: Vec<String> = others
        .map(|(now, _)| match now.uid.is_empty() {
            true => format!("{} is gone", of(now.index)),
            false => format!("{} is back", of(now.index)),
        })
        .collect();
    if !changed.is_empty() {
        return (Kind::Recover, listed(&changed));
    }
    let had = |index: u32| held(&in_force.layers, per_worker, index);
    let has = |index: u32| held(layers, per_worker, index);
    let indices = || entries.iter().map(|entry| entry.index);
    let emptied: Vec<String> = indices()
        .filter(|&index| had(index) > 0 && has(index) == 0 && present(index))
        .map(|index| {
            let pod = ask.group.pod(index);
            let why = match pod.and_then(|pod| pod.fault.as_ref()) {
                Some(_) if pod.is_some_and(|pod| !pod.node_leaving) => "a device is faulty".to_owned(),
                _ => format!(
                    "node {} is being emptied",
                    pod.and_then(|pod| pod.node.as_deref()).unwrap_or("?")
                ),
            };
            format!("{why}: experts of {} move to other workers", of(index))
        })
        .collect();
    if !emptied.is_empty() {
        return (Kind::Evacuate, listed(&emptied));
    }
    let filled: Vec<String> = indices()
        .filter(|&index| had(index) == 0 && has(index) > 0)
        .map(|index| format!("{} takes experts again", of(index)))
        .collect();
    if !filled.is_empty() {
        return (Kind::Recover, listed(&filled));
    }
    let lost: Vec<String> = indices()
        .filter(|&index| had(index) > 0 && has(index) == 0)
        .map(|index| format!("{} is gone: its experts go to other workers", of(index)))
        .collect();
    if !lost.is_empty() {
        return (Kind::Recover, listed(&lost));
    }
    let Copies { min, redundant } = ask.copies;
    (
        Kind::Respecify,
        format!("spec.experts asks for {min} copies of each expert and {redundant} more in each layer"),
    )
}

fn listed(parts: &[String]) -> String {
    const LISTED: usize = 3;
    let mut text = parts.get(..LISTED.min(parts.len())).unwrap_or_default().join("; ");
    if parts.len() > LISTED {
        text.push_str(&format!("; and {} more", parts.len() - LISTED));
    }
    text
}

/// Copies that are missing of the asked minimum.
fn short(layers: &[LayerPlacement], copies: Copies, workers: usize) -> u32 {
    let min = copies.min.min(u32::try_from(workers).unwrap_or(u32::MAX));
    let missing = layers
        .iter()
        .flat_map(|layer| &layer.experts)
        .map(|copies| u64::from(min).saturating_sub(copies.ranks.len() as u64))
        .sum::<u64>();
    u32::try_from(missing).unwrap_or(u32::MAX)
}
