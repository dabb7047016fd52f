//! Ranges at the current revision and at older ones.
//!
//! The current versions are one scan of `cur`. At an older revision the scan merges `cur` with
//! `hist`: the first change of a key behind that revision says which version it superseded.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        RangeRequest, RangeResponse, ResponseHeader,
        range_request::{SortOrder, SortTarget},
    },
    mvccpb::KeyValue,
};

use crate::{
    counts::Counts,
    engine::{Cursor, Direction, Family, Read},
    error::Error,
    revision::{Revision, RowKey},
    rows::{self, Current},
};

/// Rows of family `key` fetched in one call.
const FETCH_ROWS: usize = 256;
/// An old count looks through the changes since then when there are at most so many revisions,
/// and through the history of the range otherwise.
const RECENT_REVISIONS: i64 = 4096;

/// A range of keys as etcd's requests give it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    pub lower: &'a [u8],
    /// The end of the range; `None` for all keys from `lower` on.
    pub upper: Option<&'a [u8]>,
    /// Whether only `lower` itself is meant.
    pub single: bool,
}

impl<'a> Keys<'a> {
    /// An empty end means the key alone, one zero byte all keys from it on.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        Self {
            lower: key,
            upper: (range_end != [0]).then_some(range_end),
            single: range_end.is_empty(),
        }
    }

    pub fn contain(&self, key: &[u8]) -> bool {
        if self.single {
            return key == self.lower;
        }
        key >= self.lower && self.upper.is_none_or(|upper| key < upper)
    }
}

/// What a scan brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Whole KeyValues.
    Values,
    /// Key, revisions and version, and what `cur` has of the rest.
    Index,
}

/// A consistent state at a revision.
pub(crate) struct Reader<'a, R> {
    pub rows: &'a R,
    pub counts: &'a Counts,
    /// The newest revision in the state.
    pub revision: i64,
    /// The compacted revision; -1 before the first compaction.
    pub compacted: i64,
}

