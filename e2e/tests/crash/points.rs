//! Points of steps that happen once in a member's life: it dies there, and the next start goes on
//! as if nothing had been.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Process, Server,
    client::{channel, eventually, get, put},
    failpoints::{Failpoints, died_at, program},
    free_port,
    process::copy,
};
use proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, HashKvRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, kv_client::KvClient, maintenance_client::MaintenanceClient, request_op::Request,
};
use serde_json::json;
use tonic::Code;

const KEYS: usize = 20;
const READY: &str = "ready to serve client requests";
/// How long a member that is to die may take.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What a member passes that founds its cluster.
const FOUNDING: &[&str] = &[
    "walBeforeFill=panic",
    "walAfterFill=panic",
    "walBeforeHeadSync=panic",
    "walBeforeSegmentRename=panic",
    "walBeforeSegmentDirSync=panic",
    "walBeforeCreateRename=panic",
    "walAfterCreateRename=panic",
    "bootAfterCreateLog=panic",
    "walBeforeSync=panic",
    "bootAfterFound=panic",
    "engineBeforeRename=panic",
    "engineBeforeDirSync=panic",
    "bootAfterClaim=panic",
    "engineBeforeRename=1*off->panic",
    "engineBeforeDirSync=1*off->panic",
    "engineBeforeRename=2*off->panic",
    "engineBeforeDirSync=2*off->panic",
    "beforeApplyOneConfChange=panic",
    "beforePublishing=panic",
    "beforeApplyOneEntryNormal=panic",
    "beforeCommit=panic",
    "afterCommit=panic",
];
/// What one passes that takes over a data directory of etcd's.
const TAKEOVER: &[&str] = &[
    "engineBeforeRename=panic",
    "bootAfterClaim=panic",
    "engineBeforeRename=1*off->panic",
    "engineAfterBuild=panic",
    "importAfterBatch=panic",
    "importBeforeFlush=panic",
    "beforeCommit=panic",
    "afterCommit=panic",
    "engineBeforeSwitch=panic",
    "engineBeforeRename=2*off->panic",
    "engineBeforeDirSync=2*off->panic",
    "engineAfterSwitch=panic",
    "takeoverBeforeAside=panic",
    "takeoverBeforeDirSync=panic",
    "beforePublishing=panic",
];
/// What an export passes.
const EXPORT: &[&str] = &[
    "exportAfterLog=panic",
    "exportAfterDatabase=panic",
    "exportAfterSnap=panic",
    "exportBeforeRename=panic",
    "exportBeforeDirSync=panic",
];
/// What one passes under the bootstrap guard.
const GUARD: &[&str] = &[
    "guardBeforeRename=panic",
    "guardBeforeDirSync=panic",
    "guardBeforeRename=1*off->panic",
    "guardBeforeDirSync=1*off->panic",
    "walBeforeCreateRename=panic",
    "bootAfterCreateLog=panic",
    "guardBeforeMark=panic",
    "guardBeforeRename=2*off->panic",
    "guardBeforeDirSync=2*off->panic",
    "guardBeforeRename=3*off->panic",
    "guardBeforeDirSync=3*off->panic",
];
/// What a compaction of more rows than go at once passes.
const COMPACTION: &[&str] = &[
    "compactBeforeCommitBatch=panic",
    "compactAfterCommitBatch=panic",
    "compactAfterCommitBatch=1*off->panic",
];
/// What rounds of faults let fail, without an end.
const FAILING: &[&str] = &["raftDropHeartbeat", "snapDBDirSyncError"];

fn named(terms: &str) -> &str {
    terms.split('=').next().unwrap()
}

/// Starts a member that a point ends; it is told nothing at the next start.
fn dies(folder: &Path, name: &str, terms: &str) -> Server {
    let member = Member::new(Kind::Cairn, name).with_failpoints(terms);
    let mut server = member.launch(folder, &[&member], "new");
    let began = Instant::now();
    while server.ended().is_none() {
        assert!(
            began.elapsed() < LIMIT,
            "{terms} does not end it:\n{}",
            server.log()
        );
        std::thread::sleep(POLL);
    }
    let log = server.log();
    assert_eq!(died_at(&log), Some(named(terms)), "{terms}: {log}");
    server.failpoints().at_start("");
    server
}

async fn hash(server: &Server) -> (u32, i64) {
    let mut client = MaintenanceClient::new(channel(server.url()));
    let request = HashKvRequest { revision: 0 };
    let hash = eventually("hash", async || client.hash_kv(request).await).await;
    let hash = hash.into_inner();
    (hash.hash, hash.hash_revision)
}

async fn check(server: &Server) {
    for key in 0..KEYS {
        let found = get(server.url(), &format!("k{key}"), false).await;
        assert_eq!(found, Some(format!("v{key}")));
    }
}

#[tokio::test]
async fn a_founding_that_dies_at_any_step_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    for (number, terms) in FOUNDING.iter().enumerate() {
        let name = format!("m{number}");
        let mut server = dies(folder.path(), &name, terms);
        server.restart();
        put(server.url(), "k", terms).await;
        assert_eq!(get(server.url(), "k", false).await.as_deref(), Some(*terms));
    }
}

