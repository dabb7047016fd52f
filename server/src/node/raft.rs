//! The raft thread: the only one that touches the driver. Everything that waits is gathered into
//! one round, and each round's outputs go to the log, the peers and the apply thread.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus::{Append, Driver, FetchRequest, Output, Role, Status};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use proto::raftpb::{ConfChange, Entry, Message};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, info};
use wal::{OsVfs, Wal};

use super::{apply::ApplyInput, log, shared::Shared};

/// Inputs taken in one round, so that ticks and outputs are never far.
const INPUTS_PER_ROUND: usize = 4096;
/// A read that has had no answer for so long is asked again: the question or the answer was lost.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What the raft thread is told.
pub(crate) enum RaftInput {
    /// A request to be put into the log; given up when nobody waits any more.
    Propose {
        id: u64,
        data: Bytes,
        deadline: Instant,
    },
    /// A change of the members.
    ConfChange {
        change: ConfChange,
        deadline: Instant,
    },
    /// Asks for the index that a linearizable read waits for.
    Read(oneshot::Sender<u64>),
    /// A message from another member, with the room that it takes up until it is stepped.
    Step(Box<Message>, OwnedSemaphorePermit),
    /// A message to a member could not be sent.
    Unreachable(u64),
    /// A snapshot was received by a member, or was not.
    Snapshot(u64, bool),
    /// A snapshot of another member, whose database is durable; answered when raft has it durably
    /// or has no use for it.
    Received(Box<Message>, Taken),
    /// The log begins at this entry from now on.
    Compacted(u64),
    /// A write of the log is durable.
    Persisted(u64),
    /// Entries up to `index` are applied; conf changes among them in order, `None` for a refused
    /// one.
    Applied {
        index: u64,
        changes: Vec<Option<ConfChange>>,
    },
    /// The answer to a fetch.
    Fetched(FetchRequest, Vec<Entry>),
    /// Hand the lead to another member.
    Transfer(u64),
    /// Asks for raft's state.
    Status(oneshot::Sender<Status>),
    /// To end.
    Stop,
}

/// Tells whether a snapshot was taken, or why not.
pub(crate) type Taken = oneshot::Sender<Result<(), String>>;

/// Sends messages to other members; never blocks.
pub(crate) type Outbox = Arc<dyn Fn(Vec<Message>) + Send + Sync>;

/// A round of linearizable reads.
struct Round {
    asked: Instant,
    readers: Vec<oneshot::Sender<u64>>,
}

pub(crate) struct RaftThread {
    pub driver: Driver,
    pub wal: Arc<Mutex<Wal<OsVfs>>>,
    pub shared: Arc<Shared>,
    pub inputs: Receiver<RaftInput>,
    pub to_log: Sender<Append>,
    pub to_fetch: Sender<FetchRequest>,
    pub outbox: Outbox,
    pub held: Held,
}

/// What waits for raft to take it.
#[derive(Default)]
pub(crate) struct Held {
    proposals: VecDeque<(u64, Bytes, Instant)>,
    changes: VecDeque<(ConfChange, Instant)>,
    readers: Vec<oneshot::Sender<u64>>,
    rounds: HashMap<u64, Round>,
    /// Writes of the log that are under way, with when they began.
    appends: VecDeque<(u64, Instant)>,
    /// Who waits for a snapshot to be taken: since this round, or until a write is durable.
    received: Option<(Option<u64>, Taken)>,
    stop: bool,
}

