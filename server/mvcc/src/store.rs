//! The store and the views that readers get of it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse},
    framed,
};

use crate::{
    compaction::{CompactionHash, Compactions},
    counts::Counts,
    engine::{Direction, Engine, Family, Read, WriteBatch},
    error::Error,
    hash::{KEPT_HASHES, KeyValueHash},
    reader::{Reader, decode_row_key},
    rows::{self, Counters},
    txn::Path,
    write::{Writer, lease_keys},
};

/// The revision store on an engine. One thread writes to it; readers use its views.
#[derive(Debug)]
pub struct Store<E: Engine> {
    engine: Arc<E>,
    view: View<E::Snapshot>,
    pub(crate) compactions: Compactions,
}

/// The store as it was after a batch. It never changes; a clone is cheap and any thread may read.
#[derive(Clone, Debug)]
pub struct View<S> {
    pub(crate) snapshot: S,
    pub(crate) counts: Counts,
    pub(crate) counters: Counters,
    pub(crate) compacted: i64,
    /// Hashes of compactions, the oldest revision first; all views share them.
    hashes: Arc<Mutex<Vec<KeyValueHash>>>,
}

impl<E: Engine> Store<E> {
    /// Opens what the engine holds. It reads the counters and the counts of keys, and no keys.
    ///
    /// # Errors
    /// The engine's, or damage.
    pub fn open(engine: Arc<E>) -> Result<Self, Error> {
        let snapshot = engine.snapshot()?;
        let counters = match snapshot.get(Family::Meta, rows::COUNTERS_KEY)? {
            Some(row) => Counters::decode(&row)?,
            // Every batch has them: rows without are an import that was not finished.
            None => match first_used(&snapshot)? {
                Some(family) => {
                    return Err(Error::Damaged(format!(
                        "family {} has rows, and the store's counters are missing",
                        family.name()
                    )));
                }
                None => Counters::EMPTY,
            },
        };
        let scheduled = compact_row(&snapshot, rows::SCHEDULED_COMPACT)?;
        let finished = compact_row(&snapshot, rows::FINISHED_COMPACT)?;
        let view = View {
            counts: Counts::load(&snapshot)?,
            snapshot,
            counters,
            compacted: scheduled.max(finished),
            hashes: Arc::default(),
        };
        Ok(Self {
            engine,
            view,
            compactions: Compactions::resume(finished, scheduled),
        })
    }

    /// Goes on as another store, which holds a later state of the same history. The hashes that are
    /// kept of compactions stay.
    pub fn replace(&mut self, mut next: Self) {
        next.view.hashes = Arc::clone(&self.view.hashes);
        next.compactions.deleted = self.compactions.deleted;
        *self = next;
    }

    /// The state after the last batch.
    pub fn view(&self) -> View<E::Snapshot> {
        self.view.clone()
    }

    pub(crate) fn view_ref(&self) -> &View<E::Snapshot> {
        &self.view
    }

    /// The engine below.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Begins a batch.
    pub fn begin(&mut self) -> Writer<'_, E> {
        Writer::new(self)
    }

    /// Rows of keys that compactions have deleted since the store was opened.
    pub fn compacted_rows(&self) -> u64 {
        self.compactions.deleted
    }

    /// Whether [`Store::compaction_step`] has anything to do.
    pub fn compaction_pending(&self) -> bool {
        self.compactions.pending()
    }

    /// The revision up to which compacted rows are gone; -1 before the first compaction.
    pub fn compaction_finished(&self) -> i64 {
        self.compactions.finished
    }

    /// Accounts for a defragmentation of the engine: freed bytes are given back.
    ///
    /// # Errors
    /// The engine's.
    pub fn defragmented(&mut self) -> Result<(), Error> {
        let mut counters = self.view.counters;
        counters.size = counters.in_use;
        let mut batch = WriteBatch::default();
        batch.put(Family::Meta, rows::COUNTERS_KEY, counters.encode());
        self.engine.write(&batch)?;
        self.republish(counters)
    }

    /// Takes over the state after a batch of [`Writer`]'s.
    pub(crate) fn publish(
        &mut self,
        counts: Counts,
        counters: Counters,
        compacted: i64,
        compactions: &[i64],
    ) -> Result<Option<CompactionHash<E::Snapshot>>, Error> {
        self.view.counts = counts;
        self.view.compacted = compacted;
        self.republish(counters)?;
        let mut hash = None;
        for &revision in compactions {
            if let Some(previous) = self.compactions.schedule(revision) {
                hash = Some(CompactionHash {
                    view: self.view(),
                    previous,
                    revision,
                });
            }
        }
        Ok(hash)
    }

    /// Takes over the engine's state after a batch that changed no key.
    pub(crate) fn republish(&mut self, counters: Counters) -> Result<(), Error> {
        self.view.counters = counters;
        self.view.snapshot = self.engine.snapshot()?;
        Ok(())
    }
}

