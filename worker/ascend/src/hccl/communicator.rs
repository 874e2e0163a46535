use std::ffi::{CStr, c_char};
use std::sync::Arc;

use super::RootInfo;
use crate::ffi::{HcclStatus, RawCommConfig, RawCommunicator, RawStream, hccl_type};
use crate::memory::Region;
use crate::stream::Kept;
use crate::tensor::DataType;
use crate::{Context, Current, Error, Result, Stream};

/// Settings of a communicator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommunicatorOptions {
    /// MB that HCCL reserves for each direction [default: HCCL_BUFFSIZE, or 200].
    pub buffer_mb: Option<u32>,
    /// Reductions in a fixed order.
    pub deterministic: bool,
    /// Its name, up to 127 bytes [default: made up].
    pub name: String,
}

/// A device's place among ranks that exchange data.
#[derive(Clone, Debug)]
pub struct Communicator {
    inner: Arc<Inner>,
    /// The same for streams, which hold on to it while a collective is queued.
    kept: Kept,
}

#[derive(Debug)]
struct Inner {
    context: Context,
    raw: RawCommunicator,
    ranks: u32,
    rank: u32,
    name: String,
}

// SAFETY: the pointer is only handed to the library, which keeps no ties to a thread; that collectives are queued in one
// order is the caller's part.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Communicator {
    /// Joins a communicator as `rank` of `ranks`; waits until all ranks have come, as long as HCCL_CONNECT_TIMEOUT says.
    ///
    /// # Errors
    /// [`Error::Absent`] for a CANN without HCCL; [`Error::Call`], with [`Kind::RemoteSuspect`](crate::Kind::RemoteSuspect) or
    /// [`Kind::Link`](crate::Kind::Link) if somebody did not come; [`Error::Shape`] for a name that is too long.
    pub fn join(
        current: &Current,
        root: &RootInfo,
        ranks: u32,
        rank: u32,
        options: &CommunicatorOptions,
    ) -> Result<Self> {
        current.hold()?;
        let runtime = current.runtime();
        let config = raw_config(options)?;
        let mut raw = std::ptr::null_mut();
        if let Some(join) = runtime.symbols().HcclCommInitRootInfoConfig {
            // SAFETY: root info, settings and the place for the communicator are alive during the call.
            let code = unsafe { join(ranks, &*root.0, rank, &config, &mut raw) };
            runtime.check_hccl("HcclCommInitRootInfoConfig", code)?;
        } else {
            let join = runtime.symbols().HcclCommInitRootInfo;
            let join = join.ok_or(Error::Absent { symbol: "HcclCommInitRootInfo" })?;
            // SAFETY: root info and the place for the communicator are alive during the call.
            let code = unsafe { join(ranks, &*root.0, rank, &mut raw) };
            runtime.check_hccl("HcclCommInitRootInfo", code)?;
        }
        runtime.library().check_object("HcclCommInitRootInfo", raw)?;
        // from here on an early return destroys it
        let mut inner = Inner { context: current.context().clone(), raw, ranks, rank, name: String::new() };
        inner.name = inner.ask_name()?;
        let inner = Arc::new(inner);
        Ok(Self { kept: Arc::clone(&inner) as Kept, inner })
    }

    /// Ranks in it.
    pub fn ranks(&self) -> u32 {
        self.inner.ranks
    }

    /// Which of them this is.
    pub fn rank(&self) -> u32 {
        self.inner.rank
    }

    /// Its name, as operators that communicate take it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What went wrong in it, without a wait.
    ///
    /// # Errors
    /// [`Error::Call`] with the failure; [`Error::Absent`], [`Error::WrongContext`].
    pub fn check(&self, current: &Current) -> Result<()> {
        current.require(&self.inner.context, "HcclGetCommAsyncError")?;
        let runtime = current.runtime();
        let ask = runtime.symbols().HcclGetCommAsyncError;
        let ask = ask.ok_or(Error::Absent { symbol: "HcclGetCommAsyncError" })?;
        let mut error = 0;
        // SAFETY: the communicator and the place for the code are alive during the call.
        let code = unsafe { ask(self.inner.raw, &mut error) };
        runtime.check_hccl("HcclGetCommAsyncError", code)?;
        Ok(runtime.check_hccl("HcclGetCommAsyncError", error)?)
    }

    /// Queues: everybody gets what all send, by rank. `receive` has as many times the bytes of `send` as there are ranks.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::Shape`] for a type that HCCL does not know, [`Error::Absent`],
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn all_gather(
        &self,
        current: &Current,
        stream: &Stream,
        dtype: DataType,
        send: &Region,
        receive: &Region,
    ) -> Result<()> {
        let call = "HcclAllGather";
        let gather = current.runtime().symbols().HcclAllGather.ok_or(Error::Absent { symbol: call })?;
        enough(self.inner.ranks as usize * send.len(), receive)?;
        let (number, count) = (hccl_type_of(dtype)?, (send.len() / dtype.bytes()) as u64);
        self.submit(current, stream, call, [send, receive], |communicator, stream| {
            // SAFETY: both regions are as large as the counts say, and the stream holds on to them and the communicator.
            unsafe { gather(send.pointer(), receive.pointer(), count, number, communicator, stream) }
        })
    }

    /// Queues: everybody sends the i-th of equal parts of `send` to rank i, and gets one from each, by rank.
    ///
    /// # Errors
    /// As [`Self::all_gather`].
    pub fn all_to_all(
        &self,
        current: &Current,
        stream: &Stream,
        dtype: DataType,
        send: &Region,
        receive: &Region,
    ) -> Result<()> {
        let call = "HcclAlltoAll";
        let exchange = current.runtime().symbols().HcclAlltoAll.ok_or(Error::Absent { symbol: call })?;
        enough(send.len(), receive)?;
        let number = hccl_type_of(dtype)?;
        let count = (send.len() / dtype.bytes() / self.inner.ranks as usize) as u64;
        self.submit(current, stream, call, [send, receive], |communicator, stream| {
            let (from, to) = (send.pointer().cast_const(), receive.pointer().cast_const());
            // SAFETY: both regions are as large as the counts say, and the stream holds on to them and the communicator.
            unsafe { exchange(from, count, number, to, count, number, communicator, stream) }
        })
    }

    /// Queues: everybody sends `counts[i]` elements to rank i, one part after the other in `send`, and gets parts in the same
    /// way. What a rank sends to another has to be what that one wants from it.
    ///
    /// # Errors
    /// As [`Self::all_gather`]; [`Error::Shape`] if there are not as many counts as ranks.
    pub fn all_to_all_v(
        &self,
        current: &Current,
        stream: &Stream,
        dtype: DataType,
        (send, send_counts): (&Region, &[u64]),
        (receive, receive_counts): (&Region, &[u64]),
    ) -> Result<()> {
        let call = "HcclAlltoAllV";
        let exchange = current.runtime().symbols().HcclAlltoAllV.ok_or(Error::Absent { symbol: call })?;
        let ranks = self.inner.ranks as usize;
        if send_counts.len() != ranks || receive_counts.len() != ranks {
            let cause =
                format!("{} and {} counts for {ranks} ranks", send_counts.len(), receive_counts.len());
            return Err(Error::Shape { operation: "all to all", cause });
        }
        let number = hccl_type_of(dtype)?;
        let (send_at, sent) = displacements(send_counts);
        let (receive_at, received) = displacements(receive_counts);
        enough(bytes_of(sent, dtype), send)?;
        enough(bytes_of(received, dtype), receive)?;
        self.submit(current, stream, call, [send, receive], |communicator, stream| {
            // SAFETY: counts and displacements, one for each rank, are alive during the call, which reads them; the regions are
            // as large as they say, and the stream holds on to them and the communicator.
            unsafe {
                exchange(
                    send.pointer(),
                    send_counts.as_ptr().cast(),
                    send_at.as_ptr().cast(),
                    number,
                    receive.pointer(),
                    receive_counts.as_ptr().cast(),
                    receive_at.as_ptr().cast(),
                    number,
                    communicator,
                    stream,
                )
            }
        })
    }

    fn submit(
        &self,
        current: &Current,
        stream: &Stream,
        call: &'static str,
        regions: [&Region; 2],
        queue: impl FnOnce(RawCommunicator, RawStream) -> HcclStatus,
    ) -> Result<()> {
        current.require(&self.inner.context, call)?;
        for region in regions {
            current.require_memory(region.context(), call)?;
        }
        let mut code = 0;
        let kept = [&self.kept, regions[0].kept(), regions[1].kept()];
        // the codes are those of HCCL: they are told from here
        stream.submit(current, call, &kept, |stream| {
            code = queue(self.inner.raw, stream);
            0
        })?;
        Ok(current.runtime().check_hccl(call, code)?)
    }
}

