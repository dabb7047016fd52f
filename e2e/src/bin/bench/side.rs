//! The servers of one kind, with the client's connections to them.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{Kind, Member, Server};
use proto::etcdserverpb::{
    MemberAddRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    cluster_client::ClusterClient, kv_client::KvClient, request_op::Request,
};
use tonic::transport::{Channel, Endpoint};

/// Bytes of a value, as in the figures of etcd's own reports.
pub const VALUE: usize = 256;
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
    kind: Kind,
    members: Vec<Member>,
    servers: Vec<Server>,
    /// Bytes of a value.
    value: usize,
    pub channels: Vec<Channel>,
    // Behind the servers: they end before their data goes.
    folder: tempfile::TempDir,
}

impl Side {
    /// Starts so many members and waits until they answer. Values have `value` bytes.
    pub async fn start(kind: Kind, members: usize, value: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let members: Vec<Member> = (0..members).map(|n| member(kind, n)).collect();
        let all: Vec<&Member> = members.iter().collect();
        let launch = |member: &Member| member.launch(folder.path(), &all, "new");
        let mut servers: Vec<Server> = members.iter().map(launch).collect();
        servers.iter_mut().for_each(Server::wait_ready);
        let mut side = Self {
            kind,
            members,
            servers,
            value,
            channels: Vec::new(),
            folder,
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
            let value = self.value;
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(FILL_PUTS, Ordering::Relaxed);
                    if from >= keys {
                        return;
                    }
                    let puts = (from..keys.min(from + FILL_PUTS)).map(|key| RequestOp {
                        request: Some(Request::RequestPut(put(&prefix, key, value))),
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

    /// Bytes of a value.
    pub fn value(&self) -> usize {
        self.value
    }

    /// A put of this side's size.
    pub fn put(&self, prefix: &str, key: u64) -> PutRequest {
        put(prefix, key, self.value)
    }

    /// Adds one more member as a learner, and starts it. It is left to catch up.
    pub async fn add_learner(&mut self) {
        let new = member(self.kind, self.members.len());
        let add = MemberAddRequest {
            peer_ur_ls: vec![new.peer_url().to_owned()],
            is_learner: true,
        };
        let mut cluster = ClusterClient::new(self.channel(0));
        cluster.member_add(add).await.unwrap();
        self.members.push(new);
        let all: Vec<&Member> = self.members.iter().collect();
        let launched = all[all.len() - 1].launch(self.folder.path(), &all, "existing");
        self.servers.push(launched);
    }

    /// Whether the newest member has caught up so far that it serves.
    pub fn newest_serves(&mut self) -> bool {
        let newest = self.servers.last_mut().unwrap();
        assert!(newest.ended().is_none(), "{}", newest.log());
        newest.is_ready()
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
        self.servers.iter().map(cpu).sum()
    }

    /// Seconds of CPU that the first member has used.
    pub fn first_cpu(&self) -> f64 {
        cpu(&self.servers[0])
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

fn member(kind: Kind, number: usize) -> Member {
    Member::new(kind, &format!("m{number}")).with_flags(vec![QUOTA.to_owned()])
}

fn cpu(server: &Server) -> f64 {
    (stat(server, 11) + stat(server, 12)) / TICKS_PER_SECOND
}

/// A field of `/proc/PID/stat` behind the name, counted from 0.
fn stat(server: &Server, field: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(field).unwrap().parse().unwrap()
}

/// A put of so many bytes.
pub fn put(prefix: &str, key: u64, value: usize) -> PutRequest {
    PutRequest {
        key: format!("{prefix}{key:08}").into(),
        value: vec![b'v'; value].into(),
        ..PutRequest::default()
    }
}
