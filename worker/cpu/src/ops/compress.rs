//! Pooling of tokens into compressed entries.

use belay_backend::Compress;

use crate::backend::CpuBackend;

/// Feeds a sequence's tokens one by one, so that the state and the entries do not depend on how a prompt is cut.
pub(crate) fn compress(
    op: &Compress<'_, CpuBackend>,
    values: &mut [f32],
    gates: &mut [f32],
    out: &mut [f32],
) {
    let (ratio, width) = (op.ratio, op.width);
    let row_width = if op.overlap { 2 * width } else { width };
    // rows of the state before the open window: the last full one
    let open = if op.overlap { ratio } else { 0 };
    let mut closed = 0;
    for (token, row) in op.rows.clone().enumerate() {
        let slot = (op.start + token) % ratio;
        let place = (open + slot) * row_width..(open + slot + 1) * row_width;
        values[place.clone()].copy_from_slice(&op.values.0[row * row_width..][..row_width]);
        let gate_row = &op.gates.0[row * row_width..][..row_width];
        let bias_row = &op.bias.0[slot * row_width..][..row_width];
        for ((gate, new), bias) in gates[place].iter_mut().zip(gate_row).zip(bias_row) {
            *gate = new + bias;
        }
        if slot + 1 < ratio {
            continue;
        }
        let entry = &mut out[closed * width..][..width];
        closed += 1;
        if op.overlap {
            pool_overlapping(values, gates, ratio, entry);
            let (last, full) = (open * row_width, 2 * open * row_width);
            values.copy_within(last..full, 0);
            gates.copy_within(last..full, 0);
        } else {
            pool(ratio, entry, |item, channel| {
                let at = item * width + channel;
                (values[at], gates[at])
            });
        }
    }
}

/// First halves of the previous window's rows and second halves of this one's.
fn pool_overlapping(values: &[f32], gates: &[f32], ratio: usize, entry: &mut [f32]) {
    let width = entry.len();
    pool(2 * ratio, entry, |item, channel| {
        let half = if item < ratio { 0 } else { width };
        let at = item * 2 * width + half + channel;
        (values[at], gates[at])
    });
}

/// Per channel: Σ softmax(gates) · values over the items, in order.
fn pool(items: usize, entry: &mut [f32], item: impl Fn(usize, usize) -> (f32, f32)) {
    for (channel, entry) in entry.iter_mut().enumerate() {
        let max = (0..items).map(|i| item(i, channel).1).fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for i in 0..items {
            let (value, gate) = item(i, channel);
            let weight = (gate - max).exp();
            sum += weight;
            weighted += weight * value;
        }
        *entry = weighted / sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBuffer;

    fn op<'a>(
        values: &'a CpuBuffer,
        gates: &'a CpuBuffer,
        bias: &'a CpuBuffer,
        rows: std::ops::Range<usize>,
        overlap: bool,
    ) -> Compress<'a, CpuBackend> {
        Compress { values, gates, bias, start: rows.start, rows, ratio: 2, overlap, width: 1 }
    }

    #[test]
    fn equal_gates_give_the_mean_of_the_window() {
        let values = CpuBuffer(vec![1.0, 3.0, 10.0, 20.0, 7.0]);
        let (gates, bias) = (CpuBuffer(vec![0.5; 5]), CpuBuffer(vec![0.0; 2]));
        let (mut state, mut open, mut out) = (vec![0.0; 2], vec![f32::NEG_INFINITY; 2], vec![0.0; 2]);
        compress(&op(&values, &gates, &bias, 0..5, false), &mut state, &mut open, &mut out);
        assert_eq!(out, [2.0, 15.0]);
        assert_eq!(state[0], 7.0, "the incomplete window waits");
    }

    #[test]
    fn overlap_pools_first_halves_before_and_second_halves_of_the_window() {
        // rows of (a, b): entry 0 = mean of b0, b1; entry 1 = mean of a0, a1, b2, b3
        let values = CpuBuffer(vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0]);
        let (gates, bias) = (CpuBuffer(vec![0.0; 8]), CpuBuffer(vec![0.0; 4]));
        let (mut state, mut open, mut out) = (vec![0.0; 8], vec![f32::NEG_INFINITY; 8], vec![0.0; 2]);
        compress(&op(&values, &gates, &bias, 0..4, true), &mut state, &mut open, &mut out);
        assert_eq!(out, [15.0, (1.0 + 2.0 + 30.0 + 40.0) / 4.0]);
    }
}
