use crate::Format;

/// Why a backend refused a weight or failed an operation.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BackendError {
    /// A stored weight has the wrong number of bytes for its shape and format.
    #[error("{part} of a {rows} x {cols} {format} matrix needs {expected} bytes, found {found}")]
    Size {
        /// `data` or `scale`.
        part: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Stored format.
        format: Format,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// A stored weight holds a code that stands for no number.
    #[error("{part} holds a NaN code at byte {at}")]
    NotANumber {
        /// `data` or `scale`.
        part: &'static str,
        /// Offset of the first such byte.
        at: usize,
    },
    /// The device has no room.
    #[error("out of device memory: {bytes} bytes were asked for")]
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: usize,
    },
    /// The device failed.
    #[error("{operation}: {cause}")]
    Device {
        /// What was being done.
        operation: &'static str,
        /// What the device said.
        cause: String,
    },
}

/// Result of a backend operation, unless it names another error.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;
