//! Tests of the whole tree, with real etcd beside it and real Kubernetes around it, and what they
//! share: [`Server`] runs one member of either kind, [`Process`] a `cairn` that may not come to
//! serve, [`load::Load`] clients whose answers are judged, [`failpoints`] tells a member where to
//! die, [`powerfs::PowerFs`] is a disk whose power can be cut, [`k8s`] a Kubernetes,
//! [`suite::Suite`] etcd's own tests, [`Helm`] renders charts. Nothing may depend on this crate.
//! Start reading in `tests/direction.rs`, then `tests/differential.rs`. The Go side of tests is in
//! `waltool/`, `bolttool/` and `prototool/`; `go.mod` pins etcd and its tools, `k8s/go.mod`
//! Kubernetes and helm, `suite/go.mod` etcd's tests.

// Support for tests: a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod certificates;
pub mod client;
pub mod etcdctl;
pub mod failpoints;
mod helm;
pub mod k8s;
pub mod load;
pub mod powerfs;
pub mod previous;
pub mod process;
mod server;
pub mod suite;
mod volume;

pub use certificates::{Authority, Issue, KeyFiles, replace};
pub use etcdctl::Etcdctl;
pub use helm::{Helm, Said, root};
pub use process::Process;
pub use server::{Kind, Member, Server, free_port, program, target_folder, tool};
pub use volume::Volume;

/// What the environment sets for a test, such as `CAIRN_SEED`.
///
/// # Panics
/// When it is no number.
pub fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap())
}
