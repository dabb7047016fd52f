//! The node and its inputs. What comes out of it is in `outputs.rs`.

use std::{cmp, collections::VecDeque};

use bytes::Bytes;
use proto::raftpb;
use raft::{
    Error as RaftError, RawNode, ReadOnlyOption, StateRole,
    eraftpb::{Entry, HardState, Message, MessageType},
};

use crate::{
    Boot, Config, Error, FetchRequest, PeerStatus, Role, SoftState, Status, boundary,
    clock::Clock,
    codec,
    fetch::Purpose,
    inflight::Inflight,
    logger,
    membership::Removed,
    reads::Reads,
    snapshots::{Installs, Requests},
    store::LogStore,
};

/// One member of a raft group.
///
/// Give it inputs (`tick`, `step`, `propose`, `persisted`, ...), then call [`Driver::poll`] until
/// it is empty. Nothing here waits; all state that must survive is in the outputs.
///
/// A panic from inside means that an invariant of raft is broken: the process must end.
pub struct Driver {
    pub(crate) node: RawNode<LogStore>,
    pub(crate) removed: Removed,
    /// The newest term that is durable. A leader of a newer one waits with its messages.
    pub(crate) durable_term: u64,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) reads: Reads,
    pub(crate) inflight: Inflight,
    pub(crate) installs: Installs,
    pub(crate) requests: Requests,
    pub(crate) stalled: bool,
    /// What raft last reported, to notice a change.
    pub(crate) reported: (SoftState, HardState),
    pub(crate) announced: bool,
    /// A state in which only the commit index changed; goes with the next write, or with a tick.
    pub(crate) unwritten: Option<HardState>,
    /// A tick has passed since the last poll.
    pub(crate) ticked: bool,
    pub(crate) last_number: u64,
    pub(crate) handed_out: u64,
    pub(crate) unapplied: VecDeque<(u64, usize)>,
    pub(crate) unapplied_bytes: usize,
}