impl<R: Read> Reader<'_, R> {
    /// The newest version of a key, as `cur` has it.
    pub fn current(&self, key: &[u8]) -> Result<Option<Current>, Error> {
        let row = self.rows.get(Family::Cur, key)?;
        row.map(rows::decode_cur).transpose()
    }

    /// The encoded KeyValue of a version.
    pub fn encoded(&self, current: &Current) -> Result<Bytes, Error> {
        match &current.encoded {
            Some(encoded) => Ok(encoded.clone()),
            None => self.version(current.revision),
        }
    }

    /// A row of family `key` that must be there.
    pub fn version(&self, revision: Revision) -> Result<Bytes, Error> {
        let row = self.rows.get(Family::Key, &revision.encode())?;
        row.ok_or_else(|| missing(revision))
    }

    /// Answers a range.
    pub fn range(&self, r: &RangeRequest) -> Result<RangeResponse, Error> {
        let at = self.readable(r.revision)?;
        let keys = Keys::new(&r.key, &r.range_end);
        let mut response = RangeResponse {
            header: Some(ResponseHeader {
                revision: self.revision,
                ..ResponseHeader::default()
            }),
            ..RangeResponse::default()
        };
        if r.count_only {
            response.count = self.count(keys, at)? as i64;
            return Ok(response);
        }
        let want = match r.keys_only && r.sort_target() != SortTarget::Value {
            true => Want::Index,
            false => Want::Values,
        };
        let read = read_limit(r);
        let mut kvs = self.collect(keys, at, read, want)?;
        response.count = match read {
            Some(read) if kvs.len() >= read => self.count(keys, at)? as i64,
            _ => kvs.len() as i64,
        };
        filter(r, &mut kvs);
        sort(r, &mut kvs);
        if r.limit > 0 && kvs.len() as u64 > r.limit as u64 {
            kvs.truncate(r.limit as usize);
            response.more = true;
        }
        if r.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
                // etcd answers from its index, which knows no leases.
                if want == Want::Index {
                    kv.lease = 0;
                }
            }
        }
        response.kvs = kvs;
        Ok(response)
    }

    /// The revision that a request means.
    fn readable(&self, revision: i64) -> Result<i64, Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        let at = if revision <= 0 {
            self.revision
        } else {
            revision
        };
        if at < self.compacted {
            return Err(Error::Compacted);
        }
        Ok(at)
    }

    /// The keys of a range at a readable revision, at most `limit`, in the order of keys.
    pub fn collect(
        &self,
        keys: Keys<'_>,
        at: i64,
        limit: Option<usize>,
        want: Want,
    ) -> Result<Vec<KeyValue>, Error> {
        let mut found = Found::new(want);
        if keys.single {
            self.find_one(keys.lower, at, &mut found)?;
        } else if at >= self.revision {
            self.find_current(keys, limit, &mut found)?;
        } else {
            self.find_old(keys, at, limit, &mut found)?;
        }
        self.fetch(found)
    }

    fn find_one(&self, key: &[u8], at: i64, found: &mut Found) -> Result<(), Error> {
        if at < self.revision {
            let behind = rows::hist_key(key, Revision::start(at + 1));
            let end = rows::hist_end(key);
            let hist = self
                .rows
                .scan(Family::Hist, &behind, Some(&end), Direction::Ascending)?;
            if hist.valid() {
                found.superseded(rows::decode_superseded(hist.value())?.revision);
                return Ok(());
            }
        }
        if let Some(current) = self.current(key)? {
            found.current(current);
        }
        Ok(())
    }

    fn find_current(
        &self,
        keys: Keys<'_>,
        limit: Option<usize>,
        found: &mut Found,
    ) -> Result<(), Error> {
        let mut cur = self
            .rows
            .scan(Family::Cur, keys.lower, keys.upper, Direction::Ascending)?;
        while cur.valid() && limit.is_none_or(|limit| found.len() < limit) {
            found.current(rows::decode_cur(Bytes::copy_from_slice(cur.value()))?);
            cur.next()?;
        }
        Ok(())
    }

    fn find_old(
        &self,
        keys: Keys<'_>,
        at: i64,
        limit: Option<usize>,
        found: &mut Found,
    ) -> Result<(), Error> {
        let mut cur = self
            .rows
            .scan(Family::Cur, keys.lower, keys.upper, Direction::Ascending)?;
        let mut hist = Changes::open(self.rows, keys, at)?;
        while limit.is_none_or(|limit| found.len() < limit) {
            let changed = hist.change();
            match (changed, cur.valid()) {
                (None, false) => return Ok(()),
                (Some((key, superseded)), valid) if !valid || &key[..] <= cur.key() => {
                    if valid && key[..] == *cur.key() {
                        cur.next()?;
                    }
                    found.superseded(superseded);
                    hist.advance()?;
                }
                _ => {
                    found.current(rows::decode_cur(Bytes::copy_from_slice(cur.value()))?);
                    cur.next()?;
                }
            }
        }
        Ok(())
    }

    /// How many keys of the range there are at a readable revision.
    pub fn count(&self, keys: Keys<'_>, at: i64) -> Result<u64, Error> {
        if keys.single {
            return Ok(self.collect(keys, at, None, Want::Index)?.len() as u64);
        }
        let now = self.counts.count(self.rows, keys.lower, keys.upper)?;
        if at >= self.revision {
            return Ok(now);
        }
        let growth = if self.revision - at <= RECENT_REVISIONS {
            self.recent_growth(keys, at)?
        } else {
            self.growth(keys, at)?
        };
        u64::try_from(now as i64 - growth)
            .map_err(|_| Error::Damaged("history has more creations than keys".to_owned()))
    }

    /// Keys of the range created less keys deleted behind a revision, from the changes since.
    fn recent_growth(&self, keys: Keys<'_>, at: i64) -> Result<i64, Error> {
        let mut growth = 0;
        let behind = Revision::start(at + 1).encode();
        let mut rows = self
            .rows
            .scan(Family::Key, &behind, None, Direction::Ascending)?;
        while rows.valid() {
            let row = decode_row_key(rows.key())?;
            let kv = decode_kv(rows.value())?;
            if keys.contain(&kv.key) {
                growth += match (row.tombstone, kv.version) {
                    (true, _) => -1,
                    (false, 1) => 1,
                    (false, _) => 0,
                };
            }
            rows.next()?;
        }
        Ok(growth)
    }

    /// The same from the history of the range.
    fn growth(&self, keys: Keys<'_>, at: i64) -> Result<i64, Error> {
        let mut growth = 0;
        let mut hist = Changes::open(self.rows, keys, at)?;
        while let Some((key, superseded)) = hist.change() {
            let was = i64::from(superseded != Revision::NONE);
            let is = i64::from(self.rows.get(Family::Cur, key)?.is_some());
            growth += is - was;
            hist.advance()?;
        }
        Ok(growth)
    }

    /// Brings the values that the scan left out.
    fn fetch(&self, found: Found) -> Result<Vec<KeyValue>, Error> {
        let Found {
            mut kvs, absent, ..
        } = found;
        for batch in absent.chunks(FETCH_ROWS) {
            let keys: Vec<Bytes> = batch.iter().map(|(_, at)| at.encode()).collect();
            let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            let rows = self.rows.multi_get(Family::Key, &keys)?;
            for ((index, revision), row) in batch.iter().zip(rows) {
                let row = row.ok_or_else(|| missing(*revision))?;
                kvs[*index] = decode_kv(&row)?;
            }
        }
        Ok(kvs)
    }
}

