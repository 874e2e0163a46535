use super::bump::Bump;
use super::device::{DeviceBuffer, Pages, Region};
use crate::{Current, Error, Result};

/// Bytes to which every part of an arena is aligned. CANN asks for 32; a transfer is fastest from 512.
pub const ALIGNMENT: usize = 512;

/// One big allocation of device memory that is given out in parts.
///
/// Parts are given back all at once, or down to a mark. That costs nothing and calls nothing, so a step that takes its
/// buffers from here and sets back to a mark at its end allocates nothing.
#[derive(Debug)]
pub struct Arena {
    buffer: DeviceBuffer,
    bump: Bump,
}

/// How much of an arena was in use at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(usize);

impl Arena {
    /// Allocates all of it.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`], [`Error::Call`].
    pub fn new(current: &Current, bytes: usize, pages: Pages) -> Result<Self> {
        let buffer = DeviceBuffer::new(current, bytes, pages)?;
        let bump = Bump::new(buffer.region().address(), bytes);
        Ok(Self { buffer, bump })
    }

    /// `bytes` bytes, aligned to [`ALIGNMENT`]; what they hold is undefined.
    ///
    /// # Errors
    /// [`Error::TooSmall`] if they do not fit.
    pub fn take(&mut self, bytes: usize) -> Result<Region> {
        let available = self.bump.available();
        let offset = self.bump.take(bytes, ALIGNMENT);
        let offset = offset.ok_or(Error::TooSmall { what: "an arena", needed: bytes, available })?;
        self.buffer.region().part(offset..offset + bytes)
    }

    /// What is in use now.
    pub fn mark(&self) -> Mark {
        Mark(self.bump.used())
    }

    /// Gives back what was taken since the mark. Work that is queued on those bytes still uses them: what is put there
    /// next has to be queued on the same stream, or after a wait.
    pub fn set_back(&mut self, mark: Mark) {
        self.bump.set_back(mark.0);
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.bump.used()
    }

    /// The most bytes that were in use at once.
    pub fn highest(&self) -> usize {
        self.bump.highest()
    }
}
