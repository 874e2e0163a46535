//! Output in a given form: calls of functions, JSON, probabilities; and time that runs out.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::options::Constraint;
use belay_proto::inference::tool_choice::Mode;
use belay_proto::inference::{
    ChatRequest, Choices, FinishReason, GenerateRequest, GenerateResponse, Message, Options, Sampling,
    ToolChoice,
};
use common::{ask, cases, endless, generate, greedy, ids, inference, stand_alone};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

async fn pieces(client: &mut InferenceClient<Channel>, request: GenerateRequest) -> Vec<GenerateResponse> {
    client.generate(request).await.unwrap().into_inner().try_collect().await.unwrap()
}

async fn chat(client: &mut InferenceClient<Channel>, request: ChatRequest) -> Vec<GenerateResponse> {
    client.chat(request).await.unwrap().into_inner().try_collect().await.unwrap()
}

fn weather(thinking: bool, mode: Mode, single: bool) -> ChatRequest {
    let parameters = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "enum": ["Oslo", "Rome"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 5 },
        },
        "required": ["city", "days"],
    });
    let function = json!({ "name": "weather", "description": "Weather of a city", "parameters": parameters });
    ChatRequest {
        request_id: "r-1".into(),
        messages: vec![Message {
            role: "user".into(),
            content: "Is it warm in Rome?".into(),
            ..Message::default()
        }],
        sampling: Some(greedy(400)),
        thinking: Some(thinking),
        functions: vec![function.to_string()],
        tool_choice: Some(ToolChoice {
            mode: mode.into(),
            function: if mode == Mode::Function { "weather".into() } else { String::new() },
            single,
        }),
        ..ChatRequest::default()
    }
}

/// Everything that a stream says, put together; calls by index as (id, name, arguments).
#[derive(Debug, Default, PartialEq)]
struct Said {
    ids: Vec<u32>,
    text: String,
    reasoning: String,
    calls: BTreeMap<u32, (String, String, String)>,
}

fn said(pieces: &[GenerateResponse]) -> Said {
    let mut said = Said::default();
    for piece in pieces {
        said.ids.extend(&piece.ids);
        said.text.push_str(&piece.text);
        said.reasoning.push_str(&piece.reasoning);
        for part in &piece.tool_calls {
            let call = said.calls.entry(part.index).or_default();
            call.0.push_str(&part.id);
            call.1.push_str(&part.name);
            call.2.push_str(&part.arguments);
        }
    }
    said
}

#[tokio::test]
async fn a_forced_call_is_a_call_with_arguments_of_the_schema() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    for (thinking, mode) in [(false, Mode::Function), (false, Mode::Required)] {
        let found = chat(&mut client, weather(thinking, mode, true)).await;
        let last = found.last().unwrap();
        assert_eq!(last.finish_reason(), FinishReason::ToolCalls, "{found:?}");
        assert_eq!(last.stopped_by, None);
        let said = said(&found);
        assert_eq!((said.text.trim(), said.calls.len()), ("", 1), "{said:?}");
        let (id, name, arguments) = &said.calls[&0];
        assert!(!id.is_empty());
        assert_eq!(name, "weather");
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
        assert!((1..=5).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_resumed_call_goes_on_where_it_was() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let request = weather(false, Mode::Function, false);
    let whole_pieces = chat(&mut client, request.clone()).await;
    let whole = said(&whole_pieces);
    for cut in (1..whole.ids.len()).step_by(3) {
        let resume_ids = whole.ids[..cut].to_vec();
        let rest = said(&chat(&mut client, ChatRequest { resume_ids, ..request.clone() }).await);
        assert_eq!(rest.ids, whole.ids[cut..], "after {cut}");
        assert!(whole.text.ends_with(&rest.text));
        for (index, (id, name, arguments)) in &rest.calls {
            let call = &whole.calls[index];
            assert!(call.2.ends_with(arguments), "{arguments:?} after {cut}");
            // said once: before the cut or after it
            assert!(id.is_empty() && name.is_empty() || (id, name) == (&call.0, &call.1));
        }
    }
    let last = whole_pieces.last().unwrap();
    assert_eq!(last.usage.unwrap().completion_tokens as usize, whole.ids.len());
    worker.stop().await;
}

#[tokio::test]
async fn a_function_that_is_not_there_can_not_be_forced() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let mut request = weather(false, Mode::Function, false);
    request.tool_choice.as_mut().unwrap().function = "tides".into();
    let refused = client.chat(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("tides"), "{refused}");
    worker.stop().await;
}

