//! Why the store refuses a request, or can go on no longer.

use std::fmt;

use bytes::Bytes;

use crate::engine::EngineError;

/// The first four are answers to a client, in etcd's words. The others end the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The revision lies before the compacted one.
    Compacted,
    /// The revision has not happened yet.
    FutureRevision,
    /// A put names a lease that does not exist.
    LeaseNotFound,
    /// A put keeps the value or the lease of a key that does not exist.
    KeyNotFound,
    /// The engine failed.
    Engine(EngineError),
    /// A row does not hold what the store writes there.
    Damaged(String),
    /// A row that is to be imported is none that etcd writes.
    Foreign {
        /// The bucket.
        bucket: &'static str,
        /// The key of the row.
        key: Bytes,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted => f.write_str("mvcc: required revision has been compacted"),
            Self::FutureRevision => f.write_str("mvcc: required revision is a future revision"),
            Self::LeaseNotFound => f.write_str("requested lease not found"),
            Self::KeyNotFound => f.write_str("key not found"),
            Self::Engine(error) => error.fmt(f),
            Self::Damaged(what) => write!(f, "mvcc: damaged data: {what}"),
            Self::Foreign {
                bucket,
                key,
                reason,
            } => write!(
                f,
                "the row \"{}\" of bucket {bucket} is none that etcd leaves: {reason}; take a new \
                 snapshot, of a member that serves, or compact the store there first",
                key.escape_ascii()
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl Error {
    /// Whether it is an answer to a client; otherwise the process must end.
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Engine(_) | Self::Damaged(_) | Self::Foreign { .. }
        )
    }
}
