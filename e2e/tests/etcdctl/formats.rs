//! Every command in every format.

use bytes::Bytes;
use e2e::etcdctl::Outcome;
use prost::Message;
use proto::etcdserverpb::ResponseHeader;

use super::Both;

const FORMATS: [&str; 4] = ["simple", "json", "fields", "table"];
/// What leases are granted for, in seconds, and how much of it a test may take.
const TTL: i64 = 6000;
const TAKES: i64 = 600;

#[test]
fn every_command_says_the_same_in_every_format() {
    let mut both = Both::start(&["--bcrypt-cost=4"]);
    for format in FORMATS {
        let w = format!("--write-out={format}");
        keys(&mut both, &w);
        leases(&mut both, &w);
        users(&mut both, &w);
        members(&mut both, &w);
        maintenance(&mut both, &w);
    }
    println!("{} commands said the same on both", both.compared);
    assert!(both.compared > 250, "only {}", both.compared);
}

fn keys(both: &mut Both, w: &str) {
    both.same(&["put", "k/1", "a", w]);
    both.same(&["put", "k/1", "b", "--prev-kv", w]);
    both.same(&["put", "k/2", "c", w]);
    both.same(&["get", "k/", "--prefix", w]);
    both.same(&["get", "k/", "--prefix", "--keys-only", w]);
    both.same(&["get", "k/", "--prefix", "--count-only", w]);
    both.same(&["get", "k/1", "--print-value-only", w]);
    both.same(&["get", "k/1", "--hex", w]);
    both.same(&["get", "none", w]);
    both.same(&["get", "k/1", "--rev=100000", w]);
    for script in [
        "value(\"k/1\") = \"b\"\n\nput k/1 d\nget k/ --prefix\ndel k/2 --prev-kv\n\n\n\n",
        "value(\"k/1\") = \"b\"\n\nput k/1 d\n\nget k/1\ndel none\n\n",
    ] {
        both.same_with(&["txn", w], script);
        both.same_with(&["txn", "--interactive", w], script);
    }
    both.same(&["del", "k/", "--prefix", "--prev-kv", w]);
    both.same(&["del", "k/", "--prefix", w]);
    both.same(&["compaction", "2", w]);
    both.same(&["compaction", "0", w]);
}

/// Words that say how long a lease has left: the two are not asked in the same moment.
fn without_time(outcome: &Outcome) -> Outcome {
    let mut output = String::new();
    let mut word = String::new();
    for c in outcome.output.chars().chain(['\n']) {
        if c.is_ascii_digit() {
            word.push(c);
            continue;
        }
        match word.parse::<i64>() {
            Ok(left) if (TTL - TAKES..=TTL).contains(&left) => output.push_str("TTL"),
            _ => output.push_str(&word),
        }
        word.clear();
        output.push(c);
    }
    Outcome {
        output,
        ..outcome.clone()
    }
}

fn leases(both: &mut Both, w: &str) {
    both.same(&["lease", "grant", &TTL.to_string(), w]);
    let ids = both.words(&["lease", "grant", &TTL.to_string()], 1);
    let options = ids.clone().map(|id| format!("--lease={id}"));
    // One key: etcd tells several in a random order.
    both.same_of(&["put", "leased", "v", w], &options, 3);
    for arguments in [
        &["lease", "timetolive", "ID", w][..],
        &["lease", "timetolive", "ID", "--keys", w],
        &["lease", "keep-alive", "ID", "--once", w],
    ] {
        let [cairn, etcd] = [0, 1].map(|at| {
            let word = |of: &&str| match *of {
                "ID" => ids[at].clone(),
                of => of.to_owned(),
            };
            let arguments: Vec<String> = arguments.iter().map(word).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let etcdctl = &both.etcdctl[at];
            without_time(&etcdctl.masked(&etcdctl.run(&arguments)))
        });
        both.compared += 1;
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}: cairn left, etcd right");
    }
    both.same(&["get", "leased", "--prefix", w]);
    both.same_of(&["lease", "revoke", w], &ids, 2);
    both.same_of(&["lease", "revoke", w], &ids, 2);
    both.same_of(&["lease", "timetolive", w], &ids, 2);
    both.same_of(&["lease", "keep-alive", "--once", w], &ids, 2);
    // One that was granted above is left; it goes, so that each format finds the same.
    let left = both.words(&["lease", "list"], 3);
    both.same(&["lease", "list", w]);
    both.same_of(&["lease", "revoke", w], &left, 2);
    both.same(&["lease", "list", w]);
}

