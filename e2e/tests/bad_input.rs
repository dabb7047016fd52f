//! What a server does with what it cannot use: flags, ports. It ends with a word that says
//! what to do, and touches nothing. Where etcd refuses too, with its exit code and its words.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, OpenOptions},
    net::TcpListener,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use e2e::{
    Process,
    client::{channel, get, put, status},
    free_port,
    process::{contents, copy},
    tool,
};
use proto::etcdserverpb::{MemberAddRequest, cluster_client::ClusterClient};
use rand::{Rng, SeedableRng, rngs::StdRng};

const READY: &str = "ready to serve client requests";
/// SIGTERM's number: how a process ends that had no time to ask for the signal.
const SIGTERM: i32 = 15;

/// A server in a folder of its own.
struct Place {
    folder: tempfile::TempDir,
    client: u16,
    peer: u16,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            client: free_port(),
            peer: free_port(),
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut arguments = vec![
            "--name=m".to_owned(),
            format!("--data-dir={}", self.data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=m={peer}"),
        ];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments
    }

    fn start(&self) -> Process {
        Process::cairn(&self.folder.path().join("log"), &self.arguments(&[]), &[])
    }

    fn serve(&self) -> Process {
        let mut process = self.start();
        process.wait_for(READY);
        process
    }

    /// The member ends by itself, says why, and changes nothing on its disk.
    fn assert_refuses(&self, says: &[&str]) {
        let before = contents(&self.data());
        let mut process = self.start();
        let status = process.wait_end();
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{log}");
        for says in says {
            assert!(log.contains(says), "{says:?} is missing: {log}");
        }
        let after = contents(&self.data());
        for (path, found) in &before {
            assert_eq!(after.get(path), Some(found), "{} changed", path.display());
        }
        assert_eq!(before.len(), after.len(), "something was added");
    }

    fn segment(&self) -> PathBuf {
        let wal = self.data().join("member/wal");
        let names = fs::read_dir(wal)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut segments: Vec<PathBuf> = names
            .filter(|path| path.extension().is_some_and(|of| of == "wal"))
            .collect();
        segments.sort();
        segments.pop().unwrap()
    }
}

/// What both refuse: flags and variables, the exit code, and words that both say.
type Refused<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);

