//! One member: what runs on its disk, and what its threads have still to do. Each method is one
//! step of one of the server's threads; a crash may come between any two, and within most.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use consensus::{Append, Boot, Config, Driver, FetchRequest, Output, ReadReady, Role};
use mvcc::{CompactionProgress, Engine, Family, KeyValueHash, MemEngine, RevisionEvents};
use prost::Message as _;
use proto::{
    etcdserverpb::{InternalRaftRequest, LeaseRevokeRequest, RequestHeader},
    membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest},
    raftpb::{ConfChange, Entry, Message, SnapshotMetadata},
};
use state::{Error, Lessor, Machine, MemberChange, Options, REVOKES_PER_SCAN, Reply, Version};
use wal::{MemVfs, SnapshotMark, Wal};
use watch::Hub;

use crate::disk::{Buckets, Disk, LOG, filled, wal_options};

/// Entries that are kept for members that lag a little.
const CATCH_UP: u64 = 10;
/// Bytes of entries that stay in memory, that go in one message, and that are applied at once.
const CACHE_BYTES: usize = 1 << 10;
/// Messages to a follower that are not answered.
const MAX_INFLIGHT: usize = 16;
/// The raft clock, as etcd's.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Added to leases when the leader changes, as the server adds its election timeout.
const ELECTION: Duration = Duration::from_secs(1);
/// A proposal that raft did not take for so long is given up.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
/// A read that has had no answer for so long is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Bytes of events that wait for a watcher before it reads history: a few.
const STREAM_BYTES: usize = 600;
/// Above this a response is cut for watchers that take fragments.
const FRAGMENT_BYTES: usize = 200;
/// A longer time between two looks at the leases is a pause.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at the leases.
pub(crate) const LEASE_SCAN: Duration = Duration::from_millis(500);
/// The engines of members are compared at entries that are multiples of this.
pub(crate) const COMPARE_EVERY: u64 = 32;

/// Why a member ends.
#[derive(Debug)]
pub(crate) enum Died {
    /// Its fuse burned down.
    Fuse,
    /// Its log could not be written.
    Disk(String),
}

/// Who waits for a request's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// An operation of a client.
    Client(usize),
    /// The member itself, to be known in the cluster.
    Itself,
    /// Whoever looks after the members.
    Keeper,
}

/// A round of linearizable reads.
struct Round {
    asked: Duration,
    readers: Vec<usize>,
}

/// What waits for apply.
pub(crate) enum ToApply {
    Entries(Vec<Entry>),
    Install(SnapshotMetadata),
}

/// What applying did.
#[derive(Default)]
pub(crate) struct Applied {
    pub entries: Vec<Entry>,
    pub events: Vec<RevisionEvents>,
    pub replies: Vec<(Waits, Result<Reply, Error>)>,
    pub members: Vec<MemberChange>,
    /// Of a compaction.
    pub hash: Option<KeyValueHash>,
    pub removed_self: bool,
}

/// What leaves a member.
#[derive(Default)]
pub(crate) struct Out {
    pub send: Vec<Message>,
    /// Senders of snapshots, and whether these were taken.
    pub taken: Vec<(u64, bool)>,
    /// Reads that can be answered.
    pub reads: Vec<usize>,
}

