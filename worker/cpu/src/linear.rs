//! y = W x for weights as stored.

use std::cell::RefCell;

use crate::buffer::CpuMatrix;
use crate::kernel::{BLOCK, Decoded, Kernels};
use crate::panel::Panel;
use crate::pool::Pool;
use crate::shared::{SharedSlice, split};

thread_local! {
    static INPUTS: RefCell<Panel> = RefCell::default();
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Room of a task: decoded weight rows, and their products.
#[derive(Default)]
struct Scratch {
    decoded: Decoded,
    products: Vec<f32>,
}

/// W is `[groups · o, i]`, x `[rows, groups · i]`, y `[rows, groups · o]`.
pub(crate) fn linear(
    kernels: Kernels,
    pool: &Pool,
    w: &CpuMatrix,
    groups: usize,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
) {
    let (outputs, inputs) = (w.rows(), w.cols());
    let group_outputs = outputs / groups;
    let y = SharedSlice::new(&mut y[..rows * outputs]);
    INPUTS.with_borrow_mut(|panel| {
        panel.fill(kernels, pool, kernels.layout(w.format()), rows * groups, inputs, |row| {
            &x[row * inputs..][..inputs]
        });
        let panel = &*panel;
        let stored = w.stored_rows();
        split(pool, outputs, rows * outputs * inputs, |range| {
            SCRATCH.with_borrow_mut(|Scratch { decoded, products }| {
                let mut output = range.start;
                while output < range.end {
                    let group = output / group_outputs;
                    let end = range.end.min(output + BLOCK).min((group + 1) * group_outputs);
                    products.resize((end - output) * rows, 0.0);
                    let at = |row: usize| row * groups + group;
                    stored.block(output..end, |weights| {
                        kernels.row_products(weights, panel, rows, at, decoded, products);
                    });
                    for row in 0..rows {
                        let from = row * outputs;
                        // SAFETY: this task alone writes these columns.
                        let y = unsafe { y.part(from + output..from + end) };
                        for (y, products) in y.iter_mut().zip(products.chunks_exact(rows)) {
                            *y = products[row];
                        }
                    }
                    output = end;
                }
            });
        });
    });
}

/// `out[i, c, :] = table[ids[i], :]` for each copy c.
pub(crate) fn embed(kernels: Kernels, table: &CpuMatrix, ids: &[u32], copies: usize, out: &mut [f32]) {
    let width = table.cols();
    for (&id, rows) in ids.iter().zip(out.chunks_exact_mut(copies * width)) {
        let (first, rest) = rows.split_at_mut(width);
        kernels.decode(table.row(id as usize), first);
        for copy in rest.chunks_exact_mut(width) {
            copy.copy_from_slice(first);
        }
    }
}
