//! Snapshots, in both directions.
//!
//! A received one goes three steps. raft takes it with `step`: from then on its log begins behind
//! the snapshot and its membership is the snapshot's. The log writes it, with [`crate::Append`].
//! Once that is durable it is handed out as [`crate::Output::install`], to replace the state machine, which
//! may take minutes. Until it has, this member follows and votes but does not stand for election,
//! as in etcd's raft: the entries before the snapshot are gone and those behind it not applied.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use proto::raftpb::{ConfState, Snapshot, SnapshotMetadata};
use raft::{ProgressState, SnapshotStatus, StateRole, eraftpb};

use crate::{Driver, Error, boundary, codec};

/// Snapshots handed out and not applied, at one time; more are refused. Each that comes while
/// another is installed is a whole transfer, so more than two are odd already.
const MAX_INSTALLS: usize = 4;

/// A snapshot that raft has taken and that is not handed out.
#[derive(Debug)]
struct Waiting {
    metadata: SnapshotMetadata,
    /// The write that it is part of, once there is one.
    number: Option<u64>,
    durable: bool,
}

/// Received snapshots, until they are applied.
#[derive(Debug, Default)]
pub(crate) struct Installs {
    waiting: Option<Waiting>,
    handed_out: VecDeque<SnapshotMetadata>,
    /// The membership where the state machine is, while raft's is a snapshot's that it has yet to
    /// install. Changes that were handed out before the snapshot count here and not in raft, where
    /// they would be applied to what already holds them.
    behind: Option<ConfState>,
}

impl Installs {
    /// raft took a snapshot; `before` is where the state machine is. One that waits is replaced.
    fn taken(&mut self, metadata: SnapshotMetadata, before: ConfState) {
        self.behind.get_or_insert(before);
        self.waiting = Some(Waiting {
            metadata,
            number: None,
            durable: false,
        });
    }

    /// The snapshot is part of this write.
    pub(crate) fn written(&mut self, number: u64) {
        if let Some(waiting) = &mut self.waiting {
            waiting.number = Some(number);
        }
    }

    /// raft knows that all writes up to `number` are durable.
    pub(crate) fn durable(&mut self, number: u64) {
        if let Some(waiting) = &mut self.waiting {
            waiting.durable |= waiting.number.is_some_and(|own| own <= number);
        }
    }

    /// The snapshot to be installed next.
    pub(crate) fn hand_out(&mut self) -> Option<SnapshotMetadata> {
        let ready = self.waiting.take_if(|waiting| waiting.durable)?.metadata;
        self.handed_out.push_back(ready.clone());
        Some(ready)
    }

    pub(crate) fn applied(&mut self, index: u64) {
        while let Some(install) = self.handed_out.front()
            && install.index.unwrap_or_default() <= index
        {
            self.behind = self.handed_out.pop_front().and_then(|one| one.conf_state);
        }
        if !self.any() {
            self.behind = None;
        }
    }

    /// Whether the state machine has yet to become a snapshot that raft has taken.
    pub(crate) fn any(&self) -> bool {
        self.waiting.is_some() || !self.handed_out.is_empty()
    }

    pub(crate) fn behind(&self) -> Option<&ConfState> {
        self.behind.as_ref()
    }

    /// Takes note of a change that was handed out before the snapshot. None when there is no
    /// snapshot and raft is to be told.
    pub(crate) fn change(&mut self, change: &eraftpb::ConfChange) -> Option<ConfState> {
        let members = self.behind.as_mut()?;
        let id = change.node_id;
        let learns = members.learners.contains(&id);
        let kind = change.get_change_type();
        // As raft does it: a voter that is added as a learner becomes one.
        if !(learns && kind == eraftpb::ConfChangeType::AddLearnerNode) {
            members.voters.retain(|voter| *voter != id);
            members.learners.retain(|learner| *learner != id);
            match kind {
                eraftpb::ConfChangeType::AddNode => members.voters.push(id),
                eraftpb::ConfChangeType::AddLearnerNode => members.learners.push(id),
                eraftpb::ConfChangeType::RemoveNode => {}
            }
            members.voters.sort_unstable();
            members.learners.sort_unstable();
        }
        Some(members.clone())
    }

    fn newest(&self) -> Option<&SnapshotMetadata> {
        let waiting = self.waiting.as_ref().map(|waiting| &waiting.metadata);
        waiting.or(self.handed_out.back())
    }
}

/// Members that were named in [`crate::Output::needs_snapshot`], and how many ticks ago, until an answer
/// comes. raft wants one with every heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    named: BTreeMap<u64, usize>,
}

impl Requests {
    /// Those that are to be named now.
    pub(crate) fn name(&mut self, wanted: Vec<u64>) -> Vec<u64> {
        let new = |peer: &u64| match self.named.entry(*peer) {
            Entry::Vacant(place) => {
                place.insert(0);
                true
            }
            Entry::Occupied(_) => false,
        };
        wanted.into_iter().filter(new).collect()
    }

    /// Whoever had no answer for `limit` ticks is named again.
    pub(crate) fn tick(&mut self, limit: usize) {
        self.named.retain(|_, age| {
            *age += 1;
            *age < limit
        });
    }

