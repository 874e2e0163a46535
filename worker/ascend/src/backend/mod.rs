//! The model's operations on an NPU, put together from operators that every supported chip and CANN has.
//!
//! Numbers: activations, attention, routing and caches are f32 in between; products with weights in the working precision
//! are bf16 with what the chip accumulates in, their inputs and results rounded to bf16, or INT8 ([`Products`]). Published
//! FP8 and MXFP4 weights are exact in bf16. Everything of one backend is queued on one stream, in the order of the calls, so memory that an
//! operation gives back may be used by the next one at once.

mod activation;
mod attention;
mod buffer;
mod compress;
mod fused;
mod hyper;
mod job;
mod norm;
mod product;
mod quantise;
mod rows;
mod select;
mod uploads;
mod weight;

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use belay_backend::{
    Attention, Backend, BackendError, Compress, HyperShape, PagedRows, Precision, Result, Rotary, Rows,
    Select, StoredMatrix,
};

pub use buffer::{AscendArena, AscendBuffer, AscendIndices};
use fused::Paths;
pub use fused::{Choice, ComputePath, FusedOperators};
use job::{Job, Queue};
pub use weight::AscendMatrix;

use crate::{
    Broken, Chip, Context, Current, DataType, Device, DeviceBuffer, Error, Event, Kind, Layout, Pages, Plans,
    Region, Stream, View,
};

/// Bytes of temporaries at first, unless options say otherwise.
const FIRST_TEMPORARIES: usize = 64 << 20;

/// What products with weights are computed in, but for those that have to be precise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// bf16: as fast as the chip is without quantisation. Published FP8 and MXFP4 weights lose nothing.
    #[default]
    Bf16,
    /// W8A8. Weights become INT8 with a scale for each output channel, activations INT8 with a scale for each token as
    /// they come. A weight takes half the memory of bf16. What chooses (router, indexer, compressor), the head and the
    /// embeddings stay as they are.
    Int8,
    /// W4A8. As [`Self::Int8`], but routed experts have INT4 weights with a scale for each 256 inputs of an output channel:
    /// a quarter of the memory of bf16. On A2 and A3.
    Int4Experts,
    /// f32: to compare with other engines. Weights take twice the memory, products many times as long.
    F32,
}

impl Products {
    /// Whether a device can do them.
    fn check(self, device: &Device) -> crate::Result<()> {
        if self == Self::Int4Experts && !device.chip().has_int4 {
            return Err(Error::Unsupported {
                soc: device.soc().to_owned(),
                what: "products with INT4 experts",
                cause: "its cores have no INT4; take INT8 or bf16",
            });
        }
        if matches!(self, Self::Bf16 | Self::F32) {
            return Ok(());
        }
        let operators = &device.runtime().symbols().operators;
        let found = [
            ("aclnnDynamicQuant", operators.DynamicQuant.is_some()),
            ("aclnnGroupedMatmulV5", operators.GroupedMatmulV5.is_some()),
        ];
        match found.iter().find(|(_, is_there)| !is_there) {
            Some((symbol, _)) => Err(Error::Absent { symbol }),
            None => Ok(()),
        }
    }
}

/// How a backend computes.
#[derive(Clone, Copy, Debug)]
pub struct AscendOptions {
    /// Products with weights.
    pub products: Products,
    /// Fused operators.
    pub fused: FusedOperators,
    /// Bytes of device memory for temporaries at first; they grow with what operations need.
    pub temporaries: usize,
    /// No wait for the device is longer.
    pub limit: Duration,
}

impl Default for AscendOptions {
    /// bf16, fused operators that do right, a minute.
    fn default() -> Self {
        Self {
            products: Products::default(),
            fused: FusedOperators::default(),
            temporaries: FIRST_TEMPORARIES,
            limit: Duration::from_secs(60),
        }
    }
}

/// One NPU that computes the model.
pub struct AscendBackend {
    context: Context,
    queue: Mutex<Queue>,
    options: AscendOptions,
    paths: Paths,
    choices: Vec<Choice>,
    lost: OnceLock<String>,
}

