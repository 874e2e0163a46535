//! The operations besides the linears, over plain slices. Inner products use the kernels; the rest is the scalar
//! reference itself.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod compress;
pub(crate) mod experts;
pub(crate) mod hyper;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod rounding;
pub(crate) mod rows;
pub(crate) mod select;
