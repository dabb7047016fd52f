//! Reads that wait until a leader can confirm them.
//!
//! raft-rs drops a read that reaches a leader before its first commit of the term, or a member
//! without a leader. These wait here instead, as in etcd's raft.

use std::collections::VecDeque;

use raft::{RawNode, StateRole, eraftpb::Message};

use crate::store::LogStore;

/// Reads that wait here, and as many again inside of raft; the oldest gives way. Whoever asked
/// asks again after a while.
pub(crate) const MAX_READS: usize = 4096;

#[derive(Debug)]
enum Held {
    Own(u64),
    Forwarded(Box<Message>),
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    held: VecDeque<Held>,
}

impl Reads {
    pub(crate) fn own(&mut self, ctx: u64) {
        self.hold(Held::Own(ctx));
    }

    pub(crate) fn forwarded(&mut self, message: Message) {
        self.hold(Held::Forwarded(Box::new(message)));
    }

    fn hold(&mut self, read: Held) {
        if self.held.len() >= MAX_READS {
            self.held.pop_front();
        }
        self.held.push_back(read);
    }

    /// Hands to raft what it will not drop. A read that another member forwarded is dropped when
    /// this one no longer leads: that member asks the new leader.
    pub(crate) fn release(&mut self, node: &mut RawNode<LogStore>) {
        if self.held.is_empty() {
            return;
        }
        let leads = node.raft.state == StateRole::Leader;
        if !leads {
            self.held.retain(|read| matches!(read, Held::Own(_)));
        }
        let ready = match leads {
            true => node.raft.commit_to_current_term(),
            false => node.raft.leader_id != 0,
        };
        while ready && node.raft.pending_read_count() < MAX_READS {
            match self.held.pop_front() {
                Some(Held::Own(ctx)) => node.read_index(ctx.to_be_bytes().to_vec()),
                // raft answers nothing but Ok to a read.
                Some(Held::Forwarded(message)) => drop(node.step(*message)),
                None => return,
            }
        }
    }
}

/// The caller's number, if it is one of ours.
pub(crate) fn context(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