impl AscendBackend {
    /// A backend with a context and a stream of its own on `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for products that the chip does not know, [`Error::Absent`] for some that this CANN does
    /// not; [`Error::OutOfDeviceMemory`], [`Error::Call`].
    pub fn new(device: &Device, options: AscendOptions) -> crate::Result<Self> {
        options.products.check(device)?;
        let context = Context::new(device)?;
        let current = context.bind()?;
        let stream = Stream::new(&current)?;
        let mut queue = Queue::new(&current, stream, options.temporaries)?;
        let (paths, choices) = fused::choose(&current, &mut queue, options.limit, options.fused);
        drop(current);
        Ok(Self { context, queue: Mutex::new(queue), options, paths, choices, lost: OnceLock::new() })
    }

    /// What the chip can do.
    pub fn chip(&self) -> &'static Chip {
        self.context.device().chip()
    }

    /// Which operations are done by a fused operator and which are not, and why; decided at start.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// How often operators were planned so far.
    pub fn plans(&self) -> Plans {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).plans()
    }

    /// Does the work of an operation on this thread; its temporaries are given back afterwards.
    fn run<R>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Job<'_>) -> crate::Result<R>,
    ) -> Result<R> {
        if let Some(why) = self.lost.get() {
            return Err(BackendError::Device { operation, cause: why.clone() });
        }
        let attempt = || {
            let current = self.context.bind()?;
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let mark = queue.mark();
            let done = work(&mut Job::new(&current, &mut queue, self.options.limit));
            queue.set_back(mark);
            if let Err(error) = &done {
                self.judge(&current, &queue, error);
            }
            done
        };
        attempt().map_err(|error| match error {
            Error::OutOfDeviceMemory { bytes, .. } => BackendError::OutOfMemory { bytes },
            error => BackendError::Device { operation, cause: error.to_string() },
        })
    }

    /// Decides what is still to be expected of the device after an error. A stream stops at what failed: it has to be
    /// aborted before anything else is queued. A device that did not answer in time is given up.
    fn judge(&self, current: &Current, queue: &Queue, error: &Error) {
        let is_lost = error.broken() == Broken::Device || error.kind() == Some(Kind::Timeout);
        let is_stopped = matches!(error.broken(), Broken::Stream | Broken::Communicator);
        let is_lost = is_lost || (is_stopped && queue.abort(current).is_err());
        if is_lost && self.lost.set(error.to_string()).is_ok() {
            tracing::error!(device = self.context.device().index(), %error, "the device is lost");
        }
    }

    /// What its objects belong to.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// No wait for the device is longer.
    pub(crate) fn limit(&self) -> Duration {
        self.options.limit
    }

    /// Moves the event to behind all that was queued so far.
    pub(crate) fn record(&self, current: &Current, event: &Event) -> crate::Result<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        event.record(current, queue.stream())
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

    /// Zeroed device memory.
    fn zeros(&self, bytes: usize) -> Result<Region> {
        self.run("allocation", |job| {
            let buffer = DeviceBuffer::new(job.current(), bytes, Pages::default())?;
            let region = buffer.region().clone();
            if !region.is_empty() {
                job.clear(&region)?;
            }
            Ok(region)
        })
    }
}

impl Backend for AscendBackend {
    type Buffer = AscendBuffer;
    type Indices = AscendIndices;
    type Arena = AscendArena;
    type Matrix = AscendMatrix;

    fn describe(&self) -> String {
        let device = self.context.device();
        let version = device.runtime().library().report().version.clone();
        let version = version.unwrap_or_else(|| "of an unknown version".to_owned());
        format!("ascend, device {}, {}, cann {version}", device.index(), device.soc())
    }

    fn fused(&self) -> Vec<(&'static str, bool)> {
        let is_used = |choice: &Choice| (choice.operator, choice.path == ComputePath::Fused);
        self.choices.iter().map(is_used).collect()
    }

    fn lost(&self) -> Option<String> {
        self.lost.get().cloned()
    }

    fn alloc(&self, len: usize) -> Result<AscendBuffer> {
        Ok(AscendBuffer::new(self.zeros(len * size_of::<f32>())?, len))
    }

    fn alloc_indices(&self, len: usize) -> Result<AscendIndices> {
        Ok(AscendIndices(vec![0; len]))
    }

