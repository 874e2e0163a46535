use std::collections::HashMap;

use super::executor::Executor;
use crate::ffi::{RawExecutor, RawIntArray, RawScalar, RawTensor, Status};
use crate::library::Operator;
use crate::memory::{DeviceBuffer, Pages, Region};
use crate::stream::Kept;
use crate::tensor::{IntArray, Layout, Scalar, Tensor, View};
use crate::{Current, Result, Runtime, Stream};

/// Tensors of an operator, at most.
const MAX_TENSORS: usize = 6;
/// Numbers of an operator that are given as objects, at most.
const MAX_SCALARS: usize = 2;
/// Other attributes that a plan depends on, at most.
const MAX_ATTRIBUTES: usize = 4;
/// Plans that are kept. Decode has few shapes; prefill has many, and must not fill the memory with them.
const MAX_PLANS: usize = 4096;

/// Queues operators on one stream. Plans are kept and used again for the same layouts with other addresses.
#[derive(Debug)]
pub struct Launcher {
    stream: Stream,
    workspace: Region,
    plans: HashMap<Key, Plan>,
    counts: Plans,
}

/// How often operators were planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plans {
    /// Planned anew.
    pub made: u64,
    /// Queued with a plan that was there.
    pub reused: u64,
    /// Of those, planned for one use: the library cannot repeat them, or they have lists of tensors.
    pub single: u64,
}

/// What a plan depends on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    operator: &'static str,
    layouts: [Option<Layout>; MAX_TENSORS],
    scalars: [u32; MAX_SCALARS],
    attributes: [u64; MAX_ATTRIBUTES],
}

/// The executor comes first: it goes before what it was planned with.
#[derive(Debug)]
struct Plan {
    executor: Executor,
    objects: Objects,
}

/// What an operator is planned with.
#[derive(Debug)]
pub(super) struct Objects {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    scalars: Vec<Scalar>,
    axes: Option<IntArray>,
}

impl Objects {
    pub(super) fn input(&self, index: usize) -> *const RawTensor {
        self.inputs[index].raw()
    }

    pub(super) fn output(&self, index: usize) -> *mut RawTensor {
        self.outputs[index].raw()
    }

    pub(super) fn scalar(&self, index: usize) -> *const RawScalar {
        self.scalars[index].raw()
    }

    pub(super) fn axes(&self) -> *const RawIntArray {
        self.axes.as_ref().map_or(std::ptr::null(), IntArray::raw)
    }
}

/// What an operator is to work on. What its plan depends on is all in here.
#[derive(Clone, Copy, Default)]
pub(super) struct Work<'a> {
    pub(super) inputs: &'a [&'a View],
    pub(super) outputs: &'a [&'a View],
    /// Numbers that are given as objects.
    pub(super) scalars: &'a [f32],
    /// Axes that are given as an object.
    pub(super) axes: &'a [i64],
    /// Bits of the attributes.
    pub(super) attributes: &'a [u64],
}

impl Work<'_> {
    fn views(&self) -> impl Iterator<Item = &View> {
        self.inputs.iter().chain(self.outputs).copied()
    }

    fn key(&self, operator: &'static str) -> Key {
        let mut key = Key {
            operator,
            layouts: [None; MAX_TENSORS],
            scalars: [0; MAX_SCALARS],
            attributes: [0; MAX_ATTRIBUTES],
        };
        key.layouts.iter_mut().zip(self.views()).for_each(|(slot, view)| *slot = Some(*view.layout()));
        key.scalars.iter_mut().zip(self.scalars).for_each(|(slot, value)| *slot = value.to_bits());
        let axes = self.axes.iter().map(|axis| *axis as u64);
        let attributes = self.attributes.iter().copied().chain(axes);
        key.attributes.iter_mut().zip(attributes).for_each(|(slot, value)| *slot = value);
        key
    }
}

impl Launcher {
    /// Operators go to `stream`, one after the other, and share `workspace`. A larger one is allocated when an operator
    /// asks for it.
    pub fn new(stream: Stream, workspace: Region) -> Self {
        Self { stream, workspace, plans: HashMap::new(), counts: Plans::default() }
    }

    /// The stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// How often operators were planned so far.
    pub fn plans(&self) -> Plans {
        self.counts
    }

