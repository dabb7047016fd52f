//! etcd's messages to raft-rs's and back.
//!
//! The two agree on almost all numbers. They differ in the kinds of a `ConfChange`: raft-rs parses
//! one when it is proposed, with its own numbers, and would refuse a learner under etcd's. So
//! inside of raft a membership entry carries raft-rs's form as its data, and etcd's own bytes, which
//! are the ones that leave the process and that are applied, as its context.

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb;
use protobuf::{Message as _, ProtobufEnum};
use raft::eraftpb;

/// What is wrong with bytes from outside.
pub(crate) type Problem = &'static str;

pub(crate) fn entry_in(entry: raftpb::Entry) -> Result<eraftpb::Entry, Problem> {
    let mut translated = eraftpb::Entry {
        term: entry.term.unwrap_or_default(),
        index: entry.index.unwrap_or_default(),
        ..eraftpb::Entry::default()
    };
    let data = entry.data.unwrap_or_default();
    match raftpb::EntryType::try_from(entry.r#type.unwrap_or_default()) {
        Ok(raftpb::EntryType::EntryNormal) => translated.data = data,
        Ok(raftpb::EntryType::EntryConfChange) => {
            let change = raftpb::ConfChange::decode(data.clone())
                .map_err(|_| "a membership change does not decode")?;
            translated.entry_type = eraftpb::EntryType::EntryConfChange;
            translated.data = proposed_change(&change)?;
            translated.context = data;
        }
        Ok(raftpb::EntryType::EntryConfChangeV2) => {
            return Err("a membership change of the second kind, which etcd cannot apply");
        }
        Err(_) => return Err("an entry of unknown kind"),
    }
    Ok(translated)
}

pub(crate) fn entry_out(entry: eraftpb::Entry) -> raftpb::Entry {
    let (kind, data) = match entry.entry_type {
        eraftpb::EntryType::EntryNormal => (raftpb::EntryType::EntryNormal, entry.data),
        // The second kind is never proposed and refused from others.
        eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => {
            (raftpb::EntryType::EntryConfChange, entry.context)
        }
    };
    raftpb::Entry {
        r#type: Some(kind as i32),
        term: Some(entry.term),
        index: Some(entry.index),
        data: (!data.is_empty()).then_some(data),
    }
}

/// An entry that proposes a membership change.
pub(crate) fn change_entry(change: &raftpb::ConfChange) -> Result<eraftpb::Entry, Problem> {
    Ok(eraftpb::Entry {
        entry_type: eraftpb::EntryType::EntryConfChange,
        data: proposed_change(change)?,
        context: change.encode_to_vec().into(),
        ..eraftpb::Entry::default()
    })
}

/// What raft-rs reads when a change is proposed. It only looks at whether there is one.
fn proposed_change(change: &raftpb::ConfChange) -> Result<Bytes, Problem> {
    let stands_in = change_in(change)?.unwrap_or_else(|| eraftpb::ConfChange {
        node_id: change.node_id.unwrap_or_default(),
        ..eraftpb::ConfChange::default()
    });
    let bytes = stands_in.write_to_bytes();
    Ok(bytes
        .map_err(|_| "a membership change does not encode")?
        .into())
}

/// The change as raft-rs carries it out; `None` for an update, which concerns addresses only.
pub(crate) fn change_in(
    change: &raftpb::ConfChange,
) -> Result<Option<eraftpb::ConfChange>, Problem> {
    use eraftpb::ConfChangeType as Theirs;
    use raftpb::ConfChangeType as Ours;
    let kind = match Ours::try_from(change.r#type.unwrap_or_default()) {
        Ok(Ours::ConfChangeAddNode) => Theirs::AddNode,
        Ok(Ours::ConfChangeRemoveNode) => Theirs::RemoveNode,
        Ok(Ours::ConfChangeAddLearnerNode) => Theirs::AddLearnerNode,
        Ok(Ours::ConfChangeUpdateNode) => return Ok(None),
        Err(_) => return Err("a membership change of unknown kind"),
    };
    Ok(Some(eraftpb::ConfChange {
        change_type: kind,
        node_id: change.node_id.unwrap_or_default(),
        ..eraftpb::ConfChange::default()
    }))
}

