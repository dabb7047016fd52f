//! One apply batch: any number of requests, each whole or not at all, and one write to the engine.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
    },
    mvccpb::KeyValue,
};

use crate::{
    compaction::CompactionHash,
    counts::Counts,
    engine::{Direction, Engine, Family, Read},
    error::Error,
    event::{Event, EventKind, RevisionEvents},
    overlay::{Overlaid, Overlay},
    reader::{Keys, Reader, Want},
    revision::{Revision, RowKey},
    rows::{self, Counters, Current, Superseded},
    store::{Store, View},
    txn::{self, Path},
};

/// A batch being made. Its reads see its own writes; dropped without [`Writer::commit`] it leaves
/// nothing behind.
pub struct Writer<'a, E: Engine> {
    store: &'a mut Store<E>,
    overlay: Overlay,
    counts: Counts,
    counters: Counters,
    compacted: i64,
    /// Compactions of this batch, in order.
    compactions: Vec<i64>,
    events: Vec<RevisionEvents>,
    /// The changes of the request under way; they share one revision.
    changes: Vec<Event>,
}

/// What a batch did.
#[derive(Debug)]
pub struct Committed<S> {
    /// The state after it.
    pub view: View<S>,
    /// What watchers are told, in the order of revisions.
    pub events: Vec<RevisionEvents>,
    /// The hash to be computed beside a compaction that the batch scheduled, if etcd would keep
    /// it.
    pub compaction_hash: Option<CompactionHash<S>>,
}

impl<'a, E: Engine> Writer<'a, E> {
    pub(crate) fn new(store: &'a mut Store<E>) -> Self {
        let view = store.view_ref();
        Self {
            counts: view.counts.clone(),
            counters: view.counters,
            compacted: view.compacted,
            overlay: Overlay::default(),
            compactions: Vec::new(),
            events: Vec::new(),
            changes: Vec::new(),
            store,
        }
    }

    /// The revision of the last change.
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

