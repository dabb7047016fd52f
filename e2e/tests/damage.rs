//! Bits that flip on the disk: each is refused with a word that names the file and says what to do,
//! or changes nothing; and what `cairn check` says of such data.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use e2e::{
    Etcdctl, Kind, Member, Server,
    client::{channel, put, status},
    process::copy,
    target_folder, tool,
};
use proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest,
    PutRequest, RangeRequest, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Flips besides one in every file; `CAIRN_FLIPS` sets another number.
const FLIPS: usize = 25;
/// So that there are several segments and files of the engine.
const SHORT: [&str; 2] = [
    "--cairn-wal-segment-bytes=65536",
    "--snapshot-catchup-entries=10",
];
/// A part of whatever says what to do.
const ADVICE: [&str; 5] = [
    "delete its data directory and add it again",
    "remove this member and add a new one",
    "start the newer cairn that wrote it",
    "put the right folder back",
    "the engine is built anew from a whole log",
];

/// What clients can see of a store.
#[derive(Debug, PartialEq)]
struct State {
    hash: (u32, i64, i64),
    keys: Vec<(Vec<u8>, Vec<u8>, i64, i64)>,
    old_keys: Vec<(Vec<u8>, Vec<u8>, i64, i64)>,
    leases: Vec<i64>,
}

/// Reads all of it; an error when the server does not answer, as one that ends.
async fn state(url: &str) -> Result<State, tonic::Status> {
    let mut maintenance = MaintenanceClient::new(channel(url));
    let hash = maintenance.hash_kv(HashKvRequest { revision: 0 }).await?;
    let hash = hash.into_inner();
    let revision = hash.header.unwrap().revision;
    let mut kv = KvClient::new(channel(url));
    let mut list = async |revision| {
        let request = RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            revision,
            ..RangeRequest::default()
        };
        let found = kv.range(request).await?.into_inner().kvs;
        let keys = found.into_iter().map(|kv| {
            let (key, value) = (kv.key.to_vec(), kv.value.to_vec());
            (key, value, kv.mod_revision, kv.lease)
        });
        Ok::<_, tonic::Status>(keys.collect::<Vec<_>>())
    };
    let keys = list(0).await?;
    let old_keys = list(revision - 30).await?;
    let mut lease = LeaseClient::new(channel(url));
    let leases = lease
        .lease_leases(LeaseLeasesRequest {})
        .await?
        .into_inner();
    let mut leases: Vec<i64> = leases.leases.iter().map(|lease| lease.id).collect();
    leases.sort_unstable();
    Ok(State {
        hash: (hash.hash, hash.compact_revision, hash.hash_revision),
        keys,
        old_keys,
        leases,
    })
}

/// Some of everything: short and long values, history, tombstones, leases, a compaction.
async fn work(url: &str, round: usize) {
    let mut lease = LeaseClient::new(channel(url));
    let id = 100 + round as i64;
    let grant = LeaseGrantRequest { id, ttl: 60_000 };
    lease.lease_grant(grant).await.unwrap();
    let mut kv = KvClient::new(channel(url));
    for n in 0..120_usize {
        let request = PutRequest {
            key: format!("k/{:03}", n * 7 % 90).into(),
            value: vec![b'a' + (n % 26) as u8; if n % 9 == 0 { 3000 } else { 150 }].into(),
            lease: if n % 11 == 0 { id } else { 0 },
            ..PutRequest::default()
        };
        let put = kv.put(request).await.unwrap().into_inner();
        let revision = put.header.unwrap().revision;
        if n == 60 {
            let request = CompactionRequest {
                revision: revision - 40,
                physical: true,
            };
            kv.compact(request).await.unwrap();
            let request = DeleteRangeRequest {
                key: "k/01".into(),
                range_end: "k/02".into(),
                ..DeleteRangeRequest::default()
            };
            kv.delete_range(request).await.unwrap();
        }
    }
}

/// A data directory whose member was killed, and what was in it.
async fn prepared(folder: &Path) -> State {
    let mut server = Server::start(Kind::Cairn, folder, &SHORT);
    for round in 0..4 {
        work(server.url(), round).await;
        if round == 2 {
            server.stop();
            server.restart();
        }
    }
    let state = state(server.url()).await.unwrap();
    server.kill();
    state
}

/// All files below a folder, by their path in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

