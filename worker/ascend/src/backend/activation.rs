//! Functions of each element.

use super::job::Job;
use crate::Result;
use crate::op::Unary;
use crate::tensor::View;

/// From here on softplus is the identity in f32.
const THRESHOLD: f32 = 20.0;

/// `x = sqrt(ln(1 + e^x))`.
pub(super) fn sqrt_softplus(job: &mut Job<'_>, x: &View) -> Result<()> {
    if x.layout().elements() == 0 {
        return Ok(());
    }
    if job.has_softplus() {
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
pub(super) fn swiglu(job: &mut Job<'_>, gate: &View, up: &View, limit: f32) -> Result<()> {
    if gate.layout().elements() == 0 {
        return Ok(());
    }
    let bounded = job.floats(&[up.layout().elements()])?;
    job.clamp(gate, None, Some(limit), gate)?;
    job.clamp(up, Some(-limit), Some(limit), &bounded)?;
    let weighted = job.floats(&[gate.layout().elements()])?;
    job.unary(Unary::Silu, gate, &weighted)?;
    job.multiply(&weighted, &bounded, gate)
}
