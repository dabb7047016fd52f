//! The store against a naive model of etcd's: every version in one list, every rule taken word by
//! word. Random requests go to both, through compactions in pieces, crashes and restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    framed,
    mvccpb::KeyValue,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    CompactionProgress, Engine, Error, EventKind, Family, Import, KeyValueHash, MemEngine,
    MemSnapshot, RevisionEvents, Store, View, WriteBatch, is_own,
    revision::{Revision, RowKey},
    rows,
};

type Version = (Revision, Option<KeyValue>);

/// What etcd would hold.
#[derive(Clone, Default)]
struct Model {
    revision: i64,
    compacted: i64,
    /// All versions of each key that were not compacted, oldest first; `None` is a tombstone.
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// The rows of bucket `key`, as bytes.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    leases: BTreeSet<i64>,
    changes: i64,
    hashes: Vec<KeyValueHash>,
}

fn within(key: &[u8], lower: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == lower,
        [0] => key >= lower,
        end => key >= lower && key < end,
    }
}

impl Model {
    fn new() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            ..Self::default()
        }
    }

    fn at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let versions = self.keys.get(key)?;
        let version = versions.iter().rev().find(|(at, _)| at.main <= revision);
        version.and_then(|(_, kv)| kv.as_ref())
    }

    fn live(&self, lower: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        let keys = self.keys.keys().filter(|key| within(key, lower, end));
        let kvs = keys.filter_map(|key| self.at(key, revision));
        kvs.cloned().collect()
    }

    fn reached(&self) -> i64 {
        self.revision + i64::from(self.changes > 0)
    }

    fn range(&self, r: &RangeRequest) -> Result<(Vec<KeyValue>, i64, bool), Error> {
        let current = self.reached();
        if r.revision > current {
            return Err(Error::FutureRevision);
        }
        let at = if r.revision <= 0 { current } else { r.revision };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        let mut kvs = self.live(&r.key, &r.range_end, at);
        let count = kvs.len() as i64;
        if r.count_only {
            return Ok((vec![], count, false));
        }
        let plain = r.sort_order() == SortOrder::None
            || (r.sort_order() == SortOrder::Ascend && r.sort_target() == SortTarget::Key);
        let filtered = [
            r.min_mod_revision,
            r.max_mod_revision,
            r.min_create_revision,
            r.max_create_revision,
        ];
        if plain && filtered == [0; 4] && r.limit > 0 {
            kvs.truncate(r.limit as usize + 1);
        }
        kvs.retain(|kv| r.max_mod_revision == 0 || kv.mod_revision <= r.max_mod_revision);
        kvs.retain(|kv| r.min_mod_revision == 0 || kv.mod_revision >= r.min_mod_revision);
        kvs.retain(|kv| r.max_create_revision == 0 || kv.create_revision <= r.max_create_revision);
        kvs.retain(|kv| r.min_create_revision == 0 || kv.create_revision >= r.min_create_revision);
        let rank = |kv: &KeyValue| match r.sort_target() {
            SortTarget::Key => (0, kv.key.clone()),
            SortTarget::Version => (kv.version, Bytes::new()),
            SortTarget::Create => (kv.create_revision, Bytes::new()),
            SortTarget::Mod => (kv.mod_revision, Bytes::new()),
            SortTarget::Value => (0, kv.value.clone()),
        };
        match r.sort_order() {
            SortOrder::Descend => kvs.sort_by_key(|kv| std::cmp::Reverse(rank(kv))),
            _ => kvs.sort_by_key(rank),
        }
        let more = r.limit > 0 && kvs.len() as i64 > r.limit;
        if more {
            kvs.truncate(r.limit as usize);
        }
        if r.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                if r.sort_target() != SortTarget::Value {
                    kv.lease = 0;
                }
            }
        }
        Ok((kvs, count, more))
    }

    fn write(&mut self, key: &[u8], kv: Option<KeyValue>) {
        let revision = Revision {
            main: self.revision + 1,
            sub: self.changes,
        };
        let row = RowKey {
            revision,
            tombstone: kv.is_none(),
        };
        let tombstone = KeyValue {
            key: Bytes::copy_from_slice(key),
            ..KeyValue::default()
        };
        let value = kv.as_ref().unwrap_or(&tombstone).encode_to_vec();
        self.rows.insert(row.encode().to_vec(), value);
        self.keys
            .entry(key.to_vec())
            .or_default()
            .push((revision, kv));
        self.changes += 1;
    }

    fn put(&mut self, r: &PutRequest) -> Result<(), Error> {
        let old = self.at(&r.key, i64::MAX).cloned();
        if (r.ignore_value || r.ignore_lease) && old.is_none() {
            return Err(Error::KeyNotFound);
        }
        let main = self.revision + 1;
        let kv = KeyValue {
            key: r.key.clone(),
            create_revision: old.as_ref().map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            value: match (&old, r.ignore_value) {
                (Some(old), true) => old.value.clone(),
                _ => r.value.clone(),
            },
            lease: match (&old, r.ignore_lease) {
                (Some(old), true) => old.lease,
                _ => r.lease,
            },
        };
        self.write(&r.key, Some(kv));
        Ok(())
    }

    fn delete(&mut self, lower: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let found = self.live(lower, end, i64::MAX);
        for kv in &found {
            self.write(&kv.key, None);
        }
        found
    }

    fn finish(&mut self) {
        self.revision = self.reached();
        self.changes = 0;
    }

    /// The versions that etcd's index names as available at a revision.
    fn available(&self, at: i64, tombstone_at: bool) -> BTreeSet<Revision> {
        let mut found = BTreeSet::new();
        for versions in self.keys.values() {
            if let Some((revision, kv)) = versions.iter().rev().find(|(r, _)| r.main <= at)
                && (kv.is_some() || (tombstone_at && revision.main == at))
            {
                found.insert(*revision);
            }
        }
        found
    }

    fn hash_rows(&self, compacted: i64, at: i64, keep: &BTreeSet<Revision>) -> KeyValueHash {
        let mut bytes = b"key".to_vec();
        for (key, value) in &self.rows {
            let row = RowKey::decode(key).unwrap();
            let main = row.revision.main;
            let dropped = main <= compacted && !keep.is_empty() && !keep.contains(&row.revision);
            if main > at || dropped || (main == compacted && row.tombstone) {
                continue;
            }
            bytes.extend(key);
            bytes.extend(value);
        }
        KeyValueHash {
            hash: crc32c::crc32c(&bytes),
            compact_revision: compacted,
            revision: at,
        }
    }

    fn hash(&self, revision: i64) -> Result<KeyValueHash, Error> {
        if let Some(kept) = self.hashes.iter().find(|hash| hash.revision == revision) {
            return Ok(*kept);
        }
        if revision > 0 && revision < self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let at = if revision == 0 {
            self.revision
        } else {
            revision
        };
        Ok(self.hash_rows(self.compacted, at, &self.available(at, false)))
    }

    fn compact(&mut self, revision: i64, keep_hash: bool) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let keep = self.available(revision, true);
        if keep_hash {
            self.hashes
                .push(self.hash_rows(self.compacted, revision, &keep));
            self.hashes.sort_by_key(|hash| hash.revision);
            if self.hashes.len() > 10 {
                self.hashes.remove(0);
            }
        }
        self.compacted = revision;
        // A tombstone at the revision stays also when a put follows in the same transaction, which
        // the static check does not see of a range that ends in one zero byte.
        let stays = |row: RowKey| {
            let main = row.revision.main;
            main > revision || (row.tombstone && main == revision) || keep.contains(&row.revision)
        };
        self.rows
            .retain(|key, _| stays(RowKey::decode(key).unwrap()));
        for versions in self.keys.values_mut() {
            versions.retain(|(revision, kv)| {
                stays(RowKey {
                    revision: *revision,
                    tombstone: kv.is_none(),
                })
            });
        }
        self.keys.retain(|_, versions| !versions.is_empty());
        Ok(())
    }
}

