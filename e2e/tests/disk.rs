//! Disks that fill up, are full, or hang.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use e2e::{
    Kind, Member, Server, Volume,
    client::{channel, eventually, get, put, status},
    powerfs::PowerFs,
};
use proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest,
    HashKvRequest, MoveLeaderRequest, PutRequest, RangeRequest, alarm_request::AlarmAction,
    kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tonic::Status;

/// A disk, and what must be free of it with segments of 1 MiB.
const DISK: u64 = 96 << 20;
const LOW: u64 = 16 << 20;
const FLAGS: [&str; 2] = [
    "--cairn-wal-segment-bytes=1048576",
    "--snapshot-catchup-entries=10",
];
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const NO_SPACE: &str = "database space exceeded";

async fn try_put(url: &str, key: &str, value: Vec<u8>) -> Result<(), Status> {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.into(),
        ..PutRequest::default()
    };
    KvClient::new(channel(url)).put(request).await.map(drop)
}

/// Waits until writes are refused as etcd refuses them.
async fn refuses(url: &str) {
    let began = Instant::now();
    loop {
        match try_put(url, "refused", b"v".to_vec()).await {
            Err(status) if status.message().contains(NO_SPACE) => return,
            answer => assert!(began.elapsed() < LIMIT, "{answer:?}"),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until writes are taken again, which nobody asked for.
async fn takes(url: &str) {
    eventually("a write with room on the disk", async || {
        try_put(url, "taken", b"v".to_vec()).await
    })
    .await;
}

async fn alarms(url: &str) -> Vec<AlarmMember> {
    let mut client = MaintenanceClient::new(channel(url));
    let request = AlarmRequest {
        action: AlarmAction::Get as i32,
        ..AlarmRequest::default()
    };
    let answer = eventually("alarms", async || client.alarm(request).await).await;
    answer.into_inner().alarms
}

async fn hash(url: &str, revision: i64) -> u32 {
    let mut client = MaintenanceClient::new(channel(url));
    let request = HashKvRequest { revision };
    let hash = eventually("hash", async || client.hash_kv(request).await).await;
    hash.into_inner().hash
}

async fn revision(url: &str) -> i64 {
    let mut kv = KvClient::new(channel(url));
    let request = RangeRequest {
        key: "k".into(),
        ..RangeRequest::default()
    };
    let answer = eventually("read", async || kv.range(request.clone()).await).await;
    answer.into_inner().header.unwrap().revision
}

/// What etcd does under NOSPACE is done: reads, deletes, compactions.
async fn serves_the_rest(url: &str, deleted: &str) {
    assert_eq!(get(url, "k", false).await.as_deref(), Some("v"));
    assert_eq!(get(url, "k", true).await.as_deref(), Some("v"));
    let mut kv = KvClient::new(channel(url));
    let delete = DeleteRangeRequest {
        key: deleted.to_owned().into(),
        ..DeleteRangeRequest::default()
    };
    let gone = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!(gone.deleted, 1);
    let compact = CompactionRequest {
        revision: gone.header.unwrap().revision,
        physical: true,
    };
    kv.compact(compact).await.unwrap();
}

async fn wait_for_log(server: &Server, text: &str) {
    let began = Instant::now();
    while !server.log().contains(text) {
        assert!(
            began.elapsed() < LIMIT,
            "{text:?} is missing:\n{}",
            server.log()
        );
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_writes_until_there_is_room() {
    let volume = Volume::new(DISK);
    let mut server = Server::start(Kind::Cairn, volume.path(), &FLAGS);
    let url = server.url().to_owned();
    put(&url, "k", "v").await;
    put(&url, "gone", "v").await;
    put(&url, "gone later", "v").await;
    assert!(alarms(&url).await.is_empty());

    volume.fill(LOW / 2);
    refuses(&url).await;
    wait_for_log(&server, "the disk is nearly full").await;
    let id = status(&url).await.header.unwrap().member_id;
    let raised = AlarmMember {
        member_id: id,
        alarm: AlarmType::Nospace as i32,
    };
    assert_eq!(alarms(&url).await, [raised]);
    serves_the_rest(&url, "gone").await;

    // A user may take the alarm back; without room it comes again.
    let mut client = MaintenanceClient::new(channel(&url));
    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate as i32,
        member_id: id,
        alarm: AlarmType::Nospace as i32,
    };
    client.alarm(disarm).await.unwrap();
    refuses(&url).await;

    // Over a kill as well, and the next life knows whose alarm it is.
    server.kill();
    server.restart();
    assert_eq!(alarms(&url).await, [raised]);
    refuses(&url).await;
    serves_the_rest(&url, "gone later").await;

    volume.clear();
    takes(&url).await;
    assert!(alarms(&url).await.is_empty());
    assert_eq!(get(&url, "k", false).await.as_deref(), Some("v"));
    assert_eq!(get(&url, "gone", false).await, None);
    wait_for_log(&server, "there is room on the disk again").await;
}

/// One that goes beyond the quota at the same time stays refused: that alarm is the user's.
#[tokio::test]
async fn an_alarm_of_the_quota_is_not_taken_back() {
    let volume = Volume::new(DISK);
    let more = [&FLAGS[..], &["--quota-backend-bytes=1048576"]].concat();
    let mut server = Server::start(Kind::Cairn, volume.path(), &more);
    let url = server.url().to_owned();
    put(&url, "k", "v").await;
    for number in 0.. {
        let key = format!("fill{}", number % 4);
        if try_put(&url, &key, vec![b'x'; 200 << 10]).await.is_err() {
            break;
        }
    }
    refuses(&url).await;
    volume.fill(LOW / 2);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    volume.clear();
    server.kill();
    server.restart();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    refuses(&url).await;
    assert_eq!(alarms(&url).await.len(), 1);
}

#[tokio::test]
async fn a_full_disk_ends_the_member_clearly_and_loses_nothing() {
    let volume = Volume::new(DISK);
    let mut server = Server::start(Kind::Cairn, volume.path(), &FLAGS);
    let url = server.url().to_owned();
    put(&url, "k", "v").await;
    let mut rng = StdRng::seed_from_u64(1);
    let mut values = Vec::new();
    for number in 0..40 {
        let mut value = vec![0; 300 << 10];
        rng.fill_bytes(&mut value);
        let key = format!("large{number}");
        eventually("put", async || try_put(&url, &key, value.clone()).await).await;
        values.push((key, value));
    }
    let (before, revision) = {
        let revision = revision(&url).await;
        (hash(&url, revision).await, revision)
    };
    volume.fill(0);
    // The engine writes all of its rows anew, for which there is no room.
    let mut client = MaintenanceClient::new(channel(&url));
    let began = Instant::now();
    let status = loop {
        let _ = client.defragment(DefragmentRequest {}).await;
        if let Some(status) = server.ended() {
            break status;
        }
        assert!(began.elapsed() < LIMIT, "it goes on:\n{}", server.log());
    };
    let log = server.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("cairn cannot go on"), "{log}");
    let says = log.contains("the disk is full") || log.contains("could not write to its disk");
    assert!(says, "{log}");

    // The next life has what the ballast held, and serves all but writes.
    server.restart();
    refuses(&url).await;
    assert_eq!(get(&url, "k", false).await.as_deref(), Some("v"));
    assert_eq!(hash(&url, revision).await, before);
    volume.clear();
    takes(&url).await;
    assert_eq!(hash(&url, revision).await, before);
}

/// Three members, of which the first has its data on `disk`.
async fn three(disk: &std::path::Path, rest: &std::path::Path, flags: &[&str]) -> Vec<Server> {
    let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
    let member = |name| Member::new(Kind::Cairn, name).with_flags(flags.clone());
    let members = [member("a").with_data_on(disk), member("b"), member("c")];
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(rest, &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    servers
}

/// Makes a member lead, or makes it not lead.
async fn lead(servers: &[Server], first_leads: bool) {
    let began = Instant::now();
    let id = status(servers[0].url()).await.header.unwrap().member_id;
    let other = status(servers[1].url()).await.header.unwrap().member_id;
    let target_id = if first_leads { id } else { other };
    loop {
        let leader = status(servers[0].url()).await.leader;
        if leader != 0 && (leader == id) == first_leads {
            return;
        }
        for server in servers {
            let mut client = MaintenanceClient::new(channel(server.url()));
            // Only the leader does so.
            let _ = client.move_leader(MoveLeaderRequest { target_id }).await;
        }
        assert!(began.elapsed() < LIMIT, "it does not lead");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_follower_whose_disk_fills_up_speaks_for_the_cluster() {
    let volume = Volume::new(DISK);
    let rest = tempfile::tempdir().unwrap();
    let servers = three(volume.path(), rest.path(), &FLAGS).await;
    lead(&servers, false).await;
    let url = servers[1].url();
    put(url, "k", "v").await;
    put(url, "gone", "v").await;
    volume.fill(LOW / 2);
    refuses(url).await;
    let id = status(servers[0].url()).await.header.unwrap().member_id;
    assert_eq!(alarms(url).await[0].member_id, id);
    serves_the_rest(url, "gone").await;
    volume.clear();
    takes(url).await;
    assert!(alarms(url).await.is_empty());
    let revision = revision(url).await;
    let expected = hash(url, revision).await;
    for server in &servers {
        assert_eq!(hash(server.url(), revision).await, expected);
    }
}

#[tokio::test]
async fn a_leader_whose_disk_hangs_leads_no_more() {
    let power = PowerFs::new(1);
    let rest = tempfile::tempdir().unwrap();
    let servers = three(power.path(), rest.path(), &FLAGS).await;
    put(servers[1].url(), "k", "v").await;
    lead(&servers, true).await;
    let id = status(servers[0].url()).await.header.unwrap().member_id;
    let hang = power.hang();
    // Nobody knows of it before something is written. Meanwhile the others are a quorum.
    put(servers[1].url(), "it hangs", "v").await;
    let began = Instant::now();
    loop {
        let leader = status(servers[1].url()).await.leader;
        if leader != 0 && leader != id {
            break;
        }
        assert!(began.elapsed() < LIMIT, "it still leads");
        tokio::time::sleep(POLL).await;
    }
    for (number, server) in servers[1..].iter().enumerate() {
        put(server.url(), &format!("while it hangs {number}"), "v").await;
    }
    assert_eq!(
        get(servers[2].url(), "while it hangs 0", false)
            .await
            .as_deref(),
        Some("v")
    );
    drop(hang);
    // It follows, without a restart.
    assert_eq!(
        get(servers[0].url(), "while it hangs 1", false)
            .await
            .as_deref(),
        Some("v")
    );
    let began = Instant::now();
    loop {
        let status = status(servers[0].url()).await;
        if status.leader != 0 && status.leader != id {
            break;
        }
        assert!(began.elapsed() < LIMIT, "it does not follow: {status:?}");
        tokio::time::sleep(POLL).await;
    }
    let revision = revision(servers[1].url()).await;
    let expected = hash(servers[1].url(), revision).await;
    for server in &servers {
        assert_eq!(hash(server.url(), revision).await, expected);
    }
}
