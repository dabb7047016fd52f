//! Clients and watchers that write down all that they ask and are told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use history::{
    Compare, Comparison, Event, EventKind, History, KeyRange, KeyValue, Operation, Outcome,
    Refusal, Request, Response, ResponseKind, Target, Txn, TxnOp, TxnResult, WatchRecord,
    WatchReport, WatchResponse,
};
use proto::{
    etcdserverpb::{
        self as pb, compare, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op, response_op, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Clients; each stays at its member until that one fails it.
const CLIENTS: u64 = 9;
/// Keys that all of them use.
const KEYS: u64 = 16;
/// Bytes of a value, up to.
const VALUE: usize = 3000;
/// How long a call may take; what is not answered by then may have been done or not.
const CALL: Duration = Duration::from_secs(3);
/// Rest between two requests of a client.
const REST: Duration = Duration::from_millis(8);
/// Rest of a client whose member failed it.
const FAILED: Duration = Duration::from_millis(40);
/// Rest between two compactions, and how many revisions they leave.
const COMPACT: Duration = Duration::from_millis(400);
const KEPT: i64 = 150;
/// A lease that ends by itself.
const SHORT_LEASE: Duration = Duration::from_secs(3);
const LONG_LEASE: Duration = Duration::from_secs(100_000);
/// What a watcher may be silent for before it asks anew elsewhere.
const SILENCE: Duration = Duration::from_secs(3);
/// All keys of a range together may be more than a client takes by default.
const ANSWER_BYTES: usize = 64 << 20;

/// What goes on beside the faults.
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    watchers: Vec<tokio::task::JoinHandle<WatchRecord>>,
}

struct Shared {
    urls: Vec<String>,
    began: Instant,
    stop: AtomicBool,
    /// Told to watchers: end when this revision has come.
    reach: AtomicI64,
    operations: Mutex<Vec<Operation>>,
    /// The highest revision in an answer.
    revision: AtomicI64,
    /// Up to where the watchers know everything.
    watched: Mutex<HashMap<u64, i64>>,
    acknowledged: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn record(&self, operation: Operation) {
        if let Outcome::Done(response) = &operation.outcome {
            self.revision
                .fetch_max(response.revision, Ordering::Relaxed);
            let write = !matches!(operation.request, Request::Range { .. });
            self.acknowledged
                .fetch_add(u64::from(write), Ordering::Relaxed);
        }
        self.operations.lock().unwrap().push(operation);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    endpoint
        .connect_timeout(Duration::from_secs(1))
        .timeout(CALL)
        .connect_lazy()
}

impl Load {
    /// Puts members under load.
    pub fn start(urls: Vec<String>, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            urls,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            reach: AtomicI64::new(i64::MAX),
            operations: Mutex::default(),
            revision: AtomicI64::new(1),
            watched: Mutex::default(),
            acknowledged: AtomicU64::new(0),
        });
        let mut tasks: Vec<_> = (0..CLIENTS)
            .map(|id| tokio::spawn(Client::new(&shared, id, seed).run()))
            .collect();
        tasks.push(tokio::spawn(
            Client::new(&shared, CLIENTS, seed).keep_house(),
        ));
        // Two see everything, so that each is held against the other; two see a part.
        let ranges = [
            KeyRange::all(),
            KeyRange::all(),
            KeyRange::one("k/1"),
            KeyRange {
                key: "k/1".into(),
                end: "k/5".into(),
            },
        ];
        let watchers = ranges.into_iter().zip(0..).map(|(keys, id)| {
            let watcher = Watcher::new(Arc::clone(&shared), id, keys);
            tokio::spawn(watcher.run())
        });
        let watchers = watchers.collect();
        Self {
            shared,
            tasks,
            watchers,
        }
    }

    /// Requests that were answered and changed something.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends it once every watcher knows all that happened. All members must serve.
    pub async fn end(self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        // One client more, so that its key is the last event of every watcher of all keys.
        let mut last = Client::new(&self.shared, CLIENTS + 1, 0);
        let barrier = e2e::client::eventually("barrier", async || {
            last.put("k/1".into(), 0).await.ok_or("not answered")
        });
        let revision = barrier.await;
        self.shared.reach.store(revision, Ordering::Relaxed);
        let mut watches = Vec::new();
        for watcher in self.watchers {
            let limit = Duration::from_secs(60);
            let record = tokio::time::timeout(limit, watcher).await;
            let mut record = record
                .expect("a watcher is not told the last revision")
                .unwrap();
            record.reached = revision;
            watches.push(record);
        }
        let operations = std::mem::take(&mut *self.shared.operations.lock().unwrap());
        let log = history::log_of(&watches).unwrap_or_else(|violation| panic!("{violation}"));
        History {
            operations,
            watches,
            log,
            ..History::default()
        }
    }
}

