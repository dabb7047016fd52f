//! Ranges at the current revision and at older ones.
//!
//! The current versions are one scan of `cur`. At an older revision the scan merges `cur` with
//! `hist`: the first change of a key behind that revision says which version it superseded.
//!
//! [`Reader::walk`] finds the versions, a [`Sink`] takes them: [`Decoded`] for who looks into them,
//! [`Encoded`] for answers that are sent as the rows have them.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        RangeRequest, RangeResponse, ResponseHeader,
        range_request::{SortOrder, SortTarget},
    },
    framed,
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
/// The length of a bounded list is foreseen from so many of its rows.
const SAMPLE_ROWS: usize = 16;
/// What is set aside for a list before its rows are known.
const MAX_RESERVE_BYTES: usize = 4 << 20;
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
            header: self.header(),
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

    /// Answers a range; where nothing of a KeyValue must be looked at or left out, its bytes go
    /// from the row to the answer.
    pub fn range_framed(&self, r: &RangeRequest) -> Result<framed::RangeResponse, Error> {
        let by_key = r.sort_target() == SortTarget::Key && r.sort_order() != SortOrder::Descend;
        if r.count_only || r.keys_only || is_filtered(r) || !by_key {
            return Ok(self.range(r)?.into());
        }
        let at = self.readable(r.revision)?;
        let keys = Keys::new(&r.key, &r.range_end);
        let limit = limit(r);
        let mut found = Encoded::new(self, limit);
        let more = self.walk(keys, at, limit, &mut found)?;
        let kvs = found.done()?;
        Ok(framed::RangeResponse {
            header: self.header(),
            count: match more {
                true => self.count(keys, at)? as i64,
                false => kvs.count() as i64,
            },
            kvs,
            more,
        })
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision,
            ..ResponseHeader::default()
        })
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
        let mut found = Decoded::new(want);
        self.walk(keys, at, limit, &mut found)?;
        self.fetch(found)
    }

    /// Shows `sink` the versions of a range at a readable revision, at most `limit`, in the order
    /// of keys. Returns whether there are more.
    fn walk(
        &self,
        keys: Keys<'_>,
        at: i64,
        limit: Option<usize>,
        sink: &mut impl Sink,
    ) -> Result<bool, Error> {
        if keys.single {
            self.walk_one(keys.lower, at, sink)?;
            return Ok(false);
        }
        let limit = limit.unwrap_or(usize::MAX);
        match at >= self.revision {
            true => self.walk_current(keys, limit, sink),
            false => self.walk_old(keys, at, limit, sink),
        }
    }

    fn walk_one(&self, key: &[u8], at: i64, sink: &mut impl Sink) -> Result<(), Error> {
        if at < self.revision {
            let behind = rows::hist_key(key, Revision::start(at + 1));
            let end = rows::hist_end(key);
            let hist = self
                .rows
                .scan(Family::Hist, &behind, Some(&end), Direction::Ascending)?;
            if hist.valid() {
                let superseded = rows::decode_superseded(hist.value())?.revision;
                if superseded != Revision::NONE {
                    sink.superseded(superseded)?;
                }
                return Ok(());
            }
        }
        if let Some(row) = self.rows.get(Family::Cur, key)? {
            sink.current(Row::Owned(row))?;
        }
        Ok(())
    }

    fn walk_current(
        &self,
        keys: Keys<'_>,
        limit: usize,
        sink: &mut impl Sink,
    ) -> Result<bool, Error> {
        let mut cur = self
            .rows
            .scan(Family::Cur, keys.lower, keys.upper, Direction::Ascending)?;
        let mut found = 0;
        while cur.valid() {
            if found == limit {
                return Ok(true);
            }
            sink.current(Row::Lent(cur.value()))?;
            found += 1;
            cur.next()?;
        }
        Ok(false)
    }

    fn walk_old(
        &self,
        keys: Keys<'_>,
        at: i64,
        limit: usize,
        sink: &mut impl Sink,
    ) -> Result<bool, Error> {
        let mut cur = self
            .rows
            .scan(Family::Cur, keys.lower, keys.upper, Direction::Ascending)?;
        let mut hist = Changes::open(self.rows, keys, at)?;
        let mut found = 0;
        loop {
            let superseded = match (hist.change(), cur.valid()) {
                (None, false) => return Ok(false),
                (Some((key, superseded)), valid) if !valid || &key[..] <= cur.key() => {
                    if valid && key[..] == *cur.key() {
                        cur.next()?;
                    }
                    hist.advance()?;
                    // A key that did not exist is none of the range.
                    if superseded == Revision::NONE {
                        continue;
                    }
                    Some(superseded)
                }
                _ => None,
            };
            if found == limit {
                return Ok(true);
            }
            found += 1;
            match superseded {
                Some(revision) => sink.superseded(revision)?,
                None => {
                    sink.current(Row::Lent(cur.value()))?;
                    cur.next()?;
                }
            }
        }
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

    /// Brings the values that the walk left out.
    fn fetch(&self, found: Decoded) -> Result<Vec<KeyValue>, Error> {
        let Decoded {
            mut kvs, absent, ..
        } = found;
        for batch in absent.chunks(FETCH_ROWS) {
            let rows = self.versions(batch.iter().map(|(_, revision)| *revision))?;
            for ((index, _), row) in batch.iter().zip(rows) {
                kvs[*index] = decode_kv(&row)?;
            }
        }
        Ok(kvs)
    }

    /// Rows of family `key` that must be there.
    fn versions(&self, of: impl Iterator<Item = Revision> + Clone) -> Result<Vec<Bytes>, Error> {
        let keys: Vec<Bytes> = of.clone().map(Revision::encode).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let rows = self.rows.multi_get(Family::Key, &keys)?;
        let found = of.zip(rows);
        found
            .map(|(revision, row)| row.ok_or_else(|| missing(revision)))
            .collect()
    }
}

