//! Experts of a layer in two passes over their weights: gate, up and their product, then the way back. Each pass is one job
//! of the pool over the rows of all experts together, so that a step waits twice for a layer and not three times for an expert.

use std::cell::RefCell;

use belay_backend::{ExpertRows, Experts, Route};

use super::activation::gated;
use crate::backend::CpuBackend;
use crate::kernel::Kernels;
use crate::linear::row_products;
use crate::pool::Pool;
use crate::shared::{SharedSlice, split};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A decoded weight row, and products with it; of gate and of up.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// `hidden` is room for the inner activations, which grows.
pub(crate) fn experts(
    kernels: Kernels,
    pool: &Pool,
    op: &Experts<'_, CpuBackend>,
    hidden: &mut Vec<f32>,
    y: &mut [f32],
) {
    let Experts { width, inner, limit, experts, .. } = *op;
    let x = &op.x.0;
    let rows: usize = experts.iter().map(|expert| expert.rows.len()).sum();
    if hidden.len() < rows * inner {
        hidden.resize(rows * inner, 0.0);
    }
    let work = rows * width * inner;
    let inside = SharedSlice::new(&mut hidden[..rows * inner]);
    split(pool, experts.len() * inner, 2 * work, |range| {
        SCRATCH.with_borrow_mut(|scratch| {
            each(range, inner, experts, |expert, first, row| {
                let x_of = |at: usize| &x[expert.rows[at].1.row as usize * width..][..width];
                let count = expert.rows.len();
                let Scratch { weights, gate, up } = scratch;
                gate.resize(count, 0.0);
                up.resize(count, 0.0);
                row_products(kernels, expert.w1, row, x_of, weights, gate);
                row_products(kernels, expert.w3, row, x_of, weights, up);
                for (at, (gate, up)) in gate.iter().zip(&*up).enumerate() {
                    // SAFETY: this task alone writes column `row` of this expert's activations.
                    unsafe { inside.set((first + at) * inner + row, gated(*gate, *up, limit)) };
                }
            });
        });
    });
    let hidden = &hidden[..rows * inner];
    let out = SharedSlice::new(y);
    split(pool, experts.len() * width, work, |range| {
        SCRATCH.with_borrow_mut(|scratch| {
            each(range, width, experts, |expert, first, row| {
                let inside_of = |at: usize| &hidden[(first + at) * inner..][..inner];
                let Scratch { weights, gate: products, .. } = scratch;
                products.resize(expert.rows.len(), 0.0);
                row_products(kernels, expert.w2, row, inside_of, weights, products);
                for ((place, Route { weight, .. }), product) in expert.rows.iter().zip(&*products) {
                    // SAFETY: a place belongs to one row of one expert, and this task alone writes column `row` of it.
                    unsafe { out.set(*place as usize * width + row, product * weight) };
                }
            });
        });
    });
}

/// Calls `run(expert, number of its first row among all, weight row)` for a range of the weight rows of all experts.
fn each<'a>(
    range: std::ops::Range<usize>,
    per_expert: usize,
    experts: &[ExpertRows<'a, CpuBackend>],
    mut run: impl FnMut(&ExpertRows<'a, CpuBackend>, usize, usize),
) {
    let mut begin = 0;
    for (index, expert) in experts.iter().enumerate() {
        let own = (index * per_expert).max(range.start)..((index + 1) * per_expert).min(range.end);
        for at in own {
            run(expert, begin, at - index * per_expert);
        }
        begin += expert.rows.len();
    }
}
