//! What waits for the reader of one request.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use belay_engine::FinishReason;
use belay_proto::inference::{GenerateResponse, ToolCallDelta, Usage};
use tonic::Status;

/// Size from which on a piece is not added to.
const PIECE_BYTES: usize = 1 << 20;
/// Most that may wait for a reader. Plain text of the longest answer is far below; a request for all log-probabilities
/// of a million tokens is not.
const PENDING_BYTES: usize = 64 << 20;

/// How an answer ended well.
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// Whether it ends with calls.
    pub has_calls: bool,
    /// What it took.
    pub usage: Usage,
}

/// What the reader gets next.
pub enum Next {
    /// A piece, and the end of the answer if this is the last one.
    Piece(Box<GenerateResponse>, Option<Ended>),
    /// The end of the whole stream.
    Failed(Status),
}

/// What waits of one of the answers.
#[derive(Default)]
struct Answer {
    /// With their sizes.
    pieces: VecDeque<(GenerateResponse, usize)>,
    ended: Option<Ended>,
    /// Also once the end was fetched.
    has_ended: bool,
}

#[derive(Default)]
struct Pending {
    answers: Vec<Answer>,
    bytes: usize,
    failed: Option<Status>,
    reader_gone: bool,
    waker: Option<Waker>,
    /// The answer that is looked at first, so that none is starved.
    turn: usize,
}

/// Between the outlets of a request's answers and its one reader.
pub struct Mailbox {
    pending: Mutex<Pending>,
}

impl Mailbox {
    /// For so many answers.
    pub fn new(answers: u32) -> Self {
        let answers = (0..answers).map(|_| Answer::default()).collect();
        Self { pending: Mutex::new(Pending { answers, ..Pending::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what waits and wakes the reader; false if the request is of no more use.
    fn put(&self, change: impl FnOnce(&mut Pending)) -> bool {
        let mut pending = self.lock();
        if pending.reader_gone || pending.failed.is_some() {
            return false;
        }
        change(&mut pending);
        let goes_on = pending.failed.is_none();
        let waker = pending.waker.take();
        drop(pending);
        if let Some(waker) = waker {
            waker.wake();
        }
        goes_on
    }

    /// Adds to an answer; false if the request is of no more use.
    pub fn add(&self, index: u32, piece: GenerateResponse) -> bool {
        self.put(|pending| {
            let bytes = size(&piece);
            pending.bytes += bytes;
            if pending.bytes > PENDING_BYTES {
                let message = format!(
                    "the reader has left {} bytes unread; the most is {PENDING_BYTES}",
                    pending.bytes
                );
                pending.failed = Some(Status::resource_exhausted(message));
                pending.answers.clear();
                return;
            }
            let Some(answer) = pending.answers.get_mut(index as usize) else { return };
            match answer.pieces.back_mut() {
                Some((last, size)) if *size + bytes <= PIECE_BYTES => {
                    merge(last, piece);
                    *size += bytes;
                }
                _ => answer.pieces.push_back((piece, bytes)),
            }
        })
    }

    /// Ends an answer.
    pub fn end(&self, index: u32, ended: Ended) -> bool {
        self.put(|pending| {
            if let Some(answer) = pending.answers.get_mut(index as usize) {
                answer.ended = Some(ended);
                answer.has_ended = true;
            }
        })
    }

    /// Ends the whole stream, behind what waits already.
    pub fn fail(&self, status: Status) -> bool {
        self.put(|pending| pending.failed = Some(status))
    }

    /// The outlet of an answer is gone; without an end before, that fails the stream.
    pub fn close(&self, index: u32, status: impl FnOnce() -> Status) {
        self.put(|pending| {
            if pending.answers.get(index as usize).is_some_and(|answer| !answer.has_ended) {
                pending.failed = Some(status());
            }
        });
    }

    /// The reader is gone.
    pub fn leave(&self) {
        let mut pending = self.lock();
        pending.reader_gone = true;
        pending.answers.clear();
    }

    /// What comes next, of any of the answers.
    pub fn poll(&self, waker: &Waker) -> Poll<Next> {
        let mut pending = self.lock();
        let count = pending.answers.len();
        for step in 0..count {
            let index = (pending.turn + step) % count;
            let answer = &mut pending.answers[index];
            let piece = answer.pieces.pop_front();
            let ended = if answer.pieces.is_empty() { answer.ended.take() } else { None };
            if piece.is_none() && ended.is_none() {
                continue;
            }
            pending.turn = index + 1;
            let (mut piece, size) = piece.unwrap_or_default();
            pending.bytes -= size;
            piece.index = index as u32;
            return Poll::Ready(Next::Piece(Box::new(piece), ended));
        }
        if let Some(status) = pending.failed.take() {
            pending.reader_gone = true;
            return Poll::Ready(Next::Failed(status));
        }
        pending.waker = Some(waker.clone());
        Poll::Pending
    }
}

/// About what a piece takes in memory and on the wire.
fn size(piece: &GenerateResponse) -> usize {
    let logprobs = piece.logprobs.iter().chain(&piece.prompt_logprobs);
    let logprobs: usize = logprobs
        .map(|token| {
            let top: usize = token.top.iter().map(|top| 48 + top.bytes.len()).sum();
            72 + token.bytes.len() + top
        })
        .sum();
    let calls: usize = piece.tool_calls.iter().map(|call| 80 + call.name.len() + call.arguments.len()).sum();
    piece.ids.len() * 4
        + piece.text.len()
        + piece.reasoning.len()
        + piece.prompt_text.len()
        + logprobs
        + calls
}

fn merge(last: &mut GenerateResponse, next: GenerateResponse) {
    last.ids.extend(next.ids);
    last.text.push_str(&next.text);
    last.reasoning.push_str(&next.reasoning);
    last.logprobs.extend(next.logprobs);
    last.prompt_logprobs.extend(next.prompt_logprobs);
    last.prompt_text.push_str(&next.prompt_text);
    last.usage = last.usage.or(next.usage);
    for call in next.tool_calls {
        join(&mut last.tool_calls, call);
    }
}

/// Adds a part of a call; arguments that go on are put together.
pub fn join(calls: &mut Vec<ToolCallDelta>, call: ToolCallDelta) {
    match calls.last_mut() {
        Some(last) if last.index == call.index && call.id.is_empty() && call.name.is_empty() => {
            last.arguments.push_str(&call.arguments);
        }
        _ => calls.push(call),
    }
}
