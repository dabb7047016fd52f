//! Histories that are compacted without anybody asking, beside real etcd.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use e2e::{Kind, Member, Server, client};
use proto::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tonic::Code;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A busy machine may elect another leader while it is looked at.
const ATTEMPTS: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const RETENTION: &str = "--auto-compaction-retention=1s";
/// Keys that are written, one revision each; an empty store has revision 1.
const WRITES: i64 = 20;

/// Where a store is compacted, as a watcher of all its history is told; 0 when it is not.
async fn compacted(url: &str) -> i64 {
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "a".into(),
            start_revision: 1,
            ..WatchCreateRequest::default()
        })),
    };
    let mut watch = WatchClient::new(client::channel(url));
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(request).await.unwrap();
    let requests_of = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut stream = watch.watch(requests_of).await.unwrap().into_inner();
    let created = stream.message().await.unwrap().unwrap();
    assert!(created.created && !created.canceled, "{created:?}");
    // The next one has either events, of the key that each store has, or the reason for none.
    let next = tokio::time::timeout(LIMIT, stream.message()).await;
    next.unwrap().unwrap().unwrap().compact_revision
}

async fn wait_compacted(url: &str, revision: i64) {
    let began = Instant::now();
    loop {
        let at = compacted(url).await;
        if at == revision {
            return;
        }
        assert!(began.elapsed() < LIMIT, "compacted at {at}, not {revision}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn write(url: &str) {
    for n in 0..WRITES {
        client::put(url, "a", &n.to_string()).await;
    }
}

/// What is older than the retention goes, what is current stays, and then nothing more happens.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_compacted_when_it_is_old_enough() {
    for kind in [Kind::Etcd, Kind::Cairn] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(kind, folder.path(), &[RETENTION]);
        write(server.url()).await;
        wait_compacted(server.url(), 1 + WRITES).await;
        let last = (WRITES - 1).to_string();
        let found = client::get(server.url(), "a", false).await;
        assert_eq!(found, Some(last), "{kind:?}");
        let old = RangeRequest {
            key: "a".into(),
            revision: WRITES,
            ..RangeRequest::default()
        };
        let mut kv = KvClient::new(client::channel(server.url()));
        let refused = kv.range(old).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{kind:?}: {refused}");
        let log = server.log();
        for line in [
            "starting auto periodic compaction",
            "completed auto periodic compaction",
        ] {
            assert!(log.contains(line), "{kind:?}: {line:?} is missing:\n{log}");
        }
    }
}

/// A member that does not lead notes revisions and compacts nothing.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_compacts() {
    for _ in 0..ATTEMPTS {
        if one_leader_compacts().await {
            return;
        }
    }
    panic!("each time the lead changed hands");
}

/// False when another member led meanwhile, so that nothing can be said.
async fn one_leader_compacts() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let flags = vec![RETENTION.to_owned()];
    let members = ["a", "b", "c"].map(|name| Member::new(Kind::Cairn, name));
    let members = members.map(|member| member.with_flags(flags.clone()));
    let cluster: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &cluster, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    for server in &mut servers {
        server.wait_ready();
    }
    let url = servers[0].url().to_owned();
    let before = client::status(&url).await;
    write(&url).await;
    for server in &servers {
        wait_compacted(server.url(), 1 + WRITES).await;
    }
    let mut compact = Vec::new();
    for server in &servers {
        let status = client::status(server.url()).await;
        if (status.leader, status.raft_term) != (before.leader, before.raft_term) {
            return false;
        }
        if server.log().contains("auto periodic compaction") {
            compact.push(status.header.unwrap().member_id);
        }
    }
    assert_eq!(compact, [before.leader]);
    true
}
