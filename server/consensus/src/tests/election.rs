use super::cluster::*;
use crate::{Boot, Config, Driver, Error, Role};
use proto::raftpb::{ConfState, HardState, MessageType};

#[test]
fn a_new_cluster_applies_its_members_and_elects_a_leader() {
    for members in [&[7][..], &[1, 2, 3]] {
        let mut cluster = Cluster::new(members);
        for node in cluster.nodes.values() {
            assert_eq!(node.applied, members.len() as u64);
            assert_eq!(node.conf_state.voters, members);
            assert_eq!(node.soft.unwrap().leader, 0);
        }
        cluster.ticks(AN_ELECTION);
        let leader = cluster.leader();
        for node in cluster.nodes.values() {
            let soft = node.soft.unwrap();
            assert_eq!(soft.leader, leader);
            assert_eq!(soft.role == Role::Leader, soft.leader == node.config.id);
            assert!(soft.term > 1);
            assert_eq!(node.applied, members.len() as u64 + 1);
        }
    }
}

#[test]
fn a_member_alone_leads_after_one_tick() {
    let mut cluster = Cluster::new(&[7]);
    cluster.tick();
    assert_eq!(cluster.leader(), 7);
}

#[test]
fn runs_with_the_same_seeds_are_the_same() {
    let run = |seed| {
        let mut cluster = Cluster::with(&[1, 2, 3], |id| Config {
            seed,
            ..Config::new(id)
        });
        let mut leaders = Vec::new();
        for _ in 0..4 {
            cluster.ticks(AN_ELECTION);
            leaders.push(cluster.leader());
            let leader = cluster.leader();
            cluster.cut_off = [leader].into();
        }
        (leaders, cluster.sent)
    };
    assert_eq!(run(3), run(3));
    assert!((4..20).any(|seed| run(seed).0 != run(3).0));
}

#[test]
fn the_others_go_on_without_a_leader_that_is_cut_off() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.propose(old, "a");
    cluster.cut_off.insert(old);
    cluster
        .node(old)
        .driver
        .propose(vec!["lost".into()])
        .unwrap();
    cluster.ticks(AN_ELECTION);
    let new = cluster.leader();
    assert_ne!(new, old);
    cluster.propose(new, "b");
    // Without a majority the old one has stepped down by itself.
    assert_ne!(cluster.node(old).driver.status().role, Role::Leader);
    assert_eq!(
        cluster.node(old).driver.propose(vec!["c".into()]),
        Err(Error::NoLeader)
    );
    cluster.cut_off.clear();
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.data(), ["a", "b"]);
}

#[test]
fn a_member_that_was_cut_off_does_not_disturb_when_it_returns() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let other = if leader == 1 { 2 } else { 1 };
    cluster.cut_off.insert(other);
    cluster.ticks(5 * AN_ELECTION);
    cluster.cut_off.clear();
    let term = cluster.node(leader).driver.status().term;
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.leader(), leader);
    assert_eq!(cluster.node(leader).driver.status().term, term);
}

#[test]
fn leadership_is_handed_over_within_a_tick() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    let new = if old == 3 { 1 } else { 3 };
    cluster.node(old).driver.transfer_leader(new);
    cluster.settle();
    assert_eq!(cluster.leader(), new);
    cluster.propose(old, "by the follower");
    assert_eq!(cluster.data(), ["by the follower"]);
}

#[test]
fn proposals_are_refused_while_leadership_is_handed_over() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    let new = if old == 3 { 1 } else { 3 };
    cluster.cut_off.insert(new);
    cluster.node(old).driver.transfer_leader(new);
    let driver = &mut cluster.node(old).driver;
    assert_eq!(driver.status().transferee, new);
    assert_eq!(driver.propose(vec!["a".into()]), Err(Error::Transferring));
    cluster.ticks(15);
    cluster.propose(old, "given up");
}

/// A restart finds what was durable, applies on from there, and leads or follows as before.
#[test]
fn members_restart_from_their_logs() {
    for members in [&[7][..], &[1, 2, 3]] {
        let mut cluster = Cluster::started(members);
        let leader = cluster.leader();
        for data in ["a", "b", "c"] {
            cluster.propose(leader, data);
        }
        let term = cluster.node(leader).driver.status().term;
        for &id in members {
            cluster.node(id).restart();
            // Some of what was applied is lost, and comes again.
            let status = cluster.node(id).driver.status();
            assert_eq!(status.term, term);
            assert_eq!(status.applied, cluster.node(id).applied);
        }
        cluster.ticks(AN_ELECTION);
        let leader = cluster.leader();
        cluster.propose(leader, "d");
        assert_eq!(cluster.data(), ["a", "b", "c", "d"]);
    }
}

