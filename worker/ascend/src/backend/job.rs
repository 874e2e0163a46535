//! What an operation of the backend works with: temporaries, copies, and operators with the thread's context.

use std::collections::HashMap;
use std::time::Duration;

use super::uploads::{self, Uploads};
use crate::memory::{Arena, Mark, Pages, Region, Staging};
use crate::op::{Binary, GroupedProduct, Launcher, Plans, Unary};
use crate::tensor::{DataType, Layout, View};
use crate::{Current, DeviceBuffer, Error, Result, Stream};

/// Bytes of the workspace that operators share at first.
const FIRST_WORKSPACE: usize = 1 << 20;
/// Bytes of the pinned buffer for copies that are waited for.
const STAGING: usize = 4 << 20;

/// The stream of a backend and all that is queued there uses.
pub(super) struct Queue {
    launcher: Launcher,
    temporaries: Arena,
    uploads: Uploads,
    staging: Staging,
    /// Vectors of ones, by length: weights of norms that have none.
    ones: HashMap<usize, View>,
    /// Counts the times that the temporaries were replaced by more: marks of before mean nothing then.
    growths: u32,
}

/// How much of the temporaries was in use.
#[derive(Clone, Copy)]
pub(super) struct Place {
    mark: Mark,
    growths: u32,
}

impl Queue {
    pub(super) fn new(current: &Current, stream: Stream, temporaries: usize) -> Result<Self> {
        let workspace = DeviceBuffer::new(current, FIRST_WORKSPACE, Pages::default())?;
        Ok(Self {
            launcher: Launcher::new(stream, workspace.region().clone()),
            temporaries: Arena::new(current, temporaries, Pages::default())?,
            uploads: Uploads::default(),
            staging: Staging::new(current, STAGING)?,
            ones: HashMap::new(),
            growths: 0,
        })
    }

    pub(super) fn plans(&self) -> Plans {
        self.launcher.plans()
    }

    pub(super) fn stream(&self) -> &Stream {
        self.launcher.stream()
    }

    /// Drops what is queued.
    pub(super) fn abort(&self, current: &Current) -> Result<()> {
        self.launcher.stream().abort(current)
    }

    pub(super) fn mark(&self) -> Place {
        Place { mark: self.temporaries.mark(), growths: self.growths }
    }

    /// Gives back the temporaries that were taken since.
    pub(super) fn set_back(&mut self, place: Place) {
        if place.growths == self.growths {
            self.temporaries.set_back(place.mark);
        }
    }
}

/// An operation under way on this thread.
pub(super) struct Job<'a> {
    current: &'a Current,
    queue: &'a mut Queue,
    limit: Duration,
}

impl<'a> Job<'a> {
    pub(super) fn new(current: &'a Current, queue: &'a mut Queue, limit: Duration) -> Self {
        Self { current, queue, limit }
    }