/// The store and the model side by side.
struct Pair {
    engine: Arc<MemEngine>,
    store: Store<MemEngine>,
    model: Model,
    events: Vec<RevisionEvents>,
    rng: StdRng,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let engine = Arc::new(MemEngine::default());
        Self {
            store: Store::open(engine.clone()).unwrap(),
            engine,
            model: Model::new(),
            events: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn key(&mut self) -> Bytes {
        const ODD: [&[u8]; 6] = [b"\0", b"\0\0", b"\xff", b"a\0", b"a\0\xff", b"\xff\xff"];
        if self.rng.random_bool(0.2) {
            return Bytes::from_static(ODD[self.rng.random_range(0..ODD.len())]);
        }
        Bytes::from(format!("k{}", self.rng.random_range(0..12)))
    }

    fn end(&mut self) -> Bytes {
        match self.rng.random_range(0..4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(&[0]),
            _ => self.key(),
        }
    }

    fn lease(&mut self) -> i64 {
        match self.rng.random_range(0..5) {
            0 => self.rng.random_range(1..4),
            1 => -7,
            _ => 0,
        }
    }

    fn revision(&mut self) -> i64 {
        match self.rng.random_range(0..8) {
            0 => self.model.revision + 1,
            1 => self.model.compacted,
            2 => self.model.compacted - 1,
            3 => -1,
            4..6 => self.rng.random_range(0..=self.model.revision),
            _ => 0,
        }
    }

    fn put_request(&mut self) -> PutRequest {
        let length = if self.rng.random_bool(0.2) {
            rows::WHOLE_BYTES + 10
        } else {
            self.rng.random_range(0..9)
        };
        let (ignore_value, ignore_lease) = (self.rng.random_bool(0.1), self.rng.random_bool(0.1));
        PutRequest {
            key: self.key(),
            value: if ignore_value {
                Bytes::new()
            } else {
                vec![self.rng.random(); length].into()
            },
            lease: if ignore_lease { 0 } else { self.lease() },
            prev_kv: self.rng.random_bool(0.3),
            ignore_value,
            ignore_lease,
        }
    }

    fn range_request(&mut self) -> RangeRequest {
        let mut bound = |p: f64| {
            if self.rng.random_bool(p) {
                self.rng.random_range(0..self.model.revision + 1)
            } else {
                0
            }
        };
        let (max_mod, min_mod, max_create, min_create) =
            (bound(0.1), bound(0.1), bound(0.1), bound(0.1));
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.rng.random_range(-1..6),
            revision: self.revision(),
            sort_order: self.rng.random_range(0..3),
            sort_target: self.rng.random_range(0..5),
            serializable: false,
            keys_only: self.rng.random_bool(0.2),
            count_only: self.rng.random_bool(0.2),
            min_mod_revision: min_mod,
            max_mod_revision: max_mod,
            min_create_revision: min_create,
            max_create_revision: max_create,
        }
    }

