//! Experts of a layer in two passes over their weights: gate, up and their product, then the way back. Each pass is one job
//! of the pool over the rows of all experts together, so that a step waits twice for a layer and not three times for an expert.

use std::cell::RefCell;

use belay_backend::{ExpertRows, Experts, Route};

use crate::backend::CpuBackend;
use crate::buffer::CpuMatrix;
use crate::kernel::{BLOCK, Decoded, Kernels};
use crate::panel::{Layout, Panel};
use crate::pool::Pool;
use crate::shared::{SharedSlice, split};

/// Weight rows whose products are kept until they are worth an element-wise pass.
const ROWS: usize = BLOCK / 2;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Room of a task: decoded weight rows, and products with them.
#[derive(Default)]
struct Scratch {
    decoded: Decoded,
    products: Vec<f32>,
}

/// Memory of a call, which grows to what the largest one needs.
#[derive(Default)]
pub(crate) struct Inside {
    x: Panels,
    hidden: Vec<f32>,
    inner: Panels,
}

/// The same rows in every layout that is asked for; experts of a layer are of one format in all published models.
#[derive(Default)]
struct Panels(Vec<Panel>);

impl Panels {
    fn fill<'a>(
        &mut self,
        kernels: Kernels,
        pool: &Pool,
        layouts: impl Iterator<Item = Layout>,
        (rows, cols): (usize, usize),
        row: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        let mut filled: Vec<Layout> = Vec::new();
        for layout in layouts {
            if !filled.contains(&layout) {
                if self.0.len() == filled.len() {
                    self.0.push(Panel::default());
                }
                self.0[filled.len()].fill(kernels, pool, layout, rows, cols, &row);
                filled.push(layout);
            }
        }
    }

    fn of(&self, kernels: Kernels, w: &CpuMatrix) -> &Panel {
        let layout = Some(kernels.layout(w.format()));
        self.0.iter().find(|panel| panel.layout() == layout).unwrap_or(&self.0[0])
    }
}

pub(crate) fn experts(
    kernels: Kernels,
    pool: &Pool,
    op: &Experts<'_, CpuBackend>,
    inside: &mut Inside,
    y: &mut [f32],
) {
    let Experts { width, inner, experts, .. } = *op;
    let rows: usize = experts.iter().map(|expert| expert.rows.len()).sum();
    if rows == 0 {
        return;
    }
    let Inside { x, hidden, inner: inner_panels } = inside;
    if hidden.len() < rows * inner {
        hidden.resize(rows * inner, 0.0);
    }
    let routes = experts.iter().flat_map(|expert| expert.rows);
    let x_rows = routes.map(|(_, route)| route.row as usize + 1).max().unwrap_or(0);
    let ways_in = experts.iter().flat_map(|expert| [expert.w1, expert.w3]);
    let layout = |w: &CpuMatrix| kernels.layout(w.format());
    x.fill(kernels, pool, ways_in.map(layout), (x_rows, width), |row| &op.x.0[row * width..][..width]);
    gate_and_up(kernels, pool, op, x, &mut hidden[..rows * inner]);
    let ways_out = experts.iter().map(|expert| layout(expert.w2));
    inner_panels.fill(kernels, pool, ways_out, (rows, inner), |row| &hidden[row * inner..][..inner]);
    down(kernels, pool, op, inner_panels, rows, y);
}

