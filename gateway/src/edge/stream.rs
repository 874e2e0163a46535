//! Streamed answers: server-sent events.
//!
//! A stream that fails ends with an error event and without what marks a whole answer: never a half answer that looks
//! whole. Nothing is read from workers before the client has taken what is there, but for what the sockets hold and for
//! [`MOST_AT_ONCE`].
use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use belay_proto::inference::GenerateResponse;
use futures::Stream;
use http::{HeaderValue, header};
use tokio::time::{Instant, Sleep};

use crate::{
    life::{Choices, Failure},
    observe::Record,
};

use super::{ApiError, Begun, EventBuffer};

/// Proxies close connections that are silent for a minute; a held stream sends something meanwhile.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Bytes of events that go out together at most, if so many are there: each write is a call of the system.
const MOST_AT_ONCE: usize = 16 << 10;

/// How an API writes its stream. Pure.
pub trait Framer: Send + 'static {
    /// Writes the events that a piece makes.
    fn piece(&mut self, piece: &GenerateResponse, events: &mut EventBuffer);
    /// Whether everything has been told.
    fn is_whole(&self) -> bool;
    /// Writes the last event of a stream that failed.
    fn failure(&self, error: &ApiError, events: &mut EventBuffer);
    /// Writes what is sent while nothing else is.
    fn idle(&self, events: &mut EventBuffer);
}

/// The response of a request under way.
pub fn respond<F: Framer, A>(framer: F, begun: Begun<A>, record: Record) -> Response {
    let answer = Streamed::new(framer, begun, record, KEEP_ALIVE);
    let mut response = Response::new(Body::from_stream(answer.into_stream()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // reverse proxies must not collect the stream
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Streamed<F> {
    framer: F,
    choices: Choices,
    names: super::Names,
    record: Record,
    events: EventBuffer,
    /// Nothing comes after the events that are there.
    is_over: bool,
    /// Longest time without any event.
    longest_silence: Duration,
    silence: Pin<Box<Sleep>>,
}

impl<F: Framer> Streamed<F> {
    fn new<A>(framer: F, begun: Begun<A>, record: Record, longest_silence: Duration) -> Self {
        let Begun { choices, first, names, .. } = begun;
        let silence = Box::pin(tokio::time::sleep(longest_silence));
        let events = EventBuffer::default();
        let mut answer =
            Self { framer, choices, names, record, events, is_over: false, longest_silence, silence };
        if let Some(piece) = first {
            answer.piece(&piece);
        }
        answer
    }

    fn piece(&mut self, piece: &GenerateResponse) {
        self.record.piece(piece);
        self.framer.piece(piece, &mut self.events);
        self.is_over = self.framer.is_whole();
    }

    fn take(&mut self, next: Option<Result<GenerateResponse, Failure>>) {
        match next {
            Some(Ok(piece)) => self.piece(&piece),
            Some(Err(failure)) => {
                let error = ApiError::from(failure).renamed(&self.names);
                self.record.outcome(error.status.as_u16());
                self.framer.failure(&error, &mut self.events);
                self.is_over = true;
            }
            None => self.is_over = true,
        }
    }

    /// All events that are there, once there is one.
    async fn next(&mut self) -> Option<Bytes> {
        while self.events.is_empty() && !self.is_over {
            tokio::select! {
                biased;
                next = self.choices.next() => self.take(next),
                () = self.silence.as_mut() => self.framer.idle(&mut self.events),
            }
        }
        while !self.is_over && self.events.len() < MOST_AT_ONCE {
            let Poll::Ready(next) = futures::poll!(pin!(self.choices.next())) else { break };
            self.take(next);
        }
        if self.framer.is_whole() {
            self.record.outcome(200);
        }
        self.silence.as_mut().reset(Instant::now() + self.longest_silence);
        (!self.events.is_empty()).then(|| self.events.take())
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        futures::stream::unfold(self, |mut answer| async move {
            let bytes = answer.next().await?;
            Some((Ok(bytes), answer))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::{self, StreamExt};

    use crate::{
        measure::Work,
        observe::{Flights, Metrics},
        request_id::RequestId,
        routing::{ConnectOptions, Fleet, PolicyName},
    };

    /// An event for each piece; the second one is the last.
    #[derive(Default)]
    struct Two(u32);

    impl Framer for Two {
        fn piece(&mut self, piece: &GenerateResponse, events: &mut EventBuffer) {
            self.0 += 1;
            events.json(None, &piece.text);
        }

        fn is_whole(&self) -> bool {
            self.0 == 2
        }

        fn failure(&self, error: &ApiError, events: &mut EventBuffer) {
            events.json(Some("error"), &error.status.as_u16());
        }

        fn idle(&self, events: &mut EventBuffer) {
            events.comment();
        }
    }

    fn piece(text: &str) -> Result<GenerateResponse, Failure> {
        Ok(GenerateResponse { text: text.into(), ..GenerateResponse::default() })
    }

    /// An answer of which this much is there already.
    fn streamed(there: Vec<Result<GenerateResponse, Failure>>, longest_silence: Duration) -> Streamed<Two> {
        let fleet = Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default());
        let record =
            Record::begin(&Metrics::new(fleet.clone()), &Flights::default(), RequestId("r".into()), "/");
        let pieces = stream::iter(there).chain(stream::pending()).boxed();
        let choices = Choices::of(fleet.route("m", Work::default()), pieces);
        let begun = Begun { form: (), choices, first: None, names: Vec::new() };
        Streamed::new(Two::default(), begun, record, longest_silence)
    }

    #[tokio::test]
    async fn what_is_there_goes_out_together_and_the_last_event_ends_the_stream() {
        let mut answer = streamed(vec![piece("a"), piece("b")], KEEP_ALIVE);
        assert_eq!(answer.next().await.unwrap(), "data: \"a\"\n\ndata: \"b\"\n\n");
        assert_eq!(answer.next().await, None);
    }

    #[tokio::test]
    async fn what_is_there_goes_out_before_more_comes_and_silence_is_filled() {
        let mut answer = streamed(vec![piece("a")], Duration::from_millis(2));
        assert_eq!(answer.next().await.unwrap(), "data: \"a\"\n\n");
        for _ in 0..3 {
            assert_eq!(answer.next().await.unwrap(), ": \n\n");
        }
    }

    #[tokio::test]
    async fn a_failure_is_the_last_event() {
        let mut answer = streamed(vec![piece("a"), Err(Failure::Deadline), piece("b")], KEEP_ALIVE);
        assert_eq!(answer.next().await.unwrap(), "data: \"a\"\n\nevent: error\ndata: 504\n\n");
        assert_eq!(answer.next().await, None);
    }

    #[tokio::test]
    async fn no_more_is_read_than_goes_out_at_once() {
        let large = "x".repeat(MOST_AT_ONCE);
        let mut answer = streamed(vec![piece(&large), piece("b")], KEEP_ALIVE);
        assert_eq!(answer.next().await.unwrap().len(), MOST_AT_ONCE + "data: \"\"\n\n".len());
        assert_eq!(answer.next().await.unwrap(), "data: \"b\"\n\n");
    }
}
