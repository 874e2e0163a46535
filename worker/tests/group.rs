//! A group of two real processes with two ranks each.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use belay_proto::admin::{GroupWorker, Phase, SetPlacementRequest};
use common::group::{Member, group, placement};
use common::{ask, cases, collect, generate, http_get, ids, retry_hint, status, wait_phase, wait_status};
use futures::TryStreamExt;
use tonic::Code;

#[tokio::test]
async fn two_workers_of_two_ranks_give_the_reference_tokens_from_either_end() {
    let (mut first, mut second) = group().await;
    for member in [&mut first, &mut second] {
        let ready = status(&mut member.admin).await;
        assert!(ready.load_bytes_total > 0 && ready.load_bytes_done == ready.load_bytes_total);
        assert!(ready.kv_bytes_limit > 0 && ready.kv_bytes == 0, "no request holds anything yet");
        let ranks: Vec<(u32, u32)> = ready.ranks.iter().map(|rank| (rank.rank, rank.experts)).collect();
        let first = member.index * 2;
        assert_eq!(ranks, [(first, 20), (first + 1, 20)], "a quarter of 5 x 16 for each rank");
    }
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
    for (document, named) in
        [(placement(4, &[&first, &second]), "older"), (another, "another placement"), (stranger, "revision")]
    {
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
    let old = placement(1, &[&first, &second]);
    let prepare = SetPlacementRequest { in_force: Some(old), target: Some(moved.clone()), retire_epoch: 0 };
    let commit = SetPlacementRequest { in_force: Some(moved.clone()), target: None, retire_epoch: 0 };
    let retire = SetPlacementRequest { retire_epoch: 2, ..commit.clone() };
    // (what is asked, epoch in use, prepared, retired; copies of each worker's ranks after that)
    let phases = [
        (prepare, (1, 2, 0), [[20, 25], [20, 40]]),
        (commit, (2, 2, 0), [[20, 25], [20, 40]]),
        (retire, (2, 2, 2), [[0, 25], [20, 40]]),
    ];
    for (request, epochs, shares) in phases {
        for (member, shares) in [&mut second, &mut first].into_iter().zip([shares[1], shares[0]]) {
            member.ask(request.clone()).await.unwrap();
            let found = wait_status(&mut member.admin, &format!("{epochs:?}"), |status| {
                (status.placement_epoch, status.prepared_epoch, status.retired_epoch) == epochs
            })
            .await;
            assert_eq!(found.phase(), Phase::Ready, "it serves throughout");
            assert_eq!(found.ranks.iter().map(|rank| rank.experts).collect::<Vec<_>>(), shares);
        }
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
    document.workers.insert(
        0,
        GroupWorker {
            index: 0,
            fabric_address: address.clone(),
            uid: "life-0".into(),
            ..GroupWorker::default()
        },
    );
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
        wait_status(&mut next.admin, "no seat", |status| status.message.contains("uid life-0")).await;
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
