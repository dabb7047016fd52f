//! The hub itself. All of its calls are short and none waits; the server holds a lock around it.

use std::{
    collections::{BTreeSet, VecDeque, hash_map::Entry},
    sync::Arc,
};

use mvcc::{Event, RevisionEvents};
use prost::Message;
use proto::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest},
    framed::{Events, WatchResponse},
};
use rustc_hash::FxHashMap;

use crate::{
    index::{Index, InterestKey},
    watcher::{Interest, Keys, Watcher, WatcherKey},
};

/// Bytes of events that may wait in a stream. Beyond that its watchers fall back to history, so a
/// slow reader holds no more memory than this, plus one batch.
const STREAM_BYTES: usize = 4 << 20;
/// Responses without events that may wait in a stream; a client that asks on and reads nothing is
/// cut off.
const STREAM_RESPONSES: usize = 100_000;
/// A watch ID that means no watcher, or all of the stream.
const NO_WATCHER: i64 = -1;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Names a stream in the hub; never used twice.
pub type StreamId = u64;

/// The past, as catch-up reads it.
pub trait History {
    /// The newest revision in it.
    fn revision(&self) -> i64;
    /// The oldest revision that can be read; -1 before the first compaction.
    fn compact_revision(&self) -> i64;
    /// Whole revisions from `from` on, at least one if there is one, about `max_bytes` of them.
    ///
    /// # Errors
    /// When `from` is compacted, or the store fails.
    fn read(&self, from: i64, max_bytes: usize) -> Result<Vec<RevisionEvents>, mvcc::Error>;
}

impl<S: mvcc::Read> History for mvcc::View<S> {
    fn revision(&self) -> i64 {
        Self::revision(self)
    }

    fn compact_revision(&self) -> i64 {
        Self::compact_revision(self)
    }

    fn read(&self, from: i64, max_bytes: usize) -> Result<Vec<RevisionEvents>, mvcc::Error> {
        self.history(from, max_bytes)
    }
}

/// What dashboards show of the hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Open streams.
    pub streams: usize,
    /// Watchers.
    pub watchers: usize,
    /// Watchers that read history.
    pub slow_watchers: usize,
    /// Events sent since the start.
    pub events: u64,
    /// Events that wait in streams.
    pub pending_events: usize,
}

#[derive(Debug, Default)]
struct Stream {
    watchers: FxHashMap<i64, WatcherKey>,
    next_id: i64,
    queue: VecDeque<WatchResponse>,
    /// Bytes of the events in the queue.
    bytes: usize,
    ended: bool,
}

impl Stream {
    fn is_full(&self, limit: usize) -> bool {
        self.bytes >= limit
    }

    fn push(&mut self, response: WatchResponse) {
        self.bytes += event_bytes(&response);
        self.queue.push_back(response);
        self.ended |= self.queue.len() > STREAM_RESPONSES;
    }
}

/// Events for the watchers of one interest, encoded when the first of them is sent them.
struct Batch<'a> {
    interest: Arc<Interest>,
    events: Vec<&'a Event>,
    encoded: Option<Events>,
}

impl<'a> Batch<'a> {
    fn new(interest: Arc<Interest>, events: Vec<&'a Event>) -> Self {
        Self {
            interest,
            events,
            encoded: None,
        }
    }

    fn encoded(&mut self) -> Events {
        let encoded = &mut self.encoded;
        let encoded = encoded.get_or_insert_with(|| self.interest.encode(&self.events));
        encoded.clone()
    }
}

/// All streams and watchers of a member.
#[derive(Debug)]
pub struct Hub {
    /// The last revision that was published.
    revision: i64,
    /// A response of a watcher that asked for fragments is cut to about this many bytes.
    fragment_bytes: usize,
    /// Bytes of events that may wait in a stream.
    stream_bytes: usize,
    streams: FxHashMap<StreamId, Stream>,
    watchers: FxHashMap<WatcherKey, Watcher>,
    /// Synced watchers.
    index: Index,
    /// The others, by the revision that they read next.
    unsynced: BTreeSet<(i64, WatcherKey)>,
    next_key: u64,
    events: u64,
}

