//! Watchers that go on wherever they can, from where they were.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use history::{KeyRange, WatchRecord, WatchReport, WatchResponse};
use proto::etcdserverpb::{
    self, WatchCreateRequest, WatchProgressRequest, WatchRequest, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use rand::{Rng, rngs::StdRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{CALL, Shared, rest};

/// How often a watcher asks how far it is.
const PROGRESS: Duration = Duration::from_millis(400);
/// A stream that says nothing for so long, although asked, is given up.
const SILENCE: Duration = Duration::from_secs(3);
/// One in so many responses makes a watcher leave and go on elsewhere.
const LEAVES: u32 = 150;

/// A watcher of all keys, who tells the others how far the truth is known.
pub(super) async fn witness(shared: Arc<Shared>, number: usize, from: i64) {
    let watcher = Watcher {
        rng: shared.rng(1_000 + number as u64),
        end: &shared.witnesses_end,
        seen: Some(&shared.seen[number]),
        record: WatchRecord {
            keys: KeyRange::all(),
            prev_kv: true,
            ..WatchRecord::default()
        },
        next: from,
        shared: &shared,
    };
    let record = watcher.run().await;
    shared.watches.lock().push(record);
}

/// A watcher of the keys of one letter.
pub(super) async fn watcher(shared: Arc<Shared>, number: usize, from: i64) {
    let letter = b'a' + (number % 3) as u8;
    let watcher = Watcher {
        rng: shared.rng(2_000 + number as u64),
        end: &shared.watchers_end,
        seen: None,
        record: WatchRecord {
            keys: KeyRange {
                key: vec![letter].into(),
                end: vec![letter + 1].into(),
            },
            prev_kv: number.is_multiple_of(2),
            ..WatchRecord::default()
        },
        next: from,
        shared: &shared,
    };
    let record = watcher.run().await;
    shared.watches.lock().push(record);
}

struct Watcher<'a> {
    shared: &'a Shared,
    rng: StdRng,
    /// Where it is told at which revision to end.
    end: &'a AtomicI64,
    seen: Option<&'a AtomicI64>,
    record: WatchRecord,
    /// What it does not know of yet begins here.
    next: i64,
}

impl Watcher<'_> {
    async fn run(mut self) -> WatchRecord {
        loop {
            let end = self.end.load(Ordering::Relaxed);
            if end > 0 && self.next > end {
                self.record.reached = end;
                return self.record;
            }
            self.session().await;
            rest(&mut self.rng, self.shared.options.rest).await;
        }
    }

    fn note(&mut self, revision: i64, report: WatchReport) {
        self.record.responses.push(WatchResponse {
            at: self.shared.now(),
            revision,
            report,
        });
    }

    /// One stream, until it ends or is given up.
    async fn session(&mut self) {
        let target = self.shared.targets.pick(&mut self.rng);
        let (requests, receiver) = mpsc::channel(4);
        let create = WatchCreateRequest {
            key: self.record.keys.key.clone(),
            range_end: self.record.keys.end.clone(),
            start_revision: self.next,
            progress_notify: true,
            prev_kv: self.record.prev_kv,
            ..WatchCreateRequest::default()
        };
        let create = RequestUnion::CreateRequest(create);
        if requests.send(request(create)).await.is_err() {
            return;
        }
        let mut client = WatchClient::new(target.channel);
        let opened = client.watch(ReceiverStream::new(receiver));
        let Ok(Ok(answer)) = tokio::time::timeout(CALL, opened).await else {
            return;
        };
        let began = self.record.responses.len();
        self.follow(answer.into_inner(), requests).await;
        let closed = matches!(
            self.record.responses.last().map(|last| &last.report),
            Some(WatchReport::Compacted { .. } | WatchReport::Ended)
        );
        if self.record.responses.len() > began && !closed {
            let revision = self.record.responses.last().map_or(0, |last| last.revision);
            self.note(revision, WatchReport::Ended);
        }
    }

    async fn follow(
        &mut self,
        mut answers: Streaming<etcdserverpb::WatchResponse>,
        requests: mpsc::Sender<WatchRequest>,
    ) {
        let mut silent = Duration::ZERO;
        loop {
            let answer = match tokio::time::timeout(PROGRESS, answers.message()).await {
                Ok(Ok(Some(answer))) => answer,
                Ok(_) => return,
                Err(_) => {
                    silent += PROGRESS;
                    let ask = request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                    if silent > SILENCE || requests.try_send(ask).is_err() {
                        return;
                    }
                    continue;
                }
            };
            silent = Duration::ZERO;
            if !self.hear(answer) {
                return;
            }
            let end = self.end.load(Ordering::Relaxed);
            if (end > 0 && self.next > end) || self.rng.random_ratio(1, LEAVES) {
                return;
            }
            // A busy watcher asks as well, since that is when an answer may be wrong.
            if self.rng.random_ratio(1, 20) {
                let ask = request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                let _ = requests.try_send(ask);
            }
        }
    }

    /// Notes a response; false when it was the last one.
    fn hear(&mut self, answer: etcdserverpb::WatchResponse) -> bool {
        let revision = answer.header.unwrap_or_default().revision;
        if answer.canceled {
            let compacted = answer.compact_revision;
            if compacted > 0 {
                self.next = self.next.max(compacted);
                let compact_revision = compacted;
                self.note(revision, WatchReport::Compacted { compact_revision });
            } else {
                self.note(revision, WatchReport::Ended);
            }
            return false;
        }
        if answer.created {
            let from = self.next;
            self.note(revision, WatchReport::Created { from });
            return true;
        }
        if answer.events.is_empty() {
            self.next = self.next.max(revision + 1);
            self.note(revision, WatchReport::Progress);
        } else {
            let events: Vec<history::Event> = answer
                .events
                .into_iter()
                .map(history::wire::of_watched)
                .collect();
            let last = events.last().map_or(0, |event| event.kv.mod_revision);
            self.next = self.next.max(last + 1);
            self.note(revision, WatchReport::Events(events));
        }
        if let Some(seen) = self.seen {
            seen.fetch_max(self.next - 1, Ordering::Relaxed);
        }
        true
    }
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(union),
    }
}
