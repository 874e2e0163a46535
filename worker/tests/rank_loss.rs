//! Groups of real processes that lose workers: with copies, without, frozen, two at once; and faults on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::Duration;

use belay_proto::admin::{
    Fault, GetExpertLoadRequest, GetExpertsRequest, InjectRequest, PeerHealth, Phase, SetPlacementRequest,
};
use belay_proto::inference::{GenerateRequest, Sampling};
use common::group::{Member, group_of, placement_with};
use common::{ask, cases, collect, generate, greedy, ids, status, wait_phase, wait_status};
use futures::TryStreamExt;
use tonic::Code;

const LENGTH: u32 = 160;

/// A long greedy stream, past the end of the answer.
fn long(prompt: &[u32]) -> GenerateRequest {
    GenerateRequest { sampling: Some(Sampling { ignore_eos: true, ..greedy(LENGTH) }), ..ask(ids(prompt)) }
}

/// What that stream must be: the tokens of a lone worker.
async fn expected(prompt: &[u32]) -> Vec<u32> {
    let alone = common::stand_alone(&[]).await;
    let tokens = generate(&mut common::inference(&alone).await, long(prompt)).await.unwrap().ids;
    alone.stop().await;
    tokens
}

/// Starts a long stream at a member, does something to the group once tokens come, and compares all of them.
async fn through(members: &mut [Member], at: usize, strike: impl AsyncFnOnce(&mut [Member])) {
    let prompt = cases("fact", 1)[0].prompt_ids.clone();
    let right = expected(&prompt).await;
    let mut stream = members[at].inference().await.generate(long(&prompt)).await.unwrap().into_inner();
    let mut tokens = stream.try_next().await.unwrap().unwrap().ids;
    strike(members).await;
    tokens.extend(collect(stream).await.expect("the stream goes on").ids);
    assert_eq!(tokens, right, "not a token differs");
}

#[tokio::test]
async fn a_killed_worker_whose_experts_have_copies_is_not_missed() {
    let mut members = group_of(&["a", "b"], 2, &[]).await;
    through(&mut members, 0, async |members| members[1].process.kill()).await;
    let found = wait_status(&mut members[0].admin, "a lost peer", |status| {
        status.peers[0].health() == PeerHealth::Lost
    })
    .await;
    let coverage = found.coverage.unwrap();
    assert_eq!((found.phase(), coverage.uncovered, coverage.min_live_copies), (Phase::Ready, 0, 1));
    assert_eq!((coverage.adopted, coverage.uncovered_milliseconds), (0, 0), "copies were enough");
}

#[tokio::test]
async fn orphans_of_a_killed_worker_are_adopted_and_given_up_when_it_is_replaced() {
    let mut members = group_of(&["a", "b"], 1, &[]).await;
    through(&mut members, 0, async |members| members[1].process.kill()).await;
    let found = wait_status(&mut members[0].admin, "orphans adopted", |status| {
        status.coverage.is_some_and(|coverage| coverage.adopted == 40 && coverage.uncovered == 0)
    })
    .await;
    assert_eq!(found.phase(), Phase::Ready);
    assert_eq!(found.ranks.iter().map(|rank| rank.experts).sum::<u32>(), 80, "it holds the whole model");

    // the operator's part: another pod, prepared, committed, retired
    let old = placement_with(1, 1, &[&members[0], &members[1]]);
    let replaced = Member::start(1, "c", &[]).await;
    members[1] = replaced;
    let next = placement_with(1, 2, &[&members[0], &members[1]]);
    let prepare = SetPlacementRequest { in_force: Some(old), target: Some(next.clone()), retire_epoch: 0 };
    for member in &mut members {
        member.ask(prepare.clone()).await.unwrap();
        wait_status(&mut member.admin, "prepared", |status| status.prepared_epoch == 2).await;
    }
    let new = status(&mut members[1].admin).await;
    assert_eq!((new.placement_epoch, new.phase()), (0, Phase::Connecting), "{}", new.message);
    for retire_epoch in [0, 2] {
        for member in &mut members {
            let commit = SetPlacementRequest { in_force: Some(next.clone()), target: None, retire_epoch };
            member.ask(commit).await.unwrap();
            member.ready_in(2).await;
        }
    }
    wait_status(&mut members[0].admin, "adopted copies gone", |status| {
        status.ranks.iter().all(|rank| rank.experts == 20) && status.retired_epoch == 2
    })
    .await;
    through(&mut members, 1, async |_| {}).await;
}

