//! A request's way out: its sink, and the promise of exactly one last event.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::request::{Event, FailureKind, Sink};
use crate::stats::Place;

/// Sends events. However a request ends, even by unwinding, its sink hears exactly one `Finished` or `Failed`,
/// unless it asked to hear no more.
pub struct Outlet {
    sink: Option<Sink>,
    /// Given back after the last event.
    place: Place,
}

impl Outlet {
    pub fn new(sink: Sink, place: Place) -> Self {
        Self { sink: Some(sink), place }
    }

    /// The request leaves the queue.
    pub fn run(&mut self) {
        self.place.run();
    }

    /// The request goes back to the queue.
    pub fn wait(&mut self) {
        self.place.wait();
    }

    /// Any event but the last. Returns false if nobody listens any more.
    pub fn tell(&mut self, event: Event) -> bool {
        let listens = self.send(event);
        if !listens {
            self.sink = None;
        }
        listens
    }

    /// The last event.
    pub fn end(&mut self, event: Event) {
        self.send(event);
        self.sink = None;
    }

    fn send(&mut self, event: Event) -> bool {
        let Some(sink) = &mut self.sink else { return false };
        // One caller's bug must not take the other requests down.
        catch_unwind(AssertUnwindSafe(|| sink(event))).unwrap_or_else(|_| {
            tracing::error!("a request's sink panicked; the request is cancelled");
            false
        })
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.end(Event::Failed { message: "the engine has stopped".into(), kind: FailureKind::Lost });
    }
}
