//! `belay.inference.v1.Inference`.

use std::sync::Arc;

use belay_engine::chat::{self, Conversation};
use belay_proto::inference::generate_request::Prompt as WirePrompt;
use belay_proto::inference::inference_server::Inference;
use belay_proto::inference::tokenize_request::Input;
use belay_proto::inference::{
    self, ChatRequest, DetokenizeRequest, DetokenizeResponse, GenerateRequest, TokenizeRequest,
    TokenizeResponse,
};
use tonic::{Request, Response, Status};

use crate::context::{Ask, Context, Prompt};
use crate::grpc::errors;
use crate::reply_stream::ReplyStream;

/// Text generation over the worker's engine.
#[derive(Clone, Debug)]
pub struct InferenceService(pub Arc<Context>);

#[tonic::async_trait]
impl Inference for InferenceService {
    type GenerateStream = ReplyStream;
    type ChatStream = ReplyStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<ReplyStream>, Status> {
        let GenerateRequest { model, request_id, prompt, sampling, resume_ids, .. } = request.into_inner();
        let prompt = match prompt {
            Some(WirePrompt::Text(text)) => Prompt::Text(text),
            Some(WirePrompt::Ids(ids)) => Prompt::Ids(ids.ids),
            None => return Err(errors::invalid("prompt", "text or ids must be set")),
        };
        let sampling = sampling.unwrap_or_default();
        let ask = Ask { model, request_id: named(request_id), prompt, sampling, resume: resume_ids };
        Ok(Response::new(self.0.begin(ask).await?))
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<ReplyStream>, Status> {
        let ChatRequest { model, request_id, messages, sampling, thinking, resume_ids, .. } =
            request.into_inner();
        let conversation = conversation(messages, thinking);
        let ask = Ask {
            model,
            request_id: named(request_id),
            prompt: Prompt::Chat(conversation),
            sampling: sampling.unwrap_or_default(),
            resume: resume_ids,
        };
        Ok(Response::new(self.0.begin(ask).await?))
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let TokenizeRequest { model, input } = request.into_inner();
        let prompt = match input {
            Some(Input::Text(text)) => Prompt::Text(text),
            Some(Input::Chat(ChatRequest { messages, thinking, .. })) => {
                Prompt::Chat(conversation(messages, thinking))
            }
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

fn conversation(messages: Vec<inference::Message>, thinking: Option<bool>) -> Conversation {
    let messages = messages
        .into_iter()
        .map(|message| chat::Message {
            role: message.role,
            content: message.content,
            reasoning: message.reasoning,
            ..chat::Message::default()
        })
        .collect();
    Conversation { messages, thinking: thinking.unwrap_or(false), ..Conversation::default() }
}

/// The given id, or a new one.
pub(crate) fn named(request_id: String) -> String {
    if request_id.is_empty() { uuid::Uuid::new_v4().to_string() } else { request_id }
}