/// A running member.
pub(crate) struct Node {
    pub id: u64,
    /// Which of its lives this is; counts over all members.
    pub life: u64,
    pub disk: Disk,
    pub driver: Driver,
    pub machine: Machine<MemEngine>,
    pub hub: Hub,
    pub wal: Wal<MemVfs>,
    /// Writes of the log that wait for the disk, and since when.
    pub appends: VecDeque<(Append, Duration)>,
    /// The last entry up to which the log is durable.
    pub synced: u64,
    pub fetches: VecDeque<FetchRequest>,
    pub to_apply: VecDeque<ToApply>,
    /// What is applied and was not told of yet. A crash right after it may keep it: then nobody else
    /// may ever apply these entries one by one.
    pub untold: Option<(Vec<Entry>, Vec<RevisionEvents>)>,
    /// States that this member sends, by their index.
    pub sends: BTreeMap<u64, Arc<Buckets>>,
    /// Families that the defragmentation under way has yet to write anew.
    pub fragmented: VecDeque<Family>,
    /// Snapshots that took the place of its state.
    pub installed: usize,
    /// Whether clients are let in: it is known in the cluster.
    pub serving: bool,
    /// Whether a disk that fails is no surprise.
    pub disk_may_fail: bool,
    /// Whether the disk says that it has synced and has not: the control that must fail.
    pub forgets: bool,
    /// Steps that it still takes before it dies.
    pub fuse: Option<u32>,
    /// Requests under way, by their IDs.
    asked: BTreeMap<u64, Waits>,
    held: VecDeque<(u64, Bytes, Duration)>,
    held_changes: VecDeque<(ConfChange, Duration)>,
    readers: Vec<usize>,
    rounds: BTreeMap<u64, Round>,
    ready: Vec<(ReadReady, Vec<usize>)>,
    /// Who sent a snapshot that is on its way to the log, and the write that it is part of.
    pub received: Option<(u64, Option<u64>)>,
    leads: bool,
    /// Whether it has won an election, and nobody has asked yet.
    pub elected: bool,
    scanned: Duration,
    next_id: u64,
}

impl Node {
    /// Starts on a disk, as the server does.
    ///
    /// # Errors
    /// The log is damaged.
    pub fn start(id: u64, life: u64, mut disk: Disk, seed: u64) -> Result<Self, wal::Error> {
        let files = Arc::clone(&disk.files);
        let open = |at_most| Wal::open(Arc::clone(&files), Path::new(LOG), at_most, wal_options());
        let (mut wal, mut recovered) = open(u64::MAX)?;
        let persisted = state::persisted(&*disk.engine).unwrap();
        let applied = persisted.map_or(0, |state| state.applied.index);
        let start = recovered.start.mark.index;
        if start > applied {
            match disk.received.get(&start) {
                Some(state) => disk.engine = filled(state),
                None => {
                    drop(wal);
                    (wal, recovered) = open(applied)?;
                }
            }
        }
        let options = Options {
            member_id: id,
            quota_bytes: -1,
            max_learners: 1,
            min_lease_ttl: 2,
        };
        let machine = Machine::open(Arc::clone(&disk.engine), options).unwrap();
        let applied = machine.published().applied.index;
        let (first_index, last_index) = (wal.first_index(), wal.last_index());
        assert!(applied <= last_index, "the engine is ahead of the log");
        let reader = wal.reader();
        let known = first_index.saturating_sub(1).max(1);
        let terms = consensus::term_runs(known, last_index, |index| reader.term(index));
        let last_term = reader.term(last_index).unwrap_or_default();
        let mut hard_state = recovered.hard_state;
        if hard_state.term() < last_term {
            // As the server: a cut kept the entries of a write and not its state.
            (hard_state.term, hard_state.vote) = (Some(last_term), Some(0));
        }
        let boot = Boot {
            hard_state,
            conf_state: machine.conf_state(),
            applied,
            entries: recovered.entries,
            first_index,
            last_index,
            last_term,
            terms: terms.unwrap(),
        };
        let config = Config {
            seed,
            // Small, so that entries leave memory, and outputs are cut, within a minute.
            cache_bytes: CACHE_BYTES,
            max_size_per_msg: CACHE_BYTES as u64,
            max_committed_bytes_per_output: CACHE_BYTES as u64,
            max_inflight: MAX_INFLIGHT,
            ..Config::new(id)
        };
        let mut hub = Hub::new(machine.published().view.revision(), FRAGMENT_BYTES);
        hub.limit_streams(STREAM_BYTES);
        Ok(Self {
            id,
            life,
            driver: Driver::new(config, boot).unwrap(),
            machine,
            hub,
            synced: wal.last_index(),
            wal,
            disk,
            appends: VecDeque::new(),
            fetches: VecDeque::new(),
            to_apply: VecDeque::new(),
            untold: None,
            sends: BTreeMap::new(),
            fragmented: VecDeque::new(),
            installed: 0,
            serving: false,
            disk_may_fail: false,
            forgets: false,
            fuse: None,
            asked: BTreeMap::new(),
            held: VecDeque::new(),
            held_changes: VecDeque::new(),
            readers: Vec::new(),
            rounds: BTreeMap::new(),
            ready: Vec::new(),
            received: None,
            leads: false,
            elected: false,
            scanned: Duration::ZERO,
            next_id: life << 32,
        })
    }

