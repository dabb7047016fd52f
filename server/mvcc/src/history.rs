//! The past as watchers are told it, read from family `key` in the order of revisions.

use bytes::Bytes;
use prost::Message;

use crate::{
    engine::{Direction, Family, Read},
    error::Error,
    event::{Event, EventKind, RevisionEvents},
    reader::{decode_kv, decode_row_key},
    revision::{Revision, RowKey},
    rows,
    store::View,
};

impl<S: Read> View<S> {
    /// The events from a revision on, in whole revisions: at least one, if there is one, and no
    /// further one once `max_bytes` of events are together. A change up to the compacted revision
    /// comes without what it superseded.
    ///
    /// # Errors
    /// [`Error::Compacted`] when `from` lies before the compacted revision, or the engine's.
    pub fn history(&self, from: i64, max_bytes: usize) -> Result<Vec<RevisionEvents>, Error> {
        if from < self.compacted {
            return Err(Error::Compacted);
        }
        let lower = Revision::start(from.max(0)).encode();
        let mut cursor = self
            .snapshot
            .scan(Family::Key, &lower, None, Direction::Ascending)?;
        let mut found: Vec<RevisionEvents> = Vec::new();
        let mut bytes = 0;
        while cursor.valid() {
            let row = decode_row_key(cursor.key())?;
            let revision = row.revision.main;
            let begins = found.last().is_none_or(|last| last.revision != revision);
            if begins {
                if bytes >= max_bytes && !found.is_empty() {
                    break;
                }
                let events = Vec::new();
                found.push(RevisionEvents { revision, events });
            }
            let event = self.event(row, cursor.value())?;
            bytes += event.bytes();
            if let Some(last) = found.last_mut() {
                last.events.push(event);
            }
            cursor.next()?;
        }
        Ok(found)
    }

    fn event(&self, row: RowKey, value: &[u8]) -> Result<Event, Error> {
        let mut kv = decode_kv(value)?;
        let key = kv.key.clone();
        let prev = self.version_before(&key, row.revision)?;
        if row.tombstone {
            kv.mod_revision = row.revision.main;
            return Ok(Event {
                key,
                kind: EventKind::Delete,
                kv: kv.encode_to_vec().into(),
                prev,
            });
        }
        Ok(Event {
            key,
            kind: EventKind::Put {
                create: kv.version == 1,
            },
            kv: Bytes::copy_from_slice(value),
            prev,
        })
    }

    /// The version before the transaction of a change, if its row is still there.
    fn version_before(&self, key: &[u8], revision: Revision) -> Result<Option<Bytes>, Error> {
        let mut at = revision;
        loop {
            let row = rows::hist_key(key, at);
            let Some(row) = self.snapshot.get(Family::Hist, &row)? else {
                return Ok(None);
            };
            let superseded = rows::decode_superseded(&row)?.revision;
            if superseded == Revision::NONE {
                return Ok(None);
            }
            if superseded.main < revision.main {
                return Ok(self.snapshot.get(Family::Key, &superseded.encode())?);
            }
            if superseded >= at {
                // Nothing supersedes itself; following it would never end.
                return Err(Error::Damaged(format!(
                    "family hist says that revision {} superseded revision {}",
                    at.main, superseded.main
                )));
            }
            at = superseded;
        }
    }
}
