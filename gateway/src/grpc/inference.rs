//! `belay.inference.v1.Inference`: the workers' own service, with hold, retry and resume in between.
use std::pin::Pin;

use belay_proto::inference::{
    ChatRequest, DetokenizeRequest, DetokenizeResponse, GenerateRequest, GenerateResponse, TokenizeRequest,
    TokenizeResponse, inference_server::Inference,
};
use futures::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};

use crate::{
    life::{Call, Generation},
    observe::Record,
    request_id::RequestId,
    serve::App,
};

use super::code_name;

/// See the module.
#[derive(Clone, Debug)]
pub struct Service {
    app: App,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

impl Service {
    /// Of this gateway.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// The message's id wins over the header's.
    fn serve(
        &self,
        mut call: Call,
        header: Option<RequestId>,
        path: &'static str,
    ) -> Result<Response<Pieces>, Status> {
        if call.request_id().is_empty() {
            call.set_request_id(&header.unwrap_or_else(RequestId::new).0);
        }
        let id = RequestId(call.request_id().to_owned());
        let mut record = Record::begin(&self.app.dispatcher.metrics, &self.app.flights, id, path);
        let generation = Generation::new(self.app.dispatcher.clone(), call).map_err(|failure| {
            let status = Status::from(failure);
            record.outcome(code_name(status.code()));
            status
        })?;
        record.model(generation.model());
        let pieces = generation.into_stream().map(move |piece| match piece {
            Ok(piece) => {
                record.piece(&piece);
                if piece.finish_reason != 0 {
                    record.outcome(code_name(Code::Ok));
                }
                Ok(piece)
            }
            Err(failure) => {
                let status = Status::from(failure);
                record.outcome(code_name(status.code()));
                Err(status)
            }
        });
        Ok(Response::new(Box::pin(pieces)))
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let header = request.extensions().get::<RequestId>().cloned();
        self.serve(Call::Generate(request.into_inner()), header, "/belay.inference.v1.Inference/Generate")
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Pieces>, Status> {
        let header = request.extensions().get::<RequestId>().cloned();
        self.serve(Call::Chat(request.into_inner()), header, "/belay.inference.v1.Inference/Chat")
    }

    async fn tokenize(&self, _: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        Err(Status::unimplemented("this gateway does not pass on Tokenize"))
    }

    async fn detokenize(
        &self,
        _: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        Err(Status::unimplemented("this gateway does not pass on Detokenize"))
    }
}