/// One client.
struct Client {
    shared: Arc<Shared>,
    id: u64,
    rng: StdRng,
    at: usize,
    channels: Vec<Channel>,
    written: u64,
    leases: Vec<i64>,
    /// Where a transaction expects its key.
    seen: HashMap<Bytes, i64>,
}

impl Client {
    fn new(shared: &Arc<Shared>, id: u64, seed: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            id,
            rng: StdRng::seed_from_u64(seed ^ id << 32),
            at: id as usize,
            channels: shared.urls.iter().map(|url| channel(url)).collect(),
            written: 0,
            leases: Vec::new(),
            seen: HashMap::new(),
        }
    }

    async fn run(mut self) {
        while !self.shared.stopped() {
            let answered = self.step().await;
            tokio::time::sleep(if answered { REST } else { FAILED }).await;
        }
    }

    fn channel(&self) -> Channel {
        self.channels[self.at % self.channels.len()].clone()
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES)
    }

    fn key(&mut self) -> Bytes {
        format!("k/{}", self.rng.random_range(0..KEYS)).into()
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        let mut value = format!("{}-{} ", self.id, self.written).into_bytes();
        value.resize(value.len() + self.rng.random_range(0..VALUE), b'.');
        value.into()
    }

    /// One request; whether it was answered.
    async fn step(&mut self) -> bool {
        let key = self.key();
        match self.rng.random_range(0..100) {
            0..40 => self.put(key, 0).await.is_some(),
            40..47 => self.delete(key).await,
            47..62 => self.compare_and_put(key).await,
            62..76 => self.range(KeyRange::one(key), 0, false).await,
            76..80 => self.range(KeyRange::all(), 0, false).await,
            80..90 => self.range(KeyRange::one(key), 0, true).await,
            90..92 => self.range(KeyRange::all(), 0, true).await,
            92..96 => {
                let revision = self.shared.revision.load(Ordering::Relaxed);
                let back = self.rng.random_range(0..2 * KEPT);
                self.range(KeyRange::one(key), (revision - back).max(1), false)
                    .await
            }
            96..98 => self.lease(key).await,
            _ => self.revoke().await,
        }
    }

    /// Asks, and writes down what became of it.
    async fn ask<T>(
        &mut self,
        request: Request,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
        read: impl FnOnce(T) -> Response,
    ) -> Option<Response> {
        let member = (self.at % self.channels.len()) as u64;
        let start = self.shared.now();
        let answer = tokio::time::timeout(CALL, call).await;
        let end = self.shared.now();
        let outcome = match answer {
            Ok(Ok(answer)) => Outcome::Done(read(answer.into_inner())),
            Ok(Err(status)) => refusal(&status),
            Err(_) => Outcome::Unknown,
        };
        let done = match &outcome {
            Outcome::Done(response) => Some(response.clone()),
            Outcome::Refused(_) => None,
            Outcome::Unknown => {
                self.at += 1;
                None
            }
        };
        self.shared.record(Operation {
            client: self.id,
            member,
            request,
            start,
            end: (outcome != Outcome::Unknown).then_some(end),
            outcome,
        });
        done
    }

    async fn put(&mut self, key: Bytes, lease: i64) -> Option<i64> {
        let value = self.value();
        let prev_kv = self.rng.random_bool(0.3);
        let mut kv = self.kv();
        let call = pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            prev_kv,
            ..pb::PutRequest::default()
        };
        let request = Request::Put {
            key: key.clone(),
            value,
            lease,
            prev_kv,
        };
        let response = self.ask(request, async move { kv.put(call).await }, |answer| {
            response(
                answer.header,
                ResponseKind::Put {
                    prev: answer.prev_kv.map(key_value),
                },
            )
        });
        let revision = response.await?.revision;
        self.seen.insert(key, revision);
        Some(revision)
    }

    async fn delete(&mut self, key: Bytes) -> bool {
        let keys = KeyRange::one(key);
        let prev_kv = self.rng.random_bool(0.5);
        let mut kv = self.kv();
        let call = pb::DeleteRangeRequest {
            key: keys.key.clone(),
            prev_kv,
            ..pb::DeleteRangeRequest::default()
        };
        let request = Request::Delete { keys, prev_kv };
        let response = self.ask(
            request,
            async move { kv.delete_range(call).await },
            |answer| {
                response(
                    answer.header,
                    ResponseKind::Delete {
                        deleted: answer.deleted,
                        prevs: answer.prev_kvs.into_iter().map(key_value).collect(),
                    },
                )
            },
        );
        response.await.is_some()
    }

    async fn range(&mut self, keys: KeyRange, revision: i64, serializable: bool) -> bool {
        let mut kv = self.kv();
        let call = pb::RangeRequest {
            key: keys.key.clone(),
            range_end: keys.end.clone(),
            revision,
            serializable,
            ..pb::RangeRequest::default()
        };
        let one = keys.is_one().then(|| keys.key.clone());
        let request = Request::Range {
            keys,
            limit: 0,
            revision,
            serializable,
            count_only: false,
        };
        let response = self.ask(request, async move { kv.range(call).await }, range);
        let Some(response) = response.await else {
            return false;
        };
        if let (Some(key), ResponseKind::Range { kvs, .. }) = (one, response.kind) {
            let found = kvs.first().map_or(0, |kv| kv.mod_revision);
            self.seen.insert(key, found);
        }
        true
    }

    /// Writes a key if it is as last seen, and two keys at once; else reads it.
    async fn compare_and_put(&mut self, key: Bytes) -> bool {
        let seen = self.seen.get(&key).copied().unwrap_or_default();
        let other = self.key();
        let mut puts: Vec<(Bytes, Bytes)> = vec![(key.clone(), self.value())];
        if other != key {
            puts.push((other, self.value()));
        }
        let call = pb::TxnRequest {
            compare: vec![pb::Compare {
                result: compare::CompareResult::Equal as i32,
                target: compare::CompareTarget::Mod as i32,
                key: key.clone(),
                target_union: Some(compare::TargetUnion::ModRevision(seen)),
                ..pb::Compare::default()
            }],
            success: puts
                .iter()
                .map(|(key, value)| {
                    op(request_op::Request::RequestPut(pb::PutRequest {
                        key: key.clone(),
                        value: value.clone(),
                        ..pb::PutRequest::default()
                    }))
                })
                .collect(),
            failure: vec![op(request_op::Request::RequestRange(pb::RangeRequest {
                key: key.clone(),
                ..pb::RangeRequest::default()
            }))],
        };
        let request = Request::Txn(Txn {
            compares: vec![Compare {
                keys: KeyRange::one(key.clone()),
                comparison: Comparison::Equal,
                target: Target::ModRevision(seen),
            }],
            then: puts
                .into_iter()
                .map(|(key, value)| TxnOp::Put {
                    key,
                    value,
                    lease: 0,
                    prev_kv: false,
                })
                .collect(),
            otherwise: vec![TxnOp::Range {
                keys: KeyRange::one(key.clone()),
                limit: 0,
                revision: 0,
                count_only: false,
            }],
        });
        let mut kv = self.kv();
        let response = self.ask(request, async move { kv.txn(call).await }, txn);
        let Some(response) = response.await else {
            return false;
        };
        let revision = response.revision;
        if let ResponseKind::Txn(TxnResult { responses, .. }) = response.kind {
            let found = match responses.first() {
                Some(ResponseKind::Range { kvs, .. }) => {
                    kvs.first().map_or(0, |kv| kv.mod_revision)
                }
                _ => revision,
            };
            self.seen.insert(key, found);
        }
        true
    }

    /// Grants a lease and attaches a key to it.
    async fn lease(&mut self, key: Bytes) -> bool {
        let id = self.rng.random_range(1..i64::MAX);
        let ttl = match self.rng.random_bool(0.5) {
            true => SHORT_LEASE,
            false => LONG_LEASE,
        };
        let mut client = LeaseClient::new(self.channel());
        let call = pb::LeaseGrantRequest {
            id,
            ttl: ttl.as_secs() as i64,
        };
        let request = Request::LeaseGrant {
            id,
            ttl: ttl.as_nanos() as u64,
        };
        let granted = self.ask(
            request,
            async move { client.lease_grant(call).await },
            |answer| response(answer.header, ResponseKind::Nothing),
        );
        if granted.await.is_none() {
            return false;
        }
        self.leases.push(id);
        self.put(key, id).await.is_some()
    }

    async fn revoke(&mut self) -> bool {
        let Some(id) = self.leases.pop() else {
            return true;
        };
        let mut client = LeaseClient::new(self.channel());
        let call = pb::LeaseRevokeRequest { id };
        let request = Request::LeaseRevoke { id };
        let revoked = self.ask(
            request,
            async move { client.lease_revoke(call).await },
            |answer| response(answer.header, ResponseKind::Nothing),
        );
        revoked.await.is_some()
    }

    /// Compacts up to what all watchers know, and defragments.
    async fn keep_house(mut self) {
        while !self.shared.stopped() {
            tokio::time::sleep(COMPACT).await;
            let watched = self.shared.watched.lock().unwrap().values().min().copied();
            let revision = watched.unwrap_or_default() - KEPT;
            if revision > 1 {
                let mut kv = self.kv();
                let call = pb::CompactionRequest {
                    revision,
                    physical: self.rng.random_bool(0.5),
                };
                let request = Request::Compact { revision };
                let compacted = async move { kv.compact(call).await };
                self.ask(request, compacted, |answer| {
                    response(answer.header, ResponseKind::Nothing)
                })
                .await;
            }
            if self.rng.random_bool(0.6) {
                self.at += 1;
                let mut client = MaintenanceClient::new(self.channel());
                // What becomes of it shows in what is read later.
                let _ = client.defragment(pb::DefragmentRequest {}).await;
            }
        }
    }
}

