//! y = W x for weights as stored: a row of W is decoded once and meets every row of x.

use std::cell::RefCell;

use crate::buffer::CpuMatrix;
use crate::kernel::Kernels;
use crate::pool::Pool;
use crate::shared::{SharedSlice, split};

thread_local! {
    /// A decoded weight row, and its products with the rows of x.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
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
    let (group_outputs, x_width) = (outputs / groups, groups * inputs);
    let x = &x[..rows * x_width];
    let y = SharedSlice::new(&mut y[..rows * outputs]);
    split(pool, outputs, rows * outputs * inputs, |range| {
        SCRATCH.with_borrow_mut(|(weights, products)| {
            weights.resize(inputs, 0.0);
            products.resize(rows, 0.0);
            for output in range {
                let row = w.row(output);
                let weights: &[f32] = match row.as_f32() {
                    Some(row) => row,
                    None => {
                        kernels.decode(row, weights);
                        weights
                    }
                };
                let first = output / group_outputs * inputs;
                kernels.dot_all(weights, rows, |row| &x[row * x_width + first..][..inputs], products);
                for (row, &product) in products.iter().enumerate() {
                    // SAFETY: this task alone writes column `output`.
                    unsafe { y.set(row * outputs + output, product) };
                }
            }
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
