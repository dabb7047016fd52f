//! The suite that every [`Engine`] passes, with a crash between any two calls of its script. The
//! engine in memory runs it here and RocksDB in crate `engine`, so that what the tests and the
//! simulator show on the one holds on the other.
//!
//! It panics with what was broken; it is for tests only (feature `conformance`).

// Every failure here is a failed test, and says which promise was broken.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    Import, MemEngine, MemSnapshot, Store, View,
    engine::{Direction, Engine, Family, Op, Read, WriteBatch},
    import::is_own,
};

/// How the suite gets engines of the kind under test.
pub trait Bench {
    /// The kind under test.
    type Engine: Engine;

    /// A new, empty engine.
    fn open(&mut self) -> Self::Engine;

    /// What is found after the process died with `engine` as it is now.
    fn crash(&mut self, engine: Self::Engine) -> Self::Engine;
}

/// Rows of all families: what an engine must look like.
type Model = BTreeMap<(Family, Bytes), Bytes>;

/// Batches that the crash script writes, and after which of them it flushes.
const SCRIPT_BATCHES: u8 = 6;
const FLUSH_AFTER: [u8; 2] = [2, 4];
/// Random batches compared with the model, and a seed that makes every run the same.
const RANDOM_BATCHES: usize = 200;
const SEED: u64 = 0x00ca_1234;
/// Changes of the store that is imported, and the rows of one batch of the import.
const IMPORTED_CHANGES: usize = 800;
const IMPORT_BATCH: usize = 60;

/// Runs the whole suite.
pub fn check<B: Bench>(bench: &mut B) {
    batches_apply_in_order(&bench.open());
    scans_keep_their_bounds(&bench.open());
    random_batches_match_a_model(&bench.open());
    snapshots_stay(&bench.open());
    flushed_bytes_leave_memory(&bench.open());
    for calls in 0..=script_calls() {
        a_crash_leaves_a_prefix(bench, calls);
    }
    an_import_is_the_store_it_came_from(bench);
}

fn put(family: Family, key: &'static str, value: &'static str) -> Op {
    Op::Put {
        family,
        key: key.into(),
        value: value.into(),
    }
}

fn delete(family: Family, key: &'static str) -> Op {
    Op::Delete {
        family,
        key: key.into(),
    }
}

fn write<E: Engine>(engine: &E, ops: Vec<Op>) {
    engine.write(&WriteBatch { ops }).unwrap();
}

fn batches_apply_in_order<E: Engine>(engine: &E) {
    write(engine, vec![]);
    write(
        engine,
        vec![
            put(Family::Cur, "a", "1"),
            put(Family::Cur, "a", "2"),
            put(Family::Key, "a", "other family"),
            put(Family::Cur, "b", "gone"),
            delete(Family::Cur, "b"),
            delete(Family::Cur, "never there"),
            delete(Family::Cur, "c"),
            put(Family::Cur, "c", ""),
        ],
    );
    let expected = [Some(Bytes::from("2")), None, Some(Bytes::new())];
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    assert_eq!(engine.multi_get(Family::Cur, &keys).unwrap(), expected);
    for (key, expected) in keys.iter().zip(&expected) {
        assert_eq!(&engine.get(Family::Cur, key).unwrap(), expected);
    }
    let other = engine.get(Family::Key, b"a").unwrap();
    assert_eq!(other.as_deref(), Some(&b"other family"[..]));
    assert_eq!(engine.multi_get(Family::Cur, &[]).unwrap(), []);
}

/// The keys of a scan.
fn keys<R: Read>(read: &R, lower: &str, upper: Option<&str>, direction: Direction) -> String {
    let upper = upper.map(str::as_bytes);
    let rows = rows(read, Family::Cur, lower.as_bytes(), upper, direction);
    let keys: Vec<_> = rows
        .iter()
        .map(|(key, _)| String::from_utf8_lossy(key).into_owned())
        .collect();
    keys.join(" ")
}

fn rows<R: Read>(
    read: &R,
    family: Family,
    lower: &[u8],
    upper: Option<&[u8]>,
    direction: Direction,
) -> Vec<(Bytes, Bytes)> {
    let mut cursor = read.scan(family, lower, upper, direction).unwrap();
    let mut rows = Vec::new();
    while cursor.valid() {
        rows.push((
            Bytes::copy_from_slice(cursor.key()),
            Bytes::copy_from_slice(cursor.value()),
        ));
        cursor.next().unwrap();
    }
    assert!(cursor.key().is_empty() && cursor.value().is_empty());
    rows
}

