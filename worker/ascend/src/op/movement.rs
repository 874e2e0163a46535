//! Operators that move elements.

use super::launcher::{Launcher, Work};
use crate::tensor::View;
use crate::{Current, Result};

impl Launcher {
    /// `to = from`, repeated along axes where `from` has one element, and in the type of `to`.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn copy(&mut self, current: &Current, from: &View, to: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.InplaceCopy;
        let work = Work { inputs: &[from], outputs: &[to], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.output(0), objects.input(0), workspace, executor) }
        })
    }

    /// Sets all elements.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call).
    pub fn fill(&mut self, current: &Current, to: &View, value: f32) -> Result<()> {
        let operator = current.runtime().symbols().operators.InplaceFillScalar;
        let work = Work { outputs: &[to], scalars: &[value], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.output(0), objects.scalar(0), workspace, executor) }
        })
    }

    /// `out[i, :] = x[index[i], :]`; the index is i32 or i64.
    ///
    /// # Errors
    /// [`Error::WrongContext`](crate::Error::WrongContext), [`Error::Call`](crate::Error::Call). An index that is out of
    /// range fails the stream.
    pub fn index_rows(&mut self, current: &Current, x: &View, index: &View, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.IndexSelect;
        let work = Work { inputs: &[x, index], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (x, index) = (objects.input(0), objects.input(1));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(x, 0, index, objects.output(0), workspace, executor) }
        })
    }
}
