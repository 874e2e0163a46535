//! Groups of real worker processes, placed by hand as an operator would.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use belay_proto::admin::admin_client::AdminClient;
use belay_proto::admin::{
    ExpertCopies, GroupWorker, LayerPlacement, Phase, Placement, SetPlacementRequest, WorkerStatus,
};
use belay_proto::inference::inference_client::InferenceClient;
use tonic::transport::Channel;

use super::{Process, admin, channel, wait_phase, wait_status};

pub const RANKS: u32 = 2;

pub struct Member {
    pub process: Process,
    pub admin: AdminClient<Channel>,
    pub index: u32,
    pub uid: String,
}

impl Member {
    pub async fn start(index: u32, uid: &str, extra: &[&str]) -> Self {
        Self::start_with(&[], index, uid, extra).await
    }

    pub async fn start_with(environment: &[(&str, &str)], index: u32, uid: &str, extra: &[&str]) -> Self {
        let index_text = index.to_string();
        let mut args = vec!["--group", "nano-abcd1234-0", "--revision", "abcd1234"];
        args.extend(["--worker-index", &index_text, "--pod-uid", uid]);
        args.extend(extra);
        if !extra.contains(&"--group-workers") {
            args.extend(["--group-workers", "2"]);
        }
        if !extra.contains(&"--devices-per-worker") {
            args.extend(["--devices-per-worker", "2"]);
        }
        let process = Process::start_with(environment, &args);
        let admin = admin(&process.admin).await;
        Self { process, admin, index, uid: uid.into() }
    }

    /// Puts a placement in force.
    pub async fn place(&mut self, placement: &Placement) -> Result<(), tonic::Status> {
        self.ask(SetPlacementRequest { in_force: Some(placement.clone()), ..Default::default() }).await
    }

    pub async fn ask(&mut self, request: SetPlacementRequest) -> Result<(), tonic::Status> {
        self.admin.set_placement(request).await.map(|_| ())
    }

    pub async fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(channel(&self.process.grpc).await)
    }

    pub async fn ready_in(&mut self, epoch: u64) -> WorkerStatus {
        wait_status(&mut self.admin, &format!("ready in epoch {epoch}"), |status| {
            status.phase() == Phase::Ready && status.placement_epoch == epoch
        })
        .await
    }
}

pub fn seat(member: &Member) -> GroupWorker {
    GroupWorker {
        index: member.index,
        fabric_address: member.process.fabric.clone(),
        uid: member.uid.clone(),
        expert_bytes_limit: 0,
    }
}

/// Deals the experts round robin, so that nearly every token needs all workers; `copies` of each, on ranks that follow
/// one another: with two ranks a worker, every second copy is on another worker.
pub fn placement_with(copies: u32, epoch: u64, members: &[&Member]) -> Placement {
    let ranks = RANKS * members.len() as u32;
    let of = |expert: u32| ExpertCopies {
        ranks: (0..copies).map(|copy| (expert + copy * RANKS) % ranks).collect(),
    };
    let layer = LayerPlacement { experts: (0..16).map(of).collect() };
    Placement {
        epoch,
        group: "nano-abcd1234-0".into(),
        revision: "abcd1234".into(),
        ranks_per_worker: RANKS,
        workers: members.iter().map(|member| seat(member)).collect(),
        layers: vec![layer; 5],
        expert_bytes: 0,
    }
}

pub fn placement(epoch: u64, members: &[&Member]) -> Placement {
    placement_with(1, epoch, members)
}

/// As many workers as `uids`, ready in epoch 1.
pub async fn group_of(uids: &[&str], copies: u32, extra: &[&str]) -> Vec<Member> {
    group_with(&[], uids, copies, extra).await
}

/// The same with more environment.
pub async fn group_with(
    environment: &[(&str, &str)],
    uids: &[&str],
    copies: u32,
    extra: &[&str],
) -> Vec<Member> {
    let workers = uids.len().to_string();
    let mut all = vec!["--group-workers", workers.as_str()];
    all.extend(extra);
    let started = (0u32..).zip(uids).map(|(index, uid)| Member::start_with(environment, index, uid, &all));
    let mut members = futures::future::join_all(started).await;
    for member in &mut members {
        let waiting = wait_phase(&mut member.admin, Phase::WaitingForPlacement).await;
        assert_eq!(waiting.card.unwrap().experts, 16);
    }
    let placement = placement_with(copies, 1, &members.iter().collect::<Vec<_>>());
    for member in &mut members {
        member.place(&placement).await.unwrap();
    }
    for member in &mut members {
        member.ready_in(1).await;
    }
    members
}

pub async fn group() -> (Member, Member) {
    let mut members = group_of(&["life-0", "life-1"], 1, &[]).await;
    let second = members.pop().unwrap();
    (members.pop().unwrap(), second)
}
