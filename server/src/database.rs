//! etcd's database file, made of a state and made into one.

use std::{
    fs::File,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, ensure};
use bolt::{Database, Plan, Planner, Writer};
use engine::RocksEngine;
use mvcc::Read;
use sha2::{Digest, Sha256};
use state::{Applied, BucketRow, BucketSink, BucketSource};

/// A SHA-256, and what etcd's tools take the length of a file by to see whether there is one.
const SUM_BYTES: u64 = 32;
const MIN_PAGE_BYTES: u64 = 512;
/// Bytes that are read and summed at once.
const SUM_CHUNK: usize = 1 << 20;

/// Lays a state out, by the lengths of its rows.
///
/// # Errors
/// The engine's.
pub(crate) fn plan<S: Read>(rows: &S) -> io::Result<Plan> {
    let mut sink = Planning(Planner::new());
    state::export(rows, &mut sink).map_err(io::Error::other)?;
    sink.0.finish().map_err(io::Error::other)
}

/// Writes the state as it was laid out.
///
/// # Errors
/// The engine's, and the sink's.
pub(crate) fn write<S: Read>(rows: &S, plan: Plan, sink: impl Write) -> io::Result<()> {
    let writer = Writer::new(plan, sink).map_err(io::Error::other)?;
    let mut sink = Writing(writer);
    state::export(rows, &mut sink).map_err(io::Error::other)?;
    let mut sink = sink.0.finish().map_err(io::Error::other)?;
    sink.flush()
}

struct Planning(Planner);

impl BucketSink for Planning {
    type Error = bolt::Error;

    fn bucket(&mut self, name: &str) -> Result<(), bolt::Error> {
        self.0.bucket(name.as_bytes())
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), bolt::Error> {
        self.0.row(key, value.len())
    }
}

struct Writing<W: Write>(Writer<W>);

impl<W: Write> BucketSink for Writing<W> {
    type Error = bolt::Error;

    fn bucket(&mut self, name: &str) -> Result<(), bolt::Error> {
        self.0.bucket(name.as_bytes())
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), bolt::Error> {
        self.0.row(key, value)
    }
}

/// Where a member's engines are, and how they are opened.
#[derive(Clone, Debug)]
pub(crate) struct Engines {
    folder: PathBuf,
    options: engine::Options,
}

impl Engines {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            options: engine::Options::default(),
        }
    }

    /// Whether there is one.
    pub fn exists(&self) -> bool {
        engine::exists(&self.folder)
    }

    /// Opens the one in use; makes an empty one when there is none.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(&self) -> anyhow::Result<RocksEngine> {
        RocksEngine::open(&self.folder, &self.options).context("could not open the engine")
    }

    /// Makes an engine of etcd's database `file` and puts it in use. A crash before the end leaves
    /// the one that was in use, which serves its readers on.
    ///
    /// `applied` is what the database must stand for, where somebody else says so too.
    ///
    /// # Errors
    /// A damaged file, one that is not etcd's, and what the disk refuses.
    pub fn import(&self, file: &Path, applied: Option<Applied>) -> anyhow::Result<RocksEngine> {
        let database = open(file)?;
        verify(&database, file)?;
        let found = applied_in(&database)?;
        if let Some(wanted) = applied {
            ensure!(
                found.index == wanted.index,
                "{} holds entry {}, and the log says {}",
                file.display(),
                found.index,
                wanted.index
            );
        }
        let engine = RocksEngine::build(&self.folder, found.index, &self.options)?;
        state::import(&engine, &Tables(&database))
            .map_err(|error| anyhow!("could not take over {}: {error}", file.display()))?;
        engine.switch()?;
        Ok(engine)
    }
}

/// etcd's database as a source of rows.
struct Tables<'a>(&'a Database<File>);

impl BucketSource for Tables<'_> {
    type Error = bolt::Error;

    fn buckets(&self) -> Result<Vec<Vec<u8>>, bolt::Error> {
        self.0.buckets()
    }

    fn rows(
        &self,
        bucket: &[u8],
    ) -> Result<impl Iterator<Item = BucketRow<bolt::Error>>, bolt::Error> {
        self.0.rows(bucket)
    }
}

/// The last entry in etcd's database `file`, and nothing else of it is read.
///
/// # Errors
/// As [`Engines::import`].
pub(crate) fn applied(file: &Path) -> anyhow::Result<Applied> {
    applied_in(&open(file)?)
}

/// What is in a database that is whole.
pub(crate) struct Checked {
    /// The last entry.
    pub applied: u64,
    pub buckets: usize,
    pub rows: u64,
    /// Whether it has a checksum, or only pages that fit each other.
    pub summed: bool,
}

/// Reads all of etcd's database `file`, and changes nothing.
///
/// # Errors
/// What is damaged, or that it cannot be read.
pub(crate) fn check(file: &Path) -> anyhow::Result<Checked> {
    let database = open(file)?;
    let summed = verify(&database, file)?;
    let buckets = database.buckets()?;
    let mut rows = 0;
    for bucket in &buckets {
        for row in database.rows(bucket)? {
            row?;
            rows += 1;
        }
    }
    Ok(Checked {
        applied: applied_in(&database)?.index,
        buckets: buckets.len(),
        rows,
        summed,
    })
}

/// Reads all of the database that `file` holds and compares it with its checksum, when it has one
/// as etcd's snapshots have: a SHA-256 behind the last page. Without one the pages are checked, and
/// a value that has changed is not seen. Says whether there is one.
///
/// # Errors
/// What does not fit, and what to do.
pub(crate) fn verify(database: &Database<File>, path: &Path) -> anyhow::Result<bool> {
    let damaged = || {
        format!(
            "{} is damaged. Check the disk; put the file back from a copy, or remove this member \
             from the cluster, delete its data directory and add it again",
            path.display()
        )
    };
    let summed = has_intact_sum(path).with_context(damaged)?;
    if !summed {
        database.check().with_context(damaged)?;
    }
    Ok(summed)
}

/// Whether a file ends in a checksum of all before it, by its length. Pages are of 512 bytes at
/// least.
fn has_intact_sum(path: &Path) -> anyhow::Result<bool> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes % MIN_PAGE_BYTES != SUM_BYTES {
        return Ok(false);
    }
    let mut sum = Sha256::new();
    let mut chunk = vec![0; SUM_CHUNK];
    let mut left = bytes - SUM_BYTES;
    while left > 0 {
        let n = left.min(SUM_CHUNK as u64) as usize;
        file.read_exact(&mut chunk[..n])?;
        sum.update(&chunk[..n]);
        left -= n as u64;
    }
    let mut wanted = Vec::new();
    file.read_to_end(&mut wanted)?;
    ensure!(
        wanted == sum.finalize()[..],
        "its bytes are not those that the checksum at its end was made of"
    );
    Ok(true)
}

fn applied_in(database: &Database<File>) -> anyhow::Result<Applied> {
    let meta: Result<Vec<_>, _> = database.rows(b"meta")?.collect();
    state::applied_of(&meta?).context("it says nothing of the entries in it; is it etcd's?")
}

fn open(path: &Path) -> anyhow::Result<Database<File>> {
    let open = || -> anyhow::Result<Database<File>> {
        let file = File::open(path)?;
        // etcd locks the file that it works on.
        file.try_lock()
            .context("another process has it open; end that etcd first")?;
        Ok(Database::open(file)?)
    };
    open().with_context(|| format!("could not read etcd's database {}", path.display()))
}
