use bytes::Bytes;
use proto::raftpb::{
    ConfChangeType as Kind, ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata,
};

use super::cluster::*;
use crate::{Config, Error, Role};

/// A cluster whose member that comes second was away while the others wrote `writes` entries and
/// dropped what was applied.
fn behind(writes: usize) -> (Cluster, u64, u64) {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let away = leader % 3 + 1;
    cluster.cut_off.insert(away);
    for i in 0..writes {
        cluster.propose(leader, &format!("{i}"));
    }
    for id in 1..=3 {
        if id != away {
            cluster.compact(id);
        }
    }
    (cluster, leader, away)
}

fn snapshots(cluster: &Cluster) -> usize {
    let all = cluster.sent.iter();
    all.filter(|message| is(message, MessageType::MsgSnap))
        .count()
}

fn acknowledgements(cluster: &Cluster, from: u64) -> Vec<u64> {
    let all = cluster.sent.iter();
    let ours = all.filter(|one| one.from == Some(from) && is(one, MessageType::MsgAppResp));
    let accepted = ours.filter(|one| one.reject != Some(true));
    accepted.map(|one| one.index.unwrap()).collect()
}

/// Ticks until a snapshot for `to` is under way, and takes it off the network.
fn intercept(cluster: &mut Cluster, to: u64) -> Message {
    cluster.loses = |message| is(message, MessageType::MsgSnap);
    cluster.sent.clear();
    for _ in 0..AN_ELECTION {
        cluster.tick();
        let mut sent = cluster.sent.iter();
        let found = sent.find(|one| one.to == Some(to) && is(one, MessageType::MsgSnap));
        if let Some(found) = found {
            return found.clone();
        }
    }
    panic!("no snapshot is sent");
}

#[test]
fn a_follower_behind_the_log_catches_up_by_a_snapshot() {
    let (mut cluster, leader, away) = behind(9);
    let index = cluster.node(leader).applied;
    cluster.cut_off.clear();
    cluster.ticks(3);
    assert_eq!(cluster.data().len(), 9);
    assert_eq!(snapshots(&cluster), 1);
    let node = cluster.node(away);
    assert_eq!(node.installed, [index]);
    assert_eq!(node.disk.before.0, index);
    assert_eq!(node.driver.status().applied, index);
    assert_eq!(node.driver.installing(), None);
    // On by entries, also from a restart.
    cluster.propose(leader, "on");
    cluster.node(away).restart();
    cluster.ticks(3);
    cluster.propose(leader, "and on");
    assert_eq!(cluster.data().len(), 11);
    assert_eq!(snapshots(&cluster), 1);
    // It can do all that a member can.
    cluster.node(leader).driver.transfer_leader(away);
    cluster.ticks(3);
    assert_eq!(cluster.leader(), away);
    cluster.propose(away, "led");
    assert_eq!(cluster.data().len(), 12);
}

#[test]
fn a_learner_joins_by_a_snapshot_and_is_promoted() {
    let mut cluster = Cluster::started(&[1]);
    for data in ["a", "b", "c"] {
        cluster.propose(1, data);
    }
    cluster.join(9);
    cluster.compact(1);
    cluster.change(Kind::ConfChangeAddLearnerNode, 9);
    cluster.compact(1);
    cluster.ticks(3);
    assert_eq!(snapshots(&cluster), 1);
    assert_eq!(cluster.data(), ["a", "b", "c"]);
    let learners = |cluster: &mut Cluster| cluster.node(9).driver.conf_state().learners;
    assert_eq!(learners(&mut cluster), [9]);
    cluster.change(Kind::ConfChangeAddNode, 9);
    assert!(learners(&mut cluster).is_empty());
    // Now its vote counts.
    cluster.cut_off.insert(9);
    cluster.propose(1, "d");
    assert_eq!(cluster.node(1).data.len(), 3);
    cluster.cut_off.clear();
    cluster.ticks(3);
    assert_eq!(cluster.data().len(), 4);
}

