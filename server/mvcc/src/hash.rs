//! HashKV: a CRC over the rows of family `key`, equal to etcd's on the same history.

use crate::{
    compaction::superseded_until,
    engine::{Direction, Family, Read},
    error::Error,
    reader::{Keys, decode_row_key},
    revision::{Revision, RowKey},
    store::View,
};

/// Hashes of compactions that are kept.
pub(crate) const KEPT_HASHES: usize = 10;

/// A hash with what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValueHash {
    /// CRC-32C.
    pub hash: u32,
    /// The compacted revision that it counts from; -1 before the first compaction.
    pub compact_revision: i64,
    /// The revision up to which rows count.
    pub revision: i64,
}

/// The CRC in the making.
pub(crate) struct Hasher {
    crc: u32,
    compact_revision: i64,
    revision: i64,
}

impl Hasher {
    /// Begins, as etcd does, with the name of the bucket.
    pub fn new(compact_revision: i64, revision: i64) -> Self {
        Self {
            crc: crc32c::crc32c(b"key"),
            compact_revision,
            revision,
        }
    }

    /// Adds a row. A tombstone at the compacted revision does not count: versions of etcd differ
    /// in whether they still have it.
    pub fn add(&mut self, row: RowKey, key: &[u8], value: &[u8]) {
        if row.tombstone && row.revision.main == self.compact_revision {
            return;
        }
        self.crc = crc32c::crc32c_append(self.crc, key);
        self.crc = crc32c::crc32c_append(self.crc, value);
    }

    pub fn finish(self) -> KeyValueHash {
        KeyValueHash {
            hash: self.crc,
            compact_revision: self.compact_revision,
            revision: self.revision,
        }
    }
}

impl<S: Read> View<S> {
    /// The hash over the keys at a revision (0: the current one), equal to etcd's. It reads all
    /// rows up to the revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`], or the engine's.
    pub fn hash_kv(&self, revision: i64) -> Result<KeyValueHash, Error> {
        if let Some(kept) = self.kept_hash(revision) {
            return Ok(kept);
        }
        if revision > 0 && revision < self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        match revision {
            0 => self.hash_at(self.revision()),
            // As in etcd: no row is that old.
            ..0 => Ok(Hasher::new(self.compacted, revision).finish()),
            at => self.hash_at(at),
        }
    }

    fn hash_at(&self, at: i64) -> Result<KeyValueHash, Error> {
        let compacted = self.compacted;
        // Up to the compacted revision count the rows that are alive at `at`; but all that a
        // finished compaction leaves, when nothing is alive.
        let any_alive = self.reader().count(Keys::new(b"", &[0]), at)? > 0;
        let counts_until = if any_alive { at } else { compacted };
        let gone = superseded_until(&self.snapshot, counts_until, |_, old| old.main <= compacted)?;
        let mut hasher = Hasher::new(compacted, at);
        let upper = Revision::start(at + 1).encode();
        let mut cursor =
            self.snapshot
                .scan(Family::Key, b"", Some(&upper), Direction::Ascending)?;
        while cursor.valid() {
            let row = decode_row_key(cursor.key())?;
            let old = row.revision.main <= compacted;
            if !(old && (row.tombstone || gone.contains(&row.revision))) {
                hasher.add(row, cursor.key(), cursor.value());
            }
            cursor.next()?;
        }
        Ok(hasher.finish())
    }
}
