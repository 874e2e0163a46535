//! The aclnn ops: each a check over views and a pure function over the elements, in plain f32 and integers.

pub mod activation;
pub mod arithmetic;
pub mod combine;
pub mod dispatch;
pub mod distribute;
pub mod fill;
pub mod grouped;
pub mod index;
pub mod layout;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod quant;
pub mod reduce;

use std::sync::Arc;

use crate::codes;
use crate::executor::{Io, Op, Operand, Run};
use crate::failure::{Outcome, fail};

/// The names of all exported functions of these modules.
pub(crate) const SYMBOL_TABLES: &[&[&str]] = &[
    arithmetic::SYMBOLS,
    reduce::SYMBOLS,
    layout::SYMBOLS,
    fill::SYMBOLS,
    matmul::SYMBOLS,
    grouped::SYMBOLS,
    norm::SYMBOLS,
    activation::SYMBOLS,
    index::SYMBOLS,
    quant::SYMBOLS,
    moe::SYMBOLS,
    distribute::SYMBOLS,
];

/// Exports ops: both phases of each, the first one's body being a closure that answers its work.
macro_rules! aclnn {
    (
        $($(#[$meta:meta])* $plan:ident, $launch:ident ($($arg:ident : $ty:ty),* $(,)?) |$op:ident| $body:block)*
    ) => {
        $crate::symbols::export! {
            $(
                $(#[$meta])*
                ///
                /// First phase.
                status fn $plan($($arg: $ty,)* workspace_size: *mut u64, executor: *mut *mut std::ffi::c_void) {
                    #[allow(unused_mut)]
                    let mut $op = $crate::executor::Op::begin(stringify!($launch), workspace_size, executor)?;
                    let run = $body?;
                    // SAFETY: writable, by the contract of the function.
                    unsafe { $op.finish(run, workspace_size, executor) }
                }

                $(#[$meta])*
                ///
                /// Second phase.
                status fn $launch(
                    workspace: *mut std::ffi::c_void, workspace_size: u64, executor: *mut std::ffi::c_void,
                    stream: *mut std::ffi::c_void,
                ) {
                    $crate::executor::launch(stringify!($launch), workspace, workspace_size, executor, stream)
                }
            )*
        }
    };
}
pub(crate) use aclnn;

/// Makes an op's work.
pub(crate) fn run(work: impl Fn(&mut Io<'_>) -> Outcome + Send + Sync + 'static) -> Outcome<Run> {
    Ok(Arc::new(work))
}

/// Refuses an argument.
pub(crate) fn refuse<T>(text: impl Into<String>) -> Outcome<T> {
    fail(codes::NN_PARAM_INVALID, text)
}

/// Refuses unless `holds`.
pub(crate) fn require(holds: bool, text: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { refuse(text()) }
}

/// Refuses an operand of another shape.
pub(crate) fn shaped(operand: &Operand, shape: &[usize], what: &str) -> Outcome {
    require(operand.shape == shape, || format!("{what} is {:?}, expected {shape:?}", operand.shape))
}

/// Refuses operands of different types.
pub(crate) fn same_type(a: &Operand, b: &Operand, what: &str) -> Outcome {
    require(a.dtype == b.dtype, || format!("{what}: {:?} and {:?}", a.dtype, b.dtype))
}

/// Refuses unless `holds`, with the error of the op's tiling: documented for what shapes and attributes break
/// in the ops of experts.
pub(crate) fn tiling(holds: bool, text: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { fail(codes::NN_INNER_TILING, text()) }
}

/// Refuses an operand of another shape in the same way.
pub(crate) fn tiled(operand: &Operand, shape: &[usize], what: &str) -> Outcome {
    tiling(operand.shape == shape, || format!("{what} is {:?}, expected {shape:?}", operand.shape))
}

/// Refuses an op that the chip has no kernel for.
pub(crate) fn only(op: &Op, there: bool, name: &str) -> Outcome {
    if there {
        return Ok(());
    }
    fail(codes::NN_INNER_FIND_KERNEL, format!("no kernel of {name} for {:?}", op.chip))
}

/// A shape as what lies before an axis, the axis, and what lies after it.
pub(crate) fn split_at(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    // a 0-d tensor counts as one element along one axis
    let size = shape.get(axis).copied().unwrap_or(1);
    (shape.iter().take(axis).product(), size, shape.iter().skip(axis + 1).product())
}