#[test]
fn applied_may_lie_above_the_commit_index_on_the_disk() {
    let disk = bootstrapped(&[7]);
    let boot = Boot {
        hard_state: HardState {
            commit: Some(0),
            ..disk.hard_state
        },
        conf_state: ConfState {
            voters: vec![7],
            ..ConfState::default()
        },
        applied: 1,
        entries: disk.entries,
        first_index: 1,
        last_index: 1,
        last_term: 1,
        terms: Vec::new(),
    };
    let driver = Driver::new(Config::new(7), boot.clone()).unwrap();
    assert_eq!(driver.status().commit, 1);
    let bad = [
        Boot {
            applied: 2,
            ..boot.clone()
        },
        Boot {
            last_term: 2,
            ..boot.clone()
        },
        Boot {
            last_index: 3,
            ..boot.clone()
        },
        Boot {
            hard_state: HardState::default(),
            ..boot.clone()
        },
        Boot {
            first_index: 9,
            ..boot.clone()
        },
        Boot {
            conf_state: ConfState {
                voters: vec![7],
                voters_outgoing: vec![8],
                ..ConfState::default()
            },
            ..boot
        },
    ];
    for boot in bad {
        let refused = Driver::new(Config::new(7), boot.clone()).err();
        assert!(matches!(refused, Some(Error::Boot(_))), "{boot:?}");
    }
    let senseless = Config {
        heartbeat_ticks: 10,
        ..Config::new(7)
    };
    assert!(Driver::new(senseless, Boot::default()).is_err());
}

/// raft-rs lets a leader send before its write is durable. One that is alone has not even its term
/// on the disk then, and would use it twice.
#[test]
fn a_leader_alone_says_nothing_before_its_term_is_durable() {
    let mut cluster = Cluster::started(&[7]);
    cluster.change(proto::raftpb::ConfChangeType::ConfChangeAddLearnerNode, 9);
    cluster.join(9);
    cluster.ticks(5);
    cluster.node(7).restart();
    cluster.node(7).disk_hangs = true;
    cluster.sent.clear();
    cluster.tick();
    assert_eq!(cluster.node(7).driver.status().role, Role::Leader);
    cluster.propose(7, "a");
    let term = cluster.node(7).driver.status().term;
    let early = |m: &proto::raftpb::Message| m.from == Some(7) && m.term == Some(term);
    assert!(!cluster.sent.iter().any(early), "{:?}", cluster.sent);
    cluster.node(7).disk_hangs = false;
    cluster.settle();
    assert!(
        cluster
            .sent
            .iter()
            .any(|m| is(m, MessageType::MsgApp) && early(m))
    );
    assert_eq!(cluster.data(), ["a"]);
}

/// The log's thread sends a vote request and reports the write a moment later, the wrong way round:
/// raft-rs would panic about a leader whose own entries are not durable.
#[test]
fn a_vote_that_overtakes_the_report_of_its_write_is_lost() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    let id = old % 3 + 1;
    cluster.node(id).disk_hangs = true;
    cluster.propose(old, "a");
    cluster.cut_off.insert(id);
    let reply = |kind, term| proto::raftpb::Message {
        r#type: Some(kind as i32),
        to: Some(id),
        from: Some(old),
        term: Some(term),
        ..Default::default()
    };
    let node = cluster.node(id);
    let term = node.driver.status().term;
    while node.driver.status().role != Role::PreCandidate {
        node.driver.tick(0);
        while node.driver.poll().is_some() {}
    }
    let yes = reply(MessageType::MsgPreVoteResp, term + 1);
    node.driver.step(yes).unwrap();
    while let Some(output) = node.driver.poll() {
        node.writes.extend(output.append);
    }
    assert_eq!(node.driver.status().role, Role::Candidate);
    let vote = reply(MessageType::MsgVoteResp, term + 1);
    node.driver.step(vote.clone()).unwrap();
    assert_eq!(node.driver.status().role, Role::Candidate);
    let last = node.writes.back().unwrap().number;
    node.driver.persisted(last);
    node.driver.step(vote).unwrap();
    assert_eq!(node.driver.status().role, Role::Leader);
}

/// A member alone wins by its own vote, on the spot; raft-rs would panic as above.
#[test]
fn a_member_alone_stands_only_when_all_of_its_log_is_durable() {
    let mut cluster = Cluster::started(&[1, 2]);
    let leader = cluster.leader();
    let other = 3 - leader;
    cluster.propose(leader, "a");
    let remove = change(proto::raftpb::ConfChangeType::ConfChangeRemoveNode, leader);
    cluster.node(other).disk_hangs = true;
    cluster.propose(leader, "b");
    // As if the removal had been applied just now, with "b" on its way to the disk.
    let node = cluster.node(other);
    node.driver.apply_conf_change(&remove).unwrap();
    for _ in 0..AN_ELECTION {
        node.driver.tick(1);
        while let Some(output) = node.driver.poll() {
            node.writes.extend(output.append);
        }
    }
    assert_eq!(node.driver.status().role, Role::Follower);
    node.disk_hangs = false;
    cluster.cut_off.insert(leader);
    cluster.settle();
    cluster.tick();
    assert_eq!(cluster.leader(), other);
}

#[test]
fn the_wait_for_a_leader_can_be_shortened_but_not_skipped() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let driver = &mut cluster.node(1).driver;
    driver.advance_election_clock(usize::MAX);
    assert_eq!(driver.status().role, Role::Follower);
    let mut ticks = 0;
    while driver.status().role == Role::Follower {
        driver.tick(0);
        while driver.poll().is_some() {}
        ticks += 1;
    }
    assert!((1..=10).contains(&ticks), "{ticks}");
}
