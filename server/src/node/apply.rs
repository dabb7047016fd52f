//! The apply thread: the only one that writes to the state. One engine write for each batch of
//! entries; then the new state is published, watchers and callers are told, and raft.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, TryRecvError};
use engine::RocksEngine;
use mvcc::{CompactionProgress, Engine};
use prost::Message;
use proto::{
    etcdserverpb::InternalRaftRequest,
    raftpb::{Entry, SnapshotMetadata},
    text::Text,
};
use state::{Applied, Machine, Outcome};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    peers,
    raft::RaftInput,
    shared::{Shared, Snapshot},
};
use crate::database::Engines;

/// Bytes of entries that are gathered into one batch, about.
const BATCH_BYTES: usize = 8 << 20;
/// Unflushed bytes of the engine at which it is flushed: bounds what a restart replays.
pub(crate) const FLUSH_AT_BYTES: u64 = 64 << 20;
/// Bytes of entries applied at which it is flushed, at most.
pub(crate) const FLUSH_AT_LOG_BYTES: usize = 32 << 20;

/// What the apply thread is told.
pub(crate) enum ApplyInput {
    /// Committed entries, in order.
    Entries(Vec<Entry>),
    /// The state of another member, which has come with a snapshot, takes the place of this one's.
    Install(SnapshotMetadata),
    /// The engine was defragmented; answered when it is accounted for.
    Defragmented(oneshot::Sender<()>),
    /// To end.
    Stop,
}

/// What others do for the apply thread.
pub(crate) enum Chore {
    /// Tell these callers that there is no space, once the alarm is raised.
    RaiseNoSpace(Vec<u64>),
    /// Compute the hash of a compaction.
    Hash(mvcc::CompactionHash<Snapshot>),
    /// End the node: it was removed.
    Removed,
    /// Tell who waits for it that a compaction's rows are gone.
    Compacted(i64),
}

pub(crate) struct ApplyThread {
    pub machine: Machine<RocksEngine>,
    pub shared: Arc<Shared>,
    /// Where engines are made from snapshots.
    pub engines: Engines,
    /// Bytes of entries applied at which the engine is flushed.
    pub flush_at: usize,
    pub inputs: Receiver<ApplyInput>,
    pub chores: mpsc::UnboundedSender<Chore>,
    /// Entry bytes since the last flush.
    pub log_bytes: usize,
    /// When the compaction under way began.
    pub compacting: Option<Instant>,
}

impl ApplyThread {
    /// Runs until it is told to stop, or the node cannot go on.
    pub fn run(mut self) {
        if let Err(error) = self.serve() {
            self.shared.fatal(error);
        }
    }

    fn serve(&mut self) -> Result<(), state::Fatal> {
        loop {
            let input = match self.inputs.try_recv() {
                Ok(input) => input,
                Err(TryRecvError::Empty) if self.machine.compaction_pending() => {
                    self.compact()?;
                    continue;
                }
                Err(TryRecvError::Empty) => match self.inputs.recv() {
                    Ok(input) => input,
                    Err(_) => return Ok(()),
                },
                Err(TryRecvError::Disconnected) => return Ok(()),
            };
            match input {
                ApplyInput::Entries(entries) => {
                    let (entries, then) = self.gather(entries);
                    self.apply(&entries)?;
                    // Compaction goes on under load too, a piece for each batch.
                    if self.machine.compaction_pending() {
                        self.compact()?;
                    }
                    match then {
                        Some(ApplyInput::Defragmented(done)) => self.defragmented(done)?,
                        Some(ApplyInput::Install(snapshot)) => self.install(&snapshot)?,
                        Some(ApplyInput::Stop) => return Ok(()),
                        _ => {}
                    }
                }
                ApplyInput::Install(snapshot) => self.install(&snapshot)?,
                ApplyInput::Defragmented(done) => self.defragmented(done)?,
                ApplyInput::Stop => return Ok(()),
            }
        }
    }

