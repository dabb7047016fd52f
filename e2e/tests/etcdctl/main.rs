//! etcdctl on Cairn and on etcd: one script, the same outputs, errors and exit codes. Only IDs,
//! sizes, times and raft's counters may differ.

#![allow(clippy::unwrap_used)]

mod clusters;
mod formats;
mod running;

use std::time::Duration;

use e2e::{Etcdctl, Kind, Server, etcdctl::Outcome, tool};

/// The two, side by side.
struct Both {
    _folder: tempfile::TempDir,
    servers: [Server; 2],
    etcdctl: [Etcdctl; 2],
    compared: usize,
}

impl Both {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let servers = [(Kind::Cairn, "cairn"), (Kind::Etcd, "etcd")].map(|(kind, name)| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            Server::start(kind, &folder, more)
        });
        let binary = tool("etcdctl");
        let etcdctl = [0, 1].map(|at| Etcdctl::new(&binary, servers[at].url()));
        Self {
            _folder: folder,
            servers,
            etcdctl,
            compared: 0,
        }
    }

    /// Runs a command on both and compares what comes of it; returns Cairn's.
    fn same(&mut self, arguments: &[&str]) -> Outcome {
        self.same_with(arguments, "")
    }

    fn same_with(&mut self, arguments: &[&str], input: &str) -> Outcome {
        let [cairn, etcd] = [0, 1].map(|at| {
            let etcdctl = &self.etcdctl[at];
            etcdctl.masked(&etcdctl.run_with(arguments, input))
        });
        self.compared += 1;
        assert_eq!(
            cairn, etcd,
            "etcdctl {arguments:?}: cairn left, etcd right\n{}\n{}",
            cairn.output, etcd.output
        );
        cairn
    }

    /// Runs a command with a word that differs between the two, as an ID.
    fn same_of(&mut self, arguments: &[&str], words: &[String; 2], place: usize) -> Outcome {
        let [cairn, etcd] = [0, 1].map(|at| {
            let mut arguments = arguments.to_vec();
            arguments.insert(place, &words[at]);
            let etcdctl = &self.etcdctl[at];
            etcdctl.masked(&etcdctl.run(&arguments))
        });
        self.compared += 1;
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}: cairn left, etcd right");
        cairn
    }

    /// A word of each one's output: the `n`th of the first line.
    fn words(&self, arguments: &[&str], n: usize) -> [String; 2] {
        [0, 1].map(|at| {
            let output = self.etcdctl[at].run(arguments).output;
            let word = output.split_whitespace().nth(n);
            word.unwrap_or_else(|| panic!("{arguments:?}: {output}"))
                .trim_end_matches(',')
                .to_owned()
        })
    }

    /// Adds a learner until its ID, which is random, stands behind this member's: lists are in the
    /// order of IDs. Returns the learners.
    fn same_learner(&mut self, arguments: &[&str]) -> [String; 2] {
        let own = self.words(&["endpoint", "status"], 1);
        let number = |id: &str| u64::from_str_radix(id, 16).unwrap();
        let added = [0, 1].map(|at| {
            let etcdctl = &self.etcdctl[at];
            loop {
                let added = etcdctl.run(arguments);
                if added.errors.contains("member not found") {
                    // IDs are made of the second, and one that was removed never comes back.
                    std::thread::sleep(Duration::from_secs(1));
                    continue;
                }
                let list = etcdctl.run(&["member", "list"]).output;
                let ids = list.lines().filter_map(|line| line.split(',').next());
                let learner = ids.into_iter().find(|id| **id != *own[at]);
                let learner = learner.unwrap_or_else(|| panic!("{added:?}")).to_owned();
                if number(&learner) > number(&own[at]) {
                    return (etcdctl.masked(&added), learner);
                }
                let removed = etcdctl.run(&["member", "remove", &learner]);
                assert_eq!(removed.code, 0, "{removed:?}");
            }
        });
        let [(cairn, one), (etcd, other)] = added;
        self.compared += 1;
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}: cairn left, etcd right");
        [one, other]
    }

    fn same_watch(&mut self, arguments: &[&str], lines: usize) {
        self.same_watch_with(arguments, "", lines);
    }

    fn same_watch_with(&mut self, arguments: &[&str], input: &str, lines: usize) {
        let [cairn, etcd] = [0, 1].map(|at| {
            let output = self.etcdctl[at].run_until_with(arguments, input, lines);
            let outcome = Outcome {
                code: 0,
                output,
                errors: String::new(),
            };
            self.etcdctl[at].masked(&outcome).output
        });
        self.compared += 1;
        assert_eq!(cairn, etcd, "etcdctl {arguments:?}: cairn left, etcd right");
        assert!(cairn.lines().count() >= lines, "{arguments:?}: {cairn}");
    }
}