/// A row of family `cur`.
enum Row<'a> {
    Owned(Bytes),
    Lent(&'a [u8]),
}

/// Takes the versions that [`Reader::walk`] finds.
trait Sink {
    /// The newest version of a key.
    fn current(&mut self, row: Row<'_>) -> Result<(), Error>;
    /// An older one, by its place in family `key`.
    fn superseded(&mut self, revision: Revision) -> Result<(), Error>;
}

/// The versions taken apart.
struct Decoded {
    want: Want,
    kvs: Vec<KeyValue>,
    /// Places in `kvs` whose version is still to be read from family `key`.
    absent: Vec<(usize, Revision)>,
}

impl Decoded {
    fn new(want: Want) -> Self {
        Self {
            want,
            kvs: Vec::new(),
            absent: Vec::new(),
        }
    }
}

impl Sink for Decoded {
    fn current(&mut self, row: Row<'_>) -> Result<(), Error> {
        let current = rows::decode_cur(match row {
            Row::Owned(row) => row,
            Row::Lent(row) => Bytes::copy_from_slice(row),
        })?;
        if current.encoded.is_none() && self.want == Want::Values {
            self.absent.push((self.kvs.len(), current.revision));
        }
        self.kvs.push(current.kv);
        Ok(())
    }

    fn superseded(&mut self, revision: Revision) -> Result<(), Error> {
        self.absent.push((self.kvs.len(), revision));
        self.kvs.push(KeyValue::default());
        Ok(())
    }
}

/// The versions as they stand on the wire.
struct Encoded<'a, R> {
    reader: &'a Reader<'a, R>,
    limit: Option<usize>,
    gather: framed::GatherKeyValues,
    /// Versions behind one that is still to be read from family `key`, that one first.
    waiting: Vec<Waiting>,
}

/// A version whose turn has not come.
enum Waiting {
    /// Its KeyValue.
    Here(Bytes),
    /// Its place in family `key`.
    Absent(Revision),
}

impl<'a, R: Read> Encoded<'a, R> {
    fn new(reader: &'a Reader<'a, R>, limit: Option<usize>) -> Self {
        Self {
            reader,
            limit,
            gather: framed::GatherKeyValues::default(),
            waiting: Vec::new(),
        }
    }

    fn wait(&mut self, version: Waiting) -> Result<(), Error> {
        self.waiting.push(version);
        if self.waiting.len() >= FETCH_ROWS {
            self.fetch()?;
        }
        Ok(())
    }

    /// Reads what is absent and takes all that waits.
    fn fetch(&mut self) -> Result<(), Error> {
        let absent = self.waiting.iter().filter_map(|version| match version {
            Waiting::Here(_) => None,
            Waiting::Absent(revision) => Some(*revision),
        });
        let mut fetched = self.reader.versions(absent)?.into_iter();
        for version in std::mem::take(&mut self.waiting) {
            let encoded = match version {
                Waiting::Here(encoded) => Some(encoded),
                Waiting::Absent(_) => fetched.next(),
            };
            if let Some(encoded) = encoded {
                self.take(&encoded);
            }
        }
        Ok(())
    }

    fn take(&mut self, encoded: &[u8]) {
        self.gather.push(encoded);
        // A bounded list is about as long as its beginning says.
        if self.gather.count() == SAMPLE_ROWS
            && let Some(limit) = self.limit
        {
            let whole = self.gather.byte_len().saturating_mul(limit) / SAMPLE_ROWS;
            let more = whole.saturating_sub(self.gather.byte_len());
            self.gather.reserve(more.min(MAX_RESERVE_BYTES));
        }
    }

    fn done(mut self) -> Result<framed::KeyValues, Error> {
        self.fetch()?;
        Ok(self.gather.done())
    }
}

impl<R: Read> Sink for Encoded<'_, R> {
    fn current(&mut self, row: Row<'_>) -> Result<(), Error> {
        let row = match &row {
            Row::Owned(row) => &row[..],
            Row::Lent(row) => row,
        };
        match rows::split_cur(row)? {
            (_, Some(encoded)) if self.waiting.is_empty() => {
                self.take(encoded);
                Ok(())
            }
            (_, Some(encoded)) => self.wait(Waiting::Here(Bytes::copy_from_slice(encoded))),
            (revision, None) => self.wait(Waiting::Absent(revision)),
        }
    }

    fn superseded(&mut self, revision: Revision) -> Result<(), Error> {
        self.wait(Waiting::Absent(revision))
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

/// The limit of a request, if it has one.
fn limit(r: &RangeRequest) -> Option<usize> {
    usize::try_from(r.limit).ok().filter(|limit| *limit > 0)
}

/// How many keys must be read before they are filtered and sorted. One more than the limit tells
/// whether there are more, and takes part in the order, as in etcd; with a filter, or an order that
/// is asked for and not that of the keys, everything must be.
fn read_limit(r: &RangeRequest) -> Option<usize> {
    let in_key_order = r.sort_order() == SortOrder::None
        || (r.sort_target() == SortTarget::Key && r.sort_order() == SortOrder::Ascend);
    let read = limit(r)?.saturating_add(1);
    (in_key_order && !is_filtered(r)).then_some(read)
}

fn is_filtered(r: &RangeRequest) -> bool {
    r.min_mod_revision != 0
        || r.max_mod_revision != 0
        || r.min_create_revision != 0
        || r.max_create_revision != 0
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
