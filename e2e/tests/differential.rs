//! The same random requests to Cairn and to real etcd, one by one: every field of every answer,
//! every error with its code, every watch event and every hash must be the same.
//!
//! `CAIRN_REQUESTS` sets how many requests each server gets, `CAIRN_SEED` which; a failure prints
//! both.

#![allow(clippy::unwrap_used)]

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use e2e::{Kind, Server, setting};
use proto::{
    etcdserverpb::{
        AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest,
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
        LeaseTimeToLiveRequest, MemberListRequest, PutRequest, RangeRequest, RangeResponse,
        RequestOp, TxnRequest, TxnResponse, WatchCancelRequest, WatchCreateRequest,
        WatchProgressRequest, WatchRequest, WatchResponse, cluster_client::ClusterClient,
        compare::TargetUnion, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request, response_op::Response,
        watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// Requests to each server in the gate.
const REQUESTS: usize = 50_000;
/// Requests between two looks at the watchers and hashes.
const ROUND: usize = 500;
/// How long watchers may take to bring what has happened.
const SETTLE: Duration = Duration::from_secs(20);
/// The key whose event tells that a watcher has everything before it.
const BARRIER: &str = "\u{7f}barrier";

/// One server's clients.
struct Side {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    watch: WatchClient<Channel>,
    _server: Server,
    _folder: tempfile::TempDir,
}

impl Side {
    async fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Durability is for other tests; here the disk would only cost time.
        let server = Server::start(kind, folder.path(), &["--unsafe-no-fsync=true"]);
        let channel = Channel::from_shared(server.url().to_owned()).unwrap();
        let channel = channel.connect().await.unwrap();
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(64 << 20),
            _server: server,
            _folder: folder,
        }
    }
}

/// An answer or an error, as they are compared.
type Answer<T> = Result<T, (tonic::Code, String)>;

fn answer<T>(result: Result<tonic::Response<T>, Status>) -> Answer<T> {
    match result {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

/// Compares two answers; `what` says which request they are to.
fn same<T: PartialEq + Debug>(what: &dyn Debug, cairn: &Answer<T>, etcd: &Answer<T>) {
    assert!(
        cairn == etcd,
        "to {what:?}\n cairn: {cairn:?}\n etcd:  {etcd:?}"
    );
}

/// A watcher on both servers.
struct Watcher {
    request: WatchCreateRequest,
    seen: [Seen; 2],
}

/// What one server told a watcher.
struct Seen {
    requests: mpsc::Sender<WatchRequest>,
    responses: mpsc::UnboundedReceiver<WatchResponse>,
    task: JoinHandle<()>,
    events: Vec<Event>,
    ended: Option<(i64, String)>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    async fn open(client: &mut WatchClient<Channel>, request: &WatchCreateRequest) -> Self {
        let (requests, outbound) = mpsc::channel(8);
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(request.clone())),
        };
        requests.send(create).await.unwrap();
        let stream = client.watch(ReceiverStream::new(outbound)).await.unwrap();
        let mut stream = stream.into_inner();
        let (sender, responses) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                if sender.send(response).is_err() {
                    break;
                }
            }
        });
        let mut seen = Self {
            requests,
            responses,
            task,
            events: Vec::new(),
            ended: None,
        };
        // Both must be watching before anything else happens.
        let created = seen.next().await;
        assert!(created.created, "{created:?}");
        seen.take(created);
        seen
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(SETTLE, self.responses.recv()).await;
        next.expect("no watch response in time").unwrap()
    }

    fn take(&mut self, response: WatchResponse) {
        let revision = response.header.as_ref().unwrap().revision;
        for event in &response.events {
            assert!(event.kv.as_ref().unwrap().mod_revision <= revision);
        }
        self.events.extend(response.events);
        if response.canceled {
            self.ended = Some((response.compact_revision, response.cancel_reason));
        }
    }

    /// Reads until the server says that there is nothing more up to `revision`.
    async fn settle(&mut self, revision: i64) {
        while self.ended.is_none() {
            let ask = WatchRequest {
                request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
            };
            if self.requests.send(ask).await.is_err() {
                return;
            }
            // etcd answers only when its watcher is synced, and is silent otherwise.
            let wait = Duration::from_millis(150);
            while let Ok(Some(response)) = tokio::time::timeout(wait, self.responses.recv()).await {
                let progress = response.watch_id == -1 && response.events.is_empty();
                let at = response.header.as_ref().unwrap().revision;
                self.take(response);
                if progress && at >= revision {
                    return;
                }
            }
        }
    }
}