#[test]
fn one_script_says_the_same_on_both() {
    let mut both = Both::start(&[]);
    keys(&mut both);
    transactions(&mut both);
    watches(&mut both);
    endpoints(&mut both);
    compaction(&mut both);
    leases(&mut both);
    members(&mut both);
    println!("{} commands said the same on both", both.compared);
    assert!(both.compared > 90, "only {}", both.compared);
    // etcd itself logs some of what it refuses as errors.
    for server in &both.servers[..1] {
        assert!(!server.log().contains("\"level\":\"error\""));
    }
}

fn keys(both: &mut Both) {
    both.same(&["put", "a", "1"]);
    both.same(&["put", "a", "2", "--prev-kv"]);
    both.same(&["put", "b", "x", "-w", "json"]);
    both.same(&["put", "c", "y", "-w", "fields"]);
    both.same(&["put", "dir/1", "one"]);
    both.same(&["put", "dir/2", "two"]);
    both.same(&["put", "dir/3", ""]);
    both.same_with(&["put", "from-stdin"], "many\nlines\n");
    both.same(&["put", "a", "--ignore-value"]);
    both.same(&["put", "none", "--ignore-value"]);
    both.same(&["put", "none", "v", "--lease=1234"]);
    both.same(&["put", "none", "--ignore-lease", "v"]);
    both.same(&["put"]);
    both.same(&["put", "", "v"]);
    for format in ["simple", "json", "fields", "table"] {
        both.same(&["get", "a", "-w", format]);
        both.same(&["get", "dir/", "--prefix", "-w", format]);
        both.same(&["get", "nothing", "-w", format]);
    }
    for more in [
        &["a", "--print-value-only"][..],
        &["a", "--rev=2"],
        &["a", "--rev=900"],
        &["a", "--rev=-1"],
        &["dir/", "--prefix", "--keys-only"],
        &["dir/", "--prefix", "--count-only", "-w", "fields"],
        &["dir/", "--prefix", "--limit=2"],
        &["dir/", "--prefix", "--limit=2", "--order=DESCEND"],
        &[
            "",
            "--from-key",
            "--sort-by=MODIFY",
            "--order=DESCEND",
            "--keys-only",
        ],
        &[
            "",
            "--prefix",
            "--sort-by=VERSION",
            "--order=ASCEND",
            "--keys-only",
        ],
        &["a", "c", "--keys-only"],
        &["c", "a"],
        &["a", "--hex"],
        &["a", "--consistency=s"],
        &["a", "--consistency=x"],
        &["a", "--order=SIDEWAYS"],
        &["a", "--prefix", "--from-key"],
        &[
            "",
            "--prefix",
            "--min-mod-rev=4",
            "--max-mod-rev=6",
            "--keys-only",
        ],
        &[""],
        &[],
    ] {
        let mut arguments = vec!["get"];
        arguments.extend(more);
        both.same(&arguments);
    }
    both.same(&["del", "dir/3", "--prev-kv"]);
    both.same(&["del", "dir/3"]);
    both.same(&["del", "b", "c"]);
    both.same(&["del", "dir/", "--prefix", "-w", "json"]);
    both.same(&["del", ""]);
}

fn transactions(both: &mut Both) {
    both.same(&["put", "t", "1"]);
    for script in [
        "value(\"t\") = \"1\"\n\nput t 2\nget t\n\nput t 3\n\n",
        "value(\"t\") = \"1\"\n\nput t 2\n\nget t\ndel t\n\n",
        "mod(\"t\") > \"0\"\nver(\"t\") = \"0\"\n\n\n\n\n",
        "create(\"t2\") = \"0\"\n\nput t2 x\nput t3 y\n\n\n",
        "\n\nput t x\nput t y\n\n\n",
        "nonsense\n\n\n\n",
    ] {
        both.same_with(&["txn"], script);
        both.same_with(&["txn", "-w", "json"], script);
    }
    both.same(&["get", "t", "--prefix", "-w", "json"]);
}

fn watches(both: &mut Both) {
    both.same(&["put", "w/1", "a"]);
    both.same(&["put", "w/2", "b"]);
    both.same(&["del", "w/1"]);
    both.same_watch(&["watch", "w/", "--prefix", "--rev=1"], 8);
    both.same_watch(&["watch", "w/", "--prefix", "--rev=1", "--prev-kv"], 10);
    both.same_watch(&["watch", "w/1", "--rev=1"], 5);
    both.same_watch(&["watch", "a", "--rev=1", "-w", "json"], 1);
}

