//! `/metrics` beside etcd's: the same names, types, labels and buckets, and after the same requests
//! the same counts. What is missing stands here with its reason.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use e2e::{
    Kind, Member, Server,
    client::{channel, eventually, get, short},
    process::page,
};
use proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseRevokeRequest, MemberAddRequest, PutRequest, RangeRequest,
    RequestOp, StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest,
    cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, request_op::Request, watch_client::WatchClient,
    watch_request::RequestUnion,
};

/// Prefixes of etcd's metrics that Cairn does not have, and why.
const MISSING: &[(&str, &str)] = &[
    (
        "go_",
        "there is no Go runtime here, and a made-up value would mislead",
    ),
    ("promhttp_", "of Go's metrics library"),
    (
        "etcd_grpc_proxy_",
        "of etcd's proxy, which is another program",
    ),
    (
        "etcd_debugging_store_",
        "of the v2 store, which is gone; always 0 in etcd",
    ),
    (
        "etcd_debugging_disk_backend_commit_",
        "phases of a commit of bbolt",
    ),
    ("etcd_debugging_snap_", "no .snap file is written"),
    ("etcd_snap_fsync_", "no .snap file is written"),
    (
        "etcd_debugging_mvcc_index_compaction_",
        "there is no index in memory that a compaction would stop",
    ),
    (
        "etcd_debugging_server_watch_send_loop_",
        "there is no such loop: streams take encoded responses from the hub",
    ),
    (
        "etcd_mvcc_db_open_read_transactions",
        "readers hold snapshots, which nobody counts or waits for",
    ),
    (
        "etcd_mvcc_hash_duration_seconds",
        "the call Hash is not there yet",
    ),
    (
        "etcd_network_server_stream_failures_total",
        "appears in etcd with its first failure",
    ),
    (
        "etcd_server_apply_duration_seconds",
        "entries are applied in batches, by code that knows no clock",
    ),
    ("etcd_server_go_version", "there is no Go here"),
    (
        "etcd_server_heartbeat_send_failures_total",
        "raft's clock runs on a thread of its own, and no disk holds it up",
    ),
];

/// Counters that must be equal after the same requests. `grpc_server_msg_*` are not: Go's library
/// also counts the receive that finds the end of a stream, and an answer that is an error.
const EQUAL: &[&str] = &[
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_ttl_total",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_db_compaction_keys_total",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_txn_total",
    "etcd_server_feature_enabled",
    "etcd_server_has_leader",
    "etcd_server_health_failures",
    "etcd_server_health_success",
    "etcd_server_healthcheck",
    "etcd_server_healthchecks_total",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_quota_backend_bytes",
    "grpc_server_handled_total",
    "grpc_server_started_total",
];

/// What etcd shows only once it has happened, by chance also here.
const LATE: &[&str] = &[
    "etcd_network_disconnected_peers_total",
    "etcd_network_peer_sent_failures_total",
];

/// What must have been compared, since it appears only when it has happened.
const HAPPENED: &[&str] = &[
    "etcd_network_peer_round_trip_time_seconds",
    "etcd_network_snapshot_receive_inflights_total",
    "etcd_network_snapshot_receive_success",
    "etcd_network_snapshot_receive_total_duration_seconds",
    "etcd_network_snapshot_send_inflights_total",
    "etcd_network_snapshot_send_success",
    "etcd_network_snapshot_send_total_duration_seconds",
];

/// One family: its type, and its values by their labels.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    values: BTreeMap<String, f64>,
}

impl Family {
    /// The names of labels that occur, with the bounds of buckets.
    fn shape(&self) -> BTreeSet<String> {
        let mut shape = BTreeSet::new();
        for labels in self.values.keys() {
            for pair in labels.split(',').filter(|pair| !pair.is_empty()) {
                let (name, _) = pair.split_once('=').unwrap();
                shape.insert(match name {
                    "le" => pair.to_owned(),
                    name => name.to_owned(),
                });
            }
        }
        shape
    }
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            current = name.to_owned();
            let family = families.entry(current.clone()).or_default();
            assert_eq!(family.kind, "", "{name} is declared twice");
            family.kind = kind.to_owned();
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.trim_end_matches('}')),
            None => (series, ""),
        };
        assert!(name.starts_with(&current), "{line} is not of {current}");
        let mut labels: Vec<&str> = labels.split(',').filter(|of| !of.is_empty()).collect();
        labels.sort_unstable();
        // A histogram's parts are told apart by their names' ends.
        let part = &name[current.len()..];
        let labels = match part {
            "" | "_bucket" => labels.join(","),
            part => format!("part={part},{}", labels.join(",")),
        };
        let family = families.get_mut(&current).unwrap();
        assert_eq!(family.values.insert(labels, value), None, "{line} twice");
    }
    families
}

