//! kill -9 under load: nothing that was acknowledged is lost, nothing is invented, and the hashes
//! before and after agree.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use e2e::{Kind, Server};
use proto::etcdserverpb::{
    CompactionRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest, PutRequest,
    RangeRequest, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::transport::{Channel, Endpoint};

/// Kills in the gate.
const KILLS: u64 = 30;
/// Writers, each with keys of its own.
const WRITERS: u64 = 8;
/// Keys of one writer.
const KEYS: u64 = 20;

/// What a writer knows of one key: the last value that was acknowledged, and those that were sent
/// after it and of which nothing is known.
#[derive(Clone, Debug, Default)]
struct Known {
    acknowledged: u64,
    revision: i64,
    sent: u64,
}

type Book = Arc<Mutex<HashMap<String, Known>>>;

async fn connect(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    endpoint.connect().await.unwrap()
}

/// Puts rising numbers until the server is gone.
async fn write(channel: Channel, writer: u64, seed: u64, book: Book) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed ^ writer << 32);
    let mut client = KvClient::new(channel);
    let mut acknowledged = 0;
    loop {
        let key = format!("w{writer}/{}", rng.random_range(0..KEYS));
        let value = {
            let mut book = book.lock().unwrap();
            let known = book.entry(key.clone()).or_default();
            known.sent += 1;
            known.sent
        };
        let put = client.put(PutRequest {
            key: key.clone().into(),
            value: value.to_string().into(),
            ..PutRequest::default()
        });
        let Ok(response) = put.await else {
            return acknowledged;
        };
        acknowledged += 1;
        let revision = response.into_inner().header.unwrap().revision;
        let mut book = book.lock().unwrap();
        let known = book.get_mut(&key).unwrap();
        known.acknowledged = value;
        known.revision = revision;
    }
}

/// Every key has its last acknowledged value, or one that was sent after it.
async fn check(channel: Channel, book: &Book) {
    let mut client = KvClient::new(channel);
    let all = client.range(RangeRequest {
        key: "w".into(),
        range_end: "x".into(),
        ..RangeRequest::default()
    });
    let found: HashMap<String, (u64, i64)> = all
        .await
        .unwrap()
        .into_inner()
        .kvs
        .into_iter()
        .map(|kv| {
            let key = String::from_utf8(kv.key.to_vec()).unwrap();
            let value = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
            (key, (value, kv.mod_revision))
        })
        .collect();
    let mut book = book.lock().unwrap();
    for (key, known) in book.iter_mut() {
        let (value, revision) = found.get(key).copied().unwrap_or_default();
        assert!(
            value >= known.acknowledged && value <= known.sent,
            "{key}: {value} is there, {known:?}"
        );
        if value == known.acknowledged && value != 0 {
            assert_eq!(revision, known.revision, "{key}");
        }
        // What is there now was committed, and stays.
        known.acknowledged = value;
        known.revision = revision;
    }
    for key in found.keys() {
        assert!(book.contains_key(key), "{key} was never written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(Kind::Cairn, folder.path(), &[]);
    let book = Book::default();
    let mut acknowledged = 0;
    let mut leases = 0;
    for kill in 0..KILLS {
        let channel = connect(server.url()).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(channel.clone(), writer, kill, Arc::clone(&book))))
            .collect();
        let mut rng = StdRng::seed_from_u64(kill);
        let mut lease = LeaseClient::new(channel.clone());
        let grant = LeaseGrantRequest {
            id: kill as i64 + 1,
            ttl: 10_000,
        };
        lease.lease_grant(grant).await.unwrap();
        leases += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
        if kill % 5 == 4 {
            let mut kv = KvClient::new(channel.clone());
            let range = RangeRequest {
                key: "w".into(),
                ..RangeRequest::default()
            };
            let revision = kv.range(range).await.unwrap().into_inner().header.unwrap();
            let compact = CompactionRequest {
                revision: revision.revision - 10,
                physical: false,
            };
            kv.compact(compact).await.unwrap();
        }
        server.kill();
        for writer in writers {
            acknowledged += writer.await.unwrap();
        }
        server.restart();
        let channel = connect(server.url()).await;
        check(channel.clone(), &book).await;
        let mut lease = LeaseClient::new(channel);
        let found = lease.lease_leases(LeaseLeasesRequest {}).await.unwrap();
        assert_eq!(found.into_inner().leases.len(), leases);
    }
    // The log alone must lead to the same state as the engine that went through all of this.
    let hash = |url: String| async move {
        let mut client = MaintenanceClient::new(connect(&url).await);
        let hash = client.hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
        hash.into_inner()
    };
    let before = hash(server.url().to_owned()).await;
    assert_eq!(server.stop().code(), Some(0));
    std::fs::remove_dir_all(folder.path().join("data/member/engine")).unwrap();
    server.restart();
    let after = hash(server.url().to_owned()).await;
    assert_eq!(
        (before.hash, before.hash_revision),
        (after.hash, after.hash_revision)
    );
    println!("{KILLS} kills, {acknowledged} acknowledged writes, none lost");
}
