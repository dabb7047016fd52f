//! All rows of a store, read and held against each other: what is said twice must be the same.

use bytes::Bytes;
use proto::mvccpb::KeyValue;

use crate::{
    engine::{Direction, Family, Read},
    error::Error,
    hash::KeyValueHash,
    import::is_own,
    reader::{decode_kv, decode_row_key},
    revision::{Revision, RowKey},
    rows::{self, Counters, Current, Superseded},
    store::View,
};

/// Rows that are looked up together.
const BATCH_ROWS: usize = 512;
/// The families whose rows are made of others and are none of etcd's.
const DERIVED: [Family; 4] = [Family::Cur, Family::Hist, Family::Count, Family::LeaseKey];

/// What a store holds that is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The keys that exist.
    pub keys: u64,
    /// The versions of keys that are there, tombstones among them.
    pub versions: u64,
    /// The keys that are attached to a lease.
    pub leased: u64,
    /// The revision of the last change.
    pub revision: i64,
    /// The compacted revision; -1 before the first compaction.
    pub compact_revision: i64,
    /// What the rows take in etcd's database, in bytes.
    pub bytes: i64,
    /// HashKV at the last revision.
    pub hash: KeyValueHash,
}

impl<S: Read> View<S> {
    /// Reads all rows, several times, in bounded memory: each key's newest version against its
    /// history and its lease, what each change superseded, the counts of keys, and the counters.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the first row that does not fit, or the engine's.
    pub fn check(&self) -> Result<Checked, Error> {
        let (keys, leased) = self.check_keys()?;
        let (superseded, changes) = self.check_history()?;
        let (alive, tombstones, changed) = self.check_versions()?;
        equal(
            "changes in the history since the last compaction",
            changes,
            "versions since then",
            changed,
        )?;
        equal(
            "versions that a key has or a change superseded",
            keys + superseded,
            "versions that are there",
            alive,
        )?;
        let attached = count_rows(&self.snapshot, Family::LeaseKey)?;
        equal(
            "keys with a lease",
            leased,
            "rows of family leasekey",
            attached,
        )?;
        self.check_bytes()?;
        Ok(Checked {
            keys,
            versions: alive + tombstones,
            leased,
            revision: self.revision(),
            compact_revision: self.compact_revision(),
            bytes: self.size_in_use(),
            hash: self.hash_kv(0)?,
        })
    }

    /// Returns how many keys there are, and how many of them are attached to a lease.
    fn check_keys(&self) -> Result<(u64, u64), Error> {
        let mut buckets = Buckets::new(self.counts.buckets().cloned().collect());
        let (mut keys, mut leased) = (0, 0);
        each_batch(&self.snapshot, Family::Cur, |batch| {
            keys += batch.len() as u64;
            let mut found = Vec::with_capacity(batch.len());
            for (key, row) in batch {
                buckets.count(key)?;
                found.push((key, rows::decode_cur(row.clone())?));
            }
            self.check_newest(&found)?;
            leased += self.check_leases(&found)?;
            Ok(())
        })?;
        buckets.finish()?;
        Ok((keys, leased))
    }

    fn check_newest(&self, found: &[(&Bytes, Current)]) -> Result<(), Error> {
        let places = found.iter().map(|(_, current)| current.revision);
        for ((key, current), row) in found.iter().zip(self.versions(places)?) {
            let damaged = |problem: &str| {
                let at = current.revision;
                damage(key, at, &format!("the newest version {problem}"))
            };
            let row = row.ok_or_else(|| damaged("is missing"))?;
            let version = decode_kv(&row)?;
            let same = match &current.encoded {
                Some(encoded) => *encoded == row,
                None => {
                    let index = KeyValue {
                        value: Bytes::new(),
                        ..version.clone()
                    };
                    index == current.kv
                }
            };
            if !same || version.key != **key {
                return Err(damaged("stands differently in families cur and key"));
            }
        }
        Ok(())
    }

