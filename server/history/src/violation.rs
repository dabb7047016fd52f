//! What may be wrong with a history.

use thiserror::Error;

/// The first thing found that no etcd may do. Operations are given as they were recorded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// The log of events contradicts itself, or lacks a revision.
    #[error("the log of events is broken at revision {revision}: {problem}")]
    BrokenLog {
        /// Where.
        revision: i64,
        /// How.
        problem: String,
    },
    /// A write was acknowledged, and at its revision stands something else or nothing.
    #[error("acknowledged and not there: {operation}; the log has at its revision {found}")]
    LostWrite {
        /// The write.
        operation: String,
        /// What is there instead.
        found: String,
    },
    /// Two writes were told the same revision.
    #[error("revision {revision} was given to two writes: {first}, and {second}")]
    SharedRevision {
        /// The revision.
        revision: i64,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// An answer is not what the state at its revision gives.
    #[error("wrong answer to {operation}: at its revision it is {expected}")]
    WrongAnswer {
        /// The operation with its answer.
        operation: String,
        /// What the answer should be.
        expected: String,
    },
    /// An answer names a revision that never was.
    #[error("an answer from revision {revision}, and the last one is {last}: {operation}")]
    NeverWas {
        /// The operation with its answer.
        operation: String,
        /// Its revision.
        revision: i64,
        /// The last revision of the log.
        last: i64,
    },
    /// A linearizable operation saw a state older than what was known before it began.
    #[error("stale: revision {known} was known before {operation} began")]
    StaleRead {
        /// The operation with its answer.
        operation: String,
        /// The revision known before.
        known: i64,
    },
    /// A write came before one that was acknowledged before it began.
    #[error("reordered: a write of revision {known} was acknowledged before {operation} began")]
    ReorderedWrite {
        /// The write.
        operation: String,
        /// The revision of the earlier one.
        known: i64,
    },
    /// A write could be seen before it was asked for.
    #[error("seen before it was asked for: revision {known} was known before {operation} began")]
    VisibleEarly {
        /// The write.
        operation: String,
        /// The revision known before.
        known: i64,
    },
    /// Serializable reads of one member went back in time.
    #[error("member {member} went back in time from revision {known}: {operation}")]
    BackInTime {
        /// The member.
        member: u64,
        /// What it had shown before.
        known: i64,
        /// The operation with its answer.
        operation: String,
    },
    /// A change that nobody asked for, or more often than it was asked for.
    #[error("nobody asked for what happened at revision {revision}: {events}")]
    InventedWrite {
        /// The revision.
        revision: i64,
        /// Its events.
        events: String,
    },
    /// A change whose client was told that it is not done.
    #[error("refused, and done at revision {revision}: {operation}")]
    RefusedWriteApplied {
        /// The revision.
        revision: i64,
        /// The write.
        operation: String,
    },
    /// The keys of a lease went before its time.
    #[error("lease {lease} ended early, at revision {revision}: {why}")]
    EarlyExpiry {
        /// The lease.
        lease: i64,
        /// The revision.
        revision: i64,
        /// How early.
        why: String,
    },
    /// A revision was said to be compacted or in the future, and was not.
    #[error("refused without a reason: {operation}")]
    FalseRefusal {
        /// The operation.
        operation: String,
    },
    /// A read of a revision that was compacted before it began was answered.
    #[error("answered although compacted at {compacted}: {operation}")]
    ReadOfCompacted {
        /// The operation.
        operation: String,
        /// The revision of the compaction.
        compacted: i64,
    },
    /// No order of the operations on a key explains their answers.
    #[error(
        "no order explains the {operations} operations on key {key}; the longest fails at {at}"
    )]
    NotLinearizable {
        /// The key.
        key: String,
        /// How many there are.
        operations: usize,
        /// The first operation that no order gets past.
        at: String,
    },
    /// The search for an order was given up.
    #[error("undecided: the operations on key {key} overlap too much")]
    Undecided {
        /// The key.
        key: String,
    },
    /// The search by keys was given operations that it knows nothing of.
    #[error("the search by keys cannot judge {operation}")]
    Unsuited {
        /// The operation.
        operation: String,
    },
    /// A watcher was told an event that is not in the log.
    #[error("watcher {watcher} was told what did not happen: {event}; the log has {found}")]
    WatchWrongEvent {
        /// Its place among the records.
        watcher: usize,
        /// The event.
        event: String,
        /// What happened.
        found: String,
    },
    /// A watcher was told an event that is not of its keys or from before its beginning.
    #[error("watcher {watcher} did not ask for {event}")]
    WatchUnwanted {
        /// Its place among the records.
        watcher: usize,
        /// The event.
        event: String,
    },
    /// A watcher was told an event twice.
    #[error("watcher {watcher} was told twice: {event}")]
    WatchDuplicate {
        /// Its place among the records.
        watcher: usize,
        /// The event.
        event: String,
    },
    /// A watcher was told events in another order than they happened in.
    #[error("watcher {watcher} was told out of order: {event} before revision {before}")]
    WatchDisorder {
        /// Its place among the records.
        watcher: usize,
        /// The event that came too soon.
        event: String,
        /// The revision that should have come.
        before: i64,
    },
    /// A watcher was not told an event.
    #[error("watcher {watcher} was not told {missing}, and was told {instead}")]
    WatchGap {
        /// Its place among the records.
        watcher: usize,
        /// The event.
        missing: String,
        /// What came in its place.
        instead: String,
    },
    /// The events of one revision came in two responses.
    #[error("watcher {watcher} was told revision {revision} in pieces")]
    WatchSplit {
        /// Its place among the records.
        watcher: usize,
        /// The revision.
        revision: i64,
    },
    /// A watcher was told that it knows everything up to a revision, and did not.
    #[error("watcher {watcher} was told of progress to {revision} without {missing}")]
    WatchEarlyProgress {
        /// Its place among the records.
        watcher: usize,
        /// The revision.
        revision: i64,
        /// What it did not know of.
        missing: String,
    },
    /// A header's revision lies before what its response holds, or before what was told.
    #[error("watcher {watcher} was told {told} under revision {revision}")]
    WatchOldHeader {
        /// Its place among the records.
        watcher: usize,
        /// The revision in the header.
        revision: i64,
        /// The revision of what was told.
        told: i64,
    },
    /// The previous state in an event is not what it was.
    #[error("watcher {watcher}: previous state in {event}, and it was {expected}")]
    WatchWrongPrevious {
        /// Its place among the records.
        watcher: usize,
        /// The event.
        event: String,
        /// What it was.
        expected: String,
    },
    /// A watcher was told that what it needs is compacted, and it was not.
    #[error("watcher {watcher} needs revision {next}, and was told that {compacted} is compacted")]
    WatchFalseCompacted {
        /// Its place among the records.
        watcher: usize,
        /// What it would be told next.
        next: i64,
        /// What it was told.
        compacted: i64,
    },
}
