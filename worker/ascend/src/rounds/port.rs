//! Numbers on their way between host and device.

use crate::memory::{HostBuffer, Pages, Pending};
use crate::{Current, DeviceBuffer, Error, Region, Result, Stream};

/// Device memory and as much pinned memory, which grow.
#[derive(Debug, Default)]
pub(super) struct Port {
    device: Option<DeviceBuffer>,
    host: Option<HostBuffer>,
    pending: Option<Pending>,
}

impl Port {
    /// Room for `count` numbers on the device.
    pub(super) fn room(&mut self, current: &Current, count: usize) -> Result<Region> {
        let bytes = count * size_of::<i32>();
        if self.device.as_ref().is_none_or(|device| device.region().len() < bytes) {
            let bytes = bytes.max(64).next_power_of_two();
            self.device = Some(DeviceBuffer::new(current, bytes, Pages::default())?);
        }
        let device = self.device.as_ref().ok_or(Error::StreamAborted)?;
        device.region().part(0..bytes)
    }

    /// Queues writing `numbers` to the device.
    pub(super) fn put(&mut self, current: &Current, stream: &Stream, numbers: &[i32]) -> Result<Region> {
        let region = self.room(current, numbers.len())?;
        if !numbers.is_empty() {
            let mut host = self.pinned(current, region.len())?;
            host[..region.len()].copy_from_slice(bytemuck::cast_slice(numbers));
            self.pending = Some(stream.upload(current, host, &region)?);
        }
        Ok(region)
    }

    /// Queues reading a region of it; [`Self::numbers`] has them after a wait.
    pub(super) fn fetch(&mut self, current: &Current, stream: &Stream, region: &Region) -> Result<()> {
        if !region.is_empty() {
            let host = self.pinned(current, region.len())?;
            self.pending = Some(stream.download(current, region, host)?);
        }
        Ok(())
    }

    /// The `count` numbers that [`Self::fetch`] read.
    pub(super) fn numbers(&mut self, count: usize) -> Result<Vec<i32>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let pending = self.pending.take().ok_or(Error::StreamAborted)?;
        let host = pending.into_buffer().map_err(|_| Error::StreamAborted)?;
        let mut numbers = vec![0i32; count];
        bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(&host[..count * size_of::<i32>()]);
        self.host = Some(host);
        Ok(numbers)
    }

    /// Pinned memory that no copy uses.
    fn pinned(&mut self, current: &Current, bytes: usize) -> Result<HostBuffer> {
        // that of an upload is back after the wait which every round has in between
        let back = self.pending.take().and_then(|pending| pending.into_buffer().ok());
        match back.or(self.host.take()) {
            Some(host) if host.len() >= bytes => Ok(host),
            _ => HostBuffer::new(current, bytes.max(64).next_power_of_two()),
        }
    }
}
