//! One member: its disk, what runs on it, and what its threads have still to do.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use consensus::{Append, Boot, Config, Driver, Output, ReadReady};
use mvcc::{Engine, MemEngine};
use prost::Message as _;
use proto::raftpb::{ConfChange, Entry, EntryType, HardState, Message};
use state::{Error, Machine, Member, Options, Reply, members};
use wal::{MemVfs, Metadata, Wal};

/// Small, so that the log is cut often.
const SEGMENT_BYTES: u64 = 16 << 10;
const LOG: &str = "/wal";

/// What survives a crash, as far as it does.
pub(crate) struct Disk {
    pub files: Arc<MemVfs>,
    pub engine: Arc<MemEngine>,
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
    pub to_apply: VecDeque<Vec<Entry>>,
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
        }
    }

    /// What a crash leaves: synced writes, and by chance some others.
    pub fn crash(&self, chance: u64) -> Self {
        Self {
            files: Arc::new(self.files.crash(chance)),
            engine: Arc::new(self.engine.crash(chance as usize % 7)),
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
    pub fn start(id: u64, disk: Disk, seed: u64) -> Self {
        let (wal, recovered) =
            Wal::open(Arc::clone(&disk.files), Path::new(LOG), 0, wal_options()).unwrap();
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
        let terms = consensus::term_runs(first_index, last_index, |index| reader.term(index));
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
            ..
        } = self.driver.poll()?;
        self.appends.extend(append);
        if !apply.is_empty() {
            self.to_apply.push_back(apply);
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
        self.wal
            .append(&append.entries, state, append.must_sync && !self.forgets)
            .unwrap();
        self.age = 0;
        self.driver.persisted(append.number);
        append.then_send
    }

    /// Applies the oldest committed entries, as the apply thread does.
    pub fn apply(&mut self, now: Duration) -> Option<Applied> {
        let entries = self.to_apply.pop_front()?;
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
