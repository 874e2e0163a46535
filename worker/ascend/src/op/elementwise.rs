//! Operators on each element by itself. The smaller of two tensors is repeated along axes where it has one element.

use super::launcher::{Launcher, Work};
use super::{check, same_type};
use crate::tensor::View;
use crate::{Current, Error, Result};

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// √x.
    Sqrt,
    /// 1 / √x.
    Rsqrt,
    /// e^x.
    Exp,
    /// Natural logarithm.
    Log,
    /// 1 / (1 + e^−x).
    Sigmoid,
    /// x / (1 + e^−x).
    Silu,
}

/// Functions of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// left + right.
    Add,
    /// left − right.
    Sub,
    /// left · right.
    Mul,
    /// left / right.
    Div,
}

impl Launcher {
    /// `out = function(x)`; `out` may be `x`.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn unary(&mut self, current: &Current, function: Unary, x: &View, out: &View) -> Result<()> {
        let operators = &current.runtime().symbols().operators;
        let operator = match function {
            Unary::Sqrt => operators.Sqrt,
            Unary::Rsqrt => operators.Rsqrt,
            Unary::Exp => operators.Exp,
            Unary::Log => operators.Log,
            Unary::Sigmoid => operators.Sigmoid,
            Unary::Silu => operators.Silu,
        };
        let work = Work { inputs: &[x], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), objects.output(0), workspace, executor) }
        })
    }

    /// `out = function(left, right)`; `out` may be one of the two.
    ///
    /// # Errors
    /// [`Error::Shape`] for different types; [`Error::WrongContext`], [`Error::Call`].
    pub fn binary(
        &mut self,
        current: &Current,
        function: Binary,
        left: &View,
        right: &View,
        out: &View,
    ) -> Result<()> {
        check("elements", same_type(&[left, right, out]), &[left, right, out])?;
        let operators = &current.runtime().symbols().operators;
        let (inputs, outputs): (&[&View], &[&View]) = (&[left, right], &[out]);
        match function {
            Binary::Add | Binary::Sub => {
                let operator = if function == Binary::Add { operators.Add } else { operators.Sub };
                // the factor of the right one
                let work = Work { inputs, outputs, scalars: &[1.0], ..Work::default() };
                self.launch(current, operator, work, |plan, objects, workspace, executor| {
                    let (left, right) = (objects.input(0), objects.input(1));
                    // SAFETY: the objects and the two places for results are alive during the call.
                    unsafe { plan(left, right, objects.scalar(0), objects.output(0), workspace, executor) }
                })
            }
            Binary::Mul | Binary::Div => {
                let operator = if function == Binary::Mul { operators.Mul } else { operators.Div };
                let work = Work { inputs, outputs, ..Work::default() };
                self.launch(current, operator, work, |plan, objects, workspace, executor| {
                    let (left, right) = (objects.input(0), objects.input(1));
                    // SAFETY: the objects and the two places for results are alive during the call.
                    unsafe { plan(left, right, objects.output(0), workspace, executor) }
                })
            }
        }
    }

    /// `out = x + addend`; `out` may be `x`.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn add_number(&mut self, current: &Current, x: &View, addend: f32, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Adds;
        // the second is a factor of the addend
        let work = Work { inputs: &[x], outputs: &[out], scalars: &[addend, 1.0], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (addend, factor) = (objects.scalar(0), objects.scalar(1));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), addend, factor, objects.output(0), workspace, executor) }
        })
    }

    /// `out = x · factor`; `out` may be `x`.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn multiply_number(&mut self, current: &Current, x: &View, factor: f32, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Muls;
        let work = Work { inputs: &[x], outputs: &[out], scalars: &[factor], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let factor = objects.scalar(0);
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), factor, objects.output(0), workspace, executor) }
        })
    }

    /// `out` = `x`, but at least `least` and at most `most`; `out` may be `x`.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn clamp(
        &mut self,
        current: &Current,
        x: &View,
        least: Option<f32>,
        most: Option<f32>,
        out: &View,
    ) -> Result<()> {
        let operator = current.runtime().symbols().operators.Clamp;
        let bounds = [least, most];
        let scalars: Vec<f32> = bounds.into_iter().flatten().collect();
        let attributes = bounds.map(|bound| u64::from(bound.is_some()));
        let work = Work {
            inputs: &[x],
            outputs: &[out],
            scalars: &scalars,
            attributes: &attributes,
            ..Work::default()
        };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let at = |bound: Option<f32>, index| bound.map_or(std::ptr::null(), |_| objects.scalar(index));
            let (least, most) = (at(bounds[0], 0), at(bounds[1], usize::from(bounds[0].is_some())));
            // SAFETY: the objects and the two places for results are alive during the call; a bound may be null.
            unsafe { plan(objects.input(0), least, most, objects.output(0), workspace, executor) }
        })
    }

    /// `out = x` in another type.
    ///
    /// # Errors
    /// [`Error::WrongContext`], [`Error::Call`].
    pub fn cast(&mut self, current: &Current, x: &View, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Cast;
        let dtype = out.layout().dtype() as i32;
        let work = Work { inputs: &[x], outputs: &[out], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), dtype, objects.output(0), workspace, executor) }
        })
    }

    /// `out = ln(1 + e^x)`; `x` itself from `threshold` on.
    ///
    /// # Errors
    /// [`Error::Absent`] for a CANN without it; [`Error::WrongContext`], [`Error::Call`], with
    /// [`Kind::Operator`](crate::Kind::Operator) on a chip without it.
    pub fn softplus(&mut self, current: &Current, x: &View, threshold: f32, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.Softplus;
        let operator = operator.ok_or(Error::Absent { symbol: "aclnnSoftplus" })?;
        let work = Work { inputs: &[x], outputs: &[out], scalars: &[1.0, threshold], ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (beta, threshold) = (objects.scalar(0), objects.scalar(1));
            // SAFETY: the objects and the two places for results are alive during the call.
            unsafe { plan(objects.input(0), beta, threshold, objects.output(0), workspace, executor) }
        })
    }

    /// `out[.., i] = silu(min(x[.., i], limit)) · clamp(x[.., n + i], ±limit)` for `x[.., 2n]`.
    ///
    /// # Errors
    /// [`Error::Absent`] for a CANN without it; [`Error::WrongContext`], [`Error::Call`].
    pub fn clipped_swiglu(&mut self, current: &Current, x: &View, limit: f64, out: &View) -> Result<()> {
        let operator = current.runtime().symbols().operators.ClippedSwiglu;
        let operator = operator.ok_or(Error::Absent { symbol: "aclnnClippedSwiglu" })?;
        let attributes = [limit.to_bits()];
        let work = Work { inputs: &[x], outputs: &[out], attributes: &attributes, ..Work::default() };
        self.launch(current, operator, work, |plan, objects, workspace, executor| {
            let (x, no_groups, out) = (objects.input(0), std::ptr::null(), objects.output(0));
            // SAFETY: the objects and the two places for results are alive during the call; groups may be null.
            unsafe { plan(x, no_groups, -1, 1.0, limit, 0.0, false, out, workspace, executor) }
        })
    }
}