    /// Adds the entries that wait, up to a bound; and what came behind them, if it is no entry.
    fn gather(&self, mut entries: Vec<Entry>) -> (Vec<Entry>, Option<ApplyInput>) {
        let size = |entries: &[Entry]| -> usize {
            let data = entries.iter().filter_map(|entry| entry.data.as_ref());
            data.map(bytes::Bytes::len).sum()
        };
        let mut bytes = size(&entries);
        while bytes < BATCH_BYTES {
            match self.inputs.try_recv() {
                Ok(ApplyInput::Entries(more)) => {
                    bytes += size(&more);
                    entries.extend(more);
                }
                Ok(other) => return (entries, Some(other)),
                Err(_) => break,
            }
        }
        (entries, None)
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), state::Fatal> {
        let shared = Arc::clone(&self.shared);
        let awaited = |id| shared.is_awaited(id);
        let began = Instant::now();
        let version = self.machine.published().cluster_version;
        let outcome = self.machine.apply(entries, shared.now(), &awaited)?;
        let (took, slow) = (began.elapsed(), shared.settings.slow.apply);
        shared.counters.applied(&outcome.counts, took > slow);
        if took > slow {
            tell_slow(entries, took, slow);
        }
        let data = entries.iter().filter_map(|entry| entry.data.as_ref());
        self.log_bytes += data.map(bytes::Bytes::len).sum::<usize>();
        if !outcome.conf_changes.is_empty() {
            // Whoever is told of a removal may throw the removed member away. That the change was
            // committed must then survive a power cut: raft writes its commit index without a sync,
            // and a member that came back without it would wait for the removed one's vote.
            self.flush_all(true)?;
        }
        if outcome.published.cluster_version < version {
            // An older server may come to run on what is here. It must find a state behind the entry
            // that once set the higher version, which it could not apply.
            info!("cluster version downgrade detected, flushing the state");
            self.flush_all(true)?;
        }
        failpoint::BEFORE_WRITEBACK_BUF.hit();
        self.publish(outcome);
        failpoint::AFTER_WRITEBACK_BUF.hit();
        self.flush()
    }

    fn publish(&mut self, outcome: Outcome<Snapshot>) {
        let shared = &self.shared;
        let applied = outcome.published.applied;
        let revision = outcome.published.view.revision();
        shared.publish(Arc::clone(&outcome.published));
        shared.watches.publish(&outcome.events, revision);
        if outcome.term_began
            && shared.is_leader()
            && applied.term == shared.raft.term.load(Ordering::Acquire)
        {
            // All of earlier terms is applied: from here on this member's clock ends leases.
            let now = shared.now();
            super::lessor(shared).promote(now, shared.settings.election);
        }
        shared.answer(outcome.replies);
        shared.set_applied(applied.index);
        for change in &outcome.conf_changes {
            if let Some(member) = &change.member {
                peers::follow(shared, member);
            }
        }
        let changes = outcome.conf_changes.into_iter().map(|c| c.change).collect();
        let input = RaftInput::Applied {
            index: applied.index,
            changes,
        };
        // Raft is gone only when the node ends.
        let _ = shared.to_raft.send(input);
        if !outcome.beyond_quota.is_empty() {
            warn!("the store is beyond its quota; raising the NOSPACE alarm");
            let _ = self.chores.send(Chore::RaiseNoSpace(outcome.beyond_quota));
        }
        if let Some(hash) = outcome.compaction_hash {
            let _ = self.chores.send(Chore::Hash(hash));
        }
        if outcome.removed_self {
            let _ = self.chores.send(Chore::Removed);
        }
    }