impl Hub {
    /// A hub at a revision.
    pub fn new(revision: i64, fragment_bytes: usize) -> Self {
        Self {
            revision,
            fragment_bytes,
            stream_bytes: STREAM_BYTES,
            streams: FxHashMap::default(),
            watchers: FxHashMap::default(),
            index: Index::default(),
            unsynced: BTreeSet::new(),
            next_key: 0,
            events: 0,
        }
    }

    /// From now on so many bytes of events wait in a stream, before its watchers read history. For
    /// the simulator, whose events are few.
    pub fn limit_streams(&mut self, bytes: usize) {
        self.stream_bytes = bytes;
    }

    /// Opens a stream.
    pub fn open_stream(&mut self) -> StreamId {
        self.next_key += 1;
        self.streams.insert(self.next_key, Stream::default());
        self.next_key
    }

    /// Closes a stream with all its watchers.
    pub fn close_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        for key in stream.watchers.into_values() {
            self.forget(key);
        }
    }

    /// Answers in place of a watcher why it may not be.
    pub fn refuse(&mut self, stream_id: StreamId, reason: &str) {
        let header = header(self.revision);
        if let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.push(WatchResponse {
                header,
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason.to_owned(),
                ..WatchResponse::default()
            });
        }
    }

    /// Makes a watcher; the answer, also a refusal, is queued in the stream.
    pub fn create(&mut self, stream_id: StreamId, r: &WatchCreateRequest) {
        let header = header(self.revision);
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return;
        };
        let keys = match refusal(stream, r) {
            Ok(keys) => keys,
            Err(reason) => return self.refuse(stream_id, reason),
        };
        let id = match r.watch_id {
            0 => {
                while stream.watchers.contains_key(&stream.next_id) {
                    stream.next_id += 1;
                }
                stream.next_id += 1;
                stream.next_id - 1
            }
            id => id,
        };
        let mut watcher = Watcher::new(stream_id, id, keys, r);
        watcher.synced = r.start_revision == 0 || r.start_revision > self.revision;
        watcher.next = match r.start_revision {
            0 => self.revision + 1,
            start => start,
        };
        stream.push(WatchResponse {
            header,
            watch_id: id,
            created: true,
            ..WatchResponse::default()
        });
        self.next_key += 1;
        let key = self.next_key;
        stream.watchers.insert(id, key);
        match watcher.synced {
            true => self.index.insert(key, &watcher.interest),
            false => {
                self.unsynced.insert((watcher.next, key));
            }
        }
        self.watchers.insert(key, watcher);
    }

    /// Ends a watcher; an unknown one is ignored, as in etcd.
    pub fn cancel(&mut self, stream: StreamId, watch_id: i64) {
        let revision = self.revision;
        let Some(stream) = self.streams.get_mut(&stream) else {
            return;
        };
        let Some(key) = stream.watchers.remove(&watch_id) else {
            return;
        };
        stream.push(WatchResponse {
            header: header(revision),
            watch_id,
            canceled: true,
            ..WatchResponse::default()
        });
        self.forget(key);
    }

    /// Queues one progress response for the whole stream, if all its watchers have every event so
    /// far; otherwise nothing.
    pub fn request_progress(&mut self, stream: StreamId) {
        let revision = self.revision;
        let Some(stream) = self.streams.get_mut(&stream) else {
            return;
        };
        let mut keys = stream.watchers.values();
        let watchers = &self.watchers;
        let has_all = |key| watchers.get(key).is_some_and(|w| w.has_all(revision));
        if !stream.watchers.is_empty() && keys.all(has_all) {
            stream.push(WatchResponse {
                header: header(revision),
                watch_id: NO_WATCHER,
                ..WatchResponse::default()
            });
        }
    }

    /// Queues a progress response for every watcher that asked for them, has every event so far
    /// and got none since the last tick. Returns the streams that have something to send.
    pub fn progress_tick(&mut self) -> Vec<StreamId> {
        let mut wake = BTreeSet::new();
        for watcher in self.watchers.values_mut() {
            if !watcher.progress_notify {
                continue;
            }
            let notify = watcher.quiet && watcher.has_all(self.revision);
            watcher.quiet = true;
            if let Some(stream) = self.streams.get_mut(&watcher.stream)
                && notify
            {
                stream.push(WatchResponse {
                    header: header(self.revision),
                    watch_id: watcher.id,
                    ..WatchResponse::default()
                });
                wake.insert(watcher.stream);
            }
        }
        wake.into_iter().collect()
    }

    /// Takes the events of an applied batch, which go on where the last batch ended, and the
    /// revision after it. Returns the streams that have something to send.
    pub fn publish(&mut self, events: &[RevisionEvents], revision: i64) -> Vec<StreamId> {
        // One response for each watcher, whatever the batch holds for it.
        let mut matched: FxHashMap<InterestKey, Vec<(i64, &Event)>> = FxHashMap::default();
        for of in events {
            for event in &of.events {
                self.index.find(&event.key, |interest| {
                    let found = matched.entry(interest).or_default();
                    found.push((of.revision, event));
                });
            }
        }
        let first = events.first().map_or(revision, |events| events.revision);
        self.revision = self.revision.max(revision);
        let mut wake = Vec::new();
        for (interest, found) in matched {
            self.publish_to(interest, &found, first, &mut wake);
        }
        wake.sort_unstable();
        wake.dedup();
        wake
    }

    /// The store was replaced by a later state of the same history, at `revision`: watchers that
    /// were told all until now read from history what they have missed, or learn that it is
    /// compacted.
    pub fn replaced(&mut self, revision: i64) {
        let told = self.revision;
        if revision <= told {
            return;
        }
        self.revision = revision;
        // Who waits for a later revision has missed nothing.
        let missed = |watcher: &Watcher| watcher.synced && watcher.next <= revision;
        let behind = self.watchers.iter().filter(|(_, watcher)| missed(watcher));
        let behind: Vec<WatcherKey> = behind.map(|(key, _)| *key).collect();
        for key in behind {
            self.fall_behind(key, told + 1);
        }
    }

    /// Sends the watchers of an interest what a batch that began at revision `first` holds for
    /// them.
    fn publish_to(
        &mut self,
        interest: InterestKey,
        found: &[(i64, &Event)],
        first: i64,
        wake: &mut Vec<StreamId>,
    ) {
        let Some(group) = self.index.group(interest) else {
            return;
        };
        let interest = Arc::clone(&group.interest);
        let watchers: Vec<WatcherKey> = group.watchers.iter().copied().collect();
        let since = |next: i64| {
            let wanted = found.iter().filter(|(at, event)| {
                // A watcher of the future is synced before its time has come.
                *at >= next && interest.wants_kind(event)
            });
            let wanted = wanted.map(|(_, event)| *event).collect();
            Batch::new(Arc::clone(&interest), wanted)
        };
        let mut whole = since(first);
        for key in watchers {
            let Some(watcher) = self.watchers.get(&key) else {
                continue;
            };
            let mut own;
            let batch = match watcher.next <= first {
                true => &mut whole,
                false => {
                    own = since(watcher.next);
                    &mut own
                }
            };
            if batch.events.is_empty() {
                continue;
            }
            let stream = watcher.stream;
            let limit = self.stream_bytes;
            if self
                .streams
                .get(&stream)
                .is_none_or(|one| one.is_full(limit))
            {
                self.fall_behind(key, first);
            } else {
                self.deliver(key, batch, self.revision);
                wake.push(stream);
            }
        }
    }

    /// Whether any watcher could read history now.
    pub fn is_behind(&self) -> bool {
        self.readable().is_some()
    }

    /// Reads one piece of history for the watchers that are furthest behind and whose streams
    /// have room. Returns the streams that have something to send.
    ///
    /// # Errors
    /// The store's.
    pub fn catch_up(
        &mut self,
        history: &dyn History,
        max_bytes: usize,
    ) -> Result<Vec<StreamId>, mvcc::Error> {
        let mut wake = BTreeSet::new();
        let Some((from, _)) = self.readable() else {
            return Ok(Vec::new());
        };
        let compacted = history.compact_revision();
        if from < compacted {
            self.cancel_compacted(compacted, &mut wake);
            return Ok(wake.into_iter().collect());
        }
        if from > history.revision() {
            // The view is older than what this watcher knows of; the next one will do.
            return Ok(Vec::new());
        }
        let events = history.read(from, max_bytes)?;
        let until = match events.last() {
            Some(last) if last.revision < history.revision() => last.revision,
            // No row behind the last one, or none at all: history is read to its end.
            _ => history.revision(),
        };
        let readers: Vec<(i64, WatcherKey)> = self
            .unsynced
            .range(..(until + 1, 0))
            .copied()
            .filter(|at| self.has_room(at.1))
            .collect();
        let mut batches: FxHashMap<(i64, Arc<Interest>), Batch<'_>> = FxHashMap::default();
        for (next, key) in readers {
            let Some(watcher) = self.watchers.get(&key) else {
                continue;
            };
            let interest = &watcher.interest;
            let batch = match batches.entry((next, Arc::clone(interest))) {
                Entry::Occupied(batch) => batch.into_mut(),
                Entry::Vacant(place) => {
                    let since = events.iter().filter(|of| of.revision >= next);
                    let wanted = since.flat_map(|of| &of.events).filter(|event| {
                        interest.keys.contain(&event.key) && interest.wants_kind(event)
                    });
                    place.insert(Batch::new(Arc::clone(interest), wanted.collect()))
                }
            };
            if !batch.events.is_empty() {
                wake.insert(watcher.stream);
                self.deliver(key, batch, self.revision.max(until));
            }
            self.caught_up(key, until + 1);
        }
        Ok(wake.into_iter().collect())
    }

    /// Takes waiting responses, about `max_bytes` of them and at least one if there is one.
    /// `None` when the stream is closed or cut off.
    pub fn take(&mut self, stream: StreamId, max_bytes: usize) -> Option<Vec<WatchResponse>> {
        let stream = self.streams.get_mut(&stream)?;
        if stream.ended {
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(response) = stream.queue.pop_front() {
            let size = event_bytes(&response);
            stream.bytes -= size;
            bytes += size;
            self.events += response.events.count() as u64;
            taken.push(response);
            if bytes >= max_bytes {
                break;
            }
        }
        Some(taken)
    }

    /// What dashboards show.
    pub fn gauges(&self) -> Gauges {
        let queued = self.streams.values().flat_map(|stream| &stream.queue);
        Gauges {
            streams: self.streams.len(),
            watchers: self.watchers.len(),
            slow_watchers: self.unsynced.len(),
            events: self.events,
            pending_events: queued.map(|response| response.events.count()).sum(),
        }
    }

    fn has_room(&self, key: WatcherKey) -> bool {
        let stream = self.watchers.get(&key).map(|watcher| watcher.stream);
        let stream = stream.and_then(|stream| self.streams.get(&stream));
        stream.is_some_and(|stream| !stream.is_full(self.stream_bytes))
    }

    /// The watcher furthest behind that has room.
    fn readable(&self) -> Option<(i64, WatcherKey)> {
        let mut unsynced = self.unsynced.iter().copied();
        unsynced.find(|(_, key)| self.has_room(*key))
    }

    fn deliver(&mut self, key: WatcherKey, batch: &mut Batch<'_>, revision: i64) {
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return;
        };
        watcher.quiet = false;
        let Some(stream) = self.streams.get_mut(&watcher.stream) else {
            return;
        };
        let response = WatchResponse {
            header: header(revision),
            watch_id: watcher.id,
            events: batch.encoded(),
            ..WatchResponse::default()
        };
        if watcher.fragment && batch.events.len() > 1 {
            for part in fragments(response, batch, self.fragment_bytes) {
                stream.push(part);
            }
        } else {
            stream.push(response);
        }
    }

    /// Turns a watcher to history from a revision on.
    fn fall_behind(&mut self, key: WatcherKey, from: i64) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.synced = false;
            watcher.next = watcher.next.max(from);
            self.index.remove(key, &watcher.interest);
            self.unsynced.insert((watcher.next, key));
        }
    }

    /// Notes that an unsynced watcher has everything before `next`.
    fn caught_up(&mut self, key: WatcherKey, next: i64) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            self.unsynced.remove(&(watcher.next, key));
            watcher.next = watcher.next.max(next);
            if watcher.next > self.revision {
                watcher.synced = true;
                self.index.insert(key, &watcher.interest);
            } else {
                self.unsynced.insert((watcher.next, key));
            }
        }
    }

    fn cancel_compacted(&mut self, compacted: i64, wake: &mut BTreeSet<StreamId>) {
        let gone: Vec<(i64, WatcherKey)> = self.unsynced.range(..(compacted, 0)).copied().collect();
        for (_, key) in gone {
            if let Some(watcher) = self.watchers.get(&key)
                && let Some(stream) = self.streams.get_mut(&watcher.stream)
            {
                stream.watchers.remove(&watcher.id);
                stream.push(WatchResponse {
                    // As in etcd no revision: nothing is said of what was sent before.
                    header: header(0),
                    watch_id: watcher.id,
                    canceled: true,
                    compact_revision: compacted,
                    ..WatchResponse::default()
                });
                wake.insert(watcher.stream);
            }
            self.forget(key);
        }
    }

    /// Drops a watcher; its stream has no place for it any more.
    fn forget(&mut self, key: WatcherKey) {
        if let Some(watcher) = self.watchers.remove(&key) {
            match watcher.synced {
                true => self.index.remove(key, &watcher.interest),
                false => {
                    self.unsynced.remove(&(watcher.next, key));
                }
            }
        }
    }
}

