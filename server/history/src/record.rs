//! The form in which a run is recorded.

use bytes::Bytes;

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What the store held before.
    pub base: Base,
    /// What clients asked, in any order.
    pub operations: Vec<Operation>,
    /// What watchers were told.
    pub watches: Vec<WatchRecord>,
    /// All events since the base in the order of their revisions: the truth that all else is held
    /// against, as a watcher of all keys saw it, or a member's history after the run. [`crate::log_of`]
    /// makes one of several watchers.
    pub log: Vec<Event>,
}

/// What a store held when the recording began.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its revision; an empty store has 1.
    pub revision: i64,
    /// Its keys at that revision.
    pub kvs: Vec<KeyValue>,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            revision: 1,
            kvs: Vec::new(),
        }
    }
}

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The revision of its creation.
    pub create_revision: i64,
    /// The revision of its last change.
    pub mod_revision: i64,
    /// Changes since its creation, the first included.
    pub version: i64,
    /// The lease that it is attached to, 0 for none.
    pub lease: i64,
}

/// Keys, as etcd's requests name them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The key, or the first of several.
    pub key: Bytes,
    /// Empty for one key, one zero byte for all from `key` on, else the first key behind.
    pub end: Bytes,
}

impl KeyRange {
    /// One key.
    pub fn one(key: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            end: Bytes::new(),
        }
    }

    /// All keys.
    pub fn all() -> Self {
        Self {
            key: Bytes::from_static(&[0]),
            end: Bytes::from_static(&[0]),
        }
    }

    /// Whether it is a single key.
    pub fn is_one(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether it holds a key.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end[..] {
            [] => key == &self.key[..],
            [0] => key >= &self.key[..],
            end => key >= &self.key[..] && key < end,
        }
    }
}

/// One request of a client, with what became of it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: u64,
    /// Whom: a member, or one life of a member where a restart may take its serializable reads
    /// back in time.
    pub member: u64,
    /// What.
    pub request: Request,
    /// When it was sent, in nanoseconds.
    pub start: u64,
    /// When the answer came, in nanoseconds; `None` when none came.
    pub end: Option<u64>,
    /// The answer.
    pub outcome: Outcome,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Keys, now or in the past.
    Range {
        /// Which.
        keys: KeyRange,
        /// At most so many, 0 for all.
        limit: i64,
        /// As they were at this revision, 0 for now.
        revision: i64,
        /// Whether any member's state will do, however old.
        serializable: bool,
        /// Whether only their number is wanted.
        count_only: bool,
    },
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// Its lease, 0 for none.
        lease: i64,
        /// Whether the key's state before is asked for.
        prev_kv: bool,
    },
    /// Deletes keys.
    Delete {
        /// Which.
        keys: KeyRange,
        /// Whether they are asked for as they were.
        prev_kv: bool,
    },
    /// Several at once.
    Txn(Txn),
    /// Forgets what was before a revision.
    Compact {
        /// The oldest revision that can be read after it.
        revision: i64,
    },
    /// Makes a lease.
    LeaseGrant {
        /// Its ID.
        id: i64,
        /// How long it lives at least, in nanoseconds by the recorder's clock, without renewals; 0
        /// when the recorder cannot tell.
        ttl: u64,
    },
    /// Ends a lease, and deletes its keys.
    LeaseRevoke {
        /// Its ID.
        id: i64,
    },
}

/// Requests that are carried out together when all comparisons hold, or others when not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What is compared.
    pub compares: Vec<Compare>,
    /// What is done when all hold.
    pub then: Vec<TxnOp>,
    /// What is done when one does not.
    pub otherwise: Vec<TxnOp>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Whose; of several keys each must pass.
    pub keys: KeyRange,
    /// How what is there compares to the target.
    pub comparison: Comparison,
    /// To what.
    pub target: Target,
}

/// How two things compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are equal.
    Equal,
    /// They are not.
    NotEqual,
    /// What is there is greater.
    Greater,
    /// What is there is less.
    Less,
}

