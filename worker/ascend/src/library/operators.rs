//! Every operator that this crate calls, declared once: a phase that plans and one that queues.

use std::ffi::c_void;

use super::table::{found, is_required, pointer};
use super::{Family, Finder};
use crate::ffi::{RawExecutor, RawIntArray, RawScalar, RawStream, RawTensor, RawTensorList, Status};

/// The phase that queues; the same for every operator.
pub(crate) type Queue = unsafe extern "C" fn(*mut c_void, u64, *mut RawExecutor, RawStream) -> Status;

/// The two phases of an operator, and their names.
#[derive(Clone, Copy)]
pub(crate) struct Operator<F> {
    /// Symbol of the phase that plans.
    pub(crate) planning: &'static str,
    pub(crate) plan: F,
    /// Symbol of the phase that queues.
    pub(crate) name: &'static str,
    pub(crate) queue: Queue,
}

/// A tensor that is read; may be null where the documentation says so.
type In = *const RawTensor;
/// A tensor that is written.
type Out = *mut RawTensor;
type Number = *const RawScalar;
type Ints = *const RawIntArray;
/// A list of tensors that are read; may be null where the documentation says so.
type Ins = *const RawTensorList;
/// A list of tensors that are written.
type Outs = *mut RawTensorList;

macro_rules! operators {
    ($($family:ident $need:ident $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The operators of the libraries that were found. Fields have the names of the symbols without `aclnn`.
        #[allow(non_snake_case)]
        pub(crate) struct Operators {
            $(pub(crate) $name: pointer!(
                $need,
                Operator<unsafe extern "C" fn($($type,)* *mut u64, *mut *mut RawExecutor) -> Status>
            ),)*
        }

        impl Operators {
            /// Looks for every symbol; `None` if a required one is missing, which the finder then knows.
            #[allow(non_snake_case)]
            pub(super) fn resolve(finder: &mut Finder) -> Option<Self> {
                $(
                    let $name = {
                        type Plan = unsafe extern "C" fn($($type,)* *mut u64, *mut *mut RawExecutor) -> Status;
                        let name = concat!("aclnn", stringify!($name));
                        let planning = concat!("aclnn", stringify!($name), "GetWorkspaceSize");
                        let (family, needed) = (Family::$family, is_required!($need));
                        // SAFETY: the signature is that of the documentation of this symbol; the two last arguments are
                        // the same for all.
                        let plan = unsafe { finder.symbol::<Plan>(planning, family, needed) };
                        // SAFETY: the signature of every second phase.
                        let queue = unsafe { finder.symbol::<Queue>(name, family, needed) };
                        plan.zip(queue).map(|(plan, queue)| Operator { planning, plan, name, queue })
                    };
                )*
                Some(Self { $($name: found!($need, $name),)* })
            }
        }
    };
}

operators! {
    // element by element
    Math required Add(left: In, right: In, alpha: Number, out: Out);
    Math required Sub(left: In, right: In, alpha: Number, out: Out);
    Math required Mul(left: In, right: In, out: Out);
    Math required Div(left: In, right: In, out: Out);
    Math required Adds(x: In, addend: Number, alpha: Number, out: Out);
    Math required Muls(x: In, factor: Number, out: Out);
    Math required Sqrt(x: In, out: Out);
    Math required Rsqrt(x: In, out: Out);
    Math required Exp(x: In, out: Out);
    Math required Log(x: In, out: Out);
    Math required Clamp(x: In, least: Number, most: Number, out: Out);
    Math required Cast(x: In, dtype: i32, out: Out);
    Nn required Sigmoid(x: In, out: Out);
    Nn required Silu(x: In, out: Out);
    Nn optional Softplus(x: In, beta: Number, threshold: Number, out: Out);
    Nn optional ClippedSwiglu(
        x: In,
        group_index: In,
        dim: i64,
        alpha: f64,
        limit: f64,
        bias: f64,
        interleaved: bool,
        out: Out,
    );

    // along an axis
    Math required ReduceSum(x: In, dims: Ints, keep: bool, dtype: i32, out: Out);
    Math required Mean(x: In, dims: Ints, keep: bool, dtype: i32, out: Out);
    Nn required Softmax(x: In, dim: i64, out: Out);
    Math required Topk(x: In, k: i64, dim: i64, largest: bool, sorted: bool, values: Out, indices: Out);
    Nn required RmsNorm(x: In, gamma: In, epsilon: f64, y: Out, rstd: Out);

    // moving elements
    Math required InplaceCopy(to: Out, from: In);
    Math required InplaceFillScalar(to: Out, value: Number);
    Nn required IndexSelect(x: In, dim: i64, index: In, out: Out);

    // products
    Nn required Matmul(left: In, right: In, out: Out, math: i8);
    Nn required BatchMatMul(left: In, right: In, out: Out, math: i8);

    // quantised products
    Nn optional DynamicQuant(x: In, smooth: In, y: Out, scale: Out);
    Transformer optional GroupedMatmulV5(
        x: Ins,
        weight: Ins,
        bias: Ins,
        scale: Ins,
        offset: Ins,
        antiquant_scale: Ins,
        antiquant_offset: Ins,
        per_token_scale: Ins,
        group_list: In,
        activation_input: Ins,
        activation_scale: Ins,
        activation_offset: Ins,
        split_item: i64,
        group_type: i64,
        group_list_type: i64,
        activation: i64,
        tuning: *mut RawIntArray,
        out: Outs,
        activation_out: Outs,
        dynamic_scale_out: Outs,
    );

    // rotary positions
    Transformer required RotaryPositionEmbedding(x: In, cos: In, sin: In, mode: i64, out: Out);
}