pub(crate) fn message_in(message: raftpb::Message) -> Result<eraftpb::Message, Problem> {
    // Both enums have the same numbers up to 18; above lie messages that never leave a process.
    let kind = eraftpb::MessageType::from_i32(message.r#type.unwrap_or_default())
        .ok_or("a message of unknown kind")?;
    let entries: Result<Vec<_>, _> = message.entries.into_iter().map(entry_in).collect();
    // Fields 13 and above mean other things to raft-rs; etcd 3.6 writes a 13 into everything.
    Ok(eraftpb::Message {
        msg_type: kind,
        to: message.to.unwrap_or_default(),
        from: message.from.unwrap_or_default(),
        term: message.term.unwrap_or_default(),
        log_term: message.log_term.unwrap_or_default(),
        index: message.index.unwrap_or_default(),
        entries: entries?.into(),
        commit: message.commit.unwrap_or_default(),
        reject: message.reject.unwrap_or_default(),
        reject_hint: message.reject_hint.unwrap_or_default(),
        context: message.context.unwrap_or_default(),
        // Older etcds put an empty one into every message.
        snapshot: match kind {
            eraftpb::MessageType::MsgSnapshot => {
                message.snapshot.map(snapshot_in).transpose()?.into()
            }
            _ => None.into(),
        },
        ..eraftpb::Message::default()
    })
}

pub(crate) fn snapshot_in(snapshot: raftpb::Snapshot) -> Result<eraftpb::Snapshot, Problem> {
    let metadata = snapshot.metadata.unwrap_or_default();
    let members = conf_state_in(&metadata.conf_state.unwrap_or_default());
    let mut translated = eraftpb::Snapshot {
        data: snapshot.data.unwrap_or_default(),
        ..eraftpb::Snapshot::default()
    };
    let inside = translated.mut_metadata();
    inside.index = metadata.index.unwrap_or_default();
    inside.term = metadata.term.unwrap_or_default();
    inside.set_conf_state(members.ok_or("a snapshot with a joint membership")?);
    Ok(translated)
}

pub(crate) fn metadata_out(metadata: &eraftpb::SnapshotMetadata) -> raftpb::SnapshotMetadata {
    raftpb::SnapshotMetadata {
        conf_state: Some(conf_state_out(metadata.get_conf_state())),
        index: Some(metadata.index),
        term: Some(metadata.term),
    }
}

fn snapshot_out(snapshot: eraftpb::Snapshot) -> raftpb::Snapshot {
    raftpb::Snapshot {
        metadata: Some(metadata_out(snapshot.get_metadata())),
        data: (!snapshot.data.is_empty()).then_some(snapshot.data),
    }
}

/// Every number is written, zeros too, as etcd 3.6 does and as all read.
pub(crate) fn message_out(message: eraftpb::Message) -> raftpb::Message {
    raftpb::Message {
        r#type: Some(message.msg_type.value()),
        to: Some(message.to),
        from: Some(message.from),
        term: Some(message.term),
        log_term: Some(message.log_term),
        index: Some(message.index),
        entries: message.entries.into_iter().map(entry_out).collect(),
        commit: Some(message.commit),
        snapshot: message.snapshot.into_option().map(snapshot_out),
        reject: Some(message.reject),
        reject_hint: Some(message.reject_hint),
        context: (!message.context.is_empty()).then_some(message.context),
        vote: None,
        responses: Vec::new(),
    }
}

pub(crate) fn hard_state_in(state: &raftpb::HardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: state.term.unwrap_or_default(),
        vote: state.vote.unwrap_or_default(),
        commit: state.commit.unwrap_or_default(),
        ..eraftpb::HardState::default()
    }
}

pub(crate) fn hard_state_out(state: &eraftpb::HardState) -> raftpb::HardState {
    raftpb::HardState {
        term: Some(state.term),
        vote: Some(state.vote),
        commit: Some(state.commit),
    }
}

/// Only voters and learners: a joint state, which etcd's members never enter, is `None`.
pub(crate) fn conf_state_in(state: &raftpb::ConfState) -> Option<eraftpb::ConfState> {
    if !state.voters_outgoing.is_empty() || !state.learners_next.is_empty() {
        return None;
    }
    Some((state.voters.clone(), state.learners.clone()).into())
}

