//! Compaction's second half: the rows that nobody can read any more go, in bounded batches, while
//! requests are applied in between; and the hash that etcd keeps of each compaction.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashSet;

use crate::{
    engine::{Direction, Engine, Family, Read, WriteBatch},
    error::Error,
    hash::{Hasher, KeyValueHash},
    reader::decode_row_key,
    revision::{Revision, RowKey},
    rows::{self, Superseded},
    store::{Store, View},
};

/// Rows that one step looks at: about a millisecond.
const STEP_ROWS: usize = if cfg!(test) { 7 } else { 512 };

/// What a compaction step left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionProgress {
    /// There is nothing to compact.
    Idle,
    /// There is more to do.
    More,
    /// All rows up to this revision are done.
    Finished(i64),
}

/// The compactions that are scheduled and not finished.
#[derive(Debug, Default)]
pub(crate) struct Compactions {
    /// The revision up to which all is done; -1 before the first compaction.
    pub finished: i64,
    queue: VecDeque<i64>,
    /// Where the first of the queue goes on.
    next: Option<Bytes>,
    /// Rows of family `key` that went since the start.
    pub deleted: u64,
}

impl Compactions {
    /// After a start: what was scheduled and not finished is done anew from where the last one
    /// finished. Rows that are gone already are no hindrance.
    pub fn resume(finished: i64, scheduled: i64) -> Self {
        let queue = (scheduled > finished).then_some(scheduled);
        Self {
            finished,
            queue: queue.into_iter().collect(),
            next: None,
            deleted: 0,
        }
    }

    /// Adds a compaction. Returns the one that it follows if that one is finished: only then does
    /// its hash cover every revision in between, and only then does etcd keep it.
    pub fn schedule(&mut self, revision: i64) -> Option<i64> {
        let follows = self.queue.is_empty().then_some(self.finished);
        self.queue.push_back(revision);
        follows
    }

