//! Cairn beside real etcd in one run, with one client, in turns: throughput, latency, and server
//! CPU per request, which is the steadiest figure on a noisy machine. `make bench` runs it.
//!
//! `BENCH_SECONDS` is the length of one turn, `BENCH_ROUNDS` how many turns each server gets,
//! `BENCH_ONLY` names the lines to measure.

#![allow(clippy::unwrap_used)]

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{Kind, Server};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
};
use tonic::transport::{Channel, Endpoint};

/// Bytes of a value, as in the figures of etcd's own reports.
const VALUE: usize = 256;
/// Keys under the prefix that is listed out of.
const MANY: u64 = 100_000;
/// Keys that are listed whole.
const PAGE: u64 = 1000;
/// Connections of the client.
const CONNECTIONS: usize = 8;

/// What one line does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Put,
    Get,
    ListAll,
    ListSome,
    Count,
    Txn,
    KeepAlive,
}

const LINES: &[(&str, Work, usize)] = &[
    ("put-1", Work::Put, 1),
    ("put-256", Work::Put, 256),
    ("put-1000", Work::Put, 1000),
    ("get-256", Work::Get, 256),
    ("list-1000", Work::ListAll, 16),
    ("list-1000-of-100k", Work::ListSome, 16),
    ("count-100k", Work::Count, 16),
    ("txn-256", Work::Txn, 256),
    ("keepalive-64", Work::KeepAlive, 64),
];

/// One turn.
#[derive(Clone, Debug, Default)]
struct Turn {
    per_second: f64,
    cpu_micros: f64,
    p50_millis: f64,
    p99_millis: f64,
}

struct Side {
    server: Server,
    channels: Vec<Channel>,
    _folder: tempfile::TempDir,
}

impl Side {
    async fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let quota = "--quota-backend-bytes=8000000000";
        let server = Server::start(kind, folder.path(), &[quota]);
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
            channels.push(endpoint.connect().await.unwrap());
        }
        let side = Self {
            server,
            channels,
            _folder: folder,
        };
        side.fill("page/", PAGE).await;
        side.fill("many/", MANY).await;
        side
    }

    async fn fill(&self, prefix: &str, keys: u64) {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..128 {
            let mut kv = self.kv(client);
            let (next, prefix) = (Arc::clone(&next), prefix.to_owned());
            tasks.spawn(async move {
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key >= keys {
                        return;
                    }
                    kv.put(put(&prefix, key)).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
    }

    fn kv(&self, client: usize) -> KvClient<Channel> {
        let channel = self.channels[client % self.channels.len()].clone();
        KvClient::new(channel).max_decoding_message_size(64 << 20)
    }

    async fn turn(&self, work: Work, clients: usize, time: Duration) -> Turn {
        let stop = Arc::new(AtomicBool::new(false));
        let before = self.cpu();
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let stop = Arc::clone(&stop);
            let kv = self.kv(client);
            let lease = LeaseClient::new(self.channels[client % CONNECTIONS].clone());
            tasks.spawn(run(work, client as u64, kv, lease, stop));
        }
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut taken: Vec<f64> = tasks.join_all().await.into_iter().flatten().collect();
        let elapsed = began.elapsed().as_secs_f64();
        let cpu = self.cpu() - before;
        taken.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let at = (taken.len() as f64 * share) as usize;
            taken.get(at.min(taken.len().saturating_sub(1))).copied()
        };
        Turn {
            per_second: taken.len() as f64 / elapsed,
            cpu_micros: cpu * 1e6 / taken.len().max(1) as f64,
            p50_millis: at(0.5).unwrap_or_default() * 1e3,
            p99_millis: at(0.99).unwrap_or_default() * 1e3,
        }
    }

    fn stat(&self, field: usize) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(field).unwrap().parse().unwrap()
    }

    /// Seconds of CPU that the server has used. Linux counts in hundredths.
    fn cpu(&self) -> f64 {
        (self.stat(11) + self.stat(12)) / 100.0
    }

    fn rss_mib(&self) -> f64 {
        self.stat(21) * 4096.0 / f64::from(1 << 20)
    }
}

fn put(prefix: &str, key: u64) -> PutRequest {
    PutRequest {
        key: format!("{prefix}{key:08}").into(),
        value: vec![b'v'; VALUE].into(),
        ..PutRequest::default()
    }
}

