//! The state as a whole, in etcd's forms: snapshots for clients, data directories that move both
//! ways between etcd and Cairn, and members that catch up by a snapshot.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use e2e::{Etcdctl, Kind, Member, Server, etcdctl::ok, process::export, tool};
use serde_json::Value;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

static ETCDCTL: LazyLock<PathBuf> = LazyLock::new(|| tool("etcdctl"));
static ETCDUTL: LazyLock<PathBuf> = LazyLock::new(|| tool("etcdutl"));

fn etcdctl(server: &Server) -> Etcdctl {
    Etcdctl::new(&ETCDCTL, server.url())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn etcdutl(arguments: &[&str]) -> String {
    let output = Command::new(&*ETCDUTL).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdutl {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Some of everything that a store holds.
fn work(server: &Server, round: usize) {
    let etcdctl = etcdctl(server);
    let lease = ok(etcdctl.run(&["lease", "grant", "6000"]));
    let lease = lease.split_whitespace().nth(1).unwrap().to_owned();
    let lease = format!("--lease={lease}");
    for n in 0..40 {
        let (key, value) = (format!("k/{:02}", n % 25), format!("{round}/{n}"));
        ok(etcdctl.run(&["put", &key, &value]));
    }
    // Of several pages of the file, and too long to stand beside its key.
    let long = "x".repeat(40_000);
    ok(etcdctl.run_with(&["put", &format!("long/{round}")], &long));
    ok(etcdctl.run(&["put", &format!("leased/{round}"), "1", &lease]));
    ok(etcdctl.run(&["del", "k/07"]));
    ok(etcdctl.run(&["put", "k/07", "again"]));
    ok(etcdctl.run(&["del", "k/03", "k/06"]));
    let revision = revision(server);
    ok(etcdctl.run(&["compaction", &(revision - 20).to_string(), "--physical"]));
    for n in 0..10 {
        ok(etcdctl.run(&["put", &format!("k/{n:02}"), &format!("late {round}")]));
    }
}

fn status(server: &Server) -> Value {
    json(&ok(
        etcdctl(server).run(&["endpoint", "status", "-w", "json"])
    ))[0]["Status"]
        .clone()
}

fn revision(server: &Server) -> i64 {
    status(server)["header"]["revision"].as_i64().unwrap()
}

/// What must be equal wherever the same state is: hash, revisions, all keys with theirs, leases.
#[derive(Debug, PartialEq)]
struct State {
    hash: Value,
    keys: Value,
    old_keys: Value,
    leases: Vec<String>,
}

fn state(server: &Server) -> State {
    let etcdctl = etcdctl(server);
    let hash = json(&ok(etcdctl.run(&["endpoint", "hashkv", "-w", "json"])))[0]["HashKV"].clone();
    let of = |more: &[&str]| {
        let get = ["get", "", "--prefix", "-w", "json"];
        json(&ok(etcdctl.run(&[&get[..], more].concat())))["kvs"].clone()
    };
    let old = format!("--rev={}", revision(server) - 5);
    let leases = ok(etcdctl.run(&["lease", "list"]));
    let mut leases: Vec<String> = leases.lines().skip(1).map(str::to_owned).collect();
    leases.sort();
    State {
        hash: serde_json::json!([
            hash["hash"],
            hash["compact_revision"],
            hash["hash_revision"]
        ]),
        keys: of(&[]),
        old_keys: of(&[&old]),
        leases,
    }
}

#[test]
fn a_snapshot_is_a_file_that_etcds_tools_take() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Kind::Cairn, folder.path(), &[]);
    work(&server, 1);
    work(&server, 2);
    let file = folder.path().join("backup.db");
    ok(etcdctl(&server).run(&["snapshot", "save", text(&file)]));
    let state_then = state(&server);

    let info = json(&etcdutl(&["snapshot", "status", text(&file), "-w", "json"]));
    assert_eq!(info["revision"].as_i64(), Some(revision(&server)));
    assert_eq!(info["version"], "3.7.0");
    // This one writes to the file.
    let copy = folder.path().join("copy.db");
    std::fs::copy(&file, &copy).unwrap();
    let hash = json(&etcdutl(&["hashkv", text(&copy), "-w", "json"]));
    assert_eq!(hash["hash"], state_then.hash[0]);

    // What etcd's tool makes of it is a data directory for both servers.
    for kind in [Kind::Etcd, Kind::Cairn] {
        let inner = folder.path().join(format!("{kind:?}"));
        std::fs::create_dir(&inner).unwrap();
        restore(&file, &inner.join("data"), &[]);
        let mut restored = Server::start(kind, &inner, &[]);
        assert_eq!(state(&restored), state_then, "{kind:?}");
        work(&restored, 3);
        let later = state(&restored);
        restored.kill();
        restored.restart();
        assert_eq!(state(&restored), later, "{kind:?}");
    }
    // With revisions that no client has seen.
    for kind in [Kind::Etcd, Kind::Cairn] {
        let inner = folder.path().join(format!("{kind:?}-bumped"));
        std::fs::create_dir(&inner).unwrap();
        let bump = ["--bump-revision=1000000", "--mark-compacted"];
        restore(&file, &inner.join("data"), &bump);
        let bumped = Server::start(kind, &inner, &[]);
        let was = info["revision"].as_i64().unwrap();
        assert_eq!(revision(&bumped), was + 1_000_000, "{kind:?}");
        let old = format!("--rev={was}");
        let refused = etcdctl(&bumped).run(&["get", "k/01", &old]);
        assert!(refused.errors.contains("has been compacted"), "{refused:?}");
        let value = ok(etcdctl(&bumped).run(&["get", "k/01", "--print-value-only"]));
        assert_eq!(value, "late 2\n");
    }
}

fn restore(file: &Path, data: &Path, more: &[&str]) {
    let data = format!("--data-dir={}", data.display());
    let plain = [
        "snapshot",
        "restore",
        text(file),
        &data,
        "--name=m",
        "--initial-cluster=m=http://127.0.0.1:2",
        "--initial-advertise-peer-urls=http://127.0.0.1:2",
    ];
    etcdutl(&[&plain[..], more].concat());
}

#[test]
fn a_data_directory_moves_from_etcd_to_cairn_and_back_and_forth() {
    moves_back_and_forth(Kind::Etcd);
}

/// It goes back to the newer one, as after an upgrade.
#[test]
fn a_data_directory_moves_from_the_etcd_before_to_cairn_and_on() {
    moves_back_and_forth(Kind::Etcd36);
}

fn moves_back_and_forth(from: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    // A member of etcd with snapshots and a log that was shortened.
    let first = path("first");
    let few = ["--snapshot-count=50", "--snapshot-catchup-entries=5"];
    let mut etcd = Server::start(from, &first, &few);
    work(&etcd, 1);
    work(&etcd, 2);
    ok(etcdctl(&etcd).run(&["alarm", "list"]));
    let mut known = state(&etcd);
    etcd.kill();

    // In place, and it stays.
    let mut cairn = Server::start(Kind::Cairn, &first, &[]);
    assert_eq!(state(&cairn), known);
    work(&cairn, 3);
    known = state(&cairn);
    cairn.kill();
    cairn.restart();
    assert_eq!(state(&cairn), known);
    work(&cairn, 4);
    known = state(&cairn);

    // While it runs nobody else may have it.
    let data = first.join("data");
    let second = path("second");
    let refused = export(&data, &second.join("data"));
    assert!(!refused.status.success());
    assert!(!second.join("data").exists());
    cairn.stop();
    let exported = export(&data, &second.join("data"));
    assert!(exported.status.success(), "{exported:?}");
    let again = export(&data, &second.join("data"));
    let told = String::from_utf8_lossy(&again.stderr);
    assert!(told.contains("is there already"), "{told}");

    let mut etcd = Server::start(Kind::Etcd, &second, &few);
    assert_eq!(state(&etcd), known);
    work(&etcd, 5);
    known = state(&etcd);
    etcd.stop();
    let cairn = Server::start(Kind::Cairn, &second, &[]);
    assert_eq!(state(&cairn), known);
    // The directory that was exported is as it was.
    let first = Server::start(Kind::Cairn, &first, &[]);
    assert!(revision(&first) < revision(&cairn));
}

/// Small segments, so that the log is shortened all the time.
const SHORT: [&str; 2] = [
    "--cairn-wal-segment-bytes=65536",
    "--snapshot-catchup-entries=10",
];

fn until(what: &str, holds: impl FnMut() -> bool) {
    until_or(what, holds, String::new);
}

fn until_or(what: &str, mut holds: impl FnMut() -> bool, explain: impl Fn() -> String) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "{what} in time\n{}", explain());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What all members said last.
fn ends(servers: &[Server]) -> String {
    let end = |server: &Server| -> String {
        let log = server.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    };
    servers.iter().map(end).collect::<Vec<_>>().join("\n\n")
}

