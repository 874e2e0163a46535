//! Communicators and collectives of HCCL.
//!
//! Ranks find each other by a root info that one of them makes and that reaches the others by Belay's own control plane: no
//! rank table is needed in pods. A collective is queued like any other work, and fails like it: by the stream's next wait.
//! All ranks of a communicator have to queue the same collectives in the same order.

mod communicator;
mod root_info;

pub use communicator::{Communicator, CommunicatorOptions};
pub use root_info::RootInfo;
