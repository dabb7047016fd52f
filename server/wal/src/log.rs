//! The log as it is written: creation, appending, cutting segments, dropping them.

use std::{
    collections::VecDeque,
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
/// Segments that one call of [`Wal::release`] drops at most, since appends wait for it.
pub const RELEASE_AT_ONCE: usize = 8;

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

/// Where a log begins for its reader: a snapshot record with all that it says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Start {
    /// The entry before the first one.
    pub mark: SnapshotMark,
    /// The members as of it; empty when the record does not say, as at the beginning of a log.
    pub conf_state: ConfState,
}

/// What [`Wal::release`] dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Segments.
    pub segments: usize,
    /// Bytes that their records took.
    pub bytes: u64,
    /// Whether [`RELEASE_AT_ONCE`] was reached and there is more to drop.
    pub more: bool,
}

/// The newest snapshot record that is known to be durable, and for which the state is there.
#[derive(Clone, Copy)]
pub(crate) struct Anchor {
    pub index: u64,
    /// Sequence number of the segment that holds the record.
    pub seq: u64,
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
    /// The segments before the one that is written, oldest first.
    pub(crate) closed: VecDeque<Arc<Segment<V::File>>>,
    pub(crate) segment: Arc<Segment<V::File>>,
    pub(crate) anchor: Anchor,
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
        let mut segment = prepared.begin(&*vfs, &draft, name, 0, &head)?;

        failpoint::WAL_BEFORE_CREATE_RENAME.hit();
        let renamed = vfs.rename(&draft, dir);
        failpoint::WAL_AFTER_CREATE_RENAME.hit();
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
            closed: VecDeque::new(),
            segment: Arc::new(segment),
            anchor: Anchor { index: 0, seq: 0 },
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

    /// Bytes of the log on the disk: all segments, the newest one up to its last record.
    pub fn retained_bytes(&self) -> u64 {
        let oldest = self.closed.front().unwrap_or(&self.segment);
        self.end() - oldest.begin
    }

    /// The lowest index from which on all entries lie in the newest `bytes` of the log, give or take
    /// 64 KiB; one past [`Self::last_index`] when none fits. For a bound on what is retained.
    pub fn index_within(&self, bytes: u64) -> u64 {
        self.index.read().within(self.end(), bytes)
    }

    fn end(&self) -> u64 {
        self.segment.begin + self.offset
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
    /// A commit index below one that was written before is raised to it: a snapshot record may rest
    /// on that one, and readers take no record that is not committed.
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
        let hard_state = hard_state.map(|state| committed(*state, self.commit()));
        if let Some(state) = &hard_state {
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
            self.hard_state = state;
        }
        if self.offset >= self.options.segment_bytes {
            self.cut()?;
        }
        Ok(())
    }

    /// Notes, durably, that the state is on the disk up to `mark`, so that a start may begin there.
    /// The commit index is raised to it in the same write; without that no reader would take the
    /// record. Entries stay until [`Self::release`].
    ///
    /// # Errors
    /// [`Error::Refused`] for a mark that is no entry of the log; any other error is final.
    pub fn save_snapshot_mark(
        &mut self,
        mark: SnapshotMark,
        conf_state: ConfState,
    ) -> Result<(), Error> {
        let (oldest, last) = (self.first_index(), self.last_index());
        match self.index.read().term(mark.index) {
            Some(term) if term == mark.term => {}
            Some(term) => {
                let SnapshotMark { index, term: found } = mark;
                return Err(Error::Refused(format!(
                    "a snapshot at {index} of term {found}, which is of term {term} in the log"
                )));
            }
            None => {
                return Err(Error::Refused(format!(
                    "a snapshot at {} of a log of {oldest} to {last}",
                    mark.index
                )));
            }
        }
        let mut frames = Vec::new();
        let mut chain = self.chain;
        let state = committed(self.hard_state, mark.index);
        if state != self.hard_state {
            let data = state.encode_to_vec();
            chain = encode(&mut frames, chain, frame::STATE, Some(&data));
        }
        failpoint::RAFT_BEFORE_WAL_SAVE_SNAPSHOT.hit();
        let data = mark_record(mark, Some(conf_state));
        let chain = encode(&mut frames, chain, frame::SNAPSHOT, Some(&data));
        self.write(&frames, chain, true)?;
        self.hard_state = state;
        self.anchor_at(mark.index);
        Ok(())
    }