    fn check_view(&mut self, view: &View<MemSnapshot>) {
        for _ in 0..12 {
            let r = self.range_request();
            let expected = self.model.range(&r);
            let answer = view.range(&r);
            let framed = answer.clone().map(framed::RangeResponse::from);
            assert_eq!(view.range_framed(&r), framed, "{r:?}");
            match (expected, answer) {
                (Ok((kvs, count, more)), Ok(answer)) => {
                    assert_eq!(answer.header.unwrap().revision, self.model.revision);
                    assert_eq!(answer.kvs, kvs, "{r:?}");
                    assert_eq!((answer.count, answer.more), (count, more), "{r:?}");
                }
                (expected, answer) => assert_eq!(answer.err(), expected.err(), "{r:?}"),
            }
        }
        assert_eq!(
            view.key_count(),
            self.model.live(b"", &[0], i64::MAX).len() as u64
        );
        for lease in [1, 2, 3, -7] {
            let live = self.model.live(b"", &[0], i64::MAX);
            let keys = live.iter().filter(|kv| kv.lease == lease);
            let keys: Vec<Bytes> = keys.map(|kv| kv.key.clone()).collect();
            assert_eq!(view.lease_keys(lease).unwrap(), keys);
        }
        let revision = self.revision();
        assert_eq!(
            view.hash_kv(revision),
            self.model.hash(revision),
            "at {revision}"
        );
    }

    fn check_history(&mut self, view: &View<MemSnapshot>) {
        let from = self.rng.random_range(0..self.model.revision + 2);
        if from < self.model.compacted {
            assert_eq!(view.history(from, 1), Err(Error::Compacted));
            return;
        }
        let mut found = Vec::new();
        let mut at = from;
        loop {
            let events = view.history(at, 64).unwrap();
            let Some(last) = events.last() else { break };
            at = last.revision + 1;
            found.extend(events);
        }
        let happened = self.events.iter().filter(|events| events.revision >= from);
        for (found, happened) in found.iter().zip(happened.clone()) {
            if found.revision > self.model.compacted {
                assert_eq!(found, happened);
            } else {
                let kinds = |events: &RevisionEvents| -> Vec<(Bytes, EventKind, Bytes)> {
                    let events = events.events.iter();
                    events
                        .map(|e| (e.key.clone(), e.kind, e.kv.clone()))
                        .collect()
                };
                assert_eq!(kinds(found), kinds(happened));
            }
        }
        assert_eq!(found.len(), happened.count());
    }

