//! One request through the gateway, to its last piece.

use anyhow::{Context, Result, bail};
use belay_proto::inference::{
    FinishReason, GenerateRequest, Sampling, TokenIds, generate_request::Prompt,
    inference_client::InferenceClient,
};
use tonic::transport::Channel;

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Tokens, in the order they were streamed.
    pub ids: Vec<u32>,
    /// Text, likewise.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of stream messages.
    pub pieces: usize,
}

/// Greedy, streamed, by gRPC.
///
/// # Errors
/// On any gRPC status, and when the stream ends without a finish reason.
pub async fn generate(channel: &Channel, model: &str, prompt: &[u32], length: Length) -> Result<Answer> {
    let (max_tokens, ignore_eos) = match length {
        Length::ToEnd { at_most } => (at_most, false),
        Length::Exactly(count) => (count, true),
    };
    let request = GenerateRequest {
        model: model.to_owned(),
        prompt: Some(Prompt::Ids(TokenIds { ids: prompt.to_vec() })),
        sampling: Some(Sampling {
            temperature: Some(0.0),
            max_tokens: Some(max_tokens),
            ignore_eos,
            ..Sampling::default()
        }),
        ..GenerateRequest::default()
    };
    let mut stream = InferenceClient::new(channel.clone()).generate(request).await?.into_inner();
    let mut answer =
        Answer { ids: Vec::new(), text: String::new(), finish: FinishReason::Unspecified, pieces: 0 };
    while let Some(piece) =
        stream.message().await.with_context(|| format!("after {} tokens", answer.ids.len()))?
    {
        answer.ids.extend(&piece.ids);
        answer.text.push_str(&piece.text);
        answer.pieces += 1;
        if piece.finish_reason() != FinishReason::Unspecified {
            answer.finish = piece.finish_reason();
        }
    }
    if answer.finish == FinishReason::Unspecified {
        bail!("the stream ended after {} tokens without a finish reason", answer.ids.len());
    }
    Ok(answer)
}

/// How many tokens to ask for.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// To the end of the answer.
    ToEnd {
        /// But no more than this.
        at_most: u32,
    },
    /// Past the end of the answer, if need be: for long streams.
    Exactly(u32),
}

/// Text of a chat answer, streamed by HTTP as server-sent events.
///
/// # Errors
/// On any status but 200, an error event, and when the stream ends without `[DONE]` or finish reason.
pub async fn chat(url: &str, model: &str, question: &str, max_tokens: u32) -> Result<String> {
    let body = serde_json::json!({
        "model": model, "stream": true, "temperature": 0, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": question}],
    });
    let response =
        reqwest::Client::new().post(format!("{url}/v1/chat/completions")).json(&body).send().await?;
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("{status}: {text}");
    }
    let (mut answer, mut finished, mut done) = (String::new(), false, false);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event: serde_json::Value = serde_json::from_str(data)?;
        if !event["error"].is_null() {
            bail!("error in the stream: {}", event["error"]);
        }
        answer.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        finished |= event["choices"][0]["finish_reason"].is_string();
    }
    if !(finished && done) {
        bail!("half an answer: finish reason {finished}, [DONE] {done}: {text}");
    }
    Ok(answer)
}
