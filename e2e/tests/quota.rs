//! The quota and the alarms, beside etcd: who is refused what, in which words, and how one gets out
//! of it again.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use e2e::{
    Etcdctl, Kind, Member, Server,
    client::{channel, eventually, put},
    process::page,
    tool,
};
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberListRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest,
    WatchCreateRequest, WatchRequest, alarm_request::AlarmAction, cluster_client::ClusterClient,
    kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    request_op::Request, watch_client::WatchClient, watch_request::RequestUnion,
};
use tonic::transport::Channel;

/// Small enough to be reached soon, large enough for etcd's own pages.
const QUOTA: &str = "--quota-backend-bytes=8388608";
const VALUE: usize = 300 << 10;

fn start_both(folder: &Path, more: &[&str]) -> [Server; 2] {
    [(Kind::Cairn, "cairn"), (Kind::Etcd, "etcd")].map(|(kind, name)| {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        Server::start(kind, &folder, more)
    })
}

fn port(server: &Server) -> u16 {
    server.url().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// An answer in a word, or the code and text of a refusal.
fn word<T>(answer: Result<T, tonic::Status>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

fn range_request(key: &str, serializable: bool) -> RangeRequest {
    RangeRequest {
        key: key.to_owned().into(),
        serializable,
        ..RangeRequest::default()
    }
}

fn txn_of(request: Request) -> TxnRequest {
    TxnRequest {
        success: vec![RequestOp {
            request: Some(request),
        }],
        ..TxnRequest::default()
    }
}

/// What a member says to each kind of request, in a fixed order. `revision` is there to be
/// compacted.
async fn says(channel: &Channel, revision: i64, lease: i64) -> Vec<(&'static str, String)> {
    let mut kv = KvClient::new(channel.clone());
    let mut leases = LeaseClient::new(channel.clone());
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut cluster = ClusterClient::new(channel.clone());
    let mut said = Vec::new();
    let delete = DeleteRangeRequest {
        key: "nothing".into(),
        ..DeleteRangeRequest::default()
    };
    let read = Request::RequestRange(range_request("k", false));
    let read_here = Request::RequestRange(range_request("k", true));
    let write = Request::RequestPut(put_request("k", "v"));
    said.push(("put", word(kv.put(put_request("k", "v")).await)));
    said.push(("range", word(kv.range(range_request("k", false)).await)));
    said.push(("range here", word(kv.range(range_request("k", true)).await)));
    said.push(("delete", word(kv.delete_range(delete.clone()).await)));
    said.push(("txn put", word(kv.txn(txn_of(write)).await)));
    said.push(("txn range", word(kv.txn(txn_of(read)).await)));
    said.push(("txn range here", word(kv.txn(txn_of(read_here)).await)));
    let delete = Request::RequestDeleteRange(delete);
    said.push(("txn delete", word(kv.txn(txn_of(delete)).await)));
    said.push(("txn of nothing", word(kv.txn(TxnRequest::default()).await)));
    let compact = CompactionRequest {
        revision,
        physical: false,
    };
    said.push(("compact", word(kv.compact(compact).await)));
    let grant = LeaseGrantRequest {
        id: lease + 1,
        ttl: 100,
    };
    said.push(("grant", word(leases.lease_grant(grant).await)));
    let alive = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
    let alive = match leases.lease_keep_alive(alive).await {
        Ok(stream) => stream.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    said.push(("keep alive", word(alive)));
    let left = LeaseTimeToLiveRequest {
        id: lease,
        keys: true,
    };
    said.push(("time to live", word(leases.lease_time_to_live(left).await)));
    said.push((
        "leases",
        word(leases.lease_leases(LeaseLeasesRequest {}).await),
    ));
    let revoke = LeaseRevokeRequest { id: lease };
    said.push(("revoke", word(leases.lease_revoke(revoke).await)));
    let mut watch = WatchClient::new(channel.clone());
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "k".into(),
            ..WatchCreateRequest::default()
        })),
    };
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::once(create),
        tokio_stream::pending::<WatchRequest>(),
    );
    let created = match watch.watch(requests).await {
        Ok(stream) => stream.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    said.push(("watch", word(created)));
    for linearizable in [true, false] {
        let list = MemberListRequest { linearizable };
        said.push(("member list", word(cluster.member_list(list).await)));
    }
    let get = AlarmRequest::default();
    said.push(("alarms", word(maintenance.alarm(get).await)));
    said.push(("status", word(maintenance.status(StatusRequest {}).await)));
    let hash = HashKvRequest { revision: 0 };
    said.push(("hash", word(maintenance.hash_kv(hash).await)));
    let move_leader = MoveLeaderRequest { target_id: 1 };
    let moved = maintenance.move_leader(move_leader).await;
    said.push(("move leader", word(moved)));
    let defragmented = maintenance.defragment(DefragmentRequest {}).await;
    said.push(("defragment", word(defragmented)));
    said
}

