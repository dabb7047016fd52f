//! What goes into the driver and what comes out.

use proto::raftpb::{ConfState, Entry, HardState, Message, SnapshotMetadata};

use crate::TermRun;

/// How the node behaves. Ticks are the caller's: 100 ms in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This member; not 0.
    pub id: u64,
    /// Ticks without a leader before an election; the real wait is drawn from this many up to
    /// twice as many, exclusively.
    pub election_ticks: usize,
    /// Ticks between two heartbeats of a leader; below `election_ticks`.
    pub heartbeat_ticks: usize,
    /// Ask before disturbing: an election starts only when a majority would vote.
    pub pre_vote: bool,
    /// Feeds the draws of election timeouts; members need different ones only by their ID.
    pub seed: u64,
    /// Bytes of entries in one append message; one entry always fits.
    pub max_size_per_msg: u64,
    /// Append messages to one follower that are not answered yet.
    pub max_inflight: usize,
    /// Bytes that are proposed and not committed; beyond it proposals are
    /// [`crate::Error::Overloaded`].
    pub max_uncommitted_bytes: u64,
    /// Bytes of entries in one [`Output::apply`]; one entry always fits.
    pub max_committed_bytes_per_output: u64,
    /// Bytes handed out for apply and not reported as applied; beyond it the rest waits.
    pub max_unapplied_bytes: usize,
    /// Bytes of entries on their way to the disk; beyond it a leader's appends are refused.
    pub max_unpersisted_bytes: usize,
    /// Bytes of entries kept in memory for followers and apply. Entries that are not on the disk
    /// yet stay, whatever they weigh.
    pub cache_bytes: usize,
}

impl Config {
    /// etcd's numbers, for the member `id`.
    pub fn new(id: u64) -> Self {
        Self {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            seed: 0,
            max_size_per_msg: 1 << 20,
            max_inflight: 512,
            max_uncommitted_bytes: 64 << 20,
            max_committed_bytes_per_output: 8 << 20,
            max_unapplied_bytes: 64 << 20,
            max_unpersisted_bytes: 128 << 20,
            cache_bytes: 32 << 20,
        }
    }
}

/// What the disk holds at start.
///
/// A new cluster boots from a log that already holds one `ConfChangeAddNode` of term 1 for each
/// member, with `HardState{term 1, commit n}`, nothing applied and an empty `conf_state`: the
/// entries come out for apply like all others. A member that joins boots from the default. Behind a
/// snapshot the log begins with the entry after it, and may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Boot {
    /// The last one written; its commit may lie below `applied`.
    pub hard_state: HardState,
    /// The membership as of `applied`.
    pub conf_state: ConfState,
    /// The last entry in the state machine.
    pub applied: u64,
    /// The newest entries, without a gap up to `last_index`; may be none.
    pub entries: Vec<Entry>,
    /// First entry that the log can still read; 0 and 1 both mean that nothing was dropped.
    pub first_index: u64,
    /// Last entry of the log; `first_index - 1` when it is empty.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// The terms from `first_index - 1` (1 when nothing was dropped) up to where `entries` begin;
    /// see [`crate::term_runs`]. May reach further.
    pub terms: Vec<TermRun>,
}

/// Work for the caller. Everything in one output is independent of each other and may be started
/// at once, in any order; outputs themselves are to be taken in order.
#[derive(Debug, Default, PartialEq)]
pub struct Output {
    /// To be sent now.
    pub send: Vec<Message>,
    /// To be written to the log, in the order of their numbers.
    pub append: Option<Append>,
    /// A snapshot, written and durable, that takes the place of the state machine's content: a step
    /// of apply like an entry, behind all that was handed out before and in front of `apply`.
    /// Answer with [`crate::Driver::applied`], once it can be read; it must be durable before the
    /// log drops anything behind it. After a crash before that, the caller installs it again
    /// before it boots.
    pub install: Option<SnapshotMetadata>,
    /// Committed entries, durable here; each is handed out once. Answer with
    /// [`crate::Driver::applied`].
    pub apply: Vec<Entry>,
    /// Reads that may be served once their index is applied.
    pub reads: Vec<ReadReady>,
    /// Set when leader, role or term changed, and in the first output.
    pub soft: Option<SoftState>,
    /// Entries to be read from the log. Answer with [`crate::Driver::fetched`].
    pub fetch: Option<FetchRequest>,
    /// Peers whose next entry the log no longer holds. Answer with
    /// [`crate::Driver::offer_snapshot`], or with [`crate::Driver::report_snapshot`] when there can
    /// be none; who gets no answer is named again after an election timeout.
    pub needs_snapshot: Vec<u64>,
}

/// One write of the log.
#[derive(Debug, Default, PartialEq)]
pub struct Append {
    /// To be given to [`crate::Driver::persisted`]. Rises, not always by one.
    pub number: u64,
    /// Replace all entries of the log from the first one's index on. May be none.
    pub entries: Vec<Entry>,
    /// The new state, if it changed.
    pub hard_state: Option<HardState>,
    /// A snapshot that replaces the log, before `entries` are written: its next entry is the one
    /// behind the snapshot, however long it was. Comes with a `hard_state`.
    pub snapshot: Option<SnapshotMetadata>,
    /// Whether the write must be durable before `then_send` and `persisted`. Without it nothing of
    /// its own must be, but `then_send` and `persisted` still wait for all writes before it.
    pub must_sync: bool,
    /// To be sent when this write and all before it are durable. [`crate::Driver::persisted`]
    /// must be called before an answer to any of these is stepped.
    pub then_send: Vec<Message>,
}

/// A read whose index a majority confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReady {
    /// The caller's, from [`crate::Driver::read_index`].
    pub ctx: u64,
    /// The read is linearizable once this is applied.
    pub index: u64,
}

/// What the node takes itself for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits for a leader; learners always.
    Follower,
    /// Asks whether an election would succeed.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftState {
    /// The leader, 0 when none is known.
    pub leader: u64,
    /// What this member is.
    pub role: Role,
    /// The current term.
    pub term: u64,
}

/// Entries that have left memory: `lo..hi`, as many as fit into `max_bytes`, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Names the request.
    pub id: u64,
    /// First index.
    pub lo: u64,
    /// One after the last index.
    pub hi: u64,
    /// Bound of the answer.
    pub max_bytes: u64,
}

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: u64,
    /// The leader, 0 when none is known.
    pub leader: u64,
    /// The current term.
    pub term: u64,
    /// What this member is.
    pub role: Role,
    /// Last entry known to be committed.
    pub commit: u64,
    /// Last entry reported as applied.
    pub applied: u64,
    /// Last entry of the log, durable or not.
    pub last_index: u64,
    /// Last entry that is durable here.
    pub persisted: u64,
    /// Whom leadership is being handed to, 0 when to nobody.
    pub transferee: u64,
    /// Whether the disk hangs and this member is silent.
    pub stalled: bool,
    /// Whether this member was removed and does nothing any more.
    pub removed: bool,
    /// All members by ID, this one included. What the others have is known to a leader only.
    pub peers: Vec<PeerStatus>,
}

/// A member as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member.
    pub id: u64,
    /// Last entry that it is known to have; 0 when this member does not lead.
    pub matched: u64,
    /// Whether it has no vote.
    pub is_learner: bool,
    /// Whether it was heard of within the last election timeout.
    pub recent_active: bool,
}
