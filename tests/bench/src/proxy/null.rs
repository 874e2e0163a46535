//! A worker that computes nothing: every answer is the same, and there at once.

use std::net::SocketAddr;

use anyhow::Result;
use belay_proto::inference::inference_server::{Inference, InferenceServer};
use belay_proto::inference::{
    ChatRequest, DetokenizeRequest, DetokenizeResponse, FinishReason, GenerateRequest, GenerateResponse,
    TokenizeRequest, TokenizeResponse, Usage,
};
use futures::stream::{self, Iter};
use tonic::{Request, Response, Status};

/// Tokens of an answer, each in a piece of its own.
pub const TOKENS: u32 = 16;

#[derive(Clone, Copy)]
struct Null;

type Pieces = Iter<std::vec::IntoIter<Result<GenerateResponse, Status>>>;

fn answer() -> Response<Pieces> {
    let usage = Usage { prompt_tokens: 7, ..Usage::default() };
    let first = GenerateResponse { usage: Some(usage), ..GenerateResponse::default() };
    let token = |id: u32| GenerateResponse { ids: vec![id], text: "x".into(), ..GenerateResponse::default() };
    let usage = Usage { completion_tokens: TOKENS, ..usage };
    let mut last = GenerateResponse { usage: Some(usage), ..GenerateResponse::default() };
    last.set_finish_reason(FinishReason::Length);
    let pieces = std::iter::once(first).chain((0..TOKENS).map(token)).chain(std::iter::once(last));
    Response::new(stream::iter(pieces.map(Ok).collect::<Vec<_>>()))
}

#[tonic::async_trait]
impl Inference for Null {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, _: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        Ok(answer())
    }

    async fn chat(&self, _: Request<ChatRequest>) -> Result<Response<Pieces>, Status> {
        Ok(answer())
    }

    async fn tokenize(&self, _: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        Err(Status::unimplemented("this worker has no tokenizer"))
    }

    async fn detokenize(
        &self,
        _: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        Err(Status::unimplemented("this worker has no tokenizer"))
    }
}

/// Serves for ever.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    let server = tonic::transport::Server::builder().tcp_nodelay(true);
    Ok(server.clone().add_service(InferenceServer::new(Null)).serve(listen).await?)
}
