//! A second attempt, on another worker, of a request whose first token is late.
//!
//! It runs beside the first one until either has a token: the other is dropped, which cancels it. Both are asked for the
//! same with the same seed, so that it does not matter which.
use std::{collections::VecDeque, fmt, future::Future, pin::Pin};

use belay_proto::inference::GenerateResponse;
use belay_telemetry::Span;

use crate::{
    discovery::Worker,
    routing::{Lease, Route},
};

use super::{Call, Dispatcher, attempt::Attempt};

/// An attempt that has its first token, and all that came up to it.
pub(super) type Ahead = (Attempt, VecDeque<GenerateResponse>);

/// See the module.
pub(super) struct Hedge(Pin<Box<dyn Future<Output = Option<Ahead>> + Send>>);

impl Hedge {
    /// Asks a worker other than `first`; `None` if there is none that takes requests now, or no budget.
    pub(super) fn start(
        dispatcher: &Dispatcher,
        route: &Route,
        call: &Call,
        first: &Worker,
        span: &Span,
    ) -> Option<Self> {
        let lease = dispatcher.another(route, &first.id)?;
        tracing::debug!(request = call.request_id(), worker = lease.worker().name, "asked as well");
        let (route, call, span) = (route.clone(), call.clone(), span.clone());
        Some(Self(Box::pin(async move { run(&route, &call, lease, &span).await })))
    }

    /// Ends with the first token, or with `None` if it failed: then the first attempt goes on alone.
    pub(super) async fn ahead(&mut self) -> Option<Ahead> {
        self.0.as_mut().await
    }
}

async fn run(route: &Route, call: &Call, lease: Lease, span: &Span) -> Option<Ahead> {
    let mut attempt = Attempt::new(route, lease);
    let asked = attempt.ask(call, span).await;
    let mut pieces = VecDeque::new();
    let failed = match asked {
        Ok(()) => loop {
            match attempt.piece().await {
                Ok(piece) => {
                    let has_begun = !piece.ids.is_empty() || piece.finish_reason != 0;
                    pieces.push_back(piece);
                    if has_begun {
                        return Some((attempt, pieces));
                    }
                }
                Err(status) => break status,
            }
        },
        Err(status) => status,
    };
    attempt.give_up(&failed);
    None
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hedge")
    }
}
