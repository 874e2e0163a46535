//! belay-gateway
fn main() {}