fn assert_same(cairn: &[(&str, String)], etcd: &[(&str, String)]) {
    for (cairn, etcd) in cairn.iter().zip(etcd) {
        assert_eq!(cairn, etcd, "cairn left, etcd right");
    }
    assert_eq!(cairn.len(), etcd.len());
}

/// Pages of both, whatever the order of their lines.
fn assert_same_pages(servers: &[Server; 2], paths: &[&str]) {
    for path in paths {
        // The order of etcd's checks is chance.
        let [cairn, etcd] = [0, 1].map(|at| {
            let (status, text) = page(port(&servers[at]), path).unwrap();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            (status, lines)
        });
        assert_eq!(cairn, etcd, "{path}");
    }
}

const PAGES: &[&str] = &[
    "/health",
    "/health?exclude=NOSPACE",
    "/health?exclude=NOSPACE&exclude=CORRUPT",
    "/health?serializable=true",
    "/readyz",
    "/readyz?verbose",
    "/readyz?exclude=data_corruption",
    "/livez?verbose",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_says_what_etcds_says_and_is_made_room_in() {
    let folder = tempfile::tempdir().unwrap();
    let servers = start_both(folder.path(), &[QUOTA]);
    let binary = tool("etcdctl");
    let etcdctl = [0, 1].map(|at| Etcdctl::new(&binary, servers[at].url()));
    let run = |at: usize, arguments: &[&str]| etcdctl[at].masked(&etcdctl[at].run(arguments));
    let same = |arguments: &[&str]| {
        let [cairn, etcd] = [0, 1].map(|at| run(at, arguments));
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}");
        cairn
    };
    let value = "v".repeat(VALUE);
    let mut revisions = [0; 2];
    for (at, server) in servers.iter().enumerate() {
        let mut kv = KvClient::new(channel(server.url()));
        let lease = LeaseGrantRequest { id: 70, ttl: 3600 };
        let mut leases = LeaseClient::new(channel(server.url()));
        leases.lease_grant(lease).await.unwrap();
        let mut written = 0;
        let refusal = loop {
            match kv.put(put_request(&format!("k{written}"), &value)).await {
                Ok(_) => written += 1,
                Err(refusal) => break refusal,
            }
            assert!(written < 100, "no quota");
        };
        assert_eq!(
            word::<()>(Err(refusal)),
            "ResourceExhausted: etcdserver: mvcc: database space exceeded"
        );
        assert!(written > 8, "full after {written}");
        // What was refused is not there.
        let missing = kv.range(range_request(&format!("k{written}"), false)).await;
        assert_eq!(missing.unwrap().into_inner().count, 0);
        revisions[at] = 1 + written;
    }
    assert_eq!(
        same(&["alarm", "list"]).output.trim(),
        "memberID:ID alarm:NOSPACE"
    );
    same(&["put", "x", "y"]);
    same(&["get", "k1", "--keys-only"]);
    same(&["endpoint", "health"]);
    same(&["lease", "grant", "100"]);
    let errors = [0, 1].map(|at| {
        let status = run(at, &["endpoint", "status"]).output;
        let of = status.split(", ").nth(13).map(str::to_owned);
        of.unwrap_or_default()
    });
    assert_eq!(errors[0], errors[1]);
    assert!(errors[0].contains("alarm:NOSPACE"), "{errors:?}");
    let mut said = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        said.push(says(&channel(server.url()), revisions[at] - 2, 70).await);
    }
    assert_same(&said[0], &said[1]);
    assert_same_pages(&servers, PAGES);

    // Out of it: delete, compact, defragment, disarm.
    for (at, server) in servers.iter().enumerate() {
        for n in 0..revisions[at] - 1 {
            let delete = DeleteRangeRequest {
                key: format!("k{n}").into(),
                ..DeleteRangeRequest::default()
            };
            let mut kv = KvClient::new(channel(server.url()));
            kv.delete_range(delete).await.unwrap();
        }
        let mut maintenance = MaintenanceClient::new(channel(server.url()));
        let status = maintenance.status(StatusRequest {}).await.unwrap();
        let status = status.into_inner();
        let revision = status.header.unwrap().revision;
        let full = status.db_size;
        let compacted = etcdctl[at].run(&["compaction", "--physical", &revision.to_string()]);
        assert_eq!(compacted.code, 0, "{}", compacted.errors);
        maintenance.defragment(DefragmentRequest {}).await.unwrap();
        let status = maintenance.status(StatusRequest {}).await.unwrap();
        let now = status.into_inner().db_size;
        assert!(now < full / 4, "{now} of {full} bytes are left");
    }
    // The alarm stays until it is disarmed.
    same(&["put", "x", "y"]);
    same(&["alarm", "disarm"]);
    same(&["alarm", "disarm"]);
    same(&["alarm", "list"]);
    same(&["put", "x", "y"]);
    same(&["endpoint", "health"]);
    for server in &servers {
        put(server.url(), "large", &value).await;
    }
    assert_same_pages(&servers, PAGES);
}