    /// Returns how many of these keys are attached to a lease that exists.
    fn check_leases(&self, found: &[(&Bytes, Current)]) -> Result<u64, Error> {
        let with_lease: Vec<_> = found.iter().filter(|(_, of)| of.kv.lease != 0).collect();
        let leases = with_lease
            .iter()
            .map(|(_, of)| rows::lease_key(of.kv.lease));
        let exist = self.get_all(Family::Lease, leases.collect())?;
        let items = with_lease
            .iter()
            .map(|(key, of)| rows::lease_item(of.kv.lease, key));
        let attached = self.get_all(Family::LeaseKey, items.collect())?;
        let mut count = 0;
        for (((key, current), lease), item) in with_lease.iter().zip(exist).zip(attached) {
            // etcd keeps the ID of a lease that is gone in what it does not delete.
            match (lease.is_some(), item.is_some()) {
                (true, false) => {
                    let problem = format!("is not attached to its lease {:x}", current.kv.lease);
                    return Err(damage(key, current.revision, &problem));
                }
                (_, attached) => count += u64::from(attached),
            }
        }
        Ok(count)
    }

    /// Returns how many versions of keys were superseded and are still there, and how many changes
    /// there were since the last compaction.
    fn check_history(&self) -> Result<(u64, u64), Error> {
        let finished = self.finished()?;
        let (mut count, mut changes) = (0, 0);
        each_batch(&self.snapshot, Family::Hist, |batch| {
            let mut found = Vec::with_capacity(batch.len());
            for (key, row) in batch {
                let (key, superseding) = rows::decode_hist_key(key)?;
                if superseding.main <= finished {
                    return Err(damage(
                        &key,
                        superseding,
                        "was compacted and is in the history",
                    ));
                }
                changes += u64::from(superseding.main > self.compacted);
                found.push((key, superseding, rows::decode_superseded(row)?));
            }
            self.check_superseding(&found)?;
            count += self.check_superseded(&found)?;
            Ok(())
        })?;
        Ok((count, changes))
    }

    fn check_superseding(&self, found: &[(Vec<u8>, Revision, Superseded)]) -> Result<(), Error> {
        let revisions = || found.iter().map(|(_, superseding, _)| *superseding);
        let puts = self.versions(revisions())?;
        let tombstones = revisions().map(|revision| {
            let row = RowKey {
                revision,
                tombstone: true,
            };
            row.encode()
        });
        let deletes = self.get_all(Family::Key, tombstones.collect())?;
        for ((key, superseding, _), (put, delete)) in
            found.iter().zip(puts.into_iter().zip(deletes))
        {
            let row = put.or(delete);
            let row = row.ok_or_else(|| damage(key, *superseding, "is missing"))?;
            if decode_kv(&row)?.key != *key {
                return Err(damage(key, *superseding, "is another key's"));
            }
        }
        Ok(())
    }

    fn check_superseded(&self, found: &[(Vec<u8>, Revision, Superseded)]) -> Result<u64, Error> {
        let created = |old: &Superseded| old.revision == Revision::NONE;
        for (key, superseding, old) in found {
            if created(old) && old.row_bytes != 0 {
                return Err(damage(
                    key,
                    *superseding,
                    "superseded nothing that takes bytes",
                ));
            }
        }
        let old = found.iter().filter(|(_, _, old)| !created(old));
        let old: Vec<_> = old.collect();
        let versions = self.versions(old.iter().map(|(_, _, old)| old.revision))?;
        for ((key, _, old), row) in old.iter().zip(versions) {
            let damaged = |problem: &str| damage(key, old.revision, problem);
            let row = row.ok_or_else(|| damaged("was superseded and is missing"))?;
            let bytes = rows::row_bytes(old.revision.encode().len(), row.len());
            if decode_kv(&row)?.key != *key || bytes != i64::from(old.row_bytes) {
                return Err(damaged("is not what was superseded"));
            }
        }
        Ok(old.len() as u64)
    }

