//! One request by gRPC, straight to a worker.

use std::time::Instant;

use anyhow::{Context, Result};
use belay_proto::inference::inference_client::InferenceClient;
use belay_proto::inference::{GenerateRequest, Sampling, TokenIds, generate_request::Prompt};
use tonic::transport::Channel;

use super::mix::Request;
use super::record::Record;

/// Asks and reads to the end.
///
/// # Errors
/// Any status, and a stream without a finish reason.
pub async fn ask(channel: &Channel, model: &str, request: &Request) -> Result<Record> {
    let message = GenerateRequest {
        model: model.to_owned(),
        prompt: Some(Prompt::Ids(TokenIds { ids: request.prompt_ids.clone() })),
        sampling: Some(Sampling {
            temperature: Some(0.0),
            max_tokens: Some(request.output_tokens),
            min_tokens: request.output_tokens,
            ..Sampling::default()
        }),
        ..GenerateRequest::default()
    };
    let sent = Instant::now();
    let mut stream = InferenceClient::new(channel.clone()).generate(message).await?.into_inner();
    let mut record =
        Record { sent, pieces: Vec::new(), prompt_tokens: 0, output_tokens: 0, cached_tokens: 0 };
    let mut finished = false;
    while let Some(piece) = stream.message().await? {
        if !piece.ids.is_empty() {
            record.pieces.push(Instant::now());
        }
        if piece.finish_reason != 0 {
            let usage = piece.usage.context("the last piece has no usage")?;
            (record.prompt_tokens, record.output_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            record.cached_tokens = usage.cached_tokens;
            finished = true;
        }
    }
    anyhow::ensure!(finished, "the stream ended without a finish reason");
    Ok(record)
}
