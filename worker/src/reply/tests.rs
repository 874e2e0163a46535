use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use belay_engine::{Event, FailureKind, FinishReason, Sink, TokenLogprobs, Tokenizer, Usage};
use belay_proto::admin::Phase;
use belay_proto::inference::generate_response::StoppedBy;
use belay_proto::inference::{self, GenerateResponse};
use belay_telemetry::Span;
use futures::{FutureExt, StreamExt};
use tonic::{Code, Status};

use super::{Opening, Parts, ReplyStream};
use crate::metrics::RequestMetrics;
use crate::state::Shared;

fn streams(answers: u32, opening: &Opening) -> (Vec<Sink>, ReplyStream, Arc<Shared>) {
    let shared = Arc::new(Shared::default());
    shared.enter(Phase::Ready, "");
    let ticket = shared.admit().unwrap();
    let timer = Arc::new(RequestMetrics::default()).start();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/nano/bf16");
    let tokenizer = Arc::new(Tokenizer::load(&nano).unwrap());
    let stream = ReplyStream::new(answers, Arc::clone(&shared), ticket, timer, tokenizer, Span::default());
    let sinks = (0..answers).map(|index| stream.open(index, Parts::Plain, opening)).collect();
    (sinks, stream, shared)
}

fn plain() -> Opening {
    Opening { prompt_tokens: 7, prompt_text: None, scored: None }
}

fn pair() -> (Sink, ReplyStream, Arc<Shared>) {
    let (mut sinks, stream, shared) = streams(1, &plain());
    (sinks.remove(0), stream, shared)
}

fn next(stream: &mut ReplyStream) -> Option<Result<GenerateResponse, Status>> {
    stream.next().now_or_never().expect("something waits")
}

fn piece(stream: &mut ReplyStream) -> GenerateResponse {
    next(stream).unwrap().unwrap()
}

fn tokens(ids: &[u32], text: &str) -> Event {
    Event::Tokens { ids: ids.to_vec(), text: text.into(), logprobs: Vec::new() }
}

fn finished(reason: FinishReason, completion_tokens: u32) -> Event {
    Event::Finished { reason, usage: Usage { prompt_tokens: 7, completion_tokens, cached_tokens: 0 } }
}

fn scored(id: u32, top: usize) -> TokenLogprobs {
    TokenLogprobs { id, logprob: -0.5, top: (0..top as u32).map(|id| (id, -1.0)).collect() }
}

#[test]
fn what_a_slow_reader_missed_comes_in_one_piece_with_the_end() {
    let (mut sink, mut stream, shared) = pair();
    assert!(stream.next().now_or_never().is_none(), "nothing yet");
    assert!(sink(tokens(&[1], "a")) && sink(tokens(&[2, 3], "b")));
    let first = piece(&mut stream);
    assert_eq!((first.ids, first.text.as_str()), (vec![1, 2, 3], "ab"));
    assert_eq!(first.usage.unwrap().prompt_tokens, 7);
    assert!(sink(tokens(&[4], "c")));
    assert!(sink(finished(FinishReason::EndOfSequence, 4)));
    let last = piece(&mut stream);
    assert_eq!((last.ids.as_slice(), last.finish_reason()), ([4].as_slice(), inference::FinishReason::Stop));
    assert_eq!(last.usage.unwrap().completion_tokens, 4);
    assert!(next(&mut stream).is_none());
    assert_eq!(shared.in_flight(), 1);
    drop(stream);
    assert_eq!(shared.in_flight(), 0);
}

#[test]
fn tokens_before_a_failure_are_delivered_before_it() {
    let (mut sink, mut stream, shared) = pair();
    sink(tokens(&[1], "a"));
    sink(Event::Failed { message: "worker 1 is not reachable".into(), kind: FailureKind::Lost });
    assert_eq!(piece(&mut stream).ids, [1]);
    let status = next(&mut stream).unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("belay-retry").unwrap(), "step-lost");
    drop((stream, shared));
}

