//! `kubectl belay rollout` as people run it.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::support::{
    api_server::ApiServer,
    group::{self, Size},
};

/// A deployment in the middle of a rollout to its third revision.
async fn play(spec: Value) -> ApiServer {
    let api = ApiServer::start().await;
    api.knows(&group::group(Size::SMALL), spec);
    for (number, revision) in ["aaaa1111", "bbbb2222", "cccc3333"].into_iter().enumerate() {
        api.knows_revision(revision, number as i64 + 1, &format!("worker:{number}"));
    }
    status(&api, "True", "RollingOut", 1);
    api
}

fn status(api: &ApiServer, moving: &str, reason: &str, updated: i64) {
    let old = json!({"name": "nano-bbbb2222-0", "revision": "bbbb2222", "draining": true});
    api.objects.lock().unwrap().deployment["status"] = json!({
        "observedGeneration": 7, "readyReplicas": 2, "updatedReplicas": updated, "updatedRevision": "cccc3333",
        "conditions": [
            {"type": "Progressing", "status": moving, "reason": reason, "message": "still there: nano-bbbb2222-0"},
        ],
        "groups": [{"name": "nano-cccc3333-0", "revision": "cccc3333"}, old],
    });
}

fn patches(api: &ApiServer) -> Vec<Value> {
    api.objects.lock().unwrap().patches.clone()
}

#[tokio::test]
async fn status_tells_each_step_until_it_is_over() {
    let api = play(json!({"replicas": 2})).await;
    let ran = api.run(&["rollout", "status", "nano", "--once"]).await;
    assert_eq!(ran.code, 1, "it is not over");
    assert_eq!(
        ran.stdout,
        "revision cccc3333: 1 of 2 groups updated, 2 ready; 1 group of bbbb2222, 1 draining \
         (RollingOut: still there: nano-bbbb2222-0)\n  strategy RollingUpdate\n"
    );
    assert!(ran.stderr.contains("modeldeployment models/nano: the rollout is not over"), "{}", ran.stderr);

    let mut following = api.command(&["rollout", "status", "nano"]);
    let mut child = following.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = timeout(Duration::from_secs(20), lines.next_line()).await.expect("nothing is told");
        line.unwrap()
    };
    assert!(line().await.unwrap().contains("1 of 2 groups updated"));
    assert_eq!(line().await.unwrap(), "  strategy RollingUpdate");
    status(&api, "False", "Settled", 2);
    assert!(line().await.unwrap().contains("2 of 2 groups updated"));
    assert_eq!(line().await.unwrap(), "  strategy RollingUpdate");
    assert_eq!(line().await, None, "it is over");
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn what_stays_where_it_is_is_over_too_and_what_nobody_has_seen_is_not() {
    let api = play(json!({"replicas": 2})).await;
    status(&api, "False", "RolloutPaused", 1);
    assert_eq!(api.run(&["rollout", "status", "nano", "--once"]).await.code, 0);
    status(&api, "False", "Settled", 1);
    assert_eq!(api.run(&["rollout", "status", "nano", "--once"]).await.code, 1, "a group is missing");
    status(&api, "False", "Settled", 2);
    api.objects.lock().unwrap().deployment["metadata"]["generation"] = 8.into();
    let ran = api.run(&["rollout", "status", "nano", "--once"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "the operator has not seen the spec yet\n"));
}

/// What the operator says of a canary, or a preview.
fn waits(api: &ApiServer, role: &str, phase: &str) {
    let mut objects = api.objects.lock().unwrap();
    let share = |revision: &str, percent: i64, role: &str| json!({"revision": revision, "weightPercent": percent, "role": role});
    objects.deployment["status"]["traffic"] =
        json!([share("bbbb2222", 90, "Stable"), share("cccc3333", 10, role)]);
    objects.deployment["status"]["rollout"] = json!({
        "revision": "cccc3333", "phase": phase, "step": 1, "steps": 2, "weightPercent": 10, "since": "2026-11-27T10:00:00Z",
        "message": "until 2026-11-27T10:01:00Z",
        "analysis": [{"name": "Errors", "verdict": "Good", "message": "0 of 120, 1 of 1080"}],
    });
}

