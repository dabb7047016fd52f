//! Our log and etcd's own Go package, each on what the other wrote. `waltool` beside this folder
//! holds the Go side; `go.mod` pins etcd.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, LazyLock},
};

use proto::raftpb::{ConfState, Entry, HardState};
use serde_json::{Value, json};
use wal::{Metadata, Options, OsVfs, Recovered, SnapshotMark, Wal};

static WALTOOL: LazyLock<PathBuf> = LazyLock::new(|| {
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("waltool");
    let status = Command::new("go")
        .args(["build", "-trimpath", "-o"])
        .arg(&binary)
        .arg("./waltool")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "waltool does not build");
    binary
});

fn waltool(arguments: &[&str]) -> Output {
    Command::new(&*WALTOOL).args(arguments).output().unwrap()
}

fn read_by_etcd(dir: &Path) -> Result<Value, String> {
    let output = waltool(&["read", dir.to_str().unwrap()]);
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn as_json(recovered: &Recovered) -> Value {
    let entry = |entry: &Entry| {
        let data = entry.data.clone().unwrap_or_default();
        json!({"term": entry.term, "index": entry.index, "data": String::from_utf8_lossy(&data)})
    };
    let mark = |mark: &SnapshotMark| json!({"index": mark.index, "term": mark.term});
    json!({
        "node_id": recovered.metadata.node_id,
        "cluster_id": recovered.metadata.cluster_id,
        "term": recovered.hard_state.term,
        "vote": recovered.hard_state.vote,
        "commit": recovered.hard_state.commit,
        "entries": recovered.entries.iter().map(entry).collect::<Vec<_>>(),
        "marks": recovered.marks.iter().map(mark).collect::<Vec<_>>(),
    })
}

const OPTIONS: Options = Options {
    segment_bytes: 16 << 10,
    prepare_ahead: true,
};

fn open(dir: &Path) -> (Wal<OsVfs>, Recovered) {
    let beginning = SnapshotMark::default();
    Wal::open(Arc::new(OsVfs::new()), dir, beginning, OPTIONS).unwrap()
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

#[test]
fn etcd_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let owner = Metadata {
        node_id: 0x8e9e_05c5_2164_694d,
        cluster_id: 0xcdf8_1819_4e3a_8c32,
    };
    let mut wal = Wal::create(Arc::new(OsVfs::new()), &dir, owner, OPTIONS).unwrap();
    append(&mut wal, 1..=120, 1);
    // A new leader replaces a tail; a snapshot stands for the first entries; the process restarts.
    append(&mut wal, 100..=130, 2);
    let voters = ConfState {
        voters: vec![owner.node_id],
        auto_leave: Some(false),
        ..ConfState::default()
    };
    wal.save_snapshot_mark(SnapshotMark { index: 60, term: 1 }, voters)
        .unwrap();
    drop(wal);
    let (mut wal, _) = open(&dir);
    append(&mut wal, 131..=140, 3);
    drop(wal);
    assert!(segments(&dir) > 3, "the log was never cut");

    let (wal, ours) = open(&dir);
    drop(wal);
    assert_eq!(ours.entries.len(), 140);
    assert_eq!(ours.marks.len(), 2);
    assert_eq!(read_by_etcd(&dir).unwrap(), as_json(&ours));
}

#[test]
fn we_read_what_etcd_writes_and_go_on_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("wal");
    let output = waltool(&["write", dir.to_str().unwrap(), "150"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(segments(&dir) > 3, "etcd never cut it");

    let etcds = read_by_etcd(&dir).unwrap();
    assert_eq!(etcds["entries"].as_array().unwrap().len(), 150);
    let (mut wal, ours) = open(&dir);
    assert_eq!(as_json(&ours), etcds);
    append(&mut wal, 151..=200, 4);
    drop(wal);
    let (wal, ours) = open(&dir);
    drop(wal);
    assert_eq!(ours.entries.len(), 200);
    assert_eq!(read_by_etcd(&dir).unwrap(), as_json(&ours));
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
    let error = read_by_etcd(&dir).unwrap_err();
    assert!(error.contains("crc mismatch"), "{error}");
    let beginning = SnapshotMark::default();
    let ours = Wal::open(Arc::new(OsVfs::new()), &dir, beginning, OPTIONS);
    let error = ours.err().unwrap().to_string();
    assert!(error.contains("crc mismatch"), "{error}");
}
