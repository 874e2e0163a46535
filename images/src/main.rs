//! belay-images
fn main() {}