    /// A place where a crash may come.
    fn boundary(&mut self) -> Result<(), Died> {
        match &mut self.fuse {
            Some(0) => Err(Died::Fuse),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Takes a request that goes into the log.
    pub fn propose(&mut self, mut request: InternalRaftRequest, waits: Waits, now: Duration) {
        let id = self.next_id();
        request.header = Some(RequestHeader {
            id,
            ..RequestHeader::default()
        });
        self.asked.insert(id, waits);
        let data = request.encode_to_vec().into();
        self.held.push_back((id, data, now + PROPOSAL_LIMIT));
    }

    /// Tells the cluster of this member; it serves once that is applied.
    pub fn publish(&mut self, now: Duration) {
        if self.serving || self.asked.values().any(|waits| *waits == Waits::Itself) {
            return;
        }
        let request = InternalRaftRequest {
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: self.id,
                member_attributes: Some(Attributes {
                    name: format!("m{}", self.id),
                    client_urls: vec![format!("http://m{}:2379", self.id)],
                }),
            }),
            ..InternalRaftRequest::default()
        };
        self.propose(request, Waits::Itself, now);
    }

    /// Takes a version that the cluster may have from now on.
    pub fn raise_version(&mut self, version: Version, now: Duration) {
        let request = InternalRaftRequest {
            cluster_version_set: Some(ClusterVersionSetRequest {
                ver: version.to_string(),
            }),
            ..InternalRaftRequest::default()
        };
        self.propose(request, Waits::Keeper, now);
    }

    /// Takes a change of the members, made with an ID of this member's.
    pub fn configure(&mut self, change: impl FnOnce(u64) -> ConfChange, now: Duration) {
        let id = self.next_id();
        self.asked.insert(id, Waits::Keeper);
        self.held_changes
            .push_back((change(id), now + PROPOSAL_LIMIT));
    }

    /// Takes a linearizable read.
    pub fn read(&mut self, operation: usize) {
        self.readers.push(operation);
    }

    /// One round of the raft thread: hands raft what waits, and takes what comes out.
    pub fn round(&mut self, now: Duration) -> Result<Out, Died> {
        self.hand_over(now);
        let mut out = Out::default();
        while let Some(output) = self.driver.poll() {
            self.boundary()?;
            self.take(output, now, &mut out);
        }
        // Raft had no use for a snapshot that is not on its way to the log.
        if let Some((from, _)) = self.received.take_if(|(_, number)| number.is_none()) {
            out.taken.push((from, true));
        }
        out.reads = self.due();
        Ok(out)
    }

    fn hand_over(&mut self, now: Duration) {
        let asked = &mut self.asked;
        self.held.retain(|(id, _, deadline)| {
            let waits = *deadline > now;
            if !waits {
                asked.remove(id);
            }
            waits
        });
        self.held_changes.retain(|(_, deadline)| *deadline > now);
        if !self.held.is_empty() {
            let entries = self.held.iter().map(|(_, data, _)| data.clone());
            if self.driver.propose(entries.collect()).is_ok() {
                self.held.clear();
            }
        }
        while let Some((change, _)) = self.held_changes.front()
            && self.driver.propose_conf_change(change).is_ok()
        {
            self.held_changes.pop_front();
        }
        if !self.readers.is_empty() {
            let readers = std::mem::take(&mut self.readers);
            let ctx = self.next_id();
            let _ = self.driver.read_index(ctx);
            let asked = now;
            self.rounds.insert(ctx, Round { asked, readers });
        }
    }

