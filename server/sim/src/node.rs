//! One member: its disk, what runs on it, and what its threads have still to do.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use consensus::{Append, Boot, Config, Driver, Output, ReadReady};
use mvcc::{Engine, MemEngine};
use prost::Message as _;
use proto::raftpb::{ConfChange, Entry, EntryType, HardState, Message, SnapshotMetadata};
use state::{BucketRow, BucketSink, BucketSource, Error, Machine, Member, Options, Reply, members};
use wal::{MemVfs, Metadata, SnapshotMark, Wal};

/// Small, so that the log is cut often, and shortened.
const SEGMENT_BYTES: u64 = 4 << 10;
/// Entries that are kept for members that lag a little.
const CATCH_UP: u64 = 10;
const LOG: &str = "/wal";

/// What survives a crash, as far as it does.
pub(crate) struct Disk {
    pub files: Arc<MemVfs>,
    pub engine: Arc<MemEngine>,
    /// The databases of snapshots that came, which were synced before raft heard of them.
    pub received: BTreeMap<u64, Arc<Buckets>>,
}

/// A whole state, as etcd's database has it.
#[derive(Debug, Default)]
pub(crate) struct Buckets(Vec<(String, Vec<(Bytes, Bytes)>)>);

impl BucketSink for Buckets {
    type Error = Infallible;

    fn bucket(&mut self, name: &str) -> Result<(), Infallible> {
        self.0.push((name.to_owned(), Vec::new()));
        Ok(())
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        let row = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.0.last_mut().unwrap().1.push(row);
        Ok(())
    }
}

impl BucketSource for Buckets {
    type Error = Infallible;

    fn buckets(&self) -> Result<Vec<Vec<u8>>, Infallible> {
        let names = self.0.iter().map(|(name, _)| name.as_bytes().to_vec());
        Ok(names.collect())
    }

    fn rows(
        &self,
        bucket: &[u8],
    ) -> Result<impl Iterator<Item = BucketRow<Infallible>>, Infallible> {
        let of = self
            .0
            .iter()
            .filter(move |(name, _)| name.as_bytes() == bucket);
        Ok(of.flat_map(|(_, rows)| rows.iter().cloned().map(Ok)))
    }
}

/// What waits for apply.
pub(crate) enum ToApply {
    Entries(Vec<Entry>),
    Install(SnapshotMetadata),
}

/// A running member.
pub(crate) struct Node {
    pub id: u64,
    pub disk: Disk,
    pub driver: Driver,
    pub machine: Machine<MemEngine>,
    wal: Wal<MemVfs>,
    /// Writes of the log that wait for the disk.
    pub appends: VecDeque<Append>,
    /// Committed entries that wait for apply.
    pub to_apply: VecDeque<ToApply>,
    /// States that this member sends, by their index.
    pub sends: BTreeMap<u64, Arc<Buckets>>,
    /// Snapshots that took the place of its state.
    pub installed: usize,
    /// Reads that wait for their index.
    pub reads: Vec<ReadReady>,
    /// Ticks that the oldest write has waited.
    pub age: usize,
    /// Whether the disk does nothing.
    pub hangs: bool,
    /// Whether the disk says that it has synced and has not: the control that must fail.
    pub forgets: bool,
}

/// What applying did.
pub(crate) struct Applied {
    pub entries: Vec<Entry>,
    pub replies: Vec<(u64, Result<Reply, Error>)>,
}

impl Disk {
    /// Of a founding member: the log begins with all founding members, as the server makes it.
    pub fn found(id: u64, members: &[Member]) -> Self {
        let files = Arc::new(MemVfs::new());
        let metadata = Metadata {
            node_id: id,
            cluster_id: 1,
        };
        let mut wal =
            Wal::create(Arc::clone(&files), Path::new(LOG), metadata, wal_options()).unwrap();
        let changes = members::found(members);
        let hard_state = HardState {
            term: Some(1),
            vote: Some(0),
            commit: Some(changes.len() as u64),
        };
        let entries = changes.iter().zip(1..).map(|(change, index)| Entry {
            r#type: Some(EntryType::EntryConfChange as i32),
            term: Some(1),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        });
        let entries: Vec<Entry> = entries.collect();
        wal.append(&entries, Some(&hard_state), true).unwrap();
        Self {
            files,
            engine: Arc::default(),
            received: BTreeMap::new(),
        }
    }

    /// What a crash leaves: synced writes, and by chance some others.
    pub fn crash(&self, chance: u64) -> Self {
        Self {
            files: Arc::new(self.files.crash(chance)),
            engine: Arc::new(self.engine.crash(chance as usize % 7)),
            received: self.received.clone(),
        }
    }
}

fn wal_options() -> wal::Options {
    wal::Options {
        segment_bytes: SEGMENT_BYTES,
        prepare_ahead: false,
    }
}

