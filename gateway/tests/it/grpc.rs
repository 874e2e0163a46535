//! The gRPC services on the API address.
use std::sync::atomic::Ordering;

use belay_proto::{
    admin::{GetStatusRequest, admin_client::AdminClient},
    inference::{
        ChatRequest, DetokenizeRequest, Message, Sampling, TokenizeRequest,
        inference_client::InferenceClient, tokenize_request::Input,
    },
    kserve::{
        ModelConfigRequest, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest,
        ServerMetadataRequest, ServerReadyRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    },
};
use futures::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{
    Fault, MODEL, Worker, answer, channel, gateway, generate, http as client, ids, metric, request,
};

#[tokio::test]
async fn generate_and_chat_pass_through() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let mut named = request("p", 5);
    named.request_id = "mine".into();
    let pieces = generate(&gateway, named).await.unwrap();
    let expected =
        |prompt: &str| -> Vec<u32> { answer(prompt, 7, 5).iter().map(|b| u32::from(*b) + 1000).collect() };
    assert_eq!(ids(&pieces), expected("p"));
    assert_eq!(worker.script.seen()[0].request_id, "mine");

    let message = Message { role: "user".into(), content: "hi".into(), ..Message::default() };
    let sampling = Some(Sampling { seed: Some(7), max_tokens: Some(5), ..Sampling::default() });
    // an empty model name is the only model there is
    let asked = ChatRequest { messages: vec![message], sampling, ..ChatRequest::default() };
    let mut grpc = InferenceClient::new(channel(&gateway).await);
    let stream = grpc.chat(asked).await.unwrap().into_inner();
    let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
    assert_eq!(ids(&pieces), expected("user: hi"));
}

