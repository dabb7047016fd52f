//! Entries read back from the segments, beside the thread that appends.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use proto::raftpb::Entry;

use crate::{
    Error, Vfs,
    frame::{self, Frame, FrameReader},
    index::Index,
};

/// Reads entries of a [`crate::Wal`] that is open. Cheap to clone.
pub struct Reader<V: Vfs> {
    index: Arc<RwLock<Index<V::File>>>,
}

impl<V: Vfs> Clone for Reader<V> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.index))
    }
}

impl<V: Vfs> Reader<V> {
    pub(crate) fn new(index: Arc<RwLock<Index<V::File>>>) -> Self {
        Self { index }
    }

    /// Term of the entry at `index`, from memory; `None` when the log does not hold it.
    pub fn term(&self, index: u64) -> Option<u64> {
        self.index.read().term(index)
    }

    /// The entries `from..to`, as many as fit into `max_bytes` but at least one. None when the log
    /// no longer holds `from`. Entries that are replaced meanwhile may come in their old form: only
    /// the caller knows what is committed. Segments that are dropped meanwhile are read to the end.
    ///
    /// # Errors
    /// [`Error::Unavailable`] above the log's end; [`Error::Corrupt`] when the disk gives back
    /// something else than was written.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        while next < to {
            // Holding the segment keeps its file, also when its name is removed.
            let (place, end) = {
                let index = self.index.read();
                if next < index.first() {
                    return Ok(found);
                }
                index.locate(next).ok_or_else(|| Error::Unavailable {
                    last_index: index.last(),
                })?
            };
            let path = &place.segment.path;
            let failed = |cause| Error::io("read", path)(cause);
            let mut frames = FrameReader::new(&place.segment.file, place.offset).map_err(failed)?;
            let mut chain = place.chain;
            while next < end.min(to) {
                let offset = frames.offset();
                let damaged = |problem: &str| Error::Corrupt {
                    path: path.clone(),
                    offset,
                    problem: problem.to_owned(),
                };
                let Frame::Record { record, .. } = frames.next().map_err(failed)? else {
                    return Err(damaged("an entry is missing"));
                };
                let data = record.data.unwrap_or_default();
                chain = crc32c::crc32c_append(chain, &data);
                if record.crc != Some(chain) {
                    return Err(damaged("crc mismatch"));
                }
                if record.r#type != Some(frame::ENTRY) {
                    continue;
                }
                let size = data.len();
                let entry = decode(data).map_err(|problem| damaged(&problem))?;
                if entry.index != Some(next) {
                    // The checkpoint lies before the entry that was asked for.
                    continue;
                }
                if !found.is_empty() && bytes + size > max_bytes {
                    return Ok(found);
                }
                bytes += size;
                next += 1;
                found.push(entry);
            }
        }
        Ok(found)
    }
}

pub(crate) fn decode(data: Bytes) -> Result<Entry, String> {
    Entry::decode(data).map_err(|cause| format!("an entry does not decode: {cause}"))
}
