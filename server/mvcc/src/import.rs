//! Fills an empty engine from the rows of etcd's buckets: a snapshot of another member, or the
//! database of an etcd. What is not in the buckets is derived: families `cur`, `hist`, `count` and
//! `leasekey`, and the counters.
//!
//! The rows of `key` come in the order of revisions, so user keys come in any order; the newest
//! version of each is looked up in the engine itself, a batch at a time. Memory is bounded by one
//! batch, and by the first keys of the buckets of family `count`.
//!
//! The counters are written with the last batch, and [`crate::Store::open`] refuses rows without
//! counters: nobody can take a part of an import for a store.

use bytes::Bytes;
use proto::mvccpb::KeyValue;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    counts::{self, IMPORTED_KEYS},
    engine::{Direction, Engine, Family, Read, WriteBatch},
    error::Error,
    revision::{Revision, RowKey},
    rows::{self, Counters, Superseded},
    store,
};

/// Rows of one batch.
const BATCH_ROWS: usize = 8192;
/// Bytes of keys and values of one batch.
const BATCH_BYTES: usize = 8 << 20;

/// An import under way. Whoever drops it before [`Import::finish`] throws the engine away.
pub struct Import<'a, E: Engine> {
    engine: &'a E,
    /// The rows of family `meta`, which are written last.
    meta: Vec<(Bytes, Bytes)>,
    /// Up to here compaction is done: what it takes is not there any more. -1 without.
    finished: i64,
    /// Up to here it was asked for: nothing before can be read. -1 without.
    compacted: i64,
    counters: Counters,
    /// The last row of a small bucket, whose keys must rise.
    last: Option<(Family, Bytes)>,
    last_revision: Option<Revision>,
    small: WriteBatch,
    versions: Vec<Version>,
    bytes: usize,
    /// Rows of one batch.
    pub(crate) batch_rows: usize,
}

/// A row of family `key` that waits for its batch.
struct Version {
    at: RowKey,
    row: Bytes,
    value: Bytes,
    kv: KeyValue,
}

/// The newest version of a key so far.
#[derive(Clone, Debug)]
struct Newest {
    revision: Revision,
    /// The length of its KeyValue.
    length: usize,
    version: i64,
    lease: i64,
}

impl<'a, E: Engine> Import<'a, E> {
    /// Begins with all rows of etcd's bucket `meta`: how the other rows are read depends on what
    /// is compacted.
    ///
    /// # Errors
    /// An engine that is not empty, a row that etcd does not write, or the engine's.
    pub fn begin(engine: &'a E, meta: Vec<(Bytes, Bytes)>) -> Result<Self, Error> {
        if let Some(family) = store::first_used(engine)? {
            return Err(Error::Damaged(format!(
                "family {} has rows: an import needs an empty engine",
                family.name()
            )));
        }
        let mut import = Self {
            engine,
            meta: Vec::new(),
            finished: -1,
            compacted: -1,
            counters: Counters::EMPTY,
            last: None,
            last_revision: None,
            small: WriteBatch::default(),
            versions: Vec::new(),
            bytes: 0,
            batch_rows: BATCH_ROWS,
        };
        for (key, value) in meta {
            import.meta_row(key, value)?;
        }
        import.counters.revision = import.counters.revision.max(import.compacted);
        Ok(import)
    }

    fn meta_row(&mut self, key: Bytes, value: Bytes) -> Result<(), Error> {
        self.rises(Family::Meta, &key)?;
        let compaction = [rows::SCHEDULED_COMPACT, rows::FINISHED_COMPACT].contains(&&key[..]);
        if compaction {
            let revision = RowKey::decode(&value).filter(|row| row.revision.main >= 0);
            let revision = revision
                .ok_or_else(|| bad(Family::Meta, &key, "its value is no revision"))?
                .revision;
            self.compacted = self.compacted.max(revision.main);
            if key == rows::FINISHED_COMPACT {
                self.finished = revision.main;
            }
        }
        if is_own(Family::Meta, &key) {
            let reason = "etcd has no such row; export writes none of Cairn's own";
            return Err(bad(Family::Meta, &key, reason));
        }
        self.account(&key, &value);
        self.meta.push((key, value));
        Ok(())
    }

