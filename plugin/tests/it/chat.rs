//! `kubectl belay chat` with workers and gateways behind port-forwards.
use std::{
    io,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use belay_proto::inference::inference_client::InferenceClient;
use kubectl_belay::{
    chat::{
        session::Session,
        source::Source,
        talk::{Manner, Talk},
    },
    terminal::output::Output,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use crate::support::{
    api_server::{ApiServer, Ran},
    group::{self, Size},
    speaker::{Speaker, Speech},
};

const WORKER_PORT: u16 = 50051;
const GATEWAY_PORT: u16 = 8088;

/// Two workers that are ready.
async fn play(speeches: [Speech; 2]) -> (ApiServer, Vec<Speaker>) {
    let api = ApiServer::start().await;
    api.knows(&group::group(Size::SMALL), json!({"model": {"name": "deepseek-v4-nano"}}));
    let mut speakers = vec![];
    for (worker, (name, speech)) in (0..).zip(["first", "second"].into_iter().zip(speeches)) {
        let speaker = Speaker::start(name, speech).await;
        let at = (group::pod(worker).name, WORKER_PORT);
        api.objects.lock().unwrap().ports.insert(at, speaker.address);
        speakers.push(speaker);
    }
    (api, speakers)
}

/// A gateway in a namespace of its own, its port under another number than usual.
async fn gateway(api: &ApiServer, speech: Speech) -> Speaker {
    let speaker = Speaker::start("gateway", speech).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "belay-gateway-x", "namespace": "models", "uid": "uid-gateway"},
        "spec": {"containers": [{"name": "gateway", "ports": [
            {"name": "http", "containerPort": 9090}, {"name": "api", "containerPort": GATEWAY_PORT}]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    let mut objects = api.objects.lock().unwrap();
    objects.lists.insert("/api/v1/pods".into(), vec![pod]);
    objects.ports.insert(("belay-gateway-x".into(), GATEWAY_PORT), speaker.address);
    speaker
}

async fn with_input(api: &ApiServer, arguments: &[&str], input: &str) -> Ran {
    let mut command = api.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn one_question_prints_the_answer_and_nothing_else() {
    let (api, speakers) = play([Speech::Answers, Speech::Answers]).await;
    let options = [
        "chat",
        "nano",
        "-p",
        "one?",
        "--system",
        "be brief",
        "--max-tokens",
        "9",
        "--temperature",
        "0",
        "--thinking",
        "off",
    ];
    let ran = api.run(&options).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "first heard 2 messages\n", ""));
    let (asked, key) = speakers[0].asked.lock().unwrap()[0].clone();
    assert_eq!((asked.model.as_str(), asked.thinking, key), ("deepseek-v4-nano", Some(false), None));
    let sampling = asked.sampling.unwrap();
    assert_eq!((sampling.max_tokens, sampling.temperature), (Some(9), Some(0.0)));
    assert_eq!((asked.messages[0].role.as_str(), asked.messages[1].content.as_str()), ("system", "one?"));

    let ran = with_input(&api, &["chat", "nano", "-p", "-"], "from a pipe\nof two lines").await;
    assert_eq!(ran.stdout, "first heard 1 messages\n");
    let asked = speakers[0].asked.lock().unwrap()[1].0.clone();
    assert_eq!(asked.messages[0].content, "from a pipe\nof two lines");
    let empty = api.run(&["chat", "nano", "-p", " "]).await;
    assert_eq!((empty.code, empty.stderr.as_str()), (1, "error: the question is empty\n"));
}

#[tokio::test]
async fn each_question_comes_with_what_was_said() {
    let (api, speakers) = play([Speech::Answers, Speech::Answers]).await;
    let ran = with_input(&api, &["chat", "nano"], "one?\n\ntwo?\n").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "first heard 1 messages\nfirst heard 3 messages\n"));
    let asked = speakers[0].asked.lock().unwrap()[1].0.clone();
    assert_eq!(asked.messages[1].content, "first heard 1 messages");
    assert_eq!(asked.messages[1].reasoning, "let me see");
}

#[tokio::test]
async fn a_gateway_is_asked_first_and_gets_the_key() {
    let (api, speakers) = play([Speech::Answers, Speech::Answers]).await;
    let gateway = gateway(&api, Speech::Answers).await;
    let ran = api.run(&["chat", "nano", "-p", "one?", "--api-key", "sesame"]).await;
    assert_eq!(ran.stdout, "gateway heard 1 messages\n", "{}", ran.stderr);
    assert_eq!(gateway.asked.lock().unwrap()[0].1.as_deref(), Some("Bearer sesame"));
    let past = api.run(&["chat", "nano", "-p", "one?", "--via", "worker", "--api-key", "sesame"]).await;
    assert_eq!(past.stdout, "first heard 1 messages\n");
    assert_eq!(speakers[0].asked.lock().unwrap()[0].1, None, "a worker asks for none");
}

#[tokio::test]
async fn who_cannot_answer_is_passed_over() {
    let (api, speakers) = play([Speech::Refuses(Status::unavailable("draining")), Speech::Answers]).await;
    let ran = with_input(&api, &["chat", "nano"], "one?\ntwo?\n").await;
    assert_eq!(ran.stdout, "second heard 1 messages\nsecond heard 3 messages\n", "{}", ran.stderr);
    assert_eq!(speakers[0].asked.lock().unwrap().len(), 1, "who answered is asked again");
}

#[tokio::test]
async fn what_goes_wrong_is_told_in_words() {
    let key = Speech::Refuses(Status::unauthenticated("no key"));
    let (api, _speakers) = play([key, Speech::Answers]).await;
    let ran = api.run(&["chat", "nano", "-p", "one?"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: pod models/nano-ec7356da-0-0: it asks for an API key (--api-key, or BELAY_API_KEY): no key\n"
    );
    let (api, _speakers) = play([Speech::BreaksOff, Speech::Answers]).await;
    let ran = api.run(&["chat", "nano", "-p", "one?"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "first heard 1\n"));
    assert!(ran.stderr.contains("the answer breaks off: the worker is about to end"), "{}", ran.stderr);
    // nobody is ready
    api.objects.lock().unwrap().pods.iter_mut().for_each(|pod| pod["status"]["conditions"] = json!([]));
    let ran = api.run(&["chat", "nano", "-p", "one?"]).await;
    assert!(ran.stderr.contains("modeldeployment models/nano: no worker is ready"), "{}", ran.stderr);
    let ran = api.run(&["chat", "nano", "-p", "one?", "--via", "gateway"]).await;
    assert!(ran.stderr.contains("no gateway is found"), "{}", ran.stderr);
    // the way is closed
    let (api, speakers) = play([Speech::Answers, Speech::Answers]).await;
    drop(speakers);
    api.objects.lock().unwrap().ports.clear();
    let ran = api.run(&["chat", "nano", "-p", "one?"]).await;
    assert!(ran.stderr.contains("port-forward to pod nano-ec7356da-0-1"), "{}", ran.stderr);
    for wrong in [&["chat", "nano", "--temperature", "-1"][..], &["chat", "nano", "--max-tokens", "0"]] {
        assert_eq!(api.run(wrong).await.code, 2, "{wrong:?}");
    }
    assert_eq!(api.objects.lock().unwrap().patches, Vec::<Value>::new());
}

/// What is written can be seen while it is written.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stopped_answer_is_kept_as_far_as_it_came() {
    let speaker = Speaker::start("first", Speech::Hesitates).await;
    let client = InferenceClient::connect(format!("http://{}", speaker.address)).await.unwrap();
    let source = Source { name: "pod a".into(), is_gateway: false, client };
    let output = Output { is_terminal: true, coloured: false, width: 80 };
    let mut session = Session::new(vec![source], None, Talk::new(Manner::default()), output);
    for (question, told) in [("one?", "first heard 1"), ("two?", "first heard 3")] {
        let mut paper = Paper::default();
        let seen = paper.clone();
        let stop = async move {
            while !seen.text().contains(told) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let answered = session.answer(question, stop, &mut paper);
        tokio::time::timeout(Duration::from_secs(30), answered).await.expect("it does not stop").unwrap();
        let text = paper.text();
        assert!(text.starts_with(&format!("let me see\n\n{told}\n[2 tokens")), "{text}");
        assert!(text.ends_with(", stopped]\n"), "{text}");
    }
}
