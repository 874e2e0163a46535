//! All answers to a request, in one stream: each is a [`Generation`] of its own, so each survives the loss of workers.
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use belay_proto::inference::GenerateResponse;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use crate::{measure::Work, routing::Route};

use super::{Call, Caller, Dispatcher, Failure, Generation};

/// Most answers to one request, over all its prompts.
pub const MOST_ANSWERS: usize = 1024;

/// Most answers of one request that are under way at a time: a batch must not fill the workers' queues by itself.
const MOST_AT_ONCE: usize = 128;

/// Bytes that the requests of the answers under way may take together: each holds a copy of its prompt.
const BYTES_AT_ONCE: usize = 64 << 20;

/// See the module. Nothing runs unless it is polled; dropping it cancels every answer.
pub struct Choices {
    route: Route,
    revision: Arc<OnceLock<String>>,
    pieces: BoxStream<'static, Result<GenerateResponse, Failure>>,
    failed: bool,
}

impl Choices {
    /// All answers to these calls, numbered through: those to the first call come first. Refuses unknown models at
    /// once; everything else shows with the first piece.
    pub fn new(dispatcher: &Dispatcher, caller: &Caller, mut calls: Vec<Call>) -> Result<Self, Failure> {
        let begin = Instant::now();
        let asked = calls.first().map_or("", Call::model);
        let route = dispatcher.admit(caller, asked, Work::of_all(&calls))?;
        let mut total = 0;
        for call in &mut calls {
            let answers = call.answers();
            if answers == 0 {
                return Err(Failure::Invalid("n: must be at least 1".into()));
            }
            if answers > 1 && !call.produced().is_empty() {
                return Err(Failure::Invalid("resume_ids: must be empty with n > 1".into()));
            }
            total += answers as usize;
            call.set_model(route.target.model.clone());
            call.fix_seed();
        }
        if total > MOST_ANSWERS {
            return Err(Failure::Invalid(format!("n: {total} answers in all, at most {MOST_ANSWERS}")));
        }
        let revision = Arc::<OnceLock<String>>::default();
        let deadline = calls.first().and_then(Call::timeout).and_then(|timeout| begin.checked_add(timeout));
        let life = Life {
            dispatcher: dispatcher.clone(),
            route: route.clone(),
            deadline,
            revision: revision.clone(),
        };
        let pieces = match calls.pop() {
            Some(only) if total == 1 => life.pieces(0, only),
            last => {
                calls.extend(last);
                life.merged(calls)
            }
        };
        Ok(Self { route, revision, pieces, failed: false })
    }

    /// These pieces, wherever they come from.
    #[cfg(test)]
    pub fn of(route: Route, pieces: BoxStream<'static, Result<GenerateResponse, Failure>>) -> Self {
        Self { route, revision: Arc::default(), pieces, failed: false }
    }

    /// Served model name.
    pub fn model(&self) -> &str {
        &self.route.target.model
    }

    /// Where its attempts go.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Revision of the first worker that took the request; `None` before, or if it has none.
    pub fn revision(&self) -> Option<&str> {
        self.revision.get().map(String::as_str).filter(|revision| !revision.is_empty())
    }

    /// The next piece of any answer; its `index` says of which. `None` after the last piece of the last answer, or
    /// after a failure of one of them, which ends them all.
    pub async fn next(&mut self) -> Option<Result<GenerateResponse, Failure>> {
        if self.failed {
            return None;
        }
        let piece = self.pieces.next().await?;
        if piece.is_err() {
            self.failed = true;
            self.pieces = stream::empty().boxed();
        }
        Some(piece)
    }

    /// The pieces as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<GenerateResponse, Failure>> + Send {
        stream::unfold(self, |mut choices| async move {
            let piece = choices.next().await?;
            Some((piece, choices))
        })
    }
}

/// What the answers of one request share.
#[derive(Clone)]
struct Life {
    dispatcher: Dispatcher,
    route: Route,
    deadline: Option<Instant>,
    revision: Arc<OnceLock<String>>,
}

impl Life {
    fn pieces(self, index: u32, call: Call) -> BoxStream<'static, Result<GenerateResponse, Failure>> {
        let Self { dispatcher, route, deadline, revision } = self;
        // in a box, since a stream moves its state with every piece
        let generation = Box::new(Generation::new(dispatcher, route, call, deadline));
        stream::unfold((generation, revision), move |(mut generation, revision)| async move {
            let mut piece = generation.next().await?;
            if let Ok(piece) = &mut piece {
                piece.index = index;
                if let Some(of_worker) = generation.revision() {
                    revision.get_or_init(|| of_worker.to_owned());
                }
            }
            Some((piece, (generation, revision)))
        })
        .boxed()
    }

    fn merged(self, calls: Vec<Call>) -> BoxStream<'static, Result<GenerateResponse, Failure>> {
        let largest = calls.iter().map(Call::bytes).max().unwrap_or(0).max(1);
        let at_once = (BYTES_AT_ONCE / largest).clamp(1, MOST_AT_ONCE);
        // made one by one as they start: copies of all prompts at once could be very large
        let answers = calls.into_iter().flat_map(|call| (0..call.answers()).map(move |i| call.answer(i)));
        let numbered = (0u32..).zip(answers);
        let streams = stream::iter(numbered).map(move |(index, call)| self.clone().pieces(index, call));
        streams.flatten_unordered(at_once).boxed()
    }
}

impl std::fmt::Debug for Choices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Choices")
            .field("target", &self.route.target)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
