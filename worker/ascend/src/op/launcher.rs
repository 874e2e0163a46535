use std::collections::HashMap;

use super::executor::{Executor, Queue};
use crate::ffi::{RawExecutor, Status};
use crate::library::Symbols;
use crate::memory::Region;
use crate::stream::Kept;
use crate::tensor::{Layout, Scalar, Tensor, View};
use crate::{Current, Result, Runtime, Stream};

/// Tensors of an operator, at most.
const MAX_TENSORS: usize = 6;
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
    /// Planned for one use, since the library cannot repeat them.
    pub single: u64,
}

/// What a plan depends on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    operator: &'static str,
    layouts: [Option<Layout>; MAX_TENSORS],
    scalar: Option<u32>,
    attribute: u64,
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
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Tensor>,
    pub(super) scalar: Option<Scalar>,
}

/// An operator and what it is to work on.
pub(super) struct Operation<'a> {
    /// Name of the phase that plans, and how to call it.
    pub(super) plan: (&'static str, &'a PlanCall<'a>),
    /// Name of the phase that queues, and the function.
    pub(super) queue: (&'static str, Queue),
    pub(super) inputs: &'a [&'a View],
    pub(super) outputs: &'a [&'a View],
    /// A number that is given as an object.
    pub(super) scalar: Option<f32>,
    /// Bits of a number that the plan depends on.
    pub(super) attribute: u64,
}

/// Calls the phase that plans.
pub(super) type PlanCall<'a> = dyn Fn(&Symbols, &Objects, *mut u64, *mut *mut RawExecutor) -> Status + 'a;

impl Launcher {
    /// Operators go to `stream`, one after the other, and share `workspace`.
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

    pub(super) fn launch(&mut self, current: &Current, operation: &Operation<'_>) -> Result<()> {
        let call = operation.queue.0;
        let views = || operation.inputs.iter().chain(operation.outputs);
        for region in views().map(|view| view.region()).chain([&self.workspace]) {
            current.require(region.context(), call)?;
        }
        let mut layouts = [None; MAX_TENSORS];
        layouts.iter_mut().zip(views()).for_each(|(slot, view)| *slot = Some(*view.layout()));
        let key = Key {
            operator: call,
            layouts,
            scalar: operation.scalar.map(f32::to_bits),
            attribute: operation.attribute,
        };

        // what is not put back is released: after an error nobody knows which addresses a plan has
        let mut plan = match self.plans.remove(&key) {
            Some(mut plan) => {
                plan.move_to(operation)?;
                self.counts.reused += 1;
                plan
            }
            None => self.plan(current.runtime(), operation)?,
        };
        let mut kept: [&Kept; MAX_TENSORS + 1] = [self.workspace.kept(); MAX_TENSORS + 1];
        kept.iter_mut().zip(views()).for_each(|(slot, view)| *slot = view.region().kept());
        plan.executor.launch(current, &self.stream, &self.workspace, &kept, operation.queue)?;

        if plan.executor.is_repeatable() {
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            self.plans.insert(key, plan);
        }
        Ok(())
    }

    fn plan(&mut self, runtime: &Runtime, operation: &Operation<'_>) -> Result<Plan> {
        let tensors = |views: &[&View]| -> Result<Vec<Tensor>> {
            views.iter().map(|view| Tensor::new(runtime, view)).collect()
        };
        let objects = Objects {
            inputs: tensors(operation.inputs)?,
            outputs: tensors(operation.outputs)?,
            scalar: operation.scalar.map(|value| Scalar::f32(runtime, value)).transpose()?,
        };
        let (call, plan) = operation.plan;
        let mut executor = Executor::plan(runtime, call, |workspace, executor| {
            plan(runtime.symbols(), &objects, workspace, executor)
        })?;
        self.counts.made += 1;
        if let Err(error) = executor.make_repeatable() {
            self.counts.single += 1;
            tracing::debug!(operator = operation.queue.0, %error, "planned for one use");
        }
        Ok(Plan { executor, objects })
    }
}

impl Plan {
    fn move_to(&mut self, operation: &Operation<'_>) -> Result<()> {
        for (index, (tensor, view)) in self.objects.inputs.iter_mut().zip(operation.inputs).enumerate() {
            self.executor.move_input(index, tensor, view.region())?;
        }
        for (index, (tensor, view)) in self.objects.outputs.iter_mut().zip(operation.outputs).enumerate() {
            self.executor.move_output(index, tensor, view.region())?;
        }
        Ok(())
    }
}