    /// Returns how many versions of keys are there, how many tombstones, and how many of either
    /// came since the last compaction.
    fn check_versions(&self) -> Result<(u64, u64, u64), Error> {
        let (mut alive, mut tombstones, mut changed) = (0, 0, 0);
        let mut cursor = self
            .snapshot
            .scan(Family::Key, b"", None, Direction::Ascending)?;
        while cursor.valid() {
            let row = decode_row_key(cursor.key())?;
            let kv = decode_kv(cursor.value())?;
            let at = row.revision;
            if at.main > self.revision() {
                let problem = format!("is above the store's revision {}", self.revision());
                return Err(damage(&kv.key, at, &problem));
            }
            let fits = match row.tombstone {
                true => kv.mod_revision == 0 && kv.value.is_empty(),
                false => {
                    let created = kv.create_revision;
                    kv.mod_revision == at.main
                        && created > 0
                        && created <= at.main
                        && kv.version > 0
                }
            };
            if !fits {
                return Err(damage(&kv.key, at, "has revisions that cannot be"));
            }
            changed += u64::from(at.main > self.compacted);
            match row.tombstone {
                true => tombstones += 1,
                false => alive += 1,
            }
            cursor.next()?;
        }
        Ok((alive, tombstones, changed))
    }

    fn check_bytes(&self) -> Result<(), Error> {
        let mut bytes = Counters::EMPTY.in_use;
        let etcds = |family: &Family| !DERIVED.contains(family);
        for family in Family::ALL.into_iter().filter(etcds) {
            let mut cursor = self
                .snapshot
                .scan(family, b"", None, Direction::Ascending)?;
            while cursor.valid() {
                if !is_own(family, cursor.key()) {
                    bytes += rows::row_bytes(cursor.key().len(), cursor.value().len());
                }
                cursor.next()?;
            }
        }
        let counted = self.size_in_use();
        match counted == bytes && self.size() >= bytes {
            true => Ok(()),
            false => Err(Error::Damaged(format!(
                "the rows take {bytes} bytes, and the counters say {counted} of {}",
                self.size()
            ))),
        }
    }

    /// The compaction whose rows are all gone; -1 without.
    fn finished(&self) -> Result<i64, Error> {
        match self.snapshot.get(Family::Meta, rows::FINISHED_COMPACT)? {
            Some(row) => Ok(decode_row_key(&row)?.revision.main),
            None => Ok(-1),
        }
    }

    fn versions(
        &self,
        revisions: impl Iterator<Item = Revision>,
    ) -> Result<Vec<Option<Bytes>>, Error> {
        self.get_all(Family::Key, revisions.map(Revision::encode).collect())
    }

    fn get_all(&self, family: Family, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, Error> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        Ok(self.snapshot.multi_get(family, &keys)?)
    }
}

/// The counts of buckets, held against keys in their order.
struct Buckets {
    /// The last one first.
    left: Vec<(Bytes, u32)>,
    counted: u32,
}

impl Buckets {
    fn new(mut buckets: Vec<(Bytes, u32)>) -> Self {
        buckets.reverse();
        Self {
            left: buckets,
            counted: 0,
        }
    }

    fn count(&mut self, key: &[u8]) -> Result<(), Error> {
        while self.next().is_some_and(|(first, _)| *first <= key) {
            self.close()?;
        }
        self.counted += 1;
        Ok(())
    }

    fn next(&self) -> Option<&(Bytes, u32)> {
        self.left.get(self.left.len().checked_sub(2)?)
    }

