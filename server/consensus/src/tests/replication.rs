use super::cluster::*;
use crate::{Config, Error};
use proptest::prelude::*;
use proto::raftpb::MessageType;

#[test]
fn a_leader_sends_while_its_own_disk_still_writes() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.node(leader).disk_hangs = true;
    cluster.propose(leader, "a");
    // The two others are a majority and apply; here it is committed and not durable.
    let status = cluster.node(leader).driver.status();
    assert!(status.commit > status.persisted);
    assert!(cluster.node(leader).data.is_empty());
    let applied = cluster.nodes.values().filter(|node| !node.data.is_empty());
    assert!(applied.count() >= 1);
    cluster.node(leader).disk_hangs = false;
    cluster.settle();
    cluster.tick();
    assert_eq!(cluster.data(), ["a"]);
}

#[test]
fn a_member_alone_commits_only_what_is_durable() {
    let mut cluster = Cluster::started(&[7]);
    cluster.node(7).disk_hangs = true;
    cluster.propose(7, "a");
    let commit = cluster.node(7).driver.status().commit;
    assert_eq!(commit, 2);
    cluster.node(7).disk_hangs = false;
    cluster.settle();
    assert_eq!(cluster.data(), ["a"]);
    assert_eq!(cluster.node(7).driver.status().commit, 3);
}

#[test]
fn a_follower_acknowledges_only_what_is_durable() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let followers: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.node(*id).disk_hangs = true;
    }
    cluster.sent.clear();
    cluster.propose(leader, "a");
    cluster.ticks(3);
    assert!(!cluster.sent.iter().any(|m| is(m, MessageType::MsgAppResp)));
    // It lives, all the same, and says so.
    assert!(
        cluster
            .sent
            .iter()
            .any(|m| is(m, MessageType::MsgHeartbeatResp))
    );
    assert!(cluster.node(leader).data.is_empty());
    cluster.node(followers[0]).disk_hangs = false;
    cluster.settle();
    assert_eq!(cluster.node(leader).data.len(), 1);
}

#[test]
fn many_entries_of_one_proposal_stay_in_order() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    for id in [leader, follower] {
        let entries = (0..100).map(|i| format!("{id}-{i}").into()).collect();
        cluster.node(id).driver.propose(entries).unwrap();
        cluster.settle();
    }
    let expected = [leader, follower].into_iter();
    let expected: Vec<_> = expected
        .flat_map(|id| (0..100).map(move |i| format!("{id}-{i}")))
        .collect();
    cluster.tick();
    assert_eq!(cluster.data(), expected);
}

#[test]
fn entries_that_no_majority_has_are_replaced() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.cut_off.insert(old);
    for data in ["lost", "lost", "lost"] {
        cluster.propose(old, data);
    }
    cluster.ticks(AN_ELECTION);
    let new = cluster.leader();
    cluster.propose(new, "kept");
    cluster.cut_off.clear();
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.data(), ["kept"]);
}

#[test]
fn bytes_on_their_way_are_bounded() {
    let mut cluster = Cluster::with(&[1, 2, 3], |id| Config {
        max_size_per_msg: 500,
        max_uncommitted_bytes: 1000,
        max_unpersisted_bytes: 1000,
        max_unapplied_bytes: 1000,
        max_committed_bytes_per_output: 500,
        ..Config::new(id)
    });
    cluster.ticks(AN_ELECTION);
    let leader = cluster.leader();
    let all: Vec<u64> = vec![1, 2, 3];
    for id in &all {
        cluster.node(*id).disk_hangs = true;
    }
    let entry = || vec![bytes::Bytes::from(vec![1; 100])];
    let refused = (0..100).find_map(|_| cluster.node(leader).driver.propose(entry()).err());
    assert_eq!(refused, Some(Error::Overloaded));
    cluster.settle();
    for id in &all {
        cluster.node(*id).disk_hangs = false;
        cluster.node(*id).apply_hangs = true;
    }
    cluster.ticks(3);
    for _ in 0..30 {
        let _ = cluster.node(leader).driver.propose(entry());
        cluster.settle();
    }
    // What was handed out stops growing while nothing of it is applied.
    let handed_out = cluster.node(leader).data.len();
    assert!((4..=15).contains(&handed_out), "{handed_out}");
    for id in &all {
        cluster.node(*id).apply_hangs = false;
        let applied = cluster.node(*id).applied;
        cluster.node(*id).driver.applied(applied);
    }
    cluster.ticks(3);
    assert!(cluster.data().len() > handed_out);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Members that hang, crash and are cut off apply the same entries, and lose none that were
    /// acknowledged.
    #[test]
    fn faults_lose_nothing(seed: u64, faults in prop::collection::vec((1u64..=3, 0u8..6, 1usize..25), 1..25)) {
        let mut cluster = Cluster::with(&[1, 2, 3], |id| Config { seed, cache_bytes: 600, ..Config::new(id) });
        let mut acknowledged = Vec::new();
        for (step, (id, fault, ticks)) in faults.into_iter().enumerate() {
            match fault {
                0 => drop(cluster.cut_off.insert(id)),
                1 => cluster.cut_off.clear(),
                2 => cluster.node(id).disk_hangs = true,
                3 => cluster.nodes.values_mut().for_each(|node| node.disk_hangs = false),
                4 => cluster.node(id).restart(),
                _ => cluster.loses = |m| m.commit.unwrap_or_default() % 3 == 1,
            }
            let data = format!("{step}");
            for node in cluster.nodes.values_mut() {
                let _ = node.driver.propose(vec![data.clone().into()]);
            }
            cluster.ticks(ticks);
            let applied = cluster.nodes.values().any(|node| node.data.contains(&data.clone().into()));
            if applied {
                acknowledged.push(data);
            }
            cluster.loses = |_| false;
        }
        cluster.cut_off.clear();
        cluster.nodes.values_mut().for_each(|node| node.disk_hangs = false);
        cluster.ticks(3 * AN_ELECTION);
        let leader = cluster.leader();
        cluster.propose(leader, "last");
        cluster.ticks(3);
        let data = cluster.data();
        prop_assert_eq!(data.last().map(String::as_str), Some("last"));
        for one in acknowledged {
            prop_assert!(data.contains(&one), "{} is lost", one);
        }
    }
}
