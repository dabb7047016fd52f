//! Segment files: their names and how a new one is made ready.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use crate::{Error, Vfs, VfsFile};

/// Zeros are written in pieces of this many bytes.
const ZERO_CHUNK: usize = 1 << 20;
/// One segment waits in the channel and one in the hand of the thread: two are ready.
const READY_IN_CHANNEL: usize = 1;

/// Name of a segment: its number in the sequence and the index of the first entry it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub seq: u64,
    pub index: u64,
}

impl Name {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (seq, index) = text.strip_suffix(".wal")?.split_once('-')?;
        let hex = |s: &str| (s.len() == 16).then(|| u64::from_str_radix(s, 16).ok())?;
        Some(Self {
            seq: hex(seq)?,
            index: hex(index)?,
        })
    }

    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:016x}-{:016x}.wal", self.seq, self.index))
    }
}

/// An open segment. The log, its index and its readers share it.
pub(crate) struct Segment<F> {
    pub name: Name,
    pub path: PathBuf,
    pub file: F,
    /// Bytes of records in the segments before it, counted from the oldest one that was there when
    /// the log was opened.
    pub begin: u64,
}

/// Overwrites `from..to` with zeros and makes them durable. Real zeros and not a hole, so that a
/// later sync of a record changes no metadata of the file.
pub(crate) fn zero_fill<F: VfsFile>(file: &F, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0u8; ZERO_CHUNK.min(to.saturating_sub(from) as usize)];
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZERO_CHUNK as u64) as usize;
        file.write_at(&zeros[..n], at)?;
        at += n as u64;
    }
    file.sync_data()
}

/// A zero-filled file under a temporary name, waiting to become a segment.
pub(crate) struct Prepared<F> {
    path: PathBuf,
    file: F,
}

impl<F: VfsFile> Prepared<F> {
    /// Makes it the segment `name` of `dir`, behind `begin` bytes of others. It gets the name only
    /// after its head is durable: a crash leaves a whole segment or none.
    pub(crate) fn begin<V: Vfs<File = F>>(
        self,
        vfs: &V,
        dir: &Path,
        name: Name,
        begin: u64,
        head: &[u8],
    ) -> Result<Segment<F>, Error> {
        let written = self.file.write_at(head, 0);
        failpoint::WAL_BEFORE_HEAD_SYNC.hit();
        let synced = written.and_then(|()| self.file.sync_data());
        synced.map_err(Error::io("write", &self.path))?;
        let path = name.path(dir);
        failpoint::WAL_BEFORE_SEGMENT_RENAME.hit();
        let renamed = vfs.rename(&self.path, &path);
        failpoint::WAL_BEFORE_SEGMENT_DIR_SYNC.hit();
        let synced = renamed.and_then(|()| vfs.sync_dir(dir));
        synced.map_err(Error::io("put in place", &path))?;
        Ok(Segment {
            name,
            path,
            file: self.file,
            begin,
        })
    }
}

fn prepare<V: Vfs>(
    vfs: &V,
    dir: &Path,
    number: u64,
    bytes: u64,
) -> Result<Prepared<V::File>, Error> {
    // One more name than are ready: the one just taken may not be renamed yet.
    let path = dir.join(format!("{}.tmp", number % (READY_IN_CHANNEL as u64 + 2)));
    let file = vfs.create(&path).map_err(Error::io("create", &path))?;
    failpoint::WAL_BEFORE_FILL.hit();
    zero_fill(&file, 0, bytes).map_err(Error::io("fill", &path))?;
    failpoint::WAL_AFTER_FILL.hit();
    Ok(Prepared { path, file })
}

/// Where new segments come from.
pub(crate) enum Source<V: Vfs> {
    /// Made when asked for: no thread, so that a simulation stays deterministic.
    Inline { number: u64 },
    /// Made ahead by a thread, so that a cut waits for no zeros.
    Ahead {
        /// `None` only while it is dropped.
        ready: Option<Receiver<Result<Prepared<V::File>, Error>>>,
        /// `None` only while it is dropped.
        thread: Option<thread::JoinHandle<()>>,
    },
}

impl<V: Vfs> Drop for Source<V> {
    /// Waits for the thread: whoever opens the log next must not find it still writing there.
    fn drop(&mut self) {
        if let Source::Ahead { ready, thread } = self {
            // Without a receiver its next send fails, and it ends.
            drop(ready.take());
            if let Some(thread) = thread.take() {
                // It can only have panicked, and the log is closed either way.
                let _ = thread.join();
            }
        }
    }
}

impl<V: Vfs> Source<V> {
    pub(crate) fn inline() -> Self {
        Source::Inline { number: 0 }
    }

    /// Starts the thread. It ends once the receiver is gone.
    pub(crate) fn ahead(vfs: &Arc<V>, dir: &Path, bytes: u64) -> Result<Self, Error> {
        let (ready, receiver) = sync_channel(READY_IN_CHANNEL);
        let (vfs, path) = (Arc::clone(vfs), dir.to_path_buf());
        let thread = thread::Builder::new()
            .name("wal-prepare".into())
            .spawn(move || prepare_ahead(&*vfs, &path, bytes, &ready))
            .map_err(Error::io("start the preparing thread for", dir))?;
        Ok(Source::Ahead {
            ready: Some(receiver),
            thread: Some(thread),
        })
    }

    pub(crate) fn next(
        &mut self,
        vfs: &V,
        dir: &Path,
        bytes: u64,
    ) -> Result<Prepared<V::File>, Error> {
        match self {
            Source::Inline { number } => {
                *number += 1;
                prepare(vfs, dir, *number, bytes)
            }
            Source::Ahead { ready, .. } => ready
                .as_ref()
                .and_then(|ready| ready.recv().ok())
                .unwrap_or(Err(Error::Poisoned)),
        }
    }
}

type Ready<V> = SyncSender<Result<Prepared<<V as Vfs>::File>, Error>>;

fn prepare_ahead<V: Vfs>(vfs: &V, dir: &Path, bytes: u64, ready: &Ready<V>) {
    for number in 0.. {
        let prepared = prepare(vfs, dir, number, bytes);
        let failed = prepared.is_err();
        if ready.send(prepared).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_etcds() {
        let name = Name {
            seq: 3,
            index: 0xab_cdef,
        };
        let text = "0000000000000003-0000000000abcdef.wal";
        assert_eq!(name.path(Path::new("")), Path::new(text));
        assert_eq!(Name::parse(text), Some(name));
        for bad in [
            "0.tmp",
            "0000000000000003-0000000000abcdef.wal.broken",
            "3-abcdef.wal",
            "000000000000000g-0000000000abcdef.wal",
            "00000000000000030000000000abcdef.wal",
        ] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
    }
}
