//! Matrix products and rotations.

use super::launcher::{Launcher, Work};
use super::{check, same_type};
use crate::ffi::{cube_math, rotary};
use crate::tensor::View;
use crate::{Current, Result};

impl Launcher {
    /// `out[m, n] = left[m, k] · right[k, n]`, all of one type (f32, f16 or bf16). A transposed weight is a swapped
    /// layout.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::WrongContext`](crate::Error::WrongContext),
    /// [`Error::Call`](crate::Error::Call).
    pub fn matmul(&mut self, current: &Current, left: &View, right: &View, out: &View) -> Result<()> {
        let (a, b, c) = (left.layout().dims(), right.layout().dims(), out.layout().dims());
        let fits = matches!((a, b, c), ([m, k], [k2, n], [m2, n2]) if k == k2 && m == m2 && n == n2);
        check("matmul", fits && same_type(&[left, right, out]), &[left, right, out])?;
        let operator = current.runtime().symbols().operators.Matmul;
        let work = Work { inputs: &[left, right], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (left, right, out) = (objects.input(0), objects.input(1), objects.output(0));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(left, right, out, cube_math::KEEP_DTYPE, workspace, executor) }
        })
    }

    /// `out[b, m, n] = left[b, m, k] · right[b, k, n]`, all of one type.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::WrongContext`](crate::Error::WrongContext),
    /// [`Error::Call`](crate::Error::Call).
    pub fn batch_matmul(&mut self, current: &Current, left: &View, right: &View, out: &View) -> Result<()> {
        let (a, b, c) = (left.layout().dims(), right.layout().dims(), out.layout().dims());
        let fits = matches!((a, b, c), ([x, m, k], [y, k2, n], [z, m2, n2])
            if x == y && x == z && k == k2 && m == m2 && n == n2);
        check("batched matmul", fits && same_type(&[left, right, out]), &[left, right, out])?;
        let operator = current.runtime().symbols().operators.BatchMatMul;
        let work = Work { inputs: &[left, right], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (left, right, out) = (objects.input(0), objects.input(1), objects.output(0));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(left, right, out, cube_math::KEEP_DTYPE, workspace, executor) }
        })
    }

    /// Rotates the pairs (0, 1), (2, 3) … of each `x[1, s, n, d]` by the angles whose cosines and sines are
    /// `cos[1, s, 1, d]` and `sin`, each twice.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn rotate_pairs(
        &mut self,
        current: &Current,
        x: &View,
        cos: &View,
        sin: &View,
        out: &View,
    ) -> Result<()> {
        let operator = current.runtime().symbols().operators.RotaryPositionEmbedding;
        let work = Work { inputs: &[x, cos, sin], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (x, cos, sin) = (objects.input(0), objects.input(1), objects.input(2));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(x, cos, sin, rotary::INTERLEAVED, objects.output(0), workspace, executor) }
        })
    }
}
