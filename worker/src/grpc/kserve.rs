//! The KServe open inference protocol, version 2 (`inference.GRPCInferenceService`).

use std::sync::Arc;
use std::time::Instant;

use belay_proto::inference::{FinishReason, GenerateResponse, Usage};
use belay_proto::kserve::grpc_inference_service_server::GrpcInferenceService;
use belay_proto::kserve::infer_parameter::ParameterChoice;
use belay_proto::kserve::model_metadata_response::TensorMetadata;
use belay_proto::kserve::{
    DataType, InferParameter, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
    ModelInferResponse, ModelInput, ModelMetadataRequest, ModelMetadataResponse, ModelOutput,
    ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse, ModelTransactionPolicy,
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use belay_telemetry::Span;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::ask::{Ask, Prompt, call_deadline, deadline, named, span};
use crate::context::Context;
use crate::grpc::errors;
use crate::grpc::infer_fields::{INPUTS, LISTS};
use crate::grpc::tensors::{self, Answer, Infer};
use crate::reply::ReplyStream;

/// The one version of the model that a worker serves.
const MODEL_VERSION: &str = "1";

/// Text or token ids in, text and token ids out; at once, or as they come on a stream.
#[derive(Clone, Debug)]
pub struct KserveService(pub Arc<Context>);

impl KserveService {
    fn check(&self, name: &str, version: &str) -> Result<(), Status> {
        self.0.check_model(name)?;
        if version.is_empty() || version == MODEL_VERSION {
            return Ok(());
        }
        Err(Status::not_found(format!(
            "version {version:?} of model {:?} is not served here; this worker serves version {MODEL_VERSION:?}",
            self.0.model_name
        )))
    }

    fn is_ready(&self) -> bool {
        self.0.shared.get().refusal().is_none()
    }

    /// Begins to compute a request.
    async fn begin(&self, request: &ModelInferRequest, call: &Call) -> Result<(Infer, ReplyStream), Status> {
        let read = self.check(&request.model_name, &request.model_version).and_then(|()| {
            let mut infer = tensors::decode(request).map_err(Status::invalid_argument)?;
            let ask = Ask {
                model: request.model_name.clone(),
                request_id: named(request.id.clone()),
                prompt: std::mem::replace(&mut infer.prompt, Prompt::Ids(Vec::new())),
                sampling: infer.fields.sampling.clone(),
                options: infer.fields.options.clone(),
                resume: Vec::new(),
                deadline: deadline(&infer.fields.options, call.deadline),
                span: call.span("infer"),
            };
            Ok((infer, ask))
        });
        let (infer, ask) = read.inspect_err(|status| self.0.requests.refused(status.code()))?;
        Ok((infer, self.0.begin(Ok(ask)).await?))
    }

    /// The whole answer in one.
    async fn whole(
        &self,
        id: &str,
        infer: &Infer,
        stream: ReplyStream,
    ) -> Result<ModelInferResponse, Status> {
        let mut answer = Answer::default();
        let mut usage = Usage::default();
        stream
            .try_for_each(|piece| {
                usage = piece.usage.unwrap_or(usage);
                add(&mut answer, piece);
                futures::future::ready(Ok(()))
            })
            .await?;
        Ok(self.response(id, infer, &answer, Some(usage)))
    }

    /// The answers to one request of a stream. Failures are answers as well: the stream goes on for the others.
    fn answers(self, request: ModelInferRequest, call: Call) -> Answers {
        let id = request.id.clone();
        let begun = async move {
            let (infer, stream) = self.begin(&request, &call).await?;
            if infer.fields.stream == Some(false) {
                let answer = self.whole(&request.id, &infer, stream).await?;
                return Ok(futures::stream::once(async { Ok(is_final(answer, true)) }).boxed());
            }
            let pieces = stream.map_ok(move |piece| {
                let mut answer = Answer::default();
                let usage = (piece.finish_reason != 0).then_some(piece.usage).flatten();
                add(&mut answer, piece);
                is_final(self.response(&request.id, &infer, &answer, usage), usage.is_some())
            });
            Ok::<_, Status>(pieces.boxed())
        };
        let answers = futures::stream::once(begun).try_flatten().map(move |answer| match answer {
            Ok(answer) => Ok(ModelStreamInferResponse { infer_response: Some(answer), ..Default::default() }),
            Err(status) => Ok(failed(&id, &status)),
        });
        answers.boxed()
    }

    fn response(&self, id: &str, infer: &Infer, answer: &Answer, usage: Option<Usage>) -> ModelInferResponse {
        let mut response = ModelInferResponse {
            model_name: self.0.model_name.clone(),
            model_version: MODEL_VERSION.into(),
            id: id.into(),
            ..ModelInferResponse::default()
        };
        if let Some(usage) = usage {
            for (name, tokens) in [
                ("prompt_tokens", usage.prompt_tokens),
                ("completion_tokens", usage.completion_tokens),
                ("cached_tokens", usage.cached_tokens),
            ] {
                let count = ParameterChoice::Int64Param(i64::from(tokens));
                response.parameters.insert(name.into(), parameter(count));
            }
        }
        tensors::encode(&mut response, infer, answer);
        response
    }
}

/// Shape of an input or output; -1 is any length.
fn dims(name: &str) -> Vec<i64> {
    let is_list =
        LISTS.contains(&name) || matches!(name, "output_ids" | "output_logprobs" | "input_logprobs");
    vec![if is_list { -1 } else { 1 }]
}

/// What the requests of a call have in common.
#[derive(Clone)]
struct Call {
    deadline: Option<Instant>,
    metadata: MetadataMap,
}

impl Call {
    fn of(metadata: &MetadataMap) -> Self {
        Self { deadline: call_deadline(metadata), metadata: metadata.clone() }
    }

    fn span(&self, name: &'static str) -> Span {
        span(name, &self.metadata)
    }
}

type Answers = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

/// Adds a piece to what came before it.
fn add(answer: &mut Answer, piece: GenerateResponse) {
    answer.finish_reason = match piece.finish_reason() {
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
        FinishReason::Length => "length",
        FinishReason::Unspecified => "",
    };
    answer.text.push_str(&piece.prompt_text);
    answer.text.push_str(&piece.text);
    answer.ids.extend(piece.ids);
    answer.logprobs.extend(piece.logprobs.iter().map(|token| token.logprob));
    answer.prompt_logprobs.extend(piece.prompt_logprobs.iter().map(|token| token.logprob));
}

/// As Triton marks the last answer to a request.
fn is_final(mut response: ModelInferResponse, flag: bool) -> ModelInferResponse {
    response.parameters.insert("triton_final_response".into(), parameter(ParameterChoice::BoolParam(flag)));
    response
}

/// A failure within a stream. What a status would say beside its message is in the parameters.
fn failed(id: &str, status: &Status) -> ModelStreamInferResponse {
    let mut response = is_final(ModelInferResponse { id: id.into(), ..ModelInferResponse::default() }, true);
    let code = ParameterChoice::Int64Param(i64::from(i32::from(status.code())));
    response.parameters.insert("grpc_status".into(), parameter(code));
    if let Some(retry) = status.metadata().get(errors::RETRY_KEY).and_then(|value| value.to_str().ok()) {
        let retry = ParameterChoice::StringParam(retry.into());
        response.parameters.insert(errors::RETRY_KEY.into(), parameter(retry));
    }
    ModelStreamInferResponse { error_message: status.message().into(), infer_response: Some(response) }
}

#[tonic::async_trait]
impl GrpcInferenceService for KserveService {
    async fn server_live(
        &self,
        _request: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _request: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.name, &request.version)?;
        Ok(Response::new(ModelReadyResponse { ready: self.is_ready() }))
    }

    async fn server_metadata(
        &self,
        _request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "belay-worker".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: vec!["model_configuration".into()],
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.name, &request.version)?;
        let tensor = |(name, datatype): &(&str, &str)| TensorMetadata {
            name: (*name).into(),
            datatype: (*datatype).into(),
            shape: dims(name),
        };
        Ok(Response::new(ModelMetadataResponse {
            name: self.0.model_name.clone(),
            versions: vec![MODEL_VERSION.into()],
            platform: "belay".into(),
            inputs: INPUTS.iter().map(tensor).collect(),
            outputs: tensors::OUTPUTS.iter().map(tensor).collect(),
            ..ModelMetadataResponse::default()
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let call = Call::of(request.metadata());
        let request = request.into_inner();
        let (infer, stream) = self.begin(&request, &call).await?;
        Ok(Response::new(self.whole(&request.id, &infer, stream).await?))
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let call = Call::of(request.metadata());
        let service = self.clone();
        let config = &self.0.config;
        // more could only wait, or be refused
        let at_once = config.max_sessions as usize + config.max_queued as usize;
        let answers = request
            .into_inner()
            .map(move |request| match request {
                Ok(request) => service.clone().answers(request, call.clone()),
                Err(status) => futures::stream::once(async { Err(status) }).boxed(),
            })
            .flatten_unordered(at_once);
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        self.check(&request.name, &request.version)?;
        let data_type = |datatype: &str| match datatype {
            "BYTES" => DataType::TypeString,
            "BOOL" => DataType::TypeBool,
            "INT32" => DataType::TypeInt32,
            "INT64" => DataType::TypeInt64,
            "FP32" => DataType::TypeFp32,
            _ => DataType::TypeInvalid,
        };
        let input = |(name, datatype): &(&str, &str)| ModelInput {
            name: (*name).into(),
            data_type: data_type(datatype).into(),
            dims: dims(name),
            optional: true,
        };
        let output = |(name, datatype): &(&str, &str)| ModelOutput {
            name: (*name).into(),
            data_type: data_type(datatype).into(),
            dims: dims(name),
        };
        let config = ModelConfig {
            name: self.0.model_name.clone(),
            platform: "belay".into(),
            backend: "belay".into(),
            input: INPUTS.iter().map(input).collect(),
            output: tensors::OUTPUTS.iter().map(output).collect(),
            model_transaction_policy: Some(ModelTransactionPolicy { decoupled: true }),
            ..ModelConfig::default()
        };
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }
}
