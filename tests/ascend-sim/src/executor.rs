//! Executors: what an op's first phase makes, and the launch that its second phase is.

use std::ffi::c_void;
use std::num::Wrapping;
use std::sync::{Arc, Mutex};

use crate::codes;
use crate::config::Chip;
use crate::context::{self, Context};
use crate::dtype::DType;
use crate::failure::{Failure, Outcome, fail};
use crate::heap::{Heap, device_of, poison};
use crate::lock;
use crate::machine::Device;
use crate::out;
use crate::registry::Registry;
use crate::stream::{self, Dropped, Running, Task};
use crate::tensor::{SCALARS, Scalar, TENSOR_LISTS, TENSORS};
use crate::view::View;

/// All executors.
pub static EXECUTORS: Registry<Executor> =
    Registry::new("executor", codes::NN_PARAM_NULLPTR, codes::NN_PARAM_INVALID);

/// What an op does on the device.
pub type Run = Arc<dyn Fn(&mut Io<'_>) -> Outcome + Send + Sync>;

/// What an op of a whole group of ranks does: it waits for the others, so the device's memory is not held
/// while it runs.
pub type GroupRun = Arc<dyn Fn(&Running<'_>, &Unlocked<'_>) -> Outcome + Send + Sync>;

/// The work of an executor.
#[derive(Clone)]
pub enum Work {
    /// On one device.
    Local(Run),
    /// Together with other ranks; the second part is told when it is dropped.
    Group(GroupRun, Dropped),
}

impl From<Run> for Work {
    fn from(run: Run) -> Self {
        Self::Local(run)
    }
}

/// The operands of an op of a group, whose memory is held for a moment at a time.
pub struct Unlocked<'a> {
    device: &'a Device,
    inputs: &'a [View],
    outputs: &'a [View],
}

impl Unlocked<'_> {
    /// Does something with the operands.
    pub fn with<T>(&self, work: impl FnOnce(&mut Io<'_>) -> Outcome<T>) -> Outcome<T> {
        let mut heap = lock(&self.device.heap);
        self.inputs.iter().chain(self.outputs).try_for_each(|view| view.check(&heap))?;
        work(&mut Io { heap: &mut heap, inputs: self.inputs, outputs: self.outputs })
    }
}

/// An op's operands while it runs.
pub struct Io<'a> {
    heap: &'a mut Heap,
    inputs: &'a [View],
    outputs: &'a [View],
}

impl Io<'_> {
    /// The bits of an input's elements.
    pub fn bits(&self, at: usize) -> Outcome<Vec<u64>> {
        self.inputs[at].read(self.heap)
    }

    /// An input's elements as floats.
    pub fn floats(&self, at: usize) -> Outcome<Vec<f32>> {
        self.inputs[at].floats(self.heap)
    }

    /// An input's elements as integers of 32 bits, for types that fit.
    pub fn small_ints(&self, at: usize) -> Outcome<Vec<Wrapping<i32>>> {
        self.inputs[at].small_ints(self.heap)
    }

    /// The floats of an input at an index of its first axis.
    pub fn floats_of(&self, at: usize, index: usize) -> Outcome<Vec<f32>> {
        self.inputs[at].part(index).floats(self.heap)
    }

    /// The integers, of 32 bits, of an input at an index of its first axis.
    pub fn small_ints_of(&self, at: usize, index: usize) -> Outcome<Vec<Wrapping<i32>>> {
        self.inputs[at].part(index).small_ints(self.heap)
    }

    /// An input's elements as integers.
    pub fn ints(&self, at: usize) -> Outcome<Vec<i64>> {
        let dtype = self.inputs[at].dtype;
        Ok(self.bits(at)?.into_iter().map(|bits| dtype.decode_int(bits)).collect())
    }

    /// An input's elements as indices below `limit`; what is out of range fails the op on the device.
    pub fn indices(&self, at: usize, limit: usize) -> Outcome<Vec<usize>> {
        let index = |value: i64| match usize::try_from(value) {
            Ok(value) if value < limit => Ok(value),
            _ => fail(codes::RT_AICORE_EXCEPTION, format!("index {value} of {limit}")),
        };
        self.ints(at)?.into_iter().map(index).collect()
    }

    /// The bits that an output holds now.
    pub fn output_bits(&self, at: usize) -> Outcome<Vec<u64>> {
        self.outputs[at].read(self.heap)
    }

    /// What an output holds now, as integers.
    pub fn output_ints(&self, at: usize) -> Outcome<Vec<i64>> {
        let dtype = self.outputs[at].dtype;
        Ok(self.output_bits(at)?.into_iter().map(|bits| dtype.decode_int(bits)).collect())
    }

    /// What an output holds now, as floats.
    pub fn output_floats(&self, at: usize) -> Outcome<Vec<f32>> {
        self.outputs[at].floats(self.heap)
    }

    /// Writes bits to an output.
    pub fn put_bits(&mut self, at: usize, values: &[u64]) -> Outcome {
        self.outputs[at].write(self.heap, values)
    }

    /// Writes floats to an output, rounded to its type.
    pub fn put_floats(&mut self, at: usize, values: &[f32]) -> Outcome {
        self.outputs[at].write_floats(self.heap, values)
    }

    /// Writes integers to an output.
    pub fn put_ints(&mut self, at: usize, values: &[i64]) -> Outcome {
        let dtype = self.outputs[at].dtype;
        let bits: Vec<u64> = values.iter().map(|value| dtype.encode_int(*value)).collect();
        self.put_bits(at, &bits)
    }
}

