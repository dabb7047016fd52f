//! Members that differ: each check of etcd's, by Cairn and by real etcd, of members of both kinds;
//! and no false alarm among members that are well.

#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Server,
    client::{channel, eventually, get, put, status},
    tool,
};
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest,
    MoveLeaderRequest, PutRequest, alarm_request::AlarmAction, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
/// How long the members that are well are watched.
const WATCHED: Duration = Duration::from_secs(20);
const NAMES: [&str; 3] = ["a", "b", "c"];
/// What a row holds, and what it holds where it was changed.
const RIGHT: &str = "the right value";
const WRONG: &str = "the wrong value";
const KEY: &str = "a/key";
/// The check of all keys, and that of compactions.
const KEYS: &[&str] = &["--corrupt-check-time=500ms"];
const COMPACTIONS: &[&str] = &[
    "--feature-gates=CompactHashCheck=true",
    "--compact-hash-check-time=500ms",
];
const INITIAL: &[&str] = &["--feature-gates=InitialCorruptCheck=true"];
const INCONSISTENT: &str = "found data inconsistency with peers";

/// The data directories of three members of an etcd cluster that has ended, the last of which has
/// one row with other contents.
struct Prepared {
    folder: PathBuf,
    members: Vec<Member>,
}

impl Prepared {
    async fn make(folder: &Path) -> Self {
        let folder = folder.join("prepared");
        std::fs::create_dir(&folder).unwrap();
        let members: Vec<Member> = NAMES.map(|name| Member::new(Kind::Etcd, name)).into();
        let cluster: Vec<&Member> = members.iter().collect();
        let launch = |member: &Member| member.launch(&folder, &cluster, "new");
        let mut servers: Vec<Server> = members.iter().map(launch).collect();
        servers.iter_mut().for_each(Server::wait_ready);
        for n in 0..20 {
            put(servers[0].url(), &format!("k{}", n % 7), &n.to_string()).await;
        }
        put(servers[0].url(), KEY, RIGHT).await;
        let revision = revision_of(servers[0].url()).await;
        for server in &servers {
            until("the last revision", async || {
                revision_of(server.url()).await >= revision
            })
            .await;
        }
        for server in &mut servers {
            server.stop();
        }
        let database = folder.join(NAMES[2]).join("member/snap/db");
        let replaced = Command::new(tool("bolttool"))
            .arg("replace")
            .arg(&database)
            .args(["key", RIGHT, WRONG])
            .output()
            .unwrap();
        assert!(replaced.status.success(), "{replaced:?}");
        Self { folder, members }
    }

    /// A copy of the directories, to be run by servers of these kinds with these flags.
    fn copy(&self, to: &Path, members: [(Kind, &[&str]); 3]) -> Cluster {
        let copied = Command::new("cp")
            .arg("-a")
            .arg(&self.folder)
            .arg(to)
            .status();
        assert!(copied.unwrap().success());
        let members = self.members.iter().cloned().zip(members);
        let members = members.map(|(member, (kind, flags))| {
            let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
            member.with_kind(kind).with_flags(flags)
        });
        Cluster {
            folder: to.to_owned(),
            members: members.collect(),
            servers: Vec::new(),
        }
    }
}

struct Cluster {
    folder: PathBuf,
    members: Vec<Member>,
    servers: Vec<Server>,
}

impl Cluster {
    fn launch(&self, member: usize) -> Server {
        let cluster: Vec<&Member> = self.members.iter().collect();
        self.members[member].launch(&self.folder, &cluster, "new")
    }

    /// Starts so many of them, from the first one on.
    fn start(&mut self, count: usize) {
        self.servers = (0..count).map(|member| self.launch(member)).collect();
        self.servers.iter_mut().for_each(Server::wait_ready);
    }

    fn url(&self, member: usize) -> &str {
        self.servers[member].url()
    }

    /// Makes a member lead.
    async fn lead(&self, member: usize) {
        let id = id_of(self.url(member)).await;
        until("the leader", async || {
            for server in &self.servers {
                let status = status(server.url()).await;
                let own = status.header.unwrap_or_default().member_id;
                if status.leader == own && own != id {
                    let mut client = MaintenanceClient::new(channel(server.url()));
                    // It may lead no more.
                    let _ = client
                        .move_leader(MoveLeaderRequest { target_id: id })
                        .await;
                }
            }
            status(self.url(member)).await.leader == id
        })
        .await;
    }

