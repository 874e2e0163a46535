//! What people see.
use belay_epoch::Operation;
use belay_proto::admin::{Coverage, PeerHealth, Phase};
use kubectl_belay::{
    answers::{Answers, GroupAnswers, PodAnswer},
    commands::inject::forecast::forecast,
    picture::{
        copies::State,
        text::{Options, render},
        view::{GroupView, View},
    },
    terminal::line::Line,
};
use serde_json::json;

use crate::support::group::{self, Size, answers, hold, of, pod};

fn plain(answers: &Answers, width: usize) -> String {
    let lines = render(&View::of(answers), Options { width, coloured: false });
    lines.iter().map(Line::plain).collect::<Vec<_>>().join("\n")
}

fn view(group: GroupAnswers) -> GroupView {
    View::of(&answers(group)).groups.remove(0)
}

/// Worker 1 died; worker 0 has adopted what only it had, but for one expert.
fn after_a_loss() -> Answers {
    let size = Size::SMALL;
    let mut group = group::group(size);
    let placement = group.placement.clone().unwrap();
    group.pods[1].worker = Err("port-forward to pod nano-ec7356da-0-1: there is no such pod".into());
    let status = &mut of(&mut group, 0).status;
    status.peers[0].set_health(PeerHealth::Lost);
    status.peers[0].connected = false;
    status.coverage =
        Some(Coverage { epoch: 3, experts: 48, uncovered: 1, adopted: 20, ..Coverage::default() });
    status.requests_in_flight = 3;
    for rank in [2, 3] {
        let orphans: Vec<(u32, u32)> = group::share(&placement, rank)
            .into_iter()
            .filter(|(layer, expert)| {
                let ranks = &placement.layers[*layer as usize].experts[*expert as usize].ranks;
                ranks.iter().all(|rank| *rank > 1) && (*layer, *expert) != (2, 15)
            })
            .collect();
        hold(&mut group, size, rank - 2, &orphans);
    }
    Answers { troubles: vec!["Degraded=True RankLost: worker 1 is lost: ranks 2-3".into()], ..answers(group) }
}

/// Copies of experts 0 and 1 are being loaded on rank 3.
fn while_rebalancing() -> Answers {
    let size = Size::SMALL;
    let mut group = group::group(size);
    let mut target = group.placement.clone().unwrap();
    target.epoch = 4;
    for layer in &mut target.layers {
        for expert in [0, 1] {
            layer.experts[expert].ranks.push(3);
        }
    }
    hold(&mut group, size, 3, &[(0, 0), (0, 1), (1, 0)]);
    let operation = json!({
        "epoch": 4, "kind": "Rebalance", "phase": "Prepare", "target": target,
        "reason": "imbalance 236% of layer loads", "started": "2026-11-27T10:00:00Z",
    });
    group.operation = Some(serde_json::from_value::<Operation>(operation).unwrap());
    of(&mut group, 0).status.prepared_epoch = 4;
    let status = &mut of(&mut group, 1).status;
    (status.prepare_bytes_done, status.prepare_bytes_total) =
        (3 * group::EXPERT_BYTES, 6 * group::EXPERT_BYTES);
    answers(group)
}

/// Worker 1 is a new pod, which loads; worker 0 is cut off from this program only.
fn while_loading() -> Answers {
    let size = Size::SMALL;
    let mut group = group::group(size);
    group.pods[0].worker = Err("no answer from pod nano-ec7356da-0-0 within 5 s".into());
    group.pods[1].pod.uid = "uid-new".into();
    let answer = of(&mut group, 1);
    answer.status.set_phase(Phase::Loading);
    answer.status.message = "loading layer 1 of 3".into();
    answer.status.placement_epoch = 0;
    answer.status.coverage = None;
    answer.load = Err("nothing was asked for yet".into());
    for rank in &mut answer.experts.as_mut().unwrap().ranks {
        rank.layers[2] = vec![];
    }
    answers(group)
}