/// Both servers and what is known of their state.
struct Pair {
    cairn: Side,
    etcd: Side,
    rng: StdRng,
    revision: i64,
    compacted: i64,
    watchers: Vec<Watcher>,
    requests: usize,
}

macro_rules! both {
    ($pair:expr, $client:ident . $call:ident ( $request:expr )) => {{
        let request = &$request;
        let (cairn, etcd) = tokio::join!(
            $pair.cairn.$client.$call(request.to_owned()),
            $pair.etcd.$client.$call(request.to_owned())
        );
        $pair.requests += 1;
        (answer(cairn), answer(etcd))
    }};
}

impl Pair {
    fn key(&mut self) -> Bytes {
        const ODD: [&[u8]; 5] = [b"\0", b"\0\0", b"\xff", b"k1\0", b"k\xff\xff"];
        match self.rng.random_range(0..40) {
            0 => Bytes::new(),
            1..4 => Bytes::from_static(ODD[self.rng.random_range(0..ODD.len())]),
            4..12 => format!("hot{}", self.rng.random_range(0..3)).into(),
            _ => format!("k{:03}", self.rng.random_range(0..400)).into(),
        }
    }

    fn end(&mut self) -> Bytes {
        match self.rng.random_range(0..6) {
            0..3 => Bytes::new(),
            3 => Bytes::from_static(&[0]),
            _ => self.key(),
        }
    }

    fn lease(&mut self) -> i64 {
        match self.rng.random_range(0..5) {
            0 => self.rng.random_range(1..30),
            _ => 0,
        }
    }

    fn at(&mut self) -> i64 {
        match self.rng.random_range(0..12) {
            0 => self.revision + self.rng.random_range(0..3),
            1 => self.compacted + self.rng.random_range(-2..2),
            2 => -self.rng.random_range(0..3),
            3..6 => self.rng.random_range(self.compacted.max(1)..=self.revision),
            _ => 0,
        }
    }

