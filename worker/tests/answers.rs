//! A stand-alone worker with the nano model gives the reference's answers, over every service.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use belay_proto::inference::generate_request::Prompt;
use belay_proto::inference::{ChatRequest, FinishReason, GenerateRequest, Message, Sampling};
use common::{Case, ask, cases, collect, generate, greedy, ids, inference, stand_alone};

#[tokio::test]
async fn generate_gives_the_reference_tokens_and_text() {
    let worker = stand_alone(&["--devices-per-worker", "4"]).await;
    let mut client = inference(&worker).await;
    for case in cases("fact", 6).into_iter().chain(cases("json", 2)).chain(cases("doc", 2)) {
        let by_text = generate(&mut client, ask(Prompt::Text(case.prompt.clone()))).await.unwrap();
        assert_eq!(by_text.ids, case.greedy_ids, "{}", case.id);
        assert_eq!(by_text.text, case.greedy_text, "{}", case.id);
        assert_eq!(by_text.finish, FinishReason::Stop);
        assert_eq!(by_text.usage.prompt_tokens as usize, case.prompt_ids.len());
        assert_eq!(by_text.usage.completion_tokens as usize, case.greedy_ids.len());
        assert_eq!(by_text.first_usage.unwrap().prompt_tokens as usize, case.prompt_ids.len());
        let by_ids = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
        assert_eq!(by_ids.ids, case.greedy_ids, "{}", case.id);
    }
    worker.stop().await;
}

#[tokio::test]
async fn settings_that_make_it_faster_change_no_token() {
    for extra in [["--draft-tokens", "2"], ["--prefix-cache", "off"], ["--step-tokens", "16"]] {
        let worker = stand_alone(&extra).await;
        let mut client = inference(&worker).await;
        for case in cases("fact", 3) {
            for _ in 0..2 {
                let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
                assert_eq!(answer.ids, case.greedy_ids, "{} with {extra:?}", case.id);
            }
        }
        let stats = worker.context().engine.load_full().unwrap().stats();
        assert_eq!(stats.drafted.iter().sum::<u64>() > 0, extra[0] == "--draft-tokens");
        if extra[0] == "--prefix-cache" {
            assert_eq!(stats.prefix_hit_tokens, 0);
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn requests_at_the_same_time_do_not_change_each_others_tokens() {
    let worker = stand_alone(&["--max-sessions", "3"]).await;
    let client = inference(&worker).await;
    let answers = cases("fact", 8).into_iter().map(|case| {
        let mut client = client.clone();
        async move { (generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap().ids, case) }
    });
    for (found, case) in futures::future::join_all(answers).await {
        assert_eq!(found, case.greedy_ids, "{}", case.id);
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_resumed_request_continues_without_repeating_text() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let whole = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
    for cut in [1, 5, case.greedy_ids.len() - 1] {
        let request =
            GenerateRequest { resume_ids: case.greedy_ids[..cut].to_vec(), ..ask(ids(&case.prompt_ids)) };
        let rest = generate(&mut client, request).await.unwrap();
        assert_eq!(rest.ids, case.greedy_ids[cut..], "after {cut}");
        assert!(whole.text.ends_with(&rest.text) && rest.text.len() < whole.text.len(), "{:?}", rest.text);
        assert_eq!(rest.usage, whole.usage, "resumed tokens count as produced");
    }
    worker.stop().await;
}

#[tokio::test]
async fn limits_and_stop_strings_end_a_request_with_their_reason() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let mut request = ask(ids(&case.prompt_ids));
    request.sampling = Some(greedy(4));
    let short = generate(&mut client, request.clone()).await.unwrap();
    assert_eq!((short.ids.as_slice(), short.finish), (&case.greedy_ids[..4], FinishReason::Length));
    request.sampling = Some(Sampling { stop: vec!["cluster".into()], ..greedy(128) });
    let stopped = generate(&mut client, request).await.unwrap();
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(Some(stopped.text.as_str()), case.greedy_text.split("cluster").next());
    worker.stop().await;
}

fn chat(case: &Case) -> ChatRequest {
    let message = |message: &common::Message| Message {
        role: message.role.clone(),
        content: message.content.clone(),
        ..Message::default()
    };
    ChatRequest {
        model: "nano".into(),
        messages: case.messages.iter().map(message).collect(),
        sampling: Some(greedy(128)),
        thinking: Some(case.thinking),
        ..ChatRequest::default()
    }
}

#[tokio::test]
async fn chat_writes_the_models_format_and_parts_reasoning_from_content() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    for case in cases("fact", 3).into_iter().chain(cases("think.count", 3)) {
        let stream = client.chat(chat(&case)).await.unwrap().into_inner();
        let answer = collect(stream).await.unwrap();
        assert_eq!(answer.ids, case.greedy_ids, "{}", case.id);
        let (reasoning, content) =
            case.greedy_text.split_once("</think>").unwrap_or(("", case.greedy_text.as_str()));
        assert_eq!((answer.reasoning.as_str(), answer.text.as_str()), (reasoning, content), "{}", case.id);
    }
    worker.stop().await;
}
