//! Real server processes on loopback, and what the system says about them.

mod machine;
mod proc_status;
mod scrape;
mod server;
mod stack;

pub use machine::{Machine, Others, busy_seconds};
pub use proc_status::{cpu_seconds, resident_bytes};
pub use scrape::Metrics;
pub use server::Server;
pub use stack::{Programs, Stack, StackOptions, free_addresses};