impl Watcher {
    /// Whether it was sent every event up to the revision, and began before it.
    fn has_all(&self, revision: i64) -> bool {
        self.synced && self.next <= revision + 1
    }
}

/// What a request watches, or why it is refused.
fn refusal(stream: &Stream, r: &WatchCreateRequest) -> Result<Keys, &'static str> {
    if r.start_revision < 0 {
        return Err(COMPACTED);
    }
    let keys = Keys::of(r).ok_or(EMPTY_RANGE)?;
    if r.watch_id != 0 && stream.watchers.contains_key(&r.watch_id) {
        return Err(DUPLICATE_ID);
    }
    Ok(keys)
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

/// What the events of a response count for. Watchers may share the bytes; each counts them.
fn event_bytes(response: &WatchResponse) -> usize {
    match response.events.is_empty() {
        true => 0,
        false => response.events.byte_len() + size_of::<WatchResponse>(),
    }
}

/// Cuts a response so that each part but single events stays below `max_bytes`; all but the last
/// part say that more follows.
fn fragments(response: WatchResponse, batch: &Batch<'_>, max_bytes: usize) -> Vec<WatchResponse> {
    if response.encoded_len() < max_bytes {
        return vec![response];
    }
    let head = WatchResponse {
        events: Events::default(),
        fragment: true,
        ..response
    };
    let head_bytes = head.encoded_len();
    let mut parts = Vec::new();
    let mut rest = &batch.events[..];
    while !rest.is_empty() {
        let mut bytes = head_bytes;
        let fits = rest.iter().take_while(|event| {
            bytes += batch.interest.event_bytes(event);
            bytes < max_bytes
        });
        let (part, behind) = rest.split_at(fits.count().max(1));
        rest = behind;
        parts.push(WatchResponse {
            events: batch.interest.encode(part),
            fragment: !rest.is_empty(),
            ..head.clone()
        });
    }
    parts
}
