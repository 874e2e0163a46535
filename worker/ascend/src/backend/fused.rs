//! Fused operators by choice. At start each one is tried on a small input and compared with the composed path, which works
//! everywhere; one that is missing, fails or computes something else is not used, and the reason is kept.

use super::activation;
use super::job::{Job, Queue, bytes_of_mut};
use crate::library::Operators;
use crate::{Broken, Current, Result};

/// Whether fused operators may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FusedOperators {
    /// Each that does at start what the composed path does.
    #[default]
    Checked,
    /// None, and none is tried: for a chip that the try itself would break.
    Never,
}

/// How an operation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputePath {
    /// By one operator of the library.
    Fused,
    /// By several operators that every supported chip and CANN has.
    Composed,
}

impl std::fmt::Display for ComputePath {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Fused => "fused",
            Self::Composed => "composed",
        })
    }
}

/// What was chosen for an operator, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Symbol of the fused operator.
    pub operator: &'static str,
    /// How its operation is computed.
    pub path: ComputePath,
    /// The reason, for people.
    pub why: String,
}

/// The path of each operation that has two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paths {
    pub(super) sqrt_softplus: ComputePath,
    pub(super) swiglu: ComputePath,
}

impl Default for Paths {
    /// Composed.
    fn default() -> Self {
        Self { sqrt_softplus: ComputePath::Composed, swiglu: ComputePath::Composed }
    }
}

/// An operator that may be there.
struct Candidate {
    operator: &'static str,
    is_there: fn(&Operators) -> bool,
    /// Computes a small input in one of the two ways.
    sample: fn(&mut Job<'_>, ComputePath) -> Result<Vec<f32>>,
    path: fn(&mut Paths) -> &mut ComputePath,
}

static CANDIDATES: [Candidate; 2] = [
    Candidate {
        operator: "aclnnSoftplus",
        is_there: |operators| operators.Softplus.is_some(),
        sample: sample_of_softplus,
        path: |paths| &mut paths.sqrt_softplus,
    },
    Candidate {
        operator: "aclnnClippedSwiglu",
        is_there: |operators| operators.ClippedSwiglu.is_some(),
        sample: sample_of_swiglu,
        path: |paths| &mut paths.swiglu,
    },
];

/// Chooses for every candidate. Never fails: what does not work is not used.
pub(super) fn choose(
    current: &Current,
    queue: &mut Queue,
    limit: std::time::Duration,
    wanted: FusedOperators,
) -> (Paths, Vec<Choice>) {
    let mut paths = Paths::default();
    let choices = CANDIDATES
        .iter()
        .map(|candidate| {
            let checked = match wanted {
                FusedOperators::Checked => check(current, queue, limit, candidate),
                FusedOperators::Never => Err("fused operators are switched off".to_owned()),
            };
            let (path, why) = match checked {
                Ok(()) => (ComputePath::Fused, "computes what the composed path does".to_owned()),
                Err(why) => (ComputePath::Composed, why),
            };
            tracing::info!(operator = candidate.operator, %path, why, "chose how to compute");
            *(candidate.path)(&mut paths) = path;
            Choice { operator: candidate.operator, path, why }
        })
        .collect();
    (paths, choices)
}

/// Says why an operator cannot be used.
fn check(
    current: &Current,
    queue: &mut Queue,
    limit: std::time::Duration,
    candidate: &Candidate,
) -> Result<(), String> {
    if !(candidate.is_there)(&current.runtime().symbols().operators) {
        return Err("this cann does not have it".to_owned());
    }
    let mut compute = |path| {
        let mark = queue.mark();
        let found = (candidate.sample)(&mut Job::new(current, queue, limit), path);
        queue.set_back(mark);
        if let Err(error) = &found
            && error.broken() != Broken::Call
            && let Err(error) = queue.abort(current)
        {
            tracing::warn!(operator = candidate.operator, %error, "the stream of a check cannot be aborted");
        }
        found
    };
    let fused = compute(ComputePath::Fused).map_err(|error| error.to_string())?;
    let composed = compute(ComputePath::Composed)
        .map_err(|error| format!("the path to compare it with failed: {error}"))?;
    agree(&fused, &composed)
}

/// Says where two results differ by more than rounding in f32 explains.
fn agree(fused: &[f32], composed: &[f32]) -> Result<(), String> {
    if fused.len() != composed.len() {
        return Err(format!("{} results and not {}", fused.len(), composed.len()));
    }
    let is_close =
        |(fused, composed): &(&f32, &f32)| (*fused - *composed).abs() <= 1e-5 * composed.abs().max(1.0);
    match fused.iter().zip(composed).find(|pair| !is_close(pair)) {
        Some((fused, composed)) => {
            Err(format!("computes {fused} where the composed path computes {composed}"))
        }
        None => Ok(()),
    }
}

/// `count` numbers from `from` to `to`.
fn between(from: f32, to: f32, count: usize) -> Vec<f32> {
    (0..count).map(|at| from + (to - from) * at as f32 / (count - 1) as f32).collect()
}

fn read(job: &mut Job<'_>, view: &crate::tensor::View) -> Result<Vec<f32>> {
    let mut found = vec![0.0; view.layout().elements()];
    job.read(view.region(), bytes_of_mut(&mut found))?;
    Ok(found)
}

fn sample_of_softplus(job: &mut Job<'_>, path: ComputePath) -> Result<Vec<f32>> {
    // far below, ln(1 + e^x) in f32 is all rounding, and no router's weight
    let x = job.f32s(&[192], &between(-8.0, 30.0, 192))?;
    activation::sqrt_softplus(job, path, &x)?;
    read(job, &x)
}

fn sample_of_swiglu(job: &mut Job<'_>, path: ComputePath) -> Result<Vec<f32>> {
    // beyond the limit on both sides, and not in the same order
    let (gate, up) =
        (job.f32s(&[192], &between(-15.0, 15.0, 192))?, job.f32s(&[192], &between(12.0, -13.0, 192))?);
    activation::swiglu(job, path, &gate, &up, 10.0)?;
    read(job, &gate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_agree_up_to_rounding() {
        assert_eq!(agree(&[1.0, 300.001, 0.0], &[1.000_005, 300.0, 0.000_005]), Ok(()));
        let differs = agree(&[1.0, 2.0], &[1.0, 2.01]).unwrap_err();
        assert_eq!(differs, "computes 2 where the composed path computes 2.01");
        assert!(agree(&[f32::NAN], &[1.0]).is_err() && agree(&[1.0], &[f32::NAN]).is_err());
        assert_eq!(agree(&[], &[1.0]), Err("0 results and not 1".to_owned()));
    }

    #[test]
    fn samples_reach_both_ends() {
        let sample = between(-8.0, 30.0, 192);
        assert_eq!((sample[0], sample[191], sample.len()), (-8.0, 30.0, 192));
    }
}