#[tokio::test]
async fn tokens_are_asked_of_a_worker_that_answers() {
    let worker = Worker::with_faults(&[Fault::StepLost(0)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    let mut grpc = InferenceClient::new(channel(&gateway).await);
    let input = Some(Input::Text("ab".into()));
    let asked = TokenizeRequest { model: String::new(), input };
    let tokens = grpc.tokenize(asked).await.unwrap().into_inner();
    assert_eq!((tokens.ids, tokens.max_context_tokens), (vec![1097, 1098], 512));
    let asked = DetokenizeRequest { model: MODEL.into(), ids: vec![1104, 1105] };
    assert_eq!(grpc.detokenize(asked).await.unwrap().into_inner().text, "hi");
    let wrong = DetokenizeRequest { model: MODEL.into(), ids: vec![5] };
    assert_eq!(grpc.detokenize(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let other = DetokenizeRequest { model: "other".into(), ids: Vec::new() };
    assert_eq!(grpc.detokenize(other).await.unwrap_err().code(), Code::NotFound);
    let series = |code: &str| {
        let path = "/belay.inference.v1.Inference/Detokenize";
        format!("belay_gateway_requests_total{{model=\"nano\",path=\"{path}\",code=\"{code}\"}}")
    };
    assert_eq!(metric(&gateway, &series("Ok")).await, 1.0);
    assert_eq!(metric(&gateway, &series("InvalidArgument")).await, 1.0);
}

#[tokio::test]
async fn refusals_have_the_right_codes() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &["--worker=second=127.0.0.1:1", "--max-body-bytes=2000"]).await;
    let code = |change: fn(&mut belay_proto::inference::GenerateRequest)| {
        let mut asked = request("p", 5);
        change(&mut asked);
        let gateway = &gateway;
        async move { generate(gateway, asked).await.unwrap_err().code() }
    };
    assert_eq!(code(|asked| asked.model = "other".into()).await, Code::NotFound);
    assert_eq!(code(|asked| asked.model.clear()).await, Code::InvalidArgument);
    assert_eq!(code(|asked| asked.prompt = None).await, Code::InvalidArgument);
    assert_eq!(code(|asked| asked.request_id = "x".repeat(3000)).await, Code::OutOfRange);
}

#[tokio::test]
async fn kserve_answers_about_the_server_and_asks_workers_about_models() {
    let worker = Worker::start().await;
    let other = Worker::with_faults(&[Fault::StepLost(0)]).await;
    let gateway = gateway(&[&worker, &other], &[]).await;
    let mut grpc = GrpcInferenceServiceClient::new(channel(&gateway).await);
    assert!(grpc.server_live(ServerLiveRequest {}).await.unwrap().get_ref().live);
    assert!(grpc.server_ready(ServerReadyRequest {}).await.unwrap().get_ref().ready);
    let server = grpc.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(server.name, "belay-gateway");
    for (name, ready) in [(MODEL, true), ("other", false)] {
        let asked = ModelReadyRequest { name: name.into(), ..ModelReadyRequest::default() };
        assert_eq!(grpc.model_ready(asked).await.unwrap().get_ref().ready, ready);
    }
    let asked = ModelMetadataRequest { name: MODEL.into(), ..ModelMetadataRequest::default() };
    assert_eq!(grpc.model_metadata(asked).await.unwrap().get_ref().platform, "double");

    worker.script.draining.store(true, Ordering::SeqCst);
    let asked = ModelInferRequest {
        model_name: MODEL.into(),
        id: "7".into(),
        raw_input_contents: vec![vec![1, 2, 3]],
        ..ModelInferRequest::default()
    };
    let answer = grpc.model_infer(asked.clone()).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), answer.raw_output_contents), ("7", vec![vec![1, 2, 3]]));
    let unknown = ModelInferRequest { model_name: "other".into(), ..asked };
    assert_eq!(grpc.model_infer(unknown).await.unwrap_err().code(), Code::NotFound);
    let unknown = ModelMetadataRequest { name: "other".into(), ..ModelMetadataRequest::default() };
    assert_eq!(grpc.model_metadata(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn requests_of_a_kserve_stream_are_each_asked_of_a_worker_that_takes_them() {
    let worker = Worker::start().await;
    let other = Worker::with_faults(&[Fault::StepLost(0)]).await;
    let gateway = gateway(&[&worker, &other], &[]).await;
    let mut grpc = GrpcInferenceServiceClient::new(channel(&gateway).await);
    let asked = ModelConfigRequest { name: MODEL.into(), ..ModelConfigRequest::default() };
    let config = grpc.model_config(asked).await.unwrap().into_inner().config.unwrap();
    assert_eq!(config.platform, "double");

    worker.script.draining.store(true, Ordering::SeqCst);
    let ask = |model: &str, id: &str, raw: &[u8]| ModelInferRequest {
        model_name: model.into(),
        id: id.into(),
        raw_input_contents: raw.iter().map(|byte| vec![*byte]).collect(),
        ..ModelInferRequest::default()
    };
    let asked = [ask(MODEL, "a", &[1, 2, 3]), ask("other", "b", &[4]), ask(MODEL, "c", &[5])];
    let answers = grpc.model_stream_infer(futures::stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    let of = |id: &str| -> Vec<(Vec<Vec<u8>>, String)> {
        let mine = answers.iter().filter(|answer| answer.infer_response.as_ref().unwrap().id == id);
        mine.map(|answer| {
            let raw = answer.infer_response.as_ref().unwrap().raw_output_contents.clone();
            (raw, answer.error_message.clone())
        })
        .collect()
    };
    let good = |byte: u8| (vec![vec![byte]], String::new());
    assert_eq!(of("a"), [good(1), good(2), good(3)], "in order");
    assert_eq!(of("c"), [good(5)]);
    let refused = of("b");
    assert!(refused.len() == 1 && refused[0].1.contains("other"), "{refused:?}");
}

#[tokio::test]
async fn health_is_the_gateway_s_own() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let mut grpc = HealthClient::new(channel(&gateway).await);
    for service in ["", "belay.inference.v1.Inference", "inference.GRPCInferenceService"] {
        let asked = HealthCheckRequest { service: service.into() };
        assert_eq!(grpc.check(asked).await.unwrap().get_ref().status(), ServingStatus::Serving);
    }
    let asked = HealthCheckRequest { service: "belay.admin.v1.Admin".into() };
    assert_eq!(grpc.check(asked).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_nothing_else() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let mut grpc = ServerReflectionClient::new(channel(&gateway).await);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("belay.inference.v1.Inference".into())),
    ];
    let answers = grpc.server_reflection_info(futures::stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.take(2).map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else { panic!("{answers:?}") };
    let mut names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let served =
        ["belay.inference.v1.Inference", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    assert_eq!(names, [&served[..], &["inference.GRPCInferenceService"]].concat());
    assert!(matches!(answers[1], MessageResponse::FileDescriptorResponse(_)), "{answers:?}");
    let asked = ask(MessageRequest::FileContainingSymbol("belay.admin.v1.Admin".into()));
    let answers = grpc.server_reflection_info(futures::stream::iter([asked])).await;
    let answer = match answers {
        Ok(answers) => answers.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn the_workers_admin_service_is_not_passed_through() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let mut admin = AdminClient::new(channel(&gateway).await);
    let status = admin.get_status(GetStatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

#[tokio::test]
async fn http_and_grpc_share_the_address_and_http2() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    assert_eq!(client::get(gateway.api, "/v1/models").await.status, 200);
    generate(&gateway, request("p", 1)).await.unwrap();
    let http2: hyper_util::client::legacy::Client<_, axum::body::Body> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
            .http2_only(true)
            .build_http();
    let uri = format!("http://{}/v1/models", gateway.api).parse().unwrap();
    let answer = http2.get(uri).await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
}
