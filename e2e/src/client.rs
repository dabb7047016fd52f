//! The few calls that most tests make, repeated until a member answers.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use proto::etcdserverpb::{
    HashKvRequest, MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MoveLeaderRequest,
    PutRequest, RangeRequest, StatusRequest, StatusResponse, cluster_client::ClusterClient,
    kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::{Kind, Member, Server};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(8);

/// A connection that is made when it is used.
pub fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    endpoint
        .connect_timeout(CONNECT)
        .timeout(CALL)
        .connect_lazy()
}

/// Calls again until it is answered.
pub async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < LIMIT, "{what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes a key.
pub async fn put(url: &str, key: &str, value: &str) {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    let mut kv = KvClient::new(channel(url));
    eventually("put", async || kv.put(request.clone()).await).await;
}

/// Reads a key; from this member alone when `serializable`.
pub async fn get(url: &str, key: &str, serializable: bool) -> Option<String> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        serializable,
        ..RangeRequest::default()
    };
    let mut kv = KvClient::new(channel(url));
    let found = eventually("get", async || kv.range(request.clone()).await).await;
    let kv = found.into_inner().kvs.into_iter().next();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// What a member says of itself.
pub async fn status(url: &str) -> StatusResponse {
    let mut client = MaintenanceClient::new(channel(url));
    let status = eventually("status", async || client.status(StatusRequest {}).await).await;
    status.into_inner()
}

/// Waits until all members have one hash at one revision. It writes nothing, and compactions may go
/// on meanwhile.
pub async fn agree(urls: &[&str]) {
    let mut kv = KvClient::new(channel(urls[0]));
    let one = RangeRequest {
        key: "none".into(),
        ..RangeRequest::default()
    };
    let began = Instant::now();
    loop {
        let read = eventually("read", async || kv.range(one.clone()).await).await;
        let revision = read.into_inner().header.unwrap().revision;
        let mut hashes = Vec::new();
        for url in urls {
            let mut client = MaintenanceClient::new(channel(url));
            let request = HashKvRequest { revision };
            let hash = eventually("hash", async || client.hash_kv(request).await).await;
            let hash = hash.into_inner();
            hashes.push((hash.compact_revision, hash.hash, url.to_owned()));
        }
        // What is compacted is not part of the hash, so only equal pasts compare.
        if hashes
            .iter()
            .all(|(compacted, ..)| *compacted == hashes[0].0)
        {
            let same = hashes.iter().all(|(_, hash, _)| *hash == hashes[0].1);
            assert!(same, "at {revision}: {hashes:x?}");
            return;
        }
        assert!(began.elapsed() < LIMIT, "at {revision}: {hashes:x?}");
    }
}

/// Who leads.
pub async fn leader(url: &str) -> u64 {
    let mut client = MaintenanceClient::new(channel(url));
    eventually("leader", async || {
        let status = client.status(StatusRequest {}).await;
        match status.map(|status| status.into_inner().leader) {
            Ok(0) => Err("none".to_owned()),
            Ok(leader) => Ok(leader),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

/// Flags by which either server shortens its log soon.
pub fn short(kind: Kind) -> Vec<String> {
    let flags = match kind {
        Kind::Cairn | Kind::CairnBefore => [
            "--cairn-wal-segment-bytes=65536",
            "--snapshot-catchup-entries=10",
        ],
        Kind::Etcd | Kind::Etcd36 => ["--snapshot-count=20", "--snapshot-catchup-entries=5"],
    };
    flags.map(str::to_owned).to_vec()
}

/// Adds a learner at `url`, starts it and makes it a voter.
pub async fn grow(url: &str, member: &Member, cluster: &[&Member], folder: &Path) -> (u64, Server) {
    let mut client = ClusterClient::new(channel(url));
    let add = MemberAddRequest {
        peer_ur_ls: vec![member.peer_url().to_owned()],
        is_learner: true,
    };
    let added = eventually("add", async || client.member_add(add.clone()).await).await;
    let id = added.into_inner().member.unwrap().id;
    let mut server = member.launch(folder, cluster, "existing");
    server.wait_ready();
    let promote = MemberPromoteRequest { id };
    eventually("promote", async || client.member_promote(promote).await).await;
    (id, server)
}

/// Removes a member.
pub async fn shrink(url: &str, id: u64) {
    let mut client = ClusterClient::new(channel(url));
    let remove = MemberRemoveRequest { id };
    eventually("remove", async || client.member_remove(remove).await).await;
}

/// Hands the lead to a member.
pub async fn lead(url: &str, id: u64) {
    let to = MoveLeaderRequest { target_id: id };
    let mut maintenance = MaintenanceClient::new(channel(url));
    eventually("move", async || maintenance.move_leader(to).await).await;
}
