//! Which models exist, and which workers serve them.
pub mod fixed;
pub mod kubernetes;
mod objects;
mod table;

pub use table::{Loading, Model, Role, Share, Table, Worker};
