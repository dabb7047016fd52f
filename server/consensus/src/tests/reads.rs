use super::cluster::*;
use crate::ReadReady;
use proto::raftpb::{Message, MessageType};

#[test]
fn every_member_gets_an_index_that_covers_what_was_committed() {
    for members in [&[7][..], &[1, 2, 3]] {
        let mut cluster = Cluster::started(members);
        let leader = cluster.leader();
        cluster.propose(leader, "a");
        let commit = cluster.node(leader).driver.status().commit;
        for (ctx, &id) in (500..).zip(members) {
            cluster.node(id).driver.read_index(ctx).unwrap();
            cluster.settle();
            let expected = ReadReady { ctx, index: commit };
            assert_eq!(cluster.node(id).reads, [expected]);
        }
    }
}

#[test]
fn a_leader_that_lost_its_majority_confirms_nothing() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.cut_off.insert(old);
    cluster.node(old).driver.read_index(1).unwrap();
    cluster.ticks(AN_ELECTION);
    let new = cluster.leader();
    cluster.propose(new, "a");
    assert!(cluster.node(old).reads.is_empty());
    // Asked again, it is answered by the new leader, with what was committed since.
    cluster.cut_off.clear();
    cluster.ticks(3);
    cluster.node(old).driver.read_index(1).unwrap();
    cluster.settle();
    let commit = cluster.node(new).driver.status().commit;
    assert_eq!(
        cluster.node(old).reads,
        [ReadReady {
            ctx: 1,
            index: commit
        }]
    );
}

#[test]
fn reads_wait_for_a_leader_and_for_its_first_commit() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    for id in 1..=3 {
        cluster.node(id).driver.read_index(id).unwrap();
    }
    // The new leader's first entry gets lost, again and again.
    cluster.loses = |m: &Message| is(m, MessageType::MsgApp) && !m.entries.is_empty();
    cluster.ticks(25);
    let leader = cluster.leader();
    assert!(cluster.nodes.values().all(|node| node.reads.is_empty()));
    cluster.loses = |_| false;
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.leader(), leader);
    for (id, node) in &cluster.nodes {
        assert_eq!(node.reads.len(), 1, "{id}");
        assert_eq!(node.reads[0].ctx, *id);
        assert!(node.reads[0].index >= 4);
    }
}
