//! The database: options, reads, snapshots, batches, flushes.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use mvcc::{Cursor, Direction, Engine, EngineError, Family, Op, Read, WriteBatch};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily,
    ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType, DBRawIterator, ErrorKind,
    FlushOptions, ReadOptions, ReadTier, Snapshot, WriteOptions,
};
use rustix::fs::{FlockOperation, fcntl_lock};
use self_cell::self_cell;

use crate::{
    layout::{self, OpenError},
    manifest,
};

/// Block cache when the caller has no opinion.
const DEFAULT_CACHE_BYTES: usize = 64 << 20;
/// Memtables of all families together; past it RocksDB flushes all families.
const MEMTABLE_BYTES: usize = 64 << 20;
/// One bit more makes a false positive rarer than the read it saves is worth.
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Bytes of a block of the families that are read in long scans. A list of 1000 keys crosses a
/// quarter of the blocks that it would with RocksDB's 4 KiB, and each costs a search and a lookup
/// in the cache.
const SCANNED_BLOCK_BYTES: usize = 16 << 10;
/// Flushes and compactions together: one that flushes must never wait for one that compacts.
const BACKGROUND_JOBS: i32 = 2;
/// The ceiling of background writes; RocksDB tunes itself below it by what is queued.
const BACKGROUND_BYTES_PER_SECOND: i64 = 256 << 20;
const REFILL_PERIOD_MICROS: i64 = 100_000;
const FAIRNESS: i32 = 10;
/// RocksDB's own text logs, which nobody reads in the normal case.
const INFO_LOGS: usize = 2;
const INFO_LOG_BYTES: usize = 4 << 20;

/// What RocksDB locks in the folder of a database.
const LOCK: &str = "LOCK";
/// What to do about a file that is damaged.
const REPLACE: &str = "A file of this member's engine is damaged, so the member ends before it says \
                       anything wrong. Check its disk; remove the member from the cluster, delete \
                       its data directory and add it again, or restore a snapshot if it is the \
                       only member";

/// What the caller decides about memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the cache of uncompressed blocks.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: DEFAULT_CACHE_BYTES,
        }
    }
}

/// [`mvcc::Engine`] on RocksDB.
///
/// When the last of an engine and its snapshots goes and another database is in use, the
/// database is removed from the disk: it was replaced, or was built and not taken.
pub struct RocksEngine {
    database: Arc<Database>,
}

/// An open database. The order of its fields counts: it is closed first.
struct Database {
    db: DB,
    place: Place,
}

/// Where a database lies.
enum Place {
    Served(PathBuf),
    /// It is only read, under a lock that keeps those out who would write.
    Read(
        PathBuf,
        #[expect(dead_code, reason = "the lock is held by being there")] File,
    ),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Served(path) | Self::Read(path, _) => path,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Served(path) = self {
            layout::discard(path);
        }
    }
}

impl RocksEngine {
    /// Opens the engine in `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// A folder in a newer format, a damaged one, one that another process has open, and whatever
    /// the disk refuses. Nothing is changed then.
    pub fn open(folder: &Path, options: &Options) -> Result<Self, OpenError> {
        let engine = Self::open_database(layout::database(folder)?, options)?;
        // No other process is at work here now: it would hold the lock of the database in use.
        layout::sweep(folder)?;
        Ok(engine)
    }

    /// Opens a new, empty database beside the one in use in `folder`, for the state at an entry of
    /// the log; see [`RocksEngine::switch`]. What an earlier attempt at this entry left is
    /// removed. Dropped before it is taken into use, it is removed too.
    ///
    /// # Errors
    /// When the database in use is of this very entry, and whatever the disk refuses.
    pub fn build(folder: &Path, index: u64, options: &Options) -> Result<Self, OpenError> {
        let engine = Self::open_database(layout::beside(folder, index)?, options)?;
        failpoint::ENGINE_AFTER_BUILD.hit();
        Ok(engine)
    }

