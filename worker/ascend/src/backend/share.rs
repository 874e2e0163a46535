//! What others on the same device, such as rounds, use of a backend beside its operations.

use std::sync::PoisonError;
use std::time::Duration;

use belay_backend::Result;

use super::{AscendBackend, AscendBuffer};
use crate::{Broken, Context, DataType, Error, Event, EventUse, Layout, Region, View};

/// A point in the work of a backend.
pub(crate) struct Fence(Event);

impl Fence {
    /// Waits until the work before it is done.
    pub(crate) fn wait(&self, limit: Duration) -> crate::Result<()> {
        self.0.synchronize(&self.0.context().bind()?, limit)
    }
}

impl AscendBackend {
    /// What its objects belong to.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// No wait for the device is longer.
    pub(crate) fn limit(&self) -> Duration {
        self.options.limit
    }

    /// A point behind all that was queued so far, to be waited for.
    pub(crate) fn fence(&self) -> crate::Result<Fence> {
        let current = self.context.bind()?;
        let event = Event::new(&current, EventUse::Order)?;
        event.record(&current, self.queue.lock().unwrap_or_else(PoisonError::into_inner).stream())?;
        Ok(Fence(event))
    }

    /// Takes note of an error of the device that did not come of an operation here.
    pub(crate) fn note(&self, error: &Error) {
        if error.broken() == Broken::Device && self.lost.set(error.to_string()).is_ok() {
            tracing::error!(device = self.context.device().index(), %error, "the device is lost");
        }
    }

    /// Queues making bf16 of the first `count` numbers.
    pub(crate) fn pack(&self, from: &AscendBuffer, count: usize, to: &Region) -> Result<()> {
        self.run("rounding", |job| {
            let to = View::new(to.clone(), Layout::contiguous(DataType::Bf16, &[count])?)?;
            job.cast(&from.view(&[count])?, &to)
        })
    }

    /// Queues the reverse.
    pub(crate) fn unpack(&self, from: &Region, to: &AscendBuffer, count: usize) -> Result<()> {
        self.run("widening", |job| {
            let from = View::new(from.clone(), Layout::contiguous(DataType::Bf16, &[count])?)?;
            job.cast(&from, &to.view(&[count])?)
        })
    }
}