/// An operand: its place among the inputs or outputs, and its view at the first phase.
#[derive(Debug, Clone)]
pub struct Operand {
    /// The place.
    pub at: usize,
    /// The view.
    pub view: View,
}

impl std::ops::Deref for Operand {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

/// An op in its first phase: gathers and checks operands.
pub struct Op {
    /// The chip that it is asked of.
    pub chip: Chip,
    name: &'static str,
    inputs: Vec<View>,
    outputs: Vec<View>,
    tensors: Vec<usize>,
    workspace: u64,
}

impl Op {
    /// Begins the first phase of `name`.
    pub fn begin<S, E>(name: &'static str, size: *const S, executor: *const E) -> Outcome<Self> {
        out::needed(size, codes::NN_PARAM_NULLPTR, "workspaceSize")?;
        out::needed(executor, codes::NN_PARAM_NULLPTR, "executor")?;
        let chip = runtime(context::current())?.machine.chip;
        Ok(Self { chip, name, inputs: vec![], outputs: vec![], tensors: vec![], workspace: 0 })
    }

    fn view(&mut self, tensor: *const c_void, what: &str) -> Outcome<View> {
        if tensor.is_null() {
            return fail(codes::NN_PARAM_NULLPTR, format!("{what} is null"));
        }
        let view = TENSORS.get(tensor)?.view();
        if view.dtype.needs_950() && !self.chip.is_950() {
            return fail(codes::NN_PARAM_INVALID, format!("{what}: {:?} needs Ascend 950", view.dtype));
        }
        // ND, and NCHW and NHWC, which describe the same memory
        if !matches!(view.format, -1..=2) {
            return fail(codes::NN_PARAM_INVALID, format!("{what}: format {} is not simulated", view.format));
        }
        self.tensors.push(tensor.addr());
        Ok(view)
    }

    /// An input, of one of the types.
    pub fn input(&mut self, tensor: *const c_void, what: &str, dtypes: &[DType]) -> Outcome<Operand> {
        let view = self.view(tensor, what)?;
        one_of(&view, what, dtypes)?;
        self.inputs.push(view.clone());
        Ok(Operand { at: self.inputs.len() - 1, view })
    }

    /// An input that may be null.
    pub fn optional(
        &mut self,
        tensor: *const c_void,
        what: &str,
        dtypes: &[DType],
    ) -> Outcome<Option<Operand>> {
        if tensor.is_null() { Ok(None) } else { self.input(tensor, what, dtypes).map(Some) }
    }