#[test]
fn four_ranks_and_sixteen_experts() {
    for width in [80, 120, 200] {
        insta::assert_snapshot!(format!("steady_{width}"), plain(&answers(group::group(Size::SMALL)), width));
    }
}

#[test]
fn a_lost_worker() {
    insta::assert_snapshot!("lost_80", plain(&after_a_loss(), 80));
    insta::assert_snapshot!("lost_40", plain(&after_a_loss(), 40));
}

#[test]
fn a_rebalance_under_way() {
    insta::assert_snapshot!("rebalance_80", plain(&while_rebalancing(), 80));
}

#[test]
fn a_new_pod_and_one_out_of_reach() {
    insta::assert_snapshot!("loading_80", plain(&while_loading(), 80));
}

#[test]
fn one_layer() {
    let mut view = View::of(&while_rebalancing());
    view.groups[0].copies = view.groups[0].copies.of_layer(1);
    let lines = render(&view, Options { width: 80, coloured: false });
    insta::assert_snapshot!("layer_80", lines.iter().map(Line::plain).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_hundred_and_twenty_eight_ranks() {
    let answers = answers(group::group(Size::LARGE));
    for width in [80, 120, 200] {
        insta::assert_snapshot!(format!("large_{width}"), plain(&answers, width));
    }
}

#[test]
fn colours() {
    let lines = render(&View::of(&after_a_loss()), Options { width: 80, coloured: true });
    let text = lines.iter().map(Line::coloured).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!("lost_coloured", text.replace('\u{1b}', "ESC"));
}

#[test]
fn nothing_is_there_yet() {
    let mut empty = Answers { groups: vec![], ..answers(GroupAnswers::default()) };
    assert_eq!(plain(&empty, 80), "nano in models\nit has no groups");
    let pod = PodAnswer { pod: pod(0), worker: Err("it has no node yet".into()) };
    let name = "nano-ec7356da-0".to_owned();
    empty.groups = vec![GroupAnswers { name, pods: vec![pod], ..GroupAnswers::default() }];
    insta::assert_snapshot!("nothing_80", plain(&empty, 80));
}

#[test]
fn everything_as_json() {
    let mut view = View::of(&while_rebalancing());
    view.groups[0].copies = view.groups[0].copies.of_layer(0);
    insta::assert_json_snapshot!("rebalance", view);
}

#[test]
fn a_stuck_worker_is_named_and_has_no_end() {
    let mut answers = while_rebalancing();
    of(&mut answers.groups[0], 1).status.prepare_error = "layer 2 expert 7:\n no room".into();
    let operation = View::of(&answers).groups.remove(0).operation.unwrap();
    assert_eq!((operation.percent, operation.eta_seconds, operation.elapsed_seconds), (75, None, Some(24)));
    assert_eq!(
        (operation.waiting_for[0].worker, operation.waiting_for[0].why.as_str()),
        (1, "layer 2 expert 7: no room")
    );
    of(&mut answers.groups[0], 1).status.prepare_error.clear();
    let operation = View::of(&answers).groups.remove(0).operation.unwrap();
    assert_eq!(operation.eta_seconds, Some(8), "three quarters took 24 s");
}

#[test]
fn phases_after_prepare_count_workers() {
    let mut answers = while_rebalancing();
    let group = &mut answers.groups[0];
    group.placement = group.operation.as_mut().unwrap().target.take();
    group.operation.as_mut().unwrap().phase = belay_epoch::Phase::Commit;
    of(group, 0).status.placement_epoch = 4;
    let operation = View::of(&answers).groups.remove(0).operation.unwrap();
    assert_eq!((operation.percent, operation.waiting_for[0].worker, operation.eta_seconds), (50, 1, None));
    answers.groups[0].operation.as_mut().unwrap().phase = belay_epoch::Phase::Retire;
    let operation = View::of(&answers).groups.remove(0).operation.unwrap();
    assert_eq!((operation.percent, operation.waiting_for.len()), (0, 2));
}

#[test]
fn what_is_a_sole_copy() {
    let steady = view(group::group(Size::SMALL));
    // 48 experts, of which three have a second copy, at another worker
    assert_eq!(steady.sole_copies(0) + steady.sole_copies(1), 45);
    let both = view({
        let mut group = group::group(Size::SMALL);
        for layer in &mut group.placement.as_mut().unwrap().layers {
            layer.experts[3].ranks = vec![0, 1];
        }
        hold(&mut group, Size::SMALL, 1, &[(0, 3), (1, 3), (2, 3)]);
        group
    });
    assert_eq!(both.sole_copies(0), steady.sole_copies(0), "ranks of one worker are lost together");
}

#[test]
fn imbalance_is_that_of_the_reference() {
    // one layer, two ranks, four experts with loads 6, 2, 1, 1: the busiest rank has 8 of 10, the mean 5
    let size = Size { layers: 1, experts: 4, workers: 2, ranks_per_worker: 1 };
    let mut group = group::group(size);
    for layer in &mut group.placement.as_mut().unwrap().layers {
        layer.experts[0].ranks = vec![0];
    }
    for (worker, share) in [(0, 1000u64), (1, 0)] {
        let layers = &mut of(&mut group, worker).load.as_mut().unwrap().layers;
        layers[0].millitokens = [6, 2, 1, 1].map(|tokens| tokens * share).to_vec();
        let held =
            group::held(size, worker as u32, &[(0, 2 * worker as u32), (0, 2 * worker as u32 + 1)].into());
        of(&mut group, worker).experts.as_mut().unwrap().ranks[0] = held;
    }
    assert_eq!(view(group.clone()).imbalance_percent, Some(160));
    for worker in [0, 1] {
        of(&mut group, worker).load.as_mut().unwrap().layers.clear();
    }
    assert_eq!(view(group).imbalance_percent, None);
}

#[test]
fn copies_beyond_the_placement() {
    let size = Size::SMALL;
    let state = |group: &GroupAnswers| {
        let view = view(group.clone());
        view.copies.list.iter().find(|copy| (copy.layer, copy.expert, copy.rank) == (1, 9, 0)).unwrap().state
    };
    let mut group = group::group(size);
    hold(&mut group, size, 0, &[(1, 9)]);
    assert_eq!(state(&group), State::Leaving, "its owner lives");
    of(&mut group, 0).status.peers[0].set_health(PeerHealth::Suspect);
    assert_eq!(state(&group), State::Leaving, "nothing was adopted");
    of(&mut group, 0).status.coverage.as_mut().unwrap().adopted = 1;
    assert_eq!(state(&group), State::Adopted);
    let mut target = group.placement.clone().unwrap();
    target.layers[1].experts[9].ranks.push(0);
    group.operation = serde_json::from_value(json!({
        "epoch": 4, "kind": "Recover", "phase": "Prepare", "target": target, "reason": "", "started": "",
    }))
    .unwrap();
    assert_eq!(state(&group), State::Arriving);
}

#[test]
fn what_a_fault_will_do() {
    use belay_proto::admin::{Fault, InjectRequest};
    let request = |fault: Fault, seconds, delay_milliseconds, workers: &[u32]| InjectRequest {
        fault: fault.into(),
        seconds,
        delay_milliseconds,
        workers: workers.to_vec(),
    };
    let steady = view(group::group(Size::SMALL));
    let moving = View::of(&while_rebalancing()).groups.remove(0);
    let texts = [
        forecast(&steady, &pod(1), &request(Fault::Exit, 0, 0, &[])),
        forecast(&moving, &pod(1), &request(Fault::Slow, 90, 250, &[])),
        forecast(&steady, &pod(0), &request(Fault::Partition, 0, 0, &[1])),
    ];
    insta::assert_snapshot!("forecasts", texts.map(|lines| lines.join("\n")).join("\n\n"));
}
