//! CANN behind safe wrappers.
//!
//! [`AscendBackend`] computes the model on an NPU. What it is made of can be used by itself:
//! the libraries are found at run time ([`Library`]), initialised once for a process ([`Runtime`]), and used through a
//! [`Device`], a [`Context`] that a thread is bound to ([`Current`]), [`Stream`]s, [`Event`]s and memory. Operators
//! are queued by a [`Launcher`].
//!
//! Three rules hold everywhere: no wait is without a limit; what queued work uses is kept alive by its stream until
//! the stream was waited for; what is created is released once, on every path.

mod backend;
mod chip;
mod context;
mod device;
mod error;
mod event;
mod ffi;
mod hccl;
mod library;
mod memory;
mod op;
mod rounds;
mod runtime;
mod stream;
mod tensor;

pub use backend::{
    AscendArena, AscendBackend, AscendBuffer, AscendIndices, AscendMatrix, AscendOptions, Choice,
    ComputePath, FusedOperators, Products,
};
pub use chip::{Chip, DispatchAlgorithm, DispatchLimits, Generation};
pub use context::{Context, Current};
pub use device::{Device, DeviceLimits, Memory};
pub use error::{AscendError, Broken, Error, Kind, Result};
pub use event::{Event, EventUse};
pub use hccl::{Communicator, CommunicatorOptions, RootInfo};
pub use library::{
    Family, LIBRARY_VARIABLE, Library, LibraryError, Missing, Place, Report, Resolved, Search, Tried,
};
pub use memory::{ALIGNMENT, Arena, DeviceBuffer, HostBuffer, Mark, Pages, Pending, Region, Staging};
pub use op::{Binary, GroupedProduct, Launcher, Plans, Unary};
pub use rounds::Npus;
pub use runtime::Runtime;
pub use stream::Stream;
pub use tensor::{DataType, IntArray, Layout, MAX_RANK, Scalar, Tensor, TensorList, View};