    /// Whether there is anything to do.
    pub fn pending(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl<E: Engine> Store<E> {
    /// Does one bounded piece of the oldest compaction that is scheduled.
    ///
    /// # Errors
    /// The engine's, or damage.
    pub fn compaction_step(&mut self) -> Result<CompactionProgress, Error> {
        let Some(&to) = self.compactions.queue.front() else {
            return Ok(CompactionProgress::Idle);
        };
        let from = self.compactions.finished;
        // Tombstones at the compacted revision itself stay until the next compaction, so this one
        // begins with those that the last one left.
        let start = || Revision::start(from.max(0)).encode();
        let lower = self.compactions.next.take().unwrap_or_else(start);
        let upper = Revision::start(to + 1).encode();
        let (rows, next) = read_step(self.engine(), &lower, &upper)?;
        let mut deletion = Deletion::default();
        deletion.collect(self.engine(), &rows, from, to)?;
        let mut counters = self.view_ref().counters;
        counters.account(-deletion.freed);
        self.compactions.deleted += deletion.rows;
        let mut batch = deletion.batch;
        if next.is_none() {
            let finished = Revision::start(to).encode();
            let old = self.engine().get(Family::Meta, rows::FINISHED_COMPACT)?;
            if old.is_none() {
                counters.account(rows::row_bytes(
                    rows::FINISHED_COMPACT.len(),
                    finished.len(),
                ));
            }
            batch.put(Family::Meta, rows::FINISHED_COMPACT, finished);
        }
        batch.put(Family::Meta, rows::COUNTERS_KEY, counters.encode());
        match next {
            Some(_) => failpoint::COMPACT_BEFORE_COMMIT_BATCH.hit(),
            None => failpoint::COMPACT_BEFORE_SET_FINISHED.hit(),
        }
        self.engine().write(&batch)?;
        let progress = match next {
            Some(next) => {
                failpoint::COMPACT_AFTER_COMMIT_BATCH.hit();
                self.compactions.next = Some(next);
                CompactionProgress::More
            }
            None => {
                failpoint::COMPACT_AFTER_SET_FINISHED.hit();
                self.compactions.queue.pop_front();
                self.compactions.finished = to;
                CompactionProgress::Finished(to)
            }
        };
        self.republish(counters)?;
        Ok(progress)
    }
}

/// A row of family `key`: its key and whose version it is.
type Row = (RowKey, Bytes);

/// Reads the rows of one step, and where the next one begins.
fn read_step<R: Read>(
    rows: &R,
    lower: &[u8],
    upper: &[u8],
) -> Result<(Vec<Row>, Option<Bytes>), Error> {
    let mut found = Vec::new();
    let mut cursor = rows.scan(Family::Key, lower, Some(upper), Direction::Ascending)?;
    while cursor.valid() {
        if found.len() == STEP_ROWS {
            return Ok((found, Some(Bytes::copy_from_slice(cursor.key()))));
        }
        let kv = crate::reader::decode_kv(cursor.value())?;
        found.push((decode_row_key(cursor.key())?, kv.key));
        cursor.next()?;
    }
    Ok((found, None))
}

/// What a step deletes.
#[derive(Default)]
struct Deletion {
    batch: WriteBatch,
    freed: i64,
    rows: u64,
}

impl Deletion {
    fn collect<R: Read>(
        &mut self,
        engine: &R,
        found: &[Row],
        from: i64,
        to: i64,
    ) -> Result<(), Error> {
        let new = |row: &&Row| row.0.revision.main > from;
        let hist: Vec<Bytes> = found
            .iter()
            .filter(new)
            .map(|(row, key)| rows::hist_key(key, row.revision))
            .collect();
        let keys: Vec<&[u8]> = hist.iter().map(|key| &key[..]).collect();
        for (key, superseded) in hist.iter().zip(engine.multi_get(Family::Hist, &keys)?) {
            // Without a row a step before a crash has done this already.
            if let Some(superseded) = superseded {
                self.superseded(rows::decode_superseded(&superseded)?);
                self.batch.delete(Family::Hist, key.clone());
            }
        }
        for (row, key) in found {
            if row.tombstone && row.revision.main < to {
                let row = row.encode();
                // A tombstone holds its user key as the only field: tag, length, key.
                let value = prost::encoding::key_len(1)
                    + prost::encoding::encoded_len_varint(key.len() as u64)
                    + key.len();
                let value = if key.is_empty() { 0 } else { value };
                self.freed += rows::row_bytes(row.len(), value);
                self.rows += 1;
                self.batch.delete(Family::Key, row);
            }
        }
        Ok(())
    }

    fn superseded(&mut self, superseded: Superseded) {
        if superseded.revision != Revision::NONE {
            self.freed += i64::from(superseded.row_bytes);
            self.rows += 1;
            self.batch.delete(Family::Key, superseded.revision.encode());
        }
    }
}

/// The hash that etcd computes while it compacts: over the rows that stay and all those since the
/// compaction before, as they were. It holds the state before the first row went, and may be
/// computed by any thread.
#[derive(Debug)]
pub struct CompactionHash<S> {
    pub(crate) view: View<S>,
    pub(crate) previous: i64,
    pub(crate) revision: i64,
}

impl<S: Read> CompactionHash<S> {
    /// Computes the hash and keeps it for [`View::hash_kv`].
    ///
    /// # Errors
    /// The engine's, or damage.
    pub fn compute(self) -> Result<KeyValueHash, Error> {
        let rows = &self.view.snapshot;
        let upper = Revision::start(self.revision + 1).encode();
        let gone = superseded_until(rows, self.revision, |_, old| old.main <= self.previous)?;
        let keeps_any = self.keeps_any()?;
        let mut hasher = Hasher::new(self.previous, self.revision);
        let mut cursor = rows.scan(Family::Key, b"", Some(&upper), Direction::Ascending)?;
        while cursor.valid() {
            let row = decode_row_key(cursor.key())?;
            let old = row.revision.main <= self.previous;
            if !(old && keeps_any && gone.contains(&row.revision)) {
                hasher.add(row, cursor.key(), cursor.value());
            }
            cursor.next()?;
        }
        let hash = hasher.finish();
        self.view.keep_hash(hash);
        Ok(hash)
    }

    /// etcd filters nothing when it has nothing to keep: no key alive, no tombstone at the
    /// compacted revision itself.
    fn keeps_any(&self) -> Result<bool, Error> {
        if self
            .view
            .reader()
            .count(crate::reader::Keys::new(b"", &[0]), self.revision)?
            > 0
        {
            return Ok(true);
        }
        let lower = Revision::start(self.revision).encode();
        let upper = Revision::start(self.revision + 1).encode();
        let rows = &self.view.snapshot;
        let mut cursor = rows.scan(Family::Key, &lower, Some(&upper), Direction::Ascending)?;
        while cursor.valid() {
            if decode_row_key(cursor.key())?.tombstone {
                return Ok(true);
            }
            cursor.next()?;
        }
        Ok(false)
    }
}

/// The versions superseded by changes up to a revision, of those that `wanted(superseding,
/// superseded)` names.
pub(crate) fn superseded_until<R: Read>(
    rows: &R,
    until: i64,
    wanted: impl Fn(Revision, Revision) -> bool,
) -> Result<FxHashSet<Revision>, Error> {
    let mut found = FxHashSet::default();
    let mut cursor = rows.scan(Family::Hist, b"", None, Direction::Ascending)?;
    while cursor.valid() {
        let (_, superseding) = rows::decode_hist_key(cursor.key())?;
        let superseded = rows::decode_superseded(cursor.value())?.revision;
        if superseding.main <= until
            && superseded != Revision::NONE
            && wanted(superseding, superseded)
        {
            found.insert(superseded);
        }
        cursor.next()?;
    }
    Ok(found)
}