    fn log(&self, member: usize) -> String {
        self.servers[member].log()
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < LIMIT, "{what} in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn id_of(url: &str) -> u64 {
    status(url).await.header.unwrap().member_id
}

async fn revision_of(url: &str) -> i64 {
    status(url).await.header.unwrap().revision
}

async fn alarms(url: &str, action: AlarmAction, member_id: u64) -> Vec<AlarmMember> {
    let kind = match action {
        AlarmAction::Get => AlarmType::None,
        _ => AlarmType::Corrupt,
    };
    let request = AlarmRequest {
        action: action as i32,
        member_id,
        alarm: kind as i32,
    };
    let mut client = MaintenanceClient::new(channel(url));
    let answer = eventually("alarms", async || client.alarm(request).await).await;
    answer.into_inner().alarms
}

async fn compact(url: &str) {
    let revision = revision_of(url).await;
    let request = CompactionRequest {
        revision,
        physical: true,
    };
    let mut kv = KvClient::new(channel(url));
    // Another one may have been faster.
    let _ = kv.compact(request).await;
}

/// One member of three has a row with other contents. The first one leads and is the only one that
/// looks.
async fn found(prepared: &Prepared, to: &Path, kinds: [Kind; 3], flags: &[&str]) {
    let what = format!("{kinds:?} {flags:?}");
    let mut cluster = prepared.copy(to, [(kinds[0], flags), (kinds[1], &[]), (kinds[2], &[])]);
    cluster.start(3);
    cluster.lead(0).await;
    let wrong = id_of(cluster.url(2)).await;
    assert_eq!(get(cluster.url(0), KEY, true).await.as_deref(), Some(RIGHT));
    assert_eq!(get(cluster.url(2), KEY, true).await.as_deref(), Some(WRONG));
    let by_compaction = flags == COMPACTIONS;
    if by_compaction {
        compact(cluster.url(0)).await;
    }
    for member in 0..3 {
        until(&what, async || {
            !alarms(cluster.url(member), AlarmAction::Get, 0)
                .await
                .is_empty()
        })
        .await;
    }
    let raised = alarms(cluster.url(1), AlarmAction::Get, 0).await;
    let expected = AlarmMember {
        member_id: wrong,
        alarm: AlarmType::Corrupt as i32,
    };
    assert_eq!(raised, [expected], "{what}");
    let says = match by_compaction {
        true => "Detected compaction hash mismatch",
        false => "same compact revision then hashes must match",
    };
    assert!(cluster.log(0).contains(says), "{what}: {}", cluster.log(0));

    // Writes are refused, and reads are served.
    for member in 0..3 {
        let mut kv = KvClient::new(channel(cluster.url(member)));
        let write = PutRequest {
            key: "refused".into(),
            ..PutRequest::default()
        };
        let refused = kv.put(write).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DataLoss, "{what}");
        assert_eq!(refused.message(), "etcdserver: corrupt cluster", "{what}");
        let delete = DeleteRangeRequest {
            key: KEY.into(),
            ..DeleteRangeRequest::default()
        };
        assert!(kv.delete_range(delete).await.is_err(), "{what}");
        assert!(get(cluster.url(member), KEY, false).await.is_some());
        // Nobody decided that it may not be asked.
        assert_eq!(status(cluster.url(member)).await.errors.len(), 1, "{what}");
    }
    // Without that member the alarm is cleared, and stays so.
    cluster.servers[2].kill();
    let cleared = alarms(cluster.url(0), AlarmAction::Deactivate, wrong).await;
    assert_eq!(cleared, [expected], "{what}");
    put(cluster.url(1), "written", "1").await;
    assert_eq!(
        get(cluster.url(0), "written", false).await.as_deref(),
        Some("1")
    );
    assert!(alarms(cluster.url(1), AlarmAction::Get, 0).await.is_empty());
}