    /// Queues an operator. `plan` calls its first phase with the objects that were made of `work`, and where to put the
    /// size of the workspace and the executor.
    pub(super) fn launch<F: Copy>(
        &mut self,
        current: &Current,
        operator: Operator<F>,
        work: Work<'_>,
        plan: impl FnOnce(F, &Objects, *mut u64, *mut *mut RawExecutor) -> Status,
    ) -> Result<()> {
        let fits = work.inputs.len() + work.outputs.len() <= MAX_TENSORS
            && work.scalars.len() <= MAX_SCALARS
            && work.attributes.len() + work.axes.len() <= MAX_ATTRIBUTES;
        debug_assert!(fits, "{} has more arguments than a key has places", operator.name);
        for region in work.views().map(View::region).chain([&self.workspace]) {
            current.require(region.context(), operator.name)?;
        }
        let key = work.key(operator.name);

        // what is not put back is released: after an error nobody knows which addresses a plan has
        let mut planned = match self.plans.remove(&key) {
            Some(mut planned) => {
                planned.move_to(&work)?;
                self.counts.reused += 1;
                planned
            }
            None => self.plan(current.runtime(), operator, &work, plan)?,
        };
        self.reserve(current, planned.executor.workspace())?;
        let mut kept: [&Kept; MAX_TENSORS + 1] = [self.workspace.kept(); MAX_TENSORS + 1];
        kept.iter_mut().zip(work.views()).for_each(|(slot, view)| *slot = view.region().kept());
        let queue = (operator.name, operator.queue);
        planned.executor.launch(current, &self.stream, &self.workspace, &kept, queue)?;

        if planned.executor.is_repeatable() {
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            self.plans.insert(key, planned);
        }
        Ok(())
    }

    /// Plans an operator, queues it once and keeps no plan. `views` are all tensors that it uses; what `plan` is given
    /// besides has to stay alive until this returns.
    pub(super) fn launch_once<F: Copy>(
        &mut self,
        current: &Current,
        operator: Operator<F>,
        views: &[&View],
        plan: impl FnOnce(F, *mut u64, *mut *mut RawExecutor) -> Status,
    ) -> Result<()> {
        for region in views.iter().map(|view| view.region()).chain([&self.workspace]) {
            current.require(region.context(), operator.name)?;
        }
        let mut executor = Executor::plan(current.runtime(), operator.planning, |workspace, executor| {
            plan(operator.plan, workspace, executor)
        })?;
        self.counts.made += 1;
        self.counts.single += 1;
        self.reserve(current, executor.workspace())?;
        let kept: Vec<&Kept> =
            views.iter().map(|view| view.region()).chain([&self.workspace]).map(Region::kept).collect();
        executor.launch(current, &self.stream, &self.workspace, &kept, (operator.name, operator.queue))
    }

    fn plan<F>(
        &mut self,
        runtime: &Runtime,
        operator: Operator<F>,
        work: &Work<'_>,
        plan: impl FnOnce(F, &Objects, *mut u64, *mut *mut RawExecutor) -> Status,
    ) -> Result<Plan> {
        let tensors = |views: &[&View]| -> Result<Vec<Tensor>> {
            views.iter().map(|view| Tensor::new(runtime, view)).collect()
        };
        let axes = (!work.axes.is_empty()).then(|| IntArray::new(runtime, work.axes));
        let objects = Objects {
            inputs: tensors(work.inputs)?,
            outputs: tensors(work.outputs)?,
            scalars: work.scalars.iter().map(|value| Scalar::f32(runtime, *value)).collect::<Result<_>>()?,
            axes: axes.transpose()?,
        };
        let mut executor = Executor::plan(runtime, operator.planning, |workspace, executor| {
            plan(operator.plan, &objects, workspace, executor)
        })?;
        self.counts.made += 1;
        if let Err(error) = executor.make_repeatable() {
            self.counts.single += 1;
            tracing::debug!(operator = operator.name, %error, "planned for one use");
        }
        Ok(Plan { executor, objects })
    }

    /// Makes the workspace at least this large. Work that is queued keeps the old one alive.
    fn reserve(&mut self, current: &Current, bytes: usize) -> Result<()> {
        if bytes > self.workspace.len() {
            let larger = DeviceBuffer::new(current, bytes.next_power_of_two(), Pages::default())?;
            self.workspace = larger.region().clone();
        }
        Ok(())
    }
}

impl Plan {
    fn move_to(&mut self, work: &Work<'_>) -> Result<()> {
        for (index, (tensor, view)) in self.objects.inputs.iter_mut().zip(work.inputs).enumerate() {
            self.executor.move_input(index, tensor, view.region())?;
        }
        for (index, (tensor, view)) in self.objects.outputs.iter_mut().zip(work.outputs).enumerate() {
            self.executor.move_output(index, tensor, view.region())?;
        }
        Ok(())
    }
}