    /// One batch of several requests.
    fn batch(&mut self) {
        let mut store = std::mem::replace(
            &mut self.store,
            Store::open(Arc::new(MemEngine::default())).unwrap(),
        );
        let mut writer = store.begin();
        for _ in 0..self.rng.random_range(1..6) {
            match self.rng.random_range(0..10) {
                0..4 => {
                    let r = self.put_request();
                    let prev = self.model.at(&r.key, i64::MAX).cloned();
                    let expected = if r.lease != 0 && !self.model.leases.contains(&r.lease) {
                        Err(Error::LeaseNotFound)
                    } else {
                        self.model.put(&r)
                    };
                    self.model.finish();
                    match (writer.put(&r), expected) {
                        (Ok(answer), Ok(())) => {
                            assert_eq!(answer.header.unwrap().revision, self.model.revision);
                            assert_eq!(answer.prev_kv, prev.filter(|_| r.prev_kv));
                        }
                        (answer, expected) => assert_eq!(answer.err(), expected.err()),
                    }
                }
                4..6 => {
                    let r = DeleteRangeRequest {
                        key: self.key(),
                        range_end: self.end(),
                        prev_kv: self.rng.random(),
                    };
                    let deleted = self.model.delete(&r.key, &r.range_end);
                    self.model.finish();
                    let answer = writer.delete_range(&r).unwrap();
                    assert_eq!(answer.deleted, deleted.len() as i64);
                    assert_eq!(answer.header.unwrap().revision, self.model.revision);
                    if r.prev_kv {
                        assert_eq!(answer.prev_kvs, deleted);
                    }
                }
                6 => {
                    let lease = self.rng.random_range(1..4);
                    let key = rows::lease_key(lease);
                    if self.model.leases.insert(lease) {
                        writer.put_row(Family::Lease, key, "lease".into()).unwrap();
                    } else {
                        let keys = self.model.live(b"", &[0], i64::MAX);
                        let keys = keys.into_iter().filter(|kv| kv.lease == lease);
                        let keys: Vec<KeyValue> = keys.collect();
                        for kv in &keys {
                            self.model.write(&kv.key, None);
                        }
                        self.model.finish();
                        self.model.leases.remove(&lease);
                        assert_eq!(writer.delete_lease_keys(lease).unwrap(), keys.len());
                        writer.delete_row(Family::Lease, key).unwrap();
                    }
                }
                _ => {
                    let r = self.txn_request(0);
                    let before = self.model.clone();
                    let expected = self.model_txn(&r, &before);
                    match &expected {
                        Ok(_) => self.model.finish(),
                        Err(_) => self.model = before,
                    }
                    match (writer.txn(&r), expected) {
                        (Ok(answer), Ok(outcome)) => {
                            assert_eq!(answer.header.unwrap().revision, self.model.revision);
                            assert_eq!(outline(&answer.responses), outcome, "{r:?}");
                        }
                        (answer, expected) => assert_eq!(answer.err(), expected.err(), "{r:?}"),
                    }
                }
            }
            assert_eq!(writer.revision(), self.model.revision);
        }
        let committed = writer.commit().unwrap();
        self.store = store;
        self.events.extend(committed.events);
        self.check_view(&committed.view);
        self.check_history(&committed.view);
    }

    fn txn_request(&mut self, depth: u32) -> TxnRequest {
        let compare = (0..self.rng.random_range(0..3)).map(|_| {
            let target = [
                CompareTarget::Version,
                CompareTarget::Create,
                CompareTarget::Mod,
                CompareTarget::Value,
                CompareTarget::Lease,
            ][self.rng.random_range(0..5)];
            let n = self.rng.random_range(0..4);
            Compare {
                result: self.rng.random_range(0..4),
                target: target as i32,
                key: self.key(),
                range_end: self.end(),
                target_union: Some(match target {
                    CompareTarget::Version => TargetUnion::Version(n),
                    CompareTarget::Create => TargetUnion::CreateRevision(n),
                    CompareTarget::Mod => TargetUnion::ModRevision(n),
                    CompareTarget::Value => TargetUnion::Value(vec![n as u8].into()),
                    CompareTarget::Lease => TargetUnion::Lease(n),
                }),
            }
        });
        let compare = compare.collect();
        let success = self.ops_that_pass(depth);
        let failure = self.ops_that_pass(depth);
        TxnRequest {
            compare,
            success,
            failure,
        }
    }