fn port(server: &Server) -> u16 {
    server.url().rsplit_once(':').unwrap().1.parse().unwrap()
}

fn put_request(key: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: "value".into(),
        ..PutRequest::default()
    }
}

/// One of everything that is counted.
async fn use_it(url: &str) {
    let channel = channel(url);
    let mut kv = KvClient::new(channel.clone());
    for n in 0..20 {
        kv.put(put_request(&format!("k{}", n % 7))).await.unwrap();
    }
    let op = |request| RequestOp {
        request: Some(request),
    };
    let range = RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..RangeRequest::default()
    };
    let delete = DeleteRangeRequest {
        key: "k1".into(),
        ..DeleteRangeRequest::default()
    };
    let txn = TxnRequest {
        success: vec![
            op(Request::RequestPut(put_request("t1"))),
            op(Request::RequestPut(put_request("t2"))),
            op(Request::RequestRange(range.clone())),
        ],
        ..TxnRequest::default()
    };
    kv.txn(txn).await.unwrap();
    let single = TxnRequest {
        success: vec![op(Request::RequestPut(put_request("t3")))],
        ..TxnRequest::default()
    };
    kv.txn(single).await.unwrap();
    kv.delete_range(delete.clone()).await.unwrap();
    kv.delete_range(delete).await.unwrap();
    kv.range(range).await.unwrap();
    kv.range(RangeRequest::default()).await.unwrap_err();
    let compact = CompactionRequest {
        revision: 15,
        physical: true,
    };
    kv.compact(compact).await.unwrap();
    kv.compact(compact).await.unwrap_err();

    let mut leases = LeaseClient::new(channel.clone());
    for (id, ttl) in [(71, 60), (72, 5000)] {
        let grant = LeaseGrantRequest { id, ttl };
        leases.lease_grant(grant).await.unwrap();
    }
    let mut leased = put_request("leased");
    leased.lease = 71;
    kv.put(leased).await.unwrap();
    let alive = tokio_stream::once(LeaseKeepAliveRequest { id: 72 });
    let mut alive = leases.lease_keep_alive(alive).await.unwrap().into_inner();
    while alive.message().await.unwrap().is_some() {}
    let revoke = LeaseRevokeRequest { id: 71 };
    leases.lease_revoke(revoke).await.unwrap();
    leases.lease_revoke(revoke).await.unwrap_err();

    let mut maintenance = MaintenanceClient::new(channel.clone());
    maintenance.status(StatusRequest {}).await.unwrap();
    let hash = HashKvRequest { revision: 0 };
    maintenance.hash_kv(hash).await.unwrap();
    maintenance.defragment(DefragmentRequest {}).await.unwrap();
}

/// A watch whose client goes away with its connection: with all its tasks.
fn watch_and_leave(url: &str) {
    let url = url.to_owned();
    let client = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(watch_once(&url));
    });
    client.join().unwrap();
}

async fn watch_once(url: &str) {
    let mut watch = WatchClient::new(channel(url));
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "k2".into(),
            start_revision: 16,
            ..WatchCreateRequest::default()
        })),
    };
    let requests = tokio_stream::StreamExt::chain(
        tokio_stream::once(create),
        tokio_stream::pending::<WatchRequest>(),
    );
    let mut responses = watch.watch(requests).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
}

