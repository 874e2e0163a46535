use crate::memory::Region;
use crate::{Error, Result};

/// Dimensions that a tensor may have.
pub const MAX_RANK: usize = 8;

/// Bytes to which the address of a tensor has to be aligned.
const ADDRESS_ALIGNMENT: usize = 32;

/// Types of a tensor's elements that Belay uses, with the numbers that the operator libraries give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    /// f32.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// Signed byte.
    I8 = 2,
    /// Signed 32 bits.
    I32 = 3,
    /// Unsigned byte.
    U8 = 4,
    /// Signed 64 bits.
    I64 = 9,
    /// Unsigned 64 bits.
    U64 = 10,
    /// One byte, 0 or 1.
    Bool = 12,
    /// bfloat16.
    Bf16 = 27,
    /// Signed 4 bits, two to a byte, the first in the lower half.
    I4 = 29,
    /// e4m3 without infinities.
    F8E4m3 = 36,
    /// e8m0: a power of two.
    F8E8m0 = 37,
}

impl DataType {
    /// Bytes of an element; for [`Self::I4`], of the byte that it shares with another one.
    pub fn bytes(self) -> usize {
        match self {
            Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8E4m3 | Self::F8E8m0 | Self::I4 => 1,
        }
    }

    /// Bytes of `elements` that lie one after the other; the largest number where they are too many to count.
    pub fn bytes_of(self, elements: usize) -> usize {
        match self {
            Self::I4 => elements.div_ceil(2),
            _ => elements.saturating_mul(self.bytes()),
        }
    }
}

/// Type, dimensions and strides of a tensor, in elements, outermost first, and where in its memory it begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    dtype: DataType,
    rank: u8,
    dims: [i64; MAX_RANK],
    strides: [i64; MAX_RANK],
    /// Elements before the first.
    offset: i64,
}

impl Layout {
    /// Rows one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than [`MAX_RANK`] dimensions, for none, or if the tensor is larger than an address
    /// space.
    pub fn contiguous(dtype: DataType, dims: &[usize]) -> Result<Self> {
        let refused = |cause: &str| Error::Shape { operation: "layout", cause: format!("{dims:?}: {cause}") };
        if dims.is_empty() || dims.len() > MAX_RANK {
            return Err(refused("1 to 8 dimensions are possible"));
        }
        let rank = dims.len() as u8;
        let mut layout = Self { dtype, rank, dims: [0; MAX_RANK], strides: [0; MAX_RANK], offset: 0 };
        let mut stride = 1i64;
        for (axis, dim) in dims.iter().enumerate().rev() {
            let dim = i64::try_from(*dim).map_err(|_| refused("too large"))?;
            layout.dims[axis] = dim;
            layout.strides[axis] = stride;
            stride = stride.checked_mul(dim.max(1)).ok_or_else(|| refused("too large"))?;
        }
        let bytes = usize::try_from(stride).ok().and_then(|elements| elements.checked_mul(dtype.bytes()));
        if bytes.is_none() {
            return Err(refused("too large"));
        }
        Ok(layout)
    }

    /// The same memory with two axes exchanged; how a transposed weight is given to a matrix product.
    ///
    /// # Errors
    /// [`Error::Shape`] for an axis that there is not.
    pub fn swapped(mut self, a: usize, b: usize) -> Result<Self> {
        if a.max(b) >= self.rank() {
            let cause = format!("axes {a} and {b} of {} dimensions", self.rank());
            return Err(Error::Shape { operation: "layout", cause });
        }
        self.dims.swap(a, b);
        self.strides.swap(a, b);
        Ok(self)
    }