    fn arena(&self, pages: usize, page_bytes: usize) -> Result<AscendArena> {
        let bytes = pages.checked_mul(page_bytes).ok_or(BackendError::OutOfMemory { bytes: usize::MAX })?;
        Ok(AscendArena::new(self.zeros(bytes)?, page_bytes))
    }

    fn len(&self, buffer: &AscendBuffer) -> usize {
        buffer.len()
    }

    fn fill(&self, buffer: &mut AscendBuffer, value: f32) -> Result<()> {
        self.run("fill", |job| job.fill(&buffer.view(&[buffer.len()])?, value))
    }

    fn write(&self, buffer: &mut AscendBuffer, at: usize, values: &[f32]) -> Result<()> {
        self.run("write", |job| {
            let bytes = at * size_of::<f32>()..(at + values.len()) * size_of::<f32>();
            job.write(&buffer.region().part(bytes)?, job::bytes_of(values))
        })
    }

    fn read(&self, buffer: &AscendBuffer, at: usize, values: &mut [f32]) -> Result<()> {
        self.run("read", |job| {
            let bytes = at * size_of::<f32>()..(at + values.len()) * size_of::<f32>();
            job.read(&buffer.region().part(bytes)?, job::bytes_of_mut(values))
        })
    }

    fn read_indices(&self, indices: &AscendIndices, at: usize, values: &mut [i32]) -> Result<()> {
        values.copy_from_slice(&indices.0[at..at + values.len()]);
        Ok(())
    }

    fn copy(&self, from: &AscendBuffer, range: Range<usize>, to: &mut AscendBuffer, at: usize) -> Result<()> {
        self.run("copy", |job| {
            let from = from.view(&[range.len()])?.moved(range.start)?;
            job.copy(&from, &to.view(&[range.len()])?.moved(at)?)
        })
    }

    fn matrix(&self, stored: StoredMatrix, precision: Precision) -> Result<AscendMatrix> {
        stored.check_codes()?;
        let products = self.options.products;
        self.run("weight", |job| weight::place(job, &stored, precision, products))
    }

    fn embed(&self, table: &AscendMatrix, ids: &[u32], copies: usize, out: &mut AscendBuffer) -> Result<()> {
        self.run("embedding", |job| product::embed(job, table, ids, copies, out))
    }

    fn linear_grouped(
        &self,
        w: &AscendMatrix,
        groups: usize,
        x: &AscendBuffer,
        rows: usize,
        y: &mut AscendBuffer,
    ) -> Result<()> {
        self.run("linear", |job| product::linear(job, w, groups, x, rows, y))
    }

    fn gather(&self, x: &AscendBuffer, width: usize, rows: &[u32], out: &mut AscendBuffer) -> Result<()> {
        self.run("gather", |job| product::gather(job, x, width, rows, out))
    }

    fn rms_norm(
        &self,
        x: &AscendBuffer,
        rows: Rows,
        weight: &AscendBuffer,
        eps: f32,
        out: &mut AscendBuffer,
        out_first: usize,
    ) -> Result<()> {
        self.run("rms norm", |job| norm::rms_norm(job, x, rows, weight, eps, out, out_first))
    }

    fn head_norm(&self, x: &mut AscendBuffer, count: usize, width: usize, eps: f32) -> Result<()> {
        self.run("head norm", |job| norm::head_norm(job, x, count, width, eps))
    }

    fn rope(
        &self,
        x: &mut AscendBuffer,
        rows: Rows,
        rotary: Rotary,
        table: &AscendBuffer,
        table_first: usize,
    ) -> Result<()> {
        self.run("rotary positions", |job| norm::rope(job, x, rows, rotary, table, table_first))
    }

    fn attention(&self, op: &Attention<'_, Self>, out: &mut AscendBuffer) -> Result<()> {
        self.run("attention", |job| attention::attend(job, op, out))
    }

    fn store(
        &self,
        x: &AscendBuffer,
        rows: Rows,
        arena: &mut AscendArena,
        to: PagedRows<'_>,
        first: usize,
    ) -> Result<()> {
        self.run("store", |job| {
            let x = x.view(&[rows.count, rows.width])?.moved(rows.first * rows.width)?;
            rows::store(job, &x, arena, to, first)
        })
    }

