//! Copies, all of them queued on a stream.
//!
//! CANN's synchronous copy has no limit for its wait, so the waiting forms are a queued copy and a wait with a limit.
//! A queued copy takes the host buffer away until it is known to be done, so that the host cannot touch it meanwhile.

use std::time::Duration;

use super::device::Region;
use super::host::HostBuffer;
use crate::ffi::copy_kind;
use crate::stream::Ticket;
use crate::{Current, Error, Result, Stream};

/// A queued copy and the host buffer that it uses. Dropping it does not stop the copy: the stream holds on to the
/// memory until it was waited for.
#[derive(Debug)]
#[must_use = "the host buffer comes back from here"]
pub struct Pending {
    buffer: HostBuffer,
    stream: Stream,
    ticket: Ticket,
}

impl Pending {
    /// Waits until the copy is done; at once if a wait for its stream has shown that already.
    ///
    /// # Errors
    /// As [`Stream::synchronize`]; [`Error::StreamAborted`].
    pub fn wait(&self, current: &Current, limit: Duration) -> Result<()> {
        if !self.stream.is_done(self.ticket)? {
            self.stream.synchronize(current, limit)?;
            // an abort on another thread may have ended the wait
            self.stream.is_done(self.ticket)?;
        }
        Ok(())
    }

    /// Whether the stream was aborted meanwhile: the buffer never comes back then.
    pub fn is_lost(&self) -> bool {
        self.stream.is_done(self.ticket).is_err()
    }

    /// The host buffer.
    ///
    /// # Errors
    /// The copy itself, if it is not known to be done. After an abort the buffer never comes back.
    pub fn into_buffer(self) -> Result<HostBuffer, Self> {
        match self.stream.is_done(self.ticket) {
            Ok(true) => Ok(self.buffer),
            _ => Err(self),
        }
    }
}

impl Stream {
    /// Queues a copy of the first bytes of `from` to all of `to`.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::WrongContext`], [`Error::Call`].
    pub fn upload(&self, current: &Current, from: HostBuffer, to: &Region) -> Result<Pending> {
        enough("a host buffer", to.len(), from.len())?;
        let ticket = self.copy_host(current, &from, to, copy_kind::HOST_TO_DEVICE)?;
        Ok(Pending { buffer: from, stream: self.clone(), ticket })
    }

    /// Queues a copy of all of `from` to the first bytes of `to`.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::WrongContext`], [`Error::Call`].
    pub fn download(&self, current: &Current, from: &Region, to: HostBuffer) -> Result<Pending> {
        enough("a host buffer", from.len(), to.len())?;
        let ticket = self.copy_host(current, &to, from, copy_kind::DEVICE_TO_HOST)?;
        Ok(Pending { buffer: to, stream: self.clone(), ticket })
    }

    /// Queues a copy inside a device. The two regions have the same size and do not overlap.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::WrongContext`], [`Error::Call`].
    pub fn copy(&self, current: &Current, from: &Region, to: &Region) -> Result<()> {
        enough("the target of a copy", from.len(), to.len())?;
        current.require_memory(from.context(), "aclrtMemcpyAsync")?;
        current.require_memory(to.context(), "aclrtMemcpyAsync")?;
        let call = current.runtime().symbols().aclrtMemcpyAsync;
        // SAFETY: both regions are allocated with these sizes, and the stream holds on to them until it was waited for.
        self.submit(current, "aclrtMemcpyAsync", &[from.kept(), to.kept()], |stream| unsafe {
            call(to.pointer(), to.len(), from.pointer(), from.len(), copy_kind::DEVICE_TO_DEVICE, stream)
        })?;
        Ok(())
    }

