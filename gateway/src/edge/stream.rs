//! Streamed answers: server-sent events.
//!
//! A stream that fails ends with an error event and without what marks a whole answer: never a half answer that looks
//! whole. Nothing is read from workers before the client has taken what is there, but for what the sockets hold.
use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event, KeepAlive},
};
use belay_proto::inference::GenerateResponse;
use futures::Stream;
use http::{HeaderValue, header};

use crate::{life::Choices, observe::Record};

use super::{ApiError, Begun};

/// Proxies close connections that are silent for a minute; a held stream sends something meanwhile.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its name, if the API names events.
    pub event: Option<&'static str>,
    /// JSON text, as a rule.
    pub data: String,
}

/// How an API writes its stream. Pure.
pub trait Framer: Send + 'static {
    /// The events that a piece makes.
    fn piece(&mut self, piece: &GenerateResponse) -> Vec<Frame>;
    /// Whether everything has been told.
    fn is_whole(&self) -> bool;
    /// The last event of a stream that failed.
    fn failure(&self, error: ApiError) -> Frame;
    /// Sent while nothing else is.
    fn idle(&self) -> Frame;
}

/// The response of a request under way.
pub fn respond<F: Framer, A>(framer: F, begun: Begun<A>, record: Record) -> Response {
    let idle = KeepAlive::new().interval(KEEP_ALIVE).event(event(framer.idle()));
    let Begun { choices, first, names, .. } = begun;
    let mut events = Events { framer, choices, names, record, ready: VecDeque::new() };
    if let Some(piece) = first {
        events.piece(&piece);
    }
    let mut response = Sse::new(events.into_stream()).keep_alive(idle).into_response();
    // reverse proxies must not collect the stream
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn event(frame: Frame) -> Event {
    match frame.event {
        Some(name) => Event::default().event(name).data(frame.data),
        None if frame.data.is_empty() => Event::default().comment(""),
        None => Event::default().data(frame.data),
    }
}

struct Events<F> {
    framer: F,
    choices: Choices,
    names: super::Names,
    record: Record,
    ready: VecDeque<Frame>,
}

impl<F: Framer> Events<F> {
    fn piece(&mut self, piece: &GenerateResponse) {
        self.record.piece(piece);
        self.ready.extend(self.framer.piece(piece));
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                if self.ready.is_empty() && self.framer.is_whole() {
                    self.record.outcome(200);
                }
                return Some(frame);
            }
            match self.choices.next().await? {
                Ok(piece) => self.piece(&piece),
                Err(failure) => {
                    let error = ApiError::from(failure).renamed(&self.names);
                    self.record.outcome(error.status.as_u16());
                    self.ready.push_back(self.framer.failure(error));
                }
            }
        }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        futures::stream::unfold(self, |mut events| async move {
            let frame = events.next().await?;
            Some((Ok(event(frame)), events))
        })
    }
}