impl Inner {
    fn ask_name(&self) -> Result<String> {
        let runtime = self.context.runtime();
        let ask = runtime.symbols().HcclGetCommName.ok_or(Error::Absent { symbol: "HcclGetCommName" })?;
        let mut name = [0u8; 128];
        // SAFETY: as many bytes as are documented, alive during the call.
        let code = unsafe { ask(self.raw, name.as_mut_ptr().cast::<c_char>()) };
        runtime.check_hccl("HcclGetCommName", code)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let runtime = self.context.runtime();
        let Some(destroy) = runtime.symbols().HcclCommDestroy else {
            return runtime.left_behind("a communicator of a CANN that cannot destroy one");
        };
        self.context.enter(|| {
            // SAFETY: made by `join` and destroyed once; streams that have collectives of it hold on to it.
            let code = unsafe { destroy(self.raw) };
            if let Err(error) = runtime.check_hccl("HcclCommDestroy", code) {
                runtime.left_behind(&error.to_string());
            }
        });
    }
}

fn raw_config(options: &CommunicatorOptions) -> Result<RawCommConfig> {
    let mut name = [0; 128];
    let given = options.name.as_bytes();
    if given.len() >= name.len() || given.contains(&0) {
        let cause = format!("{:?} is no name of up to 127 bytes", options.name);
        return Err(Error::Shape { operation: "communicator", cause });
    }
    name[..given.len()].copy_from_slice(given);
    Ok(RawCommConfig {
        size: size_of::<RawCommConfig>(),
        magic: RawCommConfig::MAGIC,
        version: RawCommConfig::VERSION,
        reserved: 0,
        buffer_size: options.buffer_mb.unwrap_or(RawCommConfig::UNSET),
        deterministic: u32::from(options.deterministic),
        name,
    })
}