#[test]
fn flags_that_mean_nothing_are_refused_as_etcd_does() {
    let etcd = tool("etcd");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("bad.yml"), "name: [").unwrap();
    fs::write(path("file"), "").unwrap();
    let config_file = format!("--config-file={}", path("bad.yml").display());
    let data_in_file = format!("--data-dir={}", path("file/data").display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("http://{}", taken.local_addr().unwrap());
    let url = format!("http://127.0.0.1:{}", free_port());
    let listen_taken = format!("--listen-client-urls={taken}");
    let advertise = format!("--advertise-client-urls={url}");
    let listen = format!("--listen-client-urls={url}");
    let cases: &[Refused<'_>] = &[
        (
            &["--nonsense"],
            &[],
            2,
            "flag provided but not defined: -nonsense",
        ),
        (&["start"], &[], 1, "is not a valid flag"),
        (&["--name"], &[], 2, "flag needs an argument: -name"),
        (
            &["--heartbeat-interval=abc"],
            &[],
            2,
            "invalid value \"abc\" for flag -heartbeat-interval: parse error",
        ),
        (
            &["--heartbeat-interval=-5"],
            &[],
            2,
            "invalid value \"-5\" for flag -heartbeat-interval: parse error",
        ),
        (
            &["--pre-vote=maybe"],
            &[],
            2,
            "invalid boolean value \"maybe\" for -pre-vote: parse error",
        ),
        (
            &["--heartbeat-interval=0"],
            &[],
            1,
            "must be >0 (set to 0ms)",
        ),
        (
            &["--election-timeout=100"],
            &[],
            1,
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            &["--election-timeout=60000"],
            &[],
            1,
            "is too long, and should be set less than 50000ms",
        ),
        (
            &[&listen],
            &[],
            1,
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--listen-client-urls=ftp://127.0.0.1:1"],
            &[],
            2,
            "URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:1",
        ),
        (
            &["--listen-client-urls=http://127.0.0.1"],
            &[],
            2,
            "URL address does not have the form \"host:port\": http://127.0.0.1",
        ),
        (
            &["--listen-client-urls=127.0.0.1:2379"],
            &[],
            2,
            "invalid value \"127.0.0.1:2379\" for flag -listen-client-urls: parse",
        ),
        (
            &["--advertise-client-urls=http://a:1/x"],
            &[],
            2,
            "URL must not contain a path: http://a:1/x",
        ),
        (
            &["--listen-peer-urls=http://example.com:2380"],
            &[],
            1,
            "expected IP in URL for binding (http://example.com:2380",
        ),
        (
            &["--initial-cluster=other=http://127.0.0.1:1"],
            &[],
            1,
            "in the initial cluster configuration",
        ),
        (
            &["--initial-cluster=default=http://127.0.0.1:9"],
            &[],
            1,
            "--initial-cluster has default=http://127.0.0.1:9 but missing from",
        ),
        (
            &["--initial-cluster-state=old"],
            &[],
            2,
            "initial-cluster-state",
        ),
        (&["--quota-backend-bytes=x"], &[], 2, "parse error"),
        (&["--max-txn-ops=-1"], &[], 2, "parse error"),
        (&["--log-level=loud"], &[], 2, "loud"),
        (
            &["--log-format=xml"],
            &[],
            1,
            "unknown log format: xml, supported values json, console",
        ),
        (
            &["--auto-compaction-mode=never"],
            &[],
            1,
            "unknown auto-compaction-mode",
        ),
        (
            &["--auto-compaction-retention=day"],
            &[],
            1,
            "error parsing CompactionRetention",
        ),
        (
            &["--feature-gates=Nothing=true"],
            &[],
            2,
            "unrecognized feature gate: Nothing",
        ),
        (
            &["--log-outputs=/nonexistent/x.log"],
            &[],
            1,
            "/nonexistent/x.log",
        ),
        (&["--config-file=/nonexistent"], &[], 1, "/nonexistent"),
        (&[&config_file], &[], 1, "error"),
        (&["--name=b"], &[("ETCD_NAME", "a")], 1, "ETCD_NAME"),
        (
            &[],
            &[("ETCD_HEARTBEAT_INTERVAL", "abc")],
            1,
            "for ETCD_HEARTBEAT_INTERVAL: parse error",
        ),
        (&[&data_in_file], &[], 1, "file/data"),
        (
            &[&listen_taken, &advertise],
            &[],
            1,
            "ddress already in use",
        ),
    ];
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut wrong = Vec::new();
    for (arguments, env, code, says) in cases {
        for etcds in [false, true] {
            let data = path("data");
            let mut all = vec![];
            let named = |name| arguments.iter().any(|argument| argument.starts_with(name));
            // A file stands alone, and its own flags come last: the last one counts.
            if !named("--config-file") {
                all.push(format!("--data-dir={}", data.display()));
                all.push(format!("--listen-peer-urls={peer}"));
                if !named("--listen-client-urls") {
                    all.push(listen.clone());
                    all.push(advertise.clone());
                }
            }
            all.extend(arguments.iter().map(|&argument| argument.to_owned()));
            let log = path("log");
            let mut process = match etcds {
                true => Process::of(Command::new(&etcd), &log, &all, env),
                false => Process::cairn(&log, &all, env),
            };
            let status = process.wait_end();
            let log = process.log().replace("\\\"", "\"");
            let who = if etcds { "etcd" } else { "cairn" };
            let found = format!("{who} {arguments:?} {env:?}: {status}: {log}");
            let right = status.code() == Some(*code) && log.contains(says);
            if !right || (!etcds && (data.exists() || log.contains("panicked"))) {
                wrong.push(found);
            }
            // etcd makes its own before it finds out.
            let _ = fs::remove_dir_all(&data);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_etcd_without_its_log_is_refused_unchanged() {
    let place = Place::new();
    let log = place.folder.path().join("etcd.log");
    let mut etcd = Process::of(Command::new(tool("etcd")), &log, &place.arguments(&[]), &[]);
    etcd.wait_for(READY);
    put(&place.url(), "k", "v").await;
    let besides = Place {
        folder: tempfile::tempdir().unwrap(),
        client: free_port(),
        peer: free_port(),
    };
    let mut arguments = besides.arguments(&[]);
    arguments.push(format!("--data-dir={}", place.data().display()));
    let mut cairn = Process::cairn(&besides.folder.path().join("log"), &arguments, &[]);
    assert_eq!(cairn.wait_end().code(), Some(1), "{}", cairn.log());
    let told = "another process has it open; end that etcd first";
    assert!(cairn.log().contains(told), "{}", cairn.log());
    put(&place.url(), "k", "still there").await;
    etcd.kill();
    fs::remove_dir_all(place.data().join("member/wal")).unwrap();
    place.assert_refuses(&[
        "is a database of etcd",
        "give --wal-dir as that etcd had it",
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_directory_serves_one_process() {
    let place = Place::new();
    let mut first = place.serve();
    put(&place.url(), "k", "v").await;
    let second = Place {
        folder: tempfile::tempdir().unwrap(),
        client: free_port(),
        peer: free_port(),
    };
    let mut arguments = second.arguments(&[]);
    arguments[1] = format!("--data-dir={}", place.data().display());
    let mut process = Process::cairn(&second.folder.path().join("log"), &arguments, &[]);
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(
        process
            .log()
            .contains("another process uses this data directory"),
        "{}",
        process.log()
    );
    // The same flags meet the port first.
    let mut process = Process::cairn(
        &second.folder.path().join("log"),
        &place.arguments(&[]),
        &[],
    );
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(process.log().contains("is another server running"));
    // The first one did not notice.
    put(&place.url(), "k", "w").await;
    first.kill();
    let _process = place.serve();
    assert_eq!(get(&place.url(), "k", false).await.as_deref(), Some("w"));
}

/// Where the records of a segment end: the rest is zeros.
fn end_of_records(segment: &Path) -> u64 {
    let bytes = fs::read(segment).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    // Records fill whole words.
    (last / 8 + 1) * 8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_and_damage_is_refused() {
    let place = Place::new();
    let mut process = place.serve();
    for n in 0..20 {
        put(&place.url(), &format!("k{n}"), &"v".repeat(300)).await;
    }
    process.kill();
    // A write that a power cut tore: its length and its first bytes reached the disk.
    let segment = place.segment();
    let end = end_of_records(&segment);
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&4000_u64.to_le_bytes(), end).unwrap();
    file.write_all_at(&[8, 2, 16, 77], end + 8).unwrap();
    let mut process = place.serve();
    assert!(
        process.log().contains("cut a torn tail off the log"),
        "{}",
        process.log()
    );
    for n in 0..20 {
        let found = get(&place.url(), &format!("k{n}"), false).await;
        assert_eq!(found.map(|value| value.len()), Some(300));
    }
    put(&place.url(), "after", "w").await;
    process.kill();

    // A byte in the middle that is another one now.
    let mut byte = [0];
    let at = end / 2;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&segment)
        .unwrap();
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    place.assert_refuses(&[
        "is damaged at byte",
        "the member does not start",
        "remove the member from the cluster",
    ]);
    // Put right again it goes on.
    file.write_all_at(&byte, at).unwrap();
    let _process = place.serve();
    assert_eq!(
        get(&place.url(), "after", false).await.as_deref(),
        Some("w")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_data_that_do_not_belong_together_are_refused() {
    let place = Place::new();
    let mut process = place.serve();
    put(&place.url(), "k", "v").await;
    process.kill();
    let member = place.data().join("member");
    let kept = place.folder.path().join("kept");
    copy(&member.join("wal"), &kept);

    // A change of the members flushes the engine; then the log of before is put back.
    let mut process = place.serve();
    let mut client = ClusterClient::new(channel(&place.url()));
    let learner = MemberAddRequest {
        peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
        is_learner: true,
    };
    client.member_add(learner).await.unwrap();
    process.kill();
    let newer = place.folder.path().join("newer");
    fs::rename(member.join("wal"), &newer).unwrap();
    copy(&kept, &member.join("wal"));
    let mut process = place.start();
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(
        process.log().contains("parts of the log are missing"),
        "{}",
        process.log()
    );

    // No log at all.
    fs::remove_dir_all(member.join("wal")).unwrap();
    place.assert_refuses(&["holds an engine, but there is no log", "--wal-dir"]);

    // An engine in a format that a later version writes.
    fs::rename(&newer, member.join("wal")).unwrap();
    let format = member.join("engine/0000000000000000/CAIRN_FORMAT");
    fs::write(&format, "2\n").unwrap();
    place.assert_refuses(&["has engine format 2", "start the newer cairn"]);
    fs::write(&format, "1\n").unwrap();

    // Another member's engine.
    let other = Place::new();
    let mut process = other.serve();
    put(&other.url(), "foreign", "v").await;
    process.kill();
    let own = place.folder.path().join("own");
    fs::rename(member.join("engine"), &own).unwrap();
    fs::rename(other.data().join("member/engine"), member.join("engine")).unwrap();
    let mut process = place.start();
    assert_eq!(process.wait_end().code(), Some(1), "{}", process.log());
    assert!(
        process.log().contains("and the log beside it that of"),
        "{}",
        process.log()
    );
    // As it says: without an engine it is built anew from the log.
    fs::remove_dir_all(member.join("engine")).unwrap();
    let _process = place.serve();
    assert_eq!(get(&place.url(), "k", false).await.as_deref(), Some("v"));
    assert_eq!(get(&place.url(), "foreign", false).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_word_to_end_is_heard_at_any_time_of_the_start() {
    let place = Place::new();
    let mut random = StdRng::seed_from_u64(7);
    let mut by_itself = 0;
    for round in 0..24 {
        let mut process = place.start();
        std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
        process.signal(if round % 2 == 0 { "TERM" } else { "INT" });
        let status = process.wait_end();
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => by_itself += 1,
            // Before it could ask for signals the system ends it.
            (None, Some(SIGTERM | 2)) => {}
            _ => panic!("{status}: {}", process.log()),
        }
        assert!(
            !process.log().contains("\"level\":\"error\""),
            "{}",
            process.log()
        );
    }
    assert!(by_itself > 0, "no start lived long enough to be asked");
    let _process = place.serve();
    put(&place.url(), "k", "v").await;
    assert_eq!(
        status(&place.url()).await.leader,
        status(&place.url()).await.header.unwrap().member_id
    );
}
