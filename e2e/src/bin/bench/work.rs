//! What a line does again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Buf;
use http::uri::PathAndQuery;
use prost::{
    DecodeError,
    encoding::{self, DecodeContext},
};
use proto::{
    etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp,
        SnapshotRequest, TxnRequest, WatchCreateRequest, WatchRequest, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request, watch_request::RequestUnion,
    },
    framed,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{
    PAGE,
    report::Turn,
    side::{MAX_ANSWER, Side, put},
};

/// Keys that puts are spread over.
const PUT_KEYS: u64 = 200_000;
/// Keys of clients lie so far from each other.
const CLIENT_STEP: u64 = 1_000_003;
/// Seconds of a lease: none ends within a run.
const TTL: i64 = 10_000;
/// Watchers of one stream, as in etcd's own load generator.
const WATCHERS_PER_STREAM: usize = 100;
/// Puts that are on their way at once, each to all watchers.
const WATCHED_PUTS: u64 = 8;

/// What one line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Puts of one key.
    Put,
    /// Linearizable reads of one key.
    Get,
    /// Lists of all of [`PAGE`] keys.
    ListAll,
    /// Lists of the first [`PAGE`] of many keys.
    ListSome,
    /// Counts of many keys.
    Count,
    /// Transactions of one put.
    Txn,
    /// Events to as many watchers of one prefix as there are clients.
    Watch,
    /// Renewals of one lease for each client, one after the other on one stream.
    KeepAlive,
    /// Megabytes of whole snapshots, one after the other.
    Snapshot,
}

/// What the clients of a turn did: seconds of each request (or round), and how many units of work
/// these were.
struct Done {
    taken: Vec<f64>,
    units: f64,
}

/// Lets clients work on a side for a time.
pub async fn turn(side: &Side, work: Work, clients: usize, time: Duration) -> Turn {
    let watched = match work {
        Work::Watch => Some(Watched::open(side, clients).await),
        _ => None,
    };
    let before = side.cpu();
    let began = Instant::now();
    let mut done = match &watched {
        Some(watched) => watched.rounds(side, time).await,
        None => clients_work(side, work, clients, time).await,
    };
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = side.cpu() - before;
    done.taken.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let at = (done.taken.len() as f64 * share) as usize;
        let last = done.taken.len().saturating_sub(1);
        done.taken.get(at.min(last)).copied().unwrap_or_default()
    };
    Turn {
        per_second: done.units / elapsed,
        cpu_micros: cpu * 1e6 / done.units.max(1.0),
        p50_millis: at(0.5) * 1e3,
        p99_millis: at(0.99) * 1e3,
    }
}

