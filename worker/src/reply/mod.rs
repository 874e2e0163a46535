//! From the engine's thread to a gRPC stream.
//!
//! A sink must never wait, and a slow reader must neither hold up the engine nor lose tokens. So what the reader has
//! not fetched yet is merged into pieces that wait for it, within bounds: a reader that leaves too much unread loses
//! its request. A reader that went away cancels it.

mod mailbox;
mod outlet;
mod parts;
mod stream;
#[cfg(test)]
mod tests;

pub use parts::Parts;
pub use stream::{Opening, ReplyStream};
