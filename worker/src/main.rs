//! belay-worker
fn main() {}