/// What a comparison is about, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The value; a key that is not there has none.
    Value(Bytes),
    /// The version, 0 without the key.
    Version(i64),
    /// The revision of the creation, 0 without the key.
    CreateRevision(i64),
    /// The revision of the last change, 0 without the key.
    ModRevision(i64),
    /// The lease, 0 without.
    Lease(i64),
}

/// One request within a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    /// As [`Request::Range`].
    Range {
        /// Which.
        keys: KeyRange,
        /// At most so many, 0 for all.
        limit: i64,
        /// As they were at this revision, 0 for now.
        revision: i64,
        /// Whether only their number is wanted.
        count_only: bool,
    },
    /// As [`Request::Put`].
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// Its lease, 0 for none.
        lease: i64,
        /// Whether the key's state before is asked for.
        prev_kv: bool,
    },
    /// As [`Request::Delete`].
    Delete {
        /// Which.
        keys: KeyRange,
        /// Whether they are asked for as they were.
        prev_kv: bool,
    },
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, and answered.
    Done(Response),
    /// It was definitely not done.
    Refused(Refusal),
    /// It may have been done, or be done later: no answer, or one that does not say.
    Unknown,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A revision that it names is compacted.
    Compacted,
    /// A revision that it names has not happened.
    FutureRevision,
    /// For another reason, which is not checked.
    Other,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The revision in the header.
    pub revision: i64,
    /// The rest.
    pub kind: ResponseKind,
}

/// What an answer says besides its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// Of a range.
    Range {
        /// The keys in their order; none when only their number was asked for.
        kvs: Vec<KeyValue>,
        /// Whether there are more than the limit allowed.
        more: bool,
        /// How many there are in all.
        count: i64,
    },
    /// Of a put.
    Put {
        /// The key as it was, if asked for and there.
        prev: Option<KeyValue>,
    },
    /// Of a delete.
    Delete {
        /// How many keys it took.
        deleted: i64,
        /// These as they were, if asked for.
        prevs: Vec<KeyValue>,
    },
    /// Of a transaction.
    Txn(TxnResult),
    /// Of all that says no more.
    Nothing,
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The answers of what was carried out.
    pub responses: Vec<ResponseKind>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was done.
    pub kind: EventKind,
    /// The key after it; of a delete only key and mod revision.
    pub kv: KeyValue,
    /// The key before it, if asked for and there. In a [`History::log`] it may be left out.
    pub prev: Option<KeyValue>,
}

/// What an event does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key has a new value.
    Put,
    /// The key is gone.
    Delete,
}

/// One watcher as its client sees it: whenever its stream ends it is made anew, where it was.
#[derive(Clone, Debug, Default)]
pub struct WatchRecord {
    /// What it watches.
    pub keys: KeyRange,
    /// Whether it asks for keys as they were before.
    pub prev_kv: bool,
    /// What it was told, in this order. Fragments of one response are joined by the recorder.
    pub responses: Vec<WatchResponse>,
    /// The recorder waited until this revision was told, and ended the run only then; 0 when it did
    /// not wait.
    pub reached: i64,
}

/// One response of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchResponse {
    /// When it came, in nanoseconds.
    pub at: u64,
    /// The revision in the header.
    pub revision: i64,
    /// The rest.
    pub report: WatchReport,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchReport {
    /// It is made, and begins. A watcher that goes on begins at most one revision behind the newest
    /// event or progress that it knows of.
    Created {
        /// The first revision asked for, 0 for what comes after the header's.
        from: i64,
    },
    /// Something happened.
    Events(Vec<Event>),
    /// It knows of everything up to the header's revision.
    Progress,
    /// It is ended, since what it would be told next is compacted.
    Compacted {
        /// The oldest revision that it could begin with.
        compact_revision: i64,
    },
    /// It is ended for another reason, or its stream was lost.
    Ended,
}