#[tokio::test]
async fn constrained_output_has_the_form_asked_for() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let mut constrained = async |constraint, max_tokens| {
        let options = Options { constraint: Some(constraint), ..Options::default() };
        let sampling = Sampling { temperature: Some(1.5), seed: Some(7), ..greedy(max_tokens) };
        let request = GenerateRequest {
            options: Some(options),
            sampling: Some(sampling),
            ..ask(ids(&case.prompt_ids))
        };
        generate(&mut client, request).await
    };
    let schema = json!({
        "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"],
        "additionalProperties": false,
    });
    let found = constrained(Constraint::JsonSchema(schema.to_string()), 200).await.unwrap();
    let value: Value = serde_json::from_str(&found.text).unwrap();
    assert!(value["ok"].is_boolean() && value.as_object().unwrap().len() == 1, "{value}");
    assert_eq!(found.finish, FinishReason::Stop);

    let texts = vec!["a + b".to_owned(), "(c|d)".to_owned()];
    let found = constrained(Constraint::Choices(Choices { texts: texts.clone() }), 50).await.unwrap();
    assert!(texts.contains(&found.text), "{:?}", found.text);
    let found = constrained(Constraint::Regex("[0-9]{3}-x".into()), 50).await.unwrap();
    assert_eq!((found.text.len(), found.text.ends_with("-x")), (5, true), "{:?}", found.text);

    for constraint in [
        Constraint::Regex("(".into()),
        Constraint::Grammar("start: nothing_there".into()),
        Constraint::JsonSchema("{\"type\": 5}".into()),
    ] {
        let refused = constrained(constraint, 50).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn each_token_has_its_probability_and_those_in_its_place() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let options = Options { logprobs: Some(3), prompt_logprobs: Some(2), ..Options::default() };
    let request = GenerateRequest { options: Some(options), ..ask(ids(&case.prompt_ids)) };
    let found = pieces(&mut client, request.clone()).await;
    let scores: Vec<_> = found.iter().flat_map(|piece| &piece.logprobs).collect();
    assert_eq!(scores.iter().map(|score| score.id).collect::<Vec<_>>(), case.greedy_ids);
    let mut text = Vec::new();
    for score in &scores {
        assert_eq!(score.top.len(), 3);
        assert_eq!(
            (score.top[0].id, score.top[0].logprob),
            (score.id, score.logprob),
            "greedy takes the likeliest"
        );
        assert!(score.logprob <= 0.0 && score.top[1].logprob <= score.logprob);
        text.extend_from_slice(&score.bytes);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with(&case.greedy_text), "{text:?}, end-of-sequence written out");
    let prompt: Vec<_> = found.iter().flat_map(|piece| &piece.prompt_logprobs).collect();
    assert_eq!(prompt.iter().map(|score| score.id).collect::<Vec<_>>(), case.prompt_ids);
    assert_eq!((prompt[0].logprob, prompt[0].top.len()), (0.0, 0));
    assert!(prompt[1..].iter().all(|score| score.top.len() == 2 && score.logprob <= 0.0));

    let refused =
        GenerateRequest { options: Some(Options { logprobs: Some(21), ..Options::default() }), ..request };
    let refused = generate(&mut client, refused).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("logprobs"), "{refused}");
    worker.stop().await;
}

#[tokio::test]
async fn a_request_whose_time_is_over_ends_and_the_others_go_on() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let options = Options { timeout_milliseconds: Some(50), ..Options::default() };
    let late = GenerateRequest { options: Some(options), ..endless(&case.prompt_ids) };
    let mut other = client.clone();
    let (late, answer) =
        tokio::join!(generate(&mut client, late), generate(&mut other, ask(ids(&case.prompt_ids))));
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(answer.unwrap().ids, case.greedy_ids);
    // and by the call's own
    let mut call = tonic::Request::new(endless(&case.prompt_ids));
    call.metadata_mut().insert("grpc-timeout", "80m".parse().unwrap());
    let outcome = match client.generate(call).await {
        Ok(stream) => stream.into_inner().try_collect::<Vec<_>>().await.map(|_| ()),
        Err(status) => Err(status),
    };
    assert_eq!(outcome.unwrap_err().code(), Code::DeadlineExceeded);
    worker.stop().await;
}
