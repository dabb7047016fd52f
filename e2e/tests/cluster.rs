//! Clusters: kills in turns under load, members that come and go, and Cairn among real etcds.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Server,
    client::{LIMIT, agree, channel, eventually, get, grow, lead, leader, put, short, shrink},
};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MemberListRequest,
    PutRequest, RangeRequest, cluster_client::ClusterClient, kv_client::KvClient,
    lease_client::LeaseClient,
};
use tonic::transport::Channel;

/// Kills in the gate.
const KILLS: usize = 30;
/// How long one call may take before a writer turns to another member.
const CALL: Duration = Duration::from_secs(2);
/// Writers, each with a key of its own for each number that it writes.
const WRITERS: usize = 6;

/// What was acknowledged: key to revision.
type Book = Arc<Mutex<HashMap<String, i64>>>;

/// Writes keys once each, at whichever member answers.
async fn write(writer: usize, urls: Vec<String>, book: Book, stop: Arc<AtomicBool>) {
    let clients: Vec<Channel> = urls.iter().map(|url| channel(url)).collect();
    let mut at = writer;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("w{writer}/{number}");
        let mut kv = KvClient::new(clients[at % clients.len()].clone());
        let request = PutRequest {
            key: key.clone().into(),
            value: key.clone().into(),
            ..PutRequest::default()
        };
        match tokio::time::timeout(CALL, kv.put(request)).await {
            Ok(Ok(response)) => {
                let revision = response.into_inner().header.unwrap().revision;
                book.lock().unwrap().insert(key, revision);
            }
            // Nothing is known of this one; the next goes elsewhere.
            _ => at += 1,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_lose_nothing_to_kills_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    // The log is shortened all the time, so that some are brought up to date by snapshots.
    let members =
        ["a", "b", "c"].map(|name| Member::new(Kind::Cairn, name).with_flags(short(Kind::Cairn)));
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    let urls: Vec<String> = servers
        .iter()
        .map(|server| server.url().to_owned())
        .collect();
    let (book, stop) = (Book::default(), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|n| tokio::spawn(write(n, urls.clone(), Arc::clone(&book), Arc::clone(&stop))))
        .collect();
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let server = &mut servers[kill % 3];
        server.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Ready means that a leader was found and the member's own entry applied.
        server.restart();
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    agree(&urls).await;
    let mut kv = KvClient::new(channel(urls[0]));
    let request = RangeRequest {
        key: "w".into(),
        range_end: "x".into(),
        ..RangeRequest::default()
    };
    let found = eventually("read", async || kv.range(request.clone()).await).await;
    let found: HashMap<String, i64> = found
        .into_inner()
        .kvs
        .into_iter()
        .map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision))
        .collect();
    let book = book.lock().unwrap();
    for (key, revision) in book.iter() {
        assert_eq!(found.get(key), Some(revision), "{key}");
    }
    assert!(book.len() > KILLS * 10, "only {} writes", book.len());
    println!(
        "{KILLS} kills, {} acknowledged writes, none lost",
        book.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (Member::new(Kind::Cairn, "a"), Member::new(Kind::Cairn, "b"));
    let mut first = a.launch(folder.path(), &[&a], "new");
    first.wait_ready();
    put(first.url(), "before", "1").await;
    let (id, mut second) = grow(first.url(), &b, &[&a, &b], folder.path()).await;
    assert_eq!(
        get(second.url(), "before", false).await.as_deref(),
        Some("1")
    );
    put(second.url(), "through the second", "2").await;
    assert_eq!(
        get(first.url(), "through the second", false)
            .await
            .as_deref(),
        Some("2")
    );
    agree(&[first.url(), second.url()]).await;

    // The leader leaves and the other leads at once.
    if leader(first.url()).await != id {
        lead(first.url(), id).await;
    }
    assert_eq!(leader(first.url()).await, id);
    shrink(first.url(), id).await;
    put(first.url(), "alone again", "3").await;
    // A removed member ends by itself and does not come back.
    let began = Instant::now();
    while !second.log().contains("permanently removed") {
        assert!(began.elapsed() < LIMIT, "{}", second.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    second.kill();
    let mut client = ClusterClient::new(channel(first.url()));
    let list = MemberListRequest { linearizable: true };
    let members = eventually("list", async || client.member_list(list).await).await;
    assert_eq!(members.into_inner().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_joins_leads_and_replaces_real_etcds() {
    let folder = tempfile::tempdir().unwrap();
    let old = Member::new(Kind::Etcd, "old");
    let new = Member::new(Kind::Cairn, "new");
    let mut etcd = old.launch(folder.path(), &[&old], "new");
    etcd.wait_ready();
    let etcd_id = leader(etcd.url()).await;
    for n in 0..50 {
        put(etcd.url(), &format!("k{}", n % 20), &n.to_string()).await;
    }
    let (cairn_id, cairn) = grow(etcd.url(), &new, &[&old, &new], folder.path()).await;
    assert_eq!(get(cairn.url(), "k19", false).await.as_deref(), Some("39"));
    put(cairn.url(), "through cairn", "1").await;
    agree(&[etcd.url(), cairn.url()]).await;

    // Cairn leads an etcd: reads, writes and leases through the follower.
    lead(etcd.url(), cairn_id).await;
    assert_eq!(leader(etcd.url()).await, cairn_id);
    put(etcd.url(), "through etcd", "2").await;
    assert_eq!(
        get(etcd.url(), "through etcd", false).await.as_deref(),
        Some("2")
    );
    let mut lease = LeaseClient::new(channel(etcd.url()));
    // The follower may know of a lease before the leader has applied it, who is asked at once.
    for id in 7..107 {
        let grant = LeaseGrantRequest { id, ttl: 600 };
        eventually("grant", async || lease.lease_grant(grant).await).await;
        let alive = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut alive = lease.lease_keep_alive(alive).await.unwrap().into_inner();
        assert_eq!(alive.message().await.unwrap().unwrap().ttl, 600, "{id}");
    }
    let ask = LeaseTimeToLiveRequest { id: 7, keys: true };
    let left = lease.lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!(left.granted_ttl, 600);
    agree(&[etcd.url(), cairn.url()]).await;

    // A second Cairn, so that the etcd can go.
    let third = Member::new(Kind::Cairn, "third");
    let (_, second) = grow(cairn.url(), &third, &[&old, &new, &third], folder.path()).await;
    agree(&[etcd.url(), cairn.url(), second.url()]).await;
    shrink(cairn.url(), etcd_id).await;
    etcd.kill();
    put(second.url(), "without etcd", "3").await;
    assert_eq!(
        get(cairn.url(), "without etcd", false).await.as_deref(),
        Some("3")
    );
    assert_eq!(get(second.url(), "k19", false).await.as_deref(), Some("39"));
    agree(&[cairn.url(), second.url()]).await;
}

/// Each kind brings the other up to date by a snapshot: a Cairn that joins behind what an etcd's log
/// still has, and an etcd that joins, or comes back, behind what a Cairn's has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_both_ways_between_etcd_and_cairn() {
    let folder = tempfile::tempdir().unwrap();
    let member = |kind, name: &str| Member::new(kind, name).with_flags(short(kind));
    let old = member(Kind::Etcd, "old");
    let mut etcd = old.launch(folder.path(), &[&old], "new");
    etcd.wait_ready();
    let value = "v".repeat(3000);
    for n in 0..120 {
        put(etcd.url(), &format!("k{}", n % 30), &format!("{n}{value}")).await;
    }
    let mut lease = LeaseClient::new(channel(etcd.url()));
    let grant = LeaseGrantRequest { id: 77, ttl: 6000 };
    eventually("grant", async || lease.lease_grant(grant).await).await;
    let attached = PutRequest {
        key: "leased".into(),
        lease: 77,
        ..PutRequest::default()
    };
    let mut kv = KvClient::new(channel(etcd.url()));
    eventually("put", async || kv.put(attached.clone()).await).await;

    let new = member(Kind::Cairn, "new");
    let (cairn_id, cairn) = grow(etcd.url(), &new, &[&old, &new], folder.path()).await;
    assert!(cairn.log().contains("applied snapshot"), "{}", cairn.log());
    agree(&[etcd.url(), cairn.url()]).await;
    let mut lease = LeaseClient::new(channel(cairn.url()));
    let ask = LeaseTimeToLiveRequest { id: 77, keys: true };
    let left = eventually("lease", async || lease.lease_time_to_live(ask).await).await;
    assert_eq!(left.into_inner().keys, ["leased"]);

    // Now the Cairn leads, shortens its log, and an etcd joins.
    lead(etcd.url(), cairn_id).await;
    assert_eq!(leader(cairn.url()).await, cairn_id);
    for n in 0..300 {
        put(cairn.url(), &format!("k{}", n % 40), &format!("{n}{value}")).await;
    }
    let began = Instant::now();
    while !cairn.log().contains("compacted Raft logs") {
        assert!(began.elapsed() < LIMIT, "{}", cairn.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let third = member(Kind::Etcd, "third");
    let all = [&old, &new, &third];
    let (_, mut joined) = grow(cairn.url(), &third, &all, folder.path()).await;
    assert!(cairn.log().contains("sent a snapshot"), "{}", cairn.log());
    assert!(
        joined.log().contains("applied snapshot"),
        "{}",
        joined.log()
    );
    agree(&[etcd.url(), cairn.url(), joined.url()]).await;
    // What it got is good for more than this run.
    joined.kill();
    put(cairn.url(), "while it is away", "1").await;
    joined.restart();
    agree(&[etcd.url(), cairn.url(), joined.url()]).await;
    etcd.kill();
    put(joined.url(), "without the first", "1").await;
    etcd.restart();
    agree(&[etcd.url(), cairn.url(), joined.url()]).await;
}