/// One member of three has a row with other contents and looks before it serves.
async fn refused(prepared: &Prepared, to: &Path, kinds: [Kind; 3]) {
    let mut cluster = prepared.copy(
        to,
        [(kinds[0], &[]), (kinds[1], INITIAL), (kinds[2], INITIAL)],
    );
    cluster.start(2);
    assert_eq!(
        get(cluster.url(0), KEY, false).await.as_deref(),
        Some(RIGHT)
    );
    let mut wrong = cluster.launch(2);
    until("an end", async || wrong.ended().is_some()).await;
    let log = wrong.log();
    assert_eq!(wrong.ended().unwrap().code(), Some(1), "{kinds:?}: {log}");
    assert!(log.contains(INCONSISTENT), "{kinds:?}: {log}");
    assert!(
        log.contains("found different hash values from remote peer"),
        "{log}"
    );
    // One that is well starts with the same check, also while nobody serves the third.
    cluster.servers[1].kill();
    let mut again = cluster.launch(1);
    again.wait_ready();
    let passed = "initial corruption checking passed";
    assert!(again.log().contains(passed), "{kinds:?}: {}", again.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_differs_is_found_by_either_kind() {
    use Kind::{Cairn, Etcd};
    let folder = tempfile::tempdir().unwrap();
    let prepared = Prepared::make(folder.path()).await;
    for (n, kinds) in [
        [Cairn, Cairn, Cairn],
        [Cairn, Cairn, Etcd],
        [Etcd, Cairn, Cairn],
    ]
    .into_iter()
    .enumerate()
    {
        let to = |name: &str| folder.path().join(format!("{name}{n}"));
        found(&prepared, &to("keys"), kinds, KEYS).await;
        found(&prepared, &to("compactions"), kinds, COMPACTIONS).await;
    }
    for (n, kinds) in [
        [Cairn, Cairn, Cairn],
        [Etcd, Cairn, Cairn],
        [Cairn, Cairn, Etcd],
    ]
    .into_iter()
    .enumerate()
    {
        let to = folder.path().join(format!("initial{n}"));
        refused(&prepared, &to, kinds).await;
    }
}

/// The same questions to a member of each kind have the same answers, byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_answered_as_by_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (Member::new(Kind::Etcd, "a"), Member::new(Kind::Cairn, "b"));
    let cluster = [&a, &b];
    let mut servers = cluster.map(|member| member.launch(folder.path(), &cluster, "new"));
    servers.iter_mut().for_each(Server::wait_ready);
    for n in 0..10 {
        put(servers[0].url(), &format!("k{}", n % 3), "v").await;
    }
    let mut kv = KvClient::new(channel(servers[0].url()));
    let request = CompactionRequest {
        revision: 5,
        physical: true,
    };
    kv.compact(request).await.unwrap();
    let last = revision_of(servers[0].url()).await;
    for server in &servers {
        until("the last revision", async || {
            revision_of(server.url()).await >= last
        })
        .await;
        until("the hash of the compaction", async || {
            let mut client = MaintenanceClient::new(channel(server.url()));
            let hash = client.hash_kv(HashKvRequest { revision: 5 }).await;
            hash.unwrap().into_inner().compact_revision == -1
        })
        .await;
    }
    let id = status(servers[0].url()).await.header.unwrap().cluster_id;
    let own = format!("x-etcd-cluster-id: {id:x}");
    let both = |method, header: &str, body| cluster.map(|to| ask(to, method, header, body));
    for (header, body) in [
        (own.as_str(), "{}"),
        ("x-nothing: 1", "{}"),
        ("x-etcd-cluster-id: 1", "{}"),
        (&own, r#"{"revision":5}"#),
        (&own, r#"{"revision":4}"#),
        (&own, r#"{"revision":7,"more":1}"#),
        (&own, r#"{"revision":1000}"#),
        (&own, r#"{"revision":-1}"#),
        (&own, r#"{"revision":"7"}"#),
        (&own, "nothing"),
        (&own, ""),
    ] {
        let [etcd, cairn] = both("GET", header, body);
        assert_eq!(etcd, cairn, "{header} {body}");
    }
    let [etcd, cairn] = both("POST", &own, "{}");
    assert_eq!((etcd.status, cairn.status), (405, 405));
}

/// What tools can see of an answer.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: String,
}

/// Asks a member for its hash by hand: a GET with a body, as few clients make one.
fn ask(member: &Member, method: &str, header: &str, body: &str) -> Answer {
    let address = member.peer_url().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "{method} /members/hashkv HTTP/1.1\r\nhost: {address}\r\n{header}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let told = ["content-type:", "x-etcd-cluster-id:"];
    let mut headers: Vec<String> = lines
        .map(str::to_lowercase)
        .filter(|line| told.iter().any(|name| line.starts_with(name)))
        .collect();
    headers.sort();
    Answer {
        status: status.parse().unwrap(),
        headers,
        body: body.to_owned(),
    }
}

/// Members of both kinds, all checks, and everything that moves revisions and hashes: writes,
/// deletes, compactions, changes of the leader, a member that comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_well_raise_no_alarm() {
    let folder = tempfile::tempdir().unwrap();
    let flags = [
        "--corrupt-check-time=300ms",
        "--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true",
        "--compact-hash-check-time=300ms",
    ];
    let kinds = [Kind::Cairn, Kind::Etcd, Kind::Cairn];
    let members = NAMES
        .iter()
        .zip(kinds)
        .map(|(name, kind)| Member::new(kind, name).with_flags(flags.map(str::to_owned).to_vec()));
    let mut cluster = Cluster {
        folder: folder.path().to_owned(),
        members: members.collect(),
        servers: Vec::new(),
    };
    cluster.servers = (0..3).map(|member| cluster.launch(member)).collect();
    cluster.servers.iter_mut().for_each(Server::wait_ready);
    let urls: Vec<String> = (0..3).map(|n| cluster.url(n).to_owned()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (urls, stop, writes) = (urls.clone(), Arc::clone(&stop), Arc::clone(&writes));
            tokio::spawn(async move { write_and_delete(n, urls, &stop, &writes).await })
        })
        .collect();
    let checked = |server: &Server| {
        let log = server.log();
        log.contains("finished peer corruption check")
            && log.contains("successfully checked hash on whole cluster")
    };
    let began = Instant::now();
    for round in 0.. {
        if began.elapsed() > WATCHED && round >= 3 {
            break;
        }
        let leader = round % 3;
        cluster.lead(leader).await;
        until("checks by this leader", async || {
            // One that lost the lead checks nothing any more.
            cluster.lead(leader).await;
            checked(&cluster.servers[leader])
        })
        .await;
        if round == 1 {
            cluster.servers[2].kill();
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.servers[2].restart();
            assert!(
                cluster
                    .log(2)
                    .contains("initial corruption checking passed")
            );
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    for url in &urls {
        assert_eq!(alarms(url, AlarmAction::Get, 0).await, []);
    }
    let writes = writes.load(Ordering::Relaxed);
    assert!(writes > 200, "only {writes} writes");
    println!("{writes} writes in {:?}", began.elapsed());
}

async fn write_and_delete(writer: usize, urls: Vec<String>, stop: &AtomicBool, writes: &AtomicU64) {
    let clients: Vec<_> = urls.iter().map(|url| KvClient::new(channel(url))).collect();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut kv = clients[(writer + n / 50) % clients.len()].clone();
        let key = format!("{writer}/{}", n % 17);
        // Either may be lost with a member or a leader.
        let done = match n % 5 {
            4 => {
                let request = DeleteRangeRequest {
                    key: key.into(),
                    ..DeleteRangeRequest::default()
                };
                kv.delete_range(request).await.is_ok()
            }
            _ => {
                let request = PutRequest {
                    key: key.into(),
                    value: n.to_string().into(),
                    ..PutRequest::default()
                };
                match kv.put(request).await {
                    Ok(put) if writer == 0 && n % 20 == 0 => {
                        let request = CompactionRequest {
                            revision: put.into_inner().header.unwrap().revision,
                            physical: n % 40 == 0,
                        };
                        kv.compact(request).await.is_ok()
                    }
                    put => put.is_ok(),
                }
            }
        };
        writes.fetch_add(u64::from(done), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
