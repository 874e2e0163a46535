//! belay-operator
fn main() {}