fn users(both: &mut Both, w: &str) {
    both.same(&["auth", "status", w]);
    both.same(&["auth", "enable", w]);
    both.same(&["role", "add", "r", w]);
    both.same(&["role", "add", "r", w]);
    both.same(&["role", "grant-permission", "r", "readwrite", "a", w]);
    both.same(&["role", "grant-permission", "r", "read", "b", "c", w]);
    both.same(&["role", "grant-permission", "r", "write", "d", "--prefix", w]);
    both.same(&["role", "grant-permission", "r", "sideways", "d", w]);
    both.same(&["role", "get", "r", w]);
    both.same(&["role", "get", "none", w]);
    both.same(&["role", "list", w]);
    both.same(&["user", "add", "u", "--new-user-password=pw", w]);
    both.same(&["user", "add", "u", "--new-user-password=pw", w]);
    both.same(&["user", "add", "n", "--no-password", w]);
    both.same(&["user", "add", "", "--no-password", w]);
    both.same(&["user", "grant-role", "u", "r", w]);
    both.same(&["user", "grant-role", "u", "none", w]);
    both.same(&["user", "grant-role", "none", "r", w]);
    both.same(&["user", "get", "u", w]);
    both.same(&["user", "get", "u", "--detail", w]);
    both.same(&["user", "get", "none", w]);
    both.same(&["user", "list", w]);
    both.same_with(&["user", "passwd", "u", "--interactive=false", w], "new\n");
    both.same(&["user", "revoke-role", "u", "r", w]);
    both.same(&["user", "revoke-role", "u", "r", w]);
    both.same(&["user", "delete", "u", w]);
    both.same(&["user", "delete", "n", w]);
    both.same(&["user", "delete", "n", w]);
    both.same(&["role", "revoke-permission", "r", "b", "c", w]);
    both.same(&["role", "revoke-permission", "r", "b", "c", w]);
    both.same(&["role", "delete", "r", w]);
    both.same(&["role", "delete", "r", w]);
    both.same(&["auth", "disable", w]);
}

fn members(both: &mut Both, w: &str) {
    both.same(&["member", "list", w]);
    both.same(&["member", "list", "--consistency=s", w]);
    let url = "--peer-urls=http://127.0.0.1:9";
    let learner = both.same_learner(&["member", "add", "n", "--learner", url, w]);
    both.same(&["member", "list", w]);
    both.same_of(&["member", "promote", w], &learner, 2);
    let moved = "--peer-urls=http://127.0.0.1:11";
    both.same_of(&["member", "update", moved, w], &learner, 2);
    both.same_of(&["member", "remove", w], &learner, 2);
    both.same_of(&["member", "remove", w], &learner, 2);
}