    /// Makes all that was written durable and takes this database into use, in the place of the
    /// one it was built beside. A crash leaves one or the other in use. The other serves its
    /// readers on, and is removed with the last of them or by the next start.
    ///
    /// # Errors
    /// Whatever the disk refuses. Which of the two the next start finds is then not known.
    pub fn switch(&self) -> Result<(), OpenError> {
        self.flush_all(true)?;
        layout::switch(self.database.place.path())
    }

    /// Opens the engine in `folder` to be read, and changes nothing on the disk. Nobody can open it
    /// to write meanwhile.
    ///
    /// # Errors
    /// As [`RocksEngine::open`]'s; also when a power cut tore the manifest, which the next start
    /// mends.
    pub fn open_to_read(folder: &Path, options: &Options) -> Result<Self, OpenError> {
        let path = layout::existing(folder)?;
        let lock = path.join(LOCK);
        let held = File::open(&lock).and_then(|file| {
            fcntl_lock(&file, FlockOperation::NonBlockingLockShared)?;
            Ok(file)
        });
        let held = held.map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => {
                OpenError::Busy { path: path.clone() }
            }
            _ => layout::failed("lock", &lock)(cause),
        })?;
        if let Some(torn) = manifest::torn(&path).map_err(layout::failed("read", &path))? {
            return Err(OpenError::Torn { path: torn });
        }
        let (db, families) = database_options(options, false);
        let db = DB::open_cf_descriptors_read_only(&db, &path, families, false);
        let db = db.map_err(unopened(&path))?;
        let place = Place::Read(path, held);
        Ok(Self {
            database: Arc::new(Database { db, place }),
        })
    }

    /// Reads every row of the database, and with it every block that holds one, whose checksums
    /// RocksDB compares. Returns how many rows there are.
    ///
    /// # Errors
    /// The first block that is damaged, with its file.
    pub fn verify(&self) -> Result<u64, EngineError> {
        let mut rows = 0;
        for family in Family::ALL {
            let mut options = ReadOptions::default();
            options.fill_cache(false);
            let all = scan(self.db(), options, family, b"", None, Direction::Ascending);
            let mut cursor = all?;
            while cursor.valid() {
                rows += 1;
                cursor.next()?;
            }
        }
        Ok(rows)
    }

    fn open_database(path: PathBuf, options: &Options) -> Result<Self, OpenError> {
        let repaired = manifest::repair(&path);
        repaired.map_err(layout::failed("repair the manifest in", &path))?;
        // Not every file system takes direct I/O; where it does, flushes and compactions stay out
        // of the page cache and out of the way of the log's fsyncs.
        let db = match open(&path, options, true) {
            Err(cause) if cause.to_string().contains("irect I/O") => open(&path, options, false),
            opened => opened,
        };
        let db = db.map_err(unopened(&path))?;
        let place = Place::Served(path);
        Ok(Self {
            database: Arc::new(Database { db, place }),
        })
    }

    fn db(&self) -> &DB {
        &self.database.db
    }

    /// Flushes and compactions in the background that failed since it was opened. What they should
    /// have written is not on the disk, and RocksDB takes no more: the process must end.
    pub fn background_errors(&self) -> u64 {
        let errors = self
            .db()
            .property_int_value(rocksdb::properties::BACKGROUND_ERRORS);
        // The property is always there; without an answer the next write tells.
        errors.ok().flatten().unwrap_or_default()
    }

    fn sum_of(&self, property: &str) -> u64 {
        let of = |family| {
            let handle = handle(self.db(), family)?;
            let value = self.db().property_int_value_cf(handle, property);
            value.map_err(|cause| EngineError::new(format!("read the property {property}"), cause))
        };
        // Both are figures for decisions about when to flush and for metrics: a missing one is 0.
        Family::ALL
            .into_iter()
            .filter_map(|family| of(family).ok().flatten())
            .sum()
    }
}

fn open(path: &Path, options: &Options, direct: bool) -> Result<DB, rocksdb::Error> {
    let (mut db, families) = database_options(options, direct);
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    DB::open_cf_descriptors(&db, path, families)
}

