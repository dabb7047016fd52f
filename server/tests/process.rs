//! The process as launchers see it: what it prints, how it ends, what it refuses.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn cairn(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.args(arguments).env_clear().output().unwrap()
}

#[test]
fn the_version_is_etcds_on_the_first_line_and_ours_on_the_last() {
    let output = cairn(&["--version"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().next(), Some("etcd Version: 3.7.3"));
    let last = text.lines().last().unwrap();
    assert_eq!(last, concat!("cairn Version: ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_names_every_flag() {
    let output = cairn(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for flag in ["--name", "--listen-client-urls", "--unsafe-no-fsync"] {
        assert!(text.contains(flag), "{flag}");
    }
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data_dir = format!("--data-dir={}", data.display());
    let check = |more: &[&str], code: i32, expected: &str| {
        let mut arguments = vec![data_dir.as_str()];
        arguments.extend(more);
        let output = cairn(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {text}");
        assert!(text.contains(expected), "{more:?}: {text}");
        assert!(!data.exists(), "{more:?} made the data directory");
    };
    check(
        &["--nonsense"],
        2,
        "flag provided but not defined: -nonsense",
    );
    check(
        &["--election-timeout=100"],
        1,
        "should be at least as 5 times",
    );
    check(&["--discovery-srv=example.com"], 1, "not there yet");
    check(
        &["--listen-peer-urls=https://127.0.0.1:1"],
        1,
        "KeyFile and CertFile are not presented",
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", taken.local_addr().unwrap());
    check(
        &[
            &format!("--listen-client-urls={url}"),
            &format!("--advertise-client-urls={url}"),
        ],
        1,
        "is another server running on that port?",
    );
}

#[test]
fn data_that_is_not_ours_is_refused_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let snap = folder.path().join("member/snap");
    std::fs::create_dir_all(&snap).unwrap();
    std::fs::write(snap.join("db"), b"etcd's").unwrap();
    let output = cairn(&[
        &format!("--data-dir={}", folder.path().display()),
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:1",
    ]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("is a database of etcd, but there is no log"),
        "{text}"
    );
    assert_eq!(std::fs::read(snap.join("db")).unwrap(), b"etcd's");
    assert!(!folder.path().join("member/wal").exists());
}