fn scans_keep_their_bounds<E: Engine>(engine: &E) {
    use Direction::{Ascending, Descending};
    assert_eq!(keys(engine, "", None, Ascending), "");
    let ops = ["a", "b", "bb", "c"].map(|key| put(Family::Cur, key, "v"));
    write(engine, ops.to_vec());
    // A neighbour family must never be seen.
    write(engine, vec![put(Family::Hist, "b", "v")]);
    for (lower, upper, expected) in [
        ("", None, "a b bb c"),
        ("b", None, "b bb c"),
        ("b", Some("c"), "b bb"),
        ("b", Some("b"), ""),
        ("c", Some("a"), ""),
        ("", Some(""), ""),
        ("aa", Some("ba"), "b"),
        ("d", None, ""),
        ("", Some("d"), "a b bb c"),
    ] {
        assert_eq!(keys(engine, lower, upper, Ascending), expected);
        let mut reversed: Vec<_> = expected.split(' ').collect();
        reversed.reverse();
        let reversed = reversed.join(" ");
        assert_eq!(keys(engine, lower, upper, Descending), reversed);
    }
}

fn contents<R: Read>(read: &R) -> Model {
    let mut model = Model::new();
    for family in Family::ALL {
        for (key, value) in rows(read, family, b"", None, Direction::Ascending) {
            model.insert((family, key), value);
        }
    }
    model
}

fn apply(model: &mut Model, batch: &WriteBatch) {
    for op in &batch.ops {
        match op.clone() {
            Op::Put { family, key, value } => model.insert((family, key), value),
            Op::Delete { family, key } => model.remove(&(family, key)),
        };
    }
}

fn random_batch(rng: &mut StdRng) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..rng.random_range(0..6) {
        let family = Family::ALL[rng.random_range(0..Family::ALL.len())];
        // Few keys, so that rows are overwritten and deleted; zero and 0xff bytes among them.
        let bytes = [0, 1, 0x7f, 0xff];
        let length = rng.random_range(1..4);
        let key: Vec<u8> = (0..length).map(|_| bytes[rng.random_range(0..4)]).collect();
        if rng.random_bool(0.3) {
            batch.delete(family, key);
        } else {
            let value: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
            batch.put(family, key, value);
        }
    }
    batch
}

fn random_batches_match_a_model<E: Engine>(engine: &E) {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut model = Model::new();
    for round in 0..RANDOM_BATCHES {
        let batch = random_batch(&mut rng);
        apply(&mut model, &batch);
        engine.write(&batch).unwrap();
        match round % 50 {
            20 => engine.flush_all(true).unwrap(),
            30 => engine.flush_all(false).unwrap(),
            40 => engine.defragment().unwrap(),
            _ => {}
        }
        if round % 10 == 0 {
            assert_eq!(contents(engine), model, "in round {round}");
        }
    }
    assert_eq!(contents(engine), model);
    assert_eq!(contents(&engine.snapshot().unwrap()), model);
}

fn snapshots_stay<E: Engine>(engine: &E) {
    write(engine, vec![put(Family::Cur, "a", "1")]);
    let first = engine.snapshot().unwrap();
    let seen = contents(&first);
    write(
        engine,
        vec![
            put(Family::Cur, "a", "2"),
            put(Family::Cur, "b", "2"),
            put(Family::Meta, "applied", "2"),
        ],
    );
    let second = engine.snapshot().unwrap();
    write(engine, vec![delete(Family::Cur, "a")]);
    engine.flush_all(true).unwrap();
    engine.defragment().unwrap();
    assert_eq!(contents(&first), seen, "a snapshot has moved");
    assert_eq!(contents(&second).len(), 3, "a snapshot has moved");
    assert_eq!(engine.get(Family::Cur, b"a").unwrap(), None);

    // Shared with another thread, and outliving the one it was cloned from.
    let shared = first.clone();
    drop(first);
    let elsewhere = std::thread::spawn(move || contents(&shared));
    assert_eq!(elsewhere.join().unwrap(), seen);
}

fn flushed_bytes_leave_memory<E: Engine>(engine: &E) {
    let mut batch = WriteBatch::default();
    batch.put(Family::Key, "large", vec![7; 1 << 20]);
    engine.write(&batch).unwrap();
    let before = engine.unflushed_bytes();
    assert!(before >= 1 << 20, "{before} bytes do not hold a MiB");
    engine.flush_all(true).unwrap();
    let after = engine.unflushed_bytes();
    assert!(after < before, "{after} bytes after the flush of {before}");
    assert!(engine.disk_bytes() > 0);
}

/// A store with a history, half of it compacted.
fn store_to_import() -> Store<MemEngine> {
    let mut store = Store::open(Arc::new(MemEngine::new())).unwrap();
    let mut rng = StdRng::seed_from_u64(SEED);
    for n in 0..IMPORTED_CHANGES {
        let mut writer = store.begin();
        let key = Bytes::from(format!("{}", rng.random_range(0..300)));
        if n == 0 {
            let lease = crate::rows::lease_key(1);
            writer.put_row(Family::Lease, lease, "1".into()).unwrap();
        } else if rng.random_bool(0.2) {
            let request = DeleteRangeRequest {
                key,
                ..DeleteRangeRequest::default()
            };
            writer.delete_range(&request).unwrap();
        } else {
            let length = if rng.random_bool(0.1) { 2000 } else { 20 };
            let request = PutRequest {
                key,
                value: vec![7; length].into(),
                lease: i64::from(rng.random_bool(0.1)),
                ..PutRequest::default()
            };
            writer.put(&request).unwrap();
        }
        if n == IMPORTED_CHANGES / 2 {
            writer.compact(writer.revision()).unwrap();
        }
        writer.commit().unwrap();
    }
    while store.compaction_pending() {
        store.compaction_step().unwrap();
    }
    store
}

