//! The exported functions of the runtime, of tensor objects and of HCCL.

pub mod device;
pub mod event;
pub mod graph;
pub mod hccl;
pub mod init;
pub mod memory;
pub mod stream;
pub mod tensor;

/// The names of all exported functions of these modules.
pub(crate) const SYMBOL_TABLES: &[&[&str]] = &[
    init::SYMBOLS,
    init::QUERY_SYMBOLS,
    device::SYMBOLS,
    memory::SYMBOLS,
    stream::SYMBOLS,
    event::SYMBOLS,
    graph::SYMBOLS,
    tensor::SYMBOLS,
    hccl::SYMBOLS,
];
