//! From the engine's thread to a gRPC stream.
//!
//! A sink must never wait, and a slow reader must neither hold up the engine nor lose tokens. So tokens that the
//! reader has not fetched yet are merged into one pending piece. It is bounded by the request itself: it can't
//! outgrow the completion, whose length the context limits. A reader that went away cancels the request.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use belay_engine::chat::{ReplyEvent, ReplyParser};
use belay_engine::{Event, FailureKind, FinishReason, Sink};
use belay_proto::inference::{self, GenerateResponse, Usage};
use futures::Stream;
use tonic::Status;

use crate::grpc::errors;
use crate::metrics::RequestTimer;
use crate::state::{Shared, Ticket};

/// What waits for the reader.
#[derive(Default)]
struct Pending {
    ids: Vec<u32>,
    text: String,
    reasoning: String,
    end: Option<Result<(FinishReason, Usage), Failure>>,
    reader_gone: bool,
    waker: Option<Waker>,
}

impl Pending {
    fn say(&mut self, events: Vec<ReplyEvent>) {
        for event in events {
            match event {
                ReplyEvent::Reasoning(text) => self.reasoning.push_str(&text),
                ReplyEvent::Content(text) => self.text.push_str(&text),
                ReplyEvent::ToolCallBegin { .. }
                | ReplyEvent::ToolCallArguments { .. }
                | ReplyEvent::ToolCallEnd { .. } => {}
            }
        }
    }
}

struct Failure {
    message: String,
    kind: FailureKind,
}

#[derive(Default)]
struct Mailbox {
    pending: Mutex<Pending>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what waits and wakes the reader; false if it is gone.
    fn put(&self, change: impl FnOnce(&mut Pending)) -> bool {
        let mut pending = self.lock();
        if pending.reader_gone {
            return false;
        }
        change(&mut pending);
        let waker = pending.waker.take();
        drop(pending);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// The engine's end. Ends the stream if it is dropped without a last event.
struct Outlet {
    mailbox: Arc<Mailbox>,
    /// Parts reasoning from content; `None` for Generate.
    reply: Option<ReplyParser>,
}

impl Outlet {
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Tokens { ids, text, .. } => {
                let events = match &mut self.reply {
                    Some(reply) => reply.push(&text),
                    None => vec![ReplyEvent::Content(text)],
                };
                self.mailbox.put(|pending| {
                    pending.ids.extend_from_slice(&ids);
                    pending.say(events);
                })
            }
            Event::Prompt { .. } => true,
            Event::Finished { reason, usage } => {
                let usage = Usage {
                    prompt_tokens: usage.prompt_tokens,
                    completion_tokens: usage.completion_tokens,
                    cached_tokens: usage.cached_tokens,
                    ..Usage::default()
                };
                let was_cut = reason == FinishReason::Length;
                let events = self.reply.as_mut().map_or_else(Vec::new, |reply| reply.finish(was_cut));
                self.mailbox.put(|pending| {
                    pending.say(events);
                    pending.end = Some(Ok((reason, usage)));
                })
            }
            Event::Failed { message, kind } => {
                let failure = Failure { message, kind };
                self.mailbox.put(|pending| pending.end = Some(Err(failure)))
            }
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.mailbox.put(|pending| {
            pending.end.get_or_insert_with(|| {
                Err(Failure { message: "the engine has stopped".into(), kind: FailureKind::Lost })
            });
        });
    }
}

/// The reader's end: a response stream of one request.
pub struct ReplyStream {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
    prompt_tokens: u32,
    is_first: bool,
    is_over: bool,
    /// Called once when the reader goes away early.
    cancel: Option<Box<dyn FnOnce() + Send + Sync>>,
    timer: RequestTimer,
    _ticket: Ticket,
}

/// A sink for the engine and the stream that it feeds.
pub fn reply_stream(
    shared: Arc<Shared>,
    ticket: Ticket,
    timer: RequestTimer,
    prompt_tokens: u32,
    reply: Option<ReplyParser>,
) -> (Sink, ReplyStream) {
    let mailbox = Arc::new(Mailbox::default());
    let mut outlet = Outlet { mailbox: Arc::clone(&mailbox), reply };
    let stream = ReplyStream {
        mailbox,
        shared,
        prompt_tokens,
        is_first: true,
        is_over: false,
        cancel: None,
        timer,
        _ticket: ticket,
    };
    (Box::new(move |event| outlet.take(event)), stream)
}

impl ReplyStream {
    /// What to do when the reader goes away before the end.
    pub fn on_cancel(&mut self, cancel: impl FnOnce() + Send + Sync + 'static) {
        self.cancel = Some(Box::new(cancel));
    }