/// Who is behind is named once, and again when no answer comes; the network hears nothing of it.
#[test]
fn a_member_behind_the_log_is_named_until_an_answer_comes() {
    let (mut cluster, leader, away) = behind(3);
    let driver = &mut cluster.node(leader).driver;
    // More than may be dropped: what is applied is the bound.
    driver.compacted(u64::MAX);
    let applied = driver.status().applied;
    assert_eq!(driver.node.raft.raft_log.first_index(), applied + 1);
    cluster.node(leader).offers = false;
    cluster.cut_off.clear();
    cluster.ticks(5);
    assert_eq!(cluster.node(leader).needs_snapshot, [away]);
    cluster.ticks(10);
    assert_eq!(cluster.node(leader).needs_snapshot, [away, away]);
    // No answer is one, too.
    cluster.node(leader).driver.report_snapshot(away, false);
    cluster.ticks(2);
    assert_eq!(cluster.node(leader).needs_snapshot.len(), 3);
    assert_eq!(cluster.leader(), leader);
    cluster.propose(leader, "d");
    assert_eq!(cluster.node(leader).data.len(), 4);
    assert_eq!(cluster.node(away).data.len(), 0);
    assert_eq!(snapshots(&cluster), 0);
    // The answer is sent at once, without a tick.
    let snapshot = cluster.node(leader).snapshot();
    cluster
        .node(leader)
        .driver
        .offer_snapshot(away, snapshot)
        .unwrap();
    cluster.settle();
    assert_eq!(cluster.data().len(), 4);
}

/// It is said once: a leader that did not listen would wait for it for good.
#[test]
fn what_became_of_a_snapshot_is_heard_while_the_disk_is_slow() {
    let (mut cluster, leader, away) = behind(3);
    cluster.cut_off.clear();
    cluster.reports = false;
    intercept(&mut cluster, away);
    cluster.ticks(2);
    assert_eq!(snapshots(&cluster), 1);
    cluster.loses = |_| false;
    let driver = &mut cluster.node(leader).driver;
    driver.tick(AN_ELECTION);
    assert!(driver.status().stalled);
    driver.report_snapshot(away, false);
    cluster.ticks(4);
    assert_eq!(cluster.leader(), leader);
    assert_eq!(cluster.data().len(), 3);
}

#[test]
fn a_snapshot_in_flight_is_neither_asked_for_nor_sent_again() {
    let (mut cluster, leader, away) = behind(3);
    cluster.cut_off.clear();
    cluster.reports = false;
    intercept(&mut cluster, away);
    cluster.ticks(2 * AN_ELECTION);
    assert_eq!(snapshots(&cluster), 1);
    assert_eq!(cluster.node(leader).needs_snapshot, [away]);
    // A failure is tried again.
    cluster.node(leader).driver.report_snapshot(away, false);
    cluster.ticks(2);
    assert_eq!(snapshots(&cluster), 2);
    cluster.loses = |_| false;
    cluster.node(leader).driver.report_snapshot(away, false);
    cluster.ticks(2);
    assert_eq!(cluster.data().len(), 3);
    assert_eq!(snapshots(&cluster), 3);
}

#[test]
fn a_snapshot_is_acknowledged_and_installed_when_it_is_durable() {
    let (mut cluster, leader, away) = behind(3);
    let index = cluster.node(leader).applied;
    cluster.cut_off.clear();
    let snapshot = intercept(&mut cluster, away);
    cluster.loses = |_| false;
    cluster.sent.clear();
    cluster.node(away).disk_hangs = true;
    cluster.step(snapshot);
    cluster.propose(leader, "behind it");
    cluster.settle();
    let node = cluster.node(away);
    assert_eq!(node.driver.installing(), Some(index));
    assert_eq!(node.writes[0].snapshot.as_ref().unwrap().index, Some(index));
    assert!(node.installed.is_empty() && node.steps.is_empty());
    assert!(acknowledgements(&cluster, away).is_empty());
    cluster.node(away).disk_hangs = false;
    cluster.settle();
    assert_eq!(cluster.node(away).installed, [index]);
    assert!(acknowledgements(&cluster, away).contains(&index));
    cluster.ticks(2);
    assert_eq!(cluster.data().len(), 4);
}