#[test]
fn a_sink_that_is_dropped_without_an_end_fails_the_stream_retryably() {
    let (sink, mut stream, _shared) = pair();
    drop(sink);
    assert_eq!(next(&mut stream).unwrap().unwrap_err().code(), Code::Unavailable);
}

#[test]
fn a_sink_that_is_dropped_behind_its_end_changes_nothing() {
    let (mut sinks, mut stream, _shared) = streams(2, &plain());
    let mut other = sinks.pop().unwrap();
    let mut first = sinks.pop().unwrap();
    first(finished(FinishReason::Length, 0));
    let last = piece(&mut stream);
    assert_eq!((last.index, last.finish_reason()), (0, inference::FinishReason::Length));
    drop(first);
    other(finished(FinishReason::StopId(9), 0));
    drop(other);
    let last = piece(&mut stream);
    assert_eq!((last.index, last.stopped_by), (1, Some(StoppedBy::StopId(9))));
    assert!(next(&mut stream).is_none());
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

#[test]
fn answers_take_turns_and_one_that_fails_ends_all() {
    let (mut sinks, mut stream, _shared) = streams(2, &plain());
    let cancelled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancelled);
    stream.on_cancel(move || flag.store(true, Ordering::SeqCst));
    sinks[0](tokens(&[1], "a"));
    sinks[1](tokens(&[2], "b"));
    assert_eq!(piece(&mut stream).index, 0);
    sinks[0](tokens(&[3], "c"));
    let other = piece(&mut stream);
    assert_eq!((other.index, other.usage.unwrap().prompt_tokens), (1, 7), "each has a first piece");
    assert_eq!(piece(&mut stream).index, 0);
    sinks[1](Event::Failed { message: "over".into(), kind: FailureKind::DeadlineExceeded });
    assert_eq!(next(&mut stream).unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert!(cancelled.load(Ordering::SeqCst) && !sinks[0](tokens(&[4], "d")));
    assert!(next(&mut stream).is_none());
}

#[test]
fn the_first_piece_of_the_first_answer_tells_of_the_prompt() {
    let opening = Opening { prompt_tokens: 3, prompt_text: Some("abc".into()), scored: Some(5) };
    let (mut sinks, mut stream, _shared) = streams(2, &opening);
    sinks[0](Event::Prompt { logprobs: vec![scored(6, 0), scored(7, 2)] });
    let first = piece(&mut stream);
    assert_eq!(first.prompt_text, "abc");
    let ids: Vec<_> = first.prompt_logprobs.iter().map(|token| (token.id, token.top.len())).collect();
    assert_eq!(ids, [(5, 0), (6, 0), (7, 2)]);
    assert!(!first.prompt_logprobs[2].bytes.is_empty());
    sinks[1](tokens(&[1], "a"));
    let other = piece(&mut stream);
    assert_eq!((other.index, other.prompt_text.as_str(), other.prompt_logprobs.len()), (1, "", 0));
}

#[test]
fn pieces_stay_small_and_a_reader_that_leaves_too_much_unread_loses_its_request() {
    let (mut sink, mut stream, _shared) = pair();
    let mut sent = 0u32;
    let event = |id| Event::Tokens { ids: vec![id], text: "x".into(), logprobs: vec![scored(id % 2000, 20)] };
    for _ in 0..10_000 {
        assert!(sink(event(sent)));
        sent += 1;
    }
    let mut next_id = 0;
    while next_id < sent {
        let piece = piece(&mut stream);
        assert!(prost::Message::encoded_len(&piece) < 2 << 20);
        assert_eq!((piece.ids.len(), piece.text.len()), (piece.logprobs.len(), piece.ids.len()));
        assert_eq!(piece.ids[0], next_id, "in order");
        next_id += piece.ids.len() as u32;
    }
    for _ in 0..200_000 {
        if !sink(event(0)) {
            let status = next(&mut stream).unwrap().unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("unread"), "{status}");
            return;
        }
    }
    panic!("without bounds");
}
