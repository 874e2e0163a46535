//! Views of device memory: shape, strides, offset, element type; and reading and writing them whole.

use std::num::Wrapping;

use half::{bf16, f16};

use crate::codes;
use crate::dtype::DType;
use crate::failure::{Outcome, fail};
use crate::heap::Heap;

/// A strided view. Strides and offset are in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The element type.
    pub dtype: DType,
    /// The sizes.
    pub shape: Vec<usize>,
    /// The strides.
    pub strides: Vec<i64>,
    /// The first element.
    pub offset: i64,
    /// The address of element 0 of the storage.
    pub address: u64,
    /// The `aclFormat`.
    pub format: i32,
}

/// The strides of a dense row-major shape.
pub fn dense_strides(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as i64;
    }
    strides
}

/// Elements of a shape.
pub fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

impl View {
    /// Elements.
    pub fn count(&self) -> usize {
        count(&self.shape)
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Whether it is dense and row-major.
    pub fn is_dense(&self) -> bool {
        let dense = dense_strides(&self.shape);
        (0..self.rank()).all(|axis| self.shape[axis] == 1 || self.strides[axis] == dense[axis])
    }

    /// An axis that may count from the end.
    pub fn axis(&self, axis: i64) -> Outcome<usize> {
        let rank = self.rank().max(1) as i64;
        if axis < -rank || axis >= rank {
            return fail(codes::NN_PARAM_INVALID, format!("axis {axis} of {} axes", self.rank()));
        }
        Ok(if axis < 0 { axis + rank } else { axis } as usize)
    }

    /// The offsets of the first elements of all rows, a row being what lies along the last axis.
    fn rows(&self) -> Vec<i64> {
        let mut rows = vec![self.offset];
        for (size, stride) in self.shape.iter().zip(&self.strides).take(self.rank().saturating_sub(1)) {
            rows = rows.iter().flat_map(|base| (0..*size as i64).map(move |i| base + i * stride)).collect();
        }
        rows
    }

    /// Elements and stride of a row.
    fn row(&self) -> (usize, i64) {
        (self.shape.last().copied().unwrap_or(1), self.strides.last().copied().unwrap_or(1))
    }

    /// Calls `take` with the bytes of each element in row-major order.
    fn each<const N: usize>(&self, heap: &Heap, mut take: impl FnMut([u8; N])) -> Outcome {
        let (address, len) = self.span()?;
        let bytes = heap.bytes(address, len)?;
        let skipped = (address - self.address) as usize;
        let (size, stride) = self.row();
        let mut chunk = |at: usize, count: usize| {
            for element in bytes[at..at + count * N].as_chunks::<N>().0 {
                take(*element);
            }
        };
        if self.is_dense() {
            chunk(self.offset as usize * N - skipped, self.count());
            return Ok(());
        }
        for row in self.rows() {
            if stride == 1 {
                chunk(row as usize * N - skipped, size);
            } else {
                (0..size as i64).for_each(|i| chunk((row + i * stride) as usize * N - skipped, 1));
            }
        }
        Ok(())
    }

    /// Calls `put` for the bytes of each element in row-major order.
    fn each_mut<const N: usize>(&self, heap: &mut Heap, mut put: impl FnMut(&mut [u8; N])) -> Outcome {
        let (address, len) = self.span()?;
        let bytes = heap.bytes_mut(address, len)?;
        let skipped = (address - self.address) as usize;
        let (size, stride) = self.row();
        let mut chunk = |at: usize, count: usize| {
            bytes[at..at + count * N].as_chunks_mut::<N>().0.iter_mut().for_each(&mut put);
        };
        if self.is_dense() {
            chunk(self.offset as usize * N - skipped, self.count());
            return Ok(());
        }
        for row in self.rows() {
            if stride == 1 {
                chunk(row as usize * N - skipped, size);
            } else {
                (0..size as i64).for_each(|i| chunk((row + i * stride) as usize * N - skipped, 1));
            }
        }
        Ok(())
    }

    /// Calls `take` with the four bits of each element in row-major order; two share a byte, the low half
    /// comes first.
    fn each_half(&self, heap: &Heap, mut take: impl FnMut(u8)) -> Outcome {
        let (address, len) = self.span()?;
        let bytes = heap.bytes(address, len)?;
        let skipped = (address - self.address) as i64;
        let (size, stride) = self.row();
        for row in self.rows() {
            for i in 0..size as i64 {
                let offset = row + i * stride;
                take(bytes[(offset / 2 - skipped) as usize] >> (offset % 2 * 4) & 0xF);
            }
        }
        Ok(())
    }

    /// The bytes from the first to the last element: address and length.
    pub fn span(&self) -> Outcome<(u64, u64)> {
        let (mut low, mut high) = (self.offset, self.offset);
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            let reach = (*size as i64 - 1).max(0) * stride;
            low += reach.min(0);
            high += reach.max(0);
        }
        if low < 0 {
            return fail(
                codes::RT_PARAM_INVALID,
                format!("a view reaches {low} elements before its storage"),
            );
        }
        let bits = self.dtype.bits() as u64;
        let first = low as u64 * bits / 8;
        let end = ((high as u64 + 1) * bits).div_ceil(8);
        Ok((self.address + first, end - first))
    }

