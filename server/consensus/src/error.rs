//! What the driver refuses, and why.

/// Why an input was not taken.
///
/// All but those that [`Error::is_fatal`] names leave the node as it was; a refused message counts
/// as lost on the way, which raft copes with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no leader to propose to.
    #[error("raft: no leader")]
    NoLeader,
    /// Leadership is being handed over; proposals wait for the next leader.
    #[error("raft: leadership is being transferred")]
    Transferring,
    /// Too many bytes are proposed and not committed yet.
    #[error("raft: too many uncommitted bytes")]
    Overloaded,
    /// An earlier change of the membership is not applied yet; only one goes at a time.
    #[error("raft: another membership change is not applied yet")]
    ConfChangePending,
    /// The disk has not finished a write for an election timeout, so this member is silent.
    #[error("raft: the log's disk does not answer")]
    Stalled,
    /// This member was removed from the cluster.
    #[error("raft: this member was removed")]
    Removed,
    /// A message or a proposal that raft or etcd could not take.
    #[error("raft: refused from member {from:x}: {problem}")]
    Malformed {
        /// The sender; this member for its own proposals.
        from: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The sender is no member that this one knows, and only members may send this.
    #[error("raft: {0:x} is not a member")]
    UnknownPeer(u64),
    /// The sender was removed from the cluster.
    #[error("raft: member {0:x} was removed")]
    RemovedPeer(u64),
    /// A snapshot came while earlier ones are yet to be applied.
    #[error("raft: earlier snapshots are still being installed")]
    Installing,
    /// A snapshot for a member was not sent.
    #[error("raft: a snapshot for member {to:x} was not sent: {problem}")]
    SnapshotUnfit {
        /// Whom it was for.
        to: u64,
        /// Why not.
        problem: &'static str,
    },
    /// Too much is received and not on the disk yet.
    #[error("raft: too many entries wait for the disk")]
    DiskBehind,
    /// The leader holds this member to have entries that it lost.
    #[error(
        "raft: the log of this member ends at index {last_index}, but the leader {from:x} knows it \
         to hold index {commit}: acknowledged entries were lost. Remove the member from the \
         cluster, delete its data directory and add it again"
    )]
    LogLost {
        /// The leader.
        from: u64,
        /// What the leader knows to be acknowledged.
        commit: u64,
        /// Where the log ends.
        last_index: u64,
    },
    /// The leader's log differs from this member's in what is committed.
    #[error(
        "raft: the leader {from:x} has another entry at index {index}, which is committed here: \
         this member does not belong to that cluster, or lost data"
    )]
    Diverged {
        /// The leader.
        from: u64,
        /// The first index that differs.
        index: u64,
    },
    /// What the disk holds fits together with no state that raft can be in.
    #[error("raft: cannot start: {0}")]
    Boot(String),
    /// The log gave back other entries than were written to it.
    #[error("raft: the log's entries at index {0} are not those that were written")]
    LogChanged(u64),
    /// A committed membership change that raft cannot carry out.
    #[error("raft: cannot change the membership: {0}")]
    ConfChange(String),
}

impl Error {
    /// Whether the process must end: going on would lose or fork data.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Error::LogLost { .. }
                | Error::Diverged { .. }
                | Error::Boot(_)
                | Error::LogChanged(_)
                | Error::ConfChange(_)
        )
    }
}
