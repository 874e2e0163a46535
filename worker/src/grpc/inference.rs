//! `belay.inference.v1.Inference`.

use std::sync::Arc;

use belay_engine::chat::{self, Conversation};
use belay_proto::inference::generate_request::Prompt as WirePrompt;
use belay_proto::inference::inference_server::Inference;
use belay_proto::inference::{ChatRequest, GenerateRequest};
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
        let GenerateRequest { model, request_id, prompt, sampling, resume_ids } = request.into_inner();
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
        let ChatRequest { model, request_id, messages, sampling, thinking, resume_ids } =
            request.into_inner();
        let messages = messages
            .into_iter()
            .map(|message| chat::Message {
                role: message.role,
                content: message.content,
                reasoning: message.reasoning,
                ..chat::Message::default()
            })
            .collect();
        let conversation =
            Conversation { messages, thinking: thinking.unwrap_or(false), ..Conversation::default() };
        let ask = Ask {
            model,
            request_id: named(request_id),
            prompt: Prompt::Chat(conversation),
            sampling: sampling.unwrap_or_default(),
            resume: resume_ids,
        };
        Ok(Response::new(self.0.begin(ask).await?))
    }
}

/// The given id, or a new one.
pub(crate) fn named(request_id: String) -> String {
    if request_id.is_empty() { uuid::Uuid::new_v4().to_string() } else { request_id }
}