    fn close(&mut self) -> Result<(), Error> {
        let counted = std::mem::take(&mut self.counted);
        match self.left.pop() {
            Some((first, said)) if said != counted => Err(Error::Damaged(format!(
                "{counted} keys are in the bucket of \"{}\", and family count says {said}",
                first.escape_ascii()
            ))),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), Error> {
        while !self.left.is_empty() {
            self.close()?;
        }
        Ok(())
    }
}

/// Hands the rows of a family over in batches.
fn each_batch<R: Read>(
    rows: &R,
    family: Family,
    mut take: impl FnMut(&[(Bytes, Bytes)]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    let mut cursor = rows.scan(family, b"", None, Direction::Ascending)?;
    while cursor.valid() {
        let row = Bytes::copy_from_slice(cursor.value());
        batch.push((Bytes::copy_from_slice(cursor.key()), row));
        if batch.len() == BATCH_ROWS {
            take(&batch)?;
            batch.clear();
        }
        cursor.next()?;
    }
    take(&batch)
}

fn count_rows<R: Read>(rows: &R, family: Family) -> Result<u64, Error> {
    let mut count = 0;
    let mut cursor = rows.scan(family, b"", None, Direction::Ascending)?;
    while cursor.valid() {
        count += 1;
        cursor.next()?;
    }
    Ok(count)
}

fn equal(what: &str, found: u64, other: &str, wanted: u64) -> Result<(), Error> {
    match found == wanted {
        true => Ok(()),
        false => Err(Error::Damaged(format!(
            "there are {found} {what}, and {wanted} {other}"
        ))),
    }
}

fn damage(key: &[u8], at: Revision, problem: &str) -> Error {
    let (key, main, sub) = (key.escape_ascii(), at.main, at.sub);
    Error::Damaged(format!("key \"{key}\" at revision {main}.{sub}: {problem}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::{Engine, MemEngine, MemSnapshot, Store, WriteBatch};

    /// A store with history, a lease, tombstones and long values.
    fn store() -> Arc<MemEngine> {
        let engine = Arc::new(MemEngine::default());
        let mut store = Store::open(Arc::clone(&engine)).unwrap();
        let mut writer = store.begin();
        writer
            .put_row(Family::Lease, rows::lease_key(7), Bytes::from_static(b"x"))
            .unwrap();
        writer.commit().unwrap();
        for n in 0..40_usize {
            let mut writer = store.begin();
            let put = PutRequest {
                key: format!("k{}", n % 9).into(),
                value: vec![b'v'; if n % 4 == 0 { 2000 } else { 10 }].into(),
                lease: if n % 9 == 5 { 7 } else { 0 },
                ..PutRequest::default()
            };
            writer.put(&put).unwrap();
            if n % 10 == 9 {
                let delete = DeleteRangeRequest {
                    key: format!("k{}", n / 10).into(),
                    ..DeleteRangeRequest::default()
                };
                writer.delete_range(&delete).unwrap();
            }
            writer.commit().unwrap();
        }
        engine
    }

    fn view(engine: &Arc<MemEngine>) -> View<MemSnapshot> {
        Store::open(Arc::clone(engine)).unwrap().view()
    }

    #[test]
    fn each_row_that_is_lost_or_changed_is_found() {
        let checked = view(&store()).check().unwrap();
        assert!(checked.keys > 5 && checked.leased == 1, "{checked:?}");
        assert!(checked.versions > checked.keys, "{checked:?}");
        let mut damaged = 0;
        for family in [
            Family::Key,
            Family::Cur,
            Family::Hist,
            Family::Count,
            Family::LeaseKey,
        ] {
            let rows = view(&store());
            let mut cursor = rows
                .snapshot()
                .scan(family, b"", None, Direction::Ascending)
                .unwrap();
            while cursor.valid() {
                let key = Bytes::copy_from_slice(cursor.key());
                let value = cursor.value().to_vec();
                let mut changes = vec![None];
                if !value.is_empty() {
                    let mut changed = value.clone();
                    match family {
                        // What an old version says is said nowhere else, but for its length.
                        Family::Key => drop(changed.pop()),
                        _ => changed[damaged % value.len()] ^= 1,
                    }
                    changes.push(Some(changed));
                }
                for change in changes {
                    let engine = store();
                    let mut batch = WriteBatch::default();
                    match &change {
                        Some(value) => batch.put(family, key.clone(), value.clone()),
                        None => batch.delete(family, key.clone()),
                    }
                    engine.write(&batch).unwrap();
                    // Some of it shows at once.
                    let found = Store::open(Arc::clone(&engine));
                    let found = found.and_then(|store| store.view().check());
                    let what = format!("{} {key:?} {change:?}", family.name());
                    assert!(matches!(found, Err(Error::Damaged(_))), "{what}: {found:?}");
                    damaged += 1;
                }
                cursor.next().unwrap();
            }
        }
        assert!(damaged > 100, "only {damaged}");
    }
}
