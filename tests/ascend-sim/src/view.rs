//! Views of device memory: shape, strides, offset, element type; and reading and writing them whole.

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

    /// The offsets of all elements in row-major order.
    fn offsets(&self) -> Vec<i64> {
        if self.is_dense() {
            return (self.offset..self.offset + self.count() as i64).collect();
        }
        let mut offsets = vec![self.offset];
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            offsets =
                offsets.iter().flat_map(|base| (0..*size as i64).map(move |i| base + i * stride)).collect();
        }
        offsets
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

    /// The bits of all elements in row-major order.
    pub fn read(&self, heap: &Heap) -> Outcome<Vec<u64>> {
        if self.count() == 0 {
            return Ok(Vec::new());
        }
        let (address, len) = self.span()?;
        let bytes = heap.bytes(address, len)?;
        let bits = self.dtype.bits();
        let skipped = (address - self.address) as i64;
        let element = |offset: i64| {
            if bits == 4 {
                // two to a byte, the low half first
                let byte = bytes[(offset / 2 - skipped) as usize];
                return u64::from(byte >> (offset % 2 * 4) & 0xF);
            }
            let at = (offset * bits as i64 / 8 - skipped) as usize;
            let mut word = [0; 8];
            word[..bits / 8].copy_from_slice(&bytes[at..at + bits / 8]);
            u64::from_le_bytes(word)
        };
        Ok(self.offsets().into_iter().map(element).collect())
    }

    /// Writes all elements in row-major order.
    pub fn write(&self, heap: &mut Heap, values: &[u64]) -> Outcome {
        if self.count() == 0 {
            return Ok(());
        }
        let (address, len) = self.span()?;
        let bytes = heap.bytes_mut(address, len)?;
        let bits = self.dtype.bits();
        let skipped = (address - self.address) as i64;
        for (offset, value) in self.offsets().into_iter().zip(values) {
            if bits == 4 {
                let byte = &mut bytes[(offset / 2 - skipped) as usize];
                let shift = offset % 2 * 4;
                *byte = *byte & !(0xF << shift) | ((*value as u8 & 0xF) << shift);
                continue;
            }
            let at = (offset * bits as i64 / 8 - skipped) as usize;
            bytes[at..at + bits / 8].copy_from_slice(&value.to_le_bytes()[..bits / 8]);
        }
        Ok(())
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