fn unopened(path: &Path) -> impl FnOnce(rocksdb::Error) -> EngineError {
    let action = format!("open the database {}", path.display());
    move |cause| EngineError::new(action, advised(&cause))
}

fn database_options(
    options: &Options,
    direct: bool,
) -> (rocksdb::Options, Vec<ColumnFamilyDescriptor>) {
    let mut db = rocksdb::Options::default();
    db.set_atomic_flush(true);
    db.set_db_write_buffer_size(MEMTABLE_BYTES);
    db.set_max_background_jobs(BACKGROUND_JOBS);
    db.set_use_direct_io_for_flush_and_compaction(direct);
    db.set_bytes_per_sync(1 << 20);
    db.set_auto_tuned_ratelimiter(BACKGROUND_BYTES_PER_SECOND, REFILL_PERIOD_MICROS, FAIRNESS);
    db.set_keep_log_file_num(INFO_LOGS);
    db.set_max_log_file_size(INFO_LOG_BYTES);
    let cache = Cache::new_lru_cache(options.cache_bytes);
    let mut families: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache)))
        .collect();
    // RocksDB insists on a family of this name; it stays empty.
    families.push(ColumnFamilyDescriptor::new(
        rocksdb::DEFAULT_COLUMN_FAMILY_NAME,
        rocksdb::Options::default(),
    ));
    (db, families)
}

fn family_options(family: Family, cache: &Cache) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Indexes and filters grow with the keys: in the cache, they are part of its bound. In parts: a
    // whole filter of a large file is longer than a shard of the cache, and would be read anew for
    // each row that is looked up.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_pin_top_level_index_and_filter(true);
    table.set_format_version(6);
    if matches!(family, Family::Cur | Family::Key) {
        table.set_block_size(SCANNED_BLOCK_BYTES);
    }
    if family == Family::Cur {
        // Every put asks whether its key is there.
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    }
    let mut options = rocksdb::Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options
}

fn handle(db: &DB, family: Family) -> Result<&ColumnFamily, EngineError> {
    let name = family.name();
    db.cf_handle(name)
        .ok_or_else(|| EngineError::new(format!("find the family {name}"), "it is not open"))
}

fn failed(what: &'static str, family: Family) -> impl FnOnce(rocksdb::Error) -> EngineError {
    move |cause| {
        let action = format!("{what} of family {}", family.name());
        EngineError::new(action, advised(&cause))
    }
}

/// What RocksDB says, which names the file; and what to do, when the disk gave back something else
/// than was written.
fn advised(cause: &rocksdb::Error) -> String {
    let said = cause.to_string();
    // A file that is missing was lost, or the name of it is damaged where it stands.
    match cause.kind() == ErrorKind::Corruption || said.contains("No such file") {
        true => format!("{said}. {REPLACE}"),
        false => said,
    }
}

fn get(
    db: &DB,
    family: Family,
    key: &[u8],
    options: &ReadOptions,
) -> Result<Option<Bytes>, EngineError> {
    let row = db.get_pinned_cf_opt(handle(db, family)?, key, options);
    let row = row.map_err(failed("read a row", family))?;
    Ok(row.map(|row| Bytes::copy_from_slice(&row)))
}

fn multi_get(
    db: &DB,
    family: Family,
    keys: &[&[u8]],
    options: &ReadOptions,
) -> Result<Vec<Option<Bytes>>, EngineError> {
    let rows = db.batched_multi_get_cf_opt(handle(db, family)?, keys.iter(), false, options);
    rows.into_iter()
        .map(|row| {
            let row = row.map_err(failed("read rows", family))?;
            Ok(row.map(|row| Bytes::copy_from_slice(&row)))
        })
        .collect()
}