/// The metrics of a leader with a learner beside it, after the same requests.
async fn metrics_of(kind: Kind, names: [&str; 2]) -> BTreeMap<String, Family> {
    let folder = tempfile::tempdir().unwrap();
    let members = names.map(|name| Member::new(kind, name).with_flags(short(kind)));
    let mut first = members[0].launch(folder.path(), &[&members[0]], "new");
    first.wait_ready();
    use_it(first.url()).await;
    // The second one is to come in by a snapshot.
    let mut kv = KvClient::new(channel(first.url()));
    for n in 0..80 {
        let mut put = put_request(&format!("long{n}"));
        put.value = vec![b'v'; 3000].into();
        kv.put(put).await.unwrap();
    }
    eventually("a shorter log", async || {
        let log = first.log();
        (log.contains("compacted Raft logs") || log.contains("saved snapshot"))
            .then_some(())
            .ok_or(log)
    })
    .await;
    watch_and_leave(first.url());
    for path in ["/health", "/readyz", "/readyz/non_learner", "/livez"] {
        assert_eq!(page(port(&first), path).unwrap().0, 200, "{path}");
    }
    let mut cluster = ClusterClient::new(channel(first.url()));
    let add = MemberAddRequest {
        peer_ur_ls: vec![members[1].peer_url().to_owned()],
        is_learner: true,
    };
    cluster.member_add(add).await.unwrap();
    let mut second = members[1].launch(folder.path(), &[&members[0], &members[1]], "existing");
    second.wait_ready();
    assert!(get(second.url(), "k2", true).await.is_some());
    // The end of the watch is heard of, and the streams between the two are there.
    let canceled = "grpc_server_handled_total{grpc_code=\"Canceled\",grpc_method=\"Watch\",\
                    grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1";
    eventually("canceled", async || {
        let (_, text) = page(port(&first), "/metrics").unwrap();
        let active = text
            .lines()
            .any(|line| line.starts_with("etcd_network_active_peers{") && line.ends_with(" 1"));
        let sent = text.contains("etcd_network_peer_received_bytes_total{");
        let probed = text.contains("etcd_network_peer_round_trip_time_seconds_count{");
        match active && sent && probed && text.contains(canceled) {
            true => Ok(()),
            false => Err(text),
        }
    })
    .await;
    let (status, text) = page(port(&first), "/metrics").unwrap();
    assert_eq!(status, 200);
    let mut families = parse(&text);
    // What only who receives a snapshot has.
    let (_, text) = page(port(&second), "/metrics").unwrap();
    for (name, family) in parse(&text) {
        families.entry(name).or_insert(family);
    }
    families
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_types_labels_and_counts_are_etcds() {
    let cairn = metrics_of(Kind::Cairn, ["a", "b"]).await;
    let etcd = metrics_of(Kind::Etcd, ["c", "d"]).await;
    let mut wrong = Vec::new();
    let mut compared = 0;
    let excused = |name: &str| MISSING.iter().any(|(prefix, _)| name.starts_with(prefix));
    for (name, theirs) in &etcd {
        let Some(ours) = cairn.get(name) else {
            if !excused(name) {
                wrong.push(format!("{name} is missing"));
            }
            continue;
        };
        compared += 1;
        if excused(name) {
            wrong.push(format!("{name} is there, and in the table of what is not"));
        }
        if ours.kind != theirs.kind {
            wrong.push(format!("{name} is a {}, not a {}", ours.kind, theirs.kind));
        }
        let (shape, wanted) = (ours.shape(), theirs.shape());
        if shape != wanted {
            wrong.push(format!("{name} has {shape:?}, not {wanted:?}"));
        }
        if EQUAL.contains(&name.as_str()) {
            let ours = counts(&ours.values);
            let theirs = counts(&theirs.values);
            if ours != theirs {
                let differ: Vec<_> = ours
                    .iter()
                    .filter(|(key, value)| theirs.get(*key) != Some(value))
                    .chain(theirs.iter().filter(|(key, _)| !ours.contains_key(*key)))
                    .collect();
                let of = |key: &String| (ours.get(key).copied(), theirs.get(key).copied());
                let differ: Vec<_> = differ.iter().map(|(key, _)| (key, of(key))).collect();
                wrong.push(format!("{name}: {differ:?} (cairn, etcd)"));
            }
        }
    }
    for name in HAPPENED {
        if !etcd.contains_key(*name) || !cairn.contains_key(*name) {
            wrong.push(format!("{name} was not compared"));
        }
    }
    for name in cairn.keys() {
        let etcds = ["etcd_", "grpc_", "os_", "go_", "process_"];
        let etcds = etcds.iter().any(|prefix| name.starts_with(prefix));
        if etcds && !etcd.contains_key(name) && !LATE.contains(&name.as_str()) {
            wrong.push(format!("{name} is none of etcd's"));
        }
    }
    for (prefix, _) in MISSING {
        let seen = etcd.keys().any(|name| name.starts_with(prefix));
        let late = ["etcd_network_", "etcd_server_go_version"];
        if !seen && !late.iter().any(|late| prefix.starts_with(late)) {
            wrong.push(format!("etcd has no {prefix} either: its row can go"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 70, "only {compared} families were compared");
    println!("{compared} families of metrics are etcd's");
}

/// Values that are not 0: which of the others are shown is chance.
fn counts(values: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let counted = values.iter().filter(|(_, value)| **value != 0.0);
    counted.map(|(key, value)| (key.clone(), *value)).collect()
}