/// What a scan has found so far.
struct Found {
    want: Want,
    kvs: Vec<KeyValue>,
    /// Places in `kvs` whose version is still to be read from family `key`.
    absent: Vec<(usize, Revision)>,
}

impl Found {
    fn new(want: Want) -> Self {
        Self {
            want,
            kvs: Vec::new(),
            absent: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.kvs.len()
    }

    fn current(&mut self, current: Current) {
        if current.encoded.is_none() && self.want == Want::Values {
            self.absent.push((self.kvs.len(), current.revision));
        }
        self.kvs.push(current.kv);
    }

    fn superseded(&mut self, revision: Revision) {
        if revision != Revision::NONE {
            self.absent.push((self.kvs.len(), revision));
            self.kvs.push(KeyValue::default());
        }
    }
}

/// The keys of a range that changed behind a revision, each with the version that the first such
/// change superseded.
struct Changes<'a> {
    cursor: Box<dyn Cursor + 'a>,
    at: i64,
    change: Option<(Vec<u8>, Revision)>,
}

impl<'a> Changes<'a> {
    fn open<R: Read>(rows: &'a R, keys: Keys<'_>, at: i64) -> Result<Self, Error> {
        let lower = rows::hist_prefix(keys.lower);
        let upper = keys.upper.map(rows::hist_prefix);
        let mut changes = Self {
            cursor: rows.scan(Family::Hist, &lower, upper.as_deref(), Direction::Ascending)?,
            at,
            change: None,
        };
        changes.advance()?;
        Ok(changes)
    }

    fn change(&self) -> Option<(&Vec<u8>, Revision)> {
        self.change.as_ref().map(|(key, at)| (key, *at))
    }

    /// To the next changed key.
    fn advance(&mut self) -> Result<(), Error> {
        let passed = self.change.take();
        while self.cursor.valid() {
            let (key, superseding) = rows::decode_hist_key(self.cursor.key())?;
            let same = passed.as_ref().is_some_and(|(passed, _)| *passed == key);
            if !same && superseding.main > self.at {
                let superseded = rows::decode_superseded(self.cursor.value())?;
                self.change = Some((key, superseded.revision));
                return Ok(());
            }
            self.cursor.next()?;
        }
        Ok(())
    }
}

/// How many keys must be read for a request: one more than its limit tells whether there are
/// more. With a filter or an order of its own everything must be.
fn read_limit(r: &RangeRequest) -> Option<usize> {
    let in_key_order = r.sort_order() == SortOrder::None
        || (r.sort_target() == SortTarget::Key && r.sort_order() == SortOrder::Ascend);
    let filtered = r.min_mod_revision != 0
        || r.max_mod_revision != 0
        || r.min_create_revision != 0
        || r.max_create_revision != 0;
    let limit = usize::try_from(r.limit).ok().filter(|limit| *limit > 0)?;
    (in_key_order && !filtered).then_some(limit.saturating_add(1))
}

fn filter(r: &RangeRequest, kvs: &mut Vec<KeyValue>) {
    let within =
        |value: i64, min: i64, max: i64| (max == 0 || value <= max) && (min == 0 || value >= min);
    kvs.retain(|kv| {
        within(kv.mod_revision, r.min_mod_revision, r.max_mod_revision)
            && within(
                kv.create_revision,
                r.min_create_revision,
                r.max_create_revision,
            )
    });
}

/// Sorts as asked. A target without an order means ascending, as etcd has it. Equal ones stay in
/// the order of their keys, also in a descending order: so Go's sort leaves short lists.
fn sort(r: &RangeRequest, kvs: &mut [KeyValue]) {
    let compare = |a: &KeyValue, b: &KeyValue| match r.sort_target() {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match (r.sort_target(), r.sort_order()) {
        (_, SortOrder::Descend) => kvs.sort_by(|a, b| compare(b, a)),
        // They come in the order of keys.
        (SortTarget::Key, _) => {}
        _ => kvs.sort_by(compare),
    }
}

fn missing(revision: Revision) -> Error {
    Error::Damaged(format!(
        "family key has no row for revision {}/{}",
        revision.main, revision.sub
    ))
}

/// Reads the key of a row of family `key`.
pub(crate) fn decode_row_key(row: &[u8]) -> Result<RowKey, Error> {
    let damaged = || Error::Damaged(format!("a row key of family key: {row:02x?}"));
    RowKey::decode(row).ok_or_else(damaged)
}

/// Reads the value of a row of family `key`.
pub(crate) fn decode_kv(row: &[u8]) -> Result<KeyValue, Error> {
    KeyValue::decode(row)
        .map_err(|error| Error::Damaged(format!("a row of family key is no KeyValue: {error}")))
}