    fn rows(&self) -> Overlaid<'_, E> {
        Overlaid {
            base: self.store.engine(),
            overlay: &self.overlay,
        }
    }

    /// The revision that the request under way stands at: its own once it has changed something.
    fn reached(&self) -> i64 {
        self.counters.revision + i64::from(!self.changes.is_empty())
    }

    fn reader<'r>(&'r self, rows: &'r Overlaid<'r, E>) -> Reader<'r, Overlaid<'r, E>> {
        Reader {
            rows,
            counts: &self.counts,
            revision: self.reached(),
            compacted: self.compacted,
        }
    }

    /// Answers a range.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`], or the engine's.
    pub fn range(&self, r: &RangeRequest) -> Result<RangeResponse, Error> {
        let rows = self.rows();
        self.reader(&rows).range(r)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] and [`Error::KeyNotFound`], or the engine's.
    pub fn put(&mut self, r: &PutRequest) -> Result<PutResponse, Error> {
        if r.lease != 0 && !txn::lease_exists(&self.rows(), r.lease)? {
            return Err(Error::LeaseNotFound);
        }
        let response = self.put_one(r)?;
        self.finish();
        Ok(response)
    }

    /// Deletes a range of keys.
    ///
    /// # Errors
    /// The engine's.
    pub fn delete_range(&mut self, r: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Error> {
        let response = self.delete_keys(r)?;
        self.finish();
        Ok(response)
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// What a range or a put of the taken branch is refused for, before anything is written; or
    /// the engine's.
    pub fn txn(&mut self, r: &TxnRequest) -> Result<TxnResponse, Error> {
        let path = {
            let rows = self.rows();
            let reader = self.reader(&rows);
            let path = Path::choose(&reader, r)?;
            path.check(&reader, r)?;
            path
        };
        let mut response = path.run(self, r)?;
        txn::set_revision(&mut response, self.reached());
        self.finish();
        Ok(response)
    }

    /// Compacts up to a revision: from now on nothing older can be read. The rows go later, by
    /// [`Store::compaction_step`].
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`], or the engine's.
    pub fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.counters.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        self.compactions.push(revision);
        let scheduled = Revision::start(revision).encode();
        self.put_row(
            Family::Meta,
            Bytes::from_static(rows::SCHEDULED_COMPACT),
            scheduled,
        )
    }

    /// Deletes all keys attached to a lease, in the order of keys and in one revision; returns how
    /// many there were. The lease's own row is the caller's.
    ///
    /// # Errors
    /// The engine's.
    pub fn delete_lease_keys(&mut self, lease: i64) -> Result<usize, Error> {
        let keys = lease_keys(&self.rows(), lease)?;
        for key in &keys {
            self.delete_one(key)?;
        }
        self.finish();
        Ok(keys.len())
    }

    /// The keys attached to a lease, in order.
    ///
    /// # Errors
    /// The engine's.
    pub fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, Error> {
        lease_keys(&self.rows(), lease)
    }

    /// A row of one of etcd's small buckets.
    ///
    /// # Errors
    /// The engine's.
    pub fn row(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.rows().get(family, key)?)
    }

    /// Writes a row of one of etcd's small buckets.
    ///
    /// # Errors
    /// The engine's.
    pub fn put_row(&mut self, family: Family, key: Bytes, value: Bytes) -> Result<(), Error> {
        self.delete_row(family, key.clone())?;
        self.counters
            .account(rows::row_bytes(key.len(), value.len()));
        self.overlay.put(family, key, value);
        Ok(())
    }

    /// Deletes a row of one of etcd's small buckets; one that is not there is no error.
    ///
    /// # Errors
    /// The engine's.
    pub fn delete_row(&mut self, family: Family, key: Bytes) -> Result<(), Error> {
        if let Some(old) = self.row(family, &key)? {
            self.counters
                .account(-rows::row_bytes(key.len(), old.len()));
            self.overlay.delete(family, key);
        }
        Ok(())
    }

    /// Writes the batch to the engine, all of it or nothing.
    ///
    /// # Errors
    /// The engine's; the store has then no true state any more.
    pub fn commit(mut self) -> Result<Committed<E::Snapshot>, Error> {
        self.overlay.put(
            Family::Meta,
            Bytes::from_static(rows::COUNTERS_KEY),
            self.counters.encode(),
        );
        let compacts = !self.compactions.is_empty();
        if compacts {
            failpoint::COMPACT_BEFORE_COMMIT_SCHEDULED.hit();
        }
        self.store.engine().write(&self.overlay.into_batch())?;
        if compacts {
            failpoint::COMPACT_AFTER_COMMIT_SCHEDULED.hit();
        }
        let compaction_hash = self.store.publish(
            self.counts,
            self.counters,
            self.compacted,
            &self.compactions,
        )?;
        Ok(Committed {
            view: self.store.view(),
            events: self.events,
            compaction_hash,
        })
    }

    /// Ends a request: its changes become a revision.
    fn finish(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        self.counters.revision += 1;
        self.events.push(RevisionEvents {
            revision: self.counters.revision,
            events: std::mem::take(&mut self.changes),
        });
    }

    /// A put within a request that goes on.
    pub(crate) fn put_one(&mut self, r: &PutRequest) -> Result<PutResponse, Error> {
        let old = self.old_version(&r.key)?;
        let mut response = PutResponse {
            header: Some(header(self.counters.revision + 1)),
            prev_kv: None,
        };
        let mut value = r.value.clone();
        let mut lease = r.lease;
        if r.ignore_value || r.ignore_lease || r.prev_kv {
            let prev = match &old {
                Some(old) => Some(decode(&old.encoded)?),
                None => None,
            };
            if r.ignore_value {
                value = prev.as_ref().ok_or(Error::KeyNotFound)?.value.clone();
            }
            if r.ignore_lease {
                lease = prev.as_ref().ok_or(Error::KeyNotFound)?.lease;
            }
            if r.prev_kv {
                response.prev_kv = prev;
            }
        }
        self.write_version(r.key.clone(), value, lease, old)?;
        Ok(response)
    }

    /// A delete within a request that goes on.
    pub(crate) fn delete_keys(
        &mut self,
        r: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        let want = if r.prev_kv { Want::Values } else { Want::Index };
        let found = {
            let rows = self.rows();
            let reader = self.reader(&rows);
            let keys = Keys::new(&r.key, &r.range_end);
            reader.collect(keys, reader.revision, None, want)?
        };
        for kv in &found {
            self.delete_one(&kv.key)?;
        }
        Ok(DeleteRangeResponse {
            header: Some(header(self.reached())),
            deleted: found.len() as i64,
            prev_kvs: if r.prev_kv { found } else { Vec::new() },
        })
    }

    fn old_version(&self, key: &[u8]) -> Result<Option<OldVersion>, Error> {
        let rows = self.rows();
        let reader = self.reader(&rows);
        let Some(current) = reader.current(key)? else {
            return Ok(None);
        };
        let encoded = reader.encoded(&current)?;
        Ok(Some(OldVersion { current, encoded }))
    }

    fn next_revision(&self) -> Revision {
        Revision {
            main: self.counters.revision + 1,
            sub: self.changes.len() as i64,
        }
    }

    fn write_version(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: i64,
        old: Option<OldVersion>,
    ) -> Result<(), Error> {
        let revision = self.next_revision();
        let before = old.as_ref().map(|old| &old.current.kv);
        let kv = KeyValue {
            create_revision: before.map_or(revision.main, |kv| kv.create_revision),
            mod_revision: revision.main,
            version: before.map_or(1, |kv| kv.version + 1),
            key: key.clone(),
            value,
            lease,
        };
        let old_lease = before.map_or(0, |kv| kv.lease);
        let create = before.is_none();
        let encoded = Bytes::from(kv.encode_to_vec());
        let row = rows::encode_cur(revision, &kv, &encoded);
        self.overlay.put(Family::Cur, key.clone(), row);
        self.supersede(revision, false, &key, encoded.clone(), &old)?;
        if create {
            let store = &*self.store;
            self.counts
                .created(store.engine(), &mut self.overlay, &key)?;
        }
        self.move_lease(&key, old_lease, lease);
        self.changes.push(Event {
            prev: self.event_prev(&key, old),
            key,
            kind: EventKind::Put { create },
            kv: encoded,
        });
        Ok(())
    }

    fn delete_one(&mut self, key: &Bytes) -> Result<(), Error> {
        let Some(old) = self.old_version(key)? else {
            return Ok(());
        };
        let revision = self.next_revision();
        let old_lease = old.current.kv.lease;
        let mut tombstone = KeyValue {
            key: key.clone(),
            ..KeyValue::default()
        };
        let encoded = Bytes::from(tombstone.encode_to_vec());
        self.overlay.delete(Family::Cur, key.clone());
        let old = Some(old);
        self.supersede(revision, true, key, encoded, &old)?;
        self.counts.deleted(&mut self.overlay, key)?;
        self.move_lease(key, old_lease, 0);
        // Watchers are told when, which the row's own key says in the store.
        tombstone.mod_revision = revision.main;
        self.changes.push(Event {
            prev: self.event_prev(key, old),
            key: key.clone(),
            kind: EventKind::Delete,
            kv: tombstone.encode_to_vec().into(),
        });
        Ok(())
    }

    /// Writes the row of a change, and what it superseded.
    fn supersede(
        &mut self,
        revision: Revision,
        tombstone: bool,
        key: &[u8],
        encoded: Bytes,
        old: &Option<OldVersion>,
    ) -> Result<(), Error> {
        let row = RowKey {
            revision,
            tombstone,
        };
        let row = row.encode();
        self.counters
            .account(rows::row_bytes(row.len(), encoded.len()));
        let superseded = match old {
            Some(old) => Superseded {
                revision: old.current.revision,
                // A row of a version is never a tombstone's.
                row_bytes: u32::try_from(rows::row_bytes(row.len(), 0) - i64::from(tombstone))
                    .and_then(|head| Ok(head + u32::try_from(old.encoded.len())?))
                    .map_err(|_| Error::Damaged("a row longer than 4 GiB".to_owned()))?,
            },
            None => Superseded {
                revision: Revision::NONE,
                row_bytes: 0,
            },
        };
        self.overlay.put(Family::Key, row, encoded);
        self.overlay.put(
            Family::Hist,
            rows::hist_key(key, revision),
            rows::encode_superseded(superseded),
        );
        Ok(())
    }

    fn move_lease(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if from != 0 {
            self.overlay
                .delete(Family::LeaseKey, rows::lease_item(from, key));
        }
        if to != 0 {
            self.overlay
                .put(Family::LeaseKey, rows::lease_item(to, key), Bytes::new());
        }
    }

    /// What an event shows as the version before it: the one before the whole request.
    fn event_prev(&self, key: &Bytes, old: Option<OldVersion>) -> Option<Bytes> {
        let old = old?;
        if old.current.revision.main <= self.counters.revision {
            return Some(old.encoded);
        }
        let earlier = self.changes.iter().find(|event| event.key == *key);
        earlier.and_then(|event| event.prev.clone())
    }
}

/// The version that a change supersedes.
struct OldVersion {
    current: Current,
    encoded: Bytes,
}

/// The keys attached to a lease, in order.
pub(crate) fn lease_keys<R: Read>(rows: &R, lease: i64) -> Result<Vec<Bytes>, Error> {
    let lower = rows::lease_key(lease);
    // Rows of the next lease begin with its ID; behind the last ID there are none.
    let upper = u64::from_be_bytes(lease.to_be_bytes()).checked_add(1);
    let upper = upper.map(u64::to_be_bytes);
    let upper = upper.as_ref().map(|upper| &upper[..]);
    let mut cursor = rows.scan(Family::LeaseKey, &lower, upper, Direction::Ascending)?;
    let mut keys = Vec::new();
    while cursor.valid() {
        keys.push(Bytes::copy_from_slice(&cursor.key()[lower.len()..]));
        cursor.next()?;
    }
    Ok(keys)
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..ResponseHeader::default()
    }
}

fn decode(encoded: &Bytes) -> Result<KeyValue, Error> {
    // From Bytes, so that key and value share the row.
    KeyValue::decode(encoded.clone())
        .map_err(|error| Error::Damaged(format!("a row of family key is no KeyValue: {error}")))
}
