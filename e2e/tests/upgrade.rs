//! A cluster of the version before becomes one of this version, member by member, while clients
//! read and write, watchers watch and holders renew their leases.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use e2e::{
    Kind, Member, Server,
    client::{agree, short},
    load::{Load, Options, Targets},
    previous,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_the_version_before_is_upgraded_under_load() {
    if previous::program().is_none() {
        println!("{} is not in this clone: not tried", previous::COMMIT);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let members = ["a", "b", "c"].map(|name| {
        let member = Member::new(Kind::CairnBefore, name);
        member.with_flags(short(Kind::Cairn))
    });
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    let targets = Arc::new(Targets::default());
    for (member, server) in members.iter().zip(&servers) {
        targets.set(member.name(), server.url());
    }
    let load = Load::start(Arc::clone(&targets), Options::default()).await;
    for (member, server) in members.iter().zip(&mut servers) {
        // Some work for each mix of versions.
        let before = load.operations();
        while load.operations() < before + 1_000 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(server.stop().success());
        let upgraded = member.clone().with_kind(Kind::Cairn);
        let upgraded = upgraded.with_flags(short(Kind::Cairn));
        *server = upgraded.launch(folder.path(), &all, "existing");
        server.wait_ready();
        targets.set(member.name(), server.url());
    }
    let verdict = load.finish().await;
    println!("{verdict:?}");
    agree(&urls_of(&servers)).await;
    // What the new one left is good for itself as well.
    for server in &mut servers {
        server.kill();
    }
    for server in &mut servers {
        server.relaunch();
    }
    servers.iter_mut().for_each(Server::wait_ready);
    agree(&urls_of(&servers)).await;
}

fn urls_of(servers: &[Server]) -> Vec<&str> {
    servers.iter().map(Server::url).collect()
}
