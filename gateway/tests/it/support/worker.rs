//! A test double of the worker: the real services over a real socket, with a scripted answer behind them.
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::body::Body;
use belay_proto::{
    inference::{
        ChatRequest, DetokenizeRequest, DetokenizeResponse, FinishReason, GenerateRequest, GenerateResponse,
        Options, Sampling, TokenLogprob, TokenLogprobs, TokenizeRequest, TokenizeResponse, ToolCallDelta,
        Usage,
        generate_request::Prompt,
        inference_server::{Inference, InferenceServer},
        tokenize_request::Input,
    },
    kserve::{
        InferParameter, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
        ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
        infer_parameter::ParameterChoice,
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tower::ServiceExt;

use super::{
    Fault, MODEL, Script,
    script::{Seen, answer, call_id, certain, logprob},
};

/// See the module. Dropped, it is gone as if killed.
pub struct Worker {
    pub address: SocketAddr,
    pub script: Arc<Script>,
    server: JoinHandle<()>,
}

impl Worker {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let (cut, _) = watch::channel(0);
        let double = Double { script: script.clone(), cut: cut.clone() };
        let server = tokio::spawn(serve(listener, double, cut));
        Self { address, script, server }
    }

    pub async fn with_faults(faults: &[Fault]) -> Self {
        let worker = Self::start().await;
        worker.script.faults.lock().unwrap().extend(faults);
        worker
    }

    pub fn active(&self) -> usize {
        self.script.active.load(Ordering::SeqCst)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, double: Double, cut: watch::Sender<u32>) {
    let routes = Routes::new(InferenceServer::new(double.clone()))
        .add_service(HealthServer::new(double.clone()))
        .add_service(GrpcInferenceServiceServer::new(double))
        .into_axum_router();
    // dropped with this future, so that a dropped worker takes its connections along
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = routes
            .clone()
            .map_request(|request: http::Request<hyper::body::Incoming>| request.map(Body::new));
        let mut cut = cut.subscribe();
        connections.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection =
                builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            tokio::select! {
                _ = connection => {}
                _ = cut.changed() => {}
            }
        });
    }
}