/// Fields of `endpoint status` that may differ: sizes, how full, raft's term and indexes.
const LOOSE_STATUS: [usize; 7] = [4, 5, 6, 7, 10, 11, 12];

fn endpoints(both: &mut Both) {
    both.same(&["endpoint", "health"]);
    both.same(&["endpoint", "health", "-w", "json"]);
    both.same(&["endpoint", "health", "--cluster"]);
    both.same(&["endpoint", "hashkv"]);
    both.same(&["endpoint", "hashkv", "-w", "json"]);
    both.same(&["endpoint", "hashkv", "--rev=3"]);
    both.same(&["endpoint", "hashkv", "--rev=9000"]);
    both.same(&["endpoint", "status", "-w", "json"]);
    both.same(&["endpoint", "status", "-w", "fields"]);
    let status = [0, 1].map(|at| {
        let etcdctl = &both.etcdctl[at];
        let outcome = etcdctl.masked(&etcdctl.run(&["endpoint", "status"]));
        assert_eq!(outcome.code, 0, "{}", outcome.errors);
        let fields = outcome.output.trim().split(", ").enumerate();
        let fields = fields.filter(|(at, _)| !LOOSE_STATUS.contains(at));
        fields.map(|(_, of)| of.to_owned()).collect::<Vec<_>>()
    });
    assert_eq!(status[0], status[1]);
    both.same(&["alarm", "list"]);
    both.same(&["alarm", "disarm"]);
    both.same(&["defrag"]);
    both.same(&["move-leader", "8211f1d0f64f3269"]);
    both.same(&["move-leader", "xyz"]);
    both.same(&["move-leader"]);
}

fn compaction(both: &mut Both) {
    both.same(&["compaction", "3"]);
    both.same(&["compaction", "3"]);
    both.same(&["compaction", "5", "--physical"]);
    both.same(&["compaction", "90000"]);
    both.same(&["compaction", "x"]);
    both.same(&["compaction"]);
    both.same(&["get", "a", "--rev=2"]);
    both.same(&["endpoint", "hashkv"]);
    both.same_watch(&["watch", "a", "--rev=2"], 2);
}

fn leases(both: &mut Both) {
    both.same(&["lease", "list"]);
    both.same(&["lease", "grant", "600"]);
    both.same(&["lease", "grant", "0"]);
    both.same(&["lease", "grant", "x"]);
    let ids = both.words(&["lease", "grant", "1000", "-w", "simple"], 1);
    let option = ids.clone().map(|id| format!("--lease={id}"));
    both.same_of(&["put", "leased", "v"], &option, 3);
    both.same_of(&["lease", "timetolive"], &ids, 2);
    both.same_of(&["lease", "timetolive", "--keys"], &ids, 2);
    both.same_of(&["lease", "keep-alive", "--once"], &ids, 2);
    both.same(&["lease", "list"]);
    both.same_of(&["lease", "revoke"], &ids, 2);
    both.same_of(&["lease", "revoke"], &ids, 2);
    both.same_of(&["lease", "timetolive"], &ids, 2);
    both.same_of(&["lease", "keep-alive", "--once"], &ids, 2);
    both.same(&["get", "leased"]);
    both.same(&["lease", "revoke", "xyz"]);
    both.same(&["lease", "timetolive"]);
    both.same(&["lock", "name", "echo", "held"]);
}

fn members(both: &mut Both) {
    for format in ["simple", "json", "fields", "table"] {
        both.same(&["member", "list", "-w", format]);
    }
    both.same(&["member", "add"]);
    both.same(&["member", "add", "n", "--peer-urls=nonsense"]);
    both.same(&["member", "add", "n", "--peer-urls=http://127.0.0.1:2"]);
    let learner = both.same_learner(&[
        "member",
        "add",
        "n",
        "--learner",
        "--peer-urls=http://127.0.0.1:9",
    ]);
    both.same(&[
        "member",
        "add",
        "n2",
        "--learner",
        "--peer-urls=http://127.0.0.1:10",
    ]);
    both.same(&["member", "list"]);
    let status = both.words(&["endpoint", "status"], 1);
    both.same_of(&["member", "promote"], &learner, 2);
    both.same_of(&["member", "promote"], &status, 2);
    both.same_of(
        &["member", "update", "--peer-urls=http://127.0.0.1:11"],
        &learner,
        2,
    );
    both.same_of(&["member", "update", "--peer-urls=x"], &learner, 2);
    both.same_of(&["member", "remove"], &learner, 2);
    both.same_of(&["member", "remove"], &learner, 2);
    both.same(&["member", "remove", "1234"]);
    both.same(&["member", "remove", "xyz"]);
    both.same(&["member", "promote", "1234"]);
    both.same(&["member", "list"]);
}