/// `hidden[row, :]` = gated products of each expert's rows, one expert's after the other's.
fn gate_and_up(kernels: Kernels, pool: &Pool, op: &Experts<'_, CpuBackend>, x: &Panels, hidden: &mut [f32]) {
    let Experts { width, inner, limit, experts, .. } = *op;
    let work = 2 * hidden.len() * width;
    let hidden = SharedSlice::new(hidden);
    split(pool, experts.len() * inner, work, |range| {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { decoded, products: both_products } = scratch;
            each(range, inner, experts, |expert, first, rows| {
                let count = expert.rows.len();
                let at = |i: usize| expert.rows[i].1.row as usize;
                both_products.resize(BLOCK * count, 0.0);
                let (w1, w3) = (expert.w1, expert.w3);
                let (gates, ups) = (w1.stored_rows(), w3.stored_rows());
                for begin in rows.clone().step_by(ROWS) {
                    let block = begin..rows.end.min(begin + ROWS);
                    let products = block.len() * count;
                    if w1.format() == w3.format() {
                        let mut both = [gates.row(begin); BLOCK];
                        let rows = gates.rows(block.clone()).chain(ups.rows(block.clone()));
                        both.iter_mut().zip(rows).for_each(|(place, row)| *place = row);
                        let (weights, out) = (&both[..2 * block.len()], &mut both_products[..2 * products]);
                        kernels.row_products(weights, x.of(kernels, w1), count, at, decoded, out);
                    } else {
                        let (gate, up) = both_products[..2 * products].split_at_mut(products);
                        for (w, stored, out) in [(w1, gates, gate), (w3, ups, up)] {
                            let panel = x.of(kernels, w);
                            stored.block(block.clone(), |rows| {
                                kernels.row_products(rows, panel, count, at, decoded, out);
                            });
                        }
                    }
                    let (gate, up) = both_products[..2 * products].split_at_mut(products);
                    kernels.gated(gate, up, limit);
                    for i in 0..count {
                        let from = (first + i) * inner;
                        // SAFETY: this task alone writes these columns of this expert's activations.
                        let hidden = unsafe { hidden.part(from + block.start..from + block.end) };
                        for (hidden, gate) in hidden.iter_mut().zip(gate.chunks_exact(count)) {
                            *hidden = gate[i];
                        }
                    }
                }
            });
        });
    });
}

/// `y[place, :] = weight · w2 hidden[row, :]`.
fn down(
    kernels: Kernels,
    pool: &Pool,
    op: &Experts<'_, CpuBackend>,
    hidden: &Panels,
    rows: usize,
    y: &mut [f32],
) {
    let Experts { width, inner, experts, .. } = *op;
    let out = SharedSlice::new(y);
    split(pool, experts.len() * width, rows * width * inner, |range| {
        SCRATCH.with_borrow_mut(|Scratch { decoded, products: room }| {
            each(range, width, experts, |expert, first, rows| {
                let (w2, count) = (expert.w2, expert.rows.len());
                let panel = hidden.of(kernels, w2);
                let at = |i: usize| first + i;
                room.resize(BLOCK * count, 0.0);
                let stored = w2.stored_rows();
                for begin in rows.clone().step_by(BLOCK) {
                    let block = begin..rows.end.min(begin + BLOCK);
                    let products = &mut room[..block.len() * count];
                    stored.block(block.clone(), |rows| {
                        kernels.row_products(rows, panel, count, at, decoded, products);
                    });
                    for (i, (place, Route { weight, .. })) in expert.rows.iter().enumerate() {
                        let from = *place as usize * width;
                        // SAFETY: a place belongs to one row of one expert, and this task alone writes these columns of it.
                        let out = unsafe { out.part(from + block.start..from + block.end) };
                        for (out, products) in out.iter_mut().zip(products.chunks_exact(count)) {
                            *out = products[i] * weight;
                        }
                    }
                }
            });
        });
    });
}

/// Calls `run(expert, number of its first row among all, weight rows)` for a range of the weight rows of all experts.
fn each<'a>(
    range: std::ops::Range<usize>,
    per_expert: usize,
    experts: &[ExpertRows<'a, CpuBackend>],
    mut run: impl FnMut(&ExpertRows<'a, CpuBackend>, usize, std::ops::Range<usize>),
) {
    let mut begin = 0;
    for (index, expert) in experts.iter().enumerate() {
        let first = index * per_expert;
        let own = first.max(range.start)..(first + per_expert).min(range.end);
        if !own.is_empty() && !expert.rows.is_empty() {
            run(expert, begin, own.start - first..own.end - first);
        }
        begin += expert.rows.len();
    }
}
