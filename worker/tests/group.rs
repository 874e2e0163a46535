//! A group of two real processes with two ranks each.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use belay_proto::admin::admin_client::AdminClient;
use belay_proto::admin::{
    ExpertCopies, GroupWorker, LayerPlacement, Phase, Placement, SetPlacementRequest, WorkerStatus,
};
use belay_proto::inference::inference_client::InferenceClient;
use common::{
    Process, admin, ask, cases, channel, collect, endless, generate, http_get, ids, retry_hint, status,
    wait_phase, wait_status,
};
use futures::TryStreamExt;
use tonic::Code;
use tonic::transport::Channel;

const RANKS: u32 = 2;

struct Member {
    process: Process,
    admin: AdminClient<Channel>,
    index: u32,
    uid: String,
}

impl Member {
    async fn start(index: u32, uid: &str, extra: &[&str]) -> Self {
        let index_text = index.to_string();
        let mut args = vec!["--group", "nano-abcd1234-0", "--revision", "abcd1234"];
        args.extend(["--worker-index", &index_text, "--pod-uid", uid]);
        args.extend(extra);
        if !extra.contains(&"--group-workers") {
            args.extend(["--group-workers", "2", "--devices-per-worker", "2"]);
        }
        let process = Process::start(&args);
        let admin = admin(&process.admin).await;
        Self { process, admin, index, uid: uid.into() }
    }

    async fn place(&mut self, placement: &Placement) -> Result<(), tonic::Status> {
        let request = SetPlacementRequest { placement: Some(placement.clone()) };
        self.admin.set_placement(request).await.map(|_| ())
    }

    async fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(channel(&self.process.grpc).await)
    }
}

/// Deals the experts round robin, so that nearly every token needs both workers.
fn placement(epoch: u64, members: &[&Member]) -> Placement {
    let worker = |member: &&Member| GroupWorker {
        index: member.index,
        fabric_address: member.process.fabric.clone(),
        uid: member.uid.clone(),
    };
    let ranks = RANKS * members.len() as u32;
    let copies = |expert: u32| ExpertCopies { ranks: vec![expert % ranks] };
    let layer = LayerPlacement { experts: (0..16).map(copies).collect() };
    Placement {
        epoch,
        group: "nano-abcd1234-0".into(),
        revision: "abcd1234".into(),
        ranks_per_worker: RANKS,
        workers: members.iter().map(worker).collect(),
        layers: vec![layer; 5],
    }
}

async fn group() -> (Member, Member) {
    let (mut first, mut second) =
        tokio::join!(Member::start(0, "life-0", &[]), Member::start(1, "life-1", &[]));
    for member in [&mut first, &mut second] {
        let waiting = wait_phase(&mut member.admin, Phase::WaitingForPlacement).await;
        assert_eq!(waiting.card.unwrap().experts, 16);
    }
    let placement = placement(1, &[&first, &second]);
    for member in [&mut first, &mut second] {
        member.place(&placement).await.unwrap();
    }
    for member in [&mut first, &mut second] {
        let ready = wait_phase(&mut member.admin, Phase::Ready).await;
        assert_share(&ready, member.index);
    }
    (first, second)
}

fn assert_share(status: &WorkerStatus, worker: u32) {
    assert!(status.placement_epoch > 0);
    assert!(status.load_bytes_total > 0 && status.load_bytes_done == status.load_bytes_total);
    let ranks: Vec<(u32, u32)> = status.ranks.iter().map(|rank| (rank.rank, rank.experts)).collect();
    assert_eq!(ranks, [(worker * 2, 20), (worker * 2 + 1, 20)], "a quarter of 5 x 16 for each rank");
}

#[tokio::test]
async fn two_workers_of_two_ranks_give_the_reference_tokens_from_either_end() {
    let (first, second) = group().await;
    for member in [&first, &second] {
        let mut client = member.inference().await;
        for case in cases("fact", 4).into_iter().chain(cases("doc", 1)) {
            let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
            assert_eq!(answer.ids, case.greedy_ids, "{} at worker {}", case.id, member.index);
        }
    }
    // both ends at the same time
    let both = [&first, &second].map(|member| async {
        let mut client = member.inference().await;
        for case in cases("fact", 4) {
            let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
            assert_eq!(answer.ids, case.greedy_ids, "{} at worker {}", case.id, member.index);
        }
    });
    futures::future::join_all(both).await;
    let (_, metrics) = http_get(&first.process.http, "/metrics").await;
    let sent = metrics.lines().find_map(|line| line.strip_prefix("belay_fabric_rows_sent_total ")).unwrap();
    assert!(sent.parse::<u64>().unwrap() > 0, "rows went over the wire");
}

