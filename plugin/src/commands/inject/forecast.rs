//! What a fault will do to a group, told before it is injected. Pure.
use belay_proto::admin::{Fault, InjectRequest};

use crate::{
    answers::WorkerPod,
    picture::{
        units::{count, ranges, seconds},
        view::GroupView,
    },
};

/// Sentences for the person who is about to confirm.
pub fn forecast(group: &GroupView, pod: &WorkerPod, request: &InjectRequest) -> Vec<String> {
    let ranks: Vec<u32> =
        group.ranks.iter().filter(|rank| rank.worker == pod.worker).map(|rank| rank.rank).collect();
    let copies: u64 =
        group.ranks.iter().filter(|r| r.worker == pod.worker).map(|r| u64::from(r.copies)).sum();
    let node = if pod.node.is_empty() { "no node" } else { &pod.node };
    let mut lines = vec![format!(
        "Group {}, worker {}: pod {} on {node}, {} {}, {}.",
        group.name,
        pod.worker,
        pod.name,
        if ranks.len() == 1 { "rank" } else { "ranks" },
        ranges(&ranks),
        count(copies, "expert copy", "expert copies"),
    )];
    let sole = u64::from(group.sole_copies(pod.worker));
    let lasting = match request.seconds {
        0 => "until `inject none`".to_owned(),
        length => format!("for {}", seconds(u64::from(length))),
    };
    match request.fault() {
        Fault::None => lines.push("What was injected before ends.".to_owned()),
        Fault::Exit => {
            lines.push("Its process will end as if killed; requests on it go on at another worker.".to_owned());
            lines.push(survival(sole, group.workers.len()));
            lines.push("The pod's container starts again, loads its share, and rejoins.".to_owned());
        }
        Fault::Slow => lines.push(format!(
            "Each of its answers to a peer will take {} ms longer, {lasting}. Peers ask other copies of its experts \
             where there are any.",
            request.delay_milliseconds
        )),
        Fault::Partition => {
            let from = match request.workers.as_slice() {
                [] => "all other workers".to_owned(),
                [one] => format!("worker {one}"),
                several => {
                    let mut several = several.to_vec();
                    several.sort_unstable();
                    several.dedup();
                    format!("workers {}", ranges(&several))
                }
            };
            lines.push(format!(
                "Nothing will pass between it and {from}, {lasting}. Its connections stay open and silent: first it is \
                 suspect, after some seconds lost."
            ));
            lines.push(survival(sole, group.workers.len()));
        }
    }
    if let Some(operation) = &group.operation {
        let (kind, epoch) = (operation.kind_name(), operation.epoch);
        lines.push(format!("Careful: {kind} to epoch {epoch} is under way; this interrupts it."));
    }
    lines
}

fn survival(sole: u64, workers: usize) -> String {
    match (sole, workers) {
        (_, 0 | 1) => "The group has no other worker: it does not serve meanwhile.".to_owned(),
        (0, _) => "Every expert has another live copy: answers go on at once.".to_owned(),
        (sole, _) => format!(
            "{} a live copy nowhere else: answers wait until survivors have loaded them from the checkpoint.",
            count(sole, "expert has", "experts have")
        ),
    }
}