    /// Operations that no static check refuses: etcd's puts no key twice, and what it would tell
    /// watchers of such a transaction is nothing that a store has to know.
    fn ops_that_pass(&mut self, depth: u32) -> Vec<RequestOp> {
        loop {
            let ops = self.ops(depth);
            if puts(&ops).is_some() {
                return ops;
            }
        }
    }

    fn ops(&mut self, depth: u32) -> Vec<RequestOp> {
        let mut ops = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let request = match self.rng.random_range(0..6) {
                0 | 1 => Request::RequestRange(self.range_request()),
                2 | 3 => Request::RequestPut(self.put_request()),
                4 => Request::RequestDeleteRange(DeleteRangeRequest {
                    key: self.key(),
                    range_end: self.end(),
                    prev_kv: false,
                }),
                _ if depth < 2 => Request::RequestTxn(self.txn_request(depth + 1)),
                _ => continue,
            };
            ops.push(RequestOp {
                request: Some(request),
            });
        }
        ops
    }

    fn model_txn(&mut self, r: &TxnRequest, before: &Model) -> Result<Vec<String>, Error> {
        let mut deleted = Vec::new();
        check_txn(before, r, &mut deleted)?;
        let holds = r.compare.iter().all(|compare| model_holds(before, compare));
        let ops = if holds { &r.success } else { &r.failure };
        let mut outcome = Vec::new();
        for op in ops {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => {
                    let (kvs, count, more) = self.model.range(range)?;
                    outcome.push(format!("range {kvs:?} {count} {more}"));
                }
                Request::RequestPut(put) => {
                    let prev = self.model.at(&put.key, i64::MAX).cloned();
                    self.model.put(put)?;
                    let prev = prev.filter(|_| put.prev_kv);
                    outcome.push(format!("put {prev:?} {}", self.model.reached()));
                }
                Request::RequestDeleteRange(delete) => {
                    let deleted = self.model.delete(&delete.key, &delete.range_end);
                    outcome.push(format!("delete {} {}", deleted.len(), self.model.reached()));
                }
                Request::RequestTxn(txn) => outcome.extend(self.model_txn(txn, before)?),
            }
        }
        Ok(outcome)
    }

    fn compact(&mut self) {
        let revision = self.revision();
        // A hash is kept only when the compaction before is finished.
        let keep_hash = !self.store.compaction_pending();
        let compacted = self.model.compacted;
        let expected = self.model.compact(revision, keep_hash);
        let mut writer = self.store.begin();
        assert_eq!(writer.compact(revision), expected);
        let committed = writer.commit().unwrap();
        assert_eq!(
            committed.compaction_hash.is_some(),
            expected.is_ok() && keep_hash
        );
        if let Some(hash) = committed.compaction_hash {
            let computed = hash.compute().unwrap();
            let model = self
                .model
                .hashes
                .iter()
                .find(|hash| hash.revision == revision);
            assert_eq!(Some(&computed), model, "{compacted} to {revision}");
        }
        if expected.is_ok() {
            self.events.retain(|events| events.revision >= revision);
            // Of the compacted revision itself only what is still the newest remains.
            let rows = &self.model.rows;
            for events in &mut self.events {
                if events.revision == revision {
                    let mut sub = 0..;
                    events.events.retain(|event| {
                        let row = RowKey {
                            revision: Revision {
                                main: revision,
                                sub: sub.next().unwrap(),
                            },
                            tombstone: event.kind == EventKind::Delete,
                        };
                        rows.contains_key(&row.encode()[..])
                    });
                }
            }
            self.events.retain(|events| !events.events.is_empty());
        }
        self.check_view(&committed.view);
    }

    fn finish_compaction(&mut self) {
        loop {
            match self.store.compaction_step().unwrap() {
                CompactionProgress::Idle => break,
                CompactionProgress::More | CompactionProgress::Finished(_) => {}
            }
        }
        let view = self.store.view();
        let snapshot = view.snapshot();
        let rows = all_rows(snapshot, Family::Key);
        let model = self.model.rows.clone().into_iter().collect::<Vec<_>>();
        let keys = |rows: &[(Vec<u8>, Vec<u8>)]| -> Vec<RowKey> {
            let keys = rows.iter().map(|(key, _)| RowKey::decode(key));
            keys.map(Option::unwrap).collect()
        };
        assert_eq!(keys(&rows), keys(&model), "the rows of family key");
        assert_eq!(rows, model, "the rows of family key");
        // Nothing that compaction should have taken is left in the history.
        for (key, _) in all_rows(snapshot, Family::Hist) {
            let (_, superseding) = rows::decode_hist_key(&key).unwrap();
            assert!(superseding.main > self.model.compacted);
        }
        // The counter says what a walk over all rows would.
        let mut bytes = rows::Counters::EMPTY.in_use;
        for family in [Family::Key, Family::Lease, Family::Meta] {
            for (key, value) in all_rows(snapshot, family) {
                if key != rows::COUNTERS_KEY {
                    bytes += rows::row_bytes(key.len(), value.len());
                }
            }
        }
        assert_eq!(view.size_in_use(), bytes);
        assert!(view.size() >= bytes);
        view.check().unwrap();
        self.check_view(&view);
        self.check_history(&view);
    }

    /// Goes on with an import of what etcd has of the store.
    fn import(&mut self) {
        let old = Store::open(self.engine.clone()).unwrap().view();
        let engine = import(old.snapshot(), |_| true);
        let store = Store::open(engine.clone()).unwrap();
        let new = store.view();
        for family in Family::ALL {
            let filter = |(key, value): (Vec<u8>, Vec<u8>)| match family {
                Family::Count => None,
                // Where an interrupted compaction will take them up anew.
                Family::Hist if store.compaction_pending() => {
                    let (_, superseding) = rows::decode_hist_key(&key).unwrap();
                    (superseding.main > old.compacted).then_some((key, value))
                }
                Family::Meta if is_own(family, &key) => None,
                _ => Some((key, value)),
            };
            let [before, after] = [&old, &new].map(|view| {
                let rows = all_rows(view.snapshot(), family).into_iter();
                rows.filter_map(filter).collect::<Vec<_>>()
            });
            assert_eq!(after, before, "family {}", family.name());
        }
        assert_eq!(new.revision(), old.revision());
        assert_eq!(new.size_in_use(), old.size_in_use());
        assert_eq!(new.size(), new.size_in_use());
        for at in self.model.compacted.max(1)..=self.model.revision {
            assert_eq!(new.hash_kv(at), old.hash_kv(at), "at {at}");
        }
        self.go_on_with(engine, store);
    }

    /// The same of a store whose compaction an etcd has begun: it takes all that is superseded,
    /// in the order of revisions.
    fn import_interrupted(&mut self) {
        let until = Revision {
            main: self.rng.random_range(0..=self.model.revision),
            sub: self.rng.random_range(0..3),
        };
        let model = &self.model;
        let stays = |row: RowKey| {
            row.revision >= until
                || row.revision.main > model.compacted
                || model.rows.contains_key(&row.encode()[..])
        };
        let old = self.store.view();
        let engine = import(old.snapshot(), stays);
        let store = Store::open(engine.clone()).unwrap();
        self.go_on_with(engine, store);
        self.finish_compaction();
    }

    fn go_on_with(&mut self, engine: Arc<MemEngine>, store: Store<MemEngine>) {
        self.engine = engine;
        self.store.replace(store);
        let view = self.store.view();
        assert_eq!(view.compact_revision(), self.model.compacted);
        view.check().unwrap();
        self.check_view(&view);
        self.check_history(&view);
    }

    fn restart(&mut self) {
        self.store = Store::open(self.engine.clone()).unwrap();
        self.model.hashes.clear();
        let view = self.store.view();
        // Also within a compaction.
        view.check().unwrap();
        assert_eq!(view.compact_revision(), self.model.compacted);
        self.check_view(&view);
    }
}

