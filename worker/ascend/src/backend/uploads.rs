use std::collections::VecDeque;
use std::time::Duration;

use crate::memory::{HostBuffer, Pending};
use crate::{Current, Region, Result, Stream};

/// Bytes of a pinned buffer at least.
const LEAST: usize = 4096;
/// Bytes of a copy at most; larger ones, such as weights, are waited for. Pinned buffers are kept, so this and the next bound
/// what is pinned.
pub(super) const LARGEST: usize = 256 << 10;
/// Copies that may be under way before one is waited for.
const MOST_PENDING: usize = 256;

/// Small copies from the host that nobody waits for: each has a pinned buffer of its own until it is done.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// In the order of the stream.
    pending: VecDeque<Pending>,
    free: Vec<HostBuffer>,
}

impl Uploads {
    /// Queues a copy of `bytes` to the whole of `to`.
    pub(super) fn write(
        &mut self,
        current: &Current,
        stream: &Stream,
        bytes: &[u8],
        to: &Region,
        limit: Duration,
    ) -> Result<()> {
        self.recycle();
        if self.pending.len() >= MOST_PENDING {
            stream.synchronize(current, limit)?;
            self.recycle();
        }
        let place = self.free.iter().position(|buffer| buffer.len() >= bytes.len());
        let mut buffer = match place {
            Some(place) => self.free.swap_remove(place),
            None => HostBuffer::new(current, bytes.len().next_power_of_two().max(LEAST))?,
        };
        buffer[..bytes.len()].copy_from_slice(bytes);
        self.pending.push_back(stream.upload(current, buffer, to)?);
        Ok(())
    }

    /// Takes back the buffers of copies that a wait has shown to be done.
    fn recycle(&mut self) {
        while let Some(pending) = self.pending.pop_front() {
            match pending.into_buffer() {
                Ok(buffer) => self.free.push(buffer),
                // nobody knows whether the device still reads it: the stream keeps it as long as it has to
                Err(pending) if pending.is_lost() => {}
                Err(pending) => return self.pending.push_front(pending),
            }
        }
    }
}
