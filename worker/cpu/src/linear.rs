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
            products.resize(rows, 0.0);
            for output in range {
                let first = output / group_outputs * inputs;
                let x_of = |row: usize| &x[row * x_width + first..][..inputs];
                row_products(kernels, w, output, x_of, weights, products);
                for (row, &product) in products.iter().enumerate() {
                    // SAFETY: this task alone writes column `output`.
                    unsafe { y.set(row * outputs + output, product) };
                }
            }
        });
    });
}

/// Products of a weight row with as many vectors as there are `products`; `weights` is room for the row.
pub(crate) fn row_products<'a>(
    kernels: Kernels,
    w: &CpuMatrix,
    row: usize,
    x: impl Fn(usize) -> &'a [f32],
    weights: &mut Vec<f32>,
    products: &mut [f32],
) {
    let row = w.row(row);
    let weights: &[f32] = match row.as_f32() {
        Some(row) => row,
        None => {
            weights.resize(w.cols(), 0.0);
            kernels.decode(row, weights);
            weights
        }
    };
    kernels.dot_all(weights, products.len(), x, products);
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