    fn compact(&mut self) -> Result<(), state::Fatal> {
        let began = Instant::now();
        let since = *self.compacting.get_or_insert(began);
        let progress = self.machine.compaction_step()?;
        self.shared.publish(self.machine.published());
        let finished = matches!(progress, CompactionProgress::Finished(_));
        let total = finished.then(|| since.elapsed());
        let counters = &self.shared.counters;
        counters.compacted(began.elapsed(), total);
        let rows = self.machine.compacted_rows();
        counters.compacted_rows.store(rows, Ordering::Relaxed);
        if let CompactionProgress::Finished(revision) = progress {
            self.compacting = None;
            info!(
                "compact-revision" = revision,
                "finished scheduled compaction"
            );
            // Behind its hash, if it has one: chores are done in order.
            let _ = self.chores.send(Chore::Compacted(revision));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), state::Fatal> {
        let engine = self.machine.engine();
        if self.log_bytes >= self.flush_at || engine.unflushed_bytes() >= FLUSH_AT_BYTES {
            self.log_bytes = 0;
            self.flush_all(false)?;
        }
        Ok(())
    }

    fn flush_all(&self, wait: bool) -> Result<(), state::Fatal> {
        let began = Instant::now();
        self.machine.engine().flush_all(wait)?;
        if wait {
            // One that is not waited for goes on beside.
            self.shared.counters.committed(began.elapsed());
        }
        Ok(())
    }

    /// By now the log says that this snapshot stands for all before it. A crash within leaves the
    /// old engine in use, and the next start does this again.
    fn install(&mut self, snapshot: &SnapshotMetadata) -> Result<(), state::Fatal> {
        let index = snapshot.index.unwrap_or_default();
        let applied = Applied {
            index,
            term: snapshot.term.unwrap_or_default(),
        };
        let before = self.machine.published();
        if index <= before.applied.index {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let began = Instant::now();
        info!(index, "applying snapshot");
        let installing = &shared.counters.snapshots.installing;
        installing.store(1, Ordering::Relaxed);
        let file = shared.snapshots.database(index);
        failpoint::APPLY_BEFORE_OPEN_SNAPSHOT.hit();
        let engine = self.engines.import(&file, Some(applied));
        failpoint::APPLY_AFTER_OPEN_SNAPSHOT.hit();
        let engine = engine.map_err(|error| state::Fatal::Store(format!("{error:#}")))?;
        let engine = Arc::new(engine);
        let replaced = self.machine.replace(Arc::clone(&engine), shared.now())?;
        let published = replaced.published;
        let revision = published.view.revision();
        installing.store(0, Ordering::Relaxed);
        info!(index, revision, took = ?began.elapsed(), "applied snapshot");
        self.log_bytes = 0;
        self.compacting = None;
        shared.engine.store(engine);
        shared.publish(Arc::clone(&published));
        shared.watches.replaced(revision);
        shared.set_applied(index);
        for change in &replaced.members {
            peers::follow(&shared, change);
        }
        let _ = shared.to_raft.send(RaftInput::Applied {
            index,
            changes: Vec::new(),
        });
        let finished = published.view.compact_revision();
        if !self.machine.compaction_pending() {
            let _ = self.chores.send(Chore::Compacted(finished));
        }
        if replaced.removed_self {
            let _ = self.chores.send(Chore::Removed);
        }
        if let Err(error) = shared.snapshots.sweep(index) {
            warn!(%error, "could not remove snapshots that were installed");
        }
        Ok(())
    }

    fn defragmented(&mut self, done: oneshot::Sender<()>) -> Result<(), state::Fatal> {
        self.machine.defragmented()?;
        self.shared.publish(self.machine.published());
        let _ = done.send(());
        Ok(())
    }
}

/// Says in etcd's words that entries took long: of those applied at once the longest, for most
/// likely it was that one.
fn tell_slow(entries: &[Entry], took: Duration, expected: Duration) {
    let data = entries.iter().filter_map(|entry| entry.data.as_ref());
    let longest = data.max_by_key(|data| data.len()).cloned();
    let request = longest.and_then(|data| InternalRaftRequest::decode(data).ok());
    // raft's own entries and changes of the members have none.
    let Some(request) = request.filter(|request| request.header.is_some()) else {
        return;
    };
    warn!(
        ?took,
        "expected-duration" = ?expected,
        prefix = "",
        request = %Text(&request),
        entries = entries.len(),
        "apply request took too long"
    );
}