    fn put_request(&mut self) -> PutRequest {
        let length = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(900..3000),
            _ => self.rng.random_range(0..40),
        };
        PutRequest {
            key: self.key(),
            value: vec![self.rng.random(); length].into(),
            lease: self.lease(),
            prev_kv: self.rng.random_bool(0.2),
            ignore_value: self.rng.random_bool(0.05),
            ignore_lease: self.rng.random_bool(0.05),
        }
    }

    fn range_request(&mut self) -> RangeRequest {
        let revision = self.revision;
        let mut bound = || match self.rng.random_bool(0.05) {
            true => self.rng.random_range(0..=revision),
            false => 0,
        };
        let bounds = [bound(), bound(), bound(), bound()];
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.rng.random_range(-1..12),
            revision: self.at(),
            sort_order: match self.rng.random_range(0..30) {
                0 => 7,
                n => n % 3,
            },
            sort_target: match self.rng.random_range(0..30) {
                0 => 9,
                n => [0, 0, 1, 2, 3, 4][n as usize % 6],
            },
            serializable: self.rng.random(),
            keys_only: self.rng.random_bool(0.2),
            count_only: self.rng.random_bool(0.2),
            min_mod_revision: bounds[0],
            max_mod_revision: bounds[1],
            min_create_revision: bounds[2],
            max_create_revision: bounds[3],
        }
    }

    fn delete_request(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: match self.rng.random_bool(0.9) {
                true => Bytes::new(),
                false => self.end(),
            },
            prev_kv: self.rng.random_bool(0.3),
        }
    }

    fn compare(&mut self) -> Compare {
        let n = self.rng.random_range(0..6);
        Compare {
            result: self.rng.random_range(0..4),
            target: self.rng.random_range(0..5),
            key: self.key(),
            range_end: match self.rng.random_bool(0.8) {
                true => Bytes::new(),
                false => self.end(),
            },
            target_union: match self.rng.random_range(0..6) {
                0 => None,
                1 => Some(TargetUnion::Version(n)),
                2 => Some(TargetUnion::CreateRevision(n)),
                3 => Some(TargetUnion::ModRevision(self.revision - n)),
                4 => Some(TargetUnion::Value(vec![0; n as usize].into())),
                _ => Some(TargetUnion::Lease(n)),
            },
        }
    }

    fn ops(&mut self, depth: u32) -> Vec<RequestOp> {
        let count = self.rng.random_range(0..4);
        let ops = (0..count).map(|_| RequestOp {
            request: match self.rng.random_range(0..10) {
                0..4 => Some(Request::RequestRange(self.range_request())),
                4..7 => Some(Request::RequestPut(PutRequest {
                    // etcd ends itself when a delete of the same transaction took the key.
                    ignore_value: false,
                    ignore_lease: false,
                    ..self.put_request()
                })),
                7 => Some(Request::RequestDeleteRange(self.delete_request())),
                8 if depth < 3 => Some(Request::RequestTxn(self.txn_request(depth + 1))),
                8 => Some(Request::RequestRange(self.range_request())),
                _ => match self.rng.random_bool(0.05) {
                    true => None,
                    false => Some(Request::RequestPut(PutRequest {
                        key: self.key(),
                        ..PutRequest::default()
                    })),
                },
            },
        });
        ops.collect()
    }

    fn txn_request(&mut self, depth: u32) -> TxnRequest {
        let compares = self.rng.random_range(0..3);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..30 => {
                let request = self.put_request();
                let (cairn, etcd) = both!(self, kv.put(request));
                same(&request, &cairn, &etcd);
            }
            30..50 => {
                let request = self.range_request();
                let (mut cairn, mut etcd) = both!(self, kv.range(request));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    settle_ties(&request, answer);
                }
                same(&request, &cairn, &etcd);
            }
            50..60 => {
                let request = self.delete_request();
                let (cairn, etcd) = both!(self, kv.delete_range(request));
                same(&request, &cairn, &etcd);
            }
            60..85 => {
                let request = self.txn_request(0);
                let (mut cairn, mut etcd) = both!(self, kv.txn(request));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    settle_txn_ties(&request, answer);
                }
                same(&request, &cairn, &etcd);
            }
            85..88 => {
                let request = LeaseGrantRequest {
                    id: self.rng.random_range(1..30),
                    ttl: match self.rng.random_range(0..10) {
                        0 => 9_000_000_001,
                        _ => self.rng.random_range(5000..9000),
                    },
                };
                let (cairn, etcd) = both!(self, lease.lease_grant(request));
                same(&request, &cairn, &etcd);
            }
            88..90 => {
                let id = self.rng.random_range(1..30);
                let request = LeaseRevokeRequest { id };
                let (cairn, etcd) = both!(self, lease.lease_revoke(request));
                same(&request, &cairn, &etcd);
            }
            90..92 => {
                let request = LeaseTimeToLiveRequest {
                    id: self.rng.random_range(1..30),
                    keys: true,
                };
                let (mut cairn, mut etcd) = both!(self, lease.lease_time_to_live(request));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    // Keys come in no order, and a second may end between the two answers.
                    answer.keys.sort();
                    answer.ttl = if answer.ttl > 0 { 1 } else { answer.ttl };
                }
                same(&request, &cairn, &etcd);
            }
            92 => self.keep_alive().await,
            93 => {
                let request = LeaseLeasesRequest {};
                let (mut cairn, mut etcd) = both!(self, lease.lease_leases(request));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    answer.leases.sort_by_key(|lease| lease.id);
                }
                same(&request, &cairn, &etcd);
            }
            94 => {
                let linearizable = self.rng.random();
                let request = MemberListRequest { linearizable };
                let (cairn, etcd) = both!(self, cluster.member_list(request));
                same(&request, &cairn, &etcd);
            }
            95 => {
                let request = AlarmRequest {
                    action: self.rng.random_range(0..3) * 2 % 3,
                    member_id: 7,
                    // Corrupt, so that nothing is refused for want of space.
                    alarm: 0,
                };
                let (cairn, etcd) = both!(self, maintenance.alarm(request));
                same(&request, &cairn, &etcd);
            }
            96 => self.watch().await,
            97 => self.drop_watcher().await,
            _ => self.hash().await,
        }
    }

    async fn keep_alive(&mut self) {
        let id = self.rng.random_range(1..30);
        let request = LeaseKeepAliveRequest { id };
        let mut answers = Vec::new();
        for side in [&mut self.cairn, &mut self.etcd] {
            let stream = tokio_stream::once(request);
            let stream = side.lease.lease_keep_alive(stream).await;
            let first = stream.unwrap().into_inner().message().await;
            answers.push(first.unwrap());
        }
        self.requests += 1;
        assert_eq!(answers[0], answers[1], "keep alive of {id}");
    }

    async fn watch(&mut self) {
        if self.watchers.len() >= 12 {
            return;
        }
        let request = WatchCreateRequest {
            key: self.key(),
            range_end: self.end(),
            start_revision: match self.rng.random_range(0..6) {
                0 => self.revision + self.rng.random_range(1..50),
                1 => self.compacted - 1,
                2 => -1,
                3 => self.rng.random_range(self.compacted.max(1)..=self.revision),
                _ => 0,
            },
            progress_notify: false,
            filters: match self.rng.random_range(0..4) {
                0 => vec![0],
                1 => vec![1],
                _ => vec![],
            },
            prev_kv: self.rng.random(),
            watch_id: self.rng.random_range(0..5),
            fragment: self.rng.random(),
        };
        self.requests += 1;
        let cairn = Seen::open(&mut self.cairn.watch, &request).await;
        let etcd = Seen::open(&mut self.etcd.watch, &request).await;
        self.watchers.push(Watcher {
            request,
            seen: [cairn, etcd],
        });
    }

    async fn drop_watcher(&mut self) {
        if self.watchers.is_empty() {
            return;
        }
        self.settle().await;
        let which = self.rng.random_range(0..self.watchers.len());
        let mut watcher = self.watchers.swap_remove(which);
        self.requests += 1;
        let mut canceled = Vec::new();
        for seen in &mut watcher.seen {
            let live = seen.ended.is_none();
            let cancel = WatchRequest {
                request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest {
                    watch_id: watcher.request.watch_id,
                })),
            };
            if live && seen.requests.send(cancel).await.is_ok() {
                loop {
                    let response = seen.next().await;
                    if response.canceled {
                        canceled.push(response);
                        break;
                    }
                }
            }
        }
        if let [cairn, etcd] = &canceled[..] {
            assert_eq!(cairn, etcd, "cancel of {:?}", watcher.request);
        }
        assert_ne!(canceled.len(), 1, "one ended and the other did not");
    }

    /// Waits until every watcher has everything, and compares what they saw.
    async fn settle(&mut self) {
        let revision = self.revision().await;
        for watcher in &mut self.watchers {
            if watcher.request.start_revision > revision {
                continue;
            }
            for seen in &mut watcher.seen {
                let settled = tokio::time::timeout(SETTLE, seen.settle(revision)).await;
                let request = &watcher.request;
                settled.unwrap_or_else(|_| panic!("no progress of {request:?}"));
            }
            let [cairn, etcd] = &mut watcher.seen;
            // etcd reads what was there before an event when it sends it, and finds nothing if a
            // compaction came first; Cairn has kept it.
            for (ours, theirs) in cairn.events.iter_mut().zip(&etcd.events) {
                let at = ours.kv.as_ref().unwrap().mod_revision;
                if theirs.prev_kv.is_none() && at - 1 < self.compacted {
                    ours.prev_kv = None;
                }
            }
            let request = &watcher.request;
            assert_eq!(cairn.events, etcd.events, "events of {request:?}");
            assert_eq!(cairn.ended, etcd.ended, "end of {request:?}");
            cairn.events.clear();
            etcd.events.clear();
        }
    }

    async fn revision(&mut self) -> i64 {
        let request = PutRequest {
            key: BARRIER.into(),
            ..PutRequest::default()
        };
        let (cairn, etcd) = both!(self, kv.put(request));
        same(&request, &cairn, &etcd);
        self.revision = cairn.unwrap().header.unwrap().revision;
        self.revision
    }

    async fn hash(&mut self) {
        let revision = self.at();
        let request = HashKvRequest { revision };
        let (cairn, etcd) = both!(self, maintenance.hash_kv(request));
        same(&request, &cairn, &etcd);
    }

    async fn compact(&mut self) {
        self.settle().await;
        let request = CompactionRequest {
            revision: match self.rng.random_range(0..4) {
                0 => self.at(),
                _ => self.rng.random_range(self.compacted.max(1)..=self.revision),
            },
            physical: true,
        };
        let (cairn, etcd) = both!(self, kv.compact(request));
        same(&request, &cairn, &etcd);
        if cairn.is_ok() {
            self.compacted = request.revision;
        }
        for at in [0, self.compacted, self.compacted - 1, self.revision] {
            let request = HashKvRequest { revision: at };
            let (cairn, etcd) = both!(self, maintenance.hash_kv(request));
            same(&request, &cairn, &etcd);
        }
    }
}