/// A crash after each step of a snapshot, with and without entries behind it.
#[test]
fn a_crash_at_each_step_loses_nothing() {
    for step in 0..4 {
        let (mut cluster, leader, away) = behind(5);
        let index = cluster.node(leader).applied;
        cluster.cut_off.clear();
        let snapshot = intercept(&mut cluster, away);
        cluster.loses = |_| false;
        cluster.node(away).disk_hangs = true;
        cluster.node(away).install_waits = true;
        // Taken, and not yet polled.
        cluster.step(snapshot);
        if step > 0 {
            // With a write that is not durable.
            cluster.settle();
        }
        if step > 1 {
            // Written, and not installed.
            cluster.node(away).disk_hangs = false;
            cluster.propose(leader, "behind it");
        }
        if step > 2 {
            cluster.node(away).install_waits = false;
            cluster.settle();
        }
        let node = cluster.node(away);
        assert_eq!(node.installed.len(), usize::from(step > 2), "step {step}");
        let durable = node.disk.received.is_some();
        assert_eq!(durable, step > 1, "step {step}");
        (node.disk_hangs, node.install_waits) = (false, false);
        node.restart();
        cluster.ticks(AN_ELECTION);
        assert_eq!(cluster.node(away).installed[0], index, "step {step}");
        assert_eq!(cluster.data().len(), 5 + usize::from(step > 1), "{step}");
    }
}

/// Installing may take minutes. Meanwhile a member follows, acknowledges and votes.
#[test]
fn a_member_that_installs_follows_and_votes_and_does_not_stand_for_election() {
    let (mut cluster, leader, away) = behind(3);
    let other = 6 - leader - away;
    let index = cluster.node(leader).applied;
    cluster.cut_off.clear();
    cluster.node(away).install_waits = true;
    let before = cluster.node(away).applied;
    cluster.ticks(2);
    assert_eq!(cluster.node(away).driver.installing(), Some(index));
    // Its acknowledgement is one of the two that commit this.
    cluster.cut_off.insert(other);
    cluster.propose(leader, "x");
    assert_eq!(cluster.node(leader).data.len(), 4);
    let node = cluster.node(away);
    assert_eq!(node.driver.status().commit, index + 1);
    assert_eq!(
        (node.applied, node.driver.status().applied),
        (before, before)
    );
    assert_eq!(node.steps.len(), 2, "the entry is handed out behind it");
    cluster.cut_off.clear();
    cluster.ticks(3);

    // It is asked to stand for election, and its leader falls silent.
    let now = Message {
        r#type: Some(MessageType::MsgTimeoutNow as i32),
        to: Some(away),
        from: Some(leader),
        term: Some(cluster.node(leader).driver.status().term),
        ..Message::default()
    };
    cluster.step(now);
    cluster.cut_off = [leader, other].into();
    cluster.ticks(AN_ELECTION);
    let status = cluster.node(away).driver.status();
    assert_eq!(status.role, Role::Follower);
    cluster.cut_off = [leader].into();
    cluster.ticks(AN_ELECTION);
    assert_eq!(cluster.leader(), other);
    cluster.propose(other, "y");

    let node = cluster.node(away);
    node.install_waits = false;
    cluster.settle();
    assert_eq!(cluster.node(away).driver.installing(), None);
    assert_eq!(cluster.data().len(), 5);
    cluster.cut_off = [other].into();
    cluster.ticks(AN_ELECTION);
    let new = cluster.leader();
    cluster.propose(new, "z");
    assert_eq!(cluster.node(away).data.len(), 6);
}

#[test]
fn a_snapshot_that_nobody_has_polled_keeps_its_member_from_standing() {
    let (mut cluster, leader, away) = behind(3);
    cluster.cut_off.clear();
    let snapshot = intercept(&mut cluster, away);
    let now = Message {
        r#type: Some(MessageType::MsgTimeoutNow as i32),
        snapshot: None,
        ..snapshot.clone()
    };
    cluster.step(snapshot);
    cluster.step(now);
    let status = cluster.node(away).driver.status();
    assert_eq!((status.role, status.leader), (Role::Follower, leader));
}