/// All that etcd has of a store, imported in small batches.
fn import(rows: &MemSnapshot, wanted: impl Fn(RowKey) -> bool) -> Arc<MemEngine> {
    let engine = Arc::new(MemEngine::default());
    let bytes = |family| {
        let rows = all_rows(rows, family).into_iter();
        rows.map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
    };
    let meta = bytes(Family::Meta).filter(|(key, _)| !is_own(Family::Meta, key));
    let mut import = Import::begin(&*engine, meta.collect()).unwrap();
    import.batch_rows = 5;
    for (key, value) in bytes(Family::Lease) {
        import.row(Family::Lease, key, value).unwrap();
    }
    for (key, value) in bytes(Family::Key) {
        if wanted(RowKey::decode(&key).unwrap()) {
            import.version(key, value).unwrap();
        }
        // Nobody can take for a store what was not finished.
        let opened = Store::open(engine.clone());
        let written = engine.unflushed_batches() > 0;
        assert_eq!(opened.is_err(), written);
    }
    import.finish().unwrap();
    assert_eq!(engine.unflushed_batches(), 0);
    engine
}

fn all_rows(rows: &MemSnapshot, family: Family) -> Vec<(Vec<u8>, Vec<u8>)> {
    use crate::{Direction, Read};
    let mut cursor = rows.scan(family, b"", None, Direction::Ascending).unwrap();
    let mut found = Vec::new();
    while cursor.valid() {
        found.push((cursor.key().to_vec(), cursor.value().to_vec()));
        cursor.next().unwrap();
    }
    found
}

