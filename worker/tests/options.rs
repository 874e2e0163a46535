//! What a request may ask for beside sampling: several answers, the prompt repeated, time, the chat's defaults.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use belay_proto::inference::generate_request::Prompt;
use belay_proto::inference::generate_response::StoppedBy;
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::tokenize_request::Input;
use belay_proto::inference::{
    ChatRequest, FinishReason, GenerateRequest, GenerateResponse, Message, Options, Sampling,
    TokenizeRequest, ToolChoice,
};
use common::{Case, ask, cases, generate, greedy, ids, inference, stand_alone, until};
use futures::TryStreamExt;
use tonic::Code;
use tonic::transport::Channel;

async fn pieces(client: &mut InferenceClient<Channel>, request: GenerateRequest) -> Vec<GenerateResponse> {
    client.generate(request).await.unwrap().into_inner().try_collect().await.unwrap()
}

fn with_options(case: &Case, options: Options) -> GenerateRequest {
    GenerateRequest { options: Some(options), ..ask(ids(&case.prompt_ids)) }
}

#[tokio::test]
async fn each_of_n_answers_is_the_one_that_its_seed_gives_alone() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let sampled = |seed, n| {
        let sampling = Sampling { temperature: Some(2.0), seed: Some(seed), n, ..greedy(24) };
        GenerateRequest { sampling: Some(sampling), ..ask(ids(&case.prompt_ids)) }
    };
    let first_seed = u64::MAX - 1;
    let found = pieces(&mut client, sampled(first_seed, Some(4))).await;
    let mut distinct = std::collections::BTreeSet::new();
    for index in 0..4u32 {
        let alone =
            generate(&mut client, sampled(first_seed.wrapping_add(u64::from(index)), None)).await.unwrap();
        let mut mine = found.iter().filter(|piece| piece.index == index);
        assert_eq!(mine.clone().next().unwrap().usage.unwrap().prompt_tokens as usize, case.prompt_ids.len());
        let ids: Vec<u32> = mine.clone().flat_map(|piece| piece.ids.clone()).collect();
        let text: String = mine.clone().map(|piece| piece.text.as_str()).collect();
        assert_eq!((&ids, &text), (&alone.ids, &alone.text), "answer {index}");
        let last = mine.next_back().unwrap();
        assert_eq!((last.finish_reason(), last.usage.unwrap()), (alone.finish, alone.usage));
        distinct.insert(ids);
    }
    assert!(distinct.len() > 1, "seeds differ");
    assert_eq!(worker.context().shared.in_flight(), 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_reader_of_many_answers_that_goes_away_frees_them_all() {
    let worker = stand_alone(&["--max-sessions", "2"]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let sampling = Sampling { ignore_eos: true, n: Some(8), ..greedy(3500) };
    let request = GenerateRequest { sampling: Some(sampling), ..ask(ids(&case.prompt_ids)) };
    let mut stream = client.generate(request).await.unwrap().into_inner();
    assert!(stream.try_next().await.unwrap().is_some());
    drop(stream);
    let engine = worker.context().engine.load_full().unwrap();
    until("all are gone", || {
        let stats = engine.stats();
        stats.running + stats.queued == 0 && worker.context().shared.in_flight() == 0
    })
    .await;
    drop(engine);
    worker.stop().await;
}

#[tokio::test]
async fn how_many_answers_is_bounded() {
    let worker = stand_alone(&["--max-queued", "5"]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    for (n, resume, named) in
        [(0, vec![], "n: must be"), (6, vec![], "from 1 to 5"), (2, vec![5], "resume_ids: ")]
    {
        let sampling = Sampling { n: Some(n), ..greedy(4) };
        let request =
            GenerateRequest { sampling: Some(sampling), resume_ids: resume, ..ask(ids(&case.prompt_ids)) };
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(named), "{refused}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn the_prompt_is_repeated_once_and_the_end_says_what_ended_it() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let echo = Options { echo: true, ..Options::default() };
    for prompt in [Prompt::Text(case.prompt.clone()), ids(&case.prompt_ids)] {
        let request = GenerateRequest { options: Some(echo.clone()), ..ask(prompt) };
        let found = pieces(&mut client, request).await;
        assert_eq!(found[0].prompt_text, case.prompt);
        assert!(found[1..].iter().all(|piece| piece.prompt_text.is_empty()));
        assert_eq!(found.last().unwrap().stopped_by, None, "end-of-sequence is no stop id");
    }
    let stopped = async |client: &mut InferenceClient<Channel>, sampling| {
        let request = GenerateRequest { sampling: Some(sampling), ..ask(ids(&case.prompt_ids)) };
        pieces(client, request).await.pop().unwrap()
    };
    let last = stopped(&mut client, Sampling { stop: vec!["cluster".into()], ..greedy(128) }).await;
    assert_eq!(last.stopped_by, Some(StoppedBy::StopString("cluster".into())));
    let last = stopped(&mut client, Sampling { stop_ids: vec![case.greedy_ids[3]], ..greedy(128) }).await;
    assert_eq!(last.stopped_by, Some(StoppedBy::StopId(case.greedy_ids[3])));
    assert_eq!(last.finish_reason(), FinishReason::Stop);
    worker.stop().await;
}

#[tokio::test]
async fn chat_defaults_are_the_deployments() {
    let case = &cases("fact", 1)[0];
    let message = |message: &common::Message| Message {
        role: message.role.clone(),
        content: message.content.clone(),
        ..Message::default()
    };
    let chat =
        ChatRequest { messages: case.messages.iter().map(message).collect(), ..ChatRequest::default() };
    for (extra, thinking, ending) in [
        (&[] as &[&str], None, "<think>"),
        (&[], Some(false), "</think>"),
        (&["--default-thinking", "off"], None, "</think>"),
        (&["--default-thinking", "off"], Some(true), "<think>"),
    ] {
        let worker = stand_alone(extra).await;
        let input = Input::Chat(ChatRequest { thinking, ..chat.clone() });
        let request = TokenizeRequest { model: String::new(), input: Some(input) };
        let found = inference(&worker).await.tokenize(request).await.unwrap().into_inner();
        let text: Vec<u8> = found.tokens.concat();
        assert!(String::from_utf8(text).unwrap().ends_with(&format!("<｜Assistant｜>{ending}")), "{extra:?}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn what_a_chat_may_not_ask_for_is_named() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let message = Message { role: "user".into(), content: "hi".into(), ..Message::default() };
    let base = ChatRequest { messages: vec![message], ..ChatRequest::default() };
    let choice = |mode, function: &str| Some(ToolChoice { mode, function: function.into(), single: false });
    let cases = [
        (
            "functions[1]: not JSON",
            ChatRequest { functions: vec!["{\"name\":\"f\"}".into(), "{".into()], ..base.clone() },
        ),
        ("tool_choice.mode: 9", ChatRequest { tool_choice: choice(9, ""), ..base.clone() }),
        ("tool_choice.function: must be set", ChatRequest { tool_choice: choice(4, ""), ..base.clone() }),
        ("tool_choice.function: \"f\"", ChatRequest { tool_choice: choice(1, "f"), ..base.clone() }),
    ];
    for (named, request) in cases {
        let refused = client.chat(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(named), "{refused}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_prompt_of_ten_megabytes_is_refused_at_once_and_holds_up_nobody() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let started = Instant::now();
    let mut other = client.clone();
    let huge = async {
        for text in ["a".repeat(10 << 20), "\u{fffd} 1".repeat(2 << 20)] {
            let refused = generate(&mut other, ask(Prompt::Text(text))).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().starts_with("prompt: "), "{refused}");
            assert!(refused.message().contains("do not fit"), "{refused}");
        }
    };
    let request = with_options(case, Options::default());
    let (answer, ()) = tokio::join!(generate(&mut client, request), huge);
    assert_eq!(answer.unwrap().ids, case.greedy_ids);
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    worker.stop().await;
}