#[derive(Clone)]
struct Double {
    script: Arc<Script>,
    cut: watch::Sender<u32>,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

/// A request in progress; notes when it is given up.
struct Progress {
    double: Double,
    answer: Vec<u8>,
    at: usize,
    made: u32,
    fault: Option<Fault>,
    told_usage: bool,
    done: bool,
    prompt: String,
    options: Options,
    /// The answer is the arguments of a call of this function.
    calls: Option<String>,
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.double.script.active.fetch_sub(1, Ordering::SeqCst);
        if !self.done {
            self.double.script.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Progress {
    async fn next(&mut self) -> Option<Result<GenerateResponse, Status>> {
        if self.done {
            return None;
        }
        let script = self.double.script.clone();
        let fault_at = match self.fault {
            Some(Fault::StepLost(at) | Fault::Ends(at) | Fault::Cut(at) | Fault::Breaks(at)) => at,
            None => u32::MAX,
        };
        if self.made >= fault_at {
            return self.fail().await;
        }
        let completion_tokens = u32::try_from(self.answer.len()).unwrap();
        let usage = Usage { prompt_tokens: 3, completion_tokens, ..Usage::default() };
        if !std::mem::replace(&mut self.told_usage, true) {
            let usage = Some(Usage { completion_tokens: 0, ..usage });
            let mut first = GenerateResponse { usage, ..GenerateResponse::default() };
            if self.options.echo {
                first.prompt_text.clone_from(&self.prompt);
            }
            if let Some(top) = self.options.prompt_logprobs {
                first.prompt_logprobs = logprobs(self.prompt.as_bytes(), 0, top);
                first.prompt_logprobs[0].top.clear();
            }
            return Some(Ok(first));
        }
        while script.stalled.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.at == self.answer.len() {
            self.done = true;
            let text = certain(&self.answer, true)[certain(&self.answer, false).len()..].to_owned();
            let mut last = GenerateResponse { usage: Some(usage), ..GenerateResponse::default() };
            last.set_finish_reason(match self.calls {
                Some(_) => FinishReason::ToolCalls,
                None => FinishReason::Length,
            });
            self.say(&mut last, text, self.at);
            return Some(Ok(last));
        }
        let pace = script.pace.load(Ordering::SeqCst);
        if pace > 0 {
            tokio::time::sleep(Duration::from_millis(pace)).await;
        }
        let most = script.batch.load(Ordering::SeqCst).max(1).min((fault_at - self.made) as usize);
        let end = (self.at + most).min(self.answer.len());
        let ids = self.answer[self.at..end].iter().map(|byte| u32::from(*byte) + 1000).collect();
        let text =
            certain(&self.answer[..end], false)[certain(&self.answer[..self.at], false).len()..].to_owned();
        let mut piece = GenerateResponse { ids, ..GenerateResponse::default() };
        if let Some(top) = self.options.logprobs {
            piece.logprobs = logprobs(&self.answer[self.at..end], self.at, top);
        }
        self.say(&mut piece, text, self.at);
        self.made += u32::try_from(end - self.at).unwrap();
        script.sent.fetch_add(end - self.at, Ordering::SeqCst);
        self.at = end;
        Some(Ok(piece))
    }

    /// As text, or as a part of a call, whose id and name come with the first token.
    fn say(&self, piece: &mut GenerateResponse, text: String, at: usize) {
        let Some(name) = &self.calls else {
            piece.text = text;
            return;
        };
        if at == 0 {
            piece.tool_calls.push(ToolCallDelta {
                id: call_id(&self.answer),
                name: name.clone(),
                ..ToolCallDelta::default()
            });
        }
        if !text.is_empty() {
            piece.tool_calls.push(ToolCallDelta { arguments: text, ..ToolCallDelta::default() });
        }
    }

    async fn fail(&mut self) -> Option<Result<GenerateResponse, Status>> {
        let fault = self.fault.take().unwrap();
        if !matches!(fault, Fault::Cut(_)) {
            self.done = true;
        }
        match fault {
            Fault::StepLost(_) => Some(Err(retryable("step-lost"))),
            Fault::Ends(_) => None,
            Fault::Breaks(_) => Some(Err(Status::internal("division by zero"))),
            Fault::Cut(_) => {
                self.done = true;
                self.double.cut.send_modify(|cuts| *cuts += 1);
                std::future::pending().await
            }
        }
    }
}

/// One for each byte, which is a token. `at` is the place of the first.
fn logprobs(bytes: &[u8], at: usize, top: u32) -> Vec<TokenLogprobs> {
    let of = |(place, byte): (usize, &u8)| TokenLogprobs {
        id: u32::from(*byte) + 1000,
        logprob: logprob(at + place, 0),
        bytes: vec![*byte],
        top: (0..top)
            .map(|rank| TokenLogprob { id: rank, logprob: logprob(at + place, rank), bytes: vec![b'a'] })
            .collect(),
    };
    bytes.iter().enumerate().map(of).collect()
}

fn retryable(reason: &'static str) -> Status {
    let mut status = Status::unavailable(reason);
    status.metadata_mut().insert("belay-retry", reason.parse().unwrap());
    status
}

impl Double {
    fn admit(&self, model: &str) -> Result<(), Status> {
        if self.script.draining.load(Ordering::SeqCst) {
            return Err(retryable("draining"));
        }
        if self.script.overloaded.load(Ordering::SeqCst) {
            let mut status = Status::resource_exhausted("9 requests are waiting already");
            let after = self.script.room_after.load(Ordering::SeqCst);
            if after > 0 {
                status.metadata_mut().insert("belay-retry-after-ms", after.into());
            }
            return Err(status);
        }
        if model != MODEL || self.script.stranger.load(Ordering::SeqCst) {
            return Err(Status::not_found(format!("this worker serves other, not {model}")));
        }
        Ok(())
    }

    fn begin(
        &self,
        seen: Seen,
        prompt: &str,
        sampling: Option<Sampling>,
        options: Option<Options>,
        calls: Option<String>,
    ) -> Result<Response<Pieces>, Status> {
        let sampling = sampling.unwrap_or_default();
        assert_eq!(sampling.n, None, "the gateway asks for each answer on its own");
        let length = sampling.max_tokens.unwrap_or(20) as usize;
        let answer = answer(prompt, sampling.seed.unwrap_or(0), length);
        let at = seen.resume.len();
        let expected: Vec<u32> = answer.iter().map(|byte| u32::from(*byte) + 1000).collect();
        if !expected.starts_with(&seen.resume) {
            return Err(Status::internal("resumed with tokens that are not a beginning of the answer"));
        }
        self.script.seen.lock().unwrap().push(seen);
        self.script.active.fetch_add(1, Ordering::SeqCst);
        let progress = Progress {
            double: self.clone(),
            answer,
            at,
            made: 0,
            fault: self.script.next_fault(),
            told_usage: false,
            done: false,
            prompt: prompt.to_owned(),
            options: options.unwrap_or_default(),
            calls,
        };
        let pieces = futures::stream::unfold(progress, |mut progress| async move {
            let piece = progress.next().await?;
            Some((piece, progress))
        });
        Ok(Response::new(Box::pin(pieces)))
    }
}

#[tonic::async_trait]
impl Health for Double {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.script.questions.fetch_add(1, Ordering::SeqCst);
        let is_able = !self.script.unwell.load(Ordering::SeqCst);
        let status = if is_able { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("nobody watches"))
    }
}

#[tonic::async_trait]
impl Inference for Double {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        self.admit(&request.model)?;
        let prompt = match request.prompt {
            Some(Prompt::Text(text)) => text,
            Some(Prompt::Ids(ids)) => format!("{:?}", ids.ids),
            None => return Err(Status::invalid_argument("prompt: must be set")),
        };
        if prompt == "too long" {
            return Err(Status::invalid_argument("prompt: 600 tokens do not fit: the context holds 512"));
        }
        let seed = request.sampling.as_ref().and_then(|sampling| sampling.seed);
        let timeout = request.options.as_ref().and_then(|options| options.timeout_milliseconds);
        let seen = Seen { request_id: request.request_id, resume: request.resume_ids, seed, timeout };
        self.begin(seen, &prompt, request.sampling, request.options, None)
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        self.admit(&request.model)?;
        self.script.chats.lock().unwrap().push(request.clone());
        let prompt: Vec<_> = request.messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
        let seed = request.sampling.as_ref().and_then(|sampling| sampling.seed);
        let timeout = request.options.as_ref().and_then(|options| options.timeout_milliseconds);
        let calls = request.tool_choice.filter(|choice| !choice.function.is_empty());
        let calls = calls.map(|choice| choice.function);
        let seen = Seen { request_id: request.request_id, resume: request.resume_ids, seed, timeout };
        self.begin(seen, &prompt.join("\n"), request.sampling, request.options, calls)
    }