/// The keys that a branch puts; `None` when it may put one twice. Of a nested transaction only one
/// branch runs.
fn puts(ops: &[RequestOp]) -> Option<BTreeSet<&Bytes>> {
    let mut keys = BTreeSet::new();
    for op in ops {
        let put = match op.request.as_ref().unwrap() {
            Request::RequestPut(put) => BTreeSet::from([&put.key]),
            Request::RequestTxn(txn) => &puts(&txn.success)? | &puts(&txn.failure)?,
            _ => continue,
        };
        if !keys.is_disjoint(&put) {
            return None;
        }
        keys.extend(put);
    }
    Some(keys)
}

fn model_holds(model: &Model, compare: &Compare) -> bool {
    let kvs = model.live(&compare.key, &compare.range_end, i64::MAX);
    let one = |kv: &KeyValue| {
        let order = match compare.target_union.as_ref().unwrap() {
            TargetUnion::Version(n) => kv.version.cmp(n),
            TargetUnion::CreateRevision(n) => kv.create_revision.cmp(n),
            TargetUnion::ModRevision(n) => kv.mod_revision.cmp(n),
            TargetUnion::Value(value) => kv.value.cmp(value),
            TargetUnion::Lease(n) => kv.lease.cmp(n),
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::NotEqual => order.is_ne(),
        }
    };
    if kvs.is_empty() {
        return compare.target() != CompareTarget::Value && one(&KeyValue::default());
    }
    kvs.iter().all(one)
}

fn check_txn(
    before: &Model,
    r: &TxnRequest,
    deleted: &mut Vec<(Bytes, Bytes)>,
) -> Result<(), Error> {
    let holds = r.compare.iter().all(|compare| model_holds(before, compare));
    for op in if holds { &r.success } else { &r.failure } {
        match op.request.as_ref().unwrap() {
            Request::RequestRange(range) if range.revision != 0 => {
                if range.revision > before.revision {
                    return Err(Error::FutureRevision);
                }
                if range.revision < before.compacted {
                    return Err(Error::Compacted);
                }
            }
            Request::RequestPut(put) => {
                if put.lease != 0 && !before.leases.contains(&put.lease) {
                    return Err(Error::LeaseNotFound);
                }
                if put.ignore_value || put.ignore_lease {
                    let gone = deleted.iter().any(|(key, end)| within(&put.key, key, end));
                    if gone || before.at(&put.key, i64::MAX).is_none() {
                        return Err(Error::KeyNotFound);
                    }
                }
            }
            Request::RequestDeleteRange(delete) => {
                deleted.push((delete.key.clone(), delete.range_end.clone()));
            }
            Request::RequestTxn(txn) => check_txn(before, txn, deleted)?,
            Request::RequestRange(_) => {}
        }
    }
    Ok(())
}

/// The responses in the words of [`Pair::model_txn`].
fn outline(responses: &[proto::etcdserverpb::ResponseOp]) -> Vec<String> {
    let mut outline_of = Vec::new();
    for response in responses {
        match response.response.as_ref().unwrap() {
            Response::ResponseRange(r) => {
                outline_of.push(format!("range {:?} {} {}", r.kvs, r.count, r.more));
            }
            Response::ResponsePut(r) => {
                let revision = r.header.as_ref().unwrap().revision;
                outline_of.push(format!("put {:?} {revision}", r.prev_kv));
            }
            Response::ResponseDeleteRange(r) => {
                let revision = r.header.as_ref().unwrap().revision;
                outline_of.push(format!("delete {} {revision}", r.deleted));
            }
            Response::ResponseTxn(r) => outline_of.extend(outline(&r.responses)),
        }
    }
    outline_of
}

