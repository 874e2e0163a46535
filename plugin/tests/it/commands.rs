//! The program as people run it, against an API server that forwards ports, and workers behind it.
use std::time::Duration;

use belay_proto::admin::Fault;
use clap::Parser as _;
use kubectl_belay::{
    answers::GroupAnswers,
    cli::Cli,
    commands::{
        Command,
        experts::Format,
        inject::{FaultCommand, request},
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::support::{
    api_server::ApiServer,
    group::{self, Size, of},
    worker::PlayedWorker,
};

struct Played {
    api: ApiServer,
    workers: Vec<PlayedWorker>,
    group: GroupAnswers,
}

/// A deployment with a group in which all is well.
async fn play(spec: Value) -> Played {
    let mut group = group::group(Size::SMALL);
    let mut workers = vec![];
    for worker in 0..Size::SMALL.workers as usize {
        workers.push(PlayedWorker::start(of(&mut group, worker).clone()).await);
    }
    let api = ApiServer::start().await;
    api.knows(&group, spec);
    let addresses = (0..).zip(&workers).map(|(index, worker)| (group::pod(index).name, worker.address));
    api.objects.lock().unwrap().workers = addresses.collect();
    Played { api, workers, group }
}

#[tokio::test]
async fn the_picture_through_port_forwards() {
    let played = play(json!({})).await;
    let ran = played.api.run(&["experts", "nano"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    // the same as what the picture's own test draws
    insta::with_settings!({snapshot_path => "snapshots"}, {
        insta::assert_snapshot!("command", ran.stdout);
    });
    let json = played.api.run(&["experts", "nano", "-o", "json", "--layer", "1"]).await;
    let view: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(view["groups"][0]["layers"].as_array().unwrap().len(), 1);
    assert_eq!(view["groups"][0]["layers"][0]["layer"], 1);
    assert_eq!(
        view["groups"][0]["experts"],
        json!({"total": 48, "covered": 48, "minLiveCopies": 1, "adopted": 0})
    );
}

#[tokio::test]
async fn pods_that_do_not_answer_are_part_of_the_picture() {
    let mut played = play(json!({})).await;
    // nobody listens in one pod; the other one is gone by the time it is asked
    drop(played.workers.remove(1));
    played.api.objects.lock().unwrap().workers.remove(&group::pod(0).name);
    let ran = played.api.run(&["experts", "nano"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("port-forward to pod nano-ec7356da-0-0: pods \"nano-ec7356da-0-0\" not found"),
        "{}",
        ran.stdout
    );
    assert!(
        text.contains("pod nano-ec7356da-0-1, port 50052: failed to connect to localhost:50052"),
        "{}",
        ran.stdout
    );
    assert!(text.contains("covered 0/48"), "{}", ran.stdout);
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let played = play(json!({})).await;
    for (arguments, message) in [
        (
            &["experts", "giga"][..],
            "modeldeployment models/giga: modeldeployments.serving.belay.dev \"giga\" not found",
        ),
        (&["experts", "nano", "-g", "x"], "modeldeployment models/nano: no group x; it has nano-ec7356da-0"),
        (&["experts", "nano", "-l", "3"], "models/nano: no layer 3; it has layers 0 to 2"),
        (
            &["inject", "rank-loss", "nano", "-w", "7", "-y"],
            "it has no pod of worker 7; pods are there of workers 0-1",
        ),
        (&["inject", "rank-loss", "nano", "-w", "1"], "nobody is there to confirm it: give --yes"),
        (
            &["inject", "partition", "nano", "-w", "1", "--with-workers", "1", "-y"],
            "worker 1 can't be cut off from worker 1",
        ),
        (&["experts", "nano", "--context", "mars"], "context"),
    ] {
        let ran = played.api.run(arguments).await;
        assert_eq!(ran.code, 1, "{arguments:?}: {}", ran.stdout);
        assert!(
            ran.stderr.starts_with("error: ") && ran.stderr.contains(message),
            "{arguments:?}: {}",
            ran.stderr
        );
    }
    assert_eq!(played.api.run(&["experts"]).await.code, 2);
    assert!(played.workers.iter().all(|worker| worker.injected().is_empty()));
}

#[tokio::test]
async fn watching_without_a_terminal_is_a_line_of_json_for_each_look() {
    let played = play(json!({})).await;
    let mut watch = played.api.command(&["experts", "nano", "--watch", "-o", "json"]);
    let mut child = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut look = async || {
        let line = timeout(Duration::from_secs(20), lines.next_line()).await.expect("no look in time");
        serde_json::from_str::<Value>(&line.unwrap().unwrap()).unwrap()
    };
    assert_eq!(look().await["groups"][0]["epoch"], 3);
    played.workers[0].change(|script| script.answer.status.coverage.as_mut().unwrap().uncovered = 5);
    let mut looks = 0;
    while look().await["groups"][0]["experts"]["covered"] != 43 {
        looks += 1;
        assert!(looks < 10, "the change is not seen");
    }
    // whoever has seen enough closes the pipe
    drop(lines);
    let ended = timeout(Duration::from_secs(20), child.wait()).await.expect("it goes on without a reader");
    assert!(ended.unwrap().success());
}

#[tokio::test]
async fn rebalance_sets_a_fresh_value() {
    let played = play(json!({"experts": {"rebalance": {"policy": "Manual"}}})).await;
    for _ in 0..2 {
        let ran = played.api.run(&["rebalance", "nano"]).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("kubectl belay experts nano -n models --watch"), "{}", ran.stdout);
    }
    let patches = played.api.objects.lock().unwrap().patches.clone();
    let values: Vec<&str> = patches
        .iter()
        .map(|patch| patch["metadata"]["annotations"]["serving.belay.dev/rebalance"].as_str().unwrap())
        .collect();
    let times: Vec<jiff::Timestamp> = values.iter().map(|value| value.parse().unwrap()).collect();
    assert!(times.len() == 2 && times[0] < times[1], "{values:?}");

    let off = play(json!({"experts": {"rebalance": {"policy": "Off"}}})).await;
    let ran = off.api.run(&["rebalance", "nano"]).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("modeldeployment models/nano: spec.experts.rebalance.policy is Off"),
        "{}",
        ran.stderr
    );
    assert!(off.api.objects.lock().unwrap().patches.is_empty());
}

#[tokio::test]
async fn faults_are_told_injected_and_ended() {
    let played = play(json!({})).await;
    let slow =
        ["inject", "slow-rank", "nano", "--worker", "1", "--delay-ms", "40", "--seconds", "9", "--yes"];
    let ran = played.api.run(&slow).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for words in
        ["pod nano-ec7356da-0-1 on node-b, ranks 2-3", "take 40 ms longer, for 9 s", "inject none nano"]
    {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    let partition = ["inject", "partition", "nano", "-w", "1", "--with-workers", "0", "-y"];
    assert_eq!(played.api.run(&partition).await.code, 0);
    let injected = played.workers[1].injected();
    assert_eq!(
        (injected[0].fault(), injected[0].delay_milliseconds, injected[0].seconds),
        (Fault::Slow, 40, 9)
    );
    assert_eq!((injected[1].fault(), injected[1].workers.as_slice()), (Fault::Partition, &[0][..]));

    let ran = played.api.run(&["inject", "none", "nano"]).await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 2), "{}", ran.stderr);
    for worker in &played.workers {
        assert_eq!(worker.injected().last().unwrap().fault(), Fault::None);
    }
}

#[tokio::test]
async fn a_worker_without_fault_injection_says_how_to_get_it() {
    let played = play(json!({})).await;
    played.workers[0].change(|script| script.breakable = false);
    let ran = played.api.run(&["inject", "rank-loss", "nano", "--worker", "0", "--yes"]).await;
    assert_eq!(ran.code, 1);
    for words in
        ["pod models/nano-ec7356da-0-0", "BELAY_FAULT_INJECTION to \"on\"", "spec.group.template.env"]
    {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn the_end_of_a_worker_is_seen_at_its_pod() {
    let played = play(json!({})).await;
    played.api.objects.lock().unwrap().restarts_after = Some(2);
    let ran = played.api.run(&["inject", "rank-loss", "nano", "--worker", "1", "--yes"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("Its process will end as if killed"), "{}", ran.stdout);
    assert_eq!(played.workers[1].injected()[0].fault(), Fault::Exit);
    assert_eq!(played.api.objects.lock().unwrap().pod_reads, 3);
    let group = &played.group.name;
    assert!(
        ran.stdout.contains(&format!("kubectl belay experts nano -n models --group {group} --watch")),
        "{}",
        ran.stdout
    );
}

#[test]
fn the_command_line() {
    let parse = |line: &str| Cli::try_parse_from(["kubectl-belay"].into_iter().chain(line.split(' ')));
    let Command::Experts(args) = parse("experts nano -w -l 3 -g g").unwrap().command else { panic!() };
    assert_eq!(
        (args.watch, args.layer, args.group.as_deref(), args.output),
        (true, Some(3), Some("g"), Format::Text)
    );
    let Command::Inject(args) = parse("inject partition nano -w 1 --with-workers 0,2").unwrap().command
    else {
        panic!()
    };
    let FaultCommand::Partition { with_workers, seconds, .. } = &args.fault else { panic!() };
    assert_eq!((with_workers.as_slice(), *seconds), (&[0, 2][..], 30));
    assert_eq!(request(&args.fault).fault(), Fault::Partition);
    for wrong in [
        "inject rank-loss nano",
        "inject slow-rank nano -w 1 --delay-ms 0",
        "experts nano -o yaml",
        "experts nano --layer -1",
        "rebalance",
        "inject meteor nano",
    ] {
        assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[test]
fn help() {
    use clap::CommandFactory as _;
    let mut text = String::new();
    let mut command = Cli::command();
    command.build();
    let paths = [
        &[][..],
        &["status"],
        &["chat"],
        &["experts"],
        &["inject"],
        &["inject", "partition"],
        &["logs"],
        &["plan"],
        &["rank-table"],
        &["rebalance"],
        &["rollout"],
        &["rollout", "status"],
        &["rollout", "promote"],
    ];
    for path in paths {
        let mut at = &mut command;
        for name in path {
            at = at.find_subcommand_mut(name).unwrap();
        }
        text += &format!("{}\n---\n", at.render_long_help());
    }
    insta::assert_snapshot!("help", text);
}