    /// Takes a row of one of the other small buckets, in the order of keys. Those of family
    /// `lease` must come before the first row of family `key`.
    ///
    /// # Errors
    /// A row out of order, or the engine's.
    pub fn row(&mut self, family: Family, key: Bytes, value: Bytes) -> Result<(), Error> {
        self.rises(family, &key)?;
        if family == Family::Lease && self.last_revision.is_some() {
            return Err(bad(family, &key, "leases must come before keys"));
        }
        self.account(&key, &value);
        self.bytes += key.len() + value.len();
        self.small.put(family, key, value);
        if self.small.ops.len() >= self.batch_rows || self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn rises(&mut self, family: Family, key: &Bytes) -> Result<(), Error> {
        if let Some((of, last)) = &self.last
            && *of == family
            && last >= key
        {
            return Err(bad(family, key, "it is out of order"));
        }
        self.last = Some((family, key.clone()));
        Ok(())
    }

    fn account(&mut self, key: &Bytes, value: &Bytes) {
        self.counters
            .account(rows::row_bytes(key.len(), value.len()));
    }

    /// Takes a row of family `key`, in the order of revisions.
    ///
    /// # Errors
    /// A row that etcd does not write, or the engine's.
    pub fn version(&mut self, row: Bytes, value: Bytes) -> Result<(), Error> {
        let wrong = |reason: &str| Err(bad(Family::Key, &row, reason));
        let Some(at) = RowKey::decode(&row) else {
            return wrong("it is no revision");
        };
        if at.revision.main < 1 || at.revision.sub < 0 {
            return wrong("no change has such a revision");
        }
        if self.last_revision.is_some_and(|last| last >= at.revision) {
            return wrong("it is out of order");
        }
        let Ok(kv) = decode(&value) else {
            return wrong("its value is no KeyValue");
        };
        // An empty row is what `etcdutl snapshot restore --bump-revision` leaves.
        if !at.tombstone && !value.is_empty() && kv.mod_revision != at.revision.main {
            return wrong(&format!("its KeyValue is of revision {}", kv.mod_revision));
        }
        if self.last_revision.replace(at.revision).is_none() {
            // Keys look for their leases in the engine.
            self.write()?;
        }
        self.account(&row, &value);
        self.counters.revision = self.counters.revision.max(at.revision.main);
        self.bytes += row.len() + value.len();
        self.versions.push(Version { at, row, value, kv });
        if self.versions.len() >= self.batch_rows || self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Derives what is not in the buckets, writes `meta` and the counters, and makes all of it
    /// durable. Until this returns the engine holds no store.
    ///
    /// # Errors
    /// The engine's.
    pub fn finish(mut self) -> Result<(), Error> {
        self.write()?;
        self.count()?;
        let mut batch = WriteBatch::default();
        for (key, value) in self.meta {
            batch.put(Family::Meta, key, value);
        }
        // What was freed and not used again is no row: as after a defragmentation there is none.
        self.counters.size = self.counters.in_use;
        batch.put(Family::Meta, rows::COUNTERS_KEY, self.counters.encode());
        self.engine.write(&batch)?;
        failpoint::IMPORT_BEFORE_FLUSH.hit();
        self.engine.flush_all(true)?;
        Ok(())
    }

    /// Writes what has gathered.
    fn write(&mut self) -> Result<(), Error> {
        let small = std::mem::take(&mut self.small);
        if !small.ops.is_empty() {
            self.engine.write(&small)?;
        }
        let versions = std::mem::take(&mut self.versions);
        self.bytes = 0;
        if versions.is_empty() {
            return Ok(());
        }
        let mut derived = Derived {
            newest: newest(self.engine, &versions)?,
            leases: leases(self.engine, &versions)?,
            ..Derived::default()
        };
        for version in &versions {
            self.derive(&mut derived, version)?;
        }
        let mut batch = WriteBatch::default();
        for version in versions {
            batch.put(Family::Key, version.row, version.value);
        }
        derived.write(&mut batch);
        self.engine.write(&batch)?;
        failpoint::IMPORT_AFTER_BATCH.hit();
        Ok(())
    }

    fn derive(&self, derived: &mut Derived, version: &Version) -> Result<(), Error> {
        let Version { at, row, value, kv } = version;
        let before = derived.newest.get(&kv.key).cloned().flatten();
        self.check(version, before.as_ref())?;
        // A tombstone without a predecessor is what an interrupted compaction has left of a key.
        if at.revision.main > self.finished && (!at.tombstone || before.is_some()) {
            let superseded = match &before {
                Some(before) => Superseded {
                    revision: before.revision,
                    row_bytes: u32::try_from(rows::row_bytes(row.len(), before.length))
                        .map_err(|_| bad(Family::Key, row, "its predecessor is beyond 4 GiB"))?
                        - u32::from(at.tombstone),
                },
                None => Superseded {
                    revision: Revision::NONE,
                    row_bytes: 0,
                },
            };
            derived.hist.push((
                rows::hist_key(&kv.key, at.revision),
                rows::encode_superseded(superseded),
            ));
        }
        if let Some(before) = &before {
            derived.attach(before.lease, &kv.key, false);
        }
        if !at.tombstone {
            derived.attach(kv.lease, &kv.key, true);
        }
        let newest = (!at.tombstone).then(|| Newest {
            revision: at.revision,
            length: value.len(),
            version: kv.version,
            lease: kv.lease,
        });
        derived.newest.insert(kv.key.clone(), newest);
        let cur = (!at.tombstone).then(|| rows::encode_cur(at.revision, kv, value));
        derived.cur.insert(kv.key.clone(), cur);
        Ok(())
    }

    /// What must hold between a row and the version before it.
    fn check(&self, version: &Version, before: Option<&Newest>) -> Result<(), Error> {
        let Version { at, row, kv, .. } = version;
        let main = at.revision.main;
        let wrong = |reason: &str| Err(bad(Family::Key, row, reason));
        if main <= self.finished {
            return match (at.tombstone, before) {
                (true, _) if main < self.finished => {
                    wrong("a compaction that is finished takes such a tombstone")
                }
                (_, Some(_)) => wrong("a compaction that is finished takes its predecessor"),
                _ => Ok(()),
            };
        }
        if main <= self.compacted {
            // Which rows an interrupted compaction has taken cannot be said.
            return Ok(());
        }
        match (at.tombstone, before) {
            (true, None) => wrong("it deletes a key that is not there"),
            (true, Some(_)) => Ok(()),
            (false, _) if version.value.is_empty() => Ok(()),
            (false, before) if kv.version == before.map_or(0, |before| before.version) + 1 => {
                Ok(())
            }
            _ => wrong(&format!(
                "it is version {} of its key, and the one before is {}",
                kv.version,
                before.map_or(0, |before| before.version)
            )),
        }
    }

    /// Cuts the live keys into the buckets of family `count`.
    fn count(&self) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        let mut cur = self
            .engine
            .scan(Family::Cur, b"", None, Direction::Ascending)?;
        // The first bucket begins at the empty key.
        let mut first = Bytes::new();
        let mut keys = 0;
        while cur.valid() {
            if keys == IMPORTED_KEYS {
                batch.put(Family::Count, first, counts::encode(keys));
                first = Bytes::copy_from_slice(cur.key());
                keys = 0;
            }
            keys += 1;
            cur.next()?;
            if batch.ops.len() >= BATCH_ROWS {
                self.engine.write(&std::mem::take(&mut batch))?;
            }
        }
        batch.put(Family::Count, first, counts::encode(keys));
        Ok(self.engine.write(&batch)?)
    }
}

/// What a batch of rows of family `key` makes of the other families.
#[derive(Default)]
struct Derived {
    /// The newest version of each key of the batch; `None` of one that is not there.
    newest: FxHashMap<Bytes, Option<Newest>>,
    /// Those of the batch's leases that exist.
    leases: FxHashSet<i64>,
    cur: FxHashMap<Bytes, Option<Bytes>>,
    hist: Vec<(Bytes, Bytes)>,
    attached: FxHashMap<Bytes, bool>,
}

impl Derived {
    /// As in etcd a key is attached to no lease that does not exist.
    fn attach(&mut self, lease: i64, key: &[u8], attached: bool) {
        if lease != 0 && (!attached || self.leases.contains(&lease)) {
            self.attached.insert(rows::lease_item(lease, key), attached);
        }
    }

