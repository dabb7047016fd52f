//! Users and roles where members and data meet: etcdctl's commands on both servers, Cairns among
//! real etcds, data that move between them, and certificates that name users.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use e2e::{
    Authority, Etcdctl, Issue, KeyFiles, Kind, Member, Server, etcdctl::ok, process::export,
    replace, tool,
};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
/// Cheap hashes: there are many commands, each with a password.
const CHEAP: &str = "--bcrypt-cost=4";

static ETCDCTL: LazyLock<PathBuf> = LazyLock::new(|| tool("etcdctl"));

fn etcdctl(server: &Server) -> Etcdctl {
    Etcdctl::new(&ETCDCTL, server.url())
}

/// Runs a command until it succeeds: members come, go and elect.
fn until_ok(server: &Server, arguments: &[&str]) -> String {
    let began = Instant::now();
    loop {
        let outcome = etcdctl(server).run(arguments);
        if outcome.code == 0 {
            return outcome.output;
        }
        let late = began.elapsed() > LIMIT;
        assert!(!late, "{arguments:?}: {outcome:?}\n{}", tail(server));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn tail(server: &Server) -> String {
    let log = server.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Waits until a command's output is what it should be.
fn until_is(server: &Server, arguments: &[&str], expected: &str) {
    let began = Instant::now();
    loop {
        let outcome = etcdctl(server).run(arguments);
        if outcome.code == 0 && outcome.output == expected {
            return;
        }
        let late = began.elapsed() > LIMIT;
        assert!(
            !late,
            "{arguments:?}: {outcome:?}, not {expected:?}\n{}",
            tail(server)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Root, and ann, who may read and write what begins with `a/`, and read `b`.
const USERS: [&[&str]; 9] = [
    &["user", "add", "root", "--new-user-password=pw"],
    &["user", "grant-role", "root", "root"],
    &["role", "add", "r"],
    &[
        "role",
        "grant-permission",
        "r",
        "readwrite",
        "a/",
        "--prefix",
    ],
    &["role", "grant-permission", "r", "read", "b"],
    &["user", "add", "ann", "--new-user-password=ann"],
    &["user", "grant-role", "ann", "r"],
    &["user", "add", "tls", "--no-password"],
    &["auth", "enable"],
];

const ROOT: &str = "--user=root:pw";
const ANN: &str = "--user=ann:ann";

#[test]
fn etcdctl_says_the_same_of_users_and_roles() {
    let folders = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let kinds = [Kind::Cairn, Kind::Etcd];
    let servers = [0, 1].map(|at| Server::start(kinds[at], folders[at].path(), &[CHEAP]));
    let same = |arguments: &[&str], input: &str| {
        let [cairn, etcd] = [0, 1].map(|at| {
            let etcdctl = etcdctl(&servers[at]);
            etcdctl.masked(&etcdctl.run_with(arguments, input))
        });
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}: cairn left, etcd right");
    };
    same(&["auth", "status"], "");
    same(&["auth", "enable"], "");
    same(&["put", "b", "1"], "");
    for command in USERS {
        same(command, "");
    }
    same(&["auth", "status"], "");
    same(
        &["user", "add", "bob", "--interactive=false", ROOT],
        "secret\n",
    );
    for arguments in [
        &["get", "b"][..],
        &["get", "b", ANN],
        &["get", "b", "--user=ann:wrong"],
        &["get", "b", "--user=nobody:x"],
        &["get", "b", "--user=tls:x"],
        &["put", "b", "2", ANN],
        &["put", "a/1", "1", ANN],
        &["put", "a/1", "2", "--prev-kv", ANN],
        &["get", "a/", "--prefix", ANN],
        &["get", "", "--prefix", ANN],
        &["get", "", "--prefix", ROOT],
        &["get", "a/", "b", ANN],
        &["del", "a/1", ANN],
        &["del", "b", ANN],
        &["compaction", "2", ANN],
        &["compaction", "2", ROOT],
        &["member", "list", ANN],
        &["member", "remove", "1", ANN],
        &["endpoint", "hashkv", ANN],
        &["alarm", "list", ANN],
        &["alarm", "disarm", ANN],
        &["move-leader", "1", ANN],
        &["snapshot", "save", "/nonexistent/file", ANN],
        &["lease", "list", ANN],
        &["user", "list", ROOT],
        &["user", "list", ANN],
        &["user", "get", "ann", ANN],
        &["user", "get", "ann", "--detail", ANN],
        &["user", "get", "root", ANN],
        &["role", "list", ROOT],
        &["role", "get", "r", ANN],
        &["role", "get", "root", ROOT],
        &["role", "add", "root", ROOT],
        &["role", "get", "root", ROOT],
        &["role", "grant-permission", "r", "write", "c", "d", ROOT],
        &[
            "role",
            "grant-permission",
            "r",
            "read",
            "x",
            "--from-key",
            ROOT,
        ],
        &["role", "grant-permission", "r", "read", "d", "c", ROOT],
        &["role", "get", "r", ROOT],
        &["get", "x", "--from-key", ANN],
        &["role", "revoke-permission", "r", "c", "d", ROOT],
        &["role", "revoke-permission", "r", "c", "d", ROOT],
        &["user", "revoke-role", "ann", "r", ROOT],
        &["user", "revoke-role", "root", "root", ROOT],
        &["user", "delete", "root", ROOT],
        &["role", "delete", "root", ROOT],
        &["role", "delete", "r", ROOT],
        &["get", "b", ANN],
        &["user", "delete", "ann", ROOT],
        &["user", "delete", "ann", ROOT],
        &["get", "b", ANN],
        &["auth", "status", ROOT],
        &["auth", "disable", ANN],
        &["auth", "disable", ROOT],
        &["auth", "status"],
        &["get", "b"],
    ] {
        same(arguments, "");
    }
    same(
        &["user", "passwd", "bob", "--interactive=false"],
        "another\n",
    );
}

/// What any member must say alike of users, roles and keys, by its own tables.
fn agreed(servers: &[Server]) {
    let said = |server: &Server| -> Vec<String> {
        [
            &["user", "list", ROOT][..],
            &["user", "get", "ann", ROOT],
            &["role", "list", ROOT],
            &["role", "get", "r", ROOT],
            &["auth", "status", ROOT],
            &["get", "a/", "--prefix", ANN],
        ]
        .map(|arguments| until_ok(server, arguments))
        .to_vec()
    };
    let first = said(&servers[0]);
    for server in &servers[1..] {
        assert_eq!(said(server), first);
    }
    let revision = revision(&servers[0]);
    let hash = |server: &Server| {
        let rev = format!("--rev={revision}");
        let text = until_ok(server, &["endpoint", "hashkv", &rev, "-w", "json", ROOT]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[0]["HashKV"]["hash"].clone()
    };
    let first = hash(&servers[0]);
    for server in &servers[1..] {
        assert_eq!(hash(server), first);
    }
}

fn revision(server: &Server) -> i64 {
    let text = until_ok(server, &["get", "b", "-w", "json", ROOT]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["header"]["revision"].as_i64().unwrap()
}

/// Small segments and few entries kept, so that a member which was away needs a snapshot.
const SHORT: [&str; 3] = [CHEAP, "--snapshot-count=20", "--snapshot-catchup-entries=5"];

#[test]
fn cairns_and_etcds_keep_the_same_users() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        ("a", Kind::Etcd, vec![]),
        (
            "b",
            Kind::Cairn,
            vec!["--cairn-wal-segment-bytes=65536".to_owned()],
        ),
        (
            "c",
            Kind::Cairn,
            vec!["--cairn-wal-segment-bytes=65536".to_owned()],
        ),
    ];
    let members = kinds.map(|(name, kind, flags)| {
        let all = SHORT.iter().map(|&flag| flag.to_owned()).chain(flags);
        Member::new(kind, name).with_flags(all.collect())
    });
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    for (n, command) in USERS.iter().enumerate() {
        until_done(&servers[n % 3], command);
    }
    for (n, server) in servers.iter().enumerate() {
        until_ok(server, &["put", &format!("a/{n}"), "1", ANN]);
        let refused = etcdctl(server).run(&["put", "b", "1", ANN]);
        assert!(refused.errors.contains("permission denied"), "{refused:?}");
        let refused = etcdctl(server).run(&["get", "b", "--user=ann:wrong"]);
        let text = "invalid user ID or password";
        assert!(refused.errors.contains(text), "{refused:?}");
        until_ok(
            server,
            &[
                "role",
                "grant-permission",
                "r",
                "read",
                &format!("n{n}"),
                ROOT,
            ],
        );
    }
    agreed(&servers);
    // A Cairn and then the etcd miss so much that the leader's log does not reach back; whoever
    // leads sends what it has of users too.
    for away in [1, 0] {
        servers[away].stop();
        let there = (away + 1) % 3;
        let filler = "x".repeat(4000);
        for n in 0..60 {
            let key = format!("a/{away}/{n}");
            until_ok(&servers[there], &["put", &key, &filler, ROOT]);
        }
        let role = format!("away{away}");
        until_done(&servers[there], &["role", "add", &role, ROOT]);
        until_done(&servers[there], &["user", "grant-role", "ann", &role, ROOT]);
        let change = ["user", "passwd", "ann", "--interactive=false", ROOT];
        let changed = etcdctl(&servers[there]).run_with(&change, "ann\n");
        assert_eq!(changed.code, 0, "{changed:?}");
        let compact = revision(&servers[there]).to_string();
        until_ok(&servers[there], &["compaction", &compact, ROOT]);
        servers[away].restart();
        until_is(
            &servers[away],
            &["get", "a/0", "--print-value-only", ANN],
            "1\n",
        );
        agreed(&servers);
    }
    until_ok(&servers[1], &["auth", "disable", ROOT]);
    for server in &servers {
        until_is(server, &["get", "a/0", "--print-value-only"], "1\n");
    }
}

/// Runs a command that changes something once; one that was done by an attempt which got no answer
/// is done.
fn until_done(server: &Server, arguments: &[&str]) {
    let began = Instant::now();
    loop {
        let outcome = etcdctl(server).run(arguments);
        if outcome.code == 0 || outcome.errors.contains("already exists") {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{arguments:?}: {outcome:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn users_move_with_the_data_from_etcd_to_cairn_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let first = path("first");
    let mut etcd = Server::start(Kind::Etcd, &first, &[CHEAP]);
    ok(etcdctl(&etcd).run(&["put", "b", "secret"]));
    for command in USERS {
        ok(etcdctl(&etcd).run(command));
    }
    ok(etcdctl(&etcd).run(&["put", "a/1", "etcd", ANN]));
    let check = |server: &Server, by: &str| {
        let run = |arguments: &[&str]| etcdctl(server).run(arguments);
        let refused = run(&["get", "b"]);
        assert!(refused.errors.contains("user name is empty"), "{refused:?}");
        let refused = run(&["put", "b", "x", ANN]);
        assert!(refused.errors.contains("permission denied"), "{refused:?}");
        let refused = run(&["get", "b", "--user=ann:pw"]);
        assert!(
            refused.errors.contains("authentication failed"),
            "{refused:?}"
        );
        assert_eq!(
            ok(run(&["get", "b", "--print-value-only", ANN])),
            "secret\n"
        );
        ok(run(&["put", "a/1", by, ANN]));
        ok(run(&["role", "add", by, ROOT]));
        (
            ok(run(&["role", "list", ROOT])),
            ok(run(&["role", "get", "r", ROOT])),
            ok(run(&["auth", "status"])),
        )
    };
    etcd.stop();
    let mut cairn = Server::start(Kind::Cairn, &first, &[CHEAP]);
    let on_cairn = check(&cairn, "cairn");
    assert_eq!(on_cairn.0, "cairn\nr\n");
    // A restart, and one more user whose password Cairn hashed.
    cairn.kill();
    cairn.restart();
    let add = ["user", "add", "bob", "--new-user-password=bob", ROOT];
    ok(etcdctl(&cairn).run(&add));
    ok(etcdctl(&cairn).run(&["user", "grant-role", "bob", "r", ROOT]));
    cairn.stop();
    let second = path("second");
    let exported = export(&first.join("data"), &second.join("data"));
    assert!(exported.status.success(), "{exported:?}");
    let etcd = Server::start(Kind::Etcd, &second, &[CHEAP]);
    let on_etcd = check(&etcd, "etcd");
    assert_eq!(on_etcd.0, "cairn\netcd\nr\n");
    assert_eq!(on_etcd.1, on_cairn.1);
    let read = ["get", "b", "--print-value-only", "--user=bob:bob"];
    assert_eq!(ok(etcdctl(&etcd).run(&read)), "secret\n");
}

/// Runs etcdctl with a certificate.
fn with_certificate(url: &str, ca: &Path, shown: &KeyFiles, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(&*ETCDCTL)
        .args(arguments)
        .arg(format!("--cacert={}", ca.display()))
        .arg(format!("--cert={}", shown.certificate.display()))
        .arg(format!("--key={}", shown.key.display()))
        .env_clear()
        .env("ETCDCTL_ENDPOINTS", url)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors = errors.lines().filter(|line| !line.starts_with('{'));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.extend(errors.map(|line| format!("{line}\n")));
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn certificates_name_users() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("ca");
    let bundle = folder.path().join("ca.crt");
    replace(&bundle, ca.pem().as_bytes());
    let issue = |file: &str, name: &'static str| {
        let issue = Issue {
            name,
            ..Issue::default()
        };
        ca.issue(folder.path(), file, &issue)
    };
    let server = issue("server", "server");
    let shown = ["root", "tls", "nobody"].map(|name| issue(name, name));
    let results = [Kind::Cairn, Kind::Etcd].map(|kind| {
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let flags = vec![
            flag("cert-file", &server.certificate),
            flag("key-file", &server.key),
            flag("trusted-ca-file", &bundle),
            "--client-cert-auth".to_owned(),
            flag("peer-cert-file", &server.certificate),
            flag("peer-key-file", &server.key),
            flag("peer-trusted-ca-file", &bundle),
            CHEAP.to_owned(),
        ];
        let member = Member::new(kind, &format!("{kind:?}")).with_tls(flags);
        let mut server = member.launch(folder.path(), &[&member], "new");
        server.wait_ready();
        let run = |who: usize, arguments: &[&str]| {
            with_certificate(server.url(), &bundle, &shown[who], arguments)
        };
        for command in USERS {
            let (code, text) = run(1, command);
            assert_eq!(code, 0, "{kind:?}: {command:?}: {text}");
        }
        let grant = run(0, &["user", "grant-role", "tls", "r"]);
        assert_eq!(grant.0, 0, "{kind:?}: {grant:?}");
        [
            run(0, &["put", "x", "1"]),
            run(1, &["put", "a/1", "1"]),
            run(1, &["get", "a/1"]),
            run(1, &["put", "x", "1"]),
            run(1, &["user", "list"]),
            run(2, &["get", "a/1"]),
            run(2, &["user", "list"]),
            // A password goes before the certificate.
            run(2, &["get", "a/1", ANN]),
            run(0, &["get", "x", ANN]),
        ]
    });
    assert_eq!(results[0], results[1], "cairn left, etcd right");
    assert_eq!(results[0][2], (0, "a/1\n1\n".to_owned()));
}