    fn answered(&mut self, peer: u64) {
        self.named.remove(&peer);
    }

    /// Nobody is sent anything any more.
    pub(crate) fn clear(&mut self) {
        self.named.clear();
    }
}

impl Driver {
    /// The index of the newest snapshot that was taken with [`Driver::step`] and is not applied. A
    /// snapshot after whose step this is another, or none, was not needed: it may be forgotten.
    pub fn installing(&self) -> Option<u64> {
        self.installs.newest()?.index
    }

    /// Answers [`crate::Output::needs_snapshot`]: sends a snapshot to the member `to`. Its `data` travels
    /// as it is; its metadata must be that of an applied entry, with the membership there.
    ///
    /// The message is in the next output, and nothing else is sent to this member until it
    /// acknowledges it or [`Driver::report_snapshot`] says what became of it, which must be called.
    ///
    /// # Errors
    /// No message comes and nothing need be reported: [`Error::SnapshotUnfit`] and others that pass
    /// with time. The member is named again when it still needs one. [`Error::Malformed`] is the
    /// caller's own fault.
    pub fn offer_snapshot(&mut self, to: u64, snapshot: Snapshot) -> Result<(), Error> {
        self.requests.answered(to);
        self.usable()?;
        let metadata = snapshot.metadata.as_ref();
        boundary::metadata(metadata).map_err(|problem| self.own_fault(problem))?;
        let snapshot = codec::snapshot_in(snapshot).map_err(|problem| self.own_fault(problem))?;
        let index = snapshot.get_metadata().index;
        self.check_offer(to, snapshot.get_metadata())?;
        self.node.mut_store().offer = Some(snapshot);
        // A heartbeat's answer would do so too, and ask for another snapshot if this were gone.
        if let Some(progress) = self.node.raft.mut_prs().get_mut(to) {
            progress.resume();
            self.node.raft.send_append(to);
        }
        self.node.mut_store().offer = None;
        let progress = self.node.raft.prs().get(to);
        match progress.is_some_and(|one| one.pending_snapshot == index) {
            true => Ok(()),
            false => Err(unfit(to, "the log still has what the member needs")),
        }
    }

    fn check_offer(&self, to: u64, metadata: &eraftpb::SnapshotMetadata) -> Result<(), Error> {
        let raft = &self.node.raft;
        let (index, log) = (metadata.index, &raft.raft_log);
        if index > log.committed {
            return Err(self.own_fault("a snapshot of what is not committed"));
        }
        if raft.state != StateRole::Leader {
            return Err(unfit(to, "this member does not lead"));
        }
        let Some(progress) = raft.prs().get(to).filter(|_| to != raft.id) else {
            return Err(Error::UnknownPeer(to));
        };
        if index + 1 < log.first_index() {
            return Err(unfit(to, "the log no longer has the entries behind it"));
        }
        if !log.match_term(index, metadata.term) {
            return Err(self.own_fault("a snapshot of a term that its entry does not have"));
        }
        if !boundary::is_member(metadata.get_conf_state(), to) {
            return Err(unfit(to, "it is older than the member"));
        }
        if progress.state == ProgressState::Snapshot {
            return Err(unfit(to, "another one is under way"));
        }
        match progress.recent_active {
            true => Ok(()),
            false => Err(unfit(to, "the member is not heard of")),
        }
    }

    /// What became of a snapshot for `id`: it was received, or it was not, or none could be made.
    pub fn report_snapshot(&mut self, id: u64, ok: bool) {
        if !ok {
            self.requests.answered(id);
        }
        // Also while its own disk is slow: it is said once, and a leader that did not hear would
        // send this member nothing more.
        if !self.removed.oneself {
            let status = match ok {
                true => SnapshotStatus::Finish,
                false => SnapshotStatus::Failure,
            };
            self.node.report_snapshot(id, status);
        }
    }

    /// Takes a snapshot that [`boundary::check`] let pass.
    pub(crate) fn step_snapshot(&mut self, message: eraftpb::Message) -> Result<(), Error> {
        if self.installs.handed_out.len() >= MAX_INSTALLS {
            return Err(Error::Installing);
        }
        let taken = |node: &raft::RawNode<_>| node.snap().map(|one| one.get_metadata().index);
        let before = (taken(&self.node), self.conf_state());
        let metadata = codec::metadata_out(message.get_snapshot().get_metadata());
        let members = self.node.raft.prs().conf().to_conf_state();
        // raft answers nothing but Ok to one; it ignores what it does not need.
        let _ = self.node.step(message);
        if taken(&self.node) == before.0 {
            return Ok(());
        }
        // Whoever was a member and is none there was removed in between.
        let now = self.node.raft.prs();
        let gone = members.voters.iter().chain(&members.learners);
        let gone = gone.filter(|id| now.get(**id).is_none());
        self.removed.peers.extend(gone);
        self.removed.peers.retain(|id| now.get(*id).is_none());
        self.installs.taken(metadata, before.1);
        Ok(())
    }
}

fn unfit(to: u64, problem: &'static str) -> Error {
    Error::SnapshotUnfit { to, problem }
}
