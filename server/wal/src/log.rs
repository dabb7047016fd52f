//! The log as it is written: creation, appending, cutting segments.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use prost::Message;
use proto::{
    etcdserverpb,
    raftpb::{ConfState, Entry, HardState},
    walpb,
};

use crate::{
    Error, Reader, Vfs, VfsFile,
    frame::{self, encode},
    index::{Checkpoint, Index},
    segment::{Name, Segment, Source, zero_fill},
};

/// Length at which a segment is closed and the next one begun, in bytes. etcd's are 64,000,000 long;
/// its reader takes any length.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length at which a segment is closed, in bytes. A record is never split, so a segment is
    /// longer by what its last append brought.
    pub segment_bytes: u64,
    /// Whether a thread fills the next segments with zeros ahead of their use. Without it a cut
    /// does so itself, which keeps a simulation in one thread.
    pub prepare_ahead: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            prepare_ahead: true,
        }
    }
}

/// Whose log it is. Every segment says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The member.
    pub node_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
}

impl Metadata {
    fn encode(self) -> Vec<u8> {
        // Both fields are written even when they are 0, as etcd does.
        etcdserverpb::Metadata {
            node_id: Some(self.node_id),
            cluster_id: Some(self.cluster_id),
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(data: &[u8]) -> Result<Self, prost::DecodeError> {
        let record = etcdserverpb::Metadata::decode(data)?;
        Ok(Self {
            node_id: record.node_id.unwrap_or_default(),
            cluster_id: record.cluster_id.unwrap_or_default(),
        })
    }
}

/// The entry that a snapshot stands for; (0, 0) is the beginning of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMark {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

fn mark_record(mark: SnapshotMark, conf_state: Option<ConfState>) -> Vec<u8> {
    walpb::Snapshot {
        index: Some(mark.index),
        term: Some(mark.term),
        conf_state,
    }
    .encode_to_vec()
}

/// An open log. One at a time has a directory open; [`Reader`]s share it.
pub struct Wal<V: Vfs> {
    pub(crate) vfs: Arc<V>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) metadata: Metadata,
    pub(crate) hard_state: HardState,
    pub(crate) segment: Arc<Segment<V::File>>,
    /// Where the next frame goes.
    pub(crate) offset: u64,
    /// Up to here the segment holds durable zeros behind its frames.
    pub(crate) filled: u64,
    /// The CRC of everything before `offset`.
    pub(crate) chain: u32,
    pub(crate) index: Arc<RwLock<Index<V::File>>>,
    pub(crate) source: Source<V>,
    /// Set while a write is under way, so that it stays set when the write fails.
    pub(crate) poisoned: bool,
    /// Bytes of frames appended since it was opened.
    pub(crate) appended: u64,
}

impl<V: Vfs> Wal<V> {
    /// Makes a log in `dir`, which must not be there or be empty.
    ///
    /// It is made under another name and renamed when it is whole: a crash leaves no log or this
    /// one.
    ///
    /// # Errors
    /// [`Error::Exists`] when there is a log, and what the disk refuses: it does not replace a
    /// directory that holds something else.
    pub fn create(
        vfs: Arc<V>,
        dir: &Path,
        metadata: Metadata,
        options: Options,
    ) -> Result<Self, Error> {
        // An empty directory is a mount point or one that an operator made: the rename takes it.
        let names = vfs.list(dir).unwrap_or_default();
        if names.iter().any(|name| Name::parse(name).is_some()) {
            return Err(Error::Exists(dir.to_owned()));
        }
        let draft = dir.with_extension("tmp");
        clear(&*vfs, &draft)?;
        vfs.create_dir(&draft)
            .map_err(Error::io("create", &draft))?;
        let prepared = Source::inline().next(&*vfs, &draft, options.segment_bytes)?;
        let name = Name { seq: 0, index: 0 };

        let mut head = Vec::new();
        let chain = encode(&mut head, 0, frame::CRC, None);
        let chain = encode(&mut head, chain, frame::METADATA, Some(&metadata.encode()));
        let mark = mark_record(SnapshotMark::default(), None);
        let chain = encode(&mut head, chain, frame::SNAPSHOT, Some(&mark));
        let mut segment = prepared.begin(&*vfs, &draft, name, &head)?;

        let renamed = vfs.rename(&draft, dir);
        let parent = dir.parent().unwrap_or(dir);
        let synced = renamed.and_then(|()| vfs.sync_dir(parent));
        synced.map_err(Error::io("put in place", dir))?;
        segment.path = name.path(dir);
        Ok(Self {
            source: source(&vfs, dir, options)?,
            vfs,
            dir: dir.to_owned(),
            options,
            metadata,
            hard_state: HardState::default(),
            segment: Arc::new(segment),
            offset: head.len() as u64,
            filled: options.segment_bytes,
            chain,
            index: Arc::new(RwLock::new(Index::after(0, 0))),
            poisoned: false,
            appended: 0,
        })
    }

    /// Whose log it is.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// Index of the oldest entry held; one past [`Self::last_index`] when there is none.
    pub fn first_index(&self) -> u64 {
        self.index.read().first()
    }

    /// Index of the newest entry.
    pub fn last_index(&self) -> u64 {
        self.index.read().last()
    }

    /// Bytes that were appended since the log was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.appended
    }

    /// For reading entries from other threads.
    pub fn reader(&self) -> Reader<V> {
        Reader::new(Arc::clone(&self.index))
    }