/// A tail that the snapshot replaces, and entries behind it, are on their way to the disk as well.
#[test]
fn a_snapshot_is_installed_before_what_follows_it_is_durable() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.cut_off = [2, 3].into();
    let append = |term: u64, after: (u64, u64), last: u64| Message {
        r#type: Some(MessageType::MsgApp as i32),
        to: Some(1),
        from: Some(2),
        term: Some(term),
        index: Some(after.0),
        log_term: Some(after.1),
        entries: (after.0 + 1..=last)
            .map(|index| Entry {
                r#type: Some(0),
                term: Some(term),
                index: Some(index),
                data: Some(Bytes::from_static(b"x")),
            })
            .collect(),
        commit: Some(0),
        ..Message::default()
    };
    let snapshot = Message {
        r#type: Some(MessageType::MsgSnap as i32),
        to: Some(1),
        from: Some(2),
        term: Some(6),
        snapshot: Some(snapshot_of(10, 6, &[1, 2, 3])),
        ..Message::default()
    };
    cluster.node(1).disk_hangs = true;
    for message in [append(5, (3, 1), 15), snapshot, append(6, (10, 6), 11)] {
        cluster.step(message);
        cluster.settle();
    }
    let node = cluster.node(1);
    assert_eq!(node.writes.len(), 3);
    assert!(node.writes[0].entries.len() == 12 && node.writes[1].snapshot.is_some());
    for _ in 0..2 {
        assert!(cluster.node(1).installed.is_empty());
        let node = cluster.node(1);
        node.disk_hangs = false;
        node.finish_write().unwrap();
        node.disk_hangs = true;
        cluster.settle();
    }
    let node = cluster.node(1);
    assert_eq!((&node.installed[..], node.writes.len()), (&[10][..], 1));
    assert_eq!(node.driver.status().persisted, 10);
    node.disk_hangs = false;
    cluster.settle();
    assert_eq!(cluster.node(1).driver.status().persisted, 11);
}

/// The first one is replaced before its write is handed out, before it is durable, or it is being
/// installed.
#[test]
fn a_second_snapshot_comes_while_the_first_is_on_its_way() {
    for step in 0..3 {
        let (mut cluster, leader, away) = behind(3);
        cluster.cut_off.clear();
        let first = intercept(&mut cluster, away);
        cluster.cut_off.insert(away);
        for data in ["x", "y"] {
            cluster.propose(leader, data);
        }
        cluster.compact(leader);
        cluster.cut_off.clear();
        cluster.node(leader).driver.report_snapshot(away, false);
        let second = intercept(&mut cluster, away);
        let index = |message: &Message| {
            let snapshot = message.snapshot.as_ref().unwrap();
            snapshot.metadata.as_ref().unwrap().index.unwrap()
        };
        let (one, two) = (index(&first), index(&second));
        assert_eq!(two, one + 2);
        cluster.loses = |_| false;

        let node = cluster.node(away);
        node.disk_hangs = step < 2;
        node.install_waits = true;
        cluster.step(first.clone());
        if step > 0 {
            cluster.settle();
        }
        cluster.step(second.clone());
        assert_eq!(cluster.node(away).driver.installing(), Some(two));
        // The first and the second again, late.
        cluster.step(first);
        cluster.step(second);
        cluster.settle();
        cluster.node(away).disk_hangs = false;
        cluster.settle();
        cluster.propose(leader, "z");
        cluster.node(away).install_waits = false;
        cluster.ticks(2);
        let expected = match step {
            2 => vec![one, two],
            _ => vec![two],
        };
        assert_eq!(cluster.node(away).installed, expected, "step {step}");
        assert_eq!(cluster.data().len(), 6, "step {step}");
    }
}

