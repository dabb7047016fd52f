//! What other members may send. raft-rs trusts its messages: some of these would end the process,
//! some would commit what etcd cannot apply.

use proto::raftpb;
use protobuf::ProtobufEnum;
use raft::{
    RawNode, StateRole,
    eraftpb::{Entry, Message, MessageType},
};

use crate::{Error, codec, store::LogStore};

/// No real log comes near; keeps sums of indices from overflowing.
const MAX_INDEX: u64 = u64::MAX / 4;

/// A message that raft can take, or why not.
pub(crate) fn check(node: &RawNode<LogStore>, message: raftpb::Message) -> Result<Message, Error> {
    use MessageType as T;
    let from = message.from.unwrap_or_default();
    let malformed = |problem| Err(Error::Malformed { from, problem });
    if message.to != Some(node.raft.id) {
        return malformed("addressed to another member");
    }
    // What this member forwarded to a former leader comes back when that one now follows it.
    let forwarded = [T::MsgPropose, T::MsgReadIndex].map(|kind| Some(kind.value()));
    if from == 0 || (from == node.raft.id && !forwarded.contains(&message.r#type)) {
        return malformed("no sender, or this member itself");
    }
    if message.r#type == Some(raftpb::MessageType::MsgSnap as i32) {
        let metadata = message.snapshot.and_then(|snapshot| snapshot.metadata);
        let index = metadata.and_then(|metadata| metadata.index);
        return Err(Error::SnapshotUnsupported {
            from,
            index: index.unwrap_or_default(),
        });
    }
    let mut message =
        codec::message_in(message).map_err(|problem| Error::Malformed { from, problem })?;
    let numbers = [message.index, message.commit, message.reject_hint];
    if numbers.iter().any(|number| *number > MAX_INDEX) || message.term > MAX_INDEX {
        return malformed("a number out of range");
    }
    match message.msg_type {
        T::MsgPropose | T::MsgReadIndex => {
            if message.entries.is_empty() {
                return malformed("a proposal or read without an entry");
            }
            // These carry no term, and one would make raft-rs panic when it forwards them.
            message.term = 0;
        }
        T::MsgHup | T::MsgBeat | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum => {
            return malformed("a message that never leaves a process");
        }
        // Without a term raft-rs takes a message for one of its own.
        _ if message.term == 0 => return malformed("no term"),
        _ => {}
    }
    match message.msg_type {
        T::MsgPropose => proposal(node, &message)?,
        T::MsgReadIndex | T::MsgTransferLeader => known(node, from)?,
        T::MsgAppend => append(node, &message)?,
        T::MsgHeartbeat => heartbeat(node, &message)?,
        T::MsgAppendResponse => acknowledged(node, &message)?,
        _ => {}
    }
    Ok(message)
}

fn known(node: &RawNode<LogStore>, from: u64) -> Result<(), Error> {
    match node.raft.prs().get(from) {
        Some(_) => Ok(()),
        None => Err(Error::UnknownPeer(from)),
    }
}

fn proposal(node: &RawNode<LogStore>, message: &Message) -> Result<(), Error> {
    known(node, message.from)?;
    match message.entries.iter().all(|entry| !entry.data.is_empty()) {
        true => Ok(()),
        false => Err(Error::Malformed {
            from: message.from,
            problem: "an empty proposal",
        }),
    }
}

fn append(node: &RawNode<LogStore>, message: &Message) -> Result<(), Error> {
    let from = message.from;
    let malformed = |problem| Err(Error::Malformed { from, problem });
    // An entry beyond the log has term 0 to raft-rs, and would match.
    if (message.index == 0) != (message.log_term == 0) {
        return malformed("an entry without a term, or a term without an entry");
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != before.0 + 1 || entry.term < before.1 || entry.term > message.term {
            return malformed("entries that do not follow each other");
        }
        before = (entry.index, entry.term);
    }
    let raft = &node.raft;
    if message.term < raft.term || !raft.raft_log.match_term(message.index, message.log_term) {
        // raft refuses it, politely.
        return Ok(());
    }
    let committed = raft.raft_log.committed;
    let differs = |entry: &&Entry| {
        entry.index <= committed && !raft.raft_log.match_term(entry.index, entry.term)
    };
    match message.entries.iter().find(differs) {
        Some(entry) => Err(Error::Diverged {
            from,
            index: entry.index,
        }),
        None => Ok(()),
    }
}

fn heartbeat(node: &RawNode<LogStore>, message: &Message) -> Result<(), Error> {
    let last_index = node.raft.raft_log.last_index();
    if message.term >= node.raft.term && message.commit > last_index {
        return Err(Error::LogLost {
            from: message.from,
            commit: message.commit,
            last_index,
        });
    }
    Ok(())
}

fn acknowledged(node: &RawNode<LogStore>, message: &Message) -> Result<(), Error> {
    let raft = &node.raft;
    let ours = raft.state == StateRole::Leader && message.term == raft.term;
    if ours && !message.reject && message.index > raft.raft_log.last_index() {
        return Err(Error::Malformed {
            from: message.from,
            problem: "acknowledges entries that were never sent",
        });
    }
    Ok(())
}
