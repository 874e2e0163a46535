//! The KServe open inference protocol, and what Triton's clients use beyond it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use belay_proto::kserve::grpc_inference_service_client::GrpcInferenceServiceClient;
use belay_proto::kserve::infer_parameter::ParameterChoice;
use belay_proto::kserve::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use belay_proto::kserve::{
    InferParameter, InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelMetadataRequest,
    ModelReadyRequest, ModelStreamInferResponse, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest,
};
use common::{cases, channel, stand_alone, until};
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

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

fn streamed(id: &str, prompt: &[u32], parameters: &[(&str, ParameterChoice)]) -> ModelInferRequest {
    let ids = InferTensorContents {
        int64_contents: prompt.iter().map(|id| i64::from(*id)).collect(),
        ..Default::default()
    };
    let mut input = tensor("input_ids", "INT64", Some(ids));
    input.shape = vec![1, prompt.len() as i64];
    let mut all = BTreeMap::from([
        ("temperature".to_owned(), parameter(ParameterChoice::DoubleParam(0.0))),
        ("max_tokens".to_owned(), parameter(ParameterChoice::Int64Param(128))),
    ]);
    for (name, choice) in parameters {
        all.insert((*name).to_owned(), parameter(choice.clone()));
    }
    ModelInferRequest {
        model_name: "nano".into(),
        id: id.into(),
        inputs: vec![input],
        parameters: all.into_iter().collect(),
        ..Default::default()
    }
}

fn is_final(answer: &ModelStreamInferResponse) -> bool {
    let parameters = &answer.infer_response.as_ref().unwrap().parameters;
    parameters["triton_final_response"].parameter_choice == Some(ParameterChoice::BoolParam(true))
}

#[tokio::test]
async fn requests_of_one_stream_are_answered_together_each_in_order() {
    let worker = stand_alone(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(worker.addresses().grpc).await);
    let cases = cases("fact", 4);
    let mut asked: Vec<_> = cases.iter().map(|case| streamed(&case.id, &case.prompt_ids, &[])).collect();
    let whole = [("stream", ParameterChoice::BoolParam(false))];
    asked.push(streamed("whole", &cases[0].prompt_ids, &whole));
    let wrong = [("top_p", ParameterChoice::DoubleParam(7.0))];
    asked.insert(1, streamed("wrong", &cases[0].prompt_ids, &wrong));
    asked.insert(2, streamed("odd", &cases[0].prompt_ids, &[("tap_p", ParameterChoice::DoubleParam(1.0))]));
    let answers = client.model_stream_infer(futures::stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.try_collect().await.unwrap();
    let of = |id: &str| -> Vec<&ModelStreamInferResponse> {
        answers.iter().filter(|answer| answer.infer_response.as_ref().unwrap().id == id).collect()
    };
    for (id, case) in cases.iter().map(|case| (case.id.as_str(), case)).chain([("whole", &cases[0])]) {
        let mine = of(id);
        let (mut text, mut ids) = (Vec::new(), Vec::new());
        for answer in &mine {
            assert_eq!(answer.error_message, "");
            let outputs = &answer.infer_response.as_ref().unwrap().outputs;
            text.extend_from_slice(&outputs[0].contents.as_ref().unwrap().bytes_contents[0]);
            ids.extend(outputs[1].contents.as_ref().unwrap().int64_contents.iter().map(|id| *id as u32));
        }
        assert_eq!(
            (String::from_utf8(text).unwrap(), ids),
            (case.greedy_text.clone(), case.greedy_ids.clone())
        );
        let finals: Vec<bool> = mine.iter().map(|answer| is_final(answer)).collect();
        assert!(finals[finals.len() - 1] && !finals[..finals.len() - 1].contains(&true), "{finals:?}");
    }
    assert_eq!(of("whole").len(), 1);
    for (id, named) in [("wrong", "top_p: "), ("odd", "tap_p: unknown input")] {
        let refused = of(id);
        assert!(refused.len() == 1 && refused[0].error_message.starts_with(named), "{refused:?}");
        assert!(is_final(refused[0]));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_frees_all_its_requests() {
    let worker = stand_alone(&["--max-sessions", "2"]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(worker.addresses().grpc).await);
    let prompt = &cases("fact", 1)[0].prompt_ids;
    let endless =
        [("ignore_eos", ParameterChoice::BoolParam(true)), ("max_tokens", ParameterChoice::Int64Param(3500))];
    let asked: Vec<_> = (0..5).map(|index| streamed(&index.to_string(), prompt, &endless)).collect();
    // and more may come
    let (sender, more) = futures::channel::mpsc::unbounded();
    let asked = futures::stream::iter(asked).chain(more);
    let mut answers = client.model_stream_infer(asked).await.unwrap().into_inner();
    assert!(answers.try_next().await.unwrap().is_some());
    drop((answers, sender));
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
async fn the_configuration_says_that_answers_come_in_pieces() {
    let worker = stand_alone(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(worker.addresses().grpc).await);
    let request = ModelConfigRequest { name: "nano".into(), version: String::new() };
    let config = client.model_config(request).await.unwrap().into_inner().config.unwrap();
    assert!(config.model_transaction_policy.unwrap().decoupled);
    let request = ModelMetadataRequest { name: "nano".into(), version: String::new() };
    let metadata = client.model_metadata(request).await.unwrap().into_inner();
    let names: Vec<_> = metadata.inputs.iter().map(|input| &input.name).collect();
    assert_eq!(config.input.iter().map(|input| &input.name).collect::<Vec<_>>(), names);
    assert!(config.input.iter().all(|input| input.data_type != 0 && input.optional));
    worker.stop().await;
}
