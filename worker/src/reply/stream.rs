//! The reader's end: the response stream of one request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use belay_engine::chat::CALL_END;
use belay_engine::{FinishReason, Sink, Tokenizer};
use belay_proto::inference::generate_response::StoppedBy;
use belay_proto::inference::{self, GenerateResponse, TokenLogprobs, Usage};
use belay_telemetry::Span;
use futures::Stream;
use tonic::Status;

use super::mailbox::{Ended, Mailbox, Next};
use super::outlet::Outlet;
use super::parts::Parts;
use crate::metrics::RequestTimer;
use crate::state::{Shared, Ticket};

/// What the reader hears before the first token.
pub struct Opening {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Text of the prompt, if it is to be repeated.
    pub prompt_text: Option<String>,
    /// First token of the prompt, if the log-probabilities of the prompt are asked for.
    pub scored: Option<u32>,
}

/// The answers to one request as they come.
pub struct ReplyStream {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
    tokenizer: Arc<Tokenizer>,
    /// Answers that have not ended.
    open: u32,
    /// Called once when the reader goes away early.
    cancels: Vec<Box<dyn FnOnce() + Send + Sync>>,
    timer: RequestTimer,
    span: Span,
    _ticket: Ticket,
}

impl ReplyStream {
    /// A stream of so many answers, each to be opened.
    pub fn new(
        answers: u32,
        shared: Arc<Shared>,
        ticket: Ticket,
        timer: RequestTimer,
        tokenizer: Arc<Tokenizer>,
        span: Span,
    ) -> Self {
        let mailbox = Arc::new(Mailbox::new(answers));
        Self { mailbox, shared, tokenizer, open: answers, cancels: Vec::new(), timer, span, _ticket: ticket }
    }

    /// The engine's end of an answer.
    pub fn open(&self, index: u32, parts: Parts, opening: &Opening) -> Sink {
        let mut first = GenerateResponse {
            usage: Some(Usage { prompt_tokens: opening.prompt_tokens, ..Usage::default() }),
            ..GenerateResponse::default()
        };
        if index == 0 {
            first.prompt_text = opening.prompt_text.clone().unwrap_or_default();
            let token =
                |id| TokenLogprobs { id, bytes: self.tokenizer.spelling(id), ..TokenLogprobs::default() };
            first.prompt_logprobs = opening.scored.map(token).into_iter().collect();
        }
        let mut outlet = Outlet {
            index,
            mailbox: Arc::clone(&self.mailbox),
            tokenizer: Arc::clone(&self.tokenizer),
            shared: Arc::clone(&self.shared),
            parts,
            opening: Some(first),
            span: self.span.clone(),
            requests: self.timer.metrics(),
        };
        Box::new(move |event| outlet.take(event))
    }

    /// What to do when the reader goes away before the end.
    pub fn on_cancel(&mut self, cancel: impl FnOnce() + Send + Sync + 'static) {
        self.cancels.push(Box::new(cancel));
    }

    /// Ends the stream unread: the engine did not take the request, and the caller says why.
    pub fn discard(mut self) {
        self.open = 0;
        self.cancel();
    }

    fn cancel(&mut self) {
        for cancel in self.cancels.drain(..) {
            cancel();
        }
    }

    fn poll_piece(&mut self, waker: &Waker) -> Poll<Option<Result<GenerateResponse, Status>>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        let Poll::Ready(next) = self.mailbox.poll(waker) else { return Poll::Pending };
        Poll::Ready(Some(match next {
            Next::Piece(piece, ended) => {
                if !piece.ids.is_empty() {
                    self.timer.tokens();
                }
                Ok(match ended {
                    Some(ended) => self.last(*piece, ended),
                    None => *piece,
                })
            }
            Next::Failed(status) => {
                self.open = 0;
                self.timer.failed(status.code());
                self.span.fail(status.message());
                // the other answers are of no use without this one
                self.cancel();
                Err(status)
            }
        }))
    }

    fn last(&mut self, mut piece: GenerateResponse, ended: Ended) -> GenerateResponse {
        self.open -= 1;
        self.timer.finished(&ended.reason);
        if self.span.is_recording() {
            self.span.set("gen_ai.usage.input_tokens", i64::from(ended.usage.prompt_tokens));
            self.span.set("gen_ai.usage.output_tokens", i64::from(ended.usage.completion_tokens));
            self.span.set("belay.usage.cached_tokens", i64::from(ended.usage.cached_tokens));
            self.span.set("gen_ai.response.finish_reasons", ended.reason.as_str());
        }
        if self.open == 0 {
            self.timer.over();
        }
        piece.set_finish_reason(match ended.reason {
            FinishReason::Length => inference::FinishReason::Length,
            _ if ended.has_calls => inference::FinishReason::ToolCalls,
            _ => inference::FinishReason::Stop,
        });
        piece.stopped_by = match ended.reason {
            // not the client's
            FinishReason::StopString(text) if text == CALL_END => None,
            FinishReason::StopString(text) => Some(StoppedBy::StopString(text)),
            FinishReason::StopId(id) => Some(StoppedBy::StopId(id)),
            _ => None,
        };
        piece.usage = Some(ended.usage);
        piece
    }
}

impl Stream for ReplyStream {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_piece(context.waker())
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.mailbox.leave();
        if self.open > 0 {
            self.timer.failed(tonic::Code::Cancelled);
            self.span.fail("the reader went away");
            self.cancel();
        }
    }
}