impl Node {
    /// Starts on a disk, as the server does.
    pub fn start(id: u64, mut disk: Disk, seed: u64) -> Self {
        let open = |at_most| {
            Wal::open(
                Arc::clone(&disk.files),
                Path::new(LOG),
                at_most,
                wal_options(),
            )
            .unwrap()
        };
        let (mut wal, mut recovered) = open(u64::MAX);
        let persisted = state::persisted(&*disk.engine).unwrap();
        let applied = persisted.map_or(0, |state| state.applied.index);
        let start = recovered.start.mark.index;
        if start > applied {
            match disk.received.get(&start) {
                Some(state) => disk.engine = filled(state),
                None => {
                    drop(wal);
                    (wal, recovered) = open(applied);
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
        let boot = Boot {
            hard_state: recovered.hard_state,
            conf_state: machine.conf_state(),
            applied,
            entries: recovered.entries,
            first_index,
            last_index,
            last_term: reader.term(last_index).unwrap_or_default(),
            terms: terms.unwrap(),
        };
        let mut config = Config::new(id);
        config.seed = seed;
        Self {
            id,
            driver: Driver::new(config, boot).unwrap(),
            machine,
            wal,
            disk,
            appends: VecDeque::new(),
            to_apply: VecDeque::new(),
            sends: BTreeMap::new(),
            installed: 0,
            reads: Vec::new(),
            age: 0,
            hangs: false,
            forgets: false,
        }
    }

    /// Takes one output of raft, as the raft thread does. Returns what is to be sent.
    pub fn poll(&mut self) -> Option<Vec<Message>> {
        let Output {
            send,
            append,
            apply,
            reads,
            fetch,
            install,
            needs_snapshot,
            ..
        } = self.driver.poll()?;
        self.appends.extend(append);
        if let Some(snapshot) = install {
            self.to_apply.push_back(ToApply::Install(snapshot));
        }
        if !apply.is_empty() {
            self.to_apply.push_back(ToApply::Entries(apply));
        }
        for peer in needs_snapshot {
            self.offer(peer);
        }
        self.reads.extend(reads);
        if let Some(request) = fetch {
            let reader = self.wal.reader();
            let max_bytes = usize::try_from(request.max_bytes).unwrap();
            let entries = reader.read(request.lo, request.hi, max_bytes).unwrap();
            self.driver.fetched(request, entries).unwrap();
        }
        Some(send)
    }

    /// Does the oldest write of the log. Returns what may be sent after it.
    pub fn write(&mut self) -> Vec<Message> {
        if self.hangs {
            return Vec::new();
        }
        let Some(append) = self.appends.pop_front() else {
            return Vec::new();
        };
        let state = append.hard_state.as_ref();
        if let Some(snapshot) = &append.snapshot {
            let mark = SnapshotMark {
                index: snapshot.index(),
                term: snapshot.term(),
            };
            let members = snapshot.conf_state.clone().unwrap();
            self.wal.restart_at(mark, members, state.unwrap()).unwrap();
        }
        self.wal
            .append(&append.entries, state, append.must_sync && !self.forgets)
            .unwrap();
        self.age = 0;
        self.driver.persisted(append.number);
        append.then_send
    }

    /// Applies the oldest committed entries, as the apply thread does.
    pub fn apply(&mut self, now: Duration) -> Option<Applied> {
        let entries = match self.to_apply.pop_front()? {
            ToApply::Entries(entries) => entries,
            ToApply::Install(snapshot) => {
                self.install(&snapshot, now);
                Vec::new()
            }
        };
        let outcome = self.machine.apply(&entries, now, &|_| true).unwrap();
        if !outcome.conf_changes.is_empty() {
            self.disk.engine.flush_all(true).unwrap();
        }
        for change in outcome.conf_changes {
            if let Some(change) = change.change {
                self.apply_conf_change(&change);
            }
        }
        self.driver.applied(outcome.published.applied.index);
        Some(Applied {
            entries,
            replies: outcome.replies,
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
    fn install(&mut self, snapshot: &SnapshotMetadata, now: Duration) {
        let engine = filled(&self.disk.received[&snapshot.index()]);
        self.disk.engine = Arc::clone(&engine);
        let replaced = self.machine.replace(engine, now).unwrap();
        assert_eq!(replaced.published.applied.index, snapshot.index());
        self.installed += 1;
    }

    /// Shortens the log, as the server does.
    pub fn truncate(&mut self) {
        let Some(persisted) = state::persisted(&*self.disk.engine).unwrap() else {
            return;
        };
        let applied = persisted.applied;
        if applied.index <= self.wal.first_index() {
            return;
        }
        let mark = SnapshotMark {
            index: applied.index,
            term: applied.term,
        };
        self.wal
            .save_snapshot_mark(mark, persisted.conf_state)
            .unwrap();
        let keep = applied
            .index
            .min(self.wal.last_index().saturating_sub(CATCH_UP));
        self.wal.release(keep).unwrap();
        self.driver.compacted(self.wal.first_index());
    }

    fn apply_conf_change(&mut self, change: &ConfChange) {
        let conf_state = self.driver.apply_conf_change(change).unwrap();
        let mut voters = conf_state.voters;
        voters.sort_unstable();
        let known = self.machine.conf_state().voters;
        // Of several changes in one batch the machine knows the last already.
        assert!(voters.iter().all(|voter| known.contains(voter)));
    }

    /// Ticks the clock of elections.
    pub fn tick(&mut self) {
        self.age = match self.appends.is_empty() {
            true => 0,
            false => self.age + 1,
        };
        self.driver.tick(self.age);
    }
}

/// An engine with a state, durable.
fn filled(state: &Buckets) -> Arc<MemEngine> {
    let engine = MemEngine::default();
    state::import(&engine, state).unwrap();
    Arc::new(engine)
}
