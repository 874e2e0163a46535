//! A played worker: its side of the epoch protocol is the real one, the rest is what the operator can see of it.
use belay_epoch::{
    document::{Copy, Slot},
    member::Member,
};
use belay_proto::admin::{ModelCard, Phase, RankStatus, WorkerStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// What tests set and see of a worker.
#[derive(Clone, Debug)]
pub struct Worker {
    pub node: String,
    pub status: WorkerStatus,
    pub member: Member,
}

impl Worker {
    /// One that has just started in a pod that has a node.
    pub fn of(pod: &Pod, card: &ModelCard) -> Self {
        let spec = pod.spec.as_ref().unwrap();
        let label = |key: &str| pod.labels()[&format!("serving.belay.dev/{key}")].clone();
        let number = |name: &str| -> u32 {
            let env = spec.containers[0].env.as_ref().unwrap();
            let variable = env.iter().find(|variable| variable.name == name).unwrap();
            variable.value.as_ref().unwrap().parse().unwrap()
        };
        let uid = pod.uid().unwrap();
        let mut status = WorkerStatus {
            group: label("group"),
            revision: label("revision"),
            worker: label("worker").parse().unwrap(),
            uid: uid.clone(),
            card: Some(card.clone()),
            ..WorkerStatus::default()
        };
        status.set_phase(Phase::WaitingForPlacement);
        let member = Member::new(Slot {
            group: status.group.clone(),
            revision: status.revision.clone(),
            worker: status.worker,
            workers: number("BELAY_GROUP_WORKERS"),
            uid,
            ranks: number("BELAY_DEVICES_PER_WORKER"),
            layers: card.layers,
            experts: card.experts,
        });
        Self { node: spec.node_name.clone().unwrap(), status, member }
    }

    /// Loads and drops what the protocol asks for, a few copies at a time, and says how far it is.
    pub fn work(&mut self, copies: usize) {
        if self.status.phase() == Phase::Failed {
            return;
        }
        let first = self.status.worker * self.member.slot().ranks;
        let to_load: Vec<Copy> = (first..)
            .zip(self.member.to_load())
            .flat_map(|(rank, list)| {
                list.into_iter().map(move |(layer, expert)| Copy { rank, layer, expert })
            })
            .collect();
        let (bytes, left) = (self.status.card.as_ref().unwrap().expert_bytes, to_load.len());
        self.member.loaded(to_load.into_iter().take(copies));
        let gone = self.member.to_drop();
        self.member.dropped(gone);
        let status = &mut self.status;
        status.placement_epoch = self.member.in_use().map_or(0, |placement| placement.epoch);
        status.prepared_epoch = self.member.prepared_epoch();
        status.retired_epoch = self.member.retired_epoch();
        status.known_epoch = self.member.known_epoch();
        status.prepare_bytes_total = status.prepare_bytes_total.max(left as u64 * bytes);
        let still = self.member.to_load().iter().map(Vec::len).sum::<usize>() as u64 * bytes;
        status.prepare_bytes_done = status.prepare_bytes_total - still;
        let held = |rank| self.member.resident().iter().filter(|copy| copy.rank == rank).count();
        status.ranks = (first..first + self.member.slot().ranks)
            .map(|rank| RankStatus {
                rank,
                experts: held(rank) as u32,
                expert_bytes: held(rank) as u64 * bytes,
            })
            .collect();
        if status.placement_epoch > 0 {
            status.set_phase(Phase::Ready);
        } else if status.phase() == Phase::Ready {
            status.set_phase(Phase::WaitingForPlacement);
        }
    }
}
