//! What ends the process: going on would make this member differ from the others.

use std::fmt;

/// Why no further entry can be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// A committed entry cannot be decoded, or says something that no leader proposes.
    Entry {
        /// Its place in the log.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A committed entry asks for something that this version cannot do yet.
    Unsupported {
        /// Its place in the log.
        index: u64,
        /// What it asks for.
        request: &'static str,
    },
    /// The store failed or its rows are damaged.
    Store(String),
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { index, reason } => {
                write!(f, "could not apply committed entry {index}: {reason}")
            }
            Self::Unsupported { index, request } => write!(
                f,
                "could not apply committed entry {index}: this version of cairn has no {request} \
                 yet; run a version that has"
            ),
            Self::Store(cause) => write!(f, "the store failed: {cause}"),
        }
    }
}

impl std::error::Error for Fatal {}

impl From<mvcc::EngineError> for Fatal {
    fn from(error: mvcc::EngineError) -> Self {
        Self::Store(error.to_string())
    }
}