/// One alarm request; what comes back.
async fn alarm(
    server: &Server,
    action: AlarmAction,
    member_id: u64,
    alarm: AlarmType,
) -> Vec<AlarmMember> {
    let mut client = MaintenanceClient::new(channel(server.url()));
    let request = AlarmRequest {
        action: action as i32,
        member_id,
        alarm: alarm as i32,
    };
    let mut alarms = client.alarm(request).await.unwrap().into_inner().alarms;
    alarms.sort_by_key(|alarm| (alarm.member_id, alarm.alarm));
    alarms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_by_hand_do_what_etcds_do() {
    use AlarmAction::{Activate, Deactivate, Get};
    use AlarmType::{Corrupt, None, Nospace};
    let folder = tempfile::tempdir().unwrap();
    let servers = start_both(folder.path(), &[]);
    for server in &servers {
        let lease = LeaseGrantRequest { id: 70, ttl: 3600 };
        let mut leases = LeaseClient::new(channel(server.url()));
        leases.lease_grant(lease).await.unwrap();
        put(server.url(), "k", "v").await;
        put(server.url(), "k", "w").await;
    }
    let steps = [
        (Get, 0, None),
        (Activate, 7, Nospace),
        (Activate, 7, Nospace),
        (Activate, 8, Nospace),
        (Get, 0, None),
        (Get, 7, None),
        (Get, 0, Nospace),
        (Get, 0, Corrupt),
        (Deactivate, 7, Corrupt),
        (Deactivate, 9, Nospace),
        (Deactivate, 7, Nospace),
        (Get, 0, None),
        (Deactivate, 8, Nospace),
        (Deactivate, 8, Nospace),
        (Activate, 7, None),
        (Get, 0, None),
        (Deactivate, 7, None),
    ];
    for (action, member, kind) in steps {
        let cairn = alarm(&servers[0], action, member, kind).await;
        let etcd = alarm(&servers[1], action, member, kind).await;
        assert_eq!(cairn, etcd, "{action:?} {member} {kind:?}");
    }
    assert_same_pages(&servers, PAGES);
    // A raised alarm outlives a restart, and refuses what etcd's refuses.
    let mut servers = servers;
    for kind in [Nospace, Corrupt] {
        for server in &mut servers {
            alarm(server, Activate, 5, kind).await;
            server.kill();
            server.restart();
        }
        let mut said = Vec::new();
        for server in &servers {
            said.push(says(&channel(server.url()), 2, 70).await);
        }
        assert_same(&said[0], &said[1]);
        let put = said[0][0].1.as_str();
        match kind {
            Corrupt => assert_eq!(put, "DataLoss: etcdserver: corrupt cluster"),
            _ => assert_eq!(
                put,
                "ResourceExhausted: etcdserver: mvcc: database space exceeded"
            ),
        }
        assert_same_pages(&servers, PAGES);
        for server in &servers {
            alarm(server, Deactivate, 5, kind).await;
            // The revoke of the round before may have been carried out.
            let lease = LeaseGrantRequest { id: 70, ttl: 3600 };
            let mut leases = LeaseClient::new(channel(server.url()));
            let _ = leases.lease_grant(lease).await;
        }
    }
    for server in &servers {
        put(server.url(), "k", "free again").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_answers_and_refuses_what_etcds_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let mut pages = Vec::new();
    for (kind, one, two) in [(Kind::Cairn, "a", "b"), (Kind::Etcd, "c", "d")] {
        let (first, second) = (Member::new(kind, one), Member::new(kind, two));
        let mut voter = first.launch(folder.path(), &[&first], "new");
        voter.wait_ready();
        put(voter.url(), "k", "v").await;
        let lease = LeaseGrantRequest { id: 70, ttl: 3600 };
        let mut leases = LeaseClient::new(channel(voter.url()));
        leases.lease_grant(lease).await.unwrap();
        let mut cluster = ClusterClient::new(channel(voter.url()));
        let add = MemberAddRequest {
            peer_ur_ls: vec![second.peer_url().to_owned()],
            is_learner: true,
        };
        eventually("add", async || cluster.member_add(add.clone()).await).await;
        let mut learner = second.launch(folder.path(), &[&first, &second], "existing");
        learner.wait_ready();
        let mut maintenance = MaintenanceClient::new(channel(learner.url()));
        let status = maintenance.status(StatusRequest {}).await.unwrap();
        assert!(status.into_inner().is_learner);
        said.push(says(&channel(learner.url()), 2, 70).await);
        pages.push(
            ["/health", "/health?serializable=true", "/readyz", "/livez"]
                .map(|path| sorted(page(port(&learner), path).unwrap())),
        );
    }
    assert_same(&said[0], &said[1]);
    assert_eq!(pages[0], pages[1], "cairn left, etcd right");
}

/// etcd lists its checks in the order of a map, which changes.
fn sorted((status, body): (u16, String)) -> (u16, Vec<String>) {
    let mut lines: Vec<String> = body.lines().map(str::to_owned).collect();
    lines.sort();
    (status, lines)
}