#[tokio::test]
async fn status_tells_shares_steps_and_what_the_analysis_finds() {
    let api = play(json!({"replicas": 2, "rollout": {"strategy": "Canary"}})).await;
    status(&api, "False", "RolloutHolding", 2);
    waits(&api, "Canary", "Holding");
    let ran = api.run(&["rollout", "status", "nano", "--once"]).await;
    assert_eq!(ran.code, 1, "it holds: {}", ran.stdout);
    let lines: Vec<&str> = ran.stdout.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "  strategy Canary; 90% of requests to bbbb2222 (stable); 10% of requests to cccc3333 (canary)",
            "  rollout of cccc3333: Holding, step 1 of 2, 10% of requests, since 2026-11-27T10:00:00Z: until \
             2026-11-27T10:01:00Z",
            "  analysis Errors: Good (0 of 120, 1 of 1080)",
        ]
    );
    waits(&api, "Preview", "WaitingForPromotion");
    assert_eq!(api.run(&["rollout", "status", "nano", "--once"]).await.code, 0, "it waits for a person");
    for (phase, why) in [("RolledBack", "the revision was taken back"), ("Stuck", "the rollout is stuck")] {
        waits(&api, "Canary", phase);
        let ran = api.run(&["rollout", "status", "nano"]).await;
        assert!(ran.code == 1 && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn promote_is_for_what_waits() {
    let api = play(json!({"replicas": 2})).await;
    let refused = async |words: &str| {
        let ran = api.run(&["rollout", "promote", "nano"]).await;
        assert!(ran.code == 1 && ran.stderr.contains(words), "{words}: {}", ran.stderr);
    };
    refused("modeldeployment models/nano: no canary or preview waits to be promoted: strategy RollingUpdate")
        .await;
    api.objects.lock().unwrap().deployment["spec"]["rollout"] = json!({"strategy": "Canary"});
    refused("no canary or preview waits to be promoted\n").await;
    waits(&api, "Canary", "Holding");
    api.objects.lock().unwrap().deployment["metadata"]["generation"] = 8.into();
    refused("has not seen the newest spec yet").await;
    assert!(patches(&api).is_empty());
    api.objects.lock().unwrap().deployment["metadata"]["generation"] = 7.into();
    for phase in ["Holding", "RolledBack"] {
        waits(&api, "Canary", phase);
        let ran = api.run(&["rollout", "promote", "nano"]).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    }
    let words: Vec<String> = patches(&api)
        .iter()
        .map(|patch| {
            patch["metadata"]["annotations"]["serving.belay.dev/promote"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(words.len() == 2 && words.iter().all(|word| word.starts_with("cccc3333/")), "{words:?}");
    assert_ne!(words[0], words[1], "only another word counts");
}

#[tokio::test]
async fn history_lists_the_newest_first() {
    let api = play(json!({})).await;
    let ran = api.run(&["rollout", "history", "nano"]).await;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.stdout);
    assert!(lines[1].starts_with("cccc3333     3       1  2026-11-04T10:00:00Z"), "{}", lines[1]);
    assert!(lines[3].ends_with("2 x 2 ranks of /models/1, worker:0"), "{}", lines[3]);
    let ran = api.run(&["rollout", "history", "nano", "-o", "json"]).await;
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json[0]["revision"], "cccc3333");
    assert_eq!(json[2]["data"]["image"], "worker:0");
}

#[tokio::test]
async fn pause_and_resume_set_the_field_once() {
    let api = play(json!({"rollout": {"progress": "Paused"}})).await;
    let ran = api.run(&["rollout", "pause", "nano"]).await;
    assert!(ran.stdout.contains("is Paused already"), "{}", ran.stdout);
    assert!(patches(&api).is_empty());
    assert_eq!(api.run(&["rollout", "resume", "nano"]).await.code, 0);
    assert_eq!(patches(&api), [json!({"spec": {"rollout": {"progress": "Automatic"}}})]);
}

#[tokio::test]
async fn undo_asks_for_what_an_earlier_revision_was_made_from() {
    let api = play(json!({"rollout": {"progress": "Paused"}})).await;
    let ran = api.run(&["rollout", "undo", "nano"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("back to revision bbbb2222 (it was cccc3333)"), "{}", ran.stdout);
    assert!(ran.stdout.contains("kubectl belay rollout resume nano"), "{}", ran.stdout);
    let ran = api.run(&["rollout", "undo", "nano", "--to-revision", "aaaa1111"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let sent = patches(&api);
    assert_eq!(sent.len(), 2);
    for (patch, number) in sent.iter().zip([2, 1]) {
        assert_eq!(patch[0]["op"], "replace");
        assert_eq!(patch[0]["path"], "/spec/model");
        assert_eq!(patch[0]["value"]["source"]["hostPath"]["path"], format!("/models/{number}"));
        assert_eq!((&patch[1]["path"], &patch[1]["value"]["workers"]), (&json!("/spec/group"), &json!(2)));
    }
    let unknown = api.run(&["rollout", "undo", "nano", "--to-revision", "dddd"]).await;
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.stderr.contains("no revision dddd; it has cccc3333, bbbb2222, aaaa1111"),
        "{}",
        unknown.stderr
    );
    let same = api.run(&["rollout", "undo", "nano", "--to-revision", "cccc3333"]).await;
    assert!(same.code == 0 && same.stdout.contains("asked for already"), "{}", same.stdout);
    api.objects.lock().unwrap().revisions.truncate(3);
    api.objects.lock().unwrap().revisions.drain(..2);
    let none = api.run(&["rollout", "undo", "nano"]).await;
    assert!(none.stderr.contains("there is no revision before cccc3333"), "{}", none.stderr);
    assert_eq!(patches(&api).len(), 2);
}