/// etcd's own suite looks at this.
#[test]
fn equal_ones_stay_in_the_order_of_keys_whatever_the_order() {
    let mut store = Store::open(Arc::new(MemEngine::default())).unwrap();
    let mut writer = store.begin();
    for key in ["a", "b", "c", "b"] {
        let request = PutRequest {
            key: key.into(),
            ..PutRequest::default()
        };
        writer.put(&request).unwrap();
    }
    let view = writer.commit().unwrap().view;
    for (order, expected) in [(SortOrder::Ascend, "acb"), (SortOrder::Descend, "bac")] {
        let request = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            sort_order: order as i32,
            sort_target: SortTarget::Version as i32,
            ..RangeRequest::default()
        };
        let found = view.range(&request).unwrap().kvs;
        let keys: Vec<&[u8]> = found.iter().map(|kv| &kv.key[..]).collect();
        assert_eq!(keys.concat(), expected.as_bytes(), "{order:?}");
    }
}

/// A row that leads back to itself, as damage may: it must not be followed for ever.
#[test]
fn a_change_that_supersedes_itself_is_damage() {
    let engine = Arc::new(MemEngine::default());
    let mut store = Store::open(Arc::clone(&engine)).unwrap();
    let request = PutRequest {
        key: "a".into(),
        ..PutRequest::default()
    };
    for _ in 0..2 {
        let mut writer = store.begin();
        writer.put(&request).unwrap();
        writer.commit().unwrap();
    }
    let own = Revision { main: 3, sub: 0 };
    let superseded = rows::Superseded {
        revision: own,
        row_bytes: 1,
    };
    let mut batch = WriteBatch::default();
    let row = rows::encode_superseded(superseded);
    batch.put(Family::Hist, rows::hist_key(b"a", own), row);
    engine.write(&batch).unwrap();
    let view = Store::open(engine).unwrap().view();
    let read = view.history(2, usize::MAX);
    assert!(matches!(read, Err(Error::Damaged(_))), "{read:?}");
}

/// Longer than what is read in one piece, with values that stand in `cur` and such that do not.
#[test]
fn a_long_list_is_sent_as_it_is_read() {
    let mut store = Store::open(Arc::new(MemEngine::default())).unwrap();
    let put = |store: &mut Store<MemEngine>, key: usize, value: usize| {
        let request = PutRequest {
            key: format!("{key:04}").into(),
            value: vec![7; value].into(),
            ..PutRequest::default()
        };
        let mut writer = store.begin();
        writer.put(&request).unwrap();
        writer.commit().unwrap();
    };
    for key in 0..1500 {
        put(&mut store, key, if key % 5 < 2 { 1200 } else { 10 });
    }
    let old = store.view().revision();
    for key in (0..1500).step_by(3) {
        put(&mut store, key, 20);
    }
    let view = store.view();
    for (revision, limit) in [
        (0, 0),
        (old, 0),
        (0, 700),
        (old, 700),
        (0, 1500),
        (old, 1499),
    ] {
        let request = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            revision,
            limit,
            ..RangeRequest::default()
        };
        let plain = view.range(&request).unwrap();
        let framed = view.range_framed(&request).unwrap();
        let listed = if limit == 0 { 1500 } else { limit };
        assert_eq!((framed.kvs.count() as i64, framed.count), (listed, 1500));
        assert_eq!(framed.more, listed < 1500);
        assert_eq!(framed, plain.into(), "{revision} {limit}");
    }
}

#[test]
fn the_store_is_the_model() {
    // One that once found a key that a transaction put twice.
    for seed in (0..60).chain([533]) {
        let mut pair = Pair::new(seed);
        for _ in 0..60 {
            match pair.rng.random_range(0..24) {
                0..14 => pair.batch(),
                14..16 => pair.compact(),
                16 => {
                    pair.store.compaction_step().unwrap();
                }
                17 | 18 => pair.finish_compaction(),
                19 => pair.restart(),
                20 => pair.import_interrupted(),
                _ => pair.import(),
            }
        }
        pair.finish_compaction();
    }
}
