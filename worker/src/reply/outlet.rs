//! The engine's end of one answer: events become pieces.

use std::sync::Arc;
use std::time::SystemTime;

use belay_engine::{Event, FailureKind, FinishReason, TokenLogprobs, Tokenizer};
use belay_proto::inference::{self, GenerateResponse, TokenLogprob, Usage};

use belay_telemetry::Span;

use super::mailbox::{Ended, Mailbox};
use super::parts::Parts;
use crate::grpc::errors;
use crate::metrics::RequestMetrics;
use crate::state::Shared;

/// Most log-probabilities of prompt tokens in one piece.
const PROMPT_LOGPROBS_PER_PIECE: usize = 4096;

/// Takes the events of one answer. Ends the stream if it is dropped without a last one.
pub struct Outlet {
    /// Which answer.
    pub index: u32,
    /// Where the pieces go.
    pub mailbox: Arc<Mailbox>,
    /// For the bytes of log-probabilities.
    pub tokenizer: Arc<Tokenizer>,
    /// To tell a lost request from a drained one.
    pub shared: Arc<Shared>,
    /// How to part the text.
    pub parts: Parts,
    /// What the first piece says besides, until it is sent.
    pub opening: Option<GenerateResponse>,
    /// Trace of the request.
    pub span: Span,
    /// Has the engine's report of a request that has just ended.
    pub requests: Arc<RequestMetrics>,
}

impl Outlet {
    /// Passes an event on; false cancels the request.
    pub fn take(&mut self, event: Event) -> bool {
        if matches!(event, Event::Finished { .. } | Event::Failed { .. }) && self.span.is_recording() {
            self.trace();
        }
        match event {
            Event::Prompt { logprobs } => self.prompt(&logprobs),
            Event::Tokens { ids, text, logprobs } => {
                let mut piece = self.opening.take().unwrap_or_default();
                self.parts.push(ids.len(), &text, &mut piece);
                piece.ids = ids;
                piece.logprobs = logprobs.iter().map(|token| self.logprobs(token)).collect();
                self.mailbox.add(self.index, piece)
            }
            Event::Finished { reason, usage } => {
                let mut piece = self.opening.take().unwrap_or_default();
                self.parts.finish(reason == FinishReason::Length, &mut piece);
                if piece != GenerateResponse::default() {
                    self.mailbox.add(self.index, piece);
                }
                let usage = Usage {
                    prompt_tokens: usage.prompt_tokens,
                    completion_tokens: usage.completion_tokens,
                    cached_tokens: usage.cached_tokens,
                    reasoning_tokens: self.parts.reasoning_tokens(),
                };
                self.mailbox.end(self.index, Ended { reason, has_calls: self.parts.has_calls(), usage })
            }
            Event::Failed { message, kind } => self.mailbox.fail(self.failure(message, kind)),
        }
    }

    /// Where the time went, as parts of the request's span.
    fn trace(&self) {
        // made on this very thread, just before the event
        let Some(report) = self.requests.take_report() else { return };
        let Some(begin) = SystemTime::now().checked_sub(report.total) else { return };
        let ran = begin + report.queued;
        self.span.part("queue", begin, ran);
        if let Some(prefill) = report.prefill {
            self.span.part("prefill", ran, ran + prefill);
            if let Some(decode) = report.decode {
                self.span.part("decode", ran + prefill, ran + prefill + decode);
            }
        }
        if report.preemptions > 0 {
            self.span.event("preempted", "times", i64::from(report.preemptions));
        }
    }

    /// In pieces that fit into messages. The first token of the prompt has no probability.
    fn prompt(&mut self, logprobs: &[TokenLogprobs]) -> bool {
        let Some(mut piece) = self.opening.take() else { return true };
        for chunk in logprobs.chunks(PROMPT_LOGPROBS_PER_PIECE) {
            piece.prompt_logprobs.extend(chunk.iter().map(|token| self.logprobs(token)));
            if !self.mailbox.add(self.index, std::mem::take(&mut piece)) {
                return false;
            }
        }
        // of a prompt of one token
        piece == GenerateResponse::default() || self.mailbox.add(self.index, piece)
    }

    fn logprobs(&self, token: &TokenLogprobs) -> inference::TokenLogprobs {
        let top = |(id, logprob): &(u32, f32)| TokenLogprob {
            id: *id,
            logprob: *logprob,
            bytes: self.tokenizer.spelling(*id),
        };
        inference::TokenLogprobs {
            id: token.id,
            logprob: token.logprob,
            bytes: self.tokenizer.spelling(token.id),
            top: token.top.iter().map(top).collect(),
        }
    }

    fn failure(&self, message: String, kind: FailureKind) -> tonic::Status {
        errors::failed(message, kind, self.shared.get().draining)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.mailbox.close(self.index, || self.failure("the engine has stopped".into(), FailureKind::Lost));
    }
}
