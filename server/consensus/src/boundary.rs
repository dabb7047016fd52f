//! What other members may send. raft-rs trusts its messages: some of these would end the process,
//! some would commit what etcd cannot apply.

use proto::raftpb;
use protobuf::ProtobufEnum;
use raft::{
    RawNode, StateRole,
    eraftpb::{ConfState, Entry, Message, MessageType},
};

use crate::{Error, codec, store::LogStore};

/// No real log comes near; keeps sums of indices from overflowing.
const MAX_INDEX: u64 = u64::MAX / 4;

/// A message that raft can take, or why not.
pub(crate) fn check(
    node: &RawNode<LogStore>,
    mut message: raftpb::Message,
) -> Result<Message, Error> {
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
        let sent = message.snapshot.as_mut();
        let problem = metadata(sent.as_ref().and_then(|one| one.metadata.as_ref())).err();
        if let Some(problem) = problem {
            return malformed(problem);
        }
        // Nobody asks raft for it: what is installed was received beside it.
        sent.map(|snapshot| snapshot.data.take());
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
        T::MsgSnapshot => snapshot(node, &message)?,
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
    // What was compacted cannot be compared, and raft does not look at it.
    let kept = raft.raft_log.first_index() - 1..=committed;
    let differs = |entry: &&Entry| {
        kept.contains(&entry.index) && !raft.raft_log.match_term(entry.index, entry.term)
    };
    match message.entries.iter().find(differs) {
        Some(entry) => Err(Error::Diverged {
            from,
            index: entry.index,
        }),
        None => Ok(()),
    }
}

/// Whether these numbers can belong to a snapshot. raft-rs panics about a membership that it cannot
/// build, and about a commit index without an entry.
pub(crate) fn metadata(metadata: Option<&raftpb::SnapshotMetadata>) -> Result<(), codec::Problem> {
    let Some(metadata) = metadata else {
        return Err("a snapshot without metadata");
    };
    let (index, term) = (
        metadata.index.unwrap_or_default(),
        metadata.term.unwrap_or_default(),
    );
    if index == 0 || term == 0 || index > MAX_INDEX || term > MAX_INDEX {
        return Err("a snapshot whose index or term is out of range");
    }
    let none = raftpb::ConfState::default();
    let members = metadata.conf_state.as_ref().unwrap_or(&none);
    if !members.voters_outgoing.is_empty() || !members.learners_next.is_empty() {
        return Err("a snapshot with a joint membership");
    }
    let mut ids: Vec<u64> = members.voters.clone();
    ids.extend(&members.learners);
    ids.sort_unstable();
    if members.voters.is_empty() || ids[0] == 0 || ids.windows(2).any(|two| two[0] == two[1]) {
        return Err("a snapshot without voters, or with a member that is none or named twice");
    }
    Ok(())
}

/// Whether `id` is a voter or a learner.
pub(crate) fn is_member(members: &ConfState, id: u64) -> bool {
    members.voters.contains(&id) || members.learners.contains(&id)
}

fn snapshot(node: &RawNode<LogStore>, message: &Message) -> Result<(), Error> {
    let from = message.from;
    let malformed = |problem| Err(Error::Malformed { from, problem });
    let metadata = message.get_snapshot().get_metadata();
    if metadata.term > message.term {
        return malformed("a snapshot of a later term than its message's");
    }
    if !is_member(metadata.get_conf_state(), node.raft.id) {
        // raft would say that it has it, and be sent it for ever.
        return malformed("a snapshot in which this member is none");
    }
    if message.term < node.raft.term {
        return Ok(());
    }
    let log = &node.raft.raft_log;
    let committed = log.committed;
    let diverged = |index| Err(Error::Diverged { from, index });
    match metadata.index {
        index if index > committed => match log.term(committed) {
            Ok(term) if term > metadata.term => diverged(committed),
            _ => Ok(()),
        },
        // Stale, and raft says so, if it is not of another log.
        index if index + 1 >= log.first_index() && !log.match_term(index, metadata.term) => {
            diverged(index)
        }
        _ => Ok(()),
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