/// Works until it is told to stop; returns the seconds that each request took.
async fn run(
    work: Work,
    client: u64,
    mut kv: KvClient<Channel>,
    mut lease: LeaseClient<Channel>,
    stop: Arc<AtomicBool>,
) -> Vec<f64> {
    let mut taken = Vec::new();
    if work == Work::KeepAlive {
        return keep_alive(client, &mut lease, &stop).await;
    }
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let key = client * 1_000_003 + n;
        match work {
            Work::Put => drop(kv.put(put("put/", key % 200_000)).await.unwrap()),
            Work::Txn => {
                let request = TxnRequest {
                    success: vec![RequestOp {
                        request: Some(Request::RequestPut(put("txn/", key % 200_000))),
                    }],
                    ..TxnRequest::default()
                };
                drop(kv.txn(request).await.unwrap());
            }
            _ => {
                let answer = kv.range(range(work, key)).await.unwrap().into_inner();
                let expected = match work {
                    Work::Get => 1,
                    Work::Count => MANY as i64,
                    Work::ListSome => MANY as i64,
                    _ => PAGE as i64,
                };
                assert_eq!(answer.count, expected);
            }
        }
        taken.push(began.elapsed().as_secs_f64());
    }
    taken
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
            key: format!("many/{:08}", key % MANY).into(),
            ..RangeRequest::default()
        },
    }
}

async fn keep_alive(client: u64, lease: &mut LeaseClient<Channel>, stop: &AtomicBool) -> Vec<f64> {
    let id = client as i64 + 1;
    let grant = LeaseGrantRequest { id, ttl: 10_000 };
    // It is there from an earlier turn.
    let _ = lease.lease_grant(grant).await;
    let (requests, outbound) = tokio::sync::mpsc::channel(1);
    requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let mut answers = lease.lease_keep_alive(stream).await.unwrap().into_inner();
    let mut taken = Vec::new();
    let mut began = Instant::now();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.ttl, 10_000);
        taken.push(began.elapsed().as_secs_f64());
        if stop.load(Ordering::Relaxed) {
            break;
        }
        began = Instant::now();
        requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
    }
    taken
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = of.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The spread of a figure over the turns, as a share of its median.
fn spread(of: impl Iterator<Item = f64> + Clone) -> f64 {
    let (low, high) = of.clone().fold((f64::MAX, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    (high - low) / median(of)
}

/// How often the disk below can sync in a second.
fn sync_rate(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("sync")).unwrap();
    let began = Instant::now();
    for _ in 0..200 {
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    200.0 / began.elapsed().as_secs_f64()
}

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let time = Duration::from_secs(setting("BENCH_SECONDS", 3));
    let rounds = setting("BENCH_ROUNDS", 5);
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let mut report = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let _ = writeln!(
        report,
        "{cores} cores shared with the client; {rounds} turns of {}s each, medians; fdatasync {:.0}/s",
        time.as_secs(),
        sync_rate(folder.path())
    );
    let cairn = Side::start(Kind::Cairn).await;
    let etcd = Side::start(Kind::Etcd).await;
    let _ = writeln!(
        report,
        "{:<18} {:>9} {:>9} {:>6} | {:>9} {:>9} {:>6} {:>7} | {:>7} {:>7} | {:>7} {:>7}",
        "line",
        "cairn/s",
        "etcd/s",
        "ratio",
        "cairn us",
        "etcd us",
        "ratio",
        "spread",
        "c p50",
        "e p50",
        "c p99",
        "e p99"
    );
    println!("{report}");
    for (name, work, clients) in LINES {
        if !only.is_empty() && !only.split(',').any(|wanted| wanted == *name) {
            continue;
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(cairn.turn(*work, *clients, time).await);
            theirs.push(etcd.turn(*work, *clients, time).await);
        }
        let of = |turns: &[Turn], figure: fn(&Turn) -> f64| median(turns.iter().map(figure));
        let rate: fn(&Turn) -> f64 = |turn| turn.per_second;
        let cpu: fn(&Turn) -> f64 = |turn| turn.cpu_micros;
        let line = format!(
            "{name:<18} {:>9.0} {:>9.0} {:>6.2} | {:>9.1} {:>9.1} {:>6.2} {:>6.0}% | {:>7.2} {:>7.2} | {:>7.2} {:>7.2}",
            of(&ours, rate),
            of(&theirs, rate),
            of(&ours, rate) / of(&theirs, rate),
            of(&ours, cpu),
            of(&theirs, cpu),
            of(&ours, cpu) / of(&theirs, cpu),
            100.0 * spread(ours.iter().map(cpu)).max(spread(theirs.iter().map(cpu))),
            of(&ours, |turn| turn.p50_millis),
            of(&theirs, |turn| turn.p50_millis),
            of(&ours, |turn| turn.p99_millis),
            of(&theirs, |turn| turn.p99_millis),
        );
        println!("{line}");
        let _ = writeln!(report, "{line}");
    }
    let rss = format!(
        "rss at the end: cairn {:.0} MiB, etcd {:.0} MiB",
        cairn.rss_mib(),
        etcd.rss_mib()
    );
    println!("{rss}");
    let _ = writeln!(report, "{rss}");
    if let Some(path) = std::env::args().nth(1) {
        fs::write(&path, report).unwrap();
        println!("kept in {path}");
    }
}