    /// Ends the stream unread: the engine did not take the request, and the caller says why.
    pub fn discard(mut self) {
        self.is_over = true;
    }

    fn poll_piece(&mut self, waker: &Waker) -> Poll<Option<Result<GenerateResponse, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let mut pending = self.mailbox.lock();
        let has_tokens = !pending.ids.is_empty() || !pending.text.is_empty() || !pending.reasoning.is_empty();
        // tokens that came before a failure are delivered before it
        let end = match &pending.end {
            Some(Err(_)) if has_tokens => None,
            _ => pending.end.take(),
        };
        if !has_tokens && end.is_none() {
            pending.waker = Some(waker.clone());
            return Poll::Pending;
        }
        let mut response = GenerateResponse {
            ids: std::mem::take(&mut pending.ids),
            text: std::mem::take(&mut pending.text),
            reasoning: std::mem::take(&mut pending.reasoning),
            ..GenerateResponse::default()
        };
        drop(pending);
        if has_tokens {
            self.timer.tokens();
        }
        if std::mem::take(&mut self.is_first) {
            response.usage = Some(Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() });
        }
        match end {
            None => {}
            Some(Ok((reason, usage))) => {
                self.is_over = true;
                self.timer.finished(&reason);
                response.set_finish_reason(match reason {
                    FinishReason::Length => inference::FinishReason::Length,
                    _ => inference::FinishReason::Stop,
                });
                response.usage = Some(usage);
            }
            Some(Err(failure)) => {
                self.is_over = true;
                let is_draining = self.shared.get().draining;
                let status = errors::failed(failure.message, failure.kind, is_draining);
                self.timer.failed(status.code());
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(Some(Ok(response)))
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
        self.mailbox.lock().reader_gone = true;
        if self.is_over {
            return;
        }
        self.timer.failed(tonic::Code::Cancelled);
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use belay_proto::admin::Phase;
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::metrics::RequestMetrics;

    fn pair() -> (Sink, ReplyStream, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        shared.enter(Phase::Ready, "");
        let ticket = shared.admit().unwrap();
        let timer = Arc::new(RequestMetrics::default()).start();
        let (sink, stream) = reply_stream(Arc::clone(&shared), ticket, timer, 7, None);
        (sink, stream, shared)
    }

    fn tokens(ids: &[u32], text: &str) -> Event {
        Event::Tokens { ids: ids.to_vec(), text: text.into(), logprobs: Vec::new() }
    }

    #[test]
    fn what_a_slow_reader_missed_comes_in_one_piece_with_the_end() {
        let (mut sink, mut stream, shared) = pair();
        assert!(stream.next().now_or_never().is_none(), "nothing yet");
        assert!(sink(tokens(&[1], "a")) && sink(tokens(&[2, 3], "b")));
        let first = stream.next().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!((first.ids, first.text.as_str()), (vec![1, 2, 3], "ab"));
        assert_eq!(first.usage.unwrap().prompt_tokens, 7);
        assert!(sink(tokens(&[4], "c")));
        let usage = belay_engine::Usage { prompt_tokens: 7, completion_tokens: 4, cached_tokens: 0 };
        assert!(sink(Event::Finished { reason: FinishReason::EndOfSequence, usage }));
        let last = stream.next().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(
            (last.ids.as_slice(), last.finish_reason()),
            ([4].as_slice(), inference::FinishReason::Stop)
        );
        assert_eq!(last.usage.unwrap().completion_tokens, 4);
        assert!(stream.next().now_or_never().unwrap().is_none());
        assert_eq!(shared.in_flight(), 1);
        drop(stream);
        assert_eq!(shared.in_flight(), 0);
    }

    #[test]
    fn tokens_before_a_failure_are_delivered_before_it() {
        let (mut sink, mut stream, shared) = pair();
        sink(tokens(&[1], "a"));
        sink(Event::Failed { message: "worker 1 is not reachable".into(), kind: FailureKind::Lost });
        assert_eq!(stream.next().now_or_never().unwrap().unwrap().unwrap().ids, [1]);
        let status = stream.next().now_or_never().unwrap().unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(status.metadata().get("belay-retry").unwrap(), "step-lost");
        drop((stream, shared));
    }

    #[test]
    fn a_sink_that_is_dropped_without_an_end_fails_the_stream_retryably() {
        let (sink, mut stream, _shared) = pair();
        drop(sink);
        let status = stream.next().now_or_never().unwrap().unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }

    #[test]
    fn a_reader_that_went_away_cancels() {
        let (mut sink, mut stream, _shared) = pair();
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        stream.on_cancel(move || flag.store(true, Ordering::SeqCst));
        drop(stream);
        assert!(cancelled.load(Ordering::SeqCst));
        assert!(!sink(tokens(&[1], "a")), "the engine is told as well");
    }
}
