use belay_backend::{BackendError, FabricError};

use crate::cache::NoRoom;

/// Why a forward step failed. The states of its segments must then not be used again.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ForwardError {
    /// A segment can never be computed; no state was touched.
    #[error("segment {segment}: {message}")]
    Invalid {
        /// Index in the call.
        segment: usize,
        /// What is wrong.
        message: String,
    },
    /// A state was part of a step that failed; no state was touched.
    #[error("segment {segment}: its state was part of a failed step")]
    Poisoned {
        /// Index in the call.
        segment: usize,
    },
    /// The pages that the segments need are not free; no state was touched.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// An expert could not be reached.
    #[error("layer {layer}: {cause}")]
    Fabric {
        /// Layer index.
        layer: u32,
        /// What the fabric said.
        cause: FabricError,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ForwardError {
    /// The same of a call in which so many segments come first.
    pub(crate) fn behind(self, first: usize) -> Self {
        match self {
            Self::Invalid { segment, message } => Self::Invalid { segment: segment + first, message },
            Self::Poisoned { segment } => Self::Poisoned { segment: segment + first },
            other => other,
        }
    }
}