    /// A token is a byte.
    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let request = request.into_inner();
        self.admit(&request.model)?;
        if self.script.next_fault().is_some() {
            return Err(retryable("step-lost"));
        }
        let text = match request.input {
            Some(Input::Text(text)) => text,
            Some(Input::Chat(chat)) => {
                self.script.chats.lock().unwrap().push(chat.clone());
                chat.messages.into_iter().map(|message| message.content).collect()
            }
            None => return Err(Status::invalid_argument("input: must be set")),
        };
        Ok(Response::new(TokenizeResponse {
            ids: text.bytes().map(|byte| u32::from(byte) + 1000).collect(),
            tokens: text.bytes().map(|byte| vec![byte]).collect(),
            max_context_tokens: 512,
        }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let DetokenizeRequest { model, ids } = request.into_inner();
        self.admit(&model)?;
        let byte = |(index, id): (usize, &u32)| {
            let byte = id.checked_sub(1000).and_then(|byte| u8::try_from(byte).ok());
            byte.ok_or_else(|| Status::invalid_argument(format!("ids: token {index} is {id}")))
        };
        let bytes = ids.iter().enumerate().map(byte).collect::<Result<Vec<u8>, _>>()?;
        Ok(Response::new(DetokenizeResponse { text: String::from_utf8_lossy(&bytes).into_owned() }))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Double {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Err(Status::internal("the gateway answers this itself"))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Err(Status::internal("the gateway answers this itself"))
    }

    async fn model_ready(
        &self,
        _: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        Err(Status::internal("the gateway answers this itself"))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Err(Status::internal("the gateway answers this itself"))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        self.admit(&request.get_ref().name)?;
        let platform = "double".to_owned();
        Ok(Response::new(ModelMetadataResponse {
            name: MODEL.into(),
            platform,
            ..ModelMetadataResponse::default()
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        self.admit(&request.get_ref().model_name)?;
        if self.script.next_fault().is_some() {
            return Err(retryable("step-lost"));
        }
        let ModelInferRequest { model_name, id, raw_input_contents, .. } = request.into_inner();
        let raw_output_contents = raw_input_contents;
        Ok(Response::new(ModelInferResponse {
            model_name,
            id,
            raw_output_contents,
            ..ModelInferResponse::default()
        }))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    /// As many answers to each request as it has raw inputs. What goes wrong is told as a worker tells it.
    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let double = self.clone();
        let answers = request.into_inner().map_ok(move |request| {
            let ModelInferRequest { model_name, id, raw_input_contents, .. } = request;
            let mut response = ModelInferResponse { id, ..ModelInferResponse::default() };
            let lost = double.script.next_fault().map(|_| retryable("step-lost"));
            if let Some(status) = double.admit(&model_name).err().or(lost) {
                let mut set = |name: &str, choice| {
                    let parameter = InferParameter { parameter_choice: Some(choice) };
                    response.parameters.insert(name.into(), parameter);
                };
                set("grpc_status", ParameterChoice::Int64Param(i64::from(i32::from(status.code()))));
                if let Some(retry) = status.metadata().get("belay-retry") {
                    set("belay-retry", ParameterChoice::StringParam(retry.to_str().unwrap().into()));
                }
                let error_message = status.message().to_owned();
                return vec![ModelStreamInferResponse { error_message, infer_response: Some(response) }];
            }
            let answer = |raw| ModelStreamInferResponse {
                infer_response: Some(ModelInferResponse {
                    raw_output_contents: vec![raw],
                    ..response.clone()
                }),
                ..ModelStreamInferResponse::default()
            };
            raw_input_contents.into_iter().map(answer).collect()
        });
        let answers = answers.map_ok(|all| futures::stream::iter(all).map(Ok)).try_flatten();
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        self.admit(&request.get_ref().name)?;
        let config = ModelConfig { platform: "double".to_owned(), ..ModelConfig::default() };
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }
}
