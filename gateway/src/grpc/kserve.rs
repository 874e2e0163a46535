//! The KServe open inference protocol. What is about the server is answered here; what is about a model is asked of
//! one of its workers.
use belay_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse, grpc_inference_service_client::GrpcInferenceServiceClient,
    grpc_inference_service_server::GrpcInferenceService,
};
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{life::Failure, observe::Record, request_id::RequestId, serve::App};

use super::code_name;

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

    async fn infer(
        &self,
        mut request: ModelInferRequest,
        id: &RequestId,
        record: &mut Record,
    ) -> Result<ModelInferResponse, Failure> {
        let model = self.app.dispatcher.model(&request.model_name)?;
        if !self.app.dispatcher.knows(&model) {
            return Err(Failure::UnknownModel(model));
        }
        record.model(&model);
        request.model_name.clone_from(&model);
        let ask = async |channel: Channel| {
            let answer = self.client(channel).model_infer(request.clone()).await?;
            Ok(answer.into_inner())
        };
        self.app.dispatcher.unary(&model, &id.0, ask).await
    }
}

fn request_id<T>(request: &Request<T>) -> RequestId {
    request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::new)
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
        let id = request_id(&request);
        let mut request = request.into_inner();
        let model = self.app.dispatcher.model(&request.name)?;
        request.name.clone_from(&model);
        let ask = async |channel: Channel| {
            let answer = self.client(channel).model_metadata(request.clone()).await?;
            Ok(answer.into_inner())
        };
        Ok(Response::new(self.app.dispatcher.unary(&model, &id.0, ask).await?))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let id = request_id(&request);
        let path = "/inference.GRPCInferenceService/ModelInfer";
        let mut record = Record::begin(&self.app.dispatcher.metrics, &self.app.flights, id.clone(), path);
        let answer = self.infer(request.into_inner(), &id, &mut record).await.map_err(Status::from);
        record.outcome(code_name(answer.as_ref().err().map_or(Code::Ok, Status::code)));
        answer.map(Response::new)
    }
}