fn hccl_type_of(dtype: DataType) -> Result<i32> {
    Ok(match dtype {
        DataType::F32 => hccl_type::FP32,
        DataType::F16 => hccl_type::FP16,
        DataType::Bf16 => hccl_type::BFP16,
        DataType::I8 => hccl_type::INT8,
        DataType::U8 | DataType::Bool => hccl_type::UINT8,
        DataType::I32 => hccl_type::INT32,
        DataType::I64 => hccl_type::INT64,
        DataType::F8E4m3 | DataType::F8E8m0 | DataType::I4 | DataType::U64 => {
            let cause = format!("{dtype:?} is not exchanged; give its bytes as U8");
            return Err(Error::Shape { operation: "collective", cause });
        }
    })
}

/// Where each part begins, and the end of the last, in elements.
fn displacements(counts: &[u64]) -> (Vec<u64>, u64) {
    let mut end = 0u64;
    let starts = counts.iter().map(|count| {
        let start = end;
        end = end.saturating_add(*count);
        start
    });
    (starts.collect(), end)
}

fn bytes_of(elements: u64, dtype: DataType) -> usize {
    usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(dtype.bytes())
}

fn enough(needed: usize, region: &Region) -> Result<()> {
    let available = region.len();
    if needed > available {
        return Err(Error::TooSmall { what: "the memory of a collective", needed, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_documented_form() {
        assert_eq!(size_of::<RawCommConfig>(), 160);
        assert_eq!(std::mem::offset_of!(RawCommConfig, buffer_size), 24);
        assert_eq!(std::mem::offset_of!(RawCommConfig, name), 32);
        let options = CommunicatorOptions { name: "n".repeat(128), ..CommunicatorOptions::default() };
        assert!(matches!(raw_config(&options), Err(Error::Shape { .. })));
        let config = raw_config(&CommunicatorOptions::default()).unwrap();
        assert_eq!((config.buffer_size, config.name[0]), (u32::MAX, 0));
    }

    #[test]
    fn parts_lie_one_after_the_other() {
        assert_eq!(displacements(&[3, 0, 2]), (vec![0, 3, 3], 5));
        assert_eq!(displacements(&[u64::MAX, 2]).1, u64::MAX);
    }
}
