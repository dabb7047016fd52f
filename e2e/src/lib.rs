//! Tests of the tree as a whole. It owns no behaviour and nothing may depend on it; start reading
//! in `tests/direction.rs`.