    /// The same memory with axes in another order and of other sizes: `axes` gives size and stride of each.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than [`MAX_RANK`] dimensions, for none, or if the tensor is larger than an address
    /// space.
    pub fn strided(dtype: DataType, axes: &[(usize, usize)]) -> Result<Self> {
        let dims: Vec<usize> = axes.iter().map(|(size, _)| *size).collect();
        let mut layout = Self::contiguous(dtype, &dims)?;
        let mut span = 1usize;
        for (stride, (size, wanted)) in layout.strides.iter_mut().zip(axes) {
            let reach = size.saturating_sub(1).checked_mul(*wanted);
            span = reach.and_then(|reach| span.checked_add(reach)).unwrap_or(usize::MAX);
            *stride = i64::try_from(*wanted).unwrap_or(i64::MAX);
        }
        if span > i64::MAX as usize / dtype.bytes() {
            return Err(Error::Shape { operation: "layout", cause: format!("{axes:?}: too large") });
        }
        Ok(layout)
    }

    /// The same tensor, `elements` further on in its memory. Memory itself begins at aligned addresses only.
    #[must_use]
    pub fn at(mut self, elements: usize) -> Self {
        self.offset =
            i64::try_from(elements).ok().and_then(|by| self.offset.checked_add(by)).unwrap_or(i64::MAX);
        self
    }

    /// Elements of the memory before the first of the tensor.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Sizes, outermost first.
    pub fn dims(&self) -> &[i64] {
        &self.dims[..self.rank()]
    }

    /// Elements from one to the next of each axis.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.rank()]
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.dims().iter().product::<i64>() as usize
    }

    /// Whether rows lie one after the other.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.dims().iter().zip(self.strides()).rev().all(|(dim, stride)| {
            let fits = *dim == 1 || *stride == expected;
            expected *= dim.max(&1);
            fits
        })
    }

    /// Elements from the first to behind the last one.
    pub fn span(&self) -> usize {
        if self.elements() == 0 {
            return 0;
        }
        let last: i64 = self.dims().iter().zip(self.strides()).map(|(dim, stride)| (dim - 1) * stride).sum();
        last as usize + 1
    }

    /// Bytes of memory that it needs: those before it and those that it covers.
    pub fn bytes(&self) -> usize {
        let before = if self.elements() == 0 { 0 } else { self.offset as usize };
        self.dtype.bytes_of(before.saturating_add(self.span()))
    }
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}{:?}", self.dtype, self.dims())?;
        if !self.is_contiguous() {
            write!(out, " strides {:?}", self.strides())?;
        }
        if self.offset == 0 { Ok(()) } else { write!(out, " at {}", self.offset) }
    }
}

/// A tensor in device memory: which bytes, and how they are meant.
#[derive(Clone, Debug)]
pub struct View {
    region: Region,
    layout: Layout,
}

impl View {
    /// From the first byte of a region on.
    ///
    /// # Errors
    /// [`Error::TooSmall`] if the region does not hold it; [`Error::Shape`] if its address is not a multiple of 32.
    pub fn new(region: Region, layout: Layout) -> Result<Self> {
        if layout.bytes() > region.len() {
            return Err(Error::TooSmall {
                what: "the memory of a tensor",
                needed: layout.bytes(),
                available: region.len(),
            });
        }
        if !region.address().is_multiple_of(ADDRESS_ALIGNMENT) {
            let cause = format!("{:#x} is no multiple of {ADDRESS_ALIGNMENT}", region.address());
            return Err(Error::Shape { operation: "address of a tensor", cause });
        }
        Ok(Self { region, layout })
    }

    /// The same memory, its elements one after the other in other dimensions. From where it begins on, as many elements
    /// as these dimensions have are meant, however many it had.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooSmall`] if the memory does not hold them.
    pub(crate) fn shaped(&self, dims: &[usize]) -> Result<Self> {
        let layout = Layout::contiguous(self.layout.dtype, dims)?.at(self.layout.offset as usize);
        Self::new(self.region.clone(), layout)
    }

    /// All of its elements, which lie one after the other, in other dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has gaps, or if the dimensions have another number of elements.
    pub(crate) fn reshaped(&self, dims: &[usize]) -> Result<Self> {
        if !self.layout.is_contiguous() || dims.iter().product::<usize>() != self.layout.elements() {
            let cause = format!("{:?} cannot become {dims:?}", self.layout);
            return Err(Error::Shape { operation: "layout", cause });
        }
        self.shaped(dims)
    }