impl Driver {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// [`Error::Boot`] when that is no state of raft, or the configuration makes no sense.
    pub fn new(config: Config, boot: Boot) -> Result<Self, Error> {
        let applied = boot.applied;
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: Clock::pinned(config.election_ticks),
            max_election_tick: Clock::pinned(config.election_ticks) + 1,
            applied,
            max_size_per_msg: config.max_size_per_msg,
            max_inflight_msgs: config.max_inflight,
            check_quorum: true,
            pre_vote: config.pre_vote,
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: false,
            priority: 0,
            max_uncommitted_size: config.max_uncommitted_bytes,
            max_committed_size_per_ready: config.max_committed_bytes_per_output,
        };
        let refused = |cause: RaftError| Error::Boot(cause.to_string());
        raft_config.validate().map_err(refused)?;
        let store = LogStore::new(
            boot,
            config.cache_bytes,
            config.max_committed_bytes_per_output,
        )?;
        let durable_term = store.boot_state().term;
        let node = RawNode::new(&raft_config, store, &logger::logger()).map_err(refused)?;
        let reported = (soft_state(&node), node.raft.hard_state());
        Ok(Self {
            clock: Clock::new(config.election_ticks, config.seed ^ config.id),
            node,
            removed: Removed::default(),
            durable_term,
            config,
            reads: Reads::default(),
            inflight: Inflight::default(),
            installs: Installs::default(),
            requests: Requests::default(),
            stalled: false,
            reported,
            announced: false,
            unwritten: None,
            ticked: false,
            last_number: 0,
            handed_out: applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
        })
    }

    /// One tick of the caller's clock.
    ///
    /// `oldest_append_age_ticks` is how long the oldest [`crate::Append`] that is not reported as persisted
    /// has been waiting; 0 when there is none. From one election timeout on, this member neither
    /// ticks, sends, votes nor takes messages, until a tick with less or until all is persisted: a
    /// leader with a hung disk would otherwise lead for ever and commit nothing of its own.
    ///
    /// Of ticks without a [`Driver::poll`] between them, half an election timeout's worth counts.
    pub fn tick(&mut self, oldest_append_age_ticks: usize) {
        if self.removed.oneself {
            return;
        }
        self.stalled = oldest_append_age_ticks >= self.config.election_ticks;
        if self.stalled || !self.clock.admits() {
            return;
        }
        self.ticked = true;
        if self.node.raft.state == StateRole::Leader {
            self.requests.tick(self.config.election_ticks);
            self.node.tick();
            return;
        }
        let elapsed = self.node.raft.election_elapsed;
        let alone = self.is_alone();
        if self.node.raft.promotable() && self.clock.runs_out(elapsed, alone) {
            if !self.may_campaign() {
                return;
            }
            self.clock.draw();
            // raft's own clock is pinned to a later end: set it to just before that.
            self.node.raft.election_elapsed = Clock::pinned(self.config.election_ticks) - 1;
        }
        self.node.tick();
    }

    /// Lets `ticks` of the wait for a leader pass at once, but no whole election timeout: for a
    /// restart, when the others are known to be there or a leader to be lost.
    pub fn advance_election_clock(&mut self, ticks: usize) {
        let elapsed = self.node.raft.election_elapsed.saturating_add(ticks);
        self.node.raft.election_elapsed = cmp::min(elapsed, self.config.election_ticks - 1);
    }

    /// Whether this member's vote alone is a majority.
    fn is_alone(&self) -> bool {
        self.node.raft.promotable() && self.node.raft.prs().is_singleton()
    }

    /// raft-rs stands for election only with no committed membership change unapplied; it would
    /// read all unapplied entries to find out, and panic when they are gone with a snapshot that is
    /// yet to be applied. A member that is alone wins on the spot, which raft-rs does only when all
    /// of its entries are durable.
    fn may_campaign(&self) -> bool {
        if self.installs.any() {
            return false;
        }
        let log = &self.node.raft.raft_log;
        let unstable = log.unstable_entries().iter();
        let mut in_memory = unstable.take_while(|entry| entry.index <= log.committed);
        let pending = log.store().may_change(log.applied, log.committed)
            || in_memory.any(|entry| entry.entry_type != raft::eraftpb::EntryType::EntryNormal);
        let durable = self.inflight.is_empty() && self.node.raft.msgs.is_empty();
        !pending && (!self.is_alone() || (durable && log.persisted == log.last_index()))
    }

    pub(crate) fn usable(&self) -> Result<(), Error> {
        if self.removed.oneself {
            return Err(Error::Removed);
        }
        match self.stalled {
            true => Err(Error::Stalled),
            false => Ok(()),
        }
    }

    /// Proposes entries, all in one message and in this order; without a leader here, they are
    /// forwarded to it. That they were taken does not say that they will be committed.
    ///
    /// # Errors
    /// Nothing was proposed. [`Error::Overloaded`] and [`Error::Transferring`] pass with time.
    pub fn propose(&mut self, entries: Vec<Bytes>) -> Result<(), Error> {
        self.usable()?;
        if entries.is_empty() {
            return Ok(());
        }
        if entries.iter().any(Bytes::is_empty) {
            return Err(self.own_fault("an empty proposal"));
        }
        let entries = entries.into_iter().map(|data| Entry {
            data,
            ..Entry::default()
        });
        self.propose_entries(entries.collect())
    }

    /// Proposes a membership change, of etcd's first kind.
    ///
    /// # Errors
    /// As [`Driver::propose`]; and [`Error::ConfChangePending`] while this member leads and an
    /// earlier one is not applied. A leader elsewhere drops it silently then.
    pub fn propose_conf_change(&mut self, change: &raftpb::ConfChange) -> Result<(), Error> {
        self.usable()?;
        let entry = codec::change_entry(change).map_err(|problem| self.own_fault(problem))?;
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader && raft.has_pending_conf() {
            return Err(Error::ConfChangePending);
        }
        self.propose_entries(vec![entry])
    }

    pub(crate) fn own_fault(&self, problem: &'static str) -> Error {
        let from = self.node.raft.id;
        Error::Malformed { from, problem }
    }

    fn propose_entries(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from: self.node.raft.id,
            entries: entries.into(),
            ..Message::default()
        };
        // Not through the node's own `step`: that one is for messages from others.
        let result = self.node.raft.step(message);
        result.map_err(|_| self.dropped())
    }

    /// Why raft dropped a proposal.
    fn dropped(&self) -> Error {
        let raft = &self.node.raft;
        match raft.state {
            StateRole::Leader if raft.lead_transferee.is_some() => Error::Transferring,
            StateRole::Leader => Error::Overloaded,
            _ => Error::NoLeader,
        }
    }

    /// Asks for the index that a linearizable read must wait for. The answer is in
    /// [`crate::Output::reads`], under `ctx`, which must be unique in the cluster. It may never come, after
    /// a change of leader or a lost message; ask again then, under the same `ctx` or another. It
    /// comes as often as was asked, at most.
    ///
    /// # Errors
    /// [`Error::Removed`].
    pub fn read_index(&mut self, ctx: u64) -> Result<(), Error> {
        if self.removed.oneself {
            return Err(Error::Removed);
        }
        self.reads.own(ctx);
        Ok(())
    }

    /// Takes a message from another member. It may hold what the state machine cannot decode: the
    /// entries of a `MsgProp` are to be admitted by the caller first.
    ///
    /// A `MsgSnap` comes when all that it stands for is there: it is handed out by its metadata
    /// only, in [`crate::Append::snapshot`] and then in [`crate::Output::install`]. See
    /// [`Driver::installing`] for whether it was needed.
    ///
    /// # Errors
    /// The message was dropped. Only with [`Error::is_fatal`] must anything be done about it.
    pub fn step(&mut self, message: raftpb::Message) -> Result<(), Error> {
        self.usable()?;
        let from = message.from.unwrap_or_default();
        if self.removed.peers.contains(&from) {
            return Err(Error::RemovedPeer(from));
        }
        let message = boundary::check(&self.node, message)?;
        match message.msg_type {
            MessageType::MsgReadIndex => {
                self.reads.forwarded(message);
                return Ok(());
            }
            MessageType::MsgAppend if !message.entries.is_empty() => {
                let unstable = self.node.raft.raft_log.unstable.entries_size;
                if self.inflight.bytes() + unstable > self.config.max_unpersisted_bytes {
                    return Err(Error::DiskBehind);
                }
            }
            MessageType::MsgSnapshot => return self.step_snapshot(message),
            // raft-rs panics when it forwards one that carries a term, as those from outside do.
            MessageType::MsgTransferLeader if self.node.raft.state != StateRole::Leader => {
                return Err(Error::NoLeader);
            }
            MessageType::MsgTimeoutNow if !self.may_campaign() => return Ok(()),
            // A vote that overtook the report of the write it answers to; it counts as lost, since
            // raft-rs becomes leader with all entries durable or not at all.
            MessageType::MsgRequestVoteResponse if !self.is_durable() => return Ok(()),
            _ => {}
        }
        self.node.step(message).map_err(|cause| match cause {
            RaftError::StepPeerNotFound => Error::UnknownPeer(from),
            _ => self.dropped(),
        })
    }

    fn is_durable(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.persisted == log.last_index()
    }

    /// All writes up to [`crate::Append::number`] `number` are durable.
    pub fn persisted(&mut self, number: u64) {
        let finished = self.inflight.finish(number);
        self.durable_term = finished.term.unwrap_or(self.durable_term);
        if self.inflight.is_empty() {
            self.stalled = false;
        }
        // A leader that was removed has no progress of its own, which raft-rs would look up.
        if self.removed.oneself {
            return;
        }
        if let Some(number) = finished.number {
            self.node.on_persist_ready(number);
            let persisted = self.node.raft.raft_log.persisted;
            self.node.mut_store().persisted(persisted);
            self.installs.durable(number);
        }
    }

    /// The state machine holds everything up to `index`, in memory at least. Membership changes up
    /// to there must have gone through [`Driver::apply_conf_change`], or have been refused. With an
    /// [`crate::Output::install`] this is called before changes behind it are applied.
    pub fn applied(&mut self, index: u64) {
        let index = cmp::min(index, self.handed_out);
        while let Some((last, bytes)) = self.unapplied.front()
            && *last <= index
        {
            self.unapplied_bytes -= bytes;
            self.unapplied.pop_front();
        }
        if !self.removed.oneself && index > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index);
            self.node.mut_store().applied(index);
        }
        self.installs.applied(index);
    }

    /// The answer to [`crate::Output::fetch`]: the entries from `lo` on. None when the log no longer holds
    /// them, which is an error only when they are yet to be applied.
    ///
    /// # Errors
    /// [`Error::LogChanged`], fatal: the log gave back other entries.
    pub fn fetched(
        &mut self,
        request: FetchRequest,
        entries: Vec<raftpb::Entry>,
    ) -> Result<(), Error> {
        if self.removed.oneself {
            return Ok(());
        }
        let answered = self.node.store().fetches.borrow_mut().answered(request.id);
        let Some(purpose) = answered else {
            return Ok(());
        };
        let checked = self.check_fetched(request.lo, entries);
        match purpose {
            Purpose::Apply => {
                let entries = checked.filter(|entries| !entries.is_empty());
                let entries = entries.ok_or(Error::LogChanged(request.lo))?;
                self.node.store().fetches.borrow_mut().to_apply = entries;
            }
            Purpose::Send(contexts) => {
                // Entries that were replaced meanwhile are of no use to anybody.
                let entries = checked.unwrap_or_default();
                if entries.is_empty() {
                    return Ok(());
                }
                self.node.store().fetches.borrow_mut().arrived = entries;
                for context in contexts {
                    self.node.on_entries_fetched(context);
                }
                self.node.store().fetches.borrow_mut().arrived = Vec::new();
            }
        }
        Ok(())
    }

    fn check_fetched(&self, lo: u64, entries: Vec<raftpb::Entry>) -> Option<Vec<Entry>> {
        let entries: Result<Vec<_>, _> = entries.into_iter().map(codec::entry_in).collect();
        let entries = entries.ok()?;
        let fits =
            |(index, entry): (u64, &Entry)| entry.index == index && self.node.store().holds(entry);
        (lo..).zip(&entries).all(fits).then_some(entries)
    }

    /// The log no longer holds entries before `first_index`. Nothing that is yet to be applied may
    /// be dropped; a follower that needs what was is named in [`crate::Output::needs_snapshot`].
    pub fn compacted(&mut self, first_index: u64) {
        let kept = cmp::min(first_index, self.node.raft.raft_log.applied + 1);
        self.node.mut_store().compact(kept);
    }

    /// A leader hands over to the voter `to`, once that one has all entries; given up after an
    /// election timeout. Proposals are refused meanwhile. Others ask their leader to do so.
    pub fn transfer_leader(&mut self, to: u64) {
        if self.usable().is_ok() && to != self.node.raft.leader_id {
            self.node.transfer_leader(to);
        }
    }

    /// A message to `id` could not be sent.
    pub fn report_unreachable(&mut self, id: u64) {
        if self.usable().is_ok() {
            self.node.report_unreachable(id);
        }
    }

    /// The last entry that is known to be committed; this member may yet have to write or apply it.
    pub fn commit(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// The node at a glance.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let soft = soft_state(&self.node);
        let removed = self.removed.oneself;
        let leads = soft.role == Role::Leader && !removed;
        let mut peers: Vec<_> = raft.prs().iter().collect();
        peers.sort_unstable_by_key(|(id, _)| **id);
        let peers = peers.into_iter().map(|(&id, progress)| PeerStatus {
            id,
            matched: if leads { progress.matched } else { 0 },
            is_learner: raft.prs().conf().learners().contains(&id),
            recent_active: leads && (id == raft.id || progress.recent_active),
        });
        Status {
            id: raft.id,
            leader: if removed { 0 } else { soft.leader },
            term: soft.term,
            role: if removed { Role::Follower } else { soft.role },
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            last_index: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            transferee: raft.lead_transferee.unwrap_or_default(),
            stalled: self.stalled,
            removed,
            peers: peers.collect(),
        }
    }
}

pub(crate) fn soft_state(node: &RawNode<LogStore>) -> SoftState {
    SoftState {
        leader: node.raft.leader_id,
        role: match node.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        },
        term: node.raft.term,
    }
}
