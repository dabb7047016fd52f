//! Commands that speak of several members.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use e2e::{Etcdctl, Kind, Member, Server, etcdctl::Outcome, etcdctl::ok, tool};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Three members, in the order of their IDs.
struct Cluster {
    _folder: tempfile::TempDir,
    _servers: Vec<Server>,
    binary: PathBuf,
    etcdctl: Etcdctl,
    /// ID, client URL, peer URL.
    members: Vec<[String; 3]>,
}

impl Cluster {
    fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let members = ["a", "b", "c"].map(|name| Member::new(kind, name));
        let all: Vec<&Member> = members.iter().collect();
        let launch = |member: &Member| member.launch(folder.path(), &all, "new");
        let mut servers: Vec<Server> = members.iter().map(launch).collect();
        servers.iter_mut().for_each(Server::wait_ready);
        let urls: Vec<&str> = servers.iter().map(Server::url).collect();
        let binary = tool("etcdctl");
        let etcdctl = Etcdctl::new(&binary, &urls.join(","));
        // All must have told the others how clients reach them.
        let began = Instant::now();
        let members = loop {
            let list = ok(etcdctl.run(&["member", "list"]));
            let members: Vec<[String; 3]> = list
                .lines()
                .map(|line| line.split(", ").map(str::to_owned).collect())
                .filter_map(|words: Vec<String>| {
                    let [id, _, _, peer, client, _] = <[String; 6]>::try_from(words).ok()?;
                    client.starts_with("http").then_some([id, client, peer])
                })
                .collect();
            if members.len() == 3 {
                break members;
            }
            assert!(began.elapsed() < LIMIT, "{list}");
        };
        Self {
            _folder: folder,
            _servers: servers,
            binary,
            etcdctl,
            members,
        }
    }

    /// What a command says, with words in place of what is this cluster's own, line by line in
    /// an order that hangs on nothing else.
    fn say(&self, arguments: &[&str]) -> Outcome {
        self.mask(&self.etcdctl.run(arguments))
    }

    fn mask(&self, outcome: &Outcome) -> Outcome {
        let mask = |text: &str| {
            let mut text = text.to_owned();
            for [id, client, peer] in &self.members {
                text = text.replace(client, "CLIENT").replace(peer, "PEER");
                text = text.replace(id, "MEMBER");
                let decimal = u64::from_str_radix(id, 16).unwrap().to_string();
                text = text.replace(&decimal, "MEMBER");
            }
            text
        };
        let masked = Outcome {
            code: outcome.code,
            output: mask(&outcome.output),
            errors: mask(&outcome.errors),
        };
        let masked = self.etcdctl.masked(&masked);
        let sorted = |text: &str| {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        Outcome {
            code: masked.code,
            output: sorted(&masked.output),
            errors: sorted(&masked.errors),
        }
    }

    /// ID and client URL of the leader, and those of another.
    fn leader(&self) -> ([String; 2], [String; 2]) {
        let began = Instant::now();
        loop {
            let status = ok(self.etcdctl.run(&["endpoint", "status"]));
            let (leads, follows): (Vec<&str>, Vec<&str>) = status
                .lines()
                .partition(|line| line.split(", ").nth(8) == Some("true"));
            let words = |line: &str| {
                let words: Vec<&str> = line.split(", ").collect();
                [words[1].to_owned(), words[0].to_owned()]
            };
            if let ([leader], [other, _]) = (&leads[..], &follows[..]) {
                return (words(leader), words(other));
            }
            assert!(began.elapsed() < LIMIT, "{status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A command to one member alone.
    fn say_to(&self, url: &str, arguments: &[&str]) -> Outcome {
        self.mask(&Etcdctl::new(&self.binary, url).run(arguments))
    }
}

#[test]
fn three_members_are_told_of_alike() {
    let clusters = [Kind::Cairn, Kind::Etcd].map(Cluster::start);
    let same = |what: &str, say: &dyn Fn(&Cluster) -> Outcome| {
        let [cairn, etcd] = clusters.each_ref().map(say);
        assert_eq!(cairn, etcd, "{what}: cairn left, etcd right");
        cairn
    };
    // In these words each line is a member's; other formats hang on the order of the IDs.
    for arguments in [
        &["put", "k", "v"][..],
        &["member", "list"],
        &["endpoint", "health"],
        &["endpoint", "hashkv"],
        &["endpoint", "hashkv", "--cluster"],
        &["alarm", "list"],
        &["defrag", "--cluster"],
        &["defrag"],
    ] {
        same(&format!("{arguments:?}"), &|of| of.say(arguments));
    }
    let health = same("health of all", &|of| {
        of.say(&["endpoint", "health", "--cluster"])
    });
    assert_eq!(health.output.lines().count(), 3, "{health:?}");

    let leaders = clusters.each_ref().map(Cluster::leader);
    let of = |cluster: &Cluster| {
        let first = std::ptr::eq(cluster, &clusters[0]);
        leaders[usize::from(!first)].clone()
    };
    let asked = same("asked of a follower", &|cluster| {
        let (_, [id, url]) = of(cluster);
        cluster.say_to(&url, &["move-leader", &id])
    });
    assert!(asked.errors.contains("no leader endpoint"), "{asked:?}");
    same("to itself", &|cluster| {
        let ([id, url], _) = of(cluster);
        cluster.say_to(&url, &["move-leader", &id])
    });
    let moved = same("to another", &|cluster| {
        let ([_, url], [id, _]) = of(cluster);
        cluster.say_to(&url, &["move-leader", &id])
    });
    assert_eq!(moved.code, 0, "{moved:?}");
    for cluster in &clusters {
        let (_, [id, _]) = of(cluster);
        assert_eq!(cluster.leader().0[0], id);
    }
}
