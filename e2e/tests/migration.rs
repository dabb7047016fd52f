//! A cluster of etcds becomes one of Cairns, member by member, and then one of etcds again, while
//! clients read and write, watchers watch and holders renew their leases. Nobody may notice.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use e2e::{
    Kind, Member, Server,
    client::{LIMIT, agree, grow, lead, leader, short, shrink, status},
    load::{Load, Options, Targets},
};

/// One member, with its process.
struct Running {
    member: Member,
    server: Server,
    id: u64,
}

/// The cluster as it is.
struct Fleet<'a> {
    folder: &'a Path,
    running: Vec<Running>,
    targets: Arc<Targets>,
}

impl<'a> Fleet<'a> {
    async fn found(folder: &'a Path, members: Vec<Member>) -> Self {
        let targets = Arc::new(Targets::default());
        let all: Vec<&Member> = members.iter().collect();
        let launch = |member: &Member| member.launch(folder, &all, "new");
        let mut servers: Vec<Server> = members.iter().map(launch).collect();
        servers.iter_mut().for_each(Server::wait_ready);
        let mut running = Vec::new();
        for (member, server) in members.into_iter().zip(servers) {
            targets.set(member.name(), server.url());
            let id = status(server.url()).await.header.unwrap().member_id;
            running.push(Running { member, server, id });
        }
        Self {
            folder,
            running,
            targets,
        }
    }

    /// The newest member comes, the oldest one goes; a new member leads every second time.
    async fn replace(&mut self, new: Member) {
        let survivor = self.running.last().unwrap().server.url().to_owned();
        let mut all: Vec<&Member> = self.running.iter().map(|one| &one.member).collect();
        all.push(&new);
        let (id, server) = grow(&survivor, &new, &all, self.folder).await;
        self.targets.set(new.name(), server.url());
        self.agree(&[server.url()]).await;
        if id % 2 == 0 || leader(&survivor).await == self.running[0].id {
            let by = leader(&survivor).await;
            let leading = self.running.iter().find(|one| one.id == by);
            lead(leading.unwrap().server.url(), id).await;
        }
        let member = new;
        self.running.push(Running { member, server, id });
        let mut old = self.running.remove(0);
        self.targets.remove(old.member.name());
        shrink(self.running.last().unwrap().server.url(), old.id).await;
        old.server.kill();
        self.agree(&[]).await;
    }

    /// The newest member leads, and no longer has what a new one would need first.
    async fn lead_with_a_short_log(&self) {
        let newest = self.running.last().unwrap();
        let began = Instant::now();
        while !newest.server.log().contains("compacted Raft logs") {
            assert!(began.elapsed() < LIMIT, "the log is not shortened");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let by = leader(newest.server.url()).await;
        if by != newest.id {
            let leading = self.running.iter().find(|one| one.id == by).unwrap();
            lead(leading.server.url(), newest.id).await;
        }
    }

    async fn agree(&self, more: &[&str]) {
        let urls = self.running.iter().map(|one| one.server.url());
        agree(&urls.chain(more.iter().copied()).collect::<Vec<_>>()).await;
    }
}

/// Moves a cluster of `kind` to as many Cairns, and back.
async fn move_over_and_back(kind: Kind, cairns: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let founders = ["e1", "e2", "e3"].map(|name| Member::new(kind, name));
    let mut fleet = Fleet::found(folder.path(), founders.to_vec()).await;
    let load = Load::start(Arc::clone(&fleet.targets), Options::default()).await;
    // Most come in by the log; on the way back it is too short for that.
    for name in cairns {
        let cairn = Member::new(Kind::Cairn, name).with_flags(short(Kind::Cairn));
        fleet.replace(cairn).await;
    }
    let half = load.operations();
    fleet.lead_with_a_short_log().await;
    for name in ["f1", "f2", "f3"] {
        fleet.replace(Member::new(kind, name)).await;
    }
    let by_snapshot = |one: &Running| one.server.log().contains("applied snapshot");
    assert!(fleet.running.iter().any(by_snapshot), "all came by the log");
    load.until_leases_end().await;
    let verdict = load.finish().await;
    println!("{verdict:?}");
    assert!(verdict.summary.expired > 0, "{verdict:?}");
    assert!(half > 500 && verdict.operations > half + 500, "{verdict:?}");
    fleet.agree(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_moves_to_cairn_and_back_under_load() {
    move_over_and_back(Kind::Etcd, &["c1", "c2", "c3"]).await;
}

/// One of the version before is always there: without it the cluster's version would be raised, and
/// no other could join any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_the_version_before_takes_cairns_in_and_loses_them_under_load() {
    move_over_and_back(Kind::Etcd36, &["c1", "c2"]).await;
}
