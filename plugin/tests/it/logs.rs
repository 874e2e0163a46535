//! `kubectl belay logs`: many pods as one.
use std::{process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::support::{
    api_server::ApiServer,
    group::{self, Size},
};

fn line(second: u32, text: &str) -> String {
    format!("2026-11-27T10:00:{second:02}.5Z {text}")
}

async fn play() -> ApiServer {
    let api = ApiServer::start().await;
    api.knows(&group::group(Size::SMALL), json!({}));
    {
        let mut objects = api.objects.lock().unwrap();
        objects.logs.insert(group::pod(0).name, vec![line(1, "one"), line(4, "four"), line(5, "")]);
        objects.logs.insert(group::pod(1).name, vec![line(2, "two"), line(3, "three")]);
    }
    api
}

#[tokio::test]
async fn lines_of_all_pods_are_in_the_order_of_time() {
    let api = play().await;
    let ran = api.run(&["logs", "nano"]).await;
    let (first, second) = (group::pod(0).name, group::pod(1).name);
    assert_eq!(
        ran.stdout,
        format!("{first} | one\n{second} | two\n{second} | three\n{first} | four\n{first} |\n")
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let ran =
        api.run(&["logs", "nano", "--worker", "1", "--since", "1m30s", "--tail", "5", "--previous"]).await;
    assert_eq!(ran.stdout.lines().count(), 2);
    let query = api.objects.lock().unwrap().log_queries.last().unwrap().clone();
    for part in ["container=worker", "previous=true", "sinceSeconds=90", "tailLines=5", "timestamps=true"] {
        assert!(query.contains(part), "{part}: {query}");
    }
    let none = api.run(&["logs", "nano", "-g", "x", "-w", "3"]).await;
    assert_eq!(none.stderr, "error: modeldeployment models/nano: it has no pods of group x of worker 3\n");
    assert_eq!(api.run(&["logs", "nano", "--since", "soon"]).await.code, 2);
}

#[tokio::test]
async fn a_pod_without_a_log_does_not_hide_the_others() {
    let api = play().await;
    api.objects.lock().unwrap().logs.remove(&group::pod(0).name);
    let ran = api.run(&["logs", "nano"]).await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 2));
    assert!(ran.stderr.contains("pod nano-ec7356da-0-0: log of pod"), "{}", ran.stderr);
    api.objects.lock().unwrap().logs.clear();
    let ran = api.run(&["logs", "nano"]).await;
    assert!(ran.code == 1 && ran.stderr.contains("no pod has a log"), "{}", ran.stderr);
}

#[tokio::test]
async fn following_goes_on_with_pods_that_come_later() {
    let api = play().await;
    let (first, second) = (group::pod(0).name, group::pod(1).name);
    let later = {
        let mut objects = api.objects.lock().unwrap();
        objects.pods.pop().unwrap()
    };
    let mut command = api.command(&["logs", "nano", "-f", "--tail", "2"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(Duration::from_secs(30), lines.next_line()).await.expect("nothing comes");
        line.unwrap().unwrap()
    };
    for text in ["one", "four", ""] {
        assert_eq!(next().await.trim_end(), format!("{first} | {text}").trim_end());
    }
    // what is written from now on
    let write = |pod: &str, text: String| {
        api.objects.lock().unwrap().logs.get_mut(pod).unwrap().push(text);
    };
    write(&first, line(6, "six"));
    assert_eq!(next().await, format!("{first} | six"));
    // a pod that is new
    api.objects.lock().unwrap().pods.push(later);
    assert_eq!(next().await, format!("{second} | two"));
    assert_eq!(next().await, format!("{second} | three"));
    // a container that ends and starts anew: what was shown is not shown again
    let written = api.objects.lock().unwrap().logs.remove(&first).unwrap();
    let closed = async || loop {
        // the stream has ended once somebody asks for the log again
        let asked = api
            .objects
            .lock()
            .unwrap()
            .log_queries
            .iter()
            .filter(|query| query.contains("sinceTime"))
            .count();
        if asked > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    timeout(Duration::from_secs(30), closed()).await.expect("nobody asks again");
    api.objects.lock().unwrap().logs.insert(first.clone(), written);
    write(&first, line(7, "seven"));
    assert_eq!(next().await, format!("{first} | seven"));
    let queries = api.objects.lock().unwrap().log_queries.clone();
    assert!(queries[0].contains("tailLines=2") && !queries[1].contains("tailLines"), "{queries:?}");
}
