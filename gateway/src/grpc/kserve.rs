//! The KServe open inference protocol. What is about the server is answered here; what is about a model is asked of
//! one of its workers.
use belay_proto::kserve::{
    InferParameter, ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    grpc_inference_service_server::GrpcInferenceService, infer_parameter::ParameterChoice,
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use prost::Message;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use crate::{
    life::{Caller, Failure, Purpose},
    measure::Work,
    observe::Record,
    request_id::RequestId,
    routing::Route,
    serve::App,
};

use super::{caller, code_name, request_id};

/// Requests of one stream that are under way at a time; more are not read from it until one of them has ended.
const STREAMED_AT_ONCE: usize = 256;

/// See the module.
#[derive(Clone, Debug)]
pub struct Service {
    app: App,
}

impl Service {
    /// Of this gateway.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    fn client(&self, channel: Channel) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(self.app.dispatcher.limits.message_bytes)
    }

    /// The answers to one request of a stream. Failures are answers as well: the stream goes on for the others.
    fn answers(self, request: ModelInferRequest, caller: Caller, id: RequestId) -> Answers {
        let path = "/inference.GRPCInferenceService/ModelStreamInfer";
        let mut record = Record::begin(&self.app.dispatcher.metrics, &self.app.flights, id.clone(), path);
        let name = request.id.clone();
        let begun = async move {
            let begun = self.begin(request, &caller, &id, &mut record).await.map_err(Status::from);
            record.outcome(code_name(begun.as_ref().err().map_or(Code::Ok, Status::code)));
            // in flight until the answers are through
            begun.map(|answers| answers.inspect(move |_| _ = &record))
        };
        let answers = futures::stream::once(begun).try_flatten();
        answers.map(move |answer| Ok(answer.unwrap_or_else(|status| failed(&name, &status)))).boxed()
    }

    /// A worker's answers to one request, from the first one on. Before that, another worker is asked as with any
    /// request; after it there is no way back, since this protocol has no word for tokens that were produced elsewhere.
    async fn begin(
        &self,
        mut request: ModelInferRequest,
        caller: &Caller,
        id: &RequestId,
        record: &mut Record,
    ) -> Result<Answers, Failure> {
        let work = Work::of_bytes(request.encoded_len());
        let route = self.app.dispatcher.admit(caller, &request.model_name, work)?;
        record.model(&route);
        request.model_name.clone_from(&route.target.model);
        let ask = async |channel: Channel| {
            let only = futures::stream::iter([request.clone()]);
            let mut answers = self.client(channel).model_stream_infer(only).await?.into_inner();
            let first = answers.try_next().await?;
            match first.as_ref().and_then(status_of) {
                Some(status) => Err(status),
                None => Ok(futures::stream::iter(first).map(Ok).chain(answers).boxed()),
            }
        };
        let answer = self.app.dispatcher.unary(&route, &id.0, Purpose::Answer, ask).await?;
        settle(&route);
        Ok(answer)
    }

    async fn infer(
        &self,
        mut request: ModelInferRequest,
        caller: &Caller,
        id: &RequestId,
        record: &mut Record,
    ) -> Result<ModelInferResponse, Failure> {
        let work = Work::of_bytes(request.encoded_len());
        let route = self.app.dispatcher.admit(caller, &request.model_name, work)?;
        record.model(&route);
        request.model_name.clone_from(&route.target.model);
        let ask = async |channel: Channel| {
            let answer = self.client(channel).model_infer(request.clone()).await?;
            Ok(answer.into_inner())
        };
        let answer = self.app.dispatcher.unary(&route, &id.0, Purpose::Answer, ask).await?;
        settle(&route);
        Ok(answer)
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.app.health.ready().is_ok() }))
    }

    /// Ready: a request would be served at once. An unknown model is not ready, which is no error.
    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let view = self.app.dispatcher.fleet.view();
        let ready = view.models.get(&request.get_ref().name).is_some_and(|model| model.ready() > 0);
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "belay-gateway".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let mut request = request.into_inner();
        let route = self.app.dispatcher.admit(&caller, &request.name, Work::default())?;
        request.name.clone_from(&route.target.model);
        let ask = async |channel: Channel| {
            let answer = self.client(channel).model_metadata(request.clone()).await?;
            Ok(answer.into_inner())
        };
        Ok(Response::new(self.app.dispatcher.unary(&route, &id.0, Purpose::Aside, ask).await?))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let mut record = Record::begin(&self.app.dispatcher.metrics, &self.app.flights, id.clone(), path);
        let answer = self.infer(request.into_inner(), &caller, &id, &mut record).await.map_err(Status::from);
        record.outcome(code_name(answer.as_ref().err().map_or(Code::Ok, Status::code)));
        answer.map(Response::new)
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let service = self.clone();
        let answers = request
            .into_inner()
            .map(move |request| match request {
                Ok(request) => service.clone().answers(request, caller.clone(), id.clone()),
                Err(status) => futures::stream::once(async { Err(status) }).boxed(),
            })
            .flatten_unordered(STREAMED_AT_ONCE);
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let (id, caller) = (request_id(&request), caller(&request));
        let mut request = request.into_inner();
        let route = self.app.dispatcher.admit(&caller, &request.name, Work::default())?;
        request.name.clone_from(&route.target.model);
        let ask = async |channel: Channel| {
            let answer = self.client(channel).model_config(request.clone()).await?;
            Ok(answer.into_inner())
        };
        Ok(Response::new(self.app.dispatcher.unary(&route, &id.0, Purpose::Aside, ask).await?))
    }
}

/// This protocol does not say how many tokens an answer took.
fn settle(route: &Route) {
    if let Some(ticket) = &route.ticket {
        ticket.settle_as_expected();
    }
}

type Answers = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

/// The status that a worker puts into an answer of a stream, if it is a failure.
fn status_of(answer: &ModelStreamInferResponse) -> Option<Status> {
    if answer.error_message.is_empty() {
        return None;
    }
    let parameters = &answer.infer_response.as_ref()?.parameters;
    let choice = |name: &str| parameters.get(name)?.parameter_choice.as_ref();
    let code = match choice("grpc_status") {
        Some(ParameterChoice::Int64Param(code)) => Code::from(i32::try_from(*code).unwrap_or_default()),
        _ => Code::Unknown,
    };
    let mut status = Status::new(code, answer.error_message.clone());
    if let Some(ParameterChoice::StringParam(retry)) = choice("belay-retry")
        && let Ok(retry) = retry.parse()
    {
        status.metadata_mut().insert("belay-retry", retry);
    }
    Some(status)
}

/// A failure as Triton's clients read it within a stream.
fn failed(id: &str, status: &Status) -> ModelStreamInferResponse {
    let is_final = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let response = ModelInferResponse {
        id: id.to_owned(),
        parameters: [("triton_final_response".to_owned(), is_final)].into(),
        ..ModelInferResponse::default()
    };
    ModelStreamInferResponse { error_message: status.message().to_owned(), infer_response: Some(response) }
}
