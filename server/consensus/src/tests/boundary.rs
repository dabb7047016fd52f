use super::cluster::*;
use crate::Error;
use bytes::Bytes;
use proptest::prelude::*;
use proto::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};

fn entry(index: u64, term: u64, data: &'static str) -> Entry {
    Entry {
        r#type: Some(0),
        term: Some(term),
        index: Some(index),
        data: Some(Bytes::from_static(data.as_bytes())),
    }
}

fn message(kind: MessageType) -> Message {
    Message {
        r#type: Some(kind as i32),
        to: Some(1),
        from: Some(2),
        term: Some(50),
        ..Message::default()
    }
}

#[test]
fn what_raft_or_etcd_could_not_take_is_refused() {
    let of = |index: u64, term: u64| Message {
        index: Some(3),
        log_term: Some(1),
        entries: vec![entry(index, term, "x")],
        ..message(MessageType::MsgApp)
    };
    let proposal = |kind, data| Message {
        entries: vec![Entry {
            r#type: Some(kind),
            ..entry(0, 0, data)
        }],
        ..message(MessageType::MsgProp)
    };
    let malformed = [
        Message {
            to: Some(3),
            ..message(MessageType::MsgHeartbeat)
        },
        Message {
            from: Some(0),
            ..message(MessageType::MsgHeartbeat)
        },
        Message {
            from: Some(1),
            ..message(MessageType::MsgHeartbeat)
        },
        Message {
            term: Some(0),
            ..message(MessageType::MsgApp)
        },
        Message {
            commit: Some(u64::MAX),
            ..message(MessageType::MsgHeartbeat)
        },
        Message {
            r#type: Some(99),
            ..message(MessageType::MsgApp)
        },
        message(MessageType::MsgStorageAppend),
        message(MessageType::MsgHup),
        message(MessageType::MsgCheckQuorum),
        message(MessageType::MsgProp),
        message(MessageType::MsgReadIndex),
        proposal(0, ""),
        proposal(1, "no change"),
        proposal(2, "x"),
        of(5, 1),
        of(3, 1),
        of(4, 0),
        of(4, 51),
    ];
    let mut cluster = Cluster::new(&[1, 2, 3]);
    for bad in malformed {
        let before = cluster.node(1).driver.status();
        let refused = cluster.node(1).driver.step(bad.clone());
        assert!(
            matches!(refused, Err(Error::Malformed { .. })),
            "{bad:?}: {refused:?}"
        );
        assert_eq!(cluster.node(1).driver.status(), before, "{bad:?}");
    }
    assert_eq!(cluster.node(1).driver.step(of(4, 1)), Ok(()));
}

fn snapshot(index: u64, term: u64, voters: &[u64], learners: &[u64]) -> Message {
    let conf_state = ConfState {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        ..ConfState::default()
    };
    Message {
        snapshot: Some(Snapshot {
            data: None,
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index: Some(index),
                term: Some(term),
            }),
        }),
        ..message(MessageType::MsgSnap)
    }
}

fn with(mut message: Message, change: impl Fn(&mut SnapshotMetadata)) -> Message {
    let snapshot = message.snapshot.as_mut().unwrap();
    change(snapshot.metadata.as_mut().unwrap());
    message
}

/// Each of these would make raft-rs panic, or have it acknowledge what it then has not.
#[test]
fn snapshots_that_raft_could_not_take_are_refused() {
    let good = snapshot(9, 4, &[3, 1, 2], &[5]);
    let joint = |members: &mut ConfState| members.voters_outgoing = vec![1];
    let staged = |members: &mut ConfState| members.learners_next = vec![2];
    let malformed = [
        message(MessageType::MsgSnap),
        Message {
            snapshot: Some(Snapshot::default()),
            ..message(MessageType::MsgSnap)
        },
        with(good.clone(), |metadata| metadata.conf_state = None),
        with(good.clone(), |metadata| {
            joint(metadata.conf_state.as_mut().unwrap())
        }),
        with(good.clone(), |metadata| {
            staged(metadata.conf_state.as_mut().unwrap())
        }),
        // Without a term this index, of no entry, would match to raft-rs.
        snapshot(9, 0, &[1, 2], &[]),
        snapshot(0, 4, &[1, 2], &[]),
        snapshot(0, 0, &[1, 2], &[]),
        snapshot(u64::MAX, 4, &[1, 2], &[]),
        snapshot(9, u64::MAX, &[1, 2], &[]),
        snapshot(9, 51, &[1, 2], &[]),
        snapshot(9, 4, &[], &[1]),
        snapshot(9, 4, &[], &[]),
        snapshot(9, 4, &[0, 1], &[]),
        snapshot(9, 4, &[1], &[0]),
        snapshot(9, 4, &[1, 2, 1], &[]),
        snapshot(9, 4, &[1, 2], &[2]),
        snapshot(9, 4, &[1], &[3, 3]),
        snapshot(9, 4, &[2, 3], &[4]),
        Message {
            term: Some(0),
            ..good.clone()
        },
        Message {
            from: Some(1),
            ..good.clone()
        },
    ];
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.cut_off = [2, 3].into();
    for bad in malformed {
        let before = cluster.node(1).driver.status();
        let refused = cluster.node(1).driver.step(bad.clone());
        let expected = matches!(refused, Err(Error::Malformed { from: 2 | 1, .. }));
        assert!(expected, "{bad:?}: {refused:?}");
        assert_eq!(cluster.node(1).driver.status(), before, "{bad:?}");
    }
    // Of another log: the entry there is another one, or one before it is newer.
    let refused = cluster.node(1).driver.step(snapshot(3, 4, &[1], &[]));
    assert_eq!(refused, Err(Error::Diverged { from: 2, index: 3 }));
    assert_eq!(cluster.node(1).driver.step(good.clone()), Ok(()));
    cluster.settle();
    assert_eq!(cluster.node(1).installed, [9]);
    let members = cluster.node(1).driver.conf_state();
    assert_eq!((members.voters, members.learners), (vec![1, 2, 3], vec![5]));
    let older = snapshot(10, 3, &[1], &[]);
    let refused = cluster.node(1).driver.step(older);
    assert_eq!(refused, Err(Error::Diverged { from: 2, index: 9 }));

    // What is behind, and what comes from a leader of before, is nothing.
    for stale in [
        snapshot(4, 1, &[1], &[]),
        snapshot(9, 4, &[1], &[]),
        Message {
            term: Some(49),
            ..snapshot(30, 4, &[1], &[])
        },
    ] {
        assert_eq!(cluster.node(1).driver.step(stale), Ok(()));
        cluster.settle();
        assert_eq!(cluster.node(1).driver.installing(), None);
    }
    assert_eq!(cluster.node(1).installed, [9]);
}

