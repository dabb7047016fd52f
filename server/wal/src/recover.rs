//! Opening a log: what it holds, what a power cut tore off it, and what refuses to start.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use proto::{
    raftpb::{ConfState, Entry, EntryType, HardState},
    walpb,
};

use crate::{
    Error, Metadata, Options, SnapshotMark, Start, Vfs, VfsFile, Wal,
    frame::{self, Frame, FrameReader},
    index::{Checkpoint, Index},
    log::{Anchor, source},
    reader::decode,
    segment::{Name, Segment, zero_fill},
};

/// Entries that are handed over in memory: the newest, up to this many bytes of data.
pub const TAIL_BYTES: usize = 32 << 20;
/// A torn segment is copied in pieces of this many bytes.
const COPY_CHUNK: usize = 1 << 20;

/// What a log held when it was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The last state written; the default when there is none.
    pub hard_state: HardState,
    /// Where the log begins: the newest snapshot record that the caller's state covers.
    pub start: Start,
    /// The newest entries behind it, without a gap up to the last; older ones come from
    /// [`crate::Reader`].
    pub entries: Vec<Entry>,
    /// Every committed snapshot record from that one on, in the log's order; also those above what
    /// the log was opened for.
    pub marks: Vec<SnapshotMark>,
    /// What a power cut tore, if it did.
    pub repair: Option<Repair>,
}

/// A tail that a power cut tore off and that was cut away. None of it was ever acknowledged, since
/// no sync of it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The segment.
    pub segment: PathBuf,
    /// Where the torn record began: the segment's new end.
    pub offset: u64,
    /// The segment as it was found.
    pub copy: PathBuf,
}

/// What a log holds that was read and not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose log it is.
    pub metadata: Metadata,
    /// How many segments there are.
    pub segments: usize,
    /// Bytes of their records.
    pub bytes: u64,
    /// Where the log begins: the newest snapshot record that the caller's state covers.
    pub start: SnapshotMark,
    /// The last entry that is known to be committed.
    pub commit: u64,
    /// The last entry.
    pub last: u64,
    /// The segment whose end a power cut tore, and where it did.
    pub torn: Option<(PathBuf, u64)>,
}

impl<V: Vfs> Wal<V> {
    /// Opens the log in `dir` for appending, for a state that is durable up to `at_most`. It is read
    /// from the newest snapshot record on that is not above `at_most` and is committed: those above
    /// the last commit index count for nothing, as in etcd. Entries up to it are not handed over,
    /// and [`Reader`](crate::Reader)s do not see them.
    ///
    /// A torn tail is cut away by etcd's rule only: it is in the last segment, and a whole sector
    /// of the record never reached the disk. One case that etcd takes for torn is refused: a record
    /// that is whole although its length word says otherwise.
    ///
    /// # Errors
    /// [`Error::SnapshotNotFound`] when the log begins behind `at_most`, and everything else that
    /// does not check out; nothing is changed then.
    pub fn open(
        vfs: Arc<V>,
        dir: &Path,
        at_most: u64,
        options: Options,
    ) -> Result<(Self, Recovered), Error> {
        let files = open_files(dir, names(&*vfs, dir)?, |path| vfs.open(path))?;
        let mut scan = Scan::new(dir, at_most);
        let mut closed = scan.all(files)?;
        let (metadata, found) = scan.finish()?;
        let Some(segment) = closed.pop_back() else {
            return Err(Error::NotFound(dir.to_owned()));
        };
        let repair = match scan.torn {
            true => Some(set_aside(&*vfs, dir, &segment, scan.offset)?),
            false => None,
        };
        // From the last record on everything is zero before anything is appended: an old byte
        // there would be taken for a record after the next crash. The file is not cut off first: a
        // power cut that keeps the shorter length and not the zeros would leave the beginning of
        // the torn record in a file that ends inside of it, which is damage to whoever opens it.
        let cleared = segment.file.len().and_then(|found| {
            let length = options.segment_bytes.max(found);
            zero_fill(&segment.file, scan.offset, length).map(|()| length)
        });
        let length = cleared.map_err(Error::io("clear the end of", &segment.path))?;
        // Whoever gave the segments their names may have died before the names were durable.
        vfs.sync_dir(dir).map_err(Error::io("sync", dir))?;

        let recovered = Recovered {
            metadata,
            hard_state: scan.hard_state,
            start: Start {
                mark: found.mark,
                conf_state: found.conf_state.unwrap_or_default(),
            },
            entries: scan.tail.into(),
            marks: scan.marks,
            repair,
        };
        let wal = Self {
            source: source(&vfs, dir, options)?,
            vfs,
            dir: dir.to_owned(),
            options,
            metadata,
            hard_state: scan.hard_state,
            closed,
            segment,
            anchor: Anchor {
                index: found.mark.index,
                seq: found.seq,
            },
            offset: scan.offset,
            filled: length,
            chain: scan.chain.unwrap_or_default(),
            index: Arc::new(RwLock::new(scan.index)),
            poisoned: false,
            appended: 0,
        };
        Ok((wal, recovered))
    }

