//! Memory of devices and of the host, and copies between them.

mod arena;
mod bump;
mod copy;
mod device;
mod host;

pub use arena::{ALIGNMENT, Arena, Mark};
pub use copy::{Pending, Staging};
pub use device::{DeviceBuffer, Pages, Region};
pub use host::HostBuffer;