impl RaftThread {
    /// Runs until it is told to stop, or the node cannot go on.
    pub fn run(mut self) {
        let tick = self.shared.settings.tick;
        let mut next_tick = Instant::now() + tick;
        while !self.held.stop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match self.inputs.recv_timeout(wait) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for _ in 0..INPUTS_PER_ROUND {
                match self.inputs.try_recv() {
                    Ok(input) => self.take(input),
                    Err(_) => break,
                }
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + tick;
                self.tick(tick);
            }
            self.propose();
            self.ask();
            self.poll();
        }
    }

    fn take(&mut self, input: RaftInput) {
        match input {
            RaftInput::Propose { id, data, deadline } => {
                self.held.proposals.push_back((id, data, deadline));
            }
            RaftInput::ConfChange { change, deadline } => {
                self.held.changes.push_back((change, deadline));
            }
            RaftInput::Read(reader) => self.held.readers.push(reader),
            RaftInput::Step(message, room) => {
                let stepped = self.driver.step(*message);
                drop(room);
                self.settle("take a message", stepped);
            }
            RaftInput::Unreachable(id) => self.driver.report_unreachable(id),
            RaftInput::Snapshot(id, ok) => self.driver.report_snapshot(id, ok),
            RaftInput::Received(message, taken) => {
                // An earlier one that nobody told of is overtaken.
                self.held.received = match self.driver.step(*message) {
                    Ok(()) => Some((None, taken)),
                    Err(error) => {
                        let _ = taken.send(Err(error.to_string()));
                        self.settle("take a snapshot", Err(error));
                        None
                    }
                };
            }
            RaftInput::Compacted(first) => self.driver.compacted(first),
            RaftInput::Persisted(number) => self.persisted(number),
            RaftInput::Applied { index, changes } => {
                for change in changes.into_iter().flatten() {
                    let applied = self.driver.apply_conf_change(&change).map(|_| ());
                    self.settle("change the members", applied);
                }
                self.driver.applied(index);
            }
            RaftInput::Fetched(request, entries) => {
                let fetched = self.driver.fetched(request, entries);
                self.settle("take entries from the log", fetched);
            }
            RaftInput::Transfer(to) => self.driver.transfer_leader(to),
            RaftInput::Status(asker) => {
                let _ = asker.send(self.driver.status());
            }
            RaftInput::Stop => self.held.stop = true,
        }
    }

    /// An error that only costs a message is logged; any other ends the node.
    fn settle(&self, action: &str, result: Result<(), consensus::Error>) {
        match result {
            Ok(()) => {}
            Err(error) if error.is_fatal() => self.shared.fatal(error),
            Err(error) => debug!(%error, "could not {action}"),
        }
    }

    fn tick(&mut self, tick: Duration) {
        let oldest = self.held.appends.front().map(|(_, began)| began.elapsed());
        let age = oldest.unwrap_or_default().as_nanos() / tick.as_nanos().max(1);
        self.driver.tick(usize::try_from(age).unwrap_or(usize::MAX));
        for (ctx, round) in &mut self.held.rounds {
            round.readers.retain(|reader| !reader.is_closed());
            if round.asked.elapsed() >= ASK_AGAIN {
                round.asked = Instant::now();
                // Removed members answer nobody; their readers time out.
                let _ = self.driver.read_index(*ctx);
            }
        }
        self.held
            .rounds
            .retain(|_, round| !round.readers.is_empty());
    }

    /// Hands raft all that waits, as one message. What it does not take now waits on.
    fn propose(&mut self) {
        let now = Instant::now();
        self.held
            .proposals
            .retain(|(_, _, deadline)| *deadline > now);
        self.held.changes.retain(|(_, deadline)| *deadline > now);
        if !self.held.proposals.is_empty() {
            let entries = self.held.proposals.iter().map(|(_, data, _)| data.clone());
            match self.driver.propose(entries.collect()) {
                Ok(()) => self.held.proposals.clear(),
                Err(error) if error.is_fatal() => self.shared.fatal(error),
                Err(error) => debug!(%error, "proposals wait"),
            }
        }
        while let Some((change, _)) = self.held.changes.front() {
            match self.driver.propose_conf_change(change) {
                Ok(()) => self.held.changes.pop_front(),
                Err(error) if error.is_fatal() => return self.shared.fatal(error),
                Err(error) => {
                    debug!(%error, "a membership change waits");
                    break;
                }
            };
        }
    }

    /// Sends one question for all readers that came since the last.
    fn ask(&mut self) {
        if self.held.readers.is_empty() {
            return;
        }
        let readers = std::mem::take(&mut self.held.readers);
        let ctx = self.shared.next_id();
        if let Err(error) = self.driver.read_index(ctx) {
            debug!(%error, "reads go unanswered");
        }
        let asked = Instant::now();
        self.held.rounds.insert(ctx, Round { asked, readers });
    }

    fn poll(&mut self) {
        while let Some(output) = self.driver.poll() {
            self.handle(output);
            failpoint::RAFT_BEFORE_ADVANCE.hit();
        }
        // Raft had no use for it, if it is not on its way to the log.
        self.tell_received(|durable_at| durable_at.is_none());
    }

    fn handle(&mut self, output: Output) {
        if let Some(soft) = output.soft {
            let led = self.shared.is_leader();
            self.shared.set_soft(soft);
            info!(leader = %format_args!("{:x}", soft.leader), term = soft.term,
                role = ?soft.role, "raft state changed");
            if led && soft.role != Role::Leader {
                // Nothing may end by the clock of a member that does not lead.
                super::lessor(&self.shared).demote();
            }
        }
        // Before the messages that tell others: who then asks this member waits for what they saw.
        let committed = &self.shared.raft.committed;
        committed.store(self.driver.commit(), Ordering::Release);
        if !output.send.is_empty() {
            if self.shared.is_leader() {
                failpoint::RAFT_BEFORE_LEADER_SEND.hit();
            }
            (self.outbox)(output.send);
        }
        if let Some(append) = output.append {
            if append.snapshot.is_some()
                && let Some((durable_at, _)) = &mut self.held.received
            {
                *durable_at = Some(append.number);
            }
            self.append(append);
        }
        if let Some(snapshot) = output.install {
            failpoint::RAFT_BEFORE_APPLY_SNAP.hit();
            self.send_to_apply(ApplyInput::Install(snapshot));
            failpoint::RAFT_AFTER_APPLY_SNAP.hit();
        }
        if !output.apply.is_empty() {
            self.send_to_apply(ApplyInput::Entries(output.apply));
        }
        for read in output.reads {
            if let Some(round) = self.held.rounds.remove(&read.ctx) {
                for reader in round.readers {
                    let _ = reader.send(read.index);
                }
            }
        }
        if let Some(request) = output.fetch
            && self.to_fetch.send(request).is_err()
        {
            self.held.stop = true;
        }
        for peer in output.needs_snapshot {
            let published = self.shared.published.load_full();
            if let Some(snapshot) = self.shared.snapshots.offer(peer, published) {
                let offered = self.driver.offer_snapshot(peer, snapshot);
                if offered.is_err() {
                    self.shared.snapshots.ended(peer);
                }
                self.settle("offer a snapshot", offered);
            }
        }
    }

    fn send_to_apply(&mut self, input: ApplyInput) {
        if self.shared.to_apply.send(input).is_err() {
            self.held.stop = true;
        }
    }

    /// Writes the log: here when nobody else has to wait for it, otherwise on the log thread.
    fn append(&mut self, append: Append) {
        let alone = append.then_send.is_empty() && self.held.appends.is_empty();
        if alone && self.is_only_voter() {
            let number = append.number;
            // Two wake-ups fewer: nothing else could be done meanwhile.
            match log::write(&self.wal, &self.shared, &append) {
                Ok(()) => self.persisted(number),
                Err(error) => self.shared.fatal(error),
            }
            return;
        }
        let entry = (append.number, Instant::now());
        self.held.appends.push_back(entry);
        if self.to_log.send(append).is_err() {
            self.held.stop = true;
        }
    }

    fn is_only_voter(&self) -> bool {
        let published = self.shared.published.load();
        let mut voters = published.members.voters();
        let first = voters.next().map(|member| member.id);
        first == Some(self.shared.settings.member_id)
            && voters.next().is_none()
            && published.members.len() == 1
    }

    fn persisted(&mut self, number: u64) {
        while self
            .held
            .appends
            .front()
            .is_some_and(|(oldest, _)| *oldest <= number)
        {
            self.held.appends.pop_front();
        }
        self.driver.persisted(number);
        self.tell_received(|durable_at| durable_at.is_some_and(|at| at <= number));
    }

    /// Tells who waits for a snapshot, if its time has come.
    fn tell_received(&mut self, is_time: impl FnOnce(Option<u64>) -> bool) {
        let waits = self.held.received.take_if(|(at, _)| is_time(*at));
        if let Some((_, taken)) = waits {
            let _ = taken.send(Ok(()));
        }
    }
}