    fn take(&mut self, output: Output, now: Duration, out: &mut Out) {
        if let Some(soft) = output.soft {
            if self.leads && soft.role != Role::Leader {
                self.with_leases(Lessor::demote);
            }
            self.elected |= !self.leads && soft.role == Role::Leader;
            self.leads = soft.role == Role::Leader;
        }
        out.send.extend(output.send);
        if let Some(append) = output.append {
            if append.snapshot.is_some()
                && let Some((_, number)) = &mut self.received
            {
                *number = Some(append.number);
            }
            self.appends.push_back((append, now));
        }
        if let Some(snapshot) = output.install {
            self.to_apply.push_back(ToApply::Install(snapshot));
        }
        if !output.apply.is_empty() {
            self.to_apply.push_back(ToApply::Entries(output.apply));
        }
        for read in output.reads {
            if let Some(round) = self.rounds.remove(&read.ctx) {
                self.ready.push((read, round.readers));
            }
        }
        self.fetches.extend(output.fetch);
        for peer in output.needs_snapshot {
            self.offer(peer);
        }
    }

    /// Reads whose index is applied.
    fn due(&mut self) -> Vec<usize> {
        let applied = self.machine.published().applied.index;
        let ready = self.ready.extract_if(.., |(read, _)| read.index <= applied);
        ready.flat_map(|(_, readers)| readers).collect()
    }

    /// Takes a message of another member. `state` comes with a snapshot.
    pub fn step(&mut self, message: Message, state: Option<Arc<Buckets>>, out: &mut Out) {
        let from = message.from();
        let admitted = state::validate::admit_message(&message);
        assert!(admitted.is_ok(), "{admitted:?}");
        let is_snapshot = state.is_some();
        if let Some(state) = state {
            let index = message.snapshot.as_ref().unwrap().metadata.as_ref();
            self.disk.received.insert(index.unwrap().index(), state);
        }
        match self.driver.step(message) {
            Ok(()) if is_snapshot => {
                // An earlier one that nobody told of is overtaken.
                let overtaken = self.received.replace((from, None));
                out.taken.extend(overtaken.map(|(from, _)| (from, false)));
            }
            Ok(()) => {}
            Err(error) => {
                assert!(!error.is_fatal(), "member {}: {error}", self.id);
                if is_snapshot {
                    out.taken.push((from, false));
                }
            }
        }
    }

    /// One round of the log thread: writes what waits, up to `gather` writes, with one sync.
    pub fn write(&mut self, gather: usize) -> Result<Out, Died> {
        let count = self.appends.len().min(gather);
        let appends: Vec<Append> = self.appends.drain(..count).map(|(one, _)| one).collect();
        let sync = appends.iter().any(|append| append.must_sync) && !self.forgets;
        let mut out = Out::default();
        let mut written = None;
        for (at, append) in appends.into_iter().enumerate() {
            self.boundary()?;
            self.write_one(&append, sync && at + 1 == count)
                .map_err(disk)?;
            out.send.extend(append.then_send);
            written = Some(append.number);
        }
        if let Some(number) = written {
            self.driver.persisted(number);
        }
        self.boundary()?;
        // Only now: of a member that dies above, the sender of a snapshot hears as its connection
        // ends, so `received` has to be there still.
        let due = |(_, at): &mut (u64, Option<u64>)| at.is_some_and(|at| Some(at) <= written);
        if let Some((from, _)) = self.received.take_if(due) {
            out.taken.push((from, true));
        }
        Ok(out)
    }

    fn write_one(&mut self, append: &Append, sync: bool) -> Result<(), wal::Error> {
        let state = append.hard_state.as_ref();
        if let Some(snapshot) = &append.snapshot {
            let mark = SnapshotMark {
                index: snapshot.index(),
                term: snapshot.term(),
            };
            let members = snapshot.conf_state.clone().unwrap();
            self.wal.restart_at(mark, members, state.unwrap())?;
            self.synced = mark.index;
        }
        let first = append
            .entries
            .first()
            .map_or(u64::MAX, |entry| entry.index());
        self.synced = self.synced.min(first.saturating_sub(1));
        self.wal.append(&append.entries, state, false)?;
        if sync {
            self.wal.append(&[], None, true)?;
            self.synced = self.wal.last_index();
        }
        Ok(())
    }