#[test]
fn each_refusal_says_what_it_is() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    let step = |cluster: &mut Cluster, message| cluster.node(1).driver.step(message).unwrap_err();
    for kind in [
        MessageType::MsgProp,
        MessageType::MsgReadIndex,
        MessageType::MsgTransferLeader,
    ] {
        let stranger = Message {
            from: Some(9),
            entries: vec![entry(0, 0, "x")],
            ..message(kind)
        };
        assert_eq!(
            step(&mut cluster, stranger),
            Error::UnknownPeer(9),
            "{kind:?}"
        );
    }
    for kind in [
        MessageType::MsgAppResp,
        MessageType::MsgVoteResp,
        MessageType::MsgHeartbeatResp,
    ] {
        let stranger = Message {
            from: Some(9),
            ..message(kind)
        };
        assert_eq!(
            step(&mut cluster, stranger),
            Error::UnknownPeer(9),
            "{kind:?}"
        );
    }
    let lost = Message {
        commit: Some(100),
        ..message(MessageType::MsgHeartbeat)
    };
    let refused = step(&mut cluster, lost);
    assert!(refused.is_fatal() && matches!(refused, Error::LogLost { last_index: 3, .. }));
    let other_cluster = Message {
        index: Some(0),
        log_term: Some(0),
        entries: vec![entry(1, 4, "x")],
        ..message(MessageType::MsgApp)
    };
    let refused = step(&mut cluster, other_cluster);
    assert_eq!(refused, Error::Diverged { from: 2, index: 1 });
    // A transfer that reaches a follower would make raft-rs panic when it forwards it.
    let transfer = message(MessageType::MsgTransferLeader);
    assert_eq!(step(&mut cluster, transfer), Error::NoLeader);
    let remove = change(proto::raftpb::ConfChangeType::ConfChangeRemoveNode, 3);
    cluster.node(1).driver.apply_conf_change(&remove).unwrap();
    let vote = Message {
        from: Some(3),
        ..message(MessageType::MsgVote)
    };
    assert_eq!(step(&mut cluster, vote), Error::RemovedPeer(3));
}

prop_compose! {
    fn any_message()(
        (kind, from, term, log_term) in (0..20i32, 0..5u64, 0..9u64, 0..9u64),
        (index, commit, reject, hint) in (0..12u64, 0..12u64, any::<bool>(), 0..20u64),
        terms in prop::collection::vec(0..9u64, 0..4),
        context in prop::sample::select(vec![&b""[..], b"CampaignTransfer", b"12345678"]),
        voters in prop::sample::select(vec![&[1, 2, 3][..], &[1], &[2, 3], &[1, 2, 3, 4], &[]]),
        learners in prop::sample::select(vec![&[][..], &[1], &[5]]),
    ) -> Message {
        // Mostly a sound one: most others are refused.
        let metadata = SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: voters.to_vec(),
                learners: learners.to_vec(),
                ..ConfState::default()
            }),
            index: Some(hint),
            term: Some(log_term.min(term)),
        };
        let entries = (index + 1..).zip(terms).map(|(index, term)| entry(index, term, "x"));
        Message {
            r#type: Some(kind),
            to: Some(1),
            from: Some(from),
            term: Some(term),
            log_term: Some(log_term),
            index: Some(index),
            entries: entries.collect(),
            commit: Some(commit),
            reject: Some(reject),
            reject_hint: Some(hint),
            context: Some(Bytes::from_static(context)),
            snapshot: Some(Snapshot {
                data: None,
                metadata: Some(metadata),
            }),
            ..Message::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever comes, raft does not panic, except where its own rules are broken beyond what any
    /// single message shows.
    #[test]
    fn no_message_makes_raft_panic(messages in prop::collection::vec((any_message(), any::<bool>()), 0..40)) {
        let mut cluster = Cluster::new(&[1, 2, 3]);
        cluster.cut_off = [2, 3].into();
        for (message, tick) in messages {
            if let Err(refused) = cluster.node(1).driver.step(message)
                && refused.is_fatal()
            {
                break;
            }
            cluster.settle();
            if tick {
                cluster.ticks(4);
            }
        }
    }

    #[test]
    fn no_message_makes_a_leader_panic(messages in prop::collection::vec((any_message(), any::<bool>()), 0..40)) {
        let mut cluster = Cluster::started(&[1, 2, 3]);
        let leader = cluster.leader();
        cluster.propose(leader, "a");
        let peers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        cluster.cut_off = peers.into_iter().collect();
        for (mut message, tick) in messages {
            message.to = Some(leader);
            if let Err(refused) = cluster.node(leader).driver.step(message)
                && refused.is_fatal()
            {
                break;
            }
            cluster.settle();
            if tick {
                cluster.tick();
            }
        }
    }
}
