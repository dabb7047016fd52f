//! Commands that go on until they are ended, and those that fill a store.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use e2e::{Etcdctl, Process, etcdctl::ok, tool};

use super::Both;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn commands_that_go_on_say_the_same() {
    let mut both = Both::start(&[]);
    both.same_watch(&["lock", "l/1"], 1);
    both.same(&["lock", "l/2", "echo", "held"]);
    both.same(&["lock", "l/3", "--ttl=5", "sh", "-c", "exit 3"]);
    both.same(&["lock", "l/4", "--ttl=x"]);
    both.same(&["lock"]);
    both.same_watch(&["elect", "e", "me"], 2);
    // Its lease keeps who was killed in office.
    both.same_watch(&["elect", "e", "--listen"], 2);
    both.same(&["elect", "e"]);
    both.same(&["elect"]);

    both.same(&["put", "w/1", "a"]);
    both.same(&["put", "w/1", "b"]);
    both.same(&["del", "w/1"]);
    let all = "watch w/1 --rev=1\n";
    both.same_watch_with(&["watch", "--interactive"], all, 8);
    let before = "watch w/1 --rev=1 --prev-kv\n";
    both.same_watch_with(&["watch", "-i"], before, 13);
    both.same_with(&["watch", "-i"], "nonsense\n");
    both.same_with(&["watch", "-i"], "");
    let told = "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE";
    both.same_watch(&["watch", "w/1", "--rev=1", "--", "sh", "-c", told], 12);
    both.same(&["watch"]);
    both.same(&["watch", "w/1", "--rev=x"]);

    let ids = both.words(&["lease", "grant", "600"], 1);
    let kept = [0, 1].map(|at| {
        let etcdctl = &both.etcdctl[at];
        let said = etcdctl.run_until(&["lease", "keep-alive", &ids[at]], 1);
        said.replace(&ids[at], "ID")
    });
    assert_eq!(kept[0], kept[1]);
    assert_eq!(kept[0], "lease ID keepalived with TTL(600)\n");
}

/// A mirror that runs, and what it mirrors.
struct Mirror {
    etcdctl: PathBuf,
    from: String,
    to: String,
}

impl Mirror {
    fn start(&self, log: &Path, more: &[&str]) -> Process {
        let to = self.to.trim_start_matches("http://");
        let arguments = [&["make-mirror", to][..], more].concat();
        let env = [("ETCDCTL_ENDPOINTS", self.from.as_str())];
        Process::of(Command::new(&self.etcdctl), log, &arguments, &env)
    }

    fn wait_for(&self, prefix: &str, expected: &str) {
        let to = Etcdctl::new(&self.etcdctl, &self.to);
        let began = Instant::now();
        loop {
            let found = ok(to.run(&["get", prefix, "--prefix"]));
            if found == expected {
                return;
            }
            assert!(began.elapsed() < LIMIT, "{found:?}, not {expected:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn mirrors_go_both_ways() {
    let both = Both::start(&[]);
    let etcdctl = tool("etcdctl");
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [(0, 1), (1, 0)] {
        let mirror = Mirror {
            etcdctl: etcdctl.clone(),
            from: both.servers[from].url().to_owned(),
            to: both.servers[to].url().to_owned(),
        };
        let source = &both.etcdctl[from];
        let prefix = format!("from-{from}/");
        let key = |name: &str| format!("{prefix}{name}");
        ok(source.run(&["put", &key("before"), "1"]));
        let copy = format!("copy-{from}/");
        let prefixes = [
            format!("--prefix={prefix}"),
            format!("--dest-prefix={copy}"),
        ];
        let prefixes = prefixes.each_ref().map(String::as_str);
        let _running = mirror.start(&folder.path().join(format!("{from}")), &prefixes);
        mirror.wait_for(&copy, &format!("{copy}before\n1\n"));
        let script = format!("\nput {0}a 2\nput {0}b 3\n\n\n", prefix);
        ok(source.run_with(&["txn"], &format!("\n{}", script.trim_start_matches('\n'))));
        ok(source.run(&["del", &key("before")]));
        mirror.wait_for(&copy, &format!("{copy}a\n2\n{copy}b\n3\n"));
    }
}

#[test]
fn a_full_store_is_told_alike() {
    let mut both = Both::start(&["--quota-backend-bytes=8388608"]);
    let value = "v".repeat(1 << 20);
    let refused = [0, 1].map(|at| {
        let etcdctl = &both.etcdctl[at];
        for n in 0..64 {
            let put = etcdctl.run_with(&["put", &format!("big/{n}")], &value);
            if put.code != 0 {
                return etcdctl.masked(&put);
            }
        }
        panic!("64 MiB fit into 8");
    });
    assert_eq!(refused[0], refused[1], "cairn left, etcd right");
    // The other formats say how often each could write before.
    for format in ["simple", "table"] {
        both.same(&["alarm", "list", "-w", format]);
    }
    both.same(&["put", "small", "v"]);
    both.same(&["lease", "grant", "60"]);
    both.same_with(&["txn"], "\nput small v\n\n\n");
    both.same(&["get", "small"]);
    both.same(&["endpoint", "health"]);
    both.same(&["endpoint", "health", "-w", "json"]);
    for etcdctl in &both.etcdctl {
        ok(etcdctl.run(&["del", "big/", "--prefix"]));
        let found = ok(etcdctl.run(&["get", "none", "-w", "fields"]));
        let revision = found.lines().find(|line| line.starts_with("\"Revision\""));
        let revision = revision.unwrap().rsplit(' ').next().unwrap().to_owned();
        ok(etcdctl.run(&["compaction", &revision, "--physical"]));
    }
    both.same(&["defrag"]);
    both.same(&["alarm", "disarm"]);
    both.same(&["alarm", "disarm"]);
    both.same(&["alarm", "list"]);
    both.same(&["put", "small", "v"]);
    both.same(&["endpoint", "health"]);
}