/// Flips one bit of a file; returns where. Half of them lie in the first pages, where heads and
/// small files are.
fn flip(file: &Path, rng: &mut StdRng) -> Option<String> {
    let length = fs::metadata(file).unwrap().len();
    if length == 0 {
        return None;
    }
    let within = match rng.random_bool(0.5) {
        true => length.min(8192),
        false => length,
    };
    let (at, bit) = (rng.random_range(0..within), rng.random_range(0..8));
    flip_at(file, at, bit);
    Some(format!("bit {bit} of byte {at} of {}", file.display()))
}

fn flip_at(file: &Path, at: u64, bit: u32) {
    let opened = fs::OpenOptions::new().read(true).write(true).open(file);
    let opened = opened.unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, at).unwrap();
    opened.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn check(data: &Path, more: &[&str]) -> Output {
    Command::new(target_folder().join("cairn"))
        .arg("check")
        .arg(format!("--data-dir={}", data.display()))
        .args(more)
        .env_clear()
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

/// The line with which a server ends.
fn last_words(server: &Server) -> String {
    let log = server.log();
    let told = |line: &&str| line.contains("cairn cannot start") || line.contains("cannot go on");
    log.lines().rev().find(told).unwrap_or_default().to_owned()
}

/// What became of a server on damaged data.
enum Outcome {
    /// It served what was there before.
    Same,
    /// It did not start, or ended when it read what was damaged.
    Ended(String),
}

async fn outcome(data: &Path, expected: &State, what: &str) -> Outcome {
    let log = data.with_extension("log");
    let mut server = Server::launch_single(Kind::Cairn, data, log, &SHORT);
    let began = Instant::now();
    while !server.is_ready() && server.ended().is_none() {
        assert!(began.elapsed() < LIMIT, "{what}: {}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if server.ended().is_none() {
        match state(server.url()).await {
            Ok(state) => {
                assert!(state == *expected, "{what}: served something else");
                return Outcome::Same;
            }
            Err(error) => {
                while server.ended().is_none() {
                    assert!(began.elapsed() < LIMIT, "{what}: {error}: {}", server.log());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
    let code = server.ended().unwrap().code();
    assert_eq!(code, Some(1), "{what}: {}", server.log());
    Outcome::Ended(last_words(&server))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_are_refused_or_change_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("CAIRN_SEED").unwrap_or_else(|| rand::rng().random::<u64>());
    let flips = number("CAIRN_FLIPS").map_or(FLIPS, |flips| flips as usize);
    println!("CAIRN_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let expected = prepared(folder.path()).await;
    let data = folder.path().join("data");
    let whole = check(&data, &[]);
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    let all = files(&data);
    let extra = (0..flips).map(|_| all[rng.random_range(0..all.len())].clone());
    let chosen: Vec<PathBuf> = all
        .iter()
        .cloned()
        .chain(extra.collect::<Vec<_>>())
        .collect();
    let (mut same, mut ended) = (0, 0);
    for (n, file) in chosen.into_iter().enumerate() {
        let damaged = folder.path().join(format!("flip{n}"));
        copy(&data, &damaged);
        let Some(flipped) = flip(&damaged.join(&file), &mut rng) else {
            fs::remove_dir_all(&damaged).unwrap();
            continue;
        };
        let what = format!("CAIRN_SEED={seed}: {flipped}");
        let checked = check(&damaged, &[]);
        match outcome(&damaged, &expected, &what).await {
            Outcome::Same => same += 1,
            Outcome::Ended(words) => {
                ended += 1;
                let name = file.file_name().unwrap().to_str().unwrap();
                let parent = file.parent().unwrap().to_str().unwrap();
                // A name that is lost leads to its folder.
                assert!(
                    words.contains(name) || words.contains(parent),
                    "{what}: {words}"
                );
                let advises = ADVICE.iter().any(|advice| words.contains(advice));
                assert!(advises, "{what}: {words}");
                assert_ne!(checked.status.code(), Some(0), "{what}: {}", said(&checked));
            }
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    println!("{same} changed nothing, {ended} were refused");
    assert!(ended > 5, "only {ended} were refused");
}

/// A block that nobody has read since the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_ends_the_server_that_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(Kind::Cairn, folder.path(), &SHORT);
    for round in 0..4 {
        work(server.url(), round).await;
    }
    server.stop();
    server.restart();
    let engine = folder.path().join("data/member/engine");
    let tables = files(&engine).into_iter();
    let mut tables: Vec<PathBuf> = tables
        .filter(|file| file.extension().is_some_and(|extension| extension == "sst"))
        .map(|file| engine.join(file))
        .collect();
    tables.sort_by_key(|file| fs::metadata(file).unwrap().len());
    // The first block of each, which holds rows.
    for table in &tables {
        flip_at(table, 20, 3);
    }
    let served = state(server.url()).await;
    assert!(served.is_err(), "{served:?}");
    let began = Instant::now();
    while server.ended().is_none() {
        assert!(began.elapsed() < LIMIT, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.ended().unwrap().code(), Some(1));
    let words = last_words(&server);
    assert!(
        words.contains(".sst") && words.contains(ADVICE[0]),
        "{words}"
    );
    let checked = check(&folder.path().join("data"), &[]);
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    assert!(
        said(&checked).contains("engine is DAMAGED"),
        "{}",
        said(&checked)
    );
}

/// Keeps a second name of the database that comes from another member: it is removed as soon as it
/// is in the engine.
fn keep_received(snapshots: PathBuf, kept: PathBuf, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir(&snapshots).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().ends_with(".snap.db") {
                    // Kept already, or gone by now.
                    let _ = fs::hard_link(entry.path(), kept.join(name));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

/// A snapshot that came, and a crash before it was the state: the log says that it stands for all
/// before it, and the engine is the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_received_snapshot_is_used_only_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let flags = || SHORT.iter().map(|&flag| flag.to_owned()).collect();
    let members = ["a", "b", "c"].map(|name| Member::new(Kind::Cairn, name).with_flags(flags()));
    let cluster: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &cluster, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    put(servers[0].url(), "first", "1").await;
    let last = status(servers[0].url()).await.header.unwrap().revision;
    let began = Instant::now();
    while status(servers[2].url()).await.header.unwrap().revision < last {
        assert!(began.elapsed() < LIMIT, "behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    servers[2].kill();
    let (data, old) = (folder.path().join("c"), folder.path().join("old"));
    copy(&data, &old);
    // Until neither of the others has the entries any more that this one lacks.
    let shortened = |server: &Server| server.log().matches("compacted Raft logs").count();
    let before: Vec<usize> = servers[..2].iter().map(shortened).collect();
    let (began, mut round) = (Instant::now(), 0);
    while round < 4
        || servers[..2]
            .iter()
            .zip(&before)
            .any(|(server, before)| shortened(server) < before + 3)
    {
        assert!(began.elapsed() < LIMIT, "the log is not shortened");
        put(servers[0].url(), "led", "1").await;
        work(servers[0].url(), round).await;
        round += 1;
    }
    let (kept, stop) = (folder.path().join("kept"), Arc::new(AtomicBool::new(false)));
    fs::create_dir(&kept).unwrap();
    let keeper = keep_received(data.join("member/snap"), kept.clone(), Arc::clone(&stop));
    servers[2].relaunch();
    let began = Instant::now();
    while !servers[2].log().contains("applied snapshot") {
        assert!(began.elapsed() < LIMIT, "{}", servers[2].log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    servers.iter_mut().for_each(Server::kill);
    stop.store(true, Ordering::Relaxed);
    keeper.join().unwrap();
    let received = files(&kept).pop().expect("a received snapshot");

    // What the crash would have left.
    let snapshots = data.join("member/snap");
    fs::create_dir_all(&snapshots).unwrap();
    fs::copy(kept.join(&received), snapshots.join(&received)).unwrap();
    fs::remove_dir_all(data.join("member/engine")).unwrap();
    copy(&old.join("member/engine"), &data.join("member/engine"));
    let whole = check(&data, &[]);
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));

    let seed = rand::rng().random::<u64>();
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        let damaged = folder.path().join("c-damaged");
        copy(&data, &damaged);
        let flipped = flip(&damaged.join("member/snap").join(&received), &mut rng).unwrap();
        let mut server =
            Server::launch_single(Kind::Cairn, &damaged, folder.path().join("log"), &[]);
        let began = Instant::now();
        while server.ended().is_none() {
            assert!(
                began.elapsed() < LIMIT,
                "{seed} {flipped}: {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let words = last_words(&server);
        let named = words.contains(received.to_str().unwrap());
        assert!(
            named && words.contains(ADVICE[0]),
            "{seed} {flipped}: {words}"
        );
        let checked = check(&damaged, &[]);
        assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
        fs::remove_dir_all(&damaged).unwrap();
    }
    // As it came it becomes the state.
    servers.iter_mut().for_each(Server::relaunch);
    servers.iter_mut().for_each(Server::wait_ready);
    let installed = "installing a snapshot that was received";
    assert!(servers[2].log().contains(installed), "{}", servers[2].log());
    put(servers[2].url(), "last", "1").await;
    let began = Instant::now();
    loop {
        let [a, c] = [&servers[0], &servers[2]].map(|server| state(server.url()));
        let (a, c) = (a.await.unwrap(), c.await.unwrap());
        if a == c {
            break;
        }
        assert!(began.elapsed() < LIMIT, "{a:?}\n{c:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that a look at a folder could change.
fn picture(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let of = |file: PathBuf| {
        let path = folder.join(&file);
        let meta = fs::metadata(&path).unwrap();
        let content = fs::read(path).unwrap();
        (file, (content, meta.mtime(), meta.mtime_nsec()))
    };
    files(folder).into_iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_reads_everything_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(Kind::Cairn, folder.path(), &SHORT[..1]);
    for round in 0..3 {
        work(server.url(), round).await;
    }
    let data = folder.path().join("data");
    let busy = check(&data, &[]);
    assert_eq!(busy.status.code(), Some(2), "{}", said(&busy));
    assert!(
        said(&busy).contains("could not be checked"),
        "{}",
        said(&busy)
    );
    assert!(
        said(&busy).contains("end the server that runs on it first"),
        "{}",
        said(&busy)
    );
    let saved = folder.path().join("saved.db");
    let save = ["snapshot", "save", saved.to_str().unwrap()];
    let outcome = Etcdctl::new(&tool("etcdctl"), server.url()).run(&save);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let state_then = state(server.url()).await.unwrap();
    let revision = status(server.url()).await.header.unwrap().revision;
    server.stop();

    let before = picture(&data);
    let checked = check(&data, &["-w", "json"]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    assert!(picture(&data) == before, "a check changed something");
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(report["verdict"], "whole");
    let engine = &report["parts"][1];
    assert_eq!(engine["name"], "engine");
    // The log may hold more than the engine had to make durable.
    let found = engine["facts"]["revision"].as_i64().unwrap();
    assert!(found > 1 && found <= revision, "{report}");
    assert!(said(&check(&data, &[])).contains("log is whole"));

    // What was taken over is durable whole.
    let restored = folder.path().join("restored");
    fs::create_dir(&restored).unwrap();
    let output = Command::new(tool("etcdutl"))
        .args(["snapshot", "restore", saved.to_str().unwrap(), "--name=m"])
        .arg(format!("--data-dir={}", restored.join("data").display()))
        .arg("--initial-cluster=m=http://127.0.0.1:2")
        .arg("--initial-advertise-peer-urls=http://127.0.0.1:2")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mut taken_over = Server::start(Kind::Cairn, &restored, &[]);
    let state_taken = state(taken_over.url()).await.unwrap();
    taken_over.stop();
    let checked = check(&restored.join("data"), &["-w", "json"]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let engine = &report["parts"][1]["facts"];
    assert_eq!(engine["hash"], state_taken.hash.0);
    assert_eq!(engine["revision"], revision);
    assert_eq!(engine["keys"], state_taken.keys.len());

    // What came from another member and is not in use yet, with its checksum.
    let received = data.join("member/snap/00000000000000ff.snap.db");
    fs::create_dir_all(received.parent().unwrap()).unwrap();
    fs::copy(&saved, &received).unwrap();
    let checked = check(&data, &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    assert!(
        said(&checked).contains("checksum \"fits\""),
        "{}",
        said(&checked)
    );
    let bytes = fs::metadata(&received).unwrap().len();
    for at in [9000, bytes / 2, bytes - 40, bytes - 1] {
        flip_at(&received, at, 2);
        let checked = check(&data, &[]);
        assert_eq!(checked.status.code(), Some(1), "{at}: {}", said(&checked));
        assert!(
            said(&checked).contains("received snapshot is DAMAGED"),
            "{at}"
        );
        assert!(
            said(&checked).contains(ADVICE[0]),
            "{at}: {}",
            said(&checked)
        );
        flip_at(&received, at, 2);
    }
    fs::remove_file(&received).unwrap();

    // A log without its state, a state without its log, another member's.
    let copied = |name: &str| {
        let to = folder.path().join(name);
        copy(&data, &to);
        to
    };
    let logless = copied("logless");
    for file in files(&logless.join("member/wal")) {
        fs::remove_file(logless.join("member/wal").join(file)).unwrap();
    }
    assert_eq!(check(&logless, &[]).status.code(), Some(2));
    let stateless = copied("stateless");
    fs::remove_dir_all(stateless.join("member/engine")).unwrap();
    assert_eq!(check(&stateless, &[]).status.code(), Some(2));
    let foreign = copied("foreign");
    fs::write(
        foreign.join("member/engine/CAIRN_OWNER"),
        "member 1 of cluster 2\n",
    )
    .unwrap();
    let checked = check(&foreign, &[]);
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    assert!(said(&checked).contains("is that of \"member 1 of cluster 2\""));
    let newer = copied("newer");
    for file in files(&newer.join("member/engine")) {
        if file.ends_with("CAIRN_FORMAT") {
            fs::write(newer.join("member/engine").join(file), "2\n").unwrap();
        }
    }
    let checked = check(&newer, &[]);
    assert_eq!(checked.status.code(), Some(2), "{}", said(&checked));
    assert!(
        said(&checked).contains("start the newer cairn"),
        "{}",
        said(&checked)
    );
    let moved = copied("moved");
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(moved.join("member/wal"), &elsewhere).unwrap();
    assert_eq!(check(&moved, &[]).status.code(), Some(2));
    let wal = format!("--wal-dir={}", elsewhere.display());
    assert_eq!(check(&moved, &[&wal]).status.code(), Some(0));
    // The last segment but one is gone.
    let gap = copied("gap");
    let segments = files(&gap.join("member/wal"));
    let segments: Vec<_> = segments
        .iter()
        .filter(|name| name.extension() == Some("wal".as_ref()))
        .collect();
    assert!(segments.len() > 2, "{segments:?}");
    fs::remove_file(gap.join("member/wal").join(segments[segments.len() - 2])).unwrap();
    let checked = check(&gap, &[]);
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    assert!(said(&checked).contains("has a hole"), "{}", said(&checked));

    assert_eq!(
        check(&folder.path().join("nothing"), &[]).status.code(),
        Some(2)
    );
    assert_eq!(check(&data, &["-w", "table"]).status.code(), Some(2));
    // It is still the member that it was.
    server.restart();
    assert!(state(server.url()).await.unwrap() == state_then);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_reads_data_of_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let mut etcd = Server::start(Kind::Etcd, folder.path(), &["--snapshot-count=50"]);
    for n in 0..200 {
        put(etcd.url(), &format!("k{}", n % 50), &"v".repeat(500)).await;
    }
    let data = folder.path().join("data");
    let busy = check(&data, &[]);
    assert_eq!(busy.status.code(), Some(2), "{}", said(&busy));
    etcd.stop();
    let before = picture(&data);
    let checked = check(&data, &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    assert!(
        said(&checked).contains("etcd's database is whole"),
        "{}",
        said(&checked)
    );
    assert!(picture(&data) == before, "a check changed something");
    let database = data.join("member/snap/db");
    let whole = fs::read(&database).unwrap();
    // Flags, counts and places of pages. Values have no checksum.
    let mut found = 0;
    for page in 2..whole.len() / 4096 {
        // Its kind, in a page that is in use.
        if whole[page * 4096 + 8] != 2 {
            continue;
        }
        flip_at(&database, page as u64 * 4096 + 8, 4);
        let checked = check(&data, &[]);
        found += usize::from(checked.status.code() == Some(1));
        flip_at(&database, page as u64 * 4096 + 8, 4);
    }
    assert!(found > 3, "only {found} pages");
    fs::OpenOptions::new()
        .write(true)
        .open(&database)
        .unwrap()
        .set_len(5 * 4096)
        .unwrap();
    let checked = check(&data, &[]);
    assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
    assert!(
        said(&checked).contains("member/snap/db"),
        "{}",
        said(&checked)
    );
}