#[test]
fn too_many_snapshots_at_once_are_refused() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.cut_off = [2, 3].into();
    cluster.node(1).install_waits = true;
    let snapshot = |index| Message {
        r#type: Some(MessageType::MsgSnap as i32),
        to: Some(1),
        from: Some(2),
        term: Some(5),
        snapshot: Some(snapshot_of(index, 5, &[1, 2, 3])),
        ..Message::default()
    };
    for index in 11..15 {
        cluster.step(snapshot(index));
        cluster.settle();
    }
    let refused = cluster.node(1).driver.step(snapshot(15));
    assert_eq!(refused, Err(Error::Installing));
    cluster.node(1).install_waits = false;
    cluster.settle();
    assert_eq!(cluster.node(1).installed, [11, 12, 13, 14]);
    assert_eq!(cluster.node(1).driver.step(snapshot(15)), Ok(()));
}

fn snapshot_of(index: u64, term: u64, voters: &[u64]) -> Snapshot {
    Snapshot {
        data: Some(Bytes::from_static(b"x")),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: voters.to_vec(),
                auto_leave: Some(false),
                ..ConfState::default()
            }),
            index: Some(index),
            term: Some(term),
        }),
    }
}

/// Raft has the snapshot's members at once. Changes from before it, which are still to be applied,
/// are in them: applied again they would bring back a member that is gone.
#[test]
fn changes_from_before_a_snapshot_do_not_reach_raft() {
    let mut cluster = Cluster::started(&[1, 2, 3, 4, 5]);
    let leader = cluster.leader();
    let away = leader % 5 + 1;
    cluster.node(away).apply_waits = true;
    cluster.change(Kind::ConfChangeAddLearnerNode, 8);
    cluster.ticks(1);
    cluster.change(Kind::ConfChangeAddNode, 9);
    cluster.ticks(1);
    assert!(cluster.node(away).steps.len() > 1);
    cluster.cut_off.insert(away);
    cluster.change(Kind::ConfChangeAddNode, 8);
    cluster.change(Kind::ConfChangeRemoveNode, 9);
    cluster.compact(leader);
    cluster.cut_off.clear();
    cluster.ticks(2);
    assert!(cluster.node(away).driver.installing().is_some());
    let in_raft = |cluster: &mut Cluster| {
        let conf = cluster.node(away).driver.node.raft.prs().conf().clone();
        let mut voters = conf.to_conf_state().voters;
        voters.sort_unstable();
        voters
    };
    assert_eq!(in_raft(&mut cluster), [1, 2, 3, 4, 5, 8]);
    let node = cluster.node(away);
    assert_eq!(node.driver.conf_state().voters, [1, 2, 3, 4, 5]);

    // One by one: what is answered is the membership at each.
    node.install_waits = true;
    node.apply_waits = false;
    cluster.settle();
    let node = cluster.node(away);
    assert_eq!(node.conf_state.voters, [1, 2, 3, 4, 5, 9]);
    assert_eq!(node.conf_state.learners, [8]);
    assert_eq!(in_raft(&mut cluster), [1, 2, 3, 4, 5, 8]);
    cluster.node(away).install_waits = false;
    cluster.ticks(2);
    let node = cluster.node(away);
    assert_eq!(node.installed.len(), 1);
    assert_eq!(node.driver.conf_state().voters, [1, 2, 3, 4, 5, 8]);
    assert_eq!(node.conf_state.voters, [1, 2, 3, 4, 5, 8]);
    cluster.change(Kind::ConfChangeRemoveNode, 8);
    assert_eq!(
        cluster.node(away).driver.conf_state().voters,
        [1, 2, 3, 4, 5]
    );
}

#[test]
fn members_that_are_gone_with_a_snapshot_are_not_listened_to() {
    let mut cluster = Cluster::started(&[1, 2, 3, 4]);
    let leader = cluster.leader();
    let away = leader % 4 + 1;
    let gone = away % 4 + 1;
    cluster.cut_off.insert(away);
    cluster.change(Kind::ConfChangeRemoveNode, gone);
    cluster.compact(leader);
    cluster.cut_off = [gone].into();
    cluster.ticks(3);
    assert_eq!(cluster.node(away).installed.len(), 1);
    let vote = Message {
        r#type: Some(MessageType::MsgVote as i32),
        to: Some(away),
        from: Some(gone),
        term: Some(99),
        ..Message::default()
    };
    let refused = cluster.node(away).driver.step(vote);
    assert_eq!(refused, Err(Error::RemovedPeer(gone)));
}

