//! The KServe open inference protocol, version 2 (`inference.GRPCInferenceService`).

use std::sync::Arc;

use belay_proto::inference::FinishReason;
use belay_proto::kserve::grpc_inference_service_server::GrpcInferenceService;
use belay_proto::kserve::infer_parameter::ParameterChoice;
use belay_proto::kserve::model_metadata_response::TensorMetadata;
use belay_proto::kserve::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use futures::TryStreamExt;
use tonic::{Request, Response, Status};

use crate::context::{Ask, Context, Prompt};
use crate::grpc::inference::named;
use crate::grpc::tensors::{self, Answer, Infer};

/// The one version of the model that a worker serves.
const MODEL_VERSION: &str = "1";

/// Text in, text out, without a stream.
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

    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.check(&request.model_name, &request.model_version)?;
        let mut infer = tensors::decode(&request).map_err(Status::invalid_argument)?;
        let ask = Ask {
            model: request.model_name,
            request_id: named(request.id.clone()),
            prompt: std::mem::replace(&mut infer.prompt, Prompt::Ids(Vec::new())),
            sampling: infer.sampling.clone(),
            resume: Vec::new(),
        };
        let stream = self.0.begin(ask).await?;
        let mut answer = Answer { text: String::new(), ids: Vec::new(), finish_reason: "" };
        let mut usage = None;
        stream
            .try_for_each(|piece| {
                answer.finish_reason = match piece.finish_reason() {
                    FinishReason::Stop | FinishReason::ToolCalls => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Unspecified => "",
                };
                answer.text.push_str(&piece.text);
                answer.ids.extend(piece.ids);
                usage = piece.usage.or(usage);
                futures::future::ready(Ok(()))
            })
            .await?;
        Ok(self.response(request.id, &infer, &answer, usage.unwrap_or_default()))
    }

    fn response(
        &self,
        id: String,
        infer: &Infer,
        answer: &Answer,
        usage: belay_proto::inference::Usage,
    ) -> ModelInferResponse {
        let count = |tokens: u32| InferParameter {
            parameter_choice: Some(ParameterChoice::Int64Param(i64::from(tokens))),
        };
        let mut response = ModelInferResponse {
            model_name: self.0.model_name.clone(),
            model_version: MODEL_VERSION.into(),
            id,
            parameters: [
                ("prompt_tokens".to_owned(), count(usage.prompt_tokens)),
                ("completion_tokens".to_owned(), count(usage.completion_tokens)),
            ]
            .into(),
            ..ModelInferResponse::default()
        };
        tensors::encode(&mut response, infer, answer);
        response
    }
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
            extensions: vec![],
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
            // ids and stop strings are lists; everything else is one element
            shape: vec![if matches!(*name, "input_ids" | "output_ids" | "stop") { -1 } else { 1 }],
        };
        Ok(Response::new(ModelMetadataResponse {
            name: self.0.model_name.clone(),
            versions: vec![MODEL_VERSION.into()],
            platform: "belay".into(),
            inputs: tensors::INPUTS.iter().map(tensor).collect(),
            outputs: tensors::OUTPUTS.iter().map(tensor).collect(),
            ..ModelMetadataResponse::default()
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        Ok(Response::new(self.infer(request.into_inner()).await?))
    }
}
