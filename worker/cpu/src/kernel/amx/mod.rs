//! Products of weight rows with rows of bf16 in AMX tiles.
//!
//! A step is 32 columns. One tile holds them for 16 inputs, another one for 16 weight rows, and one instruction adds all products
//! of the two to 256 sums; 32 inputs and 32 weight rows are taken together. A sum takes its steps in order and knows of nothing
//! else in its tiles. One input goes the same way as many, since other instructions would sum in another order.

mod hardware;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;
mod weights;

use belay_backend::dtype::e8m0_to_f32;
use belay_backend::{FP4_BLOCK, FP8_BLOCK, Format};

pub(super) use hardware::Hardware;

use super::heads;
use super::tile::{self, BF16, FP4, FP8, Room, Row};
use crate::buffer::StoredRow;
use crate::panel::{CHUNK, Line};

/// Inputs, or weight rows, of a tile.
const SIDE: usize = 16;
/// Columns of a tile: a line of bf16.
const STEP: usize = 32;
/// Lines of a step of weights: two tiles.
const WEIGHT_LINES: usize = 2 * SIDE;

/// A group of inputs that are to be read as a tile.
#[derive(Clone, Copy, Default)]
pub(super) struct Inputs {
    /// Address of the first line of the first input, which is exposed.
    first: usize,
    /// Bytes from one input to the next.
    stride: isize,
    /// At most [`SIDE`]; a group without inputs is left out.
    count: usize,
}

/// Sums of two groups of inputs with two tiles of weight rows: for each group, for each tile of weights, a line for each input
/// that has a sum for each weight row.
pub(super) type Sums = [Line; 4 * SIDE];

/// What multiplies.
pub(super) trait Tiles {
    /// Sums of products over some steps. What belongs to inputs that are not there has any value.
    ///
    /// # Safety
    /// Inputs have a line for each step, and weights have [`WEIGHT_LINES`]. The first group has inputs. The processor can do it.
    unsafe fn sums(groups: [Inputs; 2], weights: *const Line, steps: usize, sums: &mut Sums);
}

/// `out[r · count + i]` = product of row r with row `x(i)`. All rows are of one format and have as many columns; `x` gives lines
/// for these in their natural order, padded to whole chunks with zeros.
///
/// # Safety
/// The processor can do what the tiles ask of it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn products<'a, T: Tiles>(
    rows: &[StoredRow<'_>],
    count: usize,
    x: &dyn Fn(usize) -> &'a [Line],
    room: &mut Room,
    out: &mut [f32],
) {
    let cols = rows[0].cols;
    assert!(rows.len() <= tile::BLOCK && out.len() == rows.len() * count);
    assert!(rows.iter().all(|row| row.cols == cols && tile::is_whole(*row)));
    // the scales of a row alone say which way it goes, so it does not matter what is beside it
    for moderate in [true, false] {
        let (mut places, mut chosen) = ([0; tile::BLOCK], 0);
        for (place, row) in rows.iter().enumerate() {
            if tile::are_moderate(std::slice::from_ref(row)) == moderate {
                places[chosen] = place;
                chosen += 1;
            }
        }
        let rows = Chosen { rows, places: &places[..chosen], moderate };
        if chosen > 0 {
            // SAFETY: by this function's promise.
            unsafe {
                match rows.rows[0].format {
                    Format::Fp4 => rows.products::<T, FP4>(count, x, room, out),
                    Format::Fp8 => rows.products::<T, FP8>(count, x, room, out),
                    Format::Bf16 => rows.products::<T, BF16>(count, x, room, out),
                    Format::F32 => unreachable!("weights in f32 need no decoding"),
                }
            }
        }
    }
}

/// Some rows of a block.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    rows: &'a [StoredRow<'a>],
    places: &'a [usize],
    /// Their scales may be put into weights.
    moderate: bool,
}

