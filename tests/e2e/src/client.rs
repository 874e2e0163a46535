//! One request through the gateway by gRPC, to its last piece.

use std::time::{Duration, Instant};

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
    /// When they came.
    pub pace: Pace,
}

/// How the pieces of one stream came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// From the request to the first piece.
    pub first: Duration,
    /// The longest time between two pieces.
    pub gap: Duration,
}

impl Pace {
    /// The worse of the two, each by itself.
    #[must_use]
    pub fn worst(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), gap: self.gap.max(other.gap) }
    }
}

/// Times the pieces of one stream.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    pieces: usize,
    pace: Pace,
}

impl Stopwatch {
    /// At the request.
    #[must_use]
    pub fn start() -> Self {
        Self { last: Instant::now(), pieces: 0, pace: Pace::default() }
    }

    /// At each piece.
    pub fn piece(&mut self) {
        let now = Instant::now();
        let waited = now - std::mem::replace(&mut self.last, now);
        if self.pieces == 0 {
            self.pace.first = waited;
        } else {
            self.pace.gap = self.pace.gap.max(waited);
        }
        self.pieces += 1;
    }

    /// Pieces so far.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// What it has measured.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }
}

/// Greedy, streamed, by gRPC.
///
/// # Errors
/// On any gRPC status, and when the stream ends without a finish reason.
pub async fn generate(channel: &Channel, model: &str, prompt: &[u32], length: Length) -> Result<Answer> {
    generate_counted(channel, model, prompt, length, |_| {}).await
}

/// The same; `count` is told how many tokens came with each piece.
///
/// # Errors
/// As [`generate`].
pub async fn generate_counted(
    channel: &Channel,
    model: &str,
    prompt: &[u32],
    length: Length,
    mut count: impl FnMut(usize),
) -> Result<Answer> {
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
    let mut watch = Stopwatch::start();
    let (mut ids, mut text, mut finish) = (Vec::new(), String::new(), FinishReason::Unspecified);
    let mut stream = InferenceClient::new(channel.clone()).generate(request).await?.into_inner();
    while let Some(piece) = stream.message().await.with_context(|| format!("after {} tokens", ids.len()))? {
        watch.piece();
        count(piece.ids.len());
        ids.extend(&piece.ids);
        text.push_str(&piece.text);
        if piece.finish_reason() != FinishReason::Unspecified {
            finish = piece.finish_reason();
        }
    }
    if finish == FinishReason::Unspecified {
        bail!("the stream ended after {} tokens without a finish reason", ids.len());
    }
    Ok(Answer { ids, text, finish, pieces: watch.pieces(), pace: watch.pace() })
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