    /// Fails when a part of the view is not in one live allocation.
    pub fn check(&self, heap: &Heap) -> Outcome {
        if self.count() == 0 {
            return Ok(());
        }
        let (address, len) = self.span()?;
        heap.bytes(address, len).map(|_| ())
    }

    /// Whether it is a transposed matrix, or a batch of them: dense along the last axis but one.
    fn is_transposed(&self) -> bool {
        let (rank, bits) = (self.rank(), self.dtype.bits());
        rank >= 2 && bits >= 8 && self.strides[rank - 1] != 1 && self.strides[rank - 2] == 1
    }

    /// As `each` for a transposed view, in an order that is kind to the cache; told is each element's number.
    fn each_transposed<const N: usize>(&self, heap: &Heap, mut take: impl FnMut(usize, [u8; N])) -> Outcome {
        const TILE: usize = 16;
        let (address, len) = self.span()?;
        let bytes = heap.bytes(address, len)?;
        let skipped = (address - self.address) as usize;
        let last = self.rank() - 1;
        let (height, width, stride) = (self.shape[last - 1], self.shape[last], self.strides[last]);
        // the first rows of the matrices are those of a view that ends before the last two axes
        for (matrix, first) in self.rows().into_iter().step_by(height.max(1)).enumerate() {
            for tile in (0..width).step_by(TILE) {
                for row in 0..height {
                    for column in tile..width.min(tile + TILE) {
                        let at = (first + row as i64 + column as i64 * stride) as usize * N - skipped;
                        if let Some(element) = bytes[at..].first_chunk() {
                            take((matrix * height + row) * width + column, *element);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All elements in row-major order, each made of its bits by `decode`.
    fn decoded<T: Copy + Default>(&self, heap: &Heap, decode: impl Fn(u64) -> T) -> Outcome<Vec<T>> {
        if self.count() == 0 {
            return Ok(Vec::new());
        }
        if self.is_transposed() {
            let mut values = vec![T::default(); self.count()];
            match self.dtype.bits() {
                8 => self.each_transposed(heap, |at, [byte]| values[at] = decode(byte.into())),
                16 => self.each_transposed(heap, |at, bytes| {
                    values[at] = decode(u16::from_le_bytes(bytes).into());
                }),
                32 => self.each_transposed(heap, |at, bytes| {
                    values[at] = decode(u32::from_le_bytes(bytes).into());
                }),
                _ => self.each_transposed(heap, |at, bytes| values[at] = decode(u64::from_le_bytes(bytes))),
            }?;
            return Ok(values);
        }
        let mut values = Vec::with_capacity(self.count());
        match self.dtype.bits() {
            4 => self.each_half(heap, |bits| values.push(decode(bits.into()))),
            8 => self.each(heap, |[byte]| values.push(decode(byte.into()))),
            16 => self.each(heap, |bytes| values.push(decode(u16::from_le_bytes(bytes).into()))),
            32 => self.each(heap, |bytes| values.push(decode(u32::from_le_bytes(bytes).into()))),
            _ => self.each(heap, |bytes| values.push(decode(u64::from_le_bytes(bytes)))),
        }?;
        Ok(values)
    }

    /// The bits of all elements in row-major order.
    pub fn read(&self, heap: &Heap) -> Outcome<Vec<u64>> {
        self.decoded(heap, |bits| bits)
    }

    /// All elements as floats in row-major order.
    pub fn floats(&self, heap: &Heap) -> Outcome<Vec<f32>> {
        let dtype = self.dtype;
        // each common type has a loop of its own, which the compiler can vectorise
        match dtype {
            DType::F32 => self.decoded(heap, |bits| f32::from_bits(bits as u32)),
            DType::Bf16 => self.decoded(heap, |bits| bf16::from_bits(bits as u16).to_f32()),
            DType::F16 => self.decoded(heap, |bits| f16::from_bits(bits as u16).to_f32()),
            _ => self.decoded(heap, |bits| dtype.decode_float(bits)),
        }
    }

    /// All elements as integers of 32 bits in row-major order, for types that fit. They wrap so that sums
    /// of products, which are known to fit too, need no check for each.
    pub fn small_ints(&self, heap: &Heap) -> Outcome<Vec<Wrapping<i32>>> {
        let dtype = self.dtype;
        match dtype {
            DType::I8 => self.decoded(heap, |bits| Wrapping((bits as i8).into())),
            _ => self.decoded(heap, |bits| Wrapping(dtype.decode_int(bits) as i32)),
        }
    }

    /// Writes the bits of all elements in row-major order.
    pub fn write(&self, heap: &mut Heap, values: &[u64]) -> Outcome {
        self.encode(heap, values, |value| *value)
    }

    /// Writes floats in row-major order, rounded to the type.
    pub fn write_floats(&self, heap: &mut Heap, values: &[f32]) -> Outcome {
        let dtype = self.dtype;
        match dtype {
            DType::F32 => self.encode(heap, values, |value| value.to_bits().into()),
            DType::Bf16 => self.encode(heap, values, |value| bf16::from_f32(*value).to_bits().into()),
            _ => self.encode(heap, values, |value| dtype.encode_float(*value)),
        }
    }

    fn encode<T>(&self, heap: &mut Heap, values: &[T], bits: impl Fn(&T) -> u64) -> Outcome {
        if self.count() == 0 {
            return Ok(());
        }
        let mut values = values.iter();
        // what has no value stays as it is
        match self.dtype.bits() {
            4 => self.write_halves(heap, values.map(bits)),
            8 => self.each_mut(heap, |bytes: &mut [u8; 1]| {
                values.next().into_iter().for_each(|value| *bytes = (bits(value) as u8).to_le_bytes());
            }),
            16 => self.each_mut(heap, |bytes| {
                values.next().into_iter().for_each(|value| *bytes = (bits(value) as u16).to_le_bytes());
            }),
            32 => self.each_mut(heap, |bytes| {
                values.next().into_iter().for_each(|value| *bytes = (bits(value) as u32).to_le_bytes());
            }),
            _ => self.each_mut(heap, |bytes| {
                values.next().into_iter().for_each(|value| *bytes = bits(value).to_le_bytes());
            }),
        }
    }

    fn write_halves(&self, heap: &mut Heap, values: impl Iterator<Item = u64>) -> Outcome {
        let (address, len) = self.span()?;
        let bytes = heap.bytes_mut(address, len)?;
        let skipped = (address - self.address) as i64;
        let (size, stride) = self.row();
        let offsets = self.rows().into_iter().flat_map(|row| (0..size as i64).map(move |i| row + i * stride));
        for (offset, value) in offsets.zip(values) {
            let byte = &mut bytes[(offset / 2 - skipped) as usize];
            let shift = offset % 2 * 4;
            *byte = *byte & !(0xF << shift) | ((value as u8 & 0xF) << shift);
        }
        Ok(())
    }

    /// The part of the view at an index of its first axis.
    pub fn part(&self, index: usize) -> Self {
        let offset = self.offset + index as i64 * self.strides.first().copied().unwrap_or(0);
        let (shape, strides) = (self.shape.iter().skip(1), self.strides.iter().skip(1));
        Self { shape: shape.copied().collect(), strides: strides.copied().collect(), offset, ..self.clone() }
    }
}

/// The shape that two shapes broadcast to.
pub fn broadcast(a: &[usize], b: &[usize]) -> Outcome<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => fail(codes::NN_PARAM_INVALID, format!("{a:?} and {b:?} don't broadcast")),
        })
        .collect()
}

/// For each element of `to` in row-major order, the row-major number of the element of `from` that is
/// broadcast to it.
pub fn broadcast_map(from: &[usize], to: &[usize]) -> Vec<usize> {
    let strides = dense_strides(from);
    let lead = to.len() - from.len();
    let mut numbers = vec![0];
    for (axis, size) in to.iter().enumerate() {
        let step = if axis < lead || from[axis - lead] == 1 { 0 } else { strides[axis - lead] as usize };
        numbers = numbers.iter().flat_map(|base| (0..*size).map(move |i| base + i * step)).collect();
    }
    numbers
}
