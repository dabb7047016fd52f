//! Tests of the whole tree, with real etcd beside it and real Kubernetes around it, and what they
//! share: [`Server`] runs one member of either kind, [`k8s`] a Kubernetes, [`Helm`] renders charts.
//! Nothing may depend on this crate. Start reading in `tests/direction.rs`, then
//! `tests/differential.rs`. The Go side of tests is in `waltool/` and `prototool/`; `go.mod` pins
//! etcd and its tools, `k8s/go.mod` Kubernetes and helm.

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod helm;
pub mod k8s;
mod server;

pub use helm::{Helm, Said, root};
pub use server::{Kind, Member, Server, target_folder, tool};