    pub(super) fn current(&self) -> &'a Current {
        self.current
    }

    /// How much of the temporaries is in use.
    pub(super) fn mark(&self) -> Place {
        self.queue.mark()
    }

    /// Gives back the temporaries that were taken since.
    pub(super) fn set_back(&mut self, place: Place) {
        self.queue.set_back(place);
    }

    /// A temporary with undefined elements.
    pub(super) fn take(&mut self, dtype: DataType, dims: &[usize]) -> Result<View> {
        let layout = Layout::contiguous(dtype, dims)?;
        let region = match self.queue.temporaries.take(layout.bytes()) {
            Err(Error::TooSmall { .. }) => {
                // what was taken from the old ones stays alive as long as it is used
                let bytes = (2 * self.queue.temporaries.highest() + layout.bytes()).next_power_of_two();
                self.queue.temporaries = Arena::new(self.current, bytes, Pages::default())?;
                self.queue.growths += 1;
                self.queue.temporaries.take(layout.bytes())?
            }
            taken => taken?,
        };
        View::new(region, layout)
    }

    /// A temporary of f32.
    pub(super) fn floats(&mut self, dims: &[usize]) -> Result<View> {
        self.take(DataType::F32, dims)
    }

    /// Numbers of the host as a temporary.
    pub(super) fn f32s(&mut self, dims: &[usize], values: &[f32]) -> Result<View> {
        let view = self.floats(dims)?;
        self.write(view.region(), bytes_of(values))?;
        Ok(view)
    }

    /// Row numbers of the host as a temporary.
    pub(super) fn indices(&mut self, values: &[i64]) -> Result<View> {
        let view = self.take(DataType::I64, &[values.len()])?;
        self.write(view.region(), bytes_of(values))?;
        Ok(view)
    }

    /// `len` ones.
    pub(super) fn ones(&mut self, len: usize) -> Result<View> {
        if let Some(ones) = self.queue.ones.get(&len) {
            return Ok(ones.clone());
        }
        let layout = Layout::contiguous(DataType::F32, &[len])?;
        let buffer = DeviceBuffer::new(self.current, layout.bytes(), Pages::default())?;
        let ones = View::new(buffer.region().clone(), layout)?;
        self.fill(&ones, 1.0)?;
        self.queue.ones.insert(len, ones.clone());
        Ok(ones)
    }

    /// Queues a copy of `bytes` to the whole of `to`.
    pub(super) fn write(&mut self, to: &Region, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.queue.launcher.stream().clone();
        if bytes.len() > uploads::LARGEST {
            return self.queue.staging.write(self.current, &stream, bytes, to, self.limit);
        }
        self.queue.uploads.write(self.current, &stream, bytes, to, self.limit)
    }

    /// Copies the first bytes of `from` to the host, and waits for them.
    pub(super) fn read(&mut self, from: &Region, bytes: &mut [u8]) -> Result<()> {
        let stream = self.queue.launcher.stream().clone();
        self.queue.staging.read(self.current, &stream, from, bytes, self.limit)
    }

    /// Queues setting all bytes to 0.
    pub(super) fn clear(&mut self, region: &Region) -> Result<()> {
        self.queue.launcher.stream().fill(self.current, region, 0)
    }

    pub(super) fn unary(&mut self, function: Unary, x: &View, out: &View) -> Result<()> {
        self.queue.launcher.unary(self.current, function, x, out)
    }

    pub(super) fn add(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.binary(self.current, Binary::Add, left, right, out)
    }

    pub(super) fn subtract(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.binary(self.current, Binary::Sub, left, right, out)
    }

    pub(super) fn multiply(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.binary(self.current, Binary::Mul, left, right, out)
    }

    pub(super) fn divide(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.binary(self.current, Binary::Div, left, right, out)
    }

    pub(super) fn add_number(&mut self, x: &View, addend: f32, out: &View) -> Result<()> {
        self.queue.launcher.add_number(self.current, x, addend, out)
    }

    pub(super) fn multiply_number(&mut self, x: &View, factor: f32, out: &View) -> Result<()> {
        self.queue.launcher.multiply_number(self.current, x, factor, out)
    }

    pub(super) fn clamp(
        &mut self,
        x: &View,
        least: Option<f32>,
        most: Option<f32>,
        out: &View,
    ) -> Result<()> {
        self.queue.launcher.clamp(self.current, x, least, most, out)
    }

    pub(super) fn cast(&mut self, x: &View, out: &View) -> Result<()> {
        self.queue.launcher.cast(self.current, x, out)
    }

    /// `x` in another type, in a temporary.
    pub(super) fn converted(&mut self, x: &View, dtype: DataType) -> Result<View> {
        if x.layout().dtype() == dtype {
            return Ok(x.clone());
        }
        let dims: Vec<usize> = x.layout().dims().iter().map(|dim| *dim as usize).collect();
        let out = self.take(dtype, &dims)?;
        self.cast(x, &out)?;
        Ok(out)
    }

    /// `x` one element after the other, in a temporary if it is not so yet.
    pub(super) fn packed(&mut self, x: &View) -> Result<View> {
        if x.layout().is_contiguous() {
            return Ok(x.clone());
        }
        let dims: Vec<usize> = x.layout().dims().iter().map(|dim| *dim as usize).collect();
        let out = self.take(x.layout().dtype(), &dims)?;
        self.copy(x, &out)?;
        Ok(out)
    }

    pub(super) fn softplus(&mut self, x: &View, threshold: f32, out: &View) -> Result<()> {
        self.queue.launcher.softplus(self.current, x, threshold, out)
    }

    pub(super) fn sum(&mut self, x: &View, axis: usize, out: &View) -> Result<()> {
        self.queue.launcher.sum(self.current, x, axis, out)
    }

    pub(super) fn mean(&mut self, x: &View, axis: usize, out: &View) -> Result<()> {
        self.queue.launcher.mean(self.current, x, axis, out)
    }

    pub(super) fn softmax(&mut self, x: &View, axis: usize, out: &View) -> Result<()> {
        self.queue.launcher.softmax(self.current, x, axis, out)
    }

    pub(super) fn top_k(&mut self, x: &View, values: &View, indices: &View) -> Result<()> {
        self.queue.launcher.top_k(self.current, x, values, indices)
    }

    /// `y = gamma · x / rms(x)` along the last axis.
    pub(super) fn rms_norm(&mut self, x: &View, gamma: &View, eps: f32, y: &View) -> Result<()> {
        let mut dims: Vec<usize> = x.layout().dims().iter().map(|dim| *dim as usize).collect();
        if let Some(last) = dims.last_mut() {
            *last = 1;
        }
        let rstd = self.floats(&dims)?;
        self.queue.launcher.rms_norm(self.current, x, gamma, f64::from(eps), y, &rstd)
    }

    pub(super) fn copy(&mut self, from: &View, to: &View) -> Result<()> {
        self.queue.launcher.copy(self.current, from, to)
    }

    pub(super) fn fill(&mut self, to: &View, value: f32) -> Result<()> {
        self.queue.launcher.fill(self.current, to, value)
    }

    pub(super) fn index_rows(&mut self, x: &View, index: &View, out: &View) -> Result<()> {
        self.queue.launcher.index_rows(self.current, x, index, out)
    }

    pub(super) fn matmul(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.matmul(self.current, left, right, out)
    }

    pub(super) fn batch_matmul(&mut self, left: &View, right: &View, out: &View) -> Result<()> {
        self.queue.launcher.batch_matmul(self.current, left, right, out)
    }

    pub(super) fn dynamic_quant(&mut self, x: &View, y: &View, scale: &View) -> Result<()> {
        self.queue.launcher.dynamic_quant(self.current, x, y, scale)
    }

    pub(super) fn grouped_matmul(&mut self, product: GroupedProduct<'_>) -> Result<()> {
        self.queue.launcher.grouped_matmul(self.current, product)
    }

    pub(super) fn rotate_pairs(&mut self, x: &View, cos: &View, sin: &View, out: &View) -> Result<()> {
        self.queue.launcher.rotate_pairs(self.current, x, cos, sin, out)
    }

    pub(super) fn clipped_swiglu(&mut self, x: &View, limit: f32, out: &View) -> Result<()> {
        self.queue.launcher.clipped_swiglu(self.current, x, f64::from(limit), out)
    }
}

/// Numbers as the device reads them; it has the byte order of its host.
pub(super) fn bytes_of<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// The same, to be written.
pub(super) fn bytes_of_mut<T: bytemuck::Pod>(values: &mut [T]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}