/// The order of equal values is nobody's promise: a result that is sorted by something that may be
/// equal is compared by what it is sorted by.
fn settle_ties(request: &RangeRequest, response: &mut RangeResponse) {
    if request.sort_target == 0 {
        return;
    }
    let by = |kv: &KeyValue| match request.sort_target {
        1 => (kv.version, Bytes::new()),
        2 => (kv.create_revision, Bytes::new()),
        3 => (kv.mod_revision, Bytes::new()),
        _ => (0, kv.value.clone()),
    };
    let ordered = match request.sort_order {
        2 => response.kvs.is_sorted_by(|a, b| by(a) >= by(b)),
        _ => response.kvs.is_sorted_by(|a, b| by(a) <= by(b)),
    };
    // Values are gone from what shows keys only.
    assert!(ordered || request.keys_only, "{request:?}: {response:?}");
    if response.more {
        for kv in &mut response.kvs {
            *kv = KeyValue {
                version: by(kv).0,
                value: by(kv).1,
                ..KeyValue::default()
            };
        }
    } else {
        response.kvs.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

fn settle_txn_ties(request: &TxnRequest, response: &mut TxnResponse) {
    let branch = match response.succeeded {
        true => &request.success,
        false => &request.failure,
    };
    for (op, answer) in branch.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
                settle_ties(request, response);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
                settle_txn_ties(request, response);
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_answers_as_etcd_does() {
    let requests = setting("CAIRN_REQUESTS", REQUESTS as u64) as usize;
    let seed = setting("CAIRN_SEED", 1);
    println!("CAIRN_SEED={seed} CAIRN_REQUESTS={requests}");
    let mut pair = Pair {
        cairn: Side::start(Kind::Cairn).await,
        etcd: Side::start(Kind::Etcd).await,
        rng: StdRng::seed_from_u64(seed),
        revision: 1,
        compacted: -1,
        watchers: Vec::new(),
        requests: 0,
    };
    while pair.requests < requests {
        for _ in 0..ROUND {
            pair.step().await;
        }
        pair.settle().await;
        if pair.rng.random_bool(0.3) {
            pair.compact().await;
        }
    }
    println!("{} requests to each, no difference", pair.requests);
}
