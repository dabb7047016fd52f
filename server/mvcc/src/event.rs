//! What changed at a revision, as watchers are told it.

use bytes::Bytes;

/// All that one revision changed, in the order of the changes within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    /// The revision, at least 2: an empty store stands at 1.
    pub revision: i64,
    /// The changes; never empty.
    pub events: Vec<Event>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// What was done.
    pub kind: EventKind,
    /// The encoded `mvccpb.KeyValue` after the change. A delete has key and mod revision only.
    pub kv: Bytes,
    /// The encoded `mvccpb.KeyValue` before the change; `None` when there was no such key, or when
    /// it has been compacted away.
    pub prev: Option<Bytes>,
}

/// What a change does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key has a new value.
    Put {
        /// Whether the key did not exist before.
        create: bool,
    },
    /// The key is gone.
    Delete,
}

impl Event {
    /// The size that bounds of queues count: the bytes of key and values.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.kv.len() + self.prev.as_ref().map_or(0, Bytes::len)
    }
}