    /// Reads entries that have left memory.
    pub fn fetch(&mut self) {
        while let Some(request) = self.fetches.pop_front() {
            let max_bytes = usize::try_from(request.max_bytes).unwrap();
            let entries = self.wal.reader().read(request.lo, request.hi, max_bytes);
            let fetched = self.driver.fetched(request, entries.unwrap());
            assert!(fetched.is_ok(), "{fetched:?}");
        }
    }

    /// Applies the oldest committed entries, up to `gather` outputs' at once, as the apply thread
    /// does.
    pub fn apply(&mut self, gather: usize, now: Duration) -> Result<Applied, Died> {
        self.boundary()?;
        match self.to_apply.pop_front() {
            None => Ok(Applied::default()),
            Some(ToApply::Install(snapshot)) => {
                let members = self.install(&snapshot, now);
                Ok(Applied {
                    removed_self: self.is_removed(),
                    members,
                    ..Applied::default()
                })
            }
            Some(ToApply::Entries(mut entries)) => {
                for _ in 1..gather {
                    match self.to_apply.pop_front() {
                        Some(ToApply::Entries(more)) => entries.extend(more),
                        Some(other) => {
                            self.to_apply.push_front(other);
                            break;
                        }
                        None => break,
                    }
                }
                // Batches end where members are compared.
                let stop = entries
                    .iter()
                    .position(|entry| entry.index() % COMPARE_EVERY == 0)
                    .map_or(entries.len(), |at| at + 1);
                let rest = entries.split_off(stop);
                if !rest.is_empty() {
                    self.to_apply.push_front(ToApply::Entries(rest));
                }
                self.apply_entries(entries, now)
            }
        }
    }

    fn is_removed(&self) -> bool {
        self.machine.published().members.is_removed(self.id)
    }

    fn apply_entries(&mut self, entries: Vec<Entry>, now: Duration) -> Result<Applied, Died> {
        let asked = &self.asked;
        let outcome = self
            .machine
            .apply(&entries, now, &|id| asked.contains_key(&id))
            .unwrap();
        self.untold = Some((entries.clone(), outcome.events.clone()));
        self.boundary()?;
        if !outcome.conf_changes.is_empty() {
            self.disk.engine.flush_all(true).unwrap();
            self.boundary()?;
        }
        self.untold = None;
        let applied = outcome.published.applied;
        let revision = outcome.published.view.revision();
        self.hub.publish(&outcome.events, revision);
        if outcome.term_began && self.leads && applied.term == self.driver.status().term {
            self.with_leases(|leases| leases.promote(now, ELECTION));
        }
        let hash = outcome.compaction_hash.map(|hash| hash.compute().unwrap());
        let mut members = Vec::new();
        for change in outcome.conf_changes {
            if let Some(change) = change.change {
                self.apply_conf_change(&change);
            }
            members.extend(change.member);
        }
        self.driver.applied(applied.index);
        let replies = outcome.replies.into_iter();
        let replies = replies.filter_map(|(id, reply)| Some((self.asked.remove(&id)?, reply)));
        let replies: Vec<_> = replies.collect();
        if replies.iter().any(|(waits, _)| *waits == Waits::Itself) {
            self.serving = true;
        }
        Ok(Applied {
            entries,
            events: outcome.events,
            replies,
            members,
            hash,
            removed_self: outcome.removed_self,
        })
    }

    /// Offers the state of now to a member that is behind the log.
    fn offer(&mut self, peer: u64) {
        let published = self.machine.published();
        let mut state = Buckets::default();
        state::export(published.view.snapshot(), &mut state).unwrap();
        let snapshot = state::raft_snapshot(&published);
        if self.driver.offer_snapshot(peer, snapshot).is_ok() {
            self.sends.insert(published.applied.index, Arc::new(state));
        }
    }

