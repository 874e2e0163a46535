//! Functions of each element.

use super::fused::ComputePath;
use super::job::Job;
use crate::Result;
use crate::op::Unary;
use crate::tensor::View;

/// From here on softplus is the identity in f32.
const THRESHOLD: f32 = 20.0;

/// Elements of a row that the fused SwiGLU gets, at most: it shares its work out by rows.
const WIDEST_ROW: usize = 1024;

/// `x = sqrt(ln(1 + e^x))`.
pub(super) fn sqrt_softplus(job: &mut Job<'_>, path: ComputePath, x: &View) -> Result<()> {
    if x.layout().elements() == 0 {
        return Ok(());
    }
    if path == ComputePath::Fused {
        let out = job.floats(&[x.layout().elements()])?;
        job.softplus(x, THRESHOLD, &out)?;
        return job.unary(Unary::Sqrt, &out, x);
    }
    // softplus(x) = max(x, 0) + ln(1 + y) with y = e^−|x|. Where 1 + y is rounded, ln(v) / (v − 1) · y with v = the
    // rounded sum is exact nevertheless; v is kept above 1, where that factor is 1.
    let dims = [x.layout().elements()];
    let (positive, y, v) = (job.floats(&dims)?, job.floats(&dims)?, job.floats(&dims)?);
    job.clamp(x, Some(0.0), None, &positive)?;
    job.clamp(x, None, Some(0.0), &y)?;
    job.subtract(&y, &positive, &y)?;
    job.unary(Unary::Exp, &y, &y)?;
    job.add_number(&y, 1.0, &v)?;
    job.clamp(&v, Some(1.0 + f32::EPSILON), None, &v)?;
    let logarithm = job.floats(&dims)?;
    job.unary(Unary::Log, &v, &logarithm)?;
    job.add_number(&v, -1.0, &v)?;
    job.divide(&logarithm, &v, &logarithm)?;
    job.multiply(&logarithm, &y, &y)?;
    job.add(&positive, &y, &y)?;
    job.unary(Unary::Sqrt, &y, x)
}

/// `gate = silu(min(gate, limit)) · clamp(up, ±limit)`.
pub(super) fn swiglu(job: &mut Job<'_>, path: ComputePath, gate: &View, up: &View, limit: f32) -> Result<()> {
    let elements = gate.layout().elements();
    if elements == 0 {
        return Ok(());
    }
    if path == ComputePath::Fused {
        // it wants the two side by side in each row. The widths of real experts are multiples of many powers of two; where
        // a row ends means nothing to a function of each element
        let width = (1 << elements.trailing_zeros()).min(WIDEST_ROW);
        let rows = elements / width;
        let both = job.floats(&[rows, 2 * width])?;
        let half = both.restrided(&[(rows, 2 * width), (width, 1)])?;
        let gate = gate.reshaped(&[rows, width])?;
        job.copy(&gate, &half)?;
        job.copy(&up.reshaped(&[rows, width])?, &half.moved(width)?)?;
        return job.clipped_swiglu(&both, limit, &gate);
    }
    let bounded = job.floats(&[up.layout().elements()])?;
    job.clamp(gate, None, Some(limit), gate)?;
    job.clamp(up, Some(-limit), Some(limit), &bounded)?;
    let weighted = job.floats(&[gate.layout().elements()])?;
    job.unary(Unary::Silu, gate, &weighted)?;
    job.multiply(&weighted, &bounded, gate)
}
