//! Watchers: each client's stream holds some, and makes them anew wherever it goes on.

use bytes::Bytes;
use history::{Event, KeyRange, WatchRecord, WatchReport, WatchResponse, wire};
use prost::Message as _;
use proto::etcdserverpb::{self, WatchCreateRequest};
use rand::{Rng, rngs::StdRng};

use crate::{convert, node::Node, world::Time};

/// Watchers of one stream.
const WATCHERS: usize = 3;
/// Bytes that a client takes at once.
const TAKE_BYTES: usize = 2000;
/// Bytes of history that are read at once: few, so that a watcher is caught up in pieces.
pub(crate) const CATCH_UP_BYTES: usize = 400;

/// One watcher, whatever stream it is in.
struct Watcher {
    record: WatchRecord,
    progress_notify: bool,
    fragment: bool,
    /// What it asks for next, 0 for what comes from now on.
    next: i64,
    /// The beginning of a response of which the rest is to come.
    part: Vec<Event>,
}

/// A client's stream.
pub(crate) struct Session {
    /// The member and its life, and the stream there.
    at: Option<(u64, u64, u64)>,
    watchers: Vec<Watcher>,
    /// When each of this stream was made.
    pub opened: usize,
}

impl Session {
    pub fn new(rng: &mut StdRng) -> Self {
        let watcher = |n| Watcher {
            record: WatchRecord {
                keys: match (n, rng.random_range(0..3)) {
                    (0, _) => KeyRange::all(),
                    (_, 0) => KeyRange::one(format!("k{:02}", rng.random_range(0..12))),
                    _ => KeyRange {
                        key: Bytes::from_static(b"k03"),
                        end: Bytes::from_static(b"k08"),
                    },
                },
                prev_kv: rng.random_bool(0.5),
                ..WatchRecord::default()
            },
            progress_notify: rng.random_bool(0.5),
            fragment: rng.random_bool(0.3),
            next: rng.random_range(0..2),
            part: Vec::new(),
        };
        Self {
            at: None,
            watchers: (0..WATCHERS).map(watcher).collect(),
            opened: 0,
        }
    }

    /// Where its stream is.
    pub fn member(&self) -> Option<(u64, u64)> {
        self.at.map(|(id, life, _)| (id, life))
    }

    /// Opens a stream at a member and makes all watchers there, each where it was.
    pub fn open(&mut self, node: &mut Node) {
        let stream = node.hub.open_stream();
        self.at = Some((node.id, node.life, stream));
        self.opened += 1;
        for (watcher, id) in self.watchers.iter_mut().zip(1..) {
            watcher.part.clear();
            watcher.create(node, stream, id);
        }
    }

    /// The stream is gone, or the client closes it.
    pub fn close(&mut self, node: Option<&mut Node>, now: Time) {
        let Some((_, _, stream)) = self.at.take() else {
            return;
        };
        if let Some(node) = node {
            node.hub.close_stream(stream);
        }
        for watcher in &mut self.watchers {
            watcher.report(now, 0, WatchReport::Ended);
        }
    }

    /// Takes what waits at the member.
    pub fn take(&mut self, node: &mut Node, now: Time) {
        let Some((_, _, stream)) = self.at else {
            return;
        };
        catch_up(node);
        let Some(responses) = node.hub.take(stream, TAKE_BYTES) else {
            self.close(Some(node), now);
            return;
        };
        for response in responses {
            // What stands on the wire, as a client decodes it.
            let bytes = response.encode_to_vec();
            let response = etcdserverpb::WatchResponse::decode(&bytes[..]).unwrap();
            self.told(node, stream, response, now);
        }
    }

    fn told(
        &mut self,
        node: &mut Node,
        stream: u64,
        response: etcdserverpb::WatchResponse,
        now: Time,
    ) {
        let revision = convert::revision(response.header.as_ref());
        if response.watch_id < 0 {
            assert!(!response.created, "{response:?}");
            for watcher in &mut self.watchers {
                watcher.progress(now, revision);
            }
            return;
        }
        let id = response.watch_id;
        let watcher = &mut self.watchers[id as usize - 1];
        if response.created {
            let from = watcher.next;
            watcher.next = if from == 0 { revision + 1 } else { from };
            watcher.report(now, revision, WatchReport::Created { from });
        } else if response.compact_revision > 0 {
            let compact_revision = response.compact_revision;
            watcher.report(now, revision, WatchReport::Compacted { compact_revision });
            watcher.next = compact_revision;
            watcher.create(node, stream, id);
        } else if response.canceled {
            panic!("a watcher was ended: {response:?}");
        } else if response.events.is_empty() {
            watcher.progress(now, revision);
        } else {
            let events = response.events.into_iter().map(wire::of_watched);
            watcher.part.extend(events);
            if !response.fragment {
                let events = std::mem::take(&mut watcher.part);
                watcher.next = events.last().map_or(0, |last| last.kv.mod_revision) + 1;
                watcher.report(now, revision, WatchReport::Events(events));
            }
        }
    }

    /// Asks for progress of the whole stream.
    pub fn ask_progress(&self, node: &mut Node) {
        if let Some((_, _, stream)) = self.at {
            node.hub.request_progress(stream);
        }
    }

    /// What its watchers saw; they waited for a revision.
    pub fn records(self, reached: i64) -> impl Iterator<Item = WatchRecord> {
        self.watchers.into_iter().map(move |watcher| WatchRecord {
            reached,
            ..watcher.record
        })
    }
}

impl Watcher {
    fn create(&self, node: &mut Node, stream: u64, id: i64) {
        let request = WatchCreateRequest {
            key: self.record.keys.key.clone(),
            range_end: self.record.keys.end.clone(),
            start_revision: self.next,
            progress_notify: self.progress_notify,
            prev_kv: self.record.prev_kv,
            watch_id: id,
            fragment: self.fragment,
            ..WatchCreateRequest::default()
        };
        node.hub.create(stream, &request);
    }

    fn progress(&mut self, now: Time, revision: i64) {
        self.next = self.next.max(revision + 1);
        self.report(now, revision, WatchReport::Progress);
    }

    fn report(&mut self, at: Time, revision: i64, report: WatchReport) {
        self.record.responses.push(WatchResponse {
            at,
            revision,
            report,
        });
    }
}

/// Reads a piece of history for watchers that are behind, as the server's task does.
pub(crate) fn catch_up(node: &mut Node) {
    if node.hub.is_behind() {
        let view = node.machine.published().view.clone();
        node.hub.catch_up(&view, CATCH_UP_BYTES).unwrap();
    }
}
