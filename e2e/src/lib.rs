//! Tests of the whole tree, with real etcd beside it, and what they share: [`Server`] runs one
//! member of either kind. Nothing may depend on this crate. Start reading in
//! `tests/direction.rs`, then `tests/differential.rs`. The Go side of tests is in `waltool/` and
//! `prototool/`; `go.mod` pins etcd and its tools.

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod certificates;
mod server;

pub use certificates::{Authority, Issue, KeyFiles, replace};
pub use server::{Kind, Member, Server, free_port, program, tool};