    /// Adds the changes, in the order of keys: that is how an engine takes them best.
    fn write(self, batch: &mut WriteBatch) {
        let mut cur: Vec<_> = self.cur.into_iter().collect();
        cur.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, row) in cur {
            match row {
                Some(row) => batch.put(Family::Cur, key, row),
                None => batch.delete(Family::Cur, key),
            }
        }
        let mut hist = self.hist;
        hist.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, row) in hist {
            batch.put(Family::Hist, key, row);
        }
        let mut attached: Vec<_> = self.attached.into_iter().collect();
        attached.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, attached) in attached {
            match attached {
                true => batch.put(Family::LeaseKey, key, Bytes::new()),
                false => batch.delete(Family::LeaseKey, key),
            }
        }
    }
}

/// The newest versions of the keys of a batch before it.
fn newest<R: Read>(
    rows: &R,
    versions: &[Version],
) -> Result<FxHashMap<Bytes, Option<Newest>>, Error> {
    let keys: FxHashSet<&Bytes> = versions.iter().map(|version| &version.kv.key).collect();
    let mut keys: Vec<&Bytes> = keys.into_iter().collect();
    keys.sort_unstable();
    let sought: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let found = rows.multi_get(Family::Cur, &sought)?;
    let mut newest = FxHashMap::default();
    let mut long = Vec::new();
    for (key, row) in keys.into_iter().zip(found) {
        let Some(row) = row else {
            newest.insert(key.clone(), None);
            continue;
        };
        let current = rows::decode_cur(row)?;
        if current.encoded.is_none() {
            long.push((key, current.revision.encode()));
        }
        let found = Newest {
            revision: current.revision,
            length: current.encoded.map_or(0, |encoded| encoded.len()),
            version: current.kv.version,
            lease: current.kv.lease,
        };
        newest.insert(key.clone(), Some(found));
    }
    let sought: Vec<&[u8]> = long.iter().map(|(_, row)| &row[..]).collect();
    let found = rows.multi_get(Family::Key, &sought)?;
    for ((key, _), row) in long.into_iter().zip(found) {
        if let (Some(Some(newest)), Some(row)) = (newest.get_mut(key), row) {
            newest.length = row.len();
        }
    }
    Ok(newest)
}

