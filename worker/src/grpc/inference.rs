//! `belay.inference.v1.Inference`.

use std::sync::Arc;

use belay_proto::inference::inference_server::Inference;
use belay_proto::inference::tokenize_request::Input;
use belay_proto::inference::{
    ChatRequest, DetokenizeRequest, DetokenizeResponse, GenerateRequest, TokenizeRequest, TokenizeResponse,
};
use tonic::{Request, Response, Status};

use crate::ask::{Ask, Prompt};
use crate::context::Context;
use crate::grpc::errors;
use crate::reply::ReplyStream;

/// Text generation over the worker's engine.
#[derive(Clone, Debug)]
pub struct InferenceService(pub Arc<Context>);

impl InferenceService {
    fn chat_ask(&self, request: Request<ChatRequest>) -> Result<Ask, Status> {
        let (metadata, _, request) = request.into_parts();
        Ask::chat(request, self.0.chat_defaults(), &metadata)
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = ReplyStream;
    type ChatStream = ReplyStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<ReplyStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let ask = Ask::generate(request, &metadata);
        Ok(Response::new(self.0.begin(ask).await?))
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<ReplyStream>, Status> {
        Ok(Response::new(self.0.begin(self.chat_ask(request)).await?))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let TokenizeRequest { model, input } = request.into_inner();
        let prompt = match input {
            Some(Input::Text(text)) => Prompt::Text(text),
            Some(Input::Chat(chat)) => self.chat_ask(Request::new(chat))?.prompt,
            None => return Err(errors::invalid("input", "text or chat must be set")),
        };
        Ok(Response::new(self.0.tokenize(&model, prompt).await?))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let DetokenizeRequest { model, ids } = request.into_inner();
        Ok(Response::new(DetokenizeResponse { text: self.0.detokenize(&model, &ids)? }))
    }
}