    /// Reads the log in `dir` as [`Wal::open`] does, and changes nothing. What a power cut tore is
    /// no damage: the next start cuts it away.
    ///
    /// # Errors
    /// As [`Wal::open`]'s; also when another process has the log open.
    pub fn verify(vfs: &V, dir: &Path, at_most: u64) -> Result<Verified, Error> {
        let files = open_files(dir, names(vfs, dir)?, |path| vfs.open_to_read(path))?;
        let mut scan = Scan::new(dir, at_most);
        let segments = scan.all(files)?;
        let (metadata, found) = scan.finish()?;
        let newest = segments.back();
        Ok(Verified {
            metadata,
            segments: segments.len(),
            bytes: newest.map_or(0, |newest| newest.begin) + scan.offset,
            start: found.mark,
            commit: scan.hard_state.commit.unwrap_or_default(),
            last: scan.index.last(),
            torn: newest
                .filter(|_| scan.torn)
                .map(|newest| (newest.path.clone(), scan.offset)),
        })
    }

    /// Whose log is in `dir`, from the head of its oldest segment; it must not be open.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Corrupt`] when the head does not check out,
    /// and what the disk refuses.
    pub fn metadata_of(vfs: &V, dir: &Path) -> Result<Metadata, Error> {
        let Some(path) = names(vfs, dir)?.first().map(|name| name.path(dir)) else {
            return Err(Error::NotFound(dir.to_owned()));
        };
        let file = vfs.open(&path).map_err(Error::io("open", &path))?;
        let failed = |cause| Error::io("read", &path)(cause);
        let mut frames = FrameReader::new(&file, 0).map_err(failed)?;
        let mut chain = None;
        loop {
            let offset = frames.offset();
            let damaged = |problem: String| Error::Corrupt {
                path: path.clone(),
                offset,
                problem,
            };
            let missing = || damaged("the head says not whose log it is".to_owned());
            let Frame::Record { record, .. } = frames.next().map_err(failed)? else {
                return Err(missing());
            };
            chain = Some(chain_after(chain, &record).map_err(damaged)?);
            match record.r#type.unwrap_or_default() {
                frame::CRC => {}
                frame::METADATA => {
                    let data = record.data.unwrap_or_default();
                    return Metadata::decode(&data).map_err(|cause| damaged(cause.to_string()));
                }
                // Every segment begins with these two.
                _ => return Err(missing()),
            }
        }
    }
}