/// In ascending order, whatever raft-rs's hash tables yield.
pub(crate) fn conf_state_out(state: &eraftpb::ConfState) -> raftpb::ConfState {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    raftpb::ConfState {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        voters_outgoing: Vec::new(),
        learners_next: Vec::new(),
        auto_leave: Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: i32) -> raftpb::ConfChange {
        raftpb::ConfChange {
            id: Some(77),
            r#type: Some(kind),
            node_id: Some(5),
            context: Some(Bytes::from_static(b"{\"id\":5}")),
        }
    }

    fn entry(kind: i32, data: &[u8]) -> raftpb::Entry {
        raftpb::Entry {
            r#type: Some(kind),
            term: Some(3),
            index: Some(9),
            data: (!data.is_empty()).then(|| Bytes::copy_from_slice(data)),
        }
    }

    #[test]
    fn a_membership_entry_keeps_etcds_bytes_and_shows_raft_its_own() {
        use eraftpb::ConfChangeType as Theirs;
        let table = [
            (0, Theirs::AddNode),
            (1, Theirs::RemoveNode),
            (2, Theirs::AddNode),
            (3, Theirs::AddLearnerNode),
        ];
        for (kind, theirs) in table {
            // An unusual encoding: the bytes come back as they came, not re-encoded.
            let mut bytes = change(kind).encode_to_vec();
            bytes.extend_from_slice(b"\x08\x4d");
            let ours = entry(1, &bytes);
            let inside = entry_in(ours.clone()).unwrap();
            let mut parsed = eraftpb::ConfChange::default();
            parsed.merge_from_bytes(&inside.data).unwrap();
            assert_eq!((parsed.change_type, parsed.node_id), (theirs, 5));
            assert_eq!(entry_out(inside), ours);
            let proposed = change_entry(&change(kind)).unwrap();
            let sent = entry_out(proposed).data.unwrap();
            assert_eq!(raftpb::ConfChange::decode(sent).unwrap(), change(kind));
        }
    }

    #[test]
    fn an_update_never_reaches_raft() {
        assert_eq!(change_in(&change(2)).unwrap(), None);
        assert!(change_in(&change(4)).is_err());
    }

    #[test]
    fn data_is_shared_and_not_copied() {
        let data = Bytes::from(vec![7; 1 << 20]);
        let ours = raftpb::Entry {
            data: Some(data.clone()),
            ..entry(0, b"")
        };
        let back = entry_out(entry_in(ours).unwrap());
        assert_eq!(back.data.unwrap().as_ptr(), data.as_ptr());
    }

    #[test]
    fn what_etcd_cannot_apply_is_refused() {
        for bad in [
            entry(2, b""),
            entry(7, b""),
            entry(1, b"\xff\xff"),
            entry(1, b"\x10\x09"),
        ] {
            assert!(entry_in(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_message_of_the_wire_survives_the_way_in_and_out() {
        for kind in 0..=18 {
            let message = raftpb::Message {
                r#type: Some(kind),
                to: Some(1),
                from: Some(u64::MAX),
                term: Some(2),
                log_term: Some(3),
                index: Some(4),
                entries: vec![
                    entry(0, b"abc"),
                    entry(0, b""),
                    entry(1, &change(3).encode_to_vec()),
                ],
                commit: Some(5),
                snapshot: None,
                reject: Some(true),
                reject_hint: Some(6),
                context: Some(Bytes::from_static(b"ctx")),
                vote: None,
                responses: Vec::new(),
            };
            let inside = message_in(message.clone()).unwrap();
            assert_eq!(message_out(inside), message);
            let of_3_6 = raftpb::Message {
                vote: Some(0),
                ..message.clone()
            };
            assert_eq!(message_out(message_in(of_3_6).unwrap()), message);
        }
        for kind in [-1, 19, 23, 99] {
            let message = raftpb::Message {
                r#type: Some(kind),
                ..Default::default()
            };
            assert!(message_in(message).is_err());
        }
    }

    #[test]
    fn a_snapshot_survives_in_the_message_that_carries_one() {
        let message = |kind, snapshot| raftpb::Message {
            r#type: Some(kind),
            from: Some(2),
            snapshot,
            ..Default::default()
        };
        let snapshot = raftpb::Snapshot {
            data: Some(Bytes::from_static(b"{}")),
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(raftpb::ConfState {
                    voters: vec![1, 2],
                    learners: vec![3],
                    auto_leave: Some(false),
                    ..Default::default()
                }),
                index: Some(7),
                term: Some(4),
            }),
        };
        let inside = message_in(message(7, Some(snapshot.clone()))).unwrap();
        assert_eq!(message_out(inside).snapshot, Some(snapshot.clone()));
        // Older etcds put an empty one into every message.
        for stray in [raftpb::Snapshot::default(), snapshot] {
            let inside = message_in(message(3, Some(stray))).unwrap();
            assert_eq!(message_out(inside).snapshot, None);
        }
    }

    #[test]
    fn states_survive_and_joint_ones_are_refused() {
        let hard = raftpb::HardState {
            term: Some(4),
            vote: Some(0),
            commit: Some(9),
        };
        assert_eq!(hard_state_out(&hard_state_in(&hard)), hard);
        let conf = raftpb::ConfState {
            voters: vec![1, 2],
            learners: vec![3],
            auto_leave: Some(false),
            ..Default::default()
        };
        assert_eq!(conf_state_out(&conf_state_in(&conf).unwrap()), conf);
        let joint = raftpb::ConfState {
            voters_outgoing: vec![1],
            ..conf
        };
        assert!(conf_state_in(&joint).is_none());
    }
}
