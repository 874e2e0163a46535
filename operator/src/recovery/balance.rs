//! Whether load should be spread anew, and whether that has helped.
use std::time::Duration;

use belay_crds::RebalancePolicy;
use belay_epoch::{Kind, conductor::Wanted};
use belay_proto::admin::Placement;
use k8s_openapi::jiff::Timestamp;

use super::wanted::Ask;
use crate::{
    group::Group,
    placement::{
        Fleet, Model, Worker, imbalance_percent,
        rebalance::{Decision, Price, Terms, chance_percent, decide},
    },
    reconcile::validate::Experts,
};

/// A rebalance that is worth it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The placement.
    pub wanted: Wanted,
    /// Imbalance now, in percent.
    pub before_percent: u32,
    /// Imbalance with it, for the same load.
    pub after_percent: u32,
    /// Bytes of experts to load for it.
    pub bytes: u64,
    /// Value of the annotation that asked for it.
    pub asked: Option<String>,
}

/// Half-lives of the load after which what a rebalance has brought is measured: what was counted before it is an eighth.
const MEASURED_AFTER: f64 = 3.0;

/// What chance may add to an imbalance that is told, in percent.
const NOISE_PERCENT: f64 = 25.0;

/// Part of all copies that one rebalance may load, in percent.
const MOST_MOVES_PERCENT: u64 = 25;

/// Imbalance from which a rebalance that was asked for is made, in percent. Whoever asks has a reason.
const ASKED_PERCENT: u32 = 105;

/// For how long one that was asked for counts as a gain.
const ASKED_SECONDS: u32 = 86_400;

/// The rebalance that a group needs now.
///
/// # Errors
/// Why there is none.
pub fn propose(ask: &Ask<'_>, spec: &Experts, asked: bool) -> Result<Proposal, String> {
    let wished = asked && spec.policy != RebalancePolicy::Off;
    if !wished && spec.policy != RebalancePolicy::OnImbalance {
        return Err("spec.experts.rebalance.policy does not allow it".to_owned());
    }
    let in_force = ask.group.placement().ok_or("there is no placement")?;
    let counted = ask.group.load.as_ref().ok_or("no load was counted")?;
    if !wished && counted.measured != ask.now {
        return Err("the load was looked at before".to_owned());
    }
    let load = &counted.load;
    let (model, fleet) = (model_of(in_force), fleet_in_force(ask, in_force));
    let copies: u64 =
        in_force.layers.iter().flat_map(|layer| &layer.experts).map(|copies| copies.ranks.len() as u64).sum();
    let most_moves = (copies * MOST_MOVES_PERCENT / 100).max(1);
    let since_last = ask.group.rebalances.last.as_ref().and_then(|last| since(&last.time, ask.now));
    let interval = if wished { ASKED_SECONDS } else { spec.min_interval_seconds };
    let terms = Terms {
        threshold_percent: if wished { ASKED_PERCENT } else { spec.threshold_percent },
        min_interval: Duration::from_secs(u64::from(interval)),
        since_last: since_last.filter(|_| !wished),
        most_moves: u32::try_from(most_moves).unwrap_or(u32::MAX),
        price: Price::default(),
    };
    match decide(&model, &ask.copies, &fleet, load, &in_force.layers, &terms) {
        Err(error) => Err(error.to_string()),
        Ok(Decision::Hold(hold)) => Err(hold.to_string()),
        Ok(Decision::Move(change)) => {
            let (before, after) = (change.before_percent, change.after_percent);
            let why = if wished { "was asked for" } else { "exceeds the threshold" };
            let wanted = Wanted {
                group: in_force.group.clone(),
                revision: in_force.revision.clone(),
                ranks_per_worker: in_force.ranks_per_worker,
                workers: in_force.workers.clone(),
                layers: change.planned.layers,
                expert_bytes: in_force.expert_bytes,
                kind: Kind::Rebalance,
                reason: format!("an imbalance of {before}% {why}; it becomes {after}%"),
            };
            let asked = spec.asked.clone().filter(|_| wished);
            Ok(Proposal { wanted, before_percent: before, after_percent: after, bytes: change.bytes, asked })
        }
    }
}

fn since(time: &str, now: Timestamp) -> Option<Duration> {
    let time: Timestamp = time.parse().ok()?;
    Some(Duration::from_secs(u64::try_from(now.as_second() - time.as_second()).unwrap_or(0)))
}

/// The model of a placement.
pub fn model_of(placement: &Placement) -> Model {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    Model {
        layers: count(placement.layers.len()),
        experts: count(placement.layers.first().map_or(0, |layer| layer.experts.len())),
        expert_bytes: placement.expert_bytes,
    }
}

/// Whether the load that a group has was counted since its last rebalance.
pub fn is_measured(group: &Group, now: Timestamp) -> bool {
    let (Some(last), Some(load), Some(in_force)) = (&group.rebalances.last, &group.load, group.placement())
    else {
        return false;
    };
    let Ok(since) = last.time.parse::<Timestamp>() else { return false };
    let elapsed = now.as_second().saturating_sub(since.as_second()) as f64;
    last.measured_percent.is_none()
        && last.epoch == in_force.epoch
        && load.measured >= since
        && elapsed >= MEASURED_AFTER * load.half_life_seconds
}

/// The imbalance of what is in force, in percent, if so much was counted that it is not mere chance.
pub fn measured_imbalance(ask: &Ask<'_>) -> Option<u32> {
    let (placement, load) = (ask.group.placement()?, &ask.group.load.as_ref()?.load);
    let fleet = fleet_in_force(ask, placement);
    let noise = chance_percent(load, &model_of(placement), &fleet) - 100.0;
    (noise <= NOISE_PERCENT).then(|| imbalance_percent(&placement.layers, Some(load), &fleet))
}

/// The workers as the placement in force knows them.
fn fleet_in_force(ask: &Ask<'_>, placement: &Placement) -> Fleet {
    let workers = placement.workers.iter().map(|worker| {
        let pod = ask.group.pod(worker.index);
        Worker {
            usable: pod.is_some_and(|pod| pod.uid == worker.uid && pod.present()),
            bytes_limit: (worker.expert_bytes_limit > 0).then_some(worker.expert_bytes_limit),
            host: pod.and_then(|pod| pod.node.clone()),
            domain: pod.and_then(|pod| pod.domain.clone()),
        }
    });
    Fleet { workers: workers.collect(), ranks_per_worker: placement.ranks_per_worker }
}
