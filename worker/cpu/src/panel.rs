//! Inputs of a linear, laid out as the kernels of its weight read them.

use belay_backend::dtype::{bf16_to_f32, f32_to_bf16};

use crate::kernel::Kernels;
use crate::pool::Pool;
use crate::shared::{SharedSlice, split};

/// Columns that a kernel takes in one go: all block sizes divide it. Rows of a panel are padded to it with zeros.
pub(crate) const CHUNK: usize = 128;

/// Sets of the nearest cache: lines so far apart share one.
const SETS: usize = 64;

/// Distance of rows in sets, so that parts of a few rows lie beside each other.
const SPREAD: usize = 40;

/// One cache line, which is one vector of the widest kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

/// Order of the elements in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As they come.
    Natural,
    /// Element `n·k + q` is the k-th of the q-th part of the chunk: what one shift of packed nibbles brings up is one part.
    Strided(usize),
    /// bf16 made of bytes by interleaving within 16 of them: the low halves of a cache line's four groups, then the high
    /// halves.
    Interleaved,
}

/// What a panel consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) order: Order,
    /// Elements are stored as bf16, not as f32.
    pub(crate) halves: bool,
    /// Elements are rounded to bf16, however they are stored.
    pub(crate) rounded: bool,
}

impl Layout {
    fn lines_per_chunk(self) -> usize {
        if self.halves { CHUNK * 2 / size_of::<Line>() } else { CHUNK * 4 / size_of::<Line>() }
    }
}

/// Rows of activations. Keeps its memory from one use to the next.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    lines: Vec<Line>,
    layout: Option<Layout>,
    cols: usize,
    lines_per_row: usize,
    /// Lines from one row to the next.
    stride: usize,
}

impl Panel {
    /// Takes over `rows` rows of `cols` elements; `row(i)` gives them.
    pub(crate) fn fill<'a>(
        &mut self,
        kernels: Kernels,
        pool: &Pool,
        layout: Layout,
        rows: usize,
        cols: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        self.layout = Some(layout);
        self.cols = cols;
        self.lines_per_row = cols.div_ceil(CHUNK) * layout.lines_per_chunk();
        // rows that are a multiple of 4 KiB apart would share the same few places of the nearest cache
        self.stride = self.lines_per_row + (SPREAD + SETS - self.lines_per_row % SETS) % SETS;
        let lines = rows * self.stride;
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::default());
        }
        let (per_row, stride) = (self.lines_per_row, self.stride);
        let out = SharedSlice::new(&mut self.lines[..lines]);
        split(pool, rows, rows * cols, |range| {
            for i in range {
                let from = row(i);
                assert_eq!(from.len(), cols, "columns of a panel");
                // SAFETY: rows are disjoint, and `split` gives each to one task.
                kernels.pack(layout, from, unsafe { out.part(i * stride..i * stride + per_row) });
            }
        });
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn layout(&self) -> Option<Layout> {
        self.layout
    }

    /// A row with its padding.
    pub(crate) fn row(&self, row: usize) -> &[Line] {
        &self.lines[row * self.stride..][..self.lines_per_row]
    }

    /// A row of f32 in natural order.
    pub(crate) fn plain(&self, row: usize) -> &[f32] {
        &bytemuck::cast_slice(self.row(row))[..self.cols]
    }
}

/// The reference: lays out a row.
pub(crate) fn pack(layout: Layout, from: &[f32], to: &mut [Line]) {
    let round = |value: f32| if layout.rounded { bf16_to_f32(f32_to_bf16(value)) } else { value };
    for (from, to) in from.chunks(CHUNK).zip(to.chunks_exact_mut(layout.lines_per_chunk())) {
        if from.len() < CHUNK {
            to.fill(Line::default());
        }
        if layout.halves {
            place(layout.order, from, bytemuck::cast_slice_mut::<Line, u16>(to), f32_to_bf16);
        } else {
            place(layout.order, from, bytemuck::cast_slice_mut::<Line, f32>(to), round);
        }
    }
}

fn place<T>(order: Order, from: &[f32], to: &mut [T], convert: impl Fn(f32) -> T) {
    match order {
        Order::Natural => from.iter().zip(to).for_each(|(&from, to)| *to = convert(from)),
        Order::Strided(stride) => {
            let part = CHUNK / stride;
            for (k, group) in from.chunks(stride).enumerate() {
                for (q, &value) in group.iter().enumerate() {
                    to[q * part + k] = convert(value);
                }
            }
        }
        Order::Interleaved => {
            for (group, from) in from.chunks(16).enumerate() {
                let (line, group) = (group / 4, group % 4);
                for (i, &value) in from.iter().enumerate() {
                    to[line * 64 + i / 8 * 32 + group * 8 + i % 8] = convert(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    fn packed(kernels: Kernels, order: Order, halves: bool, cols: usize) -> Vec<f32> {
        // whole numbers that bf16 holds
        let values: Vec<f32> = (1..=cols).map(|i| i as f32).collect();
        let mut panel = Panel::default();
        let layout = Layout { order, halves, rounded: halves };
        panel.fill(kernels, &Pool::new(1), layout, 1, cols, |_| &values);
        if halves {
            bytemuck::cast_slice::<Line, u16>(panel.row(0)).iter().map(|&bits| bf16_to_f32(bits)).collect()
        } else {
            bytemuck::cast_slice(panel.row(0)).to_vec()
        }
    }

    #[test]
    fn every_order_has_every_element_once_and_zeros_behind() {
        let scalar = Kernels::new(Level::Scalar).unwrap();
        for order in [Order::Natural, Order::Strided(4), Order::Strided(8), Order::Interleaved] {
            for (halves, cols) in [(true, 128), (false, 128), (true, 70), (false, 131)] {
                let mut found = packed(scalar, order, halves, cols);
                for kernels in Level::ALL.into_iter().filter_map(Kernels::new) {
                    // only these levels have kernels that read halves
                    if !halves || kernels.level() >= Level::Avx512Bf16 {
                        assert_eq!(packed(kernels, order, halves, cols), found, "{}", kernels.level());
                    }
                }
                assert_eq!(found.len(), cols.next_multiple_of(CHUNK));
                found.sort_by(f32::total_cmp);
                let padding = found.len() - cols;
                assert!(found[..padding].iter().all(|&value| value == 0.0), "{order:?}");
                assert!(found[padding..].iter().zip(1..).all(|(&value, i)| value == i as f32), "{order:?}");
            }
        }
    }

    #[test]
    fn orders_are_those_of_the_kernels() {
        let scalar = Kernels::new(Level::Scalar).unwrap();
        let strided = packed(scalar, Order::Strided(4), true, 128);
        assert_eq!((strided[0], strided[1], strided[32]), (1.0, 5.0, 2.0));
        let interleaved = packed(scalar, Order::Interleaved, true, 128);
        assert_eq!(&interleaved[..9], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 17.0]);
        assert_eq!((interleaved[32], interleaved[64]), (9.0, 65.0));
    }
}
