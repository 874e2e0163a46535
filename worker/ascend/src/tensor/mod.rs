//! What operators take: views of device memory, and the library's own objects that describe them.

mod layout;
mod object;

pub use layout::{DataType, Layout, MAX_RANK, View};
pub use object::{IntArray, Scalar, Tensor, TensorList};