fn wal_bytes(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("member/wal")).unwrap();
    let files = files.map(|file| file.unwrap());
    let logs = files.filter(|file| file.file_name().to_string_lossy().ends_with(".wal"));
    logs.map(|file| file.metadata().unwrap().len()).sum()
}

#[test]
fn a_log_stays_short_and_the_data_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(Kind::Cairn, folder.path(), &SHORT);
    let value = "v".repeat(8000);
    for n in 0..400 {
        ok(etcdctl(&server).run_with(&["put", &format!("k{}", n % 50)], &value));
    }
    let data = folder.path().join("data");
    // Several megabytes went through it.
    until("a short log", || wal_bytes(&data) < 400_000);
    for _ in 0..3 {
        let known = state(&server);
        server.kill();
        server.restart();
        assert_eq!(state(&server), known);
        ok(etcdctl(&server).run_with(&["put", "k1"], &value));
    }
    // The engine cannot be made from a log that was shortened.
    server.stop();
    let engine = data.join("member/engine");
    std::fs::rename(&engine, folder.path().join("aside")).unwrap();
    server.relaunch();
    until("an end", || server.ended().is_some());
    let log = server.log();
    assert!(
        log.contains("parts of this member's data are missing"),
        "{log}"
    );
    std::fs::remove_dir_all(&engine).unwrap();
    std::fs::rename(folder.path().join("aside"), &engine).unwrap();
    server.restart();
}