    /// An output, of one of the types.
    pub fn output(&mut self, tensor: *const c_void, what: &str, dtypes: &[DType]) -> Outcome<Operand> {
        let view = self.view(tensor, what)?;
        one_of(&view, what, dtypes)?;
        self.outputs.push(view.clone());
        Ok(Operand { at: self.outputs.len() - 1, view })
    }

    /// The members of a list of inputs.
    pub fn inputs(&mut self, list: *const c_void, what: &str, dtypes: &[DType]) -> Outcome<Vec<Operand>> {
        let members = TENSOR_LISTS.get(list)?;
        members.iter().map(|member| self.input(std::ptr::without_provenance(*member), what, dtypes)).collect()
    }

    /// The single member of a list that may be null.
    pub fn optional_single(
        &mut self,
        list: *const c_void,
        what: &str,
        dtypes: &[DType],
    ) -> Outcome<Option<Operand>> {
        if list.is_null() {
            return Ok(None);
        }
        match TENSOR_LISTS.get(list)?.as_slice() {
            [] => Ok(None),
            [one] => self.input(std::ptr::without_provenance(*one), what, dtypes).map(Some),
            more => {
                fail(codes::NN_PARAM_INVALID, format!("{what}: {} tensors, one is simulated", more.len()))
            }
        }
    }

    /// The single member of a list of outputs.
    pub fn single_output(&mut self, list: *const c_void, what: &str, dtypes: &[DType]) -> Outcome<Operand> {
        match TENSOR_LISTS.get(list)?.as_slice() {
            [one] => self.output(std::ptr::without_provenance(*one), what, dtypes),
            more => {
                fail(codes::NN_PARAM_INVALID, format!("{what}: {} tensors, one is simulated", more.len()))
            }
        }
    }

    /// A scalar.
    pub fn scalar(&self, scalar: *const c_void) -> Outcome<Scalar> {
        SCALARS.get(scalar).map(|scalar| *scalar)
    }

    /// Asks for workspace in bytes.
    pub fn needs(&mut self, bytes: usize) {
        self.workspace = (bytes as u64).next_multiple_of(512);
    }

    /// Ends the first phase.
    ///
    /// # Safety
    /// The pointers are writable.
    pub unsafe fn finish(self, work: impl Into<Work>, size: *mut u64, executor: *mut *mut c_void) -> Outcome {
        let made = Executor {
            name: self.name,
            tensors: self.tensors,
            workspace: self.workspace,
            work: work.into(),
            state: Mutex::new(State { repeatable: false, inputs: self.inputs, outputs: self.outputs }),
        };
        let handle = EXECUTORS.insert(Arc::new(made));
        // SAFETY: promised by the caller.
        unsafe {
            out::put(size, self.workspace, codes::NN_PARAM_NULLPTR, "workspaceSize")?;
            out::put(executor, handle, codes::NN_PARAM_NULLPTR, "executor")
        }
    }
}

fn one_of(view: &View, what: &str, dtypes: &[DType]) -> Outcome {
    if dtypes.contains(&view.dtype) {
        return Ok(());
    }
    fail(codes::NN_PARAM_INVALID, format!("{what} is {:?}, allowed are {dtypes:?}", view.dtype))
}

/// What the runtime refuses an op is the op's error 361001.
fn runtime<T>(outcome: Outcome<T>) -> Outcome<T> {
    outcome.map_err(|failure| Failure { code: codes::NN_RUNTIME_ERROR, ..failure })
}

struct State {
    repeatable: bool,
    inputs: Vec<View>,
    outputs: Vec<View>,
}

/// An executor: holds the addresses that the tensors had at the first phase.
pub struct Executor {
    name: &'static str,
    tensors: Vec<usize>,
    workspace: u64,
    work: Work,
    state: Mutex<State>,
}

impl Executor {
    /// Lets the second phase run any number of times.
    pub fn set_repeatable(&self) {
        lock(&self.state).repeatable = true;
    }

