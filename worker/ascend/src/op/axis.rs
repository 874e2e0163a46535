//! Operators along an axis.

use super::launcher::{Launcher, Work};
use super::{check, same_type};
use crate::tensor::{DataType, View};
use crate::{Current, Result};

impl Launcher {
    /// `out` = the sum of `x` along `axis`, which has one element in `out`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::WrongContext`](crate::Error::WrongContext),
    /// [`Error::Call`](crate::Error::Call).
    pub fn sum(&mut self, current: &Current, x: &View, axis: usize, out: &View) -> Result<()> {
        check("sum", is_reduced(x, axis, out), &[x, out])?;
        let (operator, dtype) =
            (current.runtime().symbols().operators.ReduceSum, out.layout().dtype() as i32);
        let work = Work { inputs: &[x], outputs: &[out], axes: &[axis as i64], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe {
                plan(objects.input(0), objects.axes(), true, dtype, objects.output(0), workspace, executor)
            }
        })
    }

    /// `out` = the mean of `x` along `axis`, which has one element in `out`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::WrongContext`](crate::Error::WrongContext),
    /// [`Error::Call`](crate::Error::Call).
    pub fn mean(&mut self, current: &Current, x: &View, axis: usize, out: &View) -> Result<()> {
        check("mean", is_reduced(x, axis, out), &[x, out])?;
        let (operator, dtype) = (current.runtime().symbols().operators.Mean, out.layout().dtype() as i32);
        let work = Work { inputs: &[x], outputs: &[out], axes: &[axis as i64], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe {
                plan(objects.input(0), objects.axes(), true, dtype, objects.output(0), workspace, executor)
            }
        })
    }

    /// Softmax along the last axis; `out` is not `x`.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn softmax(&mut self, current: &Current, x: &View, axis: usize, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Softmax;
        let attributes = [axis as u64];
        let work = Work { inputs: &[x], outputs: &[out], attributes: &attributes, ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), axis as i64, objects.output(0), workspace, executor) }
        })
    }

    /// The largest elements of each row of `x[m, n]`, as many as `values[m, k]` and `indices[m, k]` (i64) have columns.
    /// Which of two equal ones comes first is open.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn top_k(&mut self, current: &Current, x: &View, values: &View, indices: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Topk;
        let dims = values.layout().dims();
        let fits = indices.layout().dtype() == DataType::I64 && dims.len() == 2;
        check("top k", fits, &[x, values, indices])?;
        let k = dims[1];
        let work = Work { inputs: &[x], outputs: &[values, indices], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (values, indices) = (objects.output(0), objects.output(1));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), k, 1, true, true, values, indices, workspace, executor) }
        })
    }

    /// `y[.., d] = gamma[d] · x[.., d] · rstd`, with `rstd[.., 1] = 1 / sqrt(mean(x²) + epsilon)` in f32.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::WrongContext`](crate::Error::WrongContext),
    /// [`Error::Call`](crate::Error::Call).
    pub fn rms_norm(
        &mut self,
        current: &Current,
        x: &View,
        gamma: &View,
        epsilon: f64,
        y: &View,
        rstd: &View,
    ) -> Result<()> {
        let (dims, scales) = (x.layout().dims(), rstd.layout().dims());
        let last = dims.len() - 1;
        let fits = dims == y.layout().dims()
            && gamma.layout().dims() == &dims[last..]
            && scales.len() == dims.len()
            && (&scales[..last], scales[last]) == (&dims[..last], 1)
            && rstd.layout().dtype() == DataType::F32
            && same_type(&[x, gamma, y]);
        check("rms norm", fits, &[x, gamma, y, rstd])?;
        let operator = current.runtime().symbols().operators.RmsNorm;
        let attributes = [epsilon.to_bits()];
        let work =
            Work { inputs: &[x, gamma], outputs: &[y, rstd], attributes: &attributes, ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (x, gamma) = (objects.input(0), objects.input(1));
            let (y, rstd) = (objects.output(0), objects.output(1));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(x, gamma, epsilon, y, rstd, workspace, executor) }
        })
    }
}

fn is_reduced(x: &View, axis: usize, out: &View) -> bool {
    let (dims, reduced) = (x.layout().dims(), out.layout().dims());
    dims.len() == reduced.len()
        && dims.iter().zip(reduced).enumerate().all(
            |(at, (dim, out))| {
                if at == axis { *out == 1 } else { dim == out }
            },
        )
}