/// The names of the segments in `dir`, at least one, in order and without a gap.
fn names<V: Vfs>(vfs: &V, dir: &Path) -> Result<Vec<Name>, Error> {
    let names = vfs.list(dir).map_err(Error::io("list", dir))?;
    let mut names: Vec<_> = names.iter().filter_map(|name| Name::parse(name)).collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::NotFound(dir.to_owned()));
    }
    for pair in names.windows(2) {
        if pair[0].seq.checked_add(1) != Some(pair[1].seq) {
            return Err(Error::Gap {
                path: dir.to_owned(),
                problem: format!("segment {} follows {}", pair[1].seq, pair[0].seq),
            });
        }
    }
    Ok(names)
}

type Files<F> = Vec<(Name, PathBuf, F)>;

fn open_files<F>(
    dir: &Path,
    names: Vec<Name>,
    open: impl Fn(&Path) -> io::Result<F>,
) -> Result<Files<F>, Error> {
    let open = |name: Name| {
        let path = name.path(dir);
        let file = open(&path).map_err(Error::io("open", &path))?;
        Ok((name, path, file))
    };
    names.into_iter().map(open).collect()
}

/// Keeps a copy of a torn segment beside it, as etcd does, before its end is cut away.
fn set_aside<V: Vfs>(
    vfs: &V,
    dir: &Path,
    segment: &Segment<V::File>,
    offset: u64,
) -> Result<Repair, Error> {
    let mut copy = segment.path.clone().into_os_string();
    copy.push(".broken");
    let copy = PathBuf::from(copy);
    let file = vfs.create(&copy).map_err(Error::io("create", &copy))?;
    let mut chunk = vec![0; COPY_CHUNK];
    let mut at = 0;
    loop {
        let read = segment.file.read_at(&mut chunk, at);
        let n = read.map_err(Error::io("read", &segment.path))?;
        if n == 0 {
            break;
        }
        let written = file.write_at(&chunk[..n], at);
        written.map_err(Error::io("write", &copy))?;
        at += n as u64;
    }
    let synced = file.sync_data().and_then(|()| vfs.sync_dir(dir));
    synced.map_err(Error::io("sync", &copy))?;
    Ok(Repair {
        segment: segment.path.clone(),
        offset,
        copy,
    })
}

/// A snapshot record, and the sequence number of the segment that holds it.
struct Record {
    mark: SnapshotMark,
    conf_state: Option<ConfState>,
    seq: u64,
    /// Whether the entry behind it, and all that follow, were written after it: etcd writes those
    /// before the state that commits the record.
    followed: bool,
}

/// What the records read so far add up to.
struct Scan<F> {
    dir: PathBuf,
    at_most: u64,
    /// The newest record to begin at so far.
    start: Option<Record>,
    /// Records above the commit index so far, which the next state may commit.
    waiting: Vec<Record>,
    metadata: Option<Metadata>,
    hard_state: HardState,
    /// The committed ones.
    marks: Vec<SnapshotMark>,
    /// The entries without a gap up to the newest.
    index: Index<F>,
    /// The last gap before them that no record explains.
    hole: Option<String>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// `None` until the first segment's CRC record.
    chain: Option<u32>,
    /// End of the last valid record of the newest segment.
    offset: u64,
    torn: bool,
}

