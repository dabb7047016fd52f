//! The Kubernetes kinds of `cairn.dev/v1alpha1`: what a user writes, what the operator answers.
//!
//! Owns: the schema with its CEL rules and defaults, the status with its conditions' names, the
//! quantities' arithmetic, and the CRD files that the charts ship ([`manifests`]).
//!
//! Must never know: how a cluster is brought to what the spec says, etcd's API, a Kubernetes
//! client. A field is added when it works; nothing here is a promise for later, and a released
//! field is never renamed, retyped or given another default.
//!
//! Start reading in `cluster.rs`, then `status.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cluster;
pub mod manifests;
pub mod quantity;
pub mod status;
pub mod values;

pub use cluster::{EtcdCluster, EtcdClusterSpec};
pub use status::EtcdClusterStatus;

/// The API group of all kinds; also the prefix of the operator's labels and annotations.
pub const GROUP: &str = "cairn.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
