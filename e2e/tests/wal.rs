//! Our log and etcd's own Go package, each on what the other wrote. `waltool` beside this folder
//! holds the Go side; `go.mod` pins etcd.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use e2e::tool;
use proto::raftpb::{ConfState, Entry, HardState};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wal::{Metadata, Options, OsVfs, Recovered, SnapshotMark, Wal};

static WALTOOL: LazyLock<PathBuf> = LazyLock::new(|| tool("waltool"));

fn waltool(arguments: &[&str]) -> Output {
    Command::new(&*WALTOOL).args(arguments).output().unwrap()
}

fn ran(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

fn read_by_etcd(dir: &Path, start: SnapshotMark) -> Result<Value, String> {
    let SnapshotMark { index, term } = start;
    let [index, term] = [index, term].map(|n| n.to_string());
    let output = waltool(&["read", dir.to_str().unwrap(), &index, &term]);
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

const BEGINNING: SnapshotMark = SnapshotMark { index: 0, term: 0 };

/// What the log holds for a state of `at_most`, in the form in which etcd's side says it.
fn read_by_us(dir: &Path, at_most: u64) -> (Recovered, Value) {
    let (wal, recovered) = open(dir, at_most);
    let (from, to) = (recovered.start.mark.index + 1, wal.last_index() + 1);
    let entries = wal.reader().read(from, to, usize::MAX).unwrap();
    // What is handed over is the newest of them.
    assert!(entries.ends_with(&recovered.entries));
    assert_eq!(wal.metadata(), recovered.metadata);
    drop(wal);
    let owner = unlocked(|| Wal::metadata_of(&OsVfs::new(), dir)).unwrap();
    assert_eq!(owner, recovered.metadata);
    let entry = |entry: &Entry| {
        let data = entry.data.clone().unwrap_or_default();
        let sum = hex::encode(Sha256::digest(&data));
        json!({"term": entry.term, "index": entry.index, "size": data.len(), "sum": sum})
    };
    let mark = |mark: &SnapshotMark| json!({"index": mark.index, "term": mark.term});
    let all = json!({
        "node_id": recovered.metadata.node_id,
        "cluster_id": recovered.metadata.cluster_id,
        "term": recovered.hard_state.term,
        "vote": recovered.hard_state.vote,
        "commit": recovered.hard_state.commit,
        "entries": entries.iter().map(entry).collect::<Vec<_>>(),
        "marks": recovered.marks.iter().map(mark).collect::<Vec<_>>(),
    });
    (recovered, all)
}

/// Both sides read the same from where we begin for a state of `at_most`.
fn both_read(dir: &Path, at_most: u64) -> Recovered {
    let (recovered, ours) = read_by_us(dir, at_most);
    assert_eq!(read_by_etcd(dir, recovered.start.mark).unwrap(), ours);
    recovered
}

const OPTIONS: Options = Options {
    segment_bytes: 16 << 10,
    prepare_ahead: true,
};

fn open(dir: &Path, at_most: u64) -> (Wal<OsVfs>, Recovered) {
    try_open(dir, at_most).unwrap()
}

fn try_open(dir: &Path, at_most: u64) -> Result<(Wal<OsVfs>, Recovered), wal::Error> {
    unlocked(|| Wal::open(Arc::new(OsVfs::new()), dir, at_most, OPTIONS))
}

/// Calls again while a file is locked. Other tests of this process start programs: between fork and
/// exec those hold what is open here, also what is closed here meanwhile.
fn unlocked<T>(call: impl Fn() -> Result<T, wal::Error>) -> Result<T, wal::Error> {
    let began = Instant::now();
    loop {
        match call() {
            Err(error)
                if error.to_string().contains("is locked")
                    && began.elapsed() < Duration::from_secs(20) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn append(wal: &mut Wal<OsVfs>, indexes: std::ops::RangeInclusive<u64>, term: u64) {
    for index in indexes {
        let entry = Entry {
            r#type: Some(0),
            term: Some(term),
            index: Some(index),
            data: Some(format!("{index} ").repeat(index as usize).into()),
        };
        let state = HardState {
            term: Some(term),
            vote: Some(3),
            commit: Some(index / 2),
        };
        wal.append(&[entry], Some(&state), true).unwrap();
    }
}

fn segments(dir: &Path) -> usize {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.extension().is_some_and(|ext| ext == "wal"))
        .count()
}

const OWNER: Metadata = Metadata {
    node_id: 0x8e9e_05c5_2164_694d,
    cluster_id: 0xcdf8_1819_4e3a_8c32,
};

fn create(dir: &Path) -> Wal<OsVfs> {
    Wal::create(Arc::new(OsVfs::new()), dir, OWNER, OPTIONS).unwrap()
}

fn members() -> ConfState {
    ConfState {
        voters: vec![OWNER.node_id],
        auto_leave: Some(false),
        ..ConfState::default()
    }
}

fn mark(index: u64, term: u64) -> SnapshotMark {
    SnapshotMark { index, term }
}

#[test]
fn etcd_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let mut wal = create(&dir);
    append(&mut wal, 1..=120, 1);
    // A new leader replaces a tail; a snapshot stands for the first entries; the process restarts.
    append(&mut wal, 100..=130, 2);
    wal.save_snapshot_mark(mark(60, 1), members()).unwrap();
    drop(wal);
    let (mut wal, _) = open(&dir, 0);
    append(&mut wal, 131..=140, 3);
    drop(wal);
    assert!(segments(&dir) > 3, "the log was never cut");

    let ours = both_read(&dir, 0);
    assert_eq!(ours.entries.len(), 140);
    assert_eq!(ours.marks.len(), 2);
    assert_eq!(both_read(&dir, 60).entries.len(), 80);
}

/// Truncated again and again, between restarts, and begun anew twice: at a snapshot beyond its end
/// and at one in the place of another history. etcd opens every one at our record and goes on in it.
#[test]
fn etcd_reads_what_we_leave_of_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let mut wal = create(&dir);
    let path = dir.to_str().unwrap();
    for round in 1..=5 {
        let first = wal.last_index() + 1;
        append(&mut wal, first..=first + 59, round);
        // Not committed, and replaced.
        append(&mut wal, first + 40..=first + 69, round + 1);
        let at = mark(first + 20, round);
        let before = segments(&dir);
        wal.save_snapshot_mark(at, members()).unwrap();
        let released = wal.release(at.index - 3).unwrap();
        assert!(released.segments > 0 || round == 1, "nothing to drop");
        assert_eq!(segments(&dir), before - released.segments);
        drop(wal);
        let ours = both_read(&dir, at.index + 5);
        assert_eq!((ours.start.mark, ours.start.conf_state), (at, members()));
        assert_eq!(ours.entries.len(), 49);

        let [index, term] = [at.index, at.term].map(|n| n.to_string());
        ran(&waltool(&["append", path, &index, &term, "7"]));
        assert_eq!(both_read(&dir, at.index).entries.len(), 56);
        wal = open(&dir, at.index).0;
    }

    let last = wal.last_index();
    for (at, ends) in [(mark(last + 500, 8), 0), (mark(last + 520, 9), last + 560)] {
        let state = HardState {
            term: Some(at.term),
            vote: Some(0),
            commit: Some(at.index),
        };
        wal.restart_at(at, members(), &state).unwrap();
        drop(wal);
        let ours = both_read(&dir, at.index);
        assert_eq!((ours.start.mark, ours.entries.len()), (at, 0));
        assert_eq!(ours.start.conf_state, members());
        wal = open(&dir, at.index).0;
        if ends == 0 {
            append(&mut wal, at.index + 1..=last + 560, at.term);
            continue;
        }
        // Entries up to there are in the log still, and nobody sees them.
        assert!(segments(&dir) > 3);
        append(&mut wal, at.index + 1..=at.index + 2, at.term);
        drop(wal);
        assert_eq!(both_read(&dir, at.index).entries.len(), 2);
        wal = open(&dir, at.index).0;
        while wal.release(at.index).unwrap().more {}
        assert_eq!(segments(&dir), 1);
        drop(wal);
        assert_eq!(both_read(&dir, at.index).entries.len(), 2);
        let [index, term] = [at.index, at.term].map(|n| n.to_string());
        ran(&waltool(&["append", path, &index, &term, "40"]));
        assert_eq!(both_read(&dir, u64::MAX).entries.len(), 42);
        return;
    }
    panic!("the second snapshot was never tried");
}

#[test]
fn we_read_what_etcd_writes_and_go_on_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    ran(&waltool(&["write", dir.to_str().unwrap(), "150"]));
    assert!(segments(&dir) > 3, "etcd never cut it");

    assert_eq!(both_read(&dir, u64::MAX).entries.len(), 150);
    let (mut wal, _) = open(&dir, u64::MAX);
    append(&mut wal, 151..=200, 4);
    drop(wal);
    assert_eq!(both_read(&dir, u64::MAX).entries.len(), 200);
}

/// With its last record far ahead of the log: the state that would have committed it never came.
#[test]
fn we_read_what_etcd_leaves_of_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let path = dir.to_str().unwrap();
    ran(&waltool(&["truncate", path, "230"]));
    let first = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name());
    let first = first.min().unwrap();
    assert!(
        !first.to_str().unwrap().starts_with(&"0".repeat(16)),
        "never purged: {first:?}"
    );

    let newest = both_read(&dir, u64::MAX);
    assert_eq!(newest.start.mark, mark(215, 5));
    assert_eq!(newest.start.conf_state.voters, [7, 215]);
    assert_eq!(newest.entries.len(), 15);
    assert_eq!(both_read(&dir, 214).start.mark, mark(195, 4));
    let refused = try_open(&dir, 100).err().unwrap();
    assert!(
        refused.to_string().contains("snapshot not found"),
        "{refused}"
    );

    // On we go, past the record that counted for nothing.
    let (mut wal, _) = open(&dir, 230);
    append(&mut wal, 231..=300, 6);
    wal.save_snapshot_mark(mark(250, 6), members()).unwrap();
    while wal.release(250).unwrap().more {}
    drop(wal);
    assert_eq!(both_read(&dir, u64::MAX).start.mark, mark(250, 6));
}