fn op(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

fn response(header: Option<pb::ResponseHeader>, kind: ResponseKind) -> Response {
    Response {
        revision: header.unwrap().revision,
        kind,
    }
}

fn range(answer: pb::RangeResponse) -> Response {
    let (header, kind) = (
        answer.header,
        range_kind(answer.kvs, answer.more, answer.count),
    );
    response(header, kind)
}

fn range_kind(kvs: Vec<mvccpb::KeyValue>, more: bool, count: i64) -> ResponseKind {
    ResponseKind::Range {
        kvs: kvs.into_iter().map(key_value).collect(),
        more,
        count,
    }
}

fn txn(answer: pb::TxnResponse) -> Response {
    let responses = answer.responses.into_iter().map(|op| match op.response {
        Some(response_op::Response::ResponseRange(r)) => range_kind(r.kvs, r.more, r.count),
        Some(response_op::Response::ResponsePut(r)) => ResponseKind::Put {
            prev: r.prev_kv.map(key_value),
        },
        other => panic!("nobody asked for {other:?}"),
    });
    let result = TxnResult {
        succeeded: answer.succeeded,
        responses: responses.collect(),
    };
    response(answer.header, ResponseKind::Txn(result))
}

fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// What an error says of the request. Of most it is not known whether it was done.
fn refusal(status: &Status) -> Outcome {
    match (status.code(), status.message()) {
        (Code::OutOfRange, text) if text.contains("compacted") => {
            Outcome::Refused(Refusal::Compacted)
        }
        (Code::OutOfRange, text) if text.contains("future revision") => {
            Outcome::Refused(Refusal::FutureRevision)
        }
        (Code::NotFound, text) if text.contains("lease not found") => {
            Outcome::Refused(Refusal::Other)
        }
        _ => Outcome::Unknown,
    }
}

/// One watcher, which goes on elsewhere when its stream ends.
struct Watcher {
    shared: Arc<Shared>,
    id: u64,
    record: WatchRecord,
    /// The revision that comes next.
    next: i64,
}

impl Watcher {
    fn new(shared: Arc<Shared>, id: u64, keys: KeyRange) -> Self {
        Self {
            shared,
            id,
            record: WatchRecord {
                keys,
                prev_kv: true,
                ..WatchRecord::default()
            },
            next: 1,
        }
    }

    fn is_done(&self) -> bool {
        self.next > self.shared.reach.load(Ordering::Relaxed)
    }

    async fn run(mut self) -> WatchRecord {
        let mut at = self.id as usize;
        while !self.is_done() {
            let url = &self.shared.urls[at % self.shared.urls.len()];
            let channel = Endpoint::from_shared(url.clone()).unwrap();
            let channel = channel
                .connect_timeout(Duration::from_secs(1))
                .connect_lazy();
            self.watch(channel).await;
            at += 1;
            tokio::time::sleep(FAILED).await;
        }
        self.record
    }

    /// One life: until the stream ends, is silent, or all is known.
    async fn watch(&mut self, channel: Channel) {
        let mut client = WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        let (requests, receiver) = mpsc::channel(4);
        let request = |union| pb::WatchRequest {
            request_union: Some(union),
        };
        let create = pb::WatchCreateRequest {
            key: self.record.keys.key.clone(),
            range_end: self.record.keys.end.clone(),
            start_revision: self.next,
            prev_kv: true,
            ..pb::WatchCreateRequest::default()
        };
        let created = requests.send(request(RequestUnion::CreateRequest(create)));
        created.await.unwrap();
        let stream = client.watch(ReceiverStream::new(receiver));
        let Ok(Ok(stream)) = tokio::time::timeout(SILENCE, stream).await else {
            return;
        };
        let mut stream = stream.into_inner();
        let mut asked = false;
        while !self.is_done() {
            match tokio::time::timeout(SILENCE / 3, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    asked = false;
                    if !self.take(response) {
                        return;
                    }
                }
                Ok(_) => return self.push(0, WatchReport::Ended),
                // A quiet stream says how far it knows, or is dead.
                Err(_) if !asked => {
                    asked = true;
                    let progress = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                    if requests.send(request(progress)).await.is_err() {
                        return self.push(0, WatchReport::Ended);
                    }
                }
                Err(_) => return self.push(0, WatchReport::Ended),
            }
        }
    }

    fn push(&mut self, revision: i64, report: WatchReport) {
        self.record.responses.push(WatchResponse {
            at: self.shared.now(),
            revision,
            report,
        });
    }

    /// Takes a response; whether the watcher goes on.
    fn take(&mut self, response: pb::WatchResponse) -> bool {
        let revision = response.header.unwrap().revision;
        if response.created {
            self.push(revision, WatchReport::Created { from: self.next });
            return true;
        }
        if response.canceled {
            let compact_revision = response.compact_revision;
            let compacted = compact_revision > 0;
            self.next = self.next.max(compact_revision);
            let report = match compacted {
                true => WatchReport::Compacted { compact_revision },
                false => WatchReport::Ended,
            };
            self.push(revision, report);
            return false;
        }
        assert!(!response.fragment, "nobody asked for fragments");
        if response.events.is_empty() {
            self.push(revision, WatchReport::Progress);
            self.next = self.next.max(revision + 1);
        } else {
            let events: Vec<Event> = response.events.into_iter().map(event).collect();
            let last = events.last().map_or(0, |event| event.kv.mod_revision);
            self.push(revision, WatchReport::Events(events));
            self.next = last + 1;
        }
        let mut watched = self.shared.watched.lock().unwrap();
        // Those that see a part may fall behind a compaction and have to say so.
        if self.record.keys == KeyRange::all() {
            watched.insert(self.id, self.next - 1);
        }
        true
    }
}

fn event(event: mvccpb::Event) -> Event {
    Event {
        kind: match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        },
        kv: key_value(event.kv.unwrap()),
        prev: event.prev_kv.map(key_value),
    }
}
