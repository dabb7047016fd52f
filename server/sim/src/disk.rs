//! What survives a crash, as far as it does.

use std::{collections::BTreeMap, convert::Infallible, path::Path, sync::Arc};

use bytes::Bytes;
use mvcc::MemEngine;
use prost::Message as _;
use proto::raftpb::{Entry, EntryType, HardState};
use state::{BucketRow, BucketSink, BucketSource, Member, members};
use wal::{MemVfs, Metadata, Vfs, VfsFile, Wal};

/// Small, so that the log is cut often, and shortened.
const SEGMENT_BYTES: u64 = 4 << 10;
/// Bits that decay lie so many bytes before the end of what was written, at most.
const TAIL_BYTES: u64 = 1 << 10;
pub(crate) const LOG: &str = "/wal";

/// A member's disk.
pub(crate) struct Disk {
    pub files: Arc<MemVfs>,
    pub engine: Arc<MemEngine>,
    /// The databases of snapshots that came, which were synced before raft heard of them.
    pub received: BTreeMap<u64, Arc<Buckets>>,
}

/// How a member ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process is killed; the log's writes are in the system's hands. Rows of the engine that
    /// were not flushed are lost.
    Kill,
    /// The power is cut: what was not synced is lost, by chance and piece by piece.
    PowerCut,
}

impl Disk {
    /// Of a founding member: the log begins with all founding members, as the server makes it.
    pub fn found(id: u64, members: &[Member]) -> Self {
        let (disk, mut wal) = Self::create(id);
        let changes = members::found(members);
        let hard_state = HardState {
            term: Some(1),
            vote: Some(0),
            commit: Some(changes.len() as u64),
        };
        let entries = changes.iter().zip(1..).map(|(change, index)| Entry {
            r#type: Some(EntryType::EntryConfChange as i32),
            term: Some(1),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        });
        let entries: Vec<Entry> = entries.collect();
        wal.append(&entries, Some(&hard_state), true).unwrap();
        disk
    }

    /// Of a member that joins: nothing.
    pub fn join(id: u64) -> Self {
        Self::create(id).0
    }

    fn create(id: u64) -> (Self, Wal<MemVfs>) {
        let files = Arc::new(MemVfs::new());
        let metadata = Metadata {
            node_id: id,
            cluster_id: 1,
        };
        let created = Wal::create(Arc::clone(&files), Path::new(LOG), metadata, wal_options());
        let disk = Self {
            files,
            engine: Arc::default(),
            received: BTreeMap::new(),
        };
        (disk, created.unwrap())
    }

    /// What a crash leaves.
    pub fn crash(&self, how: Crash, chance: u64) -> Self {
        let files = match how {
            Crash::PowerCut => Arc::new(self.files.crash(chance)),
            Crash::Kill => Arc::clone(&self.files),
        };
        files.fail_after(u64::MAX);
        files.fill_after(u64::MAX);
        Self {
            files,
            engine: Arc::new(self.engine.crash(chance as usize % 7)),
            received: self.received.clone(),
        }
    }

    /// One bit near the end of what was written to the log turns, and nobody notices.
    pub fn decay(&self, chance: u64) {
        let names = self.files.list(Path::new(LOG)).unwrap();
        let segments = names.iter().filter(|name| name.ends_with(".wal"));
        let Some(newest) = segments.max() else { return };
        let file = self.files.open(&Path::new(LOG).join(newest)).unwrap();
        let mut content = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(&mut content, 0).unwrap();
        let Some(last) = content.iter().rposition(|byte| *byte != 0) else {
            return;
        };
        let reach = (last as u64 + 1).min(TAIL_BYTES);
        let at = last - usize::try_from(chance % reach).unwrap();
        let turned = content[at] ^ (1 << (chance >> 32 & 7));
        file.write_at(&[turned], at as u64).unwrap();
        file.sync_data().unwrap();
    }

    /// Another disk with the same content.
    pub fn copy(&self) -> Self {
        Self {
            // Everything is synced by now: a cut takes nothing.
            files: Arc::new(self.files.crash(0)),
            engine: Arc::new(self.engine.crash(usize::MAX)),
            received: self.received.clone(),
        }
    }
}

pub(crate) fn wal_options() -> wal::Options {
    wal::Options {
        segment_bytes: SEGMENT_BYTES,
        prepare_ahead: false,
    }
}

/// An engine with a state, durable.
pub(crate) fn filled(state: &Buckets) -> Arc<MemEngine> {
    let engine = MemEngine::default();
    state::import(&engine, state).unwrap();
    Arc::new(engine)
}

/// A whole state, as etcd's database has it.
#[derive(Debug, Default)]
pub(crate) struct Buckets(Vec<(String, Vec<(Bytes, Bytes)>)>);

impl BucketSink for Buckets {
    type Error = Infallible;

    fn bucket(&mut self, name: &str) -> Result<(), Infallible> {
        self.0.push((name.to_owned(), Vec::new()));
        Ok(())
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        let row = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.0.last_mut().unwrap().1.push(row);
        Ok(())
    }
}

impl BucketSource for Buckets {
    type Error = Infallible;

    fn buckets(&self) -> Result<Vec<Vec<u8>>, Infallible> {
        let names = self.0.iter().map(|(name, _)| name.as_bytes().to_vec());
        Ok(names.collect())
    }

    fn rows(
        &self,
        bucket: &[u8],
    ) -> Result<impl Iterator<Item = BucketRow<Infallible>>, Infallible> {
        let of = self
            .0
            .iter()
            .filter(move |(name, _)| name.as_bytes() == bucket);
        Ok(of.flat_map(|(_, rows)| rows.iter().cloned().map(Ok)))
    }
}
