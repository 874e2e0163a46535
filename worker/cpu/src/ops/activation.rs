//! Element-wise functions.

/// softplus as torch computes it: the identity above 20.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `x = sqrt(softplus(x))`.
pub(crate) fn sqrt_softplus(x: &mut [f32]) {
    for x in x {
        *x = softplus(*x).sqrt();
    }
}

/// 1 / (1 + e^−x).
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `silu(min(gate, limit)) · clamp(up, −limit, limit)`; the gate has no lower clamp.
pub(crate) fn gated(gate: f32, up: f32, limit: f32) -> f32 {
    let gate = gate.min(limit);
    gate * sigmoid(gate) * up.clamp(-limit, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;
    use crate::level::Level;

    #[test]
    fn swiglu_clamps_the_gate_from_above_only() {
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let expected = [silu(2.0) * -2.0, -100.0 * sigmoid(-100.0), silu(1.0) * 0.5];
        for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
            let mut gate = [100.0, -100.0, 1.0];
            kernels.gated(&mut gate, &[-9.0, 1.0, 0.5], 2.0);
            for (found, expected) in gate.iter().zip(expected) {
                assert!((found - expected).abs() <= 4.0 * f32::EPSILON * expected.abs(), "{gate:?}");
            }
            assert!(gate[1].abs() < 1e-30);
        }
    }

    #[test]
    fn softplus_is_the_identity_far_out() {
        let mut x = [25.0, 0.0];
        sqrt_softplus(&mut x);
        assert_eq!(x[0], 5.0);
        assert!((x[1] - 2f32.ln().sqrt()).abs() < 1e-7);
    }
}
