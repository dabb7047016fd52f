//! cairn-operator.
fn main() {}