fn scan<'a>(
    db: &'a DB,
    mut options: ReadOptions,
    family: Family,
    lower: &[u8],
    upper: Option<&[u8]>,
    direction: Direction,
) -> Result<Box<dyn Cursor + 'a>, EngineError> {
    if upper.is_some_and(|upper| upper <= lower) {
        // RocksDB's answer to bounds that cross is not defined.
        return Ok(Box::new(NoRows));
    }
    options.set_iterate_lower_bound(lower);
    if let Some(upper) = upper {
        options.set_iterate_upper_bound(upper);
    }
    let mut rows = db.raw_iterator_cf_opt(handle(db, family)?, options);
    match direction {
        Direction::Ascending => rows.seek_to_first(),
        Direction::Descending => rows.seek_to_last(),
    }
    let mut cursor = RocksCursor {
        rows,
        family,
        direction,
        valid: false,
    };
    cursor.look()?;
    Ok(Box::new(cursor))
}

struct NoRows;

impl Cursor for NoRows {
    fn valid(&self) -> bool {
        false
    }
    fn key(&self) -> &[u8] {
        &[]
    }
    fn value(&self) -> &[u8] {
        &[]
    }
    fn next(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

struct RocksCursor<'a> {
    rows: DBRawIterator<'a>,
    family: Family,
    direction: Direction,
    /// What RocksDB says after each move; asking it costs as much as a part of the move.
    valid: bool,
}

impl RocksCursor<'_> {
    /// Looks where the iterator stands. One that met an error looks like one at its end; only its
    /// status tells.
    fn look(&mut self) -> Result<(), EngineError> {
        self.valid = self.rows.valid();
        match self.valid {
            true => Ok(()),
            false => self.rows.status().map_err(failed("scan rows", self.family)),
        }
    }
}

impl Cursor for RocksCursor<'_> {
    fn valid(&self) -> bool {
        self.valid
    }

    fn key(&self) -> &[u8] {
        self.rows.key().unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.rows.value().unwrap_or_default()
    }

    fn next(&mut self) -> Result<(), EngineError> {
        if !self.valid {
            return Ok(());
        }
        match self.direction {
            Direction::Ascending => self.rows.next(),
            Direction::Descending => self.rows.prev(),
        }
        self.look()
    }
}

impl Read for RocksEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        get(self.db(), family, key, &ReadOptions::default())
    }

    fn multi_get(&self, family: Family, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        multi_get(self.db(), family, keys, &ReadOptions::default())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        let options = ReadOptions::default();
        scan(self.db(), options, family, lower, upper, direction)
    }
}

// The macro writes the unsafe code that ties the snapshot to the database it borrows from, so that
// the two can move together.
#[allow(unsafe_code)]
mod held {
    use super::{Arc, Database, Snapshot, self_cell};

    self_cell! {
        pub(super) struct Held {
            owner: Arc<Database>,
            #[covariant]
            dependent: Snapshot,
        }
    }
}

/// A state of the database that stays as it is. Clones share it; the last one lets it go.
#[derive(Clone)]
pub struct RocksSnapshot {
    held: Arc<held::Held>,
}

impl RocksSnapshot {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.held.borrow_dependent());
        options
    }

    fn db(&self) -> &DB {
        &self.held.borrow_owner().db
    }
}

impl Read for RocksSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        get(self.db(), family, key, &self.options())
    }

    fn multi_get(&self, family: Family, keys: &[&[u8]]) -> Result<Vec<Option<Bytes>>, EngineError> {
        multi_get(self.db(), family, keys, &self.options())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        lower: &[u8],
        upper: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        scan(self.db(), self.options(), family, lower, upper, direction)
    }
}

impl Engine for RocksEngine {
    type Snapshot = RocksSnapshot;

    fn snapshot(&self) -> Result<RocksSnapshot, EngineError> {
        let database = Arc::clone(&self.database);
        let held = held::Held::new(database, |database| database.db.snapshot());
        Ok(RocksSnapshot {
            held: Arc::new(held),
        })
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut rows = rocksdb::WriteBatch::default();
        for op in &batch.ops {
            match op {
                Op::Put { family, key, value } => {
                    rows.put_cf(handle(self.db(), *family)?, key, value);
                }
                Op::Delete { family, key } => rows.delete_cf(handle(self.db(), *family)?, key),
            }
        }
        let mut options = WriteOptions::default();
        // The raft log is the log.
        options.disable_wal(true);
        let written = self.db().write_opt(rows, &options);
        written.map_err(|cause| EngineError::new("write a batch", advised(&cause)))
    }

