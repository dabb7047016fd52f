//! The operator: turns `EtcdCluster` objects into clusters that look after themselves.
//!
//! Owns: what of Kubernetes and etcd is looked at ([`observe`]), what is done next ([`plan`], pure
//! and total), how it is done without taking over what is not ours ([`act`], [`desired`]), what is
//! told about it ([`report`]), that only one operator does it ([`lease`]), and none under an older
//! CRD ([`kind`]).
//!
//! Must never know: RocksDB, raft, the server's files. It keeps no truth in memory: killed at any
//! call, the next pass sees what was done and goes on.
//!
//! Start reading in [`reconcile`], then [`plan`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod act;
pub mod desired;
pub mod etcd;
pub mod kind;
pub mod lease;
pub mod names;
pub mod observe;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod report;
pub mod telemetry;

/// What is the same for all clusters of one operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Repository of the server's image, without tag.
    pub server_image: String,
    /// Version that a cluster gets whose spec names none: the operator's own.
    pub version: String,
    /// The Kubernetes cluster's domain in DNS.
    pub cluster_domain: String,
}

/// What may go wrong in a pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("could not {action}: {source}")]
    Api {
        /// What was tried.
        action: String,
        /// What it answered.
        source: Box<kube::Error>,
    },
    /// The API server or a member took too long.
    #[error("could not {0}: no answer in time")]
    Timeout(String),
    /// An object of this name exists and is not ours.
    #[error(
        "{kind} {name} exists and does not belong to this cluster; it was left alone. Delete or \
         rename it, or give the cluster another name"
    )]
    NameConflict {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A member refused or did not answer.
    #[error("could not {action}: {answer}")]
    Etcd {
        /// What was tried.
        action: String,
        /// What they answered.
        answer: String,
    },
    /// The spec holds what no object can be made of.
    #[error("could not make {object} from the spec: {source}")]
    Spec {
        /// What was to be made.
        object: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// The API server serves an older kind than this operator needs.
    #[error(
        "the CustomResourceDefinition {crd} has schema {found} and this operator needs {needed}; it \
         does nothing. Upgrade the CRD first (helm does, unless crds.enabled is false)",
        crd = kind::CRD,
        needed = crds::manifests::SCHEMA
    )]
    OldKind {
        /// Its schema's generation; zero when it names none.
        found: u32,
    },
    /// The API server does not serve the kind.
    #[error(
        "the CustomResourceDefinition {crd} is not there: install the chart's CRDs",
        crd = kind::CRD
    )]
    NoKind,
    /// Another operator may be at work by now.
    #[error("the lease is lost: another operator may be at work")]
    LeaseLost,
}

impl Error {
    /// Whether the object changed between the look and the write: the next pass looks again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if status.code == 409))
    }

    /// One word for metrics and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { .. } if self.is_conflict() => "Conflict",
            Self::Api { .. } => "RequestRefused",
            Self::Timeout(_) => "RequestTimedOut",
            Self::NameConflict { .. } => "NameConflict",
            Self::Etcd { .. } => "EtcdRefused",
            Self::Spec { .. } => "InvalidSpec",
            Self::OldKind { .. } => "OldKind",
            Self::NoKind => "NoKind",
            Self::LeaseLost => "LeaseLost",
        }
    }
}