#[tokio::test]
async fn a_placement_that_is_old_or_for_another_is_refused() {
    let (mut first, second) = group().await;
    let newer = placement(5, &[&first, &second]);
    first.place(&newer).await.unwrap();
    wait_status(&mut first.admin, "epoch 5", |status| status.placement_epoch == 5).await;
    first.place(&newer).await.expect("the same again is fine");

    let mut another = newer.clone();
    another.layers[0].experts[0].ranks = vec![3];
    let mut stranger = placement(6, &[&first, &second]);
    stranger.revision = "other".into();
    let mut other_life = placement(6, &[&first, &second]);
    other_life.workers[0].uid = "life-9".into();
    for (document, named) in [
        (placement(4, &[&first, &second]), "older"),
        (another, "another placement"),
        (stranger, "revision"),
        (other_life, "uid"),
    ] {
        let refused = first.place(&document).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(named), "{named}: {refused}");
    }
    let mut uncovered = placement(7, &[&first, &second]);
    uncovered.layers[2].experts[3].ranks.clear();
    let refused = first.place(&uncovered).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("layers[2].experts[3]"), "{refused}");
    assert_eq!(status(&mut first.admin).await.placement_epoch, 5, "what is refused changes nothing");
}

#[tokio::test]
async fn a_killed_worker_costs_a_retryable_step_and_its_next_life_makes_the_group_whole() {
    let (mut first, mut second) = group().await;
    let case = &cases("fact", 1)[0];
    let mut client = first.inference().await;
    let mut under_way = client.generate(endless(&case.prompt_ids)).await.unwrap().into_inner();
    assert!(under_way.try_next().await.unwrap().is_some());

    second.process.kill();
    let lost = collect(under_way).await.unwrap_err();
    assert_eq!((lost.code(), retry_hint(&lost)), (Code::Unavailable, Some("step-lost")), "{lost}");
    let alone = wait_phase(&mut first.admin, Phase::Connecting).await;
    assert!(alone.message.contains("worker 1"), "{}", alone.message);
    assert!(!alone.peers[0].connected && !alone.peers[0].message.is_empty());
    let refused = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap_err();
    assert_eq!((refused.code(), retry_hint(&refused)), (Code::Unavailable, Some("not-ready")), "{refused}");

    // placed at once: the call waits until the headers are read
    let mut second = Member::start(1, "life-2", &[]).await;
    let placement = placement(2, &[&first, &second]);
    for member in [&mut first, &mut second] {
        member.place(&placement).await.unwrap();
    }
    for member in [&mut first, &mut second] {
        wait_status(&mut member.admin, "ready in epoch 2", |status| {
            status.phase() == Phase::Ready && status.placement_epoch == 2
        })
        .await;
        let answer = generate(&mut member.inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
        assert_eq!(answer.ids, case.greedy_ids, "worker {}", member.index);
    }
}

#[tokio::test]
async fn a_worker_that_freezes_costs_a_step_within_seconds_and_comes_back_by_itself() {
    let (mut first, second) = group().await;
    let case = &cases("fact", 1)[0];
    let mut client = first.inference().await;
    let mut under_way = client.generate(endless(&case.prompt_ids)).await.unwrap().into_inner();
    assert!(under_way.try_next().await.unwrap().is_some());

    second.process.signal("STOP");
    let frozen = std::time::Instant::now();
    let lost = collect(under_way).await.unwrap_err();
    assert_eq!((lost.code(), retry_hint(&lost)), (Code::Unavailable, Some("step-lost")), "{lost}");
    assert!(frozen.elapsed().as_secs() < 15, "long before the 20 s that a step may wait for experts");
    wait_phase(&mut first.admin, Phase::Connecting).await;
    second.process.signal("CONT");
    wait_phase(&mut first.admin, Phase::Ready).await;
    let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, case.greedy_ids);
}