    /// Appends entries and then the state, in one write. Entries from the index of the first one on
    /// are replaced. With `sync` they are durable on return, together with all before them.
    ///
    /// # Errors
    /// [`Error::Refused`] for entries that leave a gap or replace what a snapshot stands for; the
    /// log is as it was. Any other error is final: the process must end.
    pub fn append(
        &mut self,
        entries: &[Entry],
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), Error> {
        self.check_order(entries)?;
        let mut frames = Vec::new();
        let mut places = Vec::with_capacity(entries.len());
        let mut chain = self.chain;
        for entry in entries {
            let offset = self.offset + frames.len() as u64;
            places.push((entry, offset, chain));
            chain = encode(
                &mut frames,
                chain,
                frame::ENTRY,
                Some(&entry.encode_to_vec()),
            );
        }
        if let Some(state) = hard_state {
            chain = encode(
                &mut frames,
                chain,
                frame::STATE,
                Some(&state.encode_to_vec()),
            );
        }
        self.write(&frames, chain, sync)?;
        {
            let mut index = self.index.write();
            for (entry, offset, chain) in places {
                let place = Checkpoint {
                    index: entry.index.unwrap_or_default(),
                    segment: Arc::clone(&self.segment),
                    offset,
                    chain,
                };
                index.push(entry.term.unwrap_or_default(), place);
            }
        }
        if let Some(state) = hard_state {
            self.hard_state = *state;
        }
        if self.offset >= self.options.segment_bytes {
            self.cut()?;
        }
        Ok(())
    }

    /// Notes, durably, that a snapshot stands for the entries up to `mark`.
    ///
    /// # Errors
    /// [`Error::Refused`] for a mark above the log's end; any other error is final.
    pub fn save_snapshot_mark(
        &mut self,
        mark: SnapshotMark,
        conf_state: ConfState,
    ) -> Result<(), Error> {
        let last = self.last_index();
        if mark.index > last {
            let text = format!("a snapshot at {} of a log that ends at {last}", mark.index);
            return Err(Error::Refused(text));
        }
        let data = mark_record(mark, Some(conf_state));
        let mut frames = Vec::new();
        let chain = encode(&mut frames, self.chain, frame::SNAPSHOT, Some(&data));
        self.write(&frames, chain, true)
    }

    fn check_order(&self, entries: &[Entry]) -> Result<(), Error> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let first = first.index.unwrap_or_default();
        let (oldest, last) = (self.first_index(), self.last_index());
        if first < oldest || first > last + 1 {
            let text = format!("entry {first} does not continue a log of {oldest} to {last}");
            return Err(Error::Refused(text));
        }
        for (entry, wanted) in entries.iter().zip(first..) {
            let found = entry.index.unwrap_or_default();
            if found != wanted {
                return Err(Error::Refused(format!(
                    "entry {found} where {wanted} belongs"
                )));
            }
        }
        Ok(())
    }

    fn write(&mut self, frames: &[u8], chain: u32, sync: bool) -> Result<(), Error> {
        if std::mem::replace(&mut self.poisoned, true) {
            return Err(Error::Poisoned);
        }
        let Segment { file, path, .. } = &*self.segment;
        let end = self.offset + frames.len() as u64;
        if end > self.filled {
            // A power cut could otherwise keep a frame's first sector and lose the longer length of
            // the file, and such an end is damage to whoever opens it.
            let filled = zero_fill(file, self.filled, end);
            filled.map_err(Error::io("fill", path))?;
            self.filled = end;
        }
        let written = file.write_at(frames, self.offset);
        written.map_err(Error::io("write", path))?;
        if sync {
            file.sync_data().map_err(Error::io("sync", path))?;
        }
        self.offset = end;
        self.appended += frames.len() as u64;
        self.chain = chain;
        self.poisoned = false;
        Ok(())
    }

    /// Closes the segment and begins the next. A crash at any step leaves either the old one as the
    /// last, or the new one whole: it gets its name only after its head is durable.
    fn cut(&mut self) -> Result<(), Error> {
        self.poisoned = true;
        let old = &self.segment;
        let closed = old.file.set_len(self.offset);
        let synced = closed.and_then(|()| old.file.sync_data());
        synced.map_err(Error::io("close", &old.path))?;

        let next = self
            .source
            .next(&*self.vfs, &self.dir, self.options.segment_bytes)?;
        let name = Name {
            seq: old.name.seq + 1,
            index: self.index.read().last() + 1,
        };
        let mut head = Vec::new();
        let chain = encode(&mut head, self.chain, frame::CRC, None);
        let metadata = self.metadata.encode();
        let mut chain = encode(&mut head, chain, frame::METADATA, Some(&metadata));
        if self.hard_state != HardState::default() {
            let state = self.hard_state.encode_to_vec();
            chain = encode(&mut head, chain, frame::STATE, Some(&state));
        }
        self.segment = Arc::new(next.begin(&*self.vfs, &self.dir, name, &head)?);
        self.offset = head.len() as u64;
        self.filled = self.options.segment_bytes;
        self.chain = chain;
        self.poisoned = false;
        Ok(())
    }
}

pub(crate) fn source<V: Vfs>(
    vfs: &Arc<V>,
    dir: &Path,
    options: Options,
) -> Result<Source<V>, Error> {
    if options.prepare_ahead {
        Source::ahead(vfs, dir, options.segment_bytes)
    } else {
        Ok(Source::inline())
    }
}

/// Removes what a crash left of an earlier creation.
fn clear<V: Vfs>(vfs: &V, draft: &Path) -> Result<(), Error> {
    let Ok(names) = vfs.list(draft) else {
        return Ok(());
    };
    for name in names {
        let path = draft.join(name);
        vfs.remove(&path).map_err(Error::io("remove", &path))?;
    }
    vfs.remove_dir(draft).map_err(Error::io("remove", draft))
}
