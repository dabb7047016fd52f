//! Tests of the whole tree, with real etcd beside it, and what they share: [`Server`] runs one
//! member of either kind, [`powerfs::PowerFs`] is a disk whose power can be cut. Nothing may depend
//! on this crate. Start reading in
//! `tests/direction.rs`, then `tests/differential.rs`. The Go side of tests is in `waltool/` and
//! `prototool/`; `go.mod` pins etcd and its tools.

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

pub mod powerfs;
mod server;

pub use server::{Kind, Member, Server, tool};
