//! Pooling of tokens into compressed entries.

use belay_backend::Compress;

use crate::arena::CpuArena;
use crate::backend::CpuBackend;

/// Working memory of one entry, by channel.
#[derive(Default)]
pub(crate) struct CompressScratch {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Gates of one item with their bias.
    biased: Vec<f32>,
}

/// Pools the windows that the step completes, then keeps rows for later steps. An entry is computed from the same
/// numbers in the same order wherever its rows come from.
pub(crate) fn compress(
    op: &Compress<'_, CpuBackend>,
    arena: &mut CpuArena,
    scratch: &mut CompressScratch,
    out: &mut [f32],
) {
    let (ratio, width) = (op.ratio, op.width);
    let end = op.start + op.rows.len();
    for (entry, out) in (op.start / ratio..end / ratio).zip(out.chunks_exact_mut(width)) {
        let window = entry * ratio..(entry + 1) * ratio;
        if op.overlap {
            let before = window.start.saturating_sub(ratio)..window.start;
            let items = before.map(|position| (position, 0)).chain(window.map(|position| (position, width)));
            pool(op, arena, scratch, items, out);
        } else {
            pool(op, arena, scratch, window.map(|position| (position, 0)), out);
        }
    }
    let row_width = op.bias.0.len() / ratio;
    for run in op.open.runs(op.keep.max(op.start)..end) {
        let rows: &mut [f32] = bytemuck::cast_slice_mut(arena.run_mut(&op.open, &run));
        for (position, row) in run.rows.zip(rows.chunks_exact_mut(2 * row_width)) {
            let (values, gates) = row.split_at_mut(row_width);
            let from = (op.rows.start + position - op.start) * row_width;
            values.copy_from_slice(&op.values.0[from..][..row_width]);
            let bias = &op.bias.0[position % ratio * row_width..][..row_width];
            for ((gate, new), bias) in gates.iter_mut().zip(&op.gates.0[from..][..row_width]).zip(bias) {
                *gate = new + bias;
            }
        }
    }
}

/// Per channel: Σ softmax(gates) · values over the items, in order. An item is a position and the first channel of its
/// part that takes part.
fn pool(
    op: &Compress<'_, CpuBackend>,
    arena: &CpuArena,
    scratch: &mut CompressScratch,
    items: impl Iterator<Item = (usize, usize)> + Clone,
    entry: &mut [f32],
) {
    let width = entry.len();
    let CompressScratch { max, sum, biased } = scratch;
    max.clear();
    max.resize(width, f32::NEG_INFINITY);
    sum.clear();
    sum.resize(width, 0.0);
    biased.resize(width, 0.0);
    entry.fill(0.0);
    for (position, part) in items.clone() {
        let (_, gates) = item(op, arena, position, part, biased);
        for (max, gate) in max.iter_mut().zip(gates) {
            *max = max.max(*gate);
        }
    }
    for (position, part) in items {
        let (values, gates) = item(op, arena, position, part, biased);
        for ((((entry, sum), max), value), gate) in
            entry.iter_mut().zip(sum.iter_mut()).zip(&*max).zip(values).zip(gates)
        {
            let weight = (gate - max).exp();
            *sum += weight;
            *entry += weight * value;
        }
    }
    for (entry, sum) in entry.iter_mut().zip(&*sum) {
        *entry /= sum;
    }
}

/// Values and gates of one part of a row: kept from an earlier step, or of this one. `biased` has the part's width.
fn item<'a>(
    op: &'a Compress<'_, CpuBackend>,
    arena: &'a CpuArena,
    position: usize,
    part: usize,
    biased: &'a mut [f32],
) -> (&'a [f32], &'a [f32]) {
    let row_width = op.bias.0.len() / op.ratio;
    if position < op.start {
        let (values, gates) = arena.f32_row(&op.open, position).split_at(row_width);
        return (&values[part..][..op.width], &gates[part..][..op.width]);
    }
    let from = (op.rows.start + position - op.start) * row_width + part;
    let bias = &op.bias.0[position % op.ratio * row_width + part..][..op.width];
    for ((biased, gate), bias) in biased.iter_mut().zip(&op.gates.0[from..]).zip(bias) {
        *biased = gate + bias;
    }
    (&op.values.0[from..][..op.width], biased)
}

#[cfg(test)]
mod tests {
    use belay_backend::{PagedRows, RowFormat, RowLayout};

    use super::*;
    use crate::CpuBuffer;

    /// Feeds rows of one channel in pieces of `cut` positions; entries in order.
    fn entries(values: &[f32], gates: &[f32], overlap: bool, cut: usize) -> Vec<f32> {
        let row_width = if overlap { 2 } else { 1 };
        let Ok(mut arena) = CpuArena::new(8, 64) else { panic!("eight pages") };
        let open = PagedRows {
            pages: &[0, 1, 2, 3, 4, 5, 6, 7],
            first_page: 0,
            shift: 0,
            rows_per_block: 4,
            rows_per_page: 2,
            offset: 0,
            layout: RowLayout { format: RowFormat::F32, width: 2 * row_width },
        };
        let (values, gates) = (CpuBuffer(values.to_vec()), CpuBuffer(gates.to_vec()));
        let bias = CpuBuffer(vec![0.0; 2 * row_width]);
        let mut found = Vec::new();
        let tokens = values.0.len() / row_width;
        for start in (0..tokens).step_by(cut) {
            let rows = start..tokens.min(start + cut);
            let mut out = vec![0.0; rows.end / 2 - start / 2];
            let op = Compress {
                values: &values,
                gates: &gates,
                bias: &bias,
                rows: rows.clone(),
                start,
                ratio: 2,
                overlap,
                width: 1,
                open,
                keep: (rows.end / 2 * 2).saturating_sub(if overlap { 2 } else { 0 }),
            };
            compress(&op, &mut arena, &mut CompressScratch::default(), &mut out);
            found.append(&mut out);
        }
        found
    }

    #[test]
    fn equal_gates_give_the_mean_of_the_window() {
        for cut in 1..6 {
            assert_eq!(entries(&[1.0, 3.0, 10.0, 20.0, 7.0], &[0.5; 5], false, cut), [2.0, 15.0], "{cut}");
        }
    }

    #[test]
    fn overlap_pools_first_halves_before_and_second_halves_of_the_window() {
        // rows of (a, b): entry 0 = mean of b0, b1; entry 1 = mean of a0, a1, b2, b3
        let values = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        for cut in 1..5 {
            let found = entries(&values, &[0.0; 8], true, cut);
            assert_eq!(found, [15.0, (1.0 + 2.0 + 30.0 + 40.0) / 4.0], "{cut}");
        }
    }
}