    /// Queues setting all bytes of a region.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn fill(&self, current: &Current, region: &Region, value: u8) -> Result<()> {
        current.require(region.context(), "aclrtMemsetAsync")?;
        let call = current.runtime().symbols().aclrtMemsetAsync;
        // SAFETY: the region is allocated with this size, and the stream holds on to it until it was waited for.
        self.submit(current, "aclrtMemsetAsync", &[region.kept()], |stream| unsafe {
            call(region.pointer(), region.len(), i32::from(value), region.len(), stream)
        })?;
        Ok(())
    }

    fn copy_host(&self, current: &Current, host: &HostBuffer, device: &Region, kind: i32) -> Result<Ticket> {
        current.require(host.context(), "aclrtMemcpyAsync")?;
        current.require_memory(device.context(), "aclrtMemcpyAsync")?;
        let call = current.runtime().symbols().aclrtMemcpyAsync;
        let bytes = device.len();
        let (to, room, from) = if kind == copy_kind::HOST_TO_DEVICE {
            (device.pointer(), bytes, host.pointer())
        } else {
            (host.pointer(), host.len(), device.pointer())
        };
        // SAFETY: both sides have at least `bytes` bytes; the stream holds on to them until it was waited for, and the
        // host's side is in a `Pending` until then.
        self.submit(current, "aclrtMemcpyAsync", &[host.kept(), device.kept()], |stream| unsafe {
            call(to, room, from, bytes, kind, stream)
        })
    }
}

fn enough(what: &'static str, needed: usize, available: usize) -> Result<()> {
    if needed > available { Err(Error::TooSmall { what, needed, available }) } else { Ok(()) }
}

/// Copies between ordinary memory of the host and a device, through a pinned buffer, piece by piece.
#[derive(Debug)]
pub struct Staging {
    /// Away while a copy that did not end in time may still use it.
    buffer: Option<HostBuffer>,
    bytes: usize,
}

impl Staging {
    /// With a pinned buffer of `bytes` bytes, at least 1.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn new(current: &Current, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1);
        Ok(Self { buffer: Some(HostBuffer::new(current, bytes)?), bytes })
    }

    /// Copies `from` to the first bytes of `to` and waits, up to `limit` for each piece.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::WrongContext`], [`Error::Call`]; part of `to` may then be written.
    pub fn write(
        &mut self,
        current: &Current,
        stream: &Stream,
        from: &[u8],
        to: &Region,
        limit: Duration,
    ) -> Result<()> {
        enough("the target of a copy", from.len(), to.len())?;
        for (piece, start) in from.chunks(self.bytes).zip((0..).step_by(self.bytes)) {
            let mut buffer = self.take(current)?;
            buffer[..piece.len()].copy_from_slice(piece);
            let target = to.part(start..start + piece.len())?;
            self.finish(current, stream.upload(current, buffer, &target)?, limit)?;
        }
        Ok(())
    }

    /// Copies the first bytes of `from` to `to` and waits, up to `limit` for each piece.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::WrongContext`], [`Error::Call`]; part of `to` may then be written.
    pub fn read(
        &mut self,
        current: &Current,
        stream: &Stream,
        from: &Region,
        to: &mut [u8],
        limit: Duration,
    ) -> Result<()> {
        enough("the source of a copy", to.len(), from.len())?;
        for (piece, start) in to.chunks_mut(self.bytes).zip((0..).step_by(self.bytes)) {
            let source = from.part(start..start + piece.len())?;
            let buffer = self.take(current)?;
            let buffer = self.finish(current, stream.download(current, &source, buffer)?, limit)?;
            piece.copy_from_slice(&buffer[..piece.len()]);
        }
        Ok(())
    }

    fn take(&mut self, current: &Current) -> Result<HostBuffer> {
        match self.buffer.take() {
            Some(buffer) => Ok(buffer),
            None => HostBuffer::new(current, self.bytes),
        }
    }

    fn finish(&mut self, current: &Current, pending: Pending, limit: Duration) -> Result<&HostBuffer> {
        pending.wait(current, limit)?;
        // after a wait the buffer is there, unless the stream was aborted meanwhile
        let buffer = pending.into_buffer().map_err(|_| Error::StreamAborted)?;
        Ok(self.buffer.insert(buffer))
    }
}