    /// Drops the oldest segments, as far as all their entries are below `index` and the newest
    /// snapshot record that was saved, or that the log was opened at, does not need them: after a
    /// crash at any point a start from there finds a log without a gap, and so does etcd.
    /// [`Self::first_index`] rises to the oldest entry that is left. At most [`RELEASE_AT_ONCE`] go
    /// in one call.
    ///
    /// # Errors
    /// Any error is final.
    pub fn release(&mut self, index: u64) -> Result<Released, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let droppable = self.droppable(index, self.anchor);
        let count = droppable.min(RELEASE_AT_ONCE);
        if count == 0 {
            return Ok(Released::default());
        }
        let oldest = self.closed.get(count).unwrap_or(&self.segment);
        let (first, begin) = (oldest.name.index, oldest.begin);
        let before = self.closed.front().map_or(begin, |segment| segment.begin);
        self.index.write().drop_before(first);

        self.poisoned = true;
        for segment in self.closed.drain(..count) {
            // From the oldest on, each removal durable before the next: whatever a crash leaves is a
            // sequence without a gap.
            failpoint::WAL_BEFORE_REMOVE_SEGMENT.hit();
            let removed = self.vfs.remove(&segment.path);
            failpoint::WAL_AFTER_REMOVE_SEGMENT.hit();
            let synced = removed.and_then(|()| self.vfs.sync_dir(&self.dir));
            synced.map_err(Error::io("remove", &segment.path))?;
        }
        self.poisoned = false;
        Ok(Released {
            segments: count,
            bytes: begin - before,
            more: count < droppable,
        })
    }

    /// Whether a segment goes with [`Self::release`] of `index` once a snapshot record that is not
    /// below it is saved.
    pub fn is_releasable(&self, index: u64) -> bool {
        let seq = self.segment.name.seq;
        self.droppable(index, Anchor { index, seq }) > 0
    }

    /// How many of the oldest segments hold nothing but entries below `index` and are not needed to
    /// begin at `anchor`.
    fn droppable(&self, index: u64, anchor: Anchor) -> usize {
        // A segment's name says what the log ended before when it was begun: live entries of those
        // before it are lower. etcd looks for a record's segment by name, so that of the oldest one
        // must not be above the record's index.
        let limit = index.min(anchor.index);
        let next = self.closed.iter().skip(1).chain([&self.segment]);
        next.zip(1..=self.closed.len())
            .filter(|(next, _)| next.name.index <= limit && next.name.seq <= anchor.seq)
            .last()
            .map_or(0, |(_, count)| count)
    }

    /// Begins anew behind a snapshot that came from another member: all entries are gone, the next
    /// one is `mark.index` + 1. Durable on return; a crash before leaves the log as it was. What
    /// belongs to the snapshot must be durable before the call. The commit index of `hard_state` is
    /// taken to be the mark's.
    ///
    /// The record is the head of a segment of its own, which is named after the mark: entries of
    /// another history that lie in earlier ones are behind it for no reader, etcd's included, which
    /// begins at the newest segment whose name is not above the mark. The earlier ones go with the
    /// next [`Self::release`].
    ///
    /// # Errors
    /// [`Error::Refused`] for a mark that is committed or that the log holds: such a snapshot brings
    /// nothing. Any other error is final.
    pub fn restart_at(
        &mut self,
        mark: SnapshotMark,
        conf_state: ConfState,
        hard_state: &HardState,
    ) -> Result<(), Error> {
        let held = self.index.read().term(mark.index) == Some(mark.term);
        let commit = self.commit();
        if held || mark.index <= commit {
            return Err(Error::Refused(format!(
                "a snapshot at {} in place of a log that is committed up to {commit} and ends at {}",
                mark.index,
                self.last_index()
            )));
        }
        self.hard_state = HardState {
            commit: Some(mark.index),
            ..*hard_state
        };
        failpoint::RAFT_BEFORE_WAL_SAVE_SNAPSHOT.hit();
        let record = mark_record(mark, Some(conf_state));
        self.begin_segment(mark.index, Some(&record))?;
        *self.index.write() = Index::after(mark.index, mark.term);
        self.anchor_at(mark.index);
        Ok(())
    }

    fn anchor_at(&mut self, index: u64) {
        // Of a lower record nobody would make use.
        if index >= self.anchor.index {
            let seq = self.segment.name.seq;
            self.anchor = Anchor { index, seq };
        }
    }

    fn commit(&self) -> u64 {
        self.hard_state.commit.unwrap_or_default()
    }

    fn check_order(&self, entries: &[Entry]) -> Result<(), Error> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let first = first.index.unwrap_or_default();
        let (oldest, last) = (self.first_index(), self.last_index());
        let oldest = oldest.max(self.anchor.index + 1);
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
            failpoint::WAL_BEFORE_SYNC.hit();
            file.sync_data().map_err(Error::io("sync", path))?;
            failpoint::WAL_AFTER_SYNC.hit();
        }
        self.offset = end;
        self.appended += frames.len() as u64;
        self.chain = chain;
        self.poisoned = false;
        Ok(())
    }

    fn cut(&mut self) -> Result<(), Error> {
        self.begin_segment(self.last_index() + 1, None)
    }

    /// Closes the segment and begins the next, which is named after `index` and begins with `mark`
    /// if there is one. A crash at any step leaves either the old one as the last, or the new one
    /// whole: it gets its name only after its head is durable.
    fn begin_segment(&mut self, index: u64, mark: Option<&[u8]>) -> Result<(), Error> {
        if std::mem::replace(&mut self.poisoned, true) {
            return Err(Error::Poisoned);
        }
        let old = &self.segment;
        failpoint::WAL_BEFORE_CLOSE_SEGMENT.hit();
        let closed = old.file.set_len(self.offset);
        let synced = closed.and_then(|()| old.file.sync_data());
        synced.map_err(Error::io("close", &old.path))?;
        failpoint::WAL_AFTER_CLOSE_SEGMENT.hit();

        let next = self
            .source
            .next(&*self.vfs, &self.dir, self.options.segment_bytes)?;
        let name = Name {
            seq: old.name.seq + 1,
            index,
        };
        let mut head = Vec::new();
        let chain = encode(&mut head, self.chain, frame::CRC, None);
        let metadata = self.metadata.encode();
        let mut chain = encode(&mut head, chain, frame::METADATA, Some(&metadata));
        if self.hard_state != HardState::default() {
            let state = self.hard_state.encode_to_vec();
            chain = encode(&mut head, chain, frame::STATE, Some(&state));
        }
        if let Some(mark) = mark {
            chain = encode(&mut head, chain, frame::SNAPSHOT, Some(mark));
        }
        let begin = self.end();
        let next = Arc::new(next.begin(&*self.vfs, &self.dir, name, begin, &head)?);
        failpoint::WAL_AFTER_CUT.hit();
        self.closed
            .push_back(std::mem::replace(&mut self.segment, next));
        self.offset = head.len() as u64;
        self.filled = self.options.segment_bytes;
        self.chain = chain;
        self.poisoned = false;
        Ok(())
    }
}

/// The same with a commit index of at least `index`.
fn committed(state: HardState, index: u64) -> HardState {
    let commit = state.commit.unwrap_or_default();
    match commit < index {
        true => HardState {
            commit: Some(index),
            ..state
        },
        false => state,
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