    /// Replaces the address of the operand at `index`.
    pub fn set_address(&self, input: bool, index: usize, tensor: *const c_void, address: u64) -> Outcome {
        let view = TENSORS.get(tensor)?.view();
        let mut state = lock(&self.state);
        if !state.repeatable {
            return fail(codes::NN_PARAM_INVALID, "the executor is not repeatable");
        }
        let operands = if input { &mut state.inputs } else { &mut state.outputs };
        match operands.get_mut(index) {
            Some(operand) if operand.dtype == view.dtype && operand.shape == view.shape => {
                operand.address = address;
                Ok(())
            }
            Some(_) => fail(codes::NN_PARAM_INVALID, format!("operand {index} has another shape or type")),
            None => fail(codes::NN_PARAM_INVALID, format!("no operand {index}")),
        }
    }
}

/// The second phase of `name`: puts the op on the stream.
pub fn launch(
    name: &'static str,
    workspace: *const c_void,
    size: u64,
    executor: *const c_void,
    stream: *const c_void,
) -> Outcome {
    let stream = runtime(stream::of_current(stream))?;
    let made = EXECUTORS.get(executor).map_err(|failure| Failure {
        text: format!("{} (an executor that is not repeatable runs once)", failure.text),
        ..failure
    })?;
    if made.name != name {
        return fail(codes::NN_PARAM_INVALID, format!("an executor of {} given to {name}", made.name));
    }
    if let Some(gone) = made.tensors.iter().find(|tensor| !TENSORS.alive(**tensor)) {
        return fail(
            codes::NN_PARAM_INVALID,
            format!("tensor {gone:#x} was destroyed before the second phase"),
        );
    }
    let (inputs, outputs, repeatable) = {
        let state = lock(&made.state);
        (state.inputs.clone(), state.outputs.clone(), state.repeatable)
    };
    let place = workspace.addr() as u64;
    check_memory(&stream.context, &made, &inputs, &outputs, place, size)?;
    let (work, needed) = (made.work.clone(), made.workspace);
    let dropped = match &work {
        Work::Local(_) => None,
        Work::Group(_, dropped) => Some(dropped.clone()),
    };
    let mut task = Task::new(move |running| {
        let device = &running.stream.context.device;
        let begin = |heap: &mut Heap| {
            if needed > 0 {
                // what an op leaves in its workspace is nobody's business
                poison(heap.bytes_mut(place, needed)?);
            }
            inputs.iter().chain(&outputs).try_for_each(|view| view.check(heap))
        };
        let run = || match &work {
            Work::Local(run) => {
                let mut heap = lock(&device.heap);
                begin(&mut heap)?;
                run(&mut Io { heap: &mut heap, inputs: &inputs, outputs: &outputs })
            }
            Work::Group(run, _) => {
                begin(&mut lock(&device.heap))?;
                run(running, &Unlocked { device, inputs: &inputs, outputs: &outputs })
            }
        };
        run().map_err(|failure| on_device(name, failure))
    });
    task.dropped = dropped;
    runtime(stream.submit(task))?;
    if !repeatable {
        EXECUTORS.remove(executor)?;
    }
    Ok(())
}

fn check_memory(
    context: &Context,
    executor: &Executor,
    inputs: &[View],
    outputs: &[View],
    workspace: u64,
    size: u64,
) -> Outcome {
    if size < executor.workspace || executor.workspace > 0 && workspace == 0 {
        let text = format!("{size} bytes of workspace at {workspace:#x}, {} are needed", executor.workspace);
        return fail(codes::NN_PARAM_INVALID, text);
    }
    let heap = lock(&context.device.heap);
    if executor.workspace > 0 {
        runtime(heap.bytes(workspace, executor.workspace).map(|_| ()))?;
    }
    for view in inputs.iter().chain(outputs).filter(|view| view.count() > 0) {
        if device_of(view.address) != Some(context.device.id) {
            let text = format!("{:#x} is not memory of device {}", view.address, context.device.id);
            return fail(codes::NN_RUNTIME_ERROR, text);
        }
        runtime(view.check(&heap))?;
    }
    Ok(())
}

fn on_device(name: &str, failure: Failure) -> Failure {
    let code = match failure.code {
        codes::RT_PARAM_INVALID => codes::RT_AICORE_EXCEPTION,
        code => code,
    };
    Failure { code, text: format!("{name} on the device: {}", failure.text) }
}
