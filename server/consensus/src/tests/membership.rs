use super::cluster::*;
use crate::{Error, Role};
use bytes::Bytes;
use proto::raftpb::ConfChangeType as Kind;

#[test]
fn a_learner_joins_catches_up_and_gets_a_vote() {
    let mut cluster = Cluster::started(&[7]);
    cluster.propose(7, "before");
    cluster.change(Kind::ConfChangeAddLearnerNode, 9);
    cluster.join(9);
    cluster.ticks(5);
    cluster.propose(7, "as a learner");
    assert_eq!(cluster.data(), ["before", "as a learner"]);
    assert_eq!(cluster.node(9).conf_state.learners, [9]);
    let status = cluster.node(7).driver.status();
    assert_eq!(status.peers.len(), 2);
    assert!(status.peers[1].is_learner && status.peers[1].recent_active);
    assert_eq!(status.peers[1].matched, status.last_index);

    cluster.change(Kind::ConfChangeAddNode, 9);
    cluster.ticks(3);
    assert_eq!(cluster.node(9).conf_state.voters, [7, 9]);
    // From now on both are needed.
    cluster.cut_off.insert(9);
    cluster.propose(7, "alone");
    assert_eq!(cluster.node(7).data.len(), 2);
    cluster.cut_off.clear();
    cluster.ticks(AN_ELECTION);
    cluster.node(9).restart();
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.data(), ["before", "as a learner", "alone"]);
    cluster.node(7).driver.transfer_leader(9);
    cluster.ticks(2);
    assert_eq!(cluster.leader(), 9);
}

#[test]
fn a_removed_member_falls_silent_and_late_writes_do_no_harm() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let gone = leader % 3 + 1;
    cluster.change(Kind::ConfChangeRemoveNode, gone);
    cluster.ticks(2);
    let node = cluster.node(gone);
    assert!(node.driver.status().removed);
    assert_eq!(node.driver.propose(vec!["x".into()]), Err(Error::Removed));
    assert_eq!(node.driver.read_index(5), Err(Error::Removed));
    node.driver.persisted(u64::MAX);
    node.driver.applied(u64::MAX);
    node.driver.transfer_leader(leader);
    cluster.sent.clear();
    cluster.ticks(AN_ELECTION);
    assert!(
        cluster
            .sent
            .iter()
            .all(|message| message.from != Some(gone))
    );
    cluster.nodes.remove(&gone);
    cluster.propose(leader, "a");
    assert_eq!(cluster.data(), ["a"]);
}

#[test]
fn a_leader_that_is_removed_hands_over_and_stops() {
    for writes_late in [false, true] {
        let mut cluster = Cluster::started(&[1, 2, 3]);
        let old = cluster.leader();
        let change = change(Kind::ConfChangeRemoveNode, old);
        cluster
            .node(old)
            .driver
            .propose_conf_change(&change)
            .unwrap();
        if writes_late {
            cluster.settle();
            let driver = &mut cluster.node(old).driver;
            assert!(driver.propose(vec!["late".into()]).is_err());
        } else {
            // In flight behind the removal.
            cluster
                .node(old)
                .driver
                .propose(vec!["late".into()])
                .unwrap();
            cluster.settle();
        }
        let status = cluster.node(old).driver.status();
        assert!(status.removed);
        assert_eq!((status.role, status.leader), (Role::Follower, 0));
        assert_eq!(cluster.node(old).soft.unwrap().leader, 0);
        cluster.node(old).driver.persisted(u64::MAX);
        cluster.nodes.remove(&old);
        cluster.ticks(AN_ELECTION);
        let new = cluster.leader();
        cluster.propose(new, "a");
        assert_eq!(cluster.data().last().unwrap(), "a");
        assert_eq!(cluster.node(new).conf_state.voters.len(), 2);
    }
}

#[test]
fn the_last_member_can_be_removed() {
    let mut cluster = Cluster::started(&[7]);
    cluster.change(Kind::ConfChangeRemoveNode, 7);
    assert!(cluster.node(7).driver.status().removed);
    assert!(cluster.node(7).conf_state.voters.is_empty());
}

#[test]
fn only_one_change_at_a_time_and_a_refused_one_makes_way() {
    let mut cluster = Cluster::started(&[7]);
    cluster.node(7).refuses_changes = true;
    cluster.node(7).apply_hangs = true;
    cluster.change(Kind::ConfChangeAddNode, 8);
    let add = change(Kind::ConfChangeAddNode, 9);
    let driver = &mut cluster.node(7).driver;
    assert_eq!(
        driver.propose_conf_change(&add),
        Err(Error::ConfChangePending)
    );
    cluster.node(7).apply_hangs = false;
    let applied = cluster.node(7).applied;
    cluster.node(7).driver.applied(applied);
    cluster.change(Kind::ConfChangeAddLearnerNode, 8);
    assert_eq!(cluster.node(7).conf_state.voters, [7]);
    cluster.node(7).refuses_changes = false;
    cluster.change(Kind::ConfChangeAddLearnerNode, 8);
    assert_eq!(cluster.node(7).conf_state.learners, [8]);
}

/// raft-rs would take etcd's number for an update as a learner's.
#[test]
fn an_update_changes_nothing_for_raft() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    cluster.change(Kind::ConfChangeUpdateNode, 2);
    cluster.tick();
    for node in cluster.nodes.values() {
        assert_eq!(node.conf_state.voters, [1, 2, 3]);
        assert_eq!(node.applied, 5);
    }
}

#[test]
fn a_change_travels_from_a_follower_with_etcds_bytes() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let follower = cluster.leader() % 3 + 1;
    let add = change(Kind::ConfChangeAddLearnerNode, 4);
    cluster
        .node(follower)
        .driver
        .propose_conf_change(&add)
        .unwrap();
    cluster.settle();
    cluster.tick();
    let expected = Bytes::from(prost::Message::encode_to_vec(&add));
    for node in cluster.nodes.values() {
        assert_eq!(node.conf_state.learners, [4]);
        assert_eq!(
            node.disk.entries.last().unwrap().data,
            Some(expected.clone())
        );
    }
}

/// etcd must have applied all membership changes before it stands for election.
#[test]
fn a_member_with_an_unapplied_change_does_not_stand() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    for node in cluster.nodes.values_mut() {
        node.restart();
        (node.applied, node.conf_state) = (0, Default::default());
        node.restart();
        node.apply_hangs = true;
    }
    cluster.ticks(AN_ELECTION);
    for node in cluster.nodes.values_mut() {
        assert_eq!(node.driver.status().term, 1);
        node.apply_hangs = false;
        node.driver.applied(3);
    }
    cluster.ticks(AN_ELECTION);
    cluster.leader();
}
