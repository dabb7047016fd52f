//! Opening a log: what it holds, what a power cut tore off it, and what refuses to start.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use proto::{
    raftpb::{Entry, HardState},
    walpb,
};

use crate::{
    Error, Metadata, Options, SnapshotMark, Vfs, VfsFile, Wal,
    frame::{self, Frame, FrameReader},
    index::{Checkpoint, Index},
    log::source,
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
    /// The newest entries, without a gap up to the last; older ones come from [`crate::Reader`].
    pub entries: Vec<Entry>,
    /// Every snapshot record from the one that was asked for on, in the log's order.
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

impl<V: Vfs> Wal<V> {
    /// Opens the log in `dir` from the snapshot record `from` on, for appending.
    ///
    /// A torn tail is cut away by etcd's rule only: it is in the last segment, and a whole sector
    /// of the record never reached the disk. One case that etcd takes for torn is refused: a record
    /// that is whole although its length word says otherwise.
    ///
    /// # Errors
    /// Everything else that does not check out; nothing is changed then.
    pub fn open(
        vfs: Arc<V>,
        dir: &Path,
        from: SnapshotMark,
        options: Options,
    ) -> Result<(Self, Recovered), Error> {
        let segments = open_segments(&*vfs, dir, from)?;
        let mut scan = Scan::new(dir, from);
        for (position, segment) in segments.iter().enumerate() {
            scan.segment(segment, position + 1 == segments.len())?;
        }
        let metadata = scan.check()?;
        let Some(segment) = segments.last() else {
            return Err(Error::NotFound(dir.to_owned()));
        };
        let repair = match scan.torn {
            true => Some(set_aside(&*vfs, dir, segment, scan.offset)?),
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

        let recovered = Recovered {
            metadata,
            hard_state: scan.hard_state,
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
            segment: Arc::clone(segment),
            offset: scan.offset,
            filled: length,
            chain: scan.chain.unwrap_or_default(),
            index: Arc::new(RwLock::new(scan.index)),
            poisoned: false,
            appended: 0,
        };
        Ok((wal, recovered))
    }
}

/// The segments that hold the record `from` and all after it.
fn open_segments<V: Vfs>(
    vfs: &V,
    dir: &Path,
    from: SnapshotMark,
) -> Result<Vec<Arc<Segment<V::File>>>, Error> {
    let names = vfs.list(dir).map_err(Error::io("list", dir))?;
    let mut names: Vec<_> = names.iter().filter_map(|name| Name::parse(name)).collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::NotFound(dir.to_owned()));
    }
    let Some(first) = names.iter().rposition(|name| name.index <= from.index) else {
        let text = format!("no segment begins at or below index {}", from.index);
        return Err(Error::SnapshotNotFound(text));
    };
    let names = names.split_off(first);
    for pair in names.windows(2) {
        if pair[1].seq != pair[0].seq + 1 {
            return Err(Error::Gap {
                path: dir.to_owned(),
                problem: format!("segment {} follows {}", pair[1].seq, pair[0].seq),
            });
        }
    }
    let open = |name: &Name| {
        let path = name.path(dir);
        let file = vfs.open(&path).map_err(Error::io("open", &path))?;
        Ok(Arc::new(Segment {
            name: *name,
            path,
            file,
        }))
    };
    names.iter().map(open).collect()
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

/// What the records read so far add up to.
struct Scan<F> {
    dir: PathBuf,
    from: SnapshotMark,
    found_mark: bool,
    metadata: Option<Metadata>,
    hard_state: HardState,
    marks: Vec<SnapshotMark>,
    index: Index<F>,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    /// `None` until the first segment's CRC record.
    chain: Option<u32>,
    /// End of the last valid record of the newest segment.
    offset: u64,
    torn: bool,
}

impl<F: VfsFile> Scan<F> {
    fn new(dir: &Path, from: SnapshotMark) -> Self {
        Self {
            dir: dir.to_owned(),
            from,
            found_mark: false,
            metadata: None,
            hard_state: HardState::default(),
            marks: Vec::new(),
            index: Index::after(from.index, from.term),
            tail: VecDeque::new(),
            tail_bytes: 0,
            chain: None,
            offset: 0,
            torn: false,
        }
    }

    fn segment(&mut self, segment: &Arc<Segment<F>>, newest: bool) -> Result<(), Error> {
        let failed = |cause| Error::io("read", &segment.path)(cause);
        let mut frames = FrameReader::new(&segment.file, 0).map_err(failed)?;
        loop {
            let offset = frames.offset();
            self.offset = offset;
            let problem = match frames.next().map_err(failed)? {
                Frame::End => return Ok(()),
                Frame::Record { record, raw } => match self.chain_after(&record) {
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
            && frame::whole_prefix(raw).is_none_or(|record| self.chain_after(&record).is_err())
    }

    /// The chain after a record, when the record fits it.
    fn chain_after(&self, record: &walpb::Record) -> Result<u32, String> {
        let found = record.crc.unwrap_or_default();
        let before = match (self.chain, record.r#type) {
            // The first segment that is read says where the chain stands.
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
            frame::STATE => self.hard_state = HardState::decode(data).map_err(garbled)?,
            frame::ENTRY => self.entry(data, segment, offset)?,
            frame::SNAPSHOT => {
                let record = walpb::Snapshot::decode(data).map_err(garbled)?;
                let mark = SnapshotMark {
                    index: record.index.unwrap_or_default(),
                    term: record.term.unwrap_or_default(),
                };
                self.mark(mark)?;
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
        let index = entry.index.unwrap_or_default();
        if index <= self.from.index {
            return Ok(());
        }
        let last = self.index.last();
        if index > last + 1 {
            return Err(Problem::Gap(format!("entry {index} follows entry {last}")));
        }
        // It replaces what an earlier leader wrote from its index on.
        while self.tail.back().is_some_and(|old| old.index >= Some(index)) {
            let old = self.tail.pop_back();
            self.tail_bytes -= old.map_or(0, |old| bytes_of(&old));
        }
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

    fn mark(&mut self, mark: SnapshotMark) -> Result<(), Problem> {
        if mark.index == self.from.index {
            if mark.term != self.from.term {
                return Err(Problem::OtherTerm {
                    mark,
                    wanted: self.from.term,
                });
            }
            self.found_mark = true;
        }
        if mark.index >= self.from.index {
            self.marks.push(mark);
        }
        Ok(())
    }

    fn check(&self) -> Result<Metadata, Error> {
        if !self.found_mark {
            let text = format!("the log has no record of index {}", self.from.index);
            return Err(Error::SnapshotNotFound(text));
        }
        let (commit, last) = (
            self.hard_state.commit.unwrap_or_default(),
            self.index.last(),
        );
        if commit > last {
            return Err(Error::Gap {
                path: self.dir.clone(),
                problem: format!("entry {commit} is committed and the log ends at {last}"),
            });
        }
        self.metadata.ok_or_else(|| Error::Gap {
            path: self.dir.clone(),
            problem: "no record says whose log it is".to_owned(),
        })
    }
}

fn bytes_of(entry: &Entry) -> usize {
    entry.data.as_ref().map_or(0, Bytes::len)
}

/// Why a record refuses the start.
enum Problem {
    Record(String),
    Gap(String),
    OtherMember,
    OtherTerm { mark: SnapshotMark, wanted: u64 },
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
            Self::Gap(problem) => Error::Gap { path, problem },
            Self::OtherMember => Error::MetadataConflict(path),
            Self::OtherTerm { mark, wanted } => Error::SnapshotMismatch {
                index: mark.index,
                found: mark.term,
                wanted,
            },
        }
    }
}