    fn fetch(
        &self,
        arena: &AscendArena,
        from: PagedRows<'_>,
        first: usize,
        x: &mut AscendBuffer,
        rows: Rows,
    ) -> Result<()> {
        self.run("fetch", |job| {
            let x = x.view(&[rows.count, rows.width])?.moved(rows.first * rows.width)?;
            rows::gather(job, arena, from, first..first + rows.count, &x)
        })
    }

    fn compress(
        &self,
        op: &Compress<'_, Self>,
        arena: &mut AscendArena,
        out: &mut AscendBuffer,
    ) -> Result<()> {
        self.run("compression", |job| compress::compress(job, op, arena, out))
    }

    fn select(&self, op: &Select<'_, Self>, chosen: &mut AscendIndices) -> Result<()> {
        self.run("selection", |job| select::select(job, op, &mut chosen.0))
    }

    fn sqrt_softplus(&self, x: &mut AscendBuffer, len: usize) -> Result<()> {
        self.run("softplus", |job| activation::sqrt_softplus(job, self.paths.sqrt_softplus, &x.view(&[len])?))
    }

    fn swiglu(&self, gate: &mut AscendBuffer, up: &AscendBuffer, len: usize, limit: f32) -> Result<()> {
        let path = self.paths.swiglu;
        self.run("swiglu", |job| activation::swiglu(job, path, &gate.view(&[len])?, &up.view(&[len])?, limit))
    }

    fn scale_rows(&self, x: &mut AscendBuffer, width: usize, factors: &[f32]) -> Result<()> {
        self.run("scaling", |job| {
            let x = x.view(&[factors.len(), width])?;
            let factors = job.f32s(&[factors.len(), 1], factors)?;
            job.multiply(&x, &factors, &x)
        })
    }

    fn add(&self, x: &mut AscendBuffer, y: &AscendBuffer, len: usize) -> Result<()> {
        self.run("sum", |job| {
            let x = x.view(&[len])?;
            job.add(&x, &y.view(&[len])?, &x)
        })
    }

    fn hyper_mix(
        &self,
        streams: &AscendBuffer,
        rows: usize,
        shape: HyperShape,
        base: &AscendBuffer,
        scale: &AscendBuffer,
        mix: &mut AscendBuffer,
    ) -> Result<()> {
        self.run("hyper-connection", |job| hyper::mix(job, streams, rows, shape, base, scale, mix))
    }

    fn hyper_head(
        &self,
        streams: &AscendBuffer,
        rows: usize,
        shape: HyperShape,
        base: &AscendBuffer,
        scale: &AscendBuffer,
        mix: &mut AscendBuffer,
    ) -> Result<()> {
        self.run("hyper-connection", |job| hyper::head_mix(job, streams, rows, shape, base, scale, mix))
    }

    fn hyper_pre(
        &self,
        streams: &AscendBuffer,
        rows: usize,
        shape: HyperShape,
        mix: &AscendBuffer,
        mix_width: usize,
        out: &mut AscendBuffer,
    ) -> Result<()> {
        self.run("hyper-connection", |job| hyper::pre(job, streams, rows, shape, mix, mix_width, out))
    }

    fn hyper_post(
        &self,
        streams: &mut AscendBuffer,
        rows: usize,
        shape: HyperShape,
        mix: &AscendBuffer,
        y: &AscendBuffer,
    ) -> Result<()> {
        self.run("hyper-connection", |job| hyper::post(job, streams, rows, shape, mix, y))
    }

    fn round_e4m3(&self, _: &mut AscendBuffer, _: Rows, _: Range<usize>, _: usize) -> Result<()> {
        Err(no_rounding("rounding to e4m3"))
    }

    fn round_hadamard_e2m1(&self, _: &mut AscendBuffer, _: Rows, _: usize) -> Result<()> {
        Err(no_rounding("rounding to e2m1"))
    }
}

/// The reference's roundings are a mode of the CPU backend: most of these chips know none of the formats.
fn no_rounding(operation: &'static str) -> BackendError {
    let cause = "the roundings of the published code are not done on Ascend: use exact numerics".to_owned();
    BackendError::Device { operation, cause }
}