impl<F: VfsFile> Scan<F> {
    fn new(dir: &Path, at_most: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            at_most,
            start: None,
            waiting: Vec::new(),
            metadata: None,
            hard_state: HardState::default(),
            marks: Vec::new(),
            index: Index::from(1),
            hole: None,
            tail: VecDeque::new(),
            tail_bytes: 0,
            chain: None,
            offset: 0,
            torn: false,
        }
    }

    /// Reads all segments, the oldest first.
    fn all(&mut self, files: Files<F>) -> Result<VecDeque<Arc<Segment<F>>>, Error> {
        let newest = files.len().saturating_sub(1);
        let mut segments = VecDeque::with_capacity(files.len());
        let mut begin = 0;
        for (position, (name, path, file)) in files.into_iter().enumerate() {
            let segment = Arc::new(Segment {
                name,
                path,
                file,
                begin,
            });
            self.segment(&segment, position == newest)?;
            begin += self.offset;
            segments.push_back(segment);
        }
        Ok(segments)
    }

    fn segment(&mut self, segment: &Arc<Segment<F>>, newest: bool) -> Result<(), Error> {
        self.end_before(segment.name.index);
        let failed = |cause| Error::io("read", &segment.path)(cause);
        let mut frames = FrameReader::new(&segment.file, 0).map_err(failed)?;
        loop {
            let offset = frames.offset();
            self.offset = offset;
            let problem = match frames.next().map_err(failed)? {
                Frame::End => return Ok(()),
                Frame::Record { record, raw } => match chain_after(self.chain, &record) {
                    Ok(chain) => {
                        let applied = self.record(record, segment, offset);
                        applied.map_err(|problem| problem.at(segment, offset))?;
                        self.chain = Some(chain);
                        continue;
                    }
                    Err(_) if newest && self.is_torn(&raw, offset) => {
                        self.torn = true;
                        return Ok(());
                    }
                    Err(problem) => problem,
                },
                Frame::Garbled { raw, .. } if newest && self.is_torn(&raw, offset) => {
                    self.torn = true;
                    return Ok(());
                }
                // Not even a length word: etcd, too, takes this for a torn end.
                Frame::Short if newest && frames.left() < frame::WORD => {
                    self.torn = true;
                    return Ok(());
                }
                Frame::Garbled { problem, .. } => problem,
                Frame::Short => "the file ends inside of a record".to_owned(),
                Frame::BadWord(word) => format!("{word:#x} is no length of a record"),
            };
            return Err(Problem::Record(problem).at(segment, offset));
        }
    }

    /// Etcd's rule, and one more: a length word with a flipped bit can reach into the zeros behind
    /// the log and look torn, but then its record is whole, and so may be acknowledged ones behind.
    fn is_torn(&self, raw: &[u8], offset: u64) -> bool {
        frame::is_torn(raw, offset)
            && frame::whole_prefix(raw)
                .is_none_or(|record| chain_after(self.chain, &record).is_err())
    }

    fn record(
        &mut self,
        record: walpb::Record,
        segment: &Arc<Segment<F>>,
        offset: u64,
    ) -> Result<(), Problem> {
        let data = record.data.unwrap_or_default();
        let garbled = |cause: prost::DecodeError| Problem::Record(cause.to_string());
        match record.r#type.unwrap_or_default() {
            frame::CRC => {}
            frame::METADATA => {
                let found = Metadata::decode(&data).map_err(garbled)?;
                if self.metadata.replace(found).is_some_and(|old| old != found) {
                    return Err(Problem::OtherMember);
                }
            }
            frame::STATE => {
                let length = data.len();
                let state = HardState::decode(data).map_err(garbled)?;
                if state.encoded_len() != length || state.term() < self.hard_state.term() {
                    return Err(Problem::Record(format!(
                        "a state of term {} behind one of term {}, or another record's type is \
                         damaged",
                        state.term(),
                        self.hard_state.term()
                    )));
                }
                self.hard_state = state;
                self.commit();
            }
            frame::ENTRY => self.entry(data, segment, offset)?,
            frame::SNAPSHOT => {
                let record = walpb::Snapshot::decode(data).map_err(garbled)?;
                let mark = SnapshotMark {
                    index: in_range(record.index)?,
                    term: record.term.unwrap_or_default(),
                };
                self.waiting.push(Record {
                    mark,
                    conf_state: record.conf_state,
                    seq: segment.name.seq,
                    followed: false,
                });
                self.commit();
            }
            other => return Err(Problem::Record(format!("{other} is no type of a record"))),
        }
        Ok(())
    }

    fn entry(
        &mut self,
        data: Bytes,
        segment: &Arc<Segment<F>>,
        offset: u64,
    ) -> Result<(), Problem> {
        let size = data.len();
        let entry = decode(data).map_err(Problem::Record)?;
        let index = in_range(entry.index)?;
        let (first, last) = (self.index.first(), self.index.last());
        if index == 0 {
            // No log begins below it.
            return Ok(());
        }
        self.plausible(&entry, index).map_err(Problem::Record)?;
        for record in &mut self.waiting {
            let after = record.mark.index;
            record.followed = index > after && (record.followed || index == after + 1);
        }
        if index < first || index > last + 1 {
            // The log begins here, or those between are gone. It is a fault if a start needs them.
            if first <= last {
                self.hole = Some(format!("entry {index} follows entry {last}"));
            }
            self.begin(Index::from(index));
        }
        // It replaces what an earlier leader wrote from its index on.
        self.cut_tail(index);
        let place = Checkpoint {
            index,
            segment: Arc::clone(segment),
            offset,
            chain: self.chain.unwrap_or_default(),
        };
        self.index.push(entry.term.unwrap_or_default(), place);
        self.tail_bytes += bytes_of(&entry);
        self.tail.push_back(entry);
        while self.tail_bytes > TAIL_BYTES.max(size) {
            let Some(old) = self.tail.pop_front() else {
                break;
            };
            self.tail_bytes -= bytes_of(&old);
        }
        Ok(())
    }

    /// A record's CRC does not cover its type, and a state whose type says entry decodes as one:
    /// with its term as type, its vote as term, and its commit index as index.
    fn plausible(&self, entry: &Entry, index: u64) -> Result<(), String> {
        let bare = entry.data.as_ref().is_none_or(Bytes::is_empty);
        let fits = match EntryType::try_from(entry.r#type.unwrap_or_default()) {
            Ok(EntryType::EntryNormal) => true,
            Ok(EntryType::EntryConfChange) => !bare,
            // etcd proposes none of the second kind, and ends where one is committed.
            Ok(EntryType::EntryConfChangeV2) | Err(_) => false,
        };
        // Entries of another history may lie before a snapshot that is not committed yet.
        let before = match self.waiting.is_empty() {
            true => self.index.term(index - 1).unwrap_or_default(),
            false => 0,
        };
        match fits && entry.term() >= before {
            true => Ok(()),
            false => Err(format!(
                "entry {index} of type {} and term {} behind one of term {before}, or another \
                 record's type is damaged",
                entry.r#type.unwrap_or_default(),
                entry.term()
            )),
        }
    }

    /// Takes the snapshot records that are committed by now.
    fn commit(&mut self) {
        let commit = self.hard_state.commit.unwrap_or_default();
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|record| record.mark.index <= commit);
        self.waiting = later;
        let now: Vec<Record> = now;
        for record in now {
            self.mark(record);
        }
    }

    /// A committed record. Where the log has the entry that it stands for, those behind it continue
    /// it. Otherwise the snapshot came from another member, and they are of another history.
    fn mark(&mut self, record: Record) {
        let SnapshotMark { index, term } = record.mark;
        match self.index.term(index) {
            Some(found) if found == term => {}
            // Entries that begin right behind it are its own, wherever the record lies.
            None if index + 1 == self.index.first() => self.index.set_base(term),
            None if index < self.index.first() => {}
            Some(_) if record.followed => {
                self.index.rebase(index, term);
                self.drop_tail(index);
            }
            _ => {
                self.hole = None;
                self.begin(Index::after(index, term));
            }
        }
        self.marks.push(record.mark);
        let newest = self.start.as_ref().map_or(0, |start| start.mark.index);
        if index <= self.at_most && index >= newest {
            self.start = Some(record);
        }
    }

    /// A segment that is named after `index` begins: what earlier ones have from there on was dead
    /// by then. That is how a new beginning ends the history before it, also when only some of its
    /// segments are left.
    fn end_before(&mut self, index: u64) {
        let index = index.max(1);
        if index < self.index.first() {
            self.begin(Index::from(index));
        } else if index <= self.index.last() {
            self.index.truncate_after(index - 1);
            self.cut_tail(index);
        }
    }

    /// Removes the entries from `index` on.
    fn cut_tail(&mut self, index: u64) {
        while self.tail.back().is_some_and(|old| old.index >= Some(index)) {
            let old = self.tail.pop_back();
            self.tail_bytes -= old.map_or(0, |old| bytes_of(&old));
        }
    }

    /// Removes the entries up to `index`.
    fn drop_tail(&mut self, index: u64) {
        while self
            .tail
            .front()
            .is_some_and(|old| old.index <= Some(index))
        {
            let old = self.tail.pop_front();
            self.tail_bytes -= old.map_or(0, |old| bytes_of(&old));
        }
    }

    fn begin(&mut self, index: Index<F>) {
        self.index = index;
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Checks that the log is whole from its start on, and forgets what lies before.
    fn finish(&mut self) -> Result<(Metadata, Record), Error> {
        let (commit, first, last) = (
            self.hard_state.commit.unwrap_or_default(),
            self.index.first(),
            self.index.last(),
        );
        let gap = |problem: String| Error::Gap {
            path: self.dir.clone(),
            problem,
        };
        // Taking these for a part of the old history would be worse than no start.
        let lost = |record: &&Record| {
            let SnapshotMark { index, term } = record.mark;
            record.followed && self.index.term(index) != Some(term)
        };
        if let Some(Record { mark, .. }) = self.waiting.iter().find(lost) {
            return Err(gap(format!(
                "entries follow the snapshot at {}, and the state that commits it is missing",
                mark.index
            )));
        }
        let start = match (self.start.take(), self.hole.take()) {
            (Some(start), _) if start.mark.index + 1 >= first => start,
            (Some(_), Some(hole)) => return Err(gap(hole)),
            _ => {
                return Err(Error::SnapshotNotFound {
                    path: self.dir.clone(),
                    at_most: self.at_most,
                    first,
                });
            }
        };
        if commit > last {
            let problem = format!("entry {commit} is committed and the log ends at {last}");
            return Err(gap(problem));
        }
        let nobodys = || gap("no record says whose log it is".to_owned());
        let metadata = self.metadata.ok_or_else(nobodys)?;
        let oldest = start.mark.index;
        self.index.drop_before(oldest + 1);
        self.drop_tail(oldest);
        self.marks.retain(|mark| mark.index >= oldest);
        Ok((metadata, start))
    }
}