#[test]
fn leadership_changes_while_a_snapshot_is_in_flight() {
    let (mut cluster, old, away) = behind(3);
    let new = 6 - old - away;
    cluster.cut_off.clear();
    cluster.reports = false;
    let late = intercept(&mut cluster, away);
    cluster.node(old).driver.transfer_leader(new);
    cluster.ticks(3);
    assert_eq!(cluster.leader(), new);
    // The old leader's comes when the new term is known, and is nothing any more.
    cluster.step(late.clone());
    cluster.settle();
    assert_eq!(cluster.node(away).driver.installing(), None);
    assert!(cluster.node(away).installed.is_empty());
    cluster.loses = |_| false;
    // A report to who no longer leads, and to who leads about what it did not send.
    cluster.node(old).driver.report_snapshot(away, true);
    cluster.node(new).driver.report_snapshot(away, false);
    cluster.node(new).driver.report_snapshot(77, false);
    cluster.reports = true;
    cluster.ticks(AN_ELECTION);
    cluster.node(new).needs_snapshot.clear();
    assert_eq!(cluster.node(away).installed.len(), 1);
    assert_eq!(cluster.data().len(), 3);

    // The other way round: it is taken, and then the lead changes before it is durable.
    let (mut cluster, old, away) = behind(3);
    let new = 6 - old - away;
    cluster.cut_off.clear();
    let taken = intercept(&mut cluster, away);
    cluster.node(away).disk_hangs = true;
    cluster.step(taken);
    cluster.settle();
    cluster.node(old).driver.transfer_leader(new);
    cluster.ticks(3);
    assert_eq!(cluster.leader(), new);
    cluster.loses = |_| false;
    cluster.node(away).disk_hangs = false;
    cluster.ticks(AN_ELECTION);
    cluster.propose(new, "x");
    assert_eq!(cluster.node(away).installed.len(), 1);
    assert_eq!(cluster.data().len(), 4);
}

#[test]
fn offers_that_cannot_be_sent_say_why() {
    let (mut cluster, leader, away) = behind(3);
    let index = cluster.node(leader).applied;
    let term = cluster.node(leader).driver.status().term;
    let other = 6 - leader - away;
    let good = cluster.node(leader).snapshot();
    cluster.node(leader).offers = false;
    let offer = |cluster: &mut Cluster, to, snapshot| {
        let result = cluster.node(leader).driver.offer_snapshot(to, snapshot);
        result.unwrap_err()
    };
    let problem = |error: Error| match error {
        Error::SnapshotUnfit { problem, .. } => problem,
        Error::Malformed { problem, .. } => problem,
        other => panic!("{other}"),
    };
    // It has been silent for an election timeout.
    cluster.ticks(25);
    let refused = offer(&mut cluster, away, good.clone());
    assert_eq!(problem(refused), "the member is not heard of");
    cluster.cut_off.clear();
    cluster.ticks(2);
    let table = [
        (
            snapshot_of(index - 1, 1, &[1, 2, 3]),
            "the log no longer has the entries behind it",
        ),
        (
            snapshot_of(index + 1, term, &[1, 2, 3]),
            "a snapshot of what is not committed",
        ),
        (
            snapshot_of(index, term + 1, &[1, 2, 3]),
            "a snapshot of a term that its entry does not have",
        ),
        (
            snapshot_of(index, term, &[leader, other]),
            "it is older than the member",
        ),
        (Snapshot::default(), "a snapshot without metadata"),
        (
            snapshot_of(index, 0, &[1, 2, 3]),
            "a snapshot whose index or term is out of range",
        ),
    ];
    // The first: only with more entries dropped than one, since the one before the log has a term.
    let table = table.into_iter().skip(1).chain([(
        snapshot_of(index - 2, 1, &[1, 2, 3]),
        "the log no longer has the entries behind it",
    )]);
    for (snapshot, expected) in table {
        let refused = offer(&mut cluster, away, snapshot);
        assert_eq!(problem(refused), expected);
        // Dropped, and asked for anew.
        cluster.node(leader).needs_snapshot.clear();
        cluster.ticks(2);
        assert_eq!(cluster.node(leader).needs_snapshot, [away], "{expected}");
    }
    let refused = offer(&mut cluster, other, good.clone());
    let not_needed = "the log still has what the member needs";
    assert_eq!(problem(refused), not_needed);
    for nobody in [leader, 77] {
        let refused = offer(&mut cluster, nobody, good.clone());
        assert_eq!(refused, Error::UnknownPeer(nobody));
    }
    let follower = &mut cluster.node(other).driver;
    let refused = follower.offer_snapshot(away, good.clone()).unwrap_err();
    assert_eq!(problem(refused), "this member does not lead");
    let driver = &mut cluster.node(leader).driver;
    driver.offer_snapshot(away, good.clone()).unwrap();
    let refused = driver.offer_snapshot(away, good).unwrap_err();
    assert_eq!(problem(refused), "another one is under way");
    cluster.ticks(2);
    assert_eq!(cluster.data().len(), 3);
}