impl Chosen<'_> {
    /// # Safety
    /// The processor can do what the tiles ask of it. The rows are whole and of format F.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    unsafe fn products<'a, T: Tiles, const F: u8>(
        self,
        count: usize,
        x: &dyn Fn(usize) -> &'a [Line],
        room: &mut Room,
        out: &mut [f32],
    ) {
        let cols = self.rows[0].cols;
        let (chunks, steps) = (cols.div_ceil(CHUNK), cols.div_ceil(STEP));
        let mut stored = [Row { data: std::ptr::null(), scale: std::ptr::null() }; tile::BLOCK];
        for (stored, &place) in stored.iter_mut().zip(self.places) {
            *stored = Row { data: self.rows[place].data.as_ptr(), scale: self.rows[place].scale.as_ptr() };
        }
        let Room { decoded, sums: copies } = room;
        let weights = tile::room(decoded, chunks * CHUNK / STEP * WEIGHT_LINES);
        // SAFETY: the rows have their columns.
        unsafe { weights::pack::<F>(&stored[..self.places.len()], cols, self.moderate, weights) };
        for begin in (0..count).step_by(2 * SIDE) {
            let end = count.min(begin + 2 * SIDE);
            let lines = chunks * CHUNK / STEP;
            let copies = tile::room(copies, (end - begin) * (lines | 1));
            let groups = groups(begin, end, lines, x, copies);
            let mut sums = [Line::default(); 4 * SIDE];
            // SAFETY: inputs and weights have been counted; the rest by this function's promise.
            unsafe {
                if self.moderate {
                    T::sums(groups, weights.as_ptr(), steps, &mut sums);
                    turn(&mut sums);
                } else {
                    self.scaled_sums::<T>(groups, weights, steps, &mut sums);
                }
            }
            for (r, place) in self.places.iter().enumerate() {
                let out = &mut out[place * count..][begin..end];
                for (group, out) in out.chunks_mut(SIDE).enumerate() {
                    let sums = sum_line(&sums, group, r);
                    out.copy_from_slice(&sums[..out.len()]);
                }
            }
        }
    }

    /// Sums of rows whose scales are not in their weights, turned: those of each step are scaled before they are added.
    ///
    /// # Safety
    /// As for [`Tiles::sums`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    unsafe fn scaled_sums<T: Tiles>(
        self,
        groups: [Inputs; 2],
        weights: &[Line],
        steps: usize,
        totals: &mut Sums,
    ) {
        let block = if self.rows[0].format == Format::Fp4 { FP4_BLOCK } else { FP8_BLOCK };
        let used = groups.iter().filter(|group| group.count > 0).count();
        let mut sums = [Line::default(); 4 * SIDE];
        for (step, weights) in weights.chunks_exact(WEIGHT_LINES).enumerate().take(steps) {
            let groups =
                groups.map(|group| Inputs { first: group.first + step * size_of::<Line>(), ..group });
            // SAFETY: the step is there.
            unsafe { T::sums(groups, weights.as_ptr(), 1, &mut sums) };
            turn(&mut sums);
            for group in 0..used {
                for (r, &place) in self.places.iter().enumerate() {
                    let scale = e8m0_to_f32(self.rows[place].scale[step * STEP / block]);
                    let line = &mut totals[line_of(group, r)];
                    let totals = bytemuck::cast_slice_mut::<Line, f32>(std::slice::from_mut(line));
                    for (total, sum) in totals.iter_mut().zip(sum_line(&sums, group, r)) {
                        *total = sum.mul_add(scale, *total);
                    }
                }
            }
        }
    }
}

/// Turns each tile of sums: a line for each weight row that has a sum for each input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn turn(sums: &mut Sums) {
    let mut turned = [Line::default(); SIDE];
    for tile in sums.chunks_exact_mut(SIDE) {
        heads::transpose::<SIDE>(bytemuck::cast_slice(tile), SIDE, bytemuck::cast_slice_mut(&mut turned));
        tile.copy_from_slice(&turned);
    }
}

/// Place of a weight row's sums with a group, once they are turned.
fn line_of(group: usize, row: usize) -> usize {
    (2 * group + row / SIDE) * SIDE + row % SIDE
}

fn sum_line(sums: &Sums, group: usize, row: usize) -> &[f32] {
    bytemuck::cast_slice(std::slice::from_ref(&sums[line_of(group, row)]))
}

/// One or two groups of the inputs from `begin` to `end`. Tiles are read from inputs that lie equally far apart; others are copied.
fn groups<'a>(
    begin: usize,
    end: usize,
    lines: usize,
    x: &dyn Fn(usize) -> &'a [Line],
    copies: &mut [Line],
) -> [Inputs; 2] {
    let mut groups = [Inputs::default(); 2];
    // an odd number of lines, so that copies do not share a few places of the nearest cache
    let copied = lines | 1;
    let places = (begin..end).step_by(SIDE).zip(copies.chunks_mut(SIDE * copied));
    for (group, (begin, copies)) in groups.iter_mut().zip(places) {
        let count = SIDE.min(end - begin);
        let mut addresses = [0; SIDE];
        for (i, address) in addresses[..count].iter_mut().enumerate() {
            let row = x(begin + i);
            assert!(row.len() == lines, "lines of a panel");
            *address = row.as_ptr().expose_provenance();
        }
        let distance = |i: usize| addresses[i + 1].wrapping_sub(addresses[i]).cast_signed();
        let stride = if count > 1 { distance(0) } else { 0 };
        *group = if (1..count).all(|i| distance(i - 1) == stride) {
            Inputs { first: addresses[0], stride, count }
        } else {
            for (i, to) in copies.chunks_exact_mut(copied).enumerate() {
                to[..lines].copy_from_slice(x(begin + i));
            }
            let first = copies.as_mut_ptr().expose_provenance();
            Inputs { first, stride: (copied * size_of::<Line>()).cast_signed(), count }
        };
    }
    groups
}