/// A data directory of etcd's, made by an export, with its hash.
async fn of_etcd(folder: &Path) -> (std::path::PathBuf, (u32, i64)) {
    let member = Member::new(Kind::Cairn, "m");
    let mut server = member.launch(folder, &[&member], "new");
    server.wait_ready();
    for key in 0..KEYS {
        put(server.url(), &format!("k{key}"), &format!("v{key}")).await;
    }
    let hash = hash(&server).await;
    // What it has in memory goes to the disk, so that the export has rows.
    let mut client = MaintenanceClient::new(channel(server.url()));
    let defragment = async || client.defragment(DefragmentRequest {}).await;
    eventually("defragment", defragment).await;
    assert!(server.stop().success());
    let output = folder.join("of-etcd");
    let exported = export(&folder.join("m"), &output, "");
    assert!(exported.status.success(), "{exported:?}");
    (output, hash)
}

fn export(data: &Path, output: &Path, terms: &str) -> Output {
    Command::new(program())
        .arg("export")
        .arg(format!("--data-dir={}", data.display()))
        .arg(output)
        .env("GOFAIL_FAILPOINTS", terms)
        .output()
        .unwrap()
}

#[tokio::test]
async fn a_takeover_that_dies_at_any_step_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, expected) = of_etcd(folder.path()).await;
    for (number, terms) in TAKEOVER.iter().enumerate() {
        let name = format!("t{number}");
        copy(&directory, &folder.path().join(&name));
        let mut server = dies(folder.path(), &name, terms);
        server.restart();
        check(&server).await;
        assert_eq!(hash(&server).await, expected, "{terms}");
        let snap = folder.path().join(&name).join("member/snap");
        assert!(!snap.join("db").exists(), "{terms}");
        assert!(snap.join("db.superseded").exists(), "{terms}");
    }
}

#[tokio::test]
async fn an_export_that_dies_at_any_step_leaves_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_, expected) = of_etcd(folder.path()).await;
    let data = folder.path().join("m");
    for (number, terms) in EXPORT.iter().enumerate() {
        let name = format!("e{number}");
        let output = folder.path().join(&name);
        let died = export(&data, &output, terms);
        assert!(!died.status.success());
        let log = String::from_utf8_lossy(&died.stderr).into_owned();
        assert_eq!(died_at(&log), Some(named(terms)), "{log}");
        if !output.exists() {
            let again = export(&data, &output, "");
            assert!(again.status.success(), "{terms}: {again:?}");
        }
        let member = Member::new(Kind::Cairn, &name);
        let mut server = member.launch(folder.path(), &[&member], "new");
        server.wait_ready();
        check(&server).await;
        assert_eq!(hash(&server).await, expected, "{terms}");
    }
    // What it was made from is as it was.
    let mut server = Member::new(Kind::Cairn, "m");
    server = server.with_failpoints("");
    let mut server = server.launch(folder.path(), &[&server], "new");
    server.wait_ready();
    check(&server).await;
}

/// Runs a member under the bootstrap guard, as a pod with this name would.
fn guarded(folder: &Path, terms: &str) -> Process {
    let path = |name: &str| folder.join(name).display().to_string();
    let (client, peer) = (free_port(), free_port());
    for part in ["marks", "disk"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    let record = json!({
        "recordID": "r-1",
        "clusterUID": "cluster",
        "member": "m",
        "action": "new",
        "memberPodUID": "pod",
        "initialCluster": "m=http://127.0.0.1:1",
        "token": "a-token",
    });
    fs::write(folder.join("record.json"), record.to_string()).unwrap();
    let arguments = [
        "--name=m".to_owned(),
        format!("--data-dir={}", path("disk/data")),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
    ];
    let (record, marks) = (path("record.json"), path("marks"));
    let env = [
        ("CAIRN_BOOTSTRAP_RECORD", record.as_str()),
        ("CAIRN_BOOTSTRAP_MARKS", marks.as_str()),
        ("CAIRN_POD_UID", "pod"),
        ("CAIRN_CLUSTER_UID", "cluster"),
        ("GOFAIL_FAILPOINTS", terms),
    ];
    Process::of(
        Command::new(program()),
        &folder.join("log"),
        &arguments,
        &env,
    )
}

#[test]
fn a_guarded_member_that_dies_at_any_step_begins_as_its_record_says() {
    for terms in GUARD {
        let folder = tempfile::tempdir().unwrap();
        let mut process = guarded(folder.path(), terms);
        process.wait_end();
        let log = process.log();
        assert_eq!(died_at(&log), Some(named(terms)), "{terms}: {log}");
        let mut process = guarded(folder.path(), "");
        process.wait_for(READY);
        assert!(folder.path().join("marks/r-1").exists(), "{terms}");
    }
}

/// Puts 100 keys at once, so often.
async fn put_many(url: &str, times: usize) -> i64 {
    let mut revision = 0;
    for time in 0..times {
        let put = |key: usize| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: format!("k{key}").into(),
                value: format!("{time}").into(),
                ..PutRequest::default()
            })),
        };
        let txn = TxnRequest {
            success: (0..100).map(put).collect(),
            ..TxnRequest::default()
        };
        let mut kv = KvClient::new(channel(url));
        let done = eventually("txn", async || kv.txn(txn.clone()).await).await;
        revision = done.into_inner().header.unwrap().revision;
    }
    revision
}