#[test]
fn we_read_what_etcd_receives() {
    let folder = tempfile::tempdir().unwrap();
    // A log of 60 entries, then a snapshot of term 3, then more entries.
    let receive = |name: String, index: u64, entries: &str| {
        let dir = folder.path().join(name);
        let index = index.to_string();
        let path = dir.to_str().unwrap();
        ran(&waltool(&["receive", path, "60", &index, "3", entries]));
        dir
    };
    // Beyond the end of its log, and just behind it.
    for index in [61, 400] {
        let dir = receive(format!("wal{index}"), index, "10");
        let ours = both_read(&dir, index);
        assert_eq!((ours.start.mark, ours.entries.len()), (mark(index, 3), 10));
        let refused = try_open(&dir, index - 1);
        assert!(refused.is_err(), "entries are missing");
    }
    // In the place of its last entries.
    let dir = receive("wal".to_owned(), 45, "10");
    let ours = both_read(&dir, 45);
    let terms: Vec<_> = ours.entries.iter().map(|e| e.term.unwrap()).collect();
    assert_eq!(terms, [3; 10]);
    // Before new ones are written, etcd gives out the old ones behind it, which raft must not see.
    let dir = receive("none".to_owned(), 45, "0");
    let etcds = read_by_etcd(&dir, mark(45, 3)).unwrap();
    assert_eq!(etcds["entries"].as_array().unwrap().len(), 15);
    let (_, recovered) = open(&dir, 45);
    assert_eq!(
        (recovered.start.mark, recovered.entries.len()),
        (mark(45, 3), 0)
    );
}