    /// Another member's state takes the place of this one's.
    fn install(&mut self, snapshot: &SnapshotMetadata, now: Duration) -> Vec<MemberChange> {
        let index = snapshot.index();
        if index <= self.machine.published().applied.index {
            return Vec::new();
        }
        let engine = filled(&self.disk.received[&index]);
        self.disk.engine = Arc::clone(&engine);
        let replaced = self.machine.replace(engine, now).unwrap();
        assert_eq!(replaced.published.applied.index, index);
        self.hub.replaced(replaced.published.view.revision());
        self.driver.applied(index);
        self.disk.received.retain(|of, _| *of >= index);
        self.installed += 1;
        replaced.members
    }

    /// Shortens the log, as the server does.
    pub fn truncate(&mut self) -> Result<(), Died> {
        let Some(persisted) = state::persisted(&*self.disk.engine).unwrap() else {
            return Ok(());
        };
        let applied = persisted.applied;
        let keep = applied
            .index
            .min(self.wal.last_index().saturating_sub(CATCH_UP));
        let first = self.wal.first_index();
        if keep <= first || first > applied.index || !self.wal.is_releasable(keep) {
            return Ok(());
        }
        let mark = SnapshotMark {
            index: applied.index,
            term: applied.term,
        };
        let saved = self.wal.save_snapshot_mark(mark, persisted.conf_state);
        saved.map_err(disk)?;
        self.boundary()?;
        self.wal.release(keep).map_err(disk)?;
        self.boundary()?;
        self.driver.compacted(self.wal.first_index());
        Ok(())
    }

    /// Does one piece of compaction. Returns whether there was any.
    pub fn compact(&mut self) -> bool {
        let progress = self.machine.compaction_step().unwrap();
        progress != CompactionProgress::Idle
    }

    /// Begins to defragment the engine, beside all that goes on.
    pub fn begin_defragment(&mut self) {
        self.fragmented = Family::ALL.into();
    }

    /// Defragments one family, and accounts for it after the last.
    pub fn defragment(&mut self) {
        if let Some(family) = self.fragmented.pop_front() {
            self.disk.engine.rewrite(family).unwrap();
            if self.fragmented.is_empty() {
                self.machine.defragmented().unwrap();
            }
        }
    }

    /// Looks at the leases, and proposes the end of those that have ended.
    pub fn scan_leases(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.scanned);
        self.scanned = now;
        let ended = self.with_leases(|leases| {
            if !leases.is_primary() {
                return Vec::new();
            }
            if pause > PAUSE {
                leases.forgive(pause - LEASE_SCAN);
            }
            leases.expired(now, REVOKES_PER_SCAN)
        });
        for id in ended {
            let request = InternalRaftRequest {
                lease_revoke: Some(LeaseRevokeRequest { id }),
                ..InternalRaftRequest::default()
            };
            self.propose(request, Waits::Keeper, now);
        }
    }

    /// Does something with the leases.
    pub fn with_leases<T>(&self, act: impl FnOnce(&mut Lessor) -> T) -> T {
        act(&mut self.machine.lessor().lock().unwrap())
    }

    fn apply_conf_change(&mut self, change: &ConfChange) {
        self.driver.apply_conf_change(change).unwrap();
    }

    /// Ticks the clock of elections, and asks again what was not answered.
    pub fn tick(&mut self, now: Duration) {
        let oldest = self
            .appends
            .front()
            .map(|(_, since)| now.saturating_sub(*since));
        let age = oldest.unwrap_or_default().as_nanos() / TICK.as_nanos();
        self.driver.tick(usize::try_from(age).unwrap());
        for (ctx, round) in &mut self.rounds {
            if now.saturating_sub(round.asked) >= ASK_AGAIN {
                round.asked = now;
                let _ = self.driver.read_index(*ctx);
            }
        }
    }
}

fn disk(error: wal::Error) -> Died {
    Died::Disk(error.to_string())
}