/// The chain after a record, when the record fits it. The first segment that is read says where it
/// stands.
fn chain_after(chain: Option<u32>, record: &walpb::Record) -> Result<u32, String> {
    let found = record.crc.unwrap_or_default();
    let before = match (chain, record.r#type) {
        (None, Some(frame::CRC)) => return Ok(found),
        (None, _) => return Err("the segment does not begin with a CRC record".to_owned()),
        (Some(chain), _) => chain,
    };
    let data = record.data.as_deref().unwrap_or_default();
    let wanted = crc32c::crc32c_append(before, data);
    match found == wanted {
        true => Ok(wanted),
        false => Err(format!("crc mismatch: {found:08x}, {wanted:08x} wanted")),
    }
}

/// An index that another one can follow.
fn in_range(index: Option<u64>) -> Result<u64, Problem> {
    let index = index.unwrap_or_default();
    match index < u64::MAX - 1 {
        true => Ok(index),
        false => Err(Problem::Record(format!("{index} is no index"))),
    }
}

fn bytes_of(entry: &Entry) -> usize {
    entry.data.as_ref().map_or(0, Bytes::len)
}

/// Why a record refuses the start.
enum Problem {
    Record(String),
    OtherMember,
}

impl Problem {
    fn at<F>(self, segment: &Segment<F>, offset: u64) -> Error {
        let path = segment.path.clone();
        match self {
            Self::Record(problem) => Error::Corrupt {
                path,
                offset,
                problem,
            },
            Self::OtherMember => Error::MetadataConflict(path),
        }
    }
}