    fn flush_all(&self, wait: bool) -> Result<(), EngineError> {
        let families: Result<Vec<_>, _> = Family::ALL
            .into_iter()
            .map(|family| handle(self.db(), family))
            .collect();
        let mut options = FlushOptions::default();
        options.set_wait(wait);
        failpoint::BEFORE_COMMIT.hit();
        let flushed = self.db().flush_cfs_opt(&families?, &options);
        failpoint::AFTER_COMMIT.hit();
        flushed.map_err(|cause| EngineError::new("flush all families", advised(&cause)))
    }

    fn persisted(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        get(self.db(), family, key, &options)
    }

    fn unflushed_bytes(&self) -> u64 {
        self.sum_of("rocksdb.cur-size-all-mem-tables")
    }

    fn disk_bytes(&self) -> u64 {
        self.sum_of("rocksdb.total-sst-files-size")
    }

    fn defragment(&self) -> Result<(), EngineError> {
        failpoint::DEFRAG_BEFORE_COPY.hit();
        let mut options = CompactOptions::default();
        // A file that holds no deleted row at the last level would be skipped otherwise.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        // RocksDB's own compactions go on beside it: writes must not wait for this one.
        options.set_exclusive_manual_compaction(false);
        for family in Family::ALL {
            let handle = handle(self.db(), family)?;
            self.db()
                .compact_range_cf_opt(handle, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, path::PathBuf};

    use mvcc::conformance::{self, Bench};
    use tempfile::TempDir;

    use super::*;

    /// Folders of one run, and how many there are yet.
    struct OnDisk {
        root: TempDir,
        folders: usize,
    }

    impl OnDisk {
        fn folder(&mut self) -> PathBuf {
            self.folders += 1;
            self.root.path().join(self.folders.to_string())
        }
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    impl Bench for OnDisk {
        type Engine = RocksEngine;

        fn open(&mut self) -> RocksEngine {
            RocksEngine::open(&self.folder(), &Options::default()).unwrap()
        }

        /// What the files hold while the engine still runs is what a killed process leaves; closing
        /// the engine first would let it flush.
        fn crash(&mut self, engine: RocksEngine) -> RocksEngine {
            let old = engine.db().path().parent().unwrap().to_owned();
            let new = self.folder();
            copy(&old, &new);
            drop(engine);
            RocksEngine::open(&new, &Options::default()).unwrap()
        }
    }

    fn on_disk() -> OnDisk {
        OnDisk {
            root: tempfile::tempdir().unwrap(),
            folders: 0,
        }
    }

    #[test]
    fn rocksdb_conforms() {
        conformance::check(&mut on_disk());
    }

    #[test]
    fn a_second_process_is_refused() {
        let mut bench = on_disk();
        let folder = bench.folder();
        let _first = RocksEngine::open(&folder, &Options::default()).unwrap();
        let second = RocksEngine::open(&folder, &Options::default());
        let error = second.err().unwrap().to_string();
        assert!(error.contains("open the database"), "{error}");
        assert!(error.to_lowercase().contains("lock"), "{error}");
    }

    #[test]
    fn a_snapshot_keeps_its_database_open() {
        let mut bench = on_disk();
        let engine = bench.open();
        let mut batch = WriteBatch::default();
        batch.put(Family::Cur, "a", "1");
        engine.write(&batch).unwrap();
        let snapshot = engine.snapshot().unwrap();
        drop(engine);
        let row = snapshot.get(Family::Cur, b"a").unwrap();
        assert_eq!(row.as_deref(), Some(&b"1"[..]));
    }

    fn row(engine: &impl Read) -> Option<Bytes> {
        engine.get(Family::Cur, b"a").unwrap()
    }

    fn with_row(engine: RocksEngine, value: &'static str) -> RocksEngine {
        let mut batch = WriteBatch::default();
        batch.put(Family::Cur, "a", value);
        engine.write(&batch).unwrap();
        engine
    }

    #[test]
    fn an_engine_that_was_built_takes_the_place_of_the_one_that_serves() {
        let mut bench = on_disk();
        let folder = bench.folder();
        layout::claim(&folder, "member 1").unwrap();
        let options = Options::default();
        let old = with_row(RocksEngine::open(&folder, &options).unwrap(), "old");
        old.flush_all(true).unwrap();
        let old_path = old.db().path().to_owned();
        let new = with_row(RocksEngine::build(&folder, 12, &options).unwrap(), "new");
        assert_eq!(row(&old).unwrap(), "old");
        let crashed = bench.folder();
        copy(&folder, &crashed);
        new.switch().unwrap();
        let snapshot = old.snapshot().unwrap();
        drop(old);
        assert_eq!(row(&snapshot).unwrap(), "old", "a reader lost its engine");
        assert!(old_path.exists());
        // What a process leaves that died now, with both open.
        let switched = bench.folder();
        copy(&folder, &switched);
        drop(snapshot);
        assert!(!old_path.exists(), "nobody reads the old one any more");
        drop(new);
        for (folder, expected) in [(folder, "new"), (switched, "new"), (crashed, "old")] {
            let engine = RocksEngine::open(&folder, &options).unwrap();
            assert_eq!(row(&engine).unwrap(), expected);
            let left = fs::read_dir(&folder).unwrap();
            let left = left.filter(|entry| entry.as_ref().unwrap().path().is_dir());
            assert_eq!(left.count(), 1, "a database that is not in use was left");
            layout::claim(&folder, "member 1").unwrap();
            assert!(layout::claim(&folder, "member 2").is_err());
        }
    }

    #[test]
    fn an_engine_that_is_not_taken_leaves_nothing() {
        let mut bench = on_disk();
        let folder = bench.folder();
        let options = Options::default();
        let old = with_row(RocksEngine::open(&folder, &options).unwrap(), "old");
        for _ in 0..2 {
            let built = RocksEngine::build(&folder, 12, &options).unwrap();
            assert_eq!(row(&built), None, "it is not empty");
            let built = with_row(built, "new");
            let path = built.db().path().to_owned();
            built.flush_all(true).unwrap();
            drop(built);
            assert!(!path.exists());
        }
        let snapshot = old.snapshot().unwrap();
        drop(old);
        drop(snapshot);
        let old = RocksEngine::open(&folder, &options).unwrap();
        assert!(old.db().path().exists());
        // The first database is that of entry 0.
        assert!(matches!(
            RocksEngine::build(&folder, 0, &options),
            Err(OpenError::InUse { .. })
        ));
    }

    #[test]
    fn a_damaged_row_is_an_error_and_not_a_missing_one() {
        let mut bench = on_disk();
        let folder = bench.folder();
        let engine = RocksEngine::open(&folder, &Options::default()).unwrap();
        let mut batch = WriteBatch::default();
        // Bytes that do not compress, so that the damage lands in them.
        let value: Vec<u8> = (0..20_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        batch.put(Family::Key, "a", value);
        engine.write(&batch).unwrap();
        engine.flush_all(true).unwrap();
        let path = engine.db().path().to_owned();
        drop(engine);

        let tables = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let largest = tables
            .filter(|path| path.extension().is_some_and(|ext| ext == "sst"))
            .max_by_key(|path| fs::metadata(path).unwrap().len())
            .unwrap();
        let mut bytes = fs::read(&largest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&largest, bytes).unwrap();

        let engine = RocksEngine::open(&folder, &Options::default()).unwrap();
        let error = engine.get(Family::Key, b"a").unwrap_err().to_string();
        assert!(error.contains("read a row of family key"), "{error}");
        assert!(
            engine
                .scan(Family::Key, b"", None, Direction::Ascending)
                .is_err()
        );
    }
}
