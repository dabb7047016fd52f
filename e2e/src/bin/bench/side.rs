//! The servers of one kind, with the client's connections to them.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{Kind, Member, Server};
use proto::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, TxnRequest, kv_client::KvClient, request_op::Request,
};
use tonic::transport::{Channel, Endpoint};

/// Bytes of a value, as in the figures of etcd's own reports.
const VALUE: usize = 256;
/// Connections of the client, spread over the members.
pub const CONNECTIONS: usize = 8;
/// Puts of one transaction that fills the store; etcd takes 128.
const FILL_PUTS: u64 = 100;
/// Transactions that fill the store at once.
const FILL_CLIENTS: usize = 32;
/// Bytes that the store may hold before the servers refuse to write.
const QUOTA: &str = "--quota-backend-bytes=8000000000";
/// The longest answer that the client takes.
pub const MAX_ANSWER: usize = 64 << 20;
/// How long a new cluster may take to answer.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);
/// Linux counts CPU in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

/// One member or one cluster.
pub struct Side {
    servers: Vec<Server>,
    pub channels: Vec<Channel>,
    // Behind the servers: they end before their data goes.
    _folder: tempfile::TempDir,
}

impl Side {
    /// Starts so many members and waits until they answer.
    pub async fn start(kind: Kind, members: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let servers = match members {
            1 => vec![Server::start(kind, folder.path(), &[QUOTA])],
            _ => cluster(kind, folder.path(), members),
        };
        let mut side = Self {
            servers,
            channels: Vec::new(),
            _folder: folder,
        };
        side.connect().await;
        side
    }

    /// Puts keys under a prefix, as fast as it goes.
    pub async fn fill(&self, prefix: &str, keys: u64) {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..FILL_CLIENTS {
            let mut kv = self.kv(client);
            let (next, prefix) = (Arc::clone(&next), prefix.to_owned());
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(FILL_PUTS, Ordering::Relaxed);
                    if from >= keys {
                        return;
                    }
                    let puts = (from..keys.min(from + FILL_PUTS)).map(|key| RequestOp {
                        request: Some(Request::RequestPut(put(&prefix, key))),
                    });
                    let request = TxnRequest {
                        success: puts.collect(),
                        ..TxnRequest::default()
                    };
                    kv.txn(request).await.unwrap();
                }
            });
        }
        // A task that failed ends the run here.
        tasks.join_all().await;
    }

    pub fn kv(&self, client: usize) -> KvClient<Channel> {
        KvClient::new(self.channel(client)).max_decoding_message_size(MAX_ANSWER)
    }

    pub fn channel(&self, client: usize) -> Channel {
        self.channels[client % self.channels.len()].clone()
    }

    /// Where the first member is reached.
    pub fn url(&self) -> &str {
        self.servers[0].url()
    }

    /// Ends the member and starts it again; the seconds from the start to the first answer.
    pub async fn restart(&mut self) -> f64 {
        for server in &mut self.servers {
            server.stop();
        }
        let began = Instant::now();
        for server in &mut self.servers {
            server.restart();
        }
        self.connect().await;
        began.elapsed().as_secs_f64()
    }

    /// Seconds of CPU that the servers have used.
    pub fn cpu(&self) -> f64 {
        let ticks = |server| stat(server, 11) + stat(server, 12);
        self.servers.iter().map(ticks).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Memory of the servers.
    pub fn rss_mib(&self) -> f64 {
        let pages: f64 = self.servers.iter().map(|server| stat(server, 21)).sum();
        pages * PAGE_BYTES / f64::from(1 << 20)
    }

    /// Opens the client's connections and waits until each is answered.
    async fn connect(&mut self) {
        self.channels.clear();
        for n in 0..CONNECTIONS {
            let url = self.servers[n % self.servers.len()].url().to_owned();
            let endpoint = Endpoint::from_shared(url).unwrap();
            self.channels.push(endpoint.connect_lazy());
        }
        let began = Instant::now();
        for n in 0..CONNECTIONS {
            let request = RangeRequest {
                key: "key".into(),
                ..RangeRequest::default()
            };
            while let Err(error) = self.kv(n).range(request.clone()).await {
                assert!(began.elapsed() < FIRST_ANSWER, "no answer: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn cluster(kind: Kind, folder: &Path, members: usize) -> Vec<Server> {
    let members: Vec<Member> = (0..members)
        .map(|n| Member::new(kind, &format!("m{n}")))
        .collect();
    let all: Vec<&Member> = members.iter().collect();
    let mut servers: Vec<Server> = members
        .iter()
        .map(|member| member.launch(folder, &all, "new"))
        .collect();
    for server in &mut servers {
        server.wait_ready();
    }
    servers
}

/// A field of `/proc/PID/stat` behind the name, counted from 0.
fn stat(server: &Server, field: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(field).unwrap().parse().unwrap()
}

/// A put of the bench's size.
pub fn put(prefix: &str, key: u64) -> PutRequest {
    PutRequest {
        key: format!("{prefix}{key:08}").into(),
        value: vec![b'v'; VALUE].into(),
        ..PutRequest::default()
    }
}
