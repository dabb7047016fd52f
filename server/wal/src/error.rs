//! What can go wrong, in words an operator can act on.

use std::{io, path::PathBuf};

/// Why the log cannot be created, opened, written or read.
///
/// An error from appending or syncing is final: what is on the disk is then unknown, so the
/// process must end and start again from what the disk holds.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("wal: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// `create` found a log that is already there.
    #[error("wal: {} already holds a log", .0.display())]
    Exists(PathBuf),
    /// The directory holds no segment.
    #[error("wal: file not found: {} holds no segment", .0.display())]
    NotFound(PathBuf),
    /// Bytes that are no torn tail and do not check out.
    #[error(
        "wal: {} is damaged at byte {offset}: {problem}. This is not a write that a power cut \
         tore: acknowledged data may be lost, so the member does not start. Restore the file from \
         a copy of this member's disk, or remove the member from the cluster, delete its data \
         directory and add it again (or restore a snapshot if it is the only member)", path.display()
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where the bad record begins.
        offset: u64,
        /// What does not check out.
        problem: String,
    },
    /// Segments are missing or do not follow each other.
    #[error(
        "wal: the log in {} has a hole: {problem}. Put the missing segment back, or remove the \
         member from the cluster, delete its data directory and add it again", path.display()
    )]
    Gap {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// Segments name different members.
    #[error("wal: conflicting metadata found in {}", .0.display())]
    MetadataConflict(PathBuf),
    /// The log does not continue the state that it is opened for: it begins behind it.
    #[error(
        "wal: snapshot not found: the state on this disk reaches to entry {at_most}, and the log in \
         {} cannot be read from there on: it begins with entry {first}. Put the state or the \
         snapshot file back that belongs to this log, or remove the member from the cluster, \
         delete its data directory and add it again", path.display()
    )]
    SnapshotNotFound {
        /// The directory.
        path: PathBuf,
        /// What the log was to be opened for.
        at_most: u64,
        /// The oldest entry from which on the log has no gap.
        first: u64,
    },
    /// The caller asked for something that would break the log.
    #[error("wal: refused: {0}")]
    Refused(String),
    /// Entries that the log does not hold yet.
    #[error("wal: entries above {last_index} are not in the log")]
    Unavailable {
        /// Last index held.
        last_index: u64,
    },
    /// An earlier write failed.
    #[error("wal: an earlier write failed, the process must restart")]
    Poisoned,
}

impl Error {
    /// For `map_err`: an I/O error with its action and path.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}
