//! A cluster that lost its majority goes on as a cluster of one: `--force-new-cluster`, on real etcd
//! as on Cairn, and on Cairn with what an etcd left.

#![allow(clippy::unwrap_used)]

use e2e::{
    Kind, Member, Server,
    client::{agree, channel, eventually, get, grow, put, short},
};
use proto::etcdserverpb::{self, MemberListRequest, cluster_client::ClusterClient};

const FORCE: &str = "--force-new-cluster";

async fn members(url: &str) -> Vec<etcdserverpb::Member> {
    let mut client = ClusterClient::new(channel(url));
    let list = MemberListRequest { linearizable: true };
    let members = eventually("list", async || client.member_list(list).await).await;
    members.into_inner().members
}

/// A cluster of kind `before` loses two of its three members; the third one goes on as `after`.
async fn goes_on_alone(before: Kind, after: Kind, flags: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let founders =
        ["a", "b", "c"].map(|name| Member::new(before, name).with_flags(flags.to_owned()));
    let all: Vec<&Member> = founders.iter().collect();
    let launch = |member: &Member| member.launch(folder.path(), &all, "new");
    let mut servers: Vec<Server> = founders.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    for n in 0..60 {
        let key = format!("k{}", n % 20);
        put(servers[n % 3].url(), &key, &n.to_string()).await;
    }
    let known = members(servers[0].url()).await;
    assert_eq!(known.len(), 3);
    // A commit index is written with the next entry, so what counts is what comes before this one.
    put(servers[0].url(), "barrier", "1").await;
    agree(&[servers[0].url(), servers[1].url()]).await;
    drop(servers);

    let first = match before == after {
        true => Member::clone(&founders[0]),
        false => Member::clone(&founders[0]).with_kind(after),
    };
    let forced = first.clone().with_flags(vec![FORCE.to_owned()]);
    let mut server = forced.launch(folder.path(), &[&first], "existing");
    server.wait_ready();
    let left = members(server.url()).await;
    assert_eq!(left.len(), 1, "{left:?}");
    let same = known.iter().find(|member| member.id == left[0].id);
    assert_eq!(same.unwrap().peer_ur_ls, left[0].peer_ur_ls);
    assert_eq!(left[0].name, "a");
    for n in 0..20 {
        let value = (n + 40).to_string();
        let found = get(server.url(), &format!("k{n}"), false).await;
        assert_eq!(found.as_deref(), Some(value.as_str()));
    }
    put(server.url(), "alone", "1").await;

    // Again with the flag, as a launcher that keeps it would, then without it.
    server.kill();
    server.restart();
    put(server.url(), "alone", "2").await;
    drop(server);
    let mut server = first.launch(folder.path(), &[&first], "existing");
    server.wait_ready();
    assert_eq!(
        get(server.url(), "alone", false).await.as_deref(),
        Some("2")
    );
    assert_eq!(members(server.url()).await.len(), 1);

    let fourth = Member::new(after, "d");
    let (_, joined) = grow(server.url(), &fourth, &[&first, &fourth], folder.path()).await;
    agree(&[server.url(), joined.url()]).await;
    assert_eq!(members(joined.url()).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_goes_on_alone() {
    goes_on_alone(Kind::Etcd, Kind::Etcd, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_goes_on_alone() {
    goes_on_alone(Kind::Cairn, Kind::Cairn, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_goes_on_alone_with_a_short_log() {
    goes_on_alone(Kind::Cairn, Kind::Cairn, &short(Kind::Cairn)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_goes_on_alone_with_what_an_etcd_left() {
    goes_on_alone(Kind::Etcd, Kind::Cairn, &short(Kind::Etcd)).await;
}
