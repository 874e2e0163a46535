//! Workers on simulated NPUs: alone and in a group, with the same answers as on processors.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use belay_proto::admin::Phase;
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::{GenerateRequest, Sampling};
use common::group::{Member, group_with, placement_with};
use common::{
    Process, admin, ask, cases, channel, collect, generate, greedy, http_get, ids, retry_hint, status,
    wait_phase,
};
use futures::TryStreamExt;

/// The simulator's library, which cargo builds beside the test programs.
fn library() -> String {
    let program = std::env::current_exe().unwrap();
    let folders = program.ancestors().skip(1).take(2);
    let mut files = folders.map(|folder| folder.join("libbelay_ascend_sim.so"));
    files.find(|file| file.exists()).expect("the simulator is built").to_str().unwrap().to_owned()
}

const SMALL: [&str; 4] = ["--device", "Ascend", "--memory", "16Mi"];

#[tokio::test]
async fn a_worker_answers_with_its_experts_on_four_npus() {
    let library = library();
    let environment = [("BELAY_CANN_LIBRARY", library.as_str()), ("BELAY_ASCEND_CHIP", "A2")];
    let worker = Process::start_with(&environment, &[&SMALL[..], &["--devices-per-worker", "4"]].concat());
    let mut admin = admin(&worker.admin).await;
    wait_phase(&mut admin, Phase::Ready).await;
    let ranks = status(&mut admin).await.ranks;
    assert_eq!(ranks.iter().map(|rank| rank.experts).collect::<Vec<_>>(), [20; 4]);
    let mut client = InferenceClient::new(channel(&worker.grpc).await);
    for case in cases("fact", 2) {
        let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
        assert_eq!(answer.ids, case.greedy_ids, "{}", case.id);
    }
    assert_eq!(http_get(&worker.http, "/healthz").await.0, 200);
    let (_, metrics) = http_get(&worker.http, "/metrics").await;
    for operator in ["aclnnSoftplus", "aclnnClippedSwiglu"] {
        let used = format!("belay_fused_operator{{operator=\"{operator}\"}} 1");
        assert!(metrics.contains(&used), "{used} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_group_answers_with_its_experts_on_all_npus() {
    let library = library();
    let environment = [("BELAY_CANN_LIBRARY", library.as_str())];
    let members = group_with(&environment, &["a", "b"], 1, &SMALL).await;
    for member in &members {
        in_circle(member, 2).await;
    }
    for (member, case) in members.iter().zip(cases("fact", 2)) {
        let answer = generate(&mut member.inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
        assert_eq!(answer.ids, case.greedy_ids, "{}", case.id);
        // now and then the first rank has all experts that a layer's rows need, and nobody is asked
        let rounds = metric(member, "belay_fabric_rounds_total").await;
        assert!(rounds as usize >= 2 * answer.ids.len(), "{rounds} rounds for {} tokens", answer.ids.len());
        assert_eq!(metric(member, "belay_fabric_rounds_failed_total").await, 0.0);
        assert_eq!(metric(member, "belay_fabric_rows_sent_total").await, 0.0, "none over TCP");
    }
}

#[tokio::test]
async fn the_npus_of_one_worker_exchange_rows_as_those_of_several_do() {
    let library = library();
    let environment = [("BELAY_CANN_LIBRARY", library.as_str())];
    let members = group_with(&environment, &["a"], 1, &SMALL).await;
    in_circle(&members[0], 1).await;
    let case = &cases("fact", 1)[0];
    let answer = generate(&mut members[0].inference().await, ask(ids(&case.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, case.greedy_ids);
    assert!(metric(&members[0], "belay_fabric_rounds_total").await > 0.0);
}

/// A metric without labels; `NaN` if there is none.
async fn metric(member: &Member, name: &str) -> f64 {
    let (_, text) = http_get(&member.process.http, "/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(f64::NAN, |value| value.parse().unwrap())
}

/// Waits until the NPUs of so many workers exchange rows by themselves.
async fn in_circle(member: &Member, workers: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while metric(member, "belay_fabric_circle_workers").await != f64::from(workers) {
        assert!(Instant::now() < deadline, "no circle of {workers}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_does_not_fit_is_said_before_anything_is_served() {
    let library = library();
    let refused = |environment: &[(&str, &str)], extra: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_belay-worker"));
        command.args(["serve", "--device", "Ascend", "--model-dir", "/nowhere"]).args(extra);
        command.env("BELAY_CANN_LIBRARY", &library).envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&[], &["--devices-per-worker", "9"]);
    assert!(said.contains("9 ranks need 9 NPUs, and there are 8 (BELAY_DEVICES_PER_WORKER)"), "{said}");
    let said = refused(&[("BELAY_ASCEND_CHIP", "A3")], &[]);
    assert!(said.contains("made for A3, device 0 is Ascend910B3 (A2)"), "{said}");
    let said = refused(&[("BELAY_CANN_LIBRARY", "/nowhere.so")], &[]);
    assert!(said.contains("/nowhere.so"), "{said}");
}

#[tokio::test]
async fn experts_that_have_no_room_are_the_reason_to_fail() {
    let library = library();
    // less than the temporaries and the caches leave
    let small = r#"{"memory_bytes":100000000}"#;
    let environment = [("BELAY_CANN_LIBRARY", library.as_str()), ("BELAY_ASCEND_SIM", small)];
    let worker = Process::start_with(&environment, &["--device", "Ascend", "--memory", "30Mi"]);
    let mut admin = admin(&worker.admin).await;
    let failed = wait_phase(&mut admin, Phase::Failed).await;
    assert_eq!(failed.reason, "OutOfMemory", "{}", failed.message);
    assert!(
        failed.message.contains("tensor") && failed.message.contains("device memory"),
        "{}",
        failed.message
    );
}

/// A stream through the loss of an NPU of the other worker, whose experts have copies here.
#[tokio::test]
async fn a_worker_that_loses_an_npu_leaves_and_the_other_goes_on() {
    let library = library();
    let folder = tempfile::tempdir().unwrap();
    let control = |index: u32| folder.path().join(index.to_string());
    let simulated = |index: u32| format!(r#"{{"control":"{}"}}"#, control(index).display());
    let mut members = Vec::new();
    for (index, uid) in [(0, "a"), (1, "b")] {
        let simulated = simulated(index);
        let environment = [("BELAY_CANN_LIBRARY", library.as_str()), ("BELAY_ASCEND_SIM", &simulated)];
        members.push(Member::start_with(&environment, index, uid, &SMALL).await);
    }
    let placement = placement_with(2, 1, &members.iter().collect::<Vec<_>>());
    for member in &mut members {
        wait_phase(&mut member.admin, Phase::WaitingForPlacement).await;
        member.place(&placement).await.unwrap();
    }
    for member in &mut members {
        member.ready_in(1).await;
    }
    for member in &members {
        in_circle(member, 2).await;
    }
    let long = |prompt: &[u32]| {
        let sampling = Sampling { ignore_eos: true, ..greedy(60) };
        GenerateRequest { sampling: Some(sampling), ..ask(ids(prompt)) }
    };
    let prompt = cases("fact", 1)[0].prompt_ids.clone();
    let expected = generate(&mut members[0].inference().await, long(&prompt)).await.unwrap().ids;

    let mut here = members[0].inference().await.generate(long(&prompt)).await.unwrap().into_inner();
    let mut there = members[1].inference().await.generate(long(&prompt)).await.unwrap().into_inner();
    let mut tokens = here.try_next().await.unwrap().unwrap().ids;
    there.try_next().await.unwrap().unwrap();
    std::fs::write(control(1), "lose 1 507901\n").unwrap();
    tokens.extend(collect(here).await.expect("the stream goes on").ids);
    assert_eq!(tokens, expected, "not a token differs");
    let failed = wait_phase(&mut members[1].admin, Phase::Failed).await;
    assert_eq!(failed.reason, "DeviceLost", "{}", failed.message);
    assert!(failed.message.contains("507901"), "{}", failed.message);
    // those that are left make a circle of their own
    in_circle(&members[0], 1).await;
    // what was asked there goes on elsewhere, or had its experts' copies here until the end
    if let Err(status) = collect(there).await {
        assert!(retry_hint(&status).is_some(), "{status:?}");
    }
    let left = members[1].inference().await.generate(long(&prompt)).await.unwrap_err();
    assert_eq!(left.code(), tonic::Code::Unavailable, "{left:?}");

    // a new pod in its place: with the next epoch their devices exchange rows again
    let lost = members.pop().unwrap();
    drop(lost);
    let environment = [("BELAY_CANN_LIBRARY", library.as_str())];
    members.push(Member::start_with(&environment, 1, "c", &SMALL).await);
    let placement = placement_with(2, 2, &members.iter().collect::<Vec<_>>());
    wait_phase(&mut members[1].admin, Phase::WaitingForPlacement).await;
    for member in &mut members {
        member.place(&placement).await.unwrap();
    }
    for member in &mut members {
        member.ready_in(2).await;
    }
    for member in &members {
        in_circle(member, 2).await;
        let again = generate(&mut member.inference().await, long(&prompt)).await.unwrap().ids;
        assert_eq!(again, expected);
    }
    assert!(metric(&members[1], "belay_fabric_rounds_total").await > 0.0);
}

/// Rows that travel as bf16 give the same tokens whichever way they go.
#[tokio::test]
async fn rows_in_bf16_give_the_same_tokens_by_hccl_and_over_tcp() {
    let library = library();
    let mut found = Vec::new();
    for rows in ["hccl", "tcp"] {
        let environment = [("BELAY_CANN_LIBRARY", library.as_str()), ("BELAY_ASCEND_ROWS", rows)];
        let options = [&SMALL[..], &["--fabric-format", "bf16"]].concat();
        let members = group_with(&environment, &["a", "b"], 1, &options).await;
        let workers = if rows == "hccl" { 2 } else { 0 };
        in_circle(&members[0], workers).await;
        in_circle(&members[1], workers).await;
        let mut client = members[0].inference().await;
        let mut answers = Vec::new();
        for case in cases("fact", 3) {
            answers.push(generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap().ids);
        }
        let sent = metric(&members[0], "belay_fabric_rows_sent_total").await;
        assert_eq!(sent > 0.0, rows == "tcp", "{sent} rows over TCP");
        found.push(answers);
    }
    assert_eq!(found[0], found[1]);
}

/// What is run first on a real NPU: the golden cases, by the command line.
#[test]
fn logits_of_golden_cases_are_written_and_are_the_references() {
    use safetensors::SafeTensors;
    let folder = tempfile::tempdir().unwrap();
    let case = common::nano().join("../../golden/public_sliding_hash");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(case.join("golden.json")).unwrap()).unwrap();
    let sequence = &golden["sequences"][0];
    let ids = ["prompt", "greedy"].map(|part| sequence[part].as_array().unwrap().clone()).concat();
    let input = serde_json::json!({"sequences": [{"name": sequence["name"], "ids": ids}]});
    let (ids, out) = (folder.path().join("ids.json"), folder.path().join("out.safetensors"));
    std::fs::write(&ids, input.to_string()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_belay-worker"));
    command.env("BELAY_CANN_LIBRARY", library()).arg("logits");
    command.arg("--model").arg(&case).arg("--ids").arg(&ids).arg("--out").arg(&out);
    command.args(["--device", "Ascend", "--ascend-products", "f32", "--ranks", "2", "--memory", "8Mi"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |path: &std::path::Path| {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(&format!("{}.logits", sequence["name"].as_str().unwrap())).unwrap();
        tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
    };
    let (found, expected) = (read(&out), read(&case.join("golden.safetensors")));
    assert_eq!(found.len(), expected.len());
    let differ = found.iter().zip(&expected).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
    assert!(differ < 1e-4, "{differ}");
}
