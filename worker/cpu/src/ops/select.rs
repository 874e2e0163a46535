//! The indexer's choice of compressed entries.

use belay_backend::Select;

use crate::backend::CpuBackend;
use crate::kernel::Kernels;

/// Scores of one query against its visible entries.
///
/// `row` is its row in the step, `scores` has one element for each visible entry.
pub(crate) fn scores(
    kernels: Kernels,
    op: &Select<'_, CpuBackend>,
    row: usize,
    dots: &mut Vec<f32>,
    scores: &mut [f32],
) {
    let visible = scores.len();
    dots.resize(visible, 0.0);
    scores.fill(0.0);
    for head in 0..op.heads {
        let q = &op.q.0[(row * op.heads + head) * op.width..][..op.width];
        let weight = op.head_weights.0[row * op.heads + head] * op.scale;
        kernels.dot_all(q, visible, |entry| &op.keys.0[entry * op.width..][..op.width], dots);
        for (score, dot) in scores.iter_mut().zip(dots.iter()) {
            *score += dot.max(0.0) * weight;
        }
    }
}

/// Writes the best entries ascending, −1 after the last. The lower index wins a tie.
pub(crate) fn best(scores: &[f32], order: &mut Vec<u32>, chosen: &mut [i32]) {
    order.clear();
    order.extend(0..scores.len() as u32);
    let k = chosen.len();
    if k < order.len() {
        let by_score = |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
        if k > 0 {
            order.select_nth_unstable_by(k - 1, by_score);
        }
        order.truncate(k);
        order.sort_unstable();
    }
    chosen.fill(-1);
    for (chosen, &entry) in chosen.iter_mut().zip(order.iter()) {
        *chosen = entry as i32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_ascending_and_ties_go_to_the_lower_index() {
        let mut chosen = [0; 3];
        best(&[1.0, 5.0, 1.0, 7.0, 1.0], &mut Vec::new(), &mut chosen);
        assert_eq!(chosen, [0, 1, 3]);
        best(&[2.0, 1.0], &mut Vec::new(), &mut chosen);
        assert_eq!(chosen, [0, 1, -1]);
        best(&[], &mut Vec::new(), &mut chosen);
        assert_eq!(chosen, [-1; 3]);
    }
}
