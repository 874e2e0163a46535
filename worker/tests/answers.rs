//! A stand-alone worker with the nano model gives the reference's answers, over every service.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use belay_proto::inference::generate_request::Prompt;
use belay_proto::inference::{ChatRequest, FinishReason, GenerateRequest, Message, Sampling};
use belay_proto::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use belay_proto::kserve::infer_parameter::ParameterChoice;
use belay_proto::kserve::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use belay_proto::kserve::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest,
    ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use common::{Case, ask, cases, channel, collect, generate, greedy, ids, inference, stand_alone};
use tonic::Code;

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

fn tensor(name: &str, datatype: &str, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        contents,
        ..InferInputTensor::default()
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

#[tokio::test]
async fn kserve_infers_from_typed_and_from_raw_tensors() {
    let worker = stand_alone(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(worker.addresses().grpc).await);
    let case = &cases("fact", 2)[1];
    let text = InferTensorContents { bytes_contents: vec![case.prompt.clone().into()], ..Default::default() };
    let typed = ModelInferRequest {
        model_name: "nano".into(),
        id: "seven".into(),
        inputs: vec![tensor("text_input", "BYTES", Some(text))],
        parameters: [
            ("temperature".to_owned(), parameter(ParameterChoice::DoubleParam(0.0))),
            ("max_tokens".to_owned(), parameter(ParameterChoice::Int64Param(128))),
        ]
        .into(),
        ..Default::default()
    };
    let answer = client.model_infer(typed).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), answer.model_name.as_str()), ("seven", "nano"));
    let contents = |index: usize| answer.outputs[index].contents.clone().unwrap();
    assert_eq!(contents(0).bytes_contents, [case.greedy_text.as_bytes()]);
    assert_eq!(
        contents(1).int64_contents,
        case.greedy_ids.iter().map(|id| i64::from(*id)).collect::<Vec<_>>()
    );
    assert_eq!(contents(2).bytes_contents, [b"stop"]);
    assert_eq!(
        answer.parameters["completion_tokens"].parameter_choice,
        Some(ParameterChoice::Int64Param(case.greedy_ids.len() as i64))
    );

    let mut raw_text = (case.prompt.len() as u32).to_le_bytes().to_vec();
    raw_text.extend_from_slice(case.prompt.as_bytes());
    let raw = ModelInferRequest {
        model_name: "nano".into(),
        inputs: vec![
            tensor("text_input", "BYTES", None),
            tensor("temperature", "FP32", None),
            tensor("max_tokens", "INT32", None),
        ],
        outputs: vec![InferRequestedOutputTensor { name: "text_output".into(), ..Default::default() }],
        raw_input_contents: vec![raw_text, 0f32.to_le_bytes().to_vec(), 128i32.to_le_bytes().to_vec()],
        ..Default::default()
    };
    let answer = client.model_infer(raw).await.unwrap().into_inner();
    assert_eq!((answer.outputs.len(), answer.raw_output_contents.len()), (1, 1));
    let (length, text) = answer.raw_output_contents[0].split_at(4);
    assert_eq!(u32::from_le_bytes(length.try_into().unwrap()) as usize, text.len());
    assert_eq!(text, case.greedy_text.as_bytes());
    worker.stop().await;
}

#[tokio::test]
async fn kserve_describes_server_and_model_and_refuses_others_by_name() {
    let worker = stand_alone(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(worker.addresses().grpc).await);
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(server.name, "belay-worker");
    let ready = ModelReadyRequest { name: "nano".into(), version: String::new() };
    assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
    let request = ModelMetadataRequest { name: "nano".into(), version: "1".into() };
    let model = client.model_metadata(request).await.unwrap().into_inner();
    assert!(model.inputs.iter().any(|input| input.name == "text_input" && input.datatype == "BYTES"));
    assert!(model.outputs.iter().any(|output| output.name == "text_output" && output.datatype == "BYTES"));

    let request = ModelMetadataRequest { name: "llama".into(), version: String::new() };
    let unknown = client.model_metadata(request).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("llama") && unknown.message().contains("nano"));
    let request = ModelReadyRequest { name: "nano".into(), version: "2".into() };
    assert_eq!(client.model_ready(request).await.unwrap_err().code(), Code::NotFound);
    let empty = ModelInferRequest { model_name: "nano".into(), ..Default::default() };
    let refused = client.model_infer(empty).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("text_input"), "{refused}");
    worker.stop().await;
}