#[test]
fn a_member_that_fell_behind_catches_up_by_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let flags = || SHORT.iter().map(|&flag| flag.to_owned()).collect();
    let members: Vec<Member> = ["a", "b", "c"]
        .iter()
        .map(|name| Member::new(Kind::Cairn, name).with_flags(flags()))
        .collect();
    let cluster: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &cluster, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    for server in &mut servers {
        server.wait_ready();
    }
    work(&servers[0], 1);
    let value = "v".repeat(8000);
    for (round, behind) in [2, 0].into_iter().enumerate() {
        servers[behind].kill();
        let other = (behind + 1) % 3;
        until("a leader", || {
            let put = etcdctl(&servers[other]).run(&["put", "alive", "1"]);
            put.code == 0
        });
        for n in 0..150 {
            let key = format!("r{round}/{}", n % 40);
            ok(etcdctl(&servers[other]).run_with(&["put", &key], &value));
        }
        work(&servers[other], round + 2);
        if round == 0 {
            for (server, name) in servers.iter().zip(["a", "b", "c"]) {
                let log = folder.path().join(name);
                let is_up = server.url() != servers[behind].url();
                until("a short log", || !is_up || wal_bytes(&log) < 600_000);
            }
        }
        servers[behind].restart();
        if round == 0 {
            // Later ones may find in the logs what is kept for a while after a snapshot was sent.
            until_or(
                "the snapshot's arrival",
                || servers[behind].log().contains("applied snapshot"),
                || ends(&servers),
            );
        }
        let last = revision(&servers[other]);
        until("the same revision", || revision(&servers[behind]) >= last);
        let states: Vec<State> = servers.iter().map(state).collect();
        assert_eq!(states[0], states[1], "round {round}");
        assert_eq!(states[0], states[2], "round {round}");
    }
    // It is durable what came.
    for server in &mut servers {
        server.kill();
    }
    for server in &mut servers {
        server.relaunch();
    }
    for server in &mut servers {
        server.wait_ready();
    }
    until("a leader", || {
        etcdctl(&servers[0]).run(&["put", "alive", "2"]).code == 0
    });
    let last = revision(&servers[0]);
    for server in &servers[1..] {
        until("the same revision", || revision(server) >= last);
        assert_eq!(state(server), state(&servers[0]));
    }
}
