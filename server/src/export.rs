//! `cairn export`: the data of a member that does not run, as a data directory on which an etcd is
//! that same member.
//!
//! The log is etcd's already and is copied whole, so whatever was written and not applied yet goes
//! along; the state becomes etcd's database, and a `.snap` file says where the two meet.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use config::Config;
use prost::Message;
use proto::snappb;
use state::{Machine, Published};
use tracing::info;
use wal::{OsVfs, SnapshotMark, Wal};

use crate::{database, node};

/// Bytes that go to the database file together.
const BUFFER_BYTES: usize = 1 << 20;

/// Makes the data directory `output` of the one that `config` names.
///
/// # Errors
/// Why it cannot be made; `output` is not there then.
pub(crate) fn run(config: &Config, output: &Path) -> anyhow::Result<()> {
    let places = node::Places::of(config);
    ensure!(
        !output.exists(),
        "{} is there already; name a directory that is not",
        output.display()
    );
    ensure!(
        node::has_data(config)? && places.engines().exists(),
        "there is no data of a cairn in {}",
        config.data_dir.display()
    );
    // Made under another name first: a directory of this one is whole.
    let draft = draft_of(output)?;
    if draft.exists() {
        fs::remove_dir_all(&draft)
            .with_context(|| format!("could not remove {}", draft.display()))?;
    }
    let made = make(&places, &draft, config.wal_segment_bytes)
        .inspect(|()| failpoint::EXPORT_BEFORE_RENAME.hit())
        .and_then(|()| Ok(fs::rename(&draft, output)?))
        .inspect(|()| failpoint::EXPORT_BEFORE_DIR_SYNC.hit())
        .and_then(|()| sync_folder(folder_of(&draft)));
    if made.is_err() {
        // What is left of it is of no use.
        let _ = fs::remove_dir_all(&draft);
    }
    made.with_context(|| format!("could not export to {}", output.display()))
}

fn draft_of(output: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = output.file_name() else {
        bail!("{} is no name for a directory", output.display());
    };
    let mut draft = name.to_owned();
    draft.push(".tmp");
    Ok(output.with_file_name(draft))
}

/// The folder that a path is in; a name alone is in the working directory.
fn folder_of(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn make(places: &node::Places, draft: &Path, segment_bytes: u64) -> anyhow::Result<()> {
    // RocksDB lets nobody else have it open.
    let engine = Arc::new(places.engines().open()?);
    let persisted = state::persisted(&*engine)?.context("nothing is in it yet")?;
    let options = state::Options {
        member_id: 0,
        quota_bytes: -1,
        max_learners: usize::MAX,
        min_lease_ttl: 1,
    };
    let published = Machine::open(Arc::clone(&engine), options)?.published();
    ensure!(
        published.applied == persisted.applied,
        "the engine was not closed properly; start cairn on it once and end it"
    );
    let (wal, snap) = (draft.join("member/wal"), draft.join("member/snap"));
    for folder in [&wal, &snap] {
        node::make_private(folder)?;
    }
    copy_log(&places.log, &wal)?;
    failpoint::EXPORT_AFTER_LOG.hit();
    write_database(&published, &snap.join("db"))?;
    failpoint::EXPORT_AFTER_DATABASE.hit();

    let mark = SnapshotMark {
        index: persisted.applied.index,
        term: persisted.applied.term,
    };
    // The file before the record: etcd looks for a file for each record, not the other way round.
    write_snap(&published, mark, &snap)?;
    failpoint::EXPORT_AFTER_SNAP.hit();
    let options = wal::Options {
        segment_bytes,
        prepare_ahead: false,
    };
    let (mut log, _) = Wal::open(Arc::new(OsVfs::new()), &wal, mark.index, options)
        .context("could not open the copy of the log")?;
    log.save_snapshot_mark(mark, persisted.conf_state)
        .context("could not write to the copy of the log")?;
    log.release(mark.index)
        .context("could not shorten the copy of the log")?;
    for folder in [&snap, &draft.join("member"), draft] {
        sync_folder(folder)?;
    }
    info!(
        "snapshot-index" = mark.index,
        revision = published.view.revision(),
        "exported"
    );
    Ok(())
}

fn copy_log(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        if path.extension().is_none_or(|extension| extension != "wal") {
            continue;
        }
        let copy = to.join(name);
        fs::copy(&path, &copy)
            .and_then(|_| File::open(&copy)?.sync_all())
            .with_context(|| format!("could not copy {}", path.display()))?;
    }
    sync_folder(to)
}

fn write_database(published: &Published<engine::RocksSnapshot>, path: &Path) -> anyhow::Result<()> {
    let rows = published.view.snapshot();
    let write = || -> std::io::Result<()> {
        let plan = database::plan(rows)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        database::write(rows, plan, &mut file)?;
        file.flush()?;
        file.get_ref().sync_all()
    };
    write().with_context(|| format!("could not write {}", path.display()))
}

/// Writes etcd's `.snap` file, which etcd 3.6 reads its members from.
fn write_snap(
    published: &Published<engine::RocksSnapshot>,
    mark: SnapshotMark,
    folder: &Path,
) -> anyhow::Result<()> {
    let data = state::raft_snapshot(published).encode_to_vec();
    let framed = snappb::Snapshot {
        crc: Some(crc32c::crc32c(&data)),
        data: Some(data.into()),
    };
    let path = folder.join(format!("{:016x}-{:016x}.snap", mark.term, mark.index));
    File::create(&path)
        .and_then(|mut file| {
            file.write_all(&framed.encode_to_vec())?;
            file.sync_all()
        })
        .with_context(|| format!("could not write {}", path.display()))
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    node::sync_folder(folder).with_context(|| format!("could not sync {}", folder.display()))
}