/// Fetches that were on their way when the log was replaced are nobody's.
#[test]
fn entries_that_were_asked_for_before_a_snapshot_are_dropped() {
    let config = |id| Config {
        cache_bytes: 0,
        max_committed_bytes_per_output: 1,
        ..Config::new(id)
    };
    let mut cluster = Cluster::with(&[1, 2, 3], config);
    cluster.ticks(AN_ELECTION);
    let leader = cluster.leader();
    let away = leader % 3 + 1;
    for i in 0..20 {
        cluster.propose(leader, &format!("{i}"));
    }
    cluster.ticks(3);
    let node = cluster.node(away);
    (node.applied, node.applied_term, node.data) = (0, 0, Vec::new());
    node.conf_state = ConfState::default();
    node.restart();
    let request = loop {
        let output = node.driver.poll().expect("a request");
        if let Some(request) = output.fetch {
            break request;
        }
    };
    let old = node.disk.read(&request);
    let term = cluster.node(leader).driver.status().term;
    let snapshot = Message {
        r#type: Some(MessageType::MsgSnap as i32),
        to: Some(away),
        from: Some(leader),
        term: Some(term),
        snapshot: Some(snapshot_of(100, term, &[1, 2, 3])),
        ..Message::default()
    };
    // Before the log is restarted, and after.
    for answered_late in [false, true] {
        let node = cluster.node(away);
        node.restart();
        while node.driver.poll().is_some_and(|one| one.fetch.is_none()) {}
        cluster.step(snapshot.clone());
        let node = cluster.node(away);
        let answer = |node: &mut Node| node.driver.fetched(request, old.clone());
        if !answered_late {
            assert_eq!(answer(node), Ok(()));
        }
        let append = node.driver.poll().unwrap().append.unwrap();
        assert_eq!(append.snapshot.as_ref().unwrap().index, Some(100));
        if answered_late {
            assert_eq!(answer(node), Ok(()));
        }
        node.driver.persisted(append.number);
        let output = node.driver.poll().unwrap();
        assert_eq!(output.install.unwrap().index, Some(100));
        assert_eq!((output.apply.len(), output.fetch), (0, None));
    }
}

/// A copy of the very first appends, from when this member had nothing, that was long on its way.
#[test]
fn appends_from_before_the_log_begins_are_answered() {
    let (mut cluster, leader, away) = behind(3);
    cluster.cut_off.clear();
    cluster.ticks(2);
    let status = cluster.node(away).driver.status();
    let first = bootstrapped(&[1, 2, 3]).entries;
    let old = Message {
        r#type: Some(MessageType::MsgApp as i32),
        to: Some(away),
        from: Some(leader),
        term: Some(status.term),
        index: Some(0),
        log_term: Some(0),
        entries: first,
        commit: Some(3),
        ..Message::default()
    };
    cluster.sent.clear();
    cluster.step(old);
    cluster.settle();
    assert_eq!(acknowledgements(&cluster, away), [status.commit]);
}
