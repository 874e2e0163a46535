//! Softmax attention of one query head over its window and compressed entries, with a sink per head.

use belay_backend::{Attention, Entries};

use crate::backend::CpuBackend;
use crate::kernel::Kernels;

/// Writes the `[width]` output of one head of query `row` of the step. `logits` is scratch.
///
/// Keys are taken in one order, window by position and then entries by number, so the result does not depend on
/// whether a key lies in the ring or in this step.
pub(crate) fn attend(
    kernels: Kernels,
    op: &Attention<'_, CpuBackend>,
    row: usize,
    head: usize,
    logits: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = op.width;
    let position = op.start + (row - op.rows.start);
    let first = (position + 1).saturating_sub(op.window);
    let in_window = position + 1 - first;
    let (entries, count): (&[f32], usize) = match &op.entries {
        Entries::None => (&[], 0),
        Entries::Visible { entries, ratio } => (&entries.0, (position + 1) / ratio),
        Entries::Selected { entries, chosen, k } => {
            let chosen = &chosen.0[row * k..][..*k];
            (&entries.0, chosen.iter().take_while(|&&entry| entry >= 0).count())
        }
    };
    let key = |i: usize| -> &[f32] {
        if i < in_window {
            let at = first + i;
            return if at >= op.start {
                &op.kv.0[(op.rows.start + at - op.start) * width..][..width]
            } else {
                &op.ring.0[at % op.window * width..][..width]
            };
        }
        let entry = match &op.entries {
            Entries::Selected { chosen, k, .. } => chosen.0[row * k + i - in_window] as usize,
            _ => i - in_window,
        };
        &entries[entry * width..][..width]
    };
    let keys = in_window + count;
    logits.resize(keys, 0.0);
    let scale = (width as f32).sqrt().recip();
    let q = &op.q.0[(row * op.heads + head) * width..][..width];
    kernels.dot_all(q, keys, key, logits);
    let sink = op.sink.0[head];
    let max = logits.iter().map(|logit| logit * scale).fold(sink, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = (*logit * scale - max).exp();
        sum += *logit;
    }
    // the sink takes its share and gives no value
    let normaliser = (sum + (sink - max).exp()).recip();
    out.fill(0.0);
    for (i, weight) in logits.iter().enumerate() {
        kernels.add_scaled(weight * normaliser, key(i), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBuffer;

    /// Window of 2 at position 3: one key from the ring, one of this step, and one visible entry of two.
    #[test]
    fn a_query_sees_its_window_the_complete_entries_and_the_sink() {
        let ring = CpuBuffer(vec![f32::NAN, 5.0]); // slot 0 holds position 2 only after this step
        let (q, kv) = (CpuBuffer(vec![0.0, 0.0]), CpuBuffer(vec![1.0, 2.0]));
        let (entries, sink) = (CpuBuffer(vec![10.0, f32::NAN]), CpuBuffer(vec![0.0]));
        let op = Attention {
            q: &q,
            kv: &kv,
            rows: 0..2,
            start: 2,
            ring: &ring,
            window: 2,
            entries: Entries::Visible { entries: &entries, ratio: 3 },
            sink: &sink,
            heads: 1,
            width: 1,
        };
        let Some(kernels) = Kernels::new(crate::Level::Scalar) else { return };
        let mut out = [0.0];
        // all logits are 0: equal shares, the sink's without a value
        attend(kernels, &op, 0, 0, &mut Vec::new(), &mut out);
        assert_eq!(out, [(5.0f32 + 1.0 + 10.0) / 4.0]);
        attend(kernels, &op, 1, 0, &mut Vec::new(), &mut out);
        assert_eq!(out, [(1.0f32 + 2.0 + 10.0) / 4.0]);
    }
}