async fn clients_work(side: &Side, work: Work, clients: usize, time: Duration) -> Done {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let stop = Arc::clone(&stop);
        let caller = Caller::new(side, client);
        tasks.spawn(async move {
            match work {
                Work::KeepAlive => Done::each(caller.keep_alive(&stop).await),
                Work::Snapshot => caller.snapshots(&stop).await,
                _ => Done::each(caller.requests(work, &stop).await),
            }
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Done::each(Vec::new());
    for done in tasks.join_all().await {
        all.taken.extend(done.taken);
        all.units += done.units;
    }
    all
}

impl Done {
    /// Each request is one unit.
    fn each(taken: Vec<f64>) -> Self {
        let units = taken.len() as f64;
        Self { taken, units }
    }
}

/// One client.
struct Caller {
    client: u64,
    channel: Channel,
    kv: proto::etcdserverpb::kv_client::KvClient<Channel>,
    value: usize,
}

impl Caller {
    fn new(side: &Side, client: usize) -> Self {
        Self {
            client: client as u64,
            channel: side.channel(client),
            kv: side.kv(client),
            value: side.value(),
        }
    }

    fn put(&self, prefix: &str, key: u64) -> PutRequest {
        put(prefix, key % PUT_KEYS, self.value)
    }

    /// One request after the other until it is told to stop; the seconds that each took.
    async fn requests(mut self, work: Work, stop: &AtomicBool) -> Vec<f64> {
        let mut taken = Vec::new();
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let key = self.client * CLIENT_STEP + n;
            n += 1;
            let began = Instant::now();
            self.request(work, key).await;
            taken.push(began.elapsed().as_secs_f64());
        }
        taken
    }

    async fn request(&mut self, work: Work, key: u64) {
        match work {
            Work::Put => drop(self.kv.put(self.put("put/", key)).await.unwrap()),
            Work::Txn => {
                let put = Request::RequestPut(self.put("txn/", key));
                let request = TxnRequest {
                    success: vec![RequestOp { request: Some(put) }],
                    ..TxnRequest::default()
                };
                drop(self.kv.txn(request).await.unwrap());
            }
            _ => {
                let answer = self.range(work, key).await;
                let (found, count) = (answer.kvs, answer.count);
                let right = match work {
                    Work::Get => (found, count) == (1, 1),
                    Work::ListAll => (found, count) == (PAGE, PAGE),
                    Work::ListSome => found == PAGE && count > PAGE,
                    _ => found == 0 && count > PAGE,
                };
                assert!(right, "{work:?} found {found} of {count}");
            }
        }
    }

    async fn range(&mut self, work: Work, key: u64) -> Outline {
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        client.ready().await.unwrap();
        let request = tonic::Request::new(range(work, key));
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let answer = client.unary(request, path, Outlines::default()).await;
        answer.unwrap().into_inner()
    }

    async fn snapshots(self, stop: &AtomicBool) -> Done {
        let mut client = MaintenanceClient::new(self.channel).max_decoding_message_size(MAX_ANSWER);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        loop {
            let began = Instant::now();
            let mut answers = client
                .snapshot(SnapshotRequest {})
                .await
                .unwrap()
                .into_inner();
            while let Some(answer) = answers.message().await.unwrap() {
                bytes += answer.blob.len();
            }
            taken.push(began.elapsed().as_secs_f64());
            if stop.load(Ordering::Relaxed) {
                let units = bytes as f64 / 1e6;
                return Done { taken, units };
            }
        }
    }

    async fn keep_alive(self, stop: &AtomicBool) -> Vec<f64> {
        let mut lease = LeaseClient::new(self.channel);
        let id = self.client as i64 + 1;
        // It is there from an earlier turn.
        let _ = lease.lease_grant(LeaseGrantRequest { id, ttl: TTL }).await;
        let (requests, outbound) = mpsc::channel(1);
        requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
        let stream = ReceiverStream::new(outbound);
        let mut answers = lease.lease_keep_alive(stream).await.unwrap().into_inner();
        let mut taken = Vec::new();
        let mut began = Instant::now();
        while let Some(answer) = answers.message().await.unwrap() {
            assert_eq!(answer.ttl, TTL);
            taken.push(began.elapsed().as_secs_f64());
            if stop.load(Ordering::Relaxed) {
                break;
            }
            began = Instant::now();
            requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
        }
        taken
    }
}

fn range(work: Work, key: u64) -> RangeRequest {
    let all = |prefix: &str, limit, count_only| RangeRequest {
        key: format!("{prefix}/").into(),
        range_end: format!("{prefix}0").into(),
        limit,
        count_only,
        ..RangeRequest::default()
    };
    match work {
        Work::ListAll => all("page", 0, false),
        Work::ListSome => all("many", PAGE as i64, false),
        Work::Count => all("many", 0, true),
        _ => RangeRequest {
            // Every stage has at least so many.
            key: format!("many/{:08}", key % crate::MANY).into(),
            ..RangeRequest::default()
        },
    }
}

/// What the client takes from a RangeResponse. Taking KeyValues apart would cost it as much for
/// either server, and hide how they differ where both share the machine with it.
#[derive(Debug, Default)]
struct Outline {
    /// How many KeyValues there are.
    kvs: u64,
    /// The field of that name.
    count: u64,
}

impl Outline {
    fn read(mut bytes: impl Buf) -> Result<Self, DecodeError> {
        let mut outline = Self::default();
        while bytes.has_remaining() {
            let (field, wire_type) = encoding::decode_key(&mut bytes)?;
            match field {
                4 => outline.count = encoding::decode_varint(&mut bytes)?,
                _ => {
                    outline.kvs += u64::from(field == 2);
                    encoding::skip_field(wire_type, field, &mut bytes, DecodeContext::default())?;
                }
            }
        }
        Ok(outline)
    }
}

/// Sends RangeRequests and reads [`Outline`]s.
#[derive(Debug, Default)]
struct Outlines {
    requests: ProstCodec<RangeRequest, ()>,
}

impl Codec for Outlines {
    type Encode = RangeRequest;
    type Decode = Outline;
    type Encoder = <ProstCodec<RangeRequest, ()> as Codec>::Encoder;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        self.requests.encoder()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl Decoder for Outlines {
    type Item = Outline;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Outline>, Status> {
        let outline = Outline::read(bytes);
        outline
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Watchers that wait for events, and how many these have got.
struct Watched {
    watchers: u64,
    events: Arc<AtomicU64>,
    arrived: Arc<Notify>,
    /// Ends the streams when it goes.
    _streams: JoinSet<()>,
    _requests: Vec<mpsc::Sender<WatchRequest>>,
}

impl Watched {
    async fn open(side: &Side, watchers: usize) -> Self {
        let events = Arc::new(AtomicU64::new(0));
        let arrived = Arc::new(Notify::new());
        let (mut streams, mut requests) = (JoinSet::new(), Vec::new());
        for first in (0..watchers).step_by(WATCHERS_PER_STREAM) {
            let count = WATCHERS_PER_STREAM.min(watchers - first);
            let (sender, mut answers) =
                watch(side.channel(first / WATCHERS_PER_STREAM), count).await;
            requests.push(sender);
            let (events, arrived) = (Arc::clone(&events), Arc::clone(&arrived));
            streams.spawn(async move {
                while let Ok(Some(answer)) = answers.message().await {
                    assert!(!answer.canceled, "{}", answer.cancel_reason);
                    let found = answer.events.count() as u64;
                    events.fetch_add(found, Ordering::Release);
                    arrived.notify_one();
                }
            });
        }
        Self {
            watchers: watchers as u64,
            events,
            arrived,
            _streams: streams,
            _requests: requests,
        }
    }

    /// Rounds of puts; each ends when every watcher has them all, so that neither server can run
    /// ahead of its watchers.
    async fn rounds(&self, side: &Side, time: Duration) -> Done {
        let began = Instant::now();
        let mut taken = Vec::new();
        while began.elapsed() < time {
            let round = Instant::now();
            let wanted = self.events.load(Ordering::Acquire) + self.watchers * WATCHED_PUTS;
            let mut puts = JoinSet::new();
            for key in 0..WATCHED_PUTS {
                let (mut kv, put) = (side.kv(key as usize), side.put("watched/", key));
                puts.spawn(async move { drop(kv.put(put).await.unwrap()) });
            }
            puts.join_all().await;
            while self.events.load(Ordering::Acquire) < wanted {
                self.arrived.notified().await;
            }
            assert_eq!(self.events.load(Ordering::Acquire), wanted);
            taken.push(round.elapsed().as_secs_f64());
        }
        let units = taken.len() as f64 * (self.watchers * WATCHED_PUTS) as f64;
        Done { taken, units }
    }
}

/// Opens a stream with so many watchers and waits until all are there.
async fn watch(
    channel: Channel,
    watchers: usize,
) -> (mpsc::Sender<WatchRequest>, Streaming<framed::WatchResponse>) {
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.unwrap();
    let (requests, outbound) = mpsc::channel(watchers);
    for _ in 0..watchers {
        let create = WatchCreateRequest {
            key: "watched/".into(),
            range_end: "watched0".into(),
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(request).await.unwrap();
    }
    let stream = tonic::Request::new(ReceiverStream::new(outbound));
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec: ProstCodec<WatchRequest, framed::WatchResponse> = ProstCodec::default();
    let answers = client.streaming(stream, path, codec).await.unwrap();
    let mut answers = answers.into_inner();
    for _ in 0..watchers {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(answer.created && !answer.canceled);
    }
    (requests, answers)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{etcdserverpb::RangeResponse, mvccpb::KeyValue};

    use super::*;

    #[test]
    fn an_outline_counts_what_the_answer_holds() {
        let answer = RangeResponse {
            header: Some(Default::default()),
            kvs: vec![
                KeyValue {
                    key: "k".into(),
                    ..KeyValue::default()
                };
                3
            ],
            more: true,
            count: 300,
        };
        let bytes = answer.encode_to_vec();
        let outline = Outline::read(&bytes[..]).unwrap();
        assert_eq!((outline.kvs, outline.count), (3, 300));
        assert!(Outline::read(&bytes[..bytes.len() - 1]).is_err());
    }
}