/// Those leases of a batch that exist.
fn leases<R: Read>(rows: &R, versions: &[Version]) -> Result<FxHashSet<i64>, Error> {
    let leases: FxHashSet<i64> = versions.iter().map(|version| version.kv.lease).collect();
    let leases: Vec<i64> = leases.into_iter().filter(|lease| *lease != 0).collect();
    let keys: Vec<Bytes> = leases.iter().map(|lease| rows::lease_key(*lease)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let found = rows.multi_get(Family::Lease, &keys)?;
    let exist = leases.into_iter().zip(found);
    Ok(exist
        .filter_map(|(lease, row)| row.map(|_| lease))
        .collect())
}

/// Whether a row of one of etcd's families is Cairn's own, which no etcd may see.
pub fn is_own(family: Family, key: &[u8]) -> bool {
    family == Family::Meta && key == rows::COUNTERS_KEY
}

fn decode(value: &Bytes) -> Result<KeyValue, prost::DecodeError> {
    // From Bytes, so that the key shares the row.
    prost::Message::decode(value.clone())
}

fn bad(family: Family, key: &[u8], reason: &str) -> Error {
    Error::Foreign {
        bucket: family.name(),
        key: Bytes::copy_from_slice(key),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use proto::etcdserverpb::RangeRequest;

    use super::*;
    use crate::{MemEngine, Store};

    const UNTIL: i64 = 5;

    fn revision(main: i64) -> Bytes {
        Revision::start(main).encode()
    }

    fn meta(finished: i64, scheduled: i64) -> Vec<(Bytes, Bytes)> {
        let rows = [
            (rows::FINISHED_COMPACT, finished),
            (rows::SCHEDULED_COMPACT, scheduled),
        ];
        let rows = rows.into_iter().filter(|(_, at)| *at > 0);
        rows.map(|(key, at)| (key.into(), revision(at))).collect()
    }

    fn put(main: i64, version: i64) -> (Bytes, Bytes) {
        let kv = KeyValue {
            key: "k".into(),
            mod_revision: main,
            version,
            ..KeyValue::default()
        };
        (revision(main), kv.encode_to_vec().into())
    }

    fn tombstone(main: i64) -> (Bytes, Bytes) {
        let key = [&revision(main)[..], b"t"].concat();
        (key.into(), Bytes::from_static(b"\n\x01k"))
    }

    fn imported(
        meta: Vec<(Bytes, Bytes)>,
        rows: Vec<(Bytes, Bytes)>,
    ) -> Result<Arc<MemEngine>, Error> {
        let engine = Arc::new(MemEngine::default());
        let mut import = Import::begin(&*engine, meta)?;
        for (key, value) in rows {
            import.version(key, value)?;
        }
        import.finish()?;
        Ok(engine)
    }

    #[test]
    fn rows_that_no_etcd_leaves_are_named() {
        let raw = |key: &'static [u8], value: &'static [u8]| (key.into(), value.into());
        let check = |compactions: (i64, i64), rows: Vec<(Bytes, Bytes)>, says: &str| {
            let imported = imported(meta(compactions.0, compactions.1), rows);
            match (imported, says) {
                (Ok(_), "") => {}
                (Ok(_), says) => panic!("imported in spite of {says:?}"),
                (Err(error), says) => {
                    let text = error.to_string();
                    assert!(!says.is_empty() && text.contains(says), "{text}");
                    assert!(text.contains("bucket key"), "{text}");
                }
            }
        };
        let fine = (0, 0);
        check(
            fine,
            vec![put(2, 1), put(3, 2), tombstone(4), put(5, 1)],
            "",
        );
        check(fine, vec![raw(b"k", b"")], "\"k\" of bucket key");
        check(fine, vec![put(0, 1)], "no change has such a revision");
        check(fine, vec![put(3, 1), put(2, 1)], "out of order");
        check(fine, vec![put(3, 1), tombstone(3)], "out of order");
        check(fine, vec![(revision(2), "k".into())], "no KeyValue");
        let wrong = vec![(revision(3), put(2, 1).1)];
        check(fine, wrong, "its KeyValue is of revision 2");
        check(fine, vec![put(2, 3)], "version 3 of its key");
        check(fine, vec![put(2, 1), put(3, 1)], "the one before is 1");
        check(fine, vec![tombstone(2)], "not there");
        // What is compacted away need not be there; what is compacted must not.
        let done = (UNTIL, UNTIL);
        check(done, vec![put(3, 7), put(7, 8)], "");
        check(done, vec![tombstone(UNTIL), put(7, 1)], "");
        check(done, vec![tombstone(UNTIL - 1)], "takes such a tombstone");
        check(done, vec![put(3, 7), put(4, 8)], "takes its predecessor");
        check(
            done,
            vec![put(3, 7), tombstone(UNTIL)],
            "takes its predecessor",
        );
        // What an interrupted compaction leaves may lack what was before.
        let begun = (1, UNTIL);
        check(begun, vec![put(3, 7), put(4, 8), put(7, 9)], "");
        check(begun, vec![tombstone(3), put(4, 1), put(7, 2)], "");
        check(
            begun,
            vec![tombstone(UNTIL), put(7, 2)],
            "the one before is 0",
        );
    }

    #[test]
    fn small_buckets_are_checked_too() {
        let engine = MemEngine::default();
        let row = |key: &'static str| (Bytes::from(key), Bytes::new());
        for (meta, says) in [
            (vec![row("b"), row("a")], "\"a\" of bucket meta"),
            (vec![row("scheduledCompactRev")], "its value is no revision"),
            (vec![row("cairn_store")], "export writes none"),
        ] {
            let error = Import::begin(&engine, meta).err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut import = Import::begin(&engine, vec![]).unwrap();
        let (key, value) = row("a");
        import
            .row(Family::Auth, key.clone(), value.clone())
            .unwrap();
        assert!(import.row(Family::Auth, key, value).is_err());
        let (key, value) = put(2, 1);
        import.version(key, value).unwrap();
        let (key, value) = row("lease");
        assert!(import.row(Family::Lease, key, value).is_err());
        import.finish().unwrap();
        let error = Import::begin(&engine, vec![]).err().unwrap().to_string();
        assert!(error.contains("an import needs an empty engine"), "{error}");
    }

    #[test]
    fn the_revision_is_that_of_the_last_row_or_compaction() {
        let check = |finished, scheduled, rows, revision| {
            let engine = imported(meta(finished, scheduled), rows).unwrap();
            let view = Store::open(engine).unwrap().view();
            assert_eq!(view.revision(), revision);
            assert_eq!(view.compact_revision(), finished.max(scheduled).max(-1));
        };
        check(-1, -1, vec![], 1);
        check(-1, -1, vec![put(2, 1)], 2);
        check(9, 9, vec![put(2, 1)], 9);
        check(3, 9, vec![put(2, 1)], 9);
        check(9, 9, vec![put(2, 1), put(12, 2)], 12);
    }

    /// `etcdutl snapshot restore --bump-revision` leaves an empty row at the new revision.
    #[test]
    fn a_restored_database_with_a_raised_revision_is_taken() {
        let bumped = (revision(1000), Bytes::new());
        let rows = vec![put(2, 1), bumped, put(1001, 2)];
        let engine = imported(meta(-1, 1000), rows).unwrap();
        let mut store = Store::open(engine).unwrap();
        while store.compaction_pending() {
            store.compaction_step().unwrap();
        }
        let view = store.view();
        let all = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            ..RangeRequest::default()
        };
        for (revision, version) in [(0, 2), (1000, 1)] {
            let r = RangeRequest {
                revision,
                ..all.clone()
            };
            let found = view.range(&r).unwrap();
            assert_eq!((found.count, found.kvs[0].version), (1, version));
        }
    }

    #[test]
    fn a_key_is_attached_to_leases_that_exist() {
        let engine = MemEngine::default();
        let mut import = Import::begin(&engine, vec![]).unwrap();
        let lease = rows::lease_key(7);
        import.row(Family::Lease, lease, Bytes::new()).unwrap();
        import.batch_rows = 2;
        let put = |main: i64, key: &str, version, lease| {
            let kv = KeyValue {
                key: Bytes::copy_from_slice(key.as_bytes()),
                mod_revision: main,
                version,
                lease,
                ..KeyValue::default()
            };
            (revision(main), Bytes::from(kv.encode_to_vec()))
        };
        for (key, value) in [
            put(2, "a", 1, 7),
            put(3, "b", 1, 7),
            put(4, "c", 1, 8),
            put(5, "b", 2, 0),
            put(6, "k", 1, 7),
            tombstone(7),
            put(8, "d", 1, 0),
            put(9, "d", 2, 7),
        ] {
            import.version(key, value).unwrap();
        }
        import.finish().unwrap();
        let view = Store::open(Arc::new(engine)).unwrap().view();
        assert_eq!(view.lease_keys(7).unwrap(), ["a", "d"]);
        assert!(view.lease_keys(8).unwrap().is_empty());
    }

    #[test]
    fn many_keys_are_counted() {
        let engine = Arc::new(MemEngine::default());
        let mut import = Import::begin(&*engine, vec![]).unwrap();
        let keys = 3000;
        for n in 0..keys {
            let main = n + 2;
            let kv = KeyValue {
                key: format!("{:05}", n * 7919 % keys).into(),
                mod_revision: main,
                version: 1,
                ..KeyValue::default()
            };
            let value = kv.encode_to_vec().into();
            import.version(revision(main), value).unwrap();
        }
        import.finish().unwrap();
        let view = Store::open(engine).unwrap().view();
        assert_eq!(view.key_count(), keys as u64);
        for (from, to) in [(0, 3000), (17, 1000), (383, 385), (768, 768), (2999, 3000)] {
            let r = RangeRequest {
                key: format!("{from:05}").into(),
                range_end: format!("{to:05}").into(),
                count_only: true,
                ..RangeRequest::default()
            };
            assert_eq!(view.range(&r).unwrap().count, to - from);
        }
    }
}