impl<S: Read> View<S> {
    /// The revision of the last change; an empty store has 1.
    pub fn revision(&self) -> i64 {
        self.counters.revision
    }

    /// The compacted revision; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.compacted
    }

    /// What etcd's database file would take: the rows, and what was freed and not used again.
    pub fn size(&self) -> i64 {
        self.counters.size
    }

    /// What the rows would take in etcd's database file.
    pub fn size_in_use(&self) -> i64 {
        self.counters.in_use
    }

    /// The rows themselves.
    pub fn snapshot(&self) -> &S {
        &self.snapshot
    }

    /// How many keys there are.
    pub fn key_count(&self) -> u64 {
        self.counts.total()
    }

    /// Answers a range.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`], or the engine's.
    pub fn range(&self, r: &RangeRequest) -> Result<RangeResponse, Error> {
        self.reader().range(r)
    }

    /// Answers a range with its KeyValues as they stand on the wire: what a server sends.
    ///
    /// # Errors
    /// As [`View::range`].
    pub fn range_framed(&self, r: &RangeRequest) -> Result<framed::RangeResponse, Error> {
        self.reader().range_framed(r)
    }

    /// Answers a transaction that only reads ([`crate::is_read_only`]).
    ///
    /// # Errors
    /// What a range of the taken branch is refused for, or the engine's.
    pub fn txn(&self, r: &TxnRequest) -> Result<TxnResponse, Error> {
        let reader = self.reader();
        let path = Path::choose(&reader, r)?;
        path.check(&reader, r)?;
        path.read(&reader, r)
    }

    /// The keys attached to a lease, in order.
    ///
    /// # Errors
    /// The engine's.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, Error> {
        lease_keys(&self.snapshot, lease)
    }

    pub(crate) fn reader(&self) -> Reader<'_, S> {
        Reader {
            rows: &self.snapshot,
            counts: &self.counts,
            revision: self.counters.revision,
            compacted: self.compacted,
        }
    }

    pub(crate) fn kept_hash(&self, revision: i64) -> Option<KeyValueHash> {
        let hashes = self.hashes.lock();
        hashes
            .iter()
            .find(|hash| hash.revision == revision)
            .copied()
    }

    /// Keeps the hash of a compaction; the oldest goes when there are too many.
    pub(crate) fn keep_hash(&self, hash: KeyValueHash) {
        let mut hashes = self.hashes.lock();
        hashes.push(hash);
        hashes.sort_by_key(|hash| hash.revision);
        let surplus = hashes.len().saturating_sub(KEPT_HASHES);
        hashes.drain(..surplus);
    }

    /// The hashes of the last compactions, the oldest first.
    pub fn compaction_hashes(&self) -> Vec<KeyValueHash> {
        self.hashes.lock().clone()
    }
}

/// The first family that has a row.
pub(crate) fn first_used<R: Read>(rows: &R) -> Result<Option<Family>, Error> {
    for family in Family::ALL {
        let cursor = rows.scan(family, b"", None, Direction::Ascending)?;
        if cursor.valid() {
            return Ok(Some(family));
        }
    }
    Ok(None)
}

/// A compaction's revision in family `meta`; -1 without.
fn compact_row<R: Read>(rows: &R, key: &[u8]) -> Result<i64, Error> {
    match rows.get(Family::Meta, key)? {
        Some(row) => Ok(decode_row_key(&row)?.revision.main),
        None => Ok(-1),
    }
}
