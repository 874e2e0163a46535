//! The operators that exist so far: enough to show that the convention works.

use super::launcher::{Launcher, Operation};
use crate::ffi::cube_math;
use crate::tensor::{DataType, View};
use crate::{Current, Error, Result};

impl Launcher {
    /// `out[m, n] = left[m, k] · right[k, n]`, all of one type (f32, f16 or bf16). A transposed weight is a swapped
    /// layout.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooSmall`] for the workspace, [`Error::WrongContext`], [`Error::Call`].
    pub fn matmul(&mut self, current: &Current, left: &View, right: &View, out: &View) -> Result<()> {
        let (a, b, c) = (left.layout().dims(), right.layout().dims(), out.layout().dims());
        let fits = matches!((a, b, c), ([m, k], [k2, n], [m2, n2]) if k == k2 && m == m2 && n == n2);
        check("matmul", fits && same_type(&[left, right, out]), &[left, right, out])?;
        let queue = current.runtime().symbols().aclnnMatmul;
        self.launch(
            current,
            &Operation {
                plan: ("aclnnMatmulGetWorkspaceSize", &|symbols, objects, workspace, executor| {
                    let ([left, right], [out]) = (&objects.inputs[..], &objects.outputs[..]) else {
                        unreachable!("made from two inputs and one output")
                    };
                    // SAFETY: the objects and the two places for results are alive during the call.
                    unsafe {
                        (symbols.aclnnMatmulGetWorkspaceSize)(
                            left.raw(),
                            right.raw(),
                            out.raw(),
                            cube_math::KEEP_DTYPE,
                            workspace,
                            executor,
                        )
                    }
                }),
                queue: ("aclnnMatmul", queue),
                inputs: &[left, right],
                outputs: &[out],
                scalar: None,
                attribute: 0,
            },
        )
    }

    /// `out = left + right`, elementwise, all of one layout. `out` may be one of the two.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooSmall`] for the workspace, [`Error::WrongContext`], [`Error::Call`].
    pub fn add(&mut self, current: &Current, left: &View, right: &View, out: &View) -> Result<()> {
        let fits = left.layout() == right.layout() && left.layout() == out.layout();
        check("add", fits, &[left, right, out])?;
        let queue = current.runtime().symbols().aclnnAdd;
        self.launch(
            current,
            &Operation {
                plan: ("aclnnAddGetWorkspaceSize", &|symbols, objects, workspace, executor| {
                    let ([left, right], [out], Some(alpha)) =
                        (&objects.inputs[..], &objects.outputs[..], &objects.scalar)
                    else {
                        unreachable!("made from two inputs, one output and a scalar")
                    };
                    // SAFETY: the objects and the two places for results are alive during the call.
                    unsafe {
                        (symbols.aclnnAddGetWorkspaceSize)(
                            left.raw(),
                            right.raw(),
                            alpha.raw(),
                            out.raw(),
                            workspace,
                            executor,
                        )
                    }
                }),
                queue: ("aclnnAdd", queue),
                inputs: &[left, right],
                outputs: &[out],
                scalar: Some(1.0),
                attribute: 0,
            },
        )
    }

    /// `y[.., d] = gamma[d] · x[.., d] · rstd`, with `rstd[.., 1] = 1 / sqrt(mean(x²) + epsilon)` in f32.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooSmall`] for the workspace, [`Error::WrongContext`], [`Error::Call`].
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
        let fits = x.layout() == y.layout()
            && gamma.layout().dims() == &dims[dims.len() - 1..]
            && scales.len() == dims.len()
            && scales[..dims.len() - 1] == dims[..dims.len() - 1]
            && scales[dims.len() - 1] == 1
            && rstd.layout().dtype() == DataType::F32
            && same_type(&[x, gamma]);
        check("rms norm", fits, &[x, gamma, y, rstd])?;
        let queue = current.runtime().symbols().aclnnRmsNorm;
        self.launch(
            current,
            &Operation {
                plan: ("aclnnRmsNormGetWorkspaceSize", &|symbols, objects, workspace, executor| {
                    let ([x, gamma], [y, rstd]) = (&objects.inputs[..], &objects.outputs[..]) else {
                        unreachable!("made from two inputs and two outputs")
                    };
                    // SAFETY: the objects and the two places for results are alive during the call.
                    unsafe {
                        (symbols.aclnnRmsNormGetWorkspaceSize)(
                            x.raw(),
                            gamma.raw(),
                            epsilon,
                            y.raw(),
                            rstd.raw(),
                            workspace,
                            executor,
                        )
                    }
                }),
                queue: ("aclnnRmsNorm", queue),
                inputs: &[x, gamma],
                outputs: &[y, rstd],
                scalar: None,
                attribute: epsilon.to_bits(),
            },
        )
    }
}

fn same_type(views: &[&View]) -> bool {
    views.windows(2).all(|pair| pair[0].layout().dtype() == pair[1].layout().dtype())
}

fn check(operation: &'static str, fits: bool, views: &[&View]) -> Result<()> {
    if fits {
        return Ok(());
    }
    let shapes: Vec<String> = views.iter().map(|view| format!("{:?}", view.layout())).collect();
    Err(Error::Shape { operation, cause: format!("{} do not fit", shapes.join(", ")) })
}
