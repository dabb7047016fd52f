//! What the store needs of a storage engine, and nothing more: ordered families of rows, atomic
//! batches over all of them, snapshots that readers can share, and an honest answer to "what would
//! a crash leave". RocksDB implements it in crate `engine`; [`crate::MemEngine`] here, for tests
//! and the simulator.

use std::fmt;

use bytes::Bytes;

/// A family of rows, ordered by key. The layout of each is described where it is written; the
/// table of `ARCHITECTURE.md` has them side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Revision → the encoded KeyValue, as in etcd's `key` bucket.
    Key,
    /// User key → where its newest version is.
    Cur,
    /// User key · superseding revision → the revision that it superseded.
    Hist,
    /// First key of a bucket of adjacent keys → how many keys it holds.
    Count,
    /// Lease · user key → nothing: the keys attached to a lease.
    LeaseKey,
    /// Counters, the applied index, and etcd's `meta` bucket.
    Meta,
    /// etcd's `lease` bucket.
    Lease,
    /// etcd's `alarm` bucket.
    Alarm,
    /// etcd's `members` bucket.
    Members,
    /// etcd's `members_removed` bucket.
    MembersRemoved,
    /// etcd's `cluster` bucket.
    Cluster,
    /// etcd's `auth` bucket.
    Auth,
    /// etcd's `authUsers` bucket.
    AuthUsers,
    /// etcd's `authRoles` bucket.
    AuthRoles,
}

impl Family {
    /// Every family, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Key,
        Self::Cur,
        Self::Hist,
        Self::Count,
        Self::LeaseKey,
        Self::Meta,
        Self::Lease,
        Self::Alarm,
        Self::Members,
        Self::MembersRemoved,
        Self::Cluster,
        Self::Auth,
        Self::AuthUsers,
        Self::AuthRoles,
    ];

    /// The name on disk. It never changes: a data directory is found by it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Cur => "cur",
            Self::Hist => "hist",
            Self::Count => "count",
            Self::LeaseKey => "leasekey",
            Self::Meta => "meta",
            Self::Lease => "lease",
            Self::Alarm => "alarm",
            Self::Members => "members",
            Self::MembersRemoved => "members_removed",
            Self::Cluster => "cluster",
            Self::Auth => "auth",
            Self::AuthUsers => "authUsers",
            Self::AuthRoles => "authRoles",
        }
    }
}

/// The order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the lower bound up.
    Ascending,
    /// From the row before the upper bound down.
    Descending,
}

/// The engine could not do what was asked. Whatever its cause, the process ends: a store that
/// cannot read or write its rows has nothing true to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    /// What was being done, as "read a row of family cur".
    pub action: String,
    /// What the engine or the system said.
    pub cause: String,
}

impl EngineError {
    /// An error of `action` because of `cause`.
    pub fn new(action: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            action: action.into(),
            cause: cause.to_string(),
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine: could not {}: {}", self.action, self.cause)
    }
}

impl std::error::Error for EngineError {}

/// One consistent state of all families.
pub trait Read {
    /// The row of `key`, if there is one.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The rows of `keys`, in their order.
    fn multi_get(&self, family: Family, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// The rows with `lower <= key < upper` (`None`: to the end of the family), placed on the
    /// first of them in the given order. Bounds that cross give no row.
    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError>;
}

/// A place in a scan.
pub trait Cursor {
    /// Whether it stands on a row. When it does not, the scan is over.
    fn valid(&self) -> bool;
    /// The key it stands on. Empty when it stands on none.
    fn key(&self) -> &[u8];
    /// The value it stands on. Empty when it stands on none.
    fn value(&self) -> &[u8];
    /// To the next row in the scan's order.
    fn next(&mut self) -> Result<(), EngineError>;
}

/// One change to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The row of `key` becomes `value`.
    Put {
        /// Where.
        family: Family,
        /// Which row.
        key: Bytes,
        /// What it becomes.
        value: Bytes,
    },
    /// There is no row of `key`. Deleting what is not there is no error.
    Delete {
        /// Where.
        family: Family,
        /// Which row.
        key: Bytes,
    },
}

/// Changes that happen together or not at all; of two to one row the later counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The changes, in order.
    pub ops: Vec<Op>,
}

impl WriteBatch {
    /// Adds a put.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.ops.push(Op::Put {
            family,
            key: key.into(),
            value: value.into(),
        });
    }

    /// Adds a delete.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        self.ops.push(Op::Delete {
            family,
            key: key.into(),
        });
    }
}

/// A storage engine. It has no log of its own: a written batch is visible at once and durable
/// after the next flush, and after a crash the raft log replays what was not flushed. So a crash
/// leaves a prefix of the written batches, never a part of one and never a later one without an
/// earlier.
pub trait Engine: Read + Send + Sync + 'static {
    /// A state that stays as it is while the engine goes on. Cheap to clone and to share.
    type Snapshot: Read + Clone + Send + Sync + 'static;

    /// The state after the last written batch.
    fn snapshot(&self) -> Result<Self::Snapshot, EngineError>;

    /// Applies the batch, atomically over all families.
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError>;

    /// Makes what was written so far durable, all families together. With `wait` it returns when
    /// that is done, without it when it has begun.
    fn flush_all(&self, wait: bool) -> Result<(), EngineError>;

    /// The row of `key` that a crash at this moment would leave.
    fn persisted(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Bytes in memory that no flush has made durable, about.
    fn unflushed_bytes(&self) -> u64;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// Gives back the space of deleted rows. Reads and writes go on; it may take long.
    fn defragment(&self) -> Result<(), EngineError>;
}