#[tokio::test]
async fn a_compaction_that_dies_between_two_pieces_goes_on() {
    for terms in COMPACTION {
        let folder = tempfile::tempdir().unwrap();
        let member = Member::new(Kind::Cairn, "m").with_failpoints(terms);
        let mut server = member.launch(folder.path(), &[&member], "new");
        server.wait_ready();
        let url = server.url().to_owned();
        let revision = put_many(&url, 13).await;
        let compact = CompactionRequest {
            revision: revision - 1,
            physical: true,
        };
        let died = KvClient::new(channel(&url)).compact(compact).await;
        assert!(died.is_err(), "{terms}: {died:?}");
        assert_eq!(died_at(&server.log()), Some(named(terms)));
        server.failpoints().at_start("");
        server.kill();
        server.restart();
        let before = hash(&server).await;
        // What was acknowledged to nobody is done or not; the next one comes behind it.
        let compact = CompactionRequest {
            revision,
            physical: true,
        };
        let mut kv = KvClient::new(channel(&url));
        eventually("compact", async || kv.compact(compact).await).await;
        let old = RangeRequest {
            key: "k1".into(),
            revision: revision - 1,
            ..RangeRequest::default()
        };
        let refused = kv.range(old).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert_eq!(get(&url, "k99", false).await.as_deref(), Some("12"));
        assert_eq!(before.1, hash(&server).await.1, "{terms}");
    }
}

/// A point that no test reaches shows nothing.
#[test]
fn every_point_has_a_test() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::new(Kind::Cairn, "m").with_failpoints("");
    let mut server = member.launch(folder.path(), &[&member], "new");
    server.wait_ready();
    let there: BTreeSet<String> = server.failpoints().names().into_iter().collect();
    let lists = [FOUNDING, TAKEOVER, EXPORT, GUARD, COMPACTION, FAILING];
    let tried = lists.into_iter().flatten().map(|terms| named(terms));
    let tried = tried.chain(crate::rounds::points());
    let tried: BTreeSet<String> = tried.map(str::to_owned).collect();
    assert_eq!(tried, there);
}

/// The protocol is gofail's, and the ordinary server does not speak it.
#[test]
fn points_are_told_what_to_do_as_gofails_are() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::new(Kind::Cairn, "m").with_failpoints("afterCommit=print");
    let mut server = member.launch(folder.path(), &[&member], "new");
    server.wait_ready();
    let points = server.failpoints();
    let said = |answer: Option<(u16, String)>| answer.unwrap();
    let names = points.names();
    assert!(names.is_sorted() && names.len() > 50, "{names:?}");
    let text = |text: &str| text.to_owned();
    for (method, name, body, code, expected) in [
        ("GET", "afterCommit", "", 200, "print\n"),
        ("PUT", "walAfterCut", "9*off->panic", 204, ""),
        ("GET", "walAfterCut", "", 200, "9*off->panic\n"),
        ("GET", "walAfterCut/count", "", 200, "0"),
        ("DELETE", "walAfterCut", "", 204, ""),
        (
            "DELETE",
            "walAfterCut",
            "",
            400,
            "failed to delete failpoint failpoint: failpoint is disabled\n",
        ),
        (
            "GET",
            "walAfterCut",
            "",
            404,
            "failed to GET: failpoint: failpoint is disabled\n",
        ),
        (
            "PUT",
            "nothing",
            "panic",
            400,
            "fail to set failpoint: failpoint: failpoint does not exist\n",
        ),
        (
            "PUT",
            "walAfterCut",
            "explode",
            400,
            "fail to set failpoint: failpoint: could not parse terms\n",
        ),
        (
            "PUT",
            "failpoints",
            "walAfterCut=off;walAfterSync=off",
            204,
            "",
        ),
        ("GET", "walAfterSync", "", 200, "off\n"),
        ("POST", "walAfterCut", "", 405, "Method not allowed\n"),
    ] {
        let answer = said(points.ask(method, name, body));
        assert_eq!(answer, (code, text(expected)), "{method} {name}");
    }
    // The answer arrives although the point ends the process with the next sync.
    assert!(points.tell("walBeforeSync", "panic"));
    server.kill();

    // The server that is shipped has nothing of this.
    let log = folder.path().join("shipped.log");
    let data = format!("--data-dir={}", folder.path().join("shipped").display());
    let (client, peer) = (free_port(), free_port());
    let arguments = [
        data,
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
    ];
    let points = Failpoints::new("walBeforeSync=panic");
    let [http, terms] = points.environment();
    let env = [(http.0, http.1.as_str()), (terms.0, terms.1.as_str())];
    let mut process = Process::cairn(&log, &arguments, &env);
    process.wait_for(READY);
    assert!(points.ask("GET", "", "").is_none());
}
