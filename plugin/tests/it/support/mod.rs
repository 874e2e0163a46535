//! What the tests share.

pub mod api_server;
pub mod group;
pub mod speaker;
pub mod worker;
