//! What can go wrong, in words an operator can act on.

use std::io;

/// How much of a key a message shows.
const SHOWN_BYTES: usize = 40;

/// Why a file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("bolt: cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Neither meta page is valid.
    #[error(
        "bolt: this is no bbolt file, or both of its meta pages are damaged ({0}). Check that the \
         file is etcd's member/snap/db or a snapshot, or use another copy of it"
    )]
    NoMeta(String),
    /// The file ends before its last page.
    #[error(
        "bolt: the file is cut off: its meta page counts {needed} bytes, it has {found}. Copy it \
         again, or take a new snapshot"
    )]
    Truncated {
        /// Bytes that the meta page counts.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A page that no writer of such files leaves behind.
    #[error(
        "bolt: page {page} is damaged: {problem}. Use another copy of the file, or take a new \
         snapshot from a member that is well"
    )]
    Damaged {
        /// Number of the page.
        page: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is whole, but holds what this crate does not take.
    #[error("bolt: {0}. etcd writes no such file: check where it is from")]
    Unsupported(String),
    /// A bucket or row that such a file cannot hold, or that is not in order. Nothing of it was
    /// written.
    #[error("bolt: refused: {0}")]
    Refused(String),
    /// The second pass differs from the first; the file that was begun is of no use.
    #[error("bolt: the rows are not those that were planned: {0}. Begin anew with the first pass")]
    PlanDiffers(String),
    /// An earlier call failed; the file that was begun is of no use.
    #[error("bolt: an earlier write failed. Begin anew with the first pass")]
    Failed,
}

impl Error {
    /// For `map_err`: an I/O error with its action.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { action, source }
    }

    pub(crate) fn damaged(page: u64, problem: impl Into<String>) -> Error {
        Error::Damaged {
            page,
            problem: problem.into(),
        }
    }
}

/// A key as messages show it.
pub(crate) fn shown(key: &[u8]) -> String {
    match key.get(..SHOWN_BYTES) {
        Some(begin) if key.len() > SHOWN_BYTES => {
            format!(
                "{:?}.. ({} bytes)",
                begin.escape_ascii().to_string(),
                key.len()
            )
        }
        _ => format!("{:?}", key.escape_ascii().to_string()),
    }
}