    /// The same memory from where it begins on, with axes of given sizes and strides.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TooSmall`] if the memory does not hold them.
    pub(crate) fn restrided(&self, axes: &[(usize, usize)]) -> Result<Self> {
        let layout = Layout::strided(self.layout.dtype, axes)?.at(self.layout.offset as usize);
        Self::new(self.region.clone(), layout)
    }

    /// The same tensor, `elements` further on in its memory.
    ///
    /// # Errors
    /// [`Error::TooSmall`] if the memory does not hold it.
    pub(crate) fn moved(&self, elements: usize) -> Result<Self> {
        Self::new(self.region.clone(), self.layout.at(elements))
    }

    /// Its memory.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_contiguous_layout_has_row_major_strides() {
        let layout = Layout::contiguous(DataType::Bf16, &[2, 3, 4]).unwrap();
        assert_eq!(layout.strides(), [12, 4, 1]);
        assert_eq!([layout.elements(), layout.span(), layout.bytes()], [24, 24, 48]);
        assert!(layout.is_contiguous());
        assert_eq!(format!("{layout:?}"), "Bf16[2, 3, 4]");
    }

    #[test]
    fn a_swapped_layout_covers_the_same_memory() {
        let layout = Layout::contiguous(DataType::F32, &[5, 7]).unwrap().swapped(0, 1).unwrap();
        assert_eq!((layout.dims(), layout.strides(), layout.span()), (&[7, 5][..], &[1, 7][..], 35));
        assert!(!layout.is_contiguous());
        assert!(layout.swapped(0, 2).is_err());
    }

    #[test]
    fn a_part_of_a_memory_has_strides_and_a_beginning() {
        let layout = Layout::strided(DataType::F32, &[(3, 10), (4, 1)]).unwrap().at(6);
        assert_eq!((layout.span(), layout.bytes(), layout.elements()), (24, 4 * 30, 12));
        assert_eq!(format!("{layout:?}"), "F32[3, 4] strides [10, 1] at 6");
        // one row, repeated without memory of its own
        let layout = Layout::strided(DataType::F32, &[(5, 0), (4, 1)]).unwrap();
        assert_eq!((layout.span(), layout.elements()), (4, 20));
        assert!(Layout::strided(DataType::F32, &[(3, usize::MAX)]).is_err());
    }

    #[test]
    fn what_no_tensor_can_be_is_refused() {
        for dims in [&[][..], &[1; 9], &[usize::MAX], &[1 << 40, 1 << 40]] {
            assert!(matches!(Layout::contiguous(DataType::F32, dims), Err(Error::Shape { .. })), "{dims:?}");
        }
        assert!(Layout::contiguous(DataType::I64, &[1 << 31, 1 << 30]).is_err(), "2^64 bytes");
        assert_eq!(Layout::contiguous(DataType::F32, &[0, 3]).unwrap().bytes(), 0);
    }

    #[test]
    fn two_elements_of_4_bits_share_a_byte() {
        for (dims, bytes) in [([3, 8], 12), ([3, 3], 5), ([0, 3], 0)] {
            assert_eq!(Layout::contiguous(DataType::I4, &dims).unwrap().bytes(), bytes, "{dims:?}");
        }
    }

    proptest! {
        #[test]
        fn any_order_of_the_axes_has_the_same_span(
            dims in proptest::collection::vec(1usize..6, 1..5),
            swaps in proptest::collection::vec((0usize..5, 0usize..5), 0..6),
        ) {
            let mut layout = Layout::contiguous(DataType::F32, &dims).unwrap();
            for (a, b) in swaps {
                layout = layout.swapped(a % dims.len(), b % dims.len()).unwrap();
            }
            prop_assert_eq!(layout.span(), dims.iter().product::<usize>());
            prop_assert_eq!(layout.elements(), layout.span());
        }
    }
}