#[tokio::test]
async fn a_frozen_worker_is_routed_around_and_comes_back_by_itself() {
    let mut members = group_of(&["a", "b"], 2, &[]).await;
    through(&mut members, 0, async |members| {
        members[1].process.signal("STOP");
    })
    .await;
    let found = wait_status(&mut members[0].admin, "a suspect peer", |status| {
        status.peers[0].health() == PeerHealth::Suspect
    })
    .await;
    assert_eq!((found.phase(), found.coverage.unwrap().adopted), (Phase::Ready, 0));
    members[1].process.signal("CONT");
    wait_status(&mut members[0].admin, "a live peer", |status| status.peers[0].health() == PeerHealth::Live)
        .await;
}

#[tokio::test]
async fn a_frozen_worker_with_the_only_copies_is_waited_for() {
    let mut members = group_of(&["a", "b"], 1, &[]).await;
    through(&mut members, 0, async |members| {
        members[1].process.signal("STOP");
        let waiting = wait_phase(&mut members[0].admin, Phase::Connecting).await;
        assert_eq!(waiting.peers[0].health(), PeerHealth::Suspect, "{waiting:?}");
        assert!(waiting.message.contains("worker 1"), "{}", waiting.message);
        members[1].process.signal("CONT");
    })
    .await;
    let found = wait_phase(&mut members[0].admin, Phase::Ready).await;
    let coverage = found.coverage.unwrap();
    assert_eq!(coverage.adopted, 0, "it was never declared dead");
    assert!(coverage.uncovered_milliseconds > 0, "it was missed");
    assert_eq!(coverage.silent_milliseconds, coverage.uncovered_milliseconds, "it was only silent");
}

#[tokio::test]
async fn two_of_four_workers_are_lost_at_once() {
    let mut members = group_of(&["a", "b", "c", "d"], 1, &[]).await;
    through(&mut members, 0, async |members| {
        members[2].process.kill();
        members[3].process.kill();
    })
    .await;
    let mut adopted = Vec::new();
    for member in &mut members[..2] {
        let found = wait_status(&mut member.admin, "all covered", |status| {
            status.phase() == Phase::Ready && status.coverage.is_some_and(|coverage| coverage.uncovered == 0)
        })
        .await;
        adopted.push(found.coverage.unwrap().adopted);
    }
    // who hears of the two losses one after the other deals the orphans of the first one twice
    assert!(adopted.iter().sum::<u32>() >= 40 && adopted.iter().all(|count| *count > 0), "{adopted:?}");
}

#[tokio::test]
async fn steps_in_halves_give_the_same_tokens_also_when_a_worker_is_lost() {
    let mut members = group_of(&["a", "b"], 1, &["--halves-from", "2"]).await;
    let prompts: Vec<Vec<u32>> = cases("fact", 4).into_iter().map(|case| case.prompt_ids).collect();
    let mut streams = Vec::new();
    for prompt in &prompts {
        streams.push(members[0].inference().await.generate(long(prompt)).await.unwrap().into_inner());
    }
    let mut first = Vec::new();
    for stream in &mut streams {
        first.push(stream.try_next().await.unwrap().unwrap().ids);
    }
    members[1].process.kill();
    let rests = futures::future::join_all(streams.into_iter().map(collect)).await;
    for ((prompt, mut tokens), rest) in prompts.iter().zip(first).zip(rests) {
        tokens.extend(rest.expect("the stream goes on").ids);
        assert_eq!(tokens, expected(prompt).await, "not a token differs");
    }
}

#[tokio::test]
async fn orphans_that_do_not_fit_are_refused_with_the_numbers_and_the_step_is_lost() {
    let options = ["--expert-memory", "2000k", "--fabric-timeout-seconds", "2"];
    let mut members = group_of(&["a", "b"], 1, &options).await;
    let prompt = cases("fact", 1)[0].prompt_ids.clone();
    let held = status(&mut members[0].admin).await;
    let bytes: u64 = held.ranks.iter().map(|rank| rank.expert_bytes).sum();
    assert!(bytes <= held.expert_bytes_limit && 2 * bytes > held.expert_bytes_limit, "{bytes}");
    let stream = members[0].inference().await.generate(long(&prompt)).await.unwrap().into_inner();
    members[1].process.kill();
    let lost = collect(stream).await.unwrap_err();
    assert_eq!((lost.code(), common::retry_hint(&lost)), (Code::Unavailable, Some("step-lost")), "{lost}");
    assert!(lost.message().contains("bytes of experts do not fit"), "{lost}");
    wait_phase(&mut members[0].admin, Phase::Connecting).await;
}

