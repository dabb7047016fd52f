//! What comes out of the node.

use std::mem;

use proto::raftpb;
use raft::{
    StateRole,
    eraftpb::{Entry, Message, MessageType, SnapshotMetadata},
};

use crate::{
    Append, Driver, Output, ReadReady, codec,
    driver::soft_state,
    inflight::Write,
    reads,
    store::{Gate, weight},
};

impl Driver {
    /// The next bunch of work, if there is any.
    pub fn poll(&mut self) -> Option<Output> {
        self.clock.polled();
        if self.removed.oneself {
            return self.removed.parting.take();
        }
        if self.stalled {
            return None;
        }
        self.reads.release(&mut self.node);
        let mut output = Output {
            install: self.hand_out_install(),
            ..Output::default()
        };
        let soft = soft_state(&self.node);
        if !self.announced || soft != self.reported.0 {
            output.soft = Some(soft);
            self.announced = true;
        }
        if self.has_ready() {
            self.take_ready(&mut output);
        }
        self.reported = (soft, self.node.raft.hard_state());
        self.write_commit(&mut output);
        output.fetch = self.node.store().fetches.borrow_mut().next_unsent();
        output.needs_snapshot = self.needs_snapshot();
        (output != Output::default()).then_some(output)
    }

    fn hand_out_install(&mut self) -> Option<raftpb::SnapshotMetadata> {
        let install = self.installs.hand_out()?;
        self.handed_out = install.index.unwrap_or_default();
        Some(install)
    }

    fn needs_snapshot(&mut self) -> Vec<u64> {
        let wanted = self.node.store().take_needs_snapshot();
        if self.node.raft.state != StateRole::Leader {
            self.requests.clear();
            return Vec::new();
        }
        self.requests.name(wanted)
    }

    /// raft's own answer, without entries that are not wanted now.
    fn has_ready(&self) -> bool {
        let raft = &self.node.raft;
        !raft.msgs.is_empty()
            || !raft.read_states.is_empty()
            || !raft.raft_log.unstable_entries().is_empty()
            || raft.snap().is_some()
            || soft_state(&self.node) != self.reported.0
            || raft.hard_state() != self.reported.1
            || (self.takes_entries() && raft.raft_log.has_next_entries_since(self.handed_out))
    }

    /// Whether more entries may be handed out for apply.
    fn takes_entries(&self) -> bool {
        let fetches = self.node.store().fetches.borrow();
        self.unapplied_bytes < self.config.max_unapplied_bytes && !fetches.awaits_apply()
    }

    fn take_ready(&mut self, output: &mut Output) {
        let gate = match self.takes_entries() {
            true => Gate::Open,
            false => Gate::Shut,
        };
        self.node.store().gate.set(gate);
        let mut ready = self.node.ready();
        self.node.store().gate.set(Gate::Scan);

        let number = ready.number();
        let hard_state = ready.hs().cloned();
        let snapshot = self.restart_log(ready.snapshot().get_metadata(), number);
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        let mut send = ready.take_messages();
        let mut then_send = ready.take_persisted_messages();
        output.reads = own_reads(ready.take_read_states());
        output.apply = self.hand_out(ready.take_committed_entries());
        let bytes = self.node.mut_store().append(&entries);
        self.node.advance_append_async(ready);
        self.last_number = number;

        if self.durable_term < self.node.raft.term {
            // Only a leader that is alone has a term that is not durable. After a crash it would
            // take the same term again, for other entries than its learners have got.
            then_send.append(&mut send);
        }
        let (promises, rest): (Vec<_>, Vec<_>) = then_send.into_iter().partition(is_promise);
        send.extend(rest);
        self.unwritten = hard_state.or(self.unwritten.take());
        let waits = !promises.is_empty() && !self.inflight.is_empty();
        if must_sync || waits {
            let append = Append {
                number,
                entries: entries.into_iter().map(codec::entry_out).collect(),
                snapshot,
                must_sync,
                then_send: promises.into_iter().map(codec::message_out).collect(),
                ..Append::default()
            };
            output.append = Some(self.write(append, bytes));
        } else {
            send.extend(promises);
            if self.inflight.is_empty() {
                self.node.on_persist_ready(number);
            }
        }
        output.send = send.into_iter().map(codec::message_out).collect();
    }

    fn hand_out(&mut self, entries: Vec<Entry>) -> Vec<raftpb::Entry> {
        let Some(last) = entries.last() else {
            return Vec::new();
        };
        self.handed_out = last.index;
        let bytes = entries.iter().map(weight).sum();
        self.unapplied.push_back((self.handed_out, bytes));
        self.unapplied_bytes += bytes;
        self.node.store().fetches.borrow_mut().to_apply = Vec::new();
        entries.into_iter().map(codec::entry_out).collect()
    }

    /// From now on raft's log begins behind the snapshot, when there is one.
    fn restart_log(
        &mut self,
        metadata: &SnapshotMetadata,
        number: u64,
    ) -> Option<raftpb::SnapshotMetadata> {
        let (index, term) = (metadata.index, metadata.term);
        if index == 0 {
            return None;
        }
        self.node.mut_store().restart(index, term);
        self.installs.written(number);
        Some(codec::metadata_out(metadata))
    }

    fn write(&mut self, append: Append, bytes: usize) -> Append {
        let hard_state = self.unwritten.take();
        self.inflight.push(Write {
            number: append.number,
            range: range(&append),
            term: hard_state.as_ref().map(|state| state.term),
            bytes,
        });
        Append {
            hard_state: hard_state.as_ref().map(codec::hard_state_out),
            ..append
        }
    }

    /// A commit index that no write has taken along goes by itself, once a tick.
    fn write_commit(&mut self, output: &mut Output) {
        if !mem::take(&mut self.ticked) || !self.inflight.is_empty() || output.append.is_some() {
            return;
        }
        output.append = self.unwritten.take().map(|state| Append {
            number: self.last_number,
            hard_state: Some(codec::hard_state_out(&state)),
            ..Append::default()
        });
    }
}

/// What a write replaces and holds: a snapshot replaces all.
fn range(append: &Append) -> Option<(u64, u64)> {
    let index = |entry: &raftpb::Entry| entry.index.unwrap_or_default();
    let ends = append.entries.first().zip(append.entries.last());
    let ends = ends.map(|(first, last)| (index(first), index(last)));
    match &append.snapshot {
        Some(snapshot) => {
            let own = snapshot.index.unwrap_or_default();
            Some((0, ends.map_or(own, |(_, last)| last)))
        }
        None => ends,
    }
}

/// Whether a message says something that must be durable first. What a member forwards is not its
/// own word, and an answer to a heartbeat only says that it lives and follows.
fn is_promise(message: &Message) -> bool {
    !matches!(
        message.msg_type,
        MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgTransferLeader
            | MessageType::MsgHeartbeatResponse
    )
}

/// Answers under a context that is not ours are nobody's.
fn own_reads(states: Vec<raft::ReadState>) -> Vec<ReadReady> {
    let ready = states.into_iter().filter_map(|state| {
        let ctx = reads::context(&state.request_ctx)?;
        let index = state.index;
        Some(ReadReady { ctx, index })
    });
    ready.collect()
}