#[tokio::test]
async fn a_group_of_one_worker_needs_no_peers() {
    let extra = ["--group-workers", "1", "--devices-per-worker", "4"];
    let mut only = Member::start(0, "life-0", &extra).await;
    wait_phase(&mut only.admin, Phase::WaitingForPlacement).await;
    let refused = generate(&mut only.inference().await, ask(ids(&[0]))).await.unwrap_err();
    assert_eq!((refused.code(), retry_hint(&refused)), (Code::Unavailable, Some("not-ready")));
    let mut placement = placement(1, &[&only]);
    placement.ranks_per_worker = 4;
    for (expert, copies) in placement.layers.iter_mut().flat_map(|layer| layer.experts.iter_mut().enumerate())
    {
        copies.ranks = vec![expert as u32 / 4];
    }
    only.place(&placement).await.unwrap();
    wait_phase(&mut only.admin, Phase::Ready).await;
    let case = &cases("fact", 1)[0];
    let answer = generate(&mut only.inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, case.greedy_ids);
}

#[tokio::test]
async fn experts_that_move_are_loaded_before_the_new_epoch_and_dropped_after_it() {
    let (mut first, mut second) = group().await;
    let mut moved = placement(2, &[&first, &second]);
    for experts in &mut moved.layers {
        // all of rank 0's experts go to rank 3, and rank 1 gets a second copy of expert 2
        for copies in &mut experts.experts {
            if copies.ranks == [0] {
                copies.ranks = vec![3];
            }
        }
        experts.experts[2].ranks.push(1);
    }
    for member in [&mut second, &mut first] {
        member.place(&moved).await.unwrap();
    }
    for (member, shares) in [(&mut first, [0, 25]), (&mut second, [20, 40])] {
        let ready = wait_status(&mut member.admin, "ready in epoch 2", |status| {
            status.phase() == Phase::Ready && status.placement_epoch == 2
        })
        .await;
        assert_eq!(ready.ranks.iter().map(|rank| rank.experts).collect::<Vec<_>>(), shares);
    }
    for member in [&first, &second] {
        for case in cases("fact", 2) {
            let answer = generate(&mut member.inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
            assert_eq!(answer.ids, case.greedy_ids, "{} at worker {}", case.id, member.index);
        }
    }
}

#[tokio::test]
async fn a_mounted_placement_is_taken_at_start_if_it_fits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("placement.json");
    let mut second = Member::start(1, "life-1", &[]).await;
    wait_phase(&mut second.admin, Phase::WaitingForPlacement).await;
    let mut document = placement(3, &[&second]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    document
        .workers
        .insert(0, GroupWorker { index: 0, fabric_address: address.clone(), uid: "life-0".into() });
    document.layers = placement(3, &[&second, &second]).layers;
    std::fs::write(&file, serde_json::to_vec(&document).unwrap()).unwrap();

    let mounted = ["--placement-file", file.to_str().unwrap(), "--fabric-listen", &address];
    let mut first = Member::start(0, "life-0", &mounted).await;
    let connecting = wait_phase(&mut first.admin, Phase::Connecting).await;
    assert_eq!(connecting.placement_epoch, 3);
    second.place(&document).await.unwrap();
    wait_phase(&mut first.admin, Phase::Ready).await;

    // another life of the same slot finds the file of before: it waits for a newer one
    let mounted = ["--placement-file", file.to_str().unwrap()];
    let mut next = Member::start(0, "life-7", &mounted).await;
    let waiting =
        wait_status(&mut next.admin, "an unfit file", |status| status.message.contains("uid")).await;
    assert_eq!(waiting.phase(), Phase::WaitingForPlacement);
}

#[tokio::test]
async fn a_terminated_worker_goes_on_computing_for_its_peers_while_it_drains() {
    let (first, second) = group().await;
    let case = &cases("fact", 1)[0];
    let mut client = first.inference().await;
    let request = belay_proto::inference::GenerateRequest {
        sampling: Some(belay_proto::inference::Sampling { ignore_eos: true, ..common::greedy(200) }),
        ..ask(ids(&case.prompt_ids))
    };
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let first_piece = stream.try_next().await.unwrap().unwrap();
    second.process.terminate();
    let rest = collect(stream).await.expect("the stream at the other worker ends well");
    assert_eq!(first_piece.ids.len() + rest.ids.len(), 200);
    let mut child = second.process;
    let ended = tokio::task::spawn_blocking(move || child.child.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
}
