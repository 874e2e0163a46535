//! Quantised products: activations to INT8 row by row, and products of groups of rows with a weight each.

use super::check;
use super::launcher::{Launcher, Work};
use crate::ffi::grouped;
use crate::tensor::{DataType, Tensor, TensorList, View};
use crate::{Current, Error, Result};

/// Rows in groups, each group times a weight of its own.
///
/// INT8 by INT8: `out = x · weight · scale · per_token`, with a `scale[e, n]` in bf16 for results in bf16.
/// INT8 by INT4 (A2 and A3): `out = ((x − 8) · weight · scale + bias) · per_token`, with a `scale[e, k / 256, n]` of 64 bits
/// whose lower half are those of an f32, and `bias[e, n]` = 8 · Σ weight · scale over k, which makes up for the 8.
#[derive(Clone, Copy, Debug)]
pub struct GroupedProduct<'a> {
    /// `[m, k]`, rows of a group one after the other.
    pub x: &'a View,
    /// `[e, k, n]`. INT8 may be a swapped layout; INT4 may not.
    pub weight: &'a View,
    /// See above.
    pub bias: Option<&'a View>,
    /// See above.
    pub scale: Option<&'a View>,
    /// `[m]`, f32.
    pub per_token: Option<&'a View>,
    /// `[e]`, i64: rows of each group.
    pub counts: &'a View,
    /// `[m, n]`. Rows of no group are not written.
    pub out: &'a View,
}

impl Launcher {
    /// `y = round(x / scale)` in INT8, with `scale[m]` = the largest magnitude of each row of `x[m, k]` (f16 or bf16) by 127.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Absent`] for a CANN without it; [`Error::WrongContext`], [`Error::Call`].
    pub fn dynamic_quant(&mut self, current: &Current, x: &View, y: &View, scale: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.DynamicQuant;
        let operator = operator.ok_or(Error::Absent { symbol: "aclnnDynamicQuant" })?;
        let (dims, types) = (x.layout().dims(), [y, scale].map(|view| view.layout().dtype()));
        let fits = dims == y.layout().dims()
            && scale.layout().dims() == &dims[..dims.len() - 1]
            && types == [DataType::I8, DataType::F32];
        check("dynamic quantisation", fits, &[x, y, scale])?;
        let work = Work { inputs: &[x], outputs: &[y, scale], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (x, no_factors) = (objects.input(0), std::ptr::null());
            let (y, scale) = (objects.output(0), objects.output(1));
            // SAFETY: the objects and the two places for results are alive during the call; factors may be null.
            unsafe { plan(x, no_factors, y, scale, workspace, executor) }
        })
    }

    /// Queues a grouped product. It is planned each time: its tensors are in lists, and a plan cannot be told that the
    /// memory of a list's member is elsewhere.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Absent`] for a CANN without it; [`Error::WrongContext`], [`Error::Call`].
    pub fn grouped_matmul(&mut self, current: &Current, product: GroupedProduct<'_>) -> Result<()> {
        let runtime = current.runtime();
        let operator = runtime.symbols().operators.GroupedMatmulV5;
        let operator = operator.ok_or(Error::Absent { symbol: "aclnnGroupedMatmulV5" })?;
        let GroupedProduct { x, weight, bias, scale, per_token, counts, out } = product;
        let dims = [x, weight, counts, out].map(|view| view.layout().dims());
        let fits = matches!(dims, [[m, k], [e, k2, n], [e2], [m2, n2]]
            if m == m2 && k == k2 && n == n2 && e == e2)
            && counts.layout().dtype() == DataType::I64;
        let views: Vec<&View> = [Some(x), Some(weight), bias, scale, per_token, Some(counts), Some(out)]
            .into_iter()
            .flatten()
            .collect();
        check("grouped matmul", fits, &views)?;

        let list = |view: &View| TensorList::new(runtime, vec![Tensor::new(runtime, view)?]);
        let optional = |view: Option<&View>| view.map(list).transpose();
        let (x, weight, out) = (list(x)?, list(weight)?, list(out)?);
        let (bias, scale, per_token) = (optional(bias)?, optional(scale)?, optional(per_token)?);
        let counts = Tensor::new(runtime, counts)?;
        self.launch_once(current, operator, &views, |plan, workspace, executor| {
            let at = |list: &Option<TensorList>| {
                list.as_ref().map_or(std::ptr::null(), |list| list.raw().cast_const())
            };
            let (none, no_result) = (std::ptr::null(), std::ptr::null_mut());
            // SAFETY: lists, tensor and the two places for results are alive during the call; all others may be null.
            unsafe {
                plan(
                    x.raw(),
                    weight.raw(),
                    at(&bias),
                    at(&scale),
                    none,
                    none,
                    none,
                    at(&per_token),
                    counts.raw(),
                    none,
                    none,
                    none,
                    grouped::ONE_RESULT,
                    grouped::BY_ROWS,
                    grouped::COUNTS,
                    grouped::NO_ACTIVATION,
                    std::ptr::null_mut(),
                    out.raw(),
                    no_result,
                    no_result,
                    workspace,
                    executor,
                )
            }
        })
    }
}