/// The log of a real etcd that took many snapshots and purged what they cover.
#[tokio::test]
async fn we_read_the_log_of_a_real_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--snapshot-count=10", "--max-wals=1", "--unsafe-no-fsync"];
    let mut server = e2e::Server::start(e2e::Kind::Etcd, folder.path(), &flags);
    let dir = folder.path().join("data/member/wal");
    // Three segments of 64,000,000 bytes and a part of the fourth.
    let value = "x".repeat(1 << 20);
    for n in 0..220 {
        e2e::client::put(server.url(), &format!("key{}", n % 4), &value).await;
    }
    server.stop();
    let before = segments(&dir);
    // It purges when it starts, and then every 30 s.
    server.restart();
    let began = std::time::Instant::now();
    while segments(&dir) == before {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(60),
            "nothing is purged"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for n in 0..120 {
        e2e::client::put(server.url(), &format!("small{n}"), "value").await;
    }
    // Without a word, so that the end of the log is as it was in use.
    server.kill();
    let newest = both_read(&dir, u64::MAX);
    assert!(
        newest.marks.len() == 1 && newest.start.mark.index > 300,
        "{:?}",
        newest.start
    );
    assert!(!newest.start.conf_state.voters.is_empty());
    let older = both_read(&dir, newest.start.mark.index - 1);
    assert!(older.start.mark.index < newest.start.mark.index);
    let refused = try_open(&dir, 0);
    assert!(refused.is_err(), "the beginning was purged");

    let at = newest.start.mark;
    let (mut wal, _) = open(&dir, at.index);
    let last = wal.last_index();
    append(&mut wal, last + 1..=last + 50, at.term);
    wal.save_snapshot_mark(mark(last, at.term), members())
        .unwrap();
    while wal.release(last).unwrap().more {}
    drop(wal);
    assert_eq!(both_read(&dir, last).entries.len(), 50);
}

/// The comparison would prove nothing if etcd's side accepted anything.
#[test]
fn etcd_refuses_a_damaged_log_as_we_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    waltool(&["write", dir.to_str().unwrap(), "30"]);
    let file = dir.join("0000000000000000-0000000000000000.wal");
    let mut bytes = fs::read(&file).unwrap();
    // In the data of the last entry, so that only its CRC can tell.
    let data = [b'a' + 10; 90];
    let at = bytes.windows(90).position(|window| window == data).unwrap();
    bytes[at + 45] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = read_by_etcd(&dir, BEGINNING).unwrap_err();
    assert!(error.contains("crc mismatch"), "{error}");
    let ours = try_open(&dir, 0);
    let error = ours.err().unwrap().to_string();
    assert!(error.contains("crc mismatch"), "{error}");
}