fn maintenance(both: &mut Both, w: &str) {
    if !w.ends_with("table") {
        // A table is as wide as the time that it took.
        both.same(&["endpoint", "health", w]);
    }
    both.same(&["alarm", "list", w]);
    both.same(&["alarm", "disarm", w]);
    both.same(&["defrag", w]);
    both.same(&["move-leader", "1234", w]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot.db");
    let [cairn, etcd] = [0, 1].map(|at| {
        let saved = both.etcdctl[at].run(&["snapshot", "save", file.to_str().unwrap(), w]);
        assert!(file.metadata().unwrap().len() > 0);
        saved
    });
    assert_eq!(cairn, etcd, "snapshot save");
    both.compared += 1;
    both.same(&["snapshot", "save", w]);
}

/// The columns of a status that both must tell alike: all but sizes and raft's counters.
const STATUS: [usize; 11] = [0, 1, 2, 3, 7, 8, 9, 13, 14, 15, 16];

#[test]
fn a_status_is_the_same_table() {
    let mut both = Both::start(&[]);
    both.same(&["put", "k", "v"]);
    for format in FORMATS {
        both.same(&["endpoint", "hashkv", "-w", format]);
    }
    let rows = [0, 1].map(|at| {
        let etcdctl = &both.etcdctl[at];
        let told = etcdctl.masked(&etcdctl.run(&["endpoint", "status", "-w", "table"]));
        assert_eq!(told.code, 0, "{told:?}");
        let rows = told.output.lines().filter(|line| line.contains('│'));
        let row = |line: &str| -> Vec<String> {
            let cells = line.trim_matches('│').split('│').enumerate();
            let cells = cells.filter(|(at, _)| STATUS.contains(at));
            cells.map(|(_, cell)| cell.trim().to_owned()).collect()
        };
        rows.map(row).collect::<Vec<_>>()
    });
    assert_eq!(rows[0], rows[1], "cairn left, etcd right");
    assert!(rows[0].len() == 2 && rows[0][0].len() > 8, "{rows:?}");
}

/// An answer's header without the term, and all behind it.
fn parts(mut answer: Bytes) -> (ResponseHeader, Bytes) {
    // Field 1, a message.
    assert_eq!(answer.first(), Some(&0x0a));
    let length = usize::from(answer[1]);
    assert!(length < 128, "a header is short");
    let mut rest = answer.split_off(2 + length);
    let mut header = ResponseHeader::decode(answer.split_off(2)).unwrap();
    header.raft_term = 0;
    // Not every answer ends without a line's end.
    if rest.ends_with(b"\n") {
        rest.truncate(rest.len() - 1);
    }
    (header, rest)
}

#[test]
fn answers_are_the_same_messages() {
    let both = Both::start(&["--bcrypt-cost=4"]);
    let mut answered = 0;
    for arguments in [
        &["put", "k/1", "a"][..],
        &["put", "k/1", "b", "--prev-kv"],
        &["put", "k/2", "c"],
        &["get", "k/", "--prefix"],
        &["get", "k/1"],
        &["get", "none"],
        &["get", "k/", "--prefix", "--limit=1"],
        &["get", "k/", "--prefix", "--count-only"],
        &["del", "k/2", "--prev-kv"],
        &["del", "k/2"],
        &["get", "k/1", "--rev=900"],
        &["member", "list"],
        &["role", "add", "r"],
        &["role", "grant-permission", "r", "readwrite", "a"],
        &["role", "get", "r"],
        &["role", "list"],
        &["user", "add", "u", "--no-password"],
        &["user", "grant-role", "u", "r"],
        &["user", "get", "u"],
        &["user", "list"],
        &["auth", "status"],
        &["alarm", "list"],
        &["lease", "list"],
        &["lease", "grant", "x"],
        &["endpoint", "health"],
        &["endpoint", "status"],
        &["endpoint", "hashkv"],
    ] {
        let arguments = [arguments, &["--write-out=protobuf"]].concat();
        let [cairn, etcd] = [0, 1].map(|at| both.etcdctl[at].run_bytes(&arguments));
        assert_eq!(cairn.0, etcd.0, "{arguments:?}");
        if etcd.1.first() != Some(&0x0a) {
            // Not every command has this form.
            assert_eq!(cairn.1, etcd.1, "{arguments:?}");
            continue;
        }
        answered += 1;
        let [cairn, etcd] = [cairn.1, etcd.1].map(|answer| parts(answer.into()));
        assert_eq!(cairn, etcd, "{arguments:?}: cairn left, etcd right");
    }
    assert!(answered > 15, "only {answered}");
}