/// Imports a part of the rows of `key`; all of them for `None`.
fn import<E: Engine>(engine: &E, view: &View<MemSnapshot>, part: Option<usize>) {
    let all = |family| rows(view.snapshot(), family, b"", None, Direction::Ascending);
    let meta = all(Family::Meta).into_iter();
    let meta = meta.filter(|(key, _)| !is_own(Family::Meta, key)).collect();
    let mut import = Import::begin(engine, meta).unwrap();
    import.batch_rows = IMPORT_BATCH;
    for (key, value) in all(Family::Lease) {
        import.row(Family::Lease, key, value).unwrap();
    }
    let versions = all(Family::Key).into_iter();
    for (key, value) in versions.take(part.unwrap_or(usize::MAX)) {
        import.version(key, value).unwrap();
    }
    if part.is_none() {
        import.finish().unwrap();
    }
}

fn an_import_is_the_store_it_came_from<B: Bench>(bench: &mut B) {
    let store = store_to_import();
    let view = store.view();
    let engine = bench.open();
    import(&engine, &view, Some(3 * IMPORT_BATCH));
    engine.flush_all(true).unwrap();
    let engine = bench.crash(engine);
    assert!(
        Store::open(Arc::new(engine)).is_err(),
        "a part of an import was taken for a store"
    );
    let engine = bench.open();
    import(&engine, &view, None);
    // All of it is durable by then.
    let engine = bench.crash(engine);
    let imported = Store::open(Arc::new(engine)).unwrap().view();
    let rows_of = |mut all: Model| {
        // How keys lie in the buckets of counts depends on how they came.
        all.retain(|(family, key), _| *family != Family::Count && !is_own(*family, key));
        all
    };
    assert_eq!(
        rows_of(contents(imported.snapshot())),
        rows_of(contents(view.snapshot()))
    );
    assert_eq!(imported.key_count(), view.key_count());
    assert_eq!(imported.size_in_use(), view.size_in_use());
    for at in [view.compact_revision(), view.revision()] {
        assert_eq!(imported.hash_kv(at), view.hash_kv(at));
    }
}

/// The n-th batch of the script: a marker first, then rows of other families that say the same.
fn script_batch(n: u8) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.put(Family::Meta, "n", vec![n]);
    batch.put(Family::Key, vec![n], "history");
    batch.put(Family::Cur, "newest", vec![n]);
    batch.delete(Family::Key, vec![n.wrapping_sub(2)]);
    batch
}

fn script_calls() -> usize {
    usize::from(SCRIPT_BATCHES) + FLUSH_AFTER.len()
}

/// Runs the first `calls` calls of the script, crashes, and looks at what is left; then goes on
/// from there, since a restarted process does.
fn a_crash_leaves_a_prefix<B: Bench>(bench: &mut B, calls: usize) {
    let engine = bench.open();
    let mut states = vec![Model::new()];
    let mut flushed = 0;
    let mut done = 0;
    'script: for n in 1..=SCRIPT_BATCHES {
        if done == calls {
            break;
        }
        let batch = script_batch(n);
        engine.write(&batch).unwrap();
        let mut state = states[usize::from(n) - 1].clone();
        apply(&mut state, &batch);
        states.push(state);
        done += 1;
        if FLUSH_AFTER.contains(&n) {
            if done == calls {
                break 'script;
            }
            engine.flush_all(true).unwrap();
            flushed = usize::from(n);
            done += 1;
        }
    }
    let persisted = engine.persisted(Family::Meta, b"n").unwrap();
    let persisted = persisted.map_or(0, |n| usize::from(n[0]));
    assert!(persisted >= flushed, "persisted() misses a flushed batch");

    let engine = bench.crash(engine);
    let left = engine.get(Family::Meta, b"n").unwrap();
    let left = left.map_or(0, |n| usize::from(n[0]));
    assert!(
        left >= flushed,
        "after {calls} calls a crash lost a flushed batch"
    );
    assert!(left >= persisted, "a crash lost what persisted() promised");
    assert_eq!(
        contents(&engine),
        states[left],
        "after {calls} calls a crash left a part of a batch"
    );

    engine.write(&script_batch(9)).unwrap();
    engine.flush_all(true).unwrap();
    let again = bench.crash(engine);
    let marker = again.get(Family::Meta, b"n").unwrap();
    assert_eq!(
        marker.as_deref(),
        Some(&[9][..]),
        "a crash lost a flushed batch"
    );
}