#[tokio::test]
async fn a_target_without_room_is_told_and_changes_nothing() {
    let mut members = group_of(&["a", "b"], 1, &["--expert-memory", "2000k"]).await;
    let old = placement_with(1, 1, &[&members[0], &members[1]]);
    let target = placement_with(2, 2, &[&members[0], &members[1]]);
    let prepare = SetPlacementRequest { in_force: Some(old), target: Some(target), retire_epoch: 0 };
    members[0].ask(prepare).await.unwrap();
    let found =
        wait_status(&mut members[0].admin, "no room", |status| !status.prepare_error.is_empty()).await;
    assert!(found.prepare_error.contains("do not fit"), "{}", found.prepare_error);
    assert_eq!((found.phase(), found.placement_epoch, found.prepared_epoch), (Phase::Ready, 1, 1));
    through(&mut members, 0, async |_| {}).await;
}

#[tokio::test]
async fn faults_on_purpose_need_leave_and_end_by_themselves() {
    let mut members = group_of(&["a", "b"], 2, &["--fault-injection", "on"]).await;
    let slow = InjectRequest {
        fault: Fault::Partition.into(),
        seconds: 1,
        workers: vec![0],
        ..InjectRequest::default()
    };
    through(&mut members, 0, async |members| {
        members[1].admin.inject(slow).await.unwrap();
        wait_status(&mut members[0].admin, "a peer that is away", |status| {
            status.peers[0].health() != PeerHealth::Live
        })
        .await;
        wait_status(&mut members[0].admin, "a live peer", |status| {
            status.peers[0].health() == PeerHealth::Live
        })
        .await;
    })
    .await;
    let exit = InjectRequest { fault: Fault::Exit.into(), ..InjectRequest::default() };
    through(&mut members, 0, async |members| {
        // the process ends before it answers
        let _ = members[1].admin.inject(exit.clone()).await;
    })
    .await;

    let mut careful = group_of(&["x"], 1, &[]).await.remove(0);
    let refused = careful.admin.inject(exit).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("BELAY_FAULT_INJECTION"), "{refused}");
    assert_eq!(status(&mut careful.admin).await.phase(), Phase::Ready);
}

#[tokio::test]
async fn what_is_held_and_what_is_asked_for_can_be_seen() {
    let mut members = group_of(&["a", "b"], 1, &[]).await;
    let held = members[1].admin.get_experts(GetExpertsRequest {}).await.unwrap().into_inner();
    let bits = |rank: usize| -> Vec<Vec<u8>> { held.ranks[rank].layers.iter().map(|l| l.to_vec()).collect() };
    assert_eq!(held.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(bits(0), vec![vec![0b0100_0100, 0b0100_0100]; 5], "experts 2, 6, 10, 14 of each layer");

    let case = &cases("fact", 1)[0];
    generate(&mut members[0].inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
    let load = members[0].admin.get_expert_load(GetExpertLoadRequest {}).await.unwrap().into_inner();
    assert_eq!(load.layers.len(), 5);
    let rows = case.prompt_ids.len() as u64 + case.greedy_ids.len() as u64 - 1;
    for layer in &load.layers {
        let sum: u64 = layer.millitokens.iter().sum();
        let per_row = sum as f64 / rows as f64 / 1000.0;
        assert!(per_row > 1.5 && per_row <= 2.001, "two experts a row, a little decayed: {per_row}");
    }
    let idle = members[1].admin.get_expert_load(GetExpertLoadRequest {}).await.unwrap().into_inner();
    assert!(
        idle.layers.iter().all(|layer| layer.millitokens.iter().sum::<u64>() == 0),
        "it asked for nothing"
    );
    tokio::time::timeout(Duration::from_secs(5), wait_phase(&mut members[0].admin, Phase::Ready))
        .await
        .unwrap();
}
