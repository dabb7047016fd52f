//! The nodes' caller: writes, applies, sends, and can withhold each of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message, MessageType,
    Snapshot, SnapshotMetadata,
};

use crate::{
    Append, Boot, Config, Driver, Error, FetchRequest, Output, ReadReady, Role, SoftState, TermRun,
};

/// Long enough for any election and what follows from it.
pub(super) const AN_ELECTION: usize = 60;

/// What a log holds after a power cut.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    /// Index and term of the entry before the first.
    pub(super) before: (u64, u64),
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: HardState,
    /// The newest snapshot that was received.
    pub(super) received: Option<SnapshotMetadata>,
}

impl Disk {
    pub(super) fn write(&mut self, append: &Append) {
        if let Some(snapshot) = &append.snapshot {
            assert!(append.must_sync);
            assert!(append.hard_state.unwrap().commit >= snapshot.index);
            self.entries.clear();
            self.before = (snapshot.index.unwrap(), snapshot.term.unwrap());
            self.received = Some(snapshot.clone());
        }
        if let Some(first) = append.entries.first() {
            let kept = first.index.unwrap() - 1;
            assert!(kept >= self.before.0, "written over a snapshot");
            assert!(kept <= self.last().0, "a gap in the log");
            self.entries.truncate((kept - self.before.0) as usize);
            self.entries.extend(append.entries.iter().cloned());
        }
        if let Some(state) = append.hard_state {
            self.hard_state = state;
        }
    }

    pub(super) fn read(&self, request: &FetchRequest) -> Vec<Entry> {
        if request.lo <= self.before.0 {
            return Vec::new();
        }
        let at = |index| (index - self.before.0) as usize - 1;
        let wanted = &self.entries[at(request.lo)..at(request.hi)];
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.data.as_ref().map_or(0, Bytes::len) as u64 + 1;
            first || bytes <= request.max_bytes
        };
        wanted.iter().take_while(fits).cloned().collect()
    }

    /// Index and term of the last entry.
    pub(super) fn last(&self) -> (u64, u64) {
        let last = self.entries.last();
        last.map_or(self.before, |last| {
            (last.index.unwrap(), last.term.unwrap())
        })
    }

    /// Drops the entries before `first`.
    pub(super) fn compact(&mut self, first: u64) {
        let dropped = first.saturating_sub(self.before.0 + 1) as usize;
        for entry in self.entries.drain(..dropped) {
            self.before = (entry.index.unwrap(), entry.term.unwrap());
        }
    }
}

/// A step of the state machine.
pub(super) enum Step {
    Install(SnapshotMetadata),
    Apply(Entry),
}

/// The steps that an output asks for, in their order.
pub(super) fn steps(output: &mut Output) -> impl Iterator<Item = Step> + use<> {
    let entries = std::mem::take(&mut output.apply);
    let install = output.install.take().map(Step::Install);
    install
        .into_iter()
        .chain(entries.into_iter().map(Step::Apply))
}

pub(super) struct Node {
    pub(super) driver: Driver,
    pub(super) config: Config,
    pub(super) disk: Disk,
    /// Writes that wait while the disk hangs.
    pub(super) writes: VecDeque<Append>,
    pub(super) disk_hangs: bool,
    pub(super) oldest_write_age: usize,
    /// Entries are taken for apply but never finish.
    pub(super) apply_hangs: bool,
    /// Nothing is taken for apply.
    pub(super) apply_waits: bool,
    /// Snapshots are not installed, and so nothing behind them is applied.
    pub(super) install_waits: bool,
    pub(super) steps: VecDeque<Step>,
    pub(super) refuses_changes: bool,
    pub(super) applied: u64,
    pub(super) applied_term: u64,
    pub(super) conf_state: ConfState,
    pub(super) data: Vec<Bytes>,
    pub(super) reads: Vec<ReadReady>,
    pub(super) soft: Option<SoftState>,
    pub(super) fetches: usize,
    pub(super) needs_snapshot: Vec<u64>,
    /// Whoever needs a snapshot is sent one.
    pub(super) offers: bool,
    /// What was received beside the messages, by index.
    pub(super) received: BTreeMap<u64, Bytes>,
    pub(super) installed: Vec<u64>,
}

impl Node {
    pub(super) fn new(config: Config, disk: Disk) -> Self {
        Self {
            driver: Driver::new(config.clone(), boot(&disk, 0, ConfState::default())).unwrap(),
            config,
            disk,
            writes: VecDeque::new(),
            disk_hangs: false,
            oldest_write_age: 0,
            apply_hangs: false,
            apply_waits: false,
            install_waits: false,
            steps: VecDeque::new(),
            refuses_changes: false,
            applied: 0,
            applied_term: 0,
            conf_state: ConfState::default(),
            data: Vec::new(),
            reads: Vec::new(),
            soft: None,
            fetches: 0,
            needs_snapshot: Vec::new(),
            offers: true,
            received: BTreeMap::new(),
            installed: Vec::new(),
        }
    }

    /// A power cut: unfinished writes are lost, what was applied is kept.
    pub(super) fn restart(&mut self) {
        self.writes.clear();
        self.steps.clear();
        self.oldest_write_age = 0;
        self.soft = None;
        // A snapshot in the log that is not in the state machine is installed before the start.
        if let Some(snapshot) = self.disk.received.clone()
            && snapshot.index.unwrap() > self.applied
        {
            self.install(&snapshot);
        }
        let boot = boot(&self.disk, self.applied, self.conf_state.clone());
        self.driver = Driver::new(self.config.clone(), boot).unwrap();
    }

    fn tick(&mut self) {
        self.oldest_write_age = match self.writes.is_empty() {
            true => 0,
            false => self.oldest_write_age + 1,
        };
        self.driver.tick(self.oldest_write_age);
    }

    fn take(&mut self, mut output: Output) -> Vec<Message> {
        self.steps.extend(steps(&mut output));
        self.reads.extend(output.reads);
        self.soft = output.soft.or(self.soft);
        self.writes.extend(output.append);
        if let Some(request) = output.fetch {
            self.fetches += 1;
            let entries = self.disk.read(&request);
            self.driver.fetched(request, entries).unwrap();
        }
        for peer in output.needs_snapshot {
            self.needs_snapshot.push(peer);
            if self.offers {
                let snapshot = self.snapshot();
                match self.driver.offer_snapshot(peer, snapshot) {
                    // An answer of the member came between.
                    Ok(()) | Err(Error::SnapshotUnfit { .. }) => {}
                    Err(refused) => panic!("{refused}"),
                }
            }
        }
        self.run_steps();
        output.send
    }

    /// What others are sent.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            data: Some(self.data.join(&b'\n').into()),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(self.conf_state.clone()),
                index: Some(self.applied),
                term: Some(self.applied_term),
            }),
        }
    }

    /// Whether any was run.
    fn run_steps(&mut self) -> bool {
        let mut ran = false;
        while !self.apply_waits
            && let Some(step) = self.steps.pop_front()
        {
            match step {
                Step::Install(snapshot) if self.install_waits => {
                    self.steps.push_front(Step::Install(snapshot));
                    return ran;
                }
                Step::Install(snapshot) => {
                    self.install(&snapshot);
                    self.driver.applied(self.applied);
                }
                Step::Apply(entry) => self.apply(entry),
            }
            ran = true;
        }
        if !self.apply_hangs {
            self.driver.applied(self.applied);
        }
        ran
    }

    fn install(&mut self, snapshot: &SnapshotMetadata) {
        let index = snapshot.index.unwrap();
        assert!(index > self.applied);
        let durable = self.disk.received.as_ref().and_then(|one| one.index);
        assert!(durable >= Some(index), "installed before it was durable");
        let data = self.received.get(&index).cloned().unwrap_or_default();
        let lines = data.split(|byte| *byte == b'\n');
        self.data = lines.map(Bytes::copy_from_slice).collect();
        self.data.retain(|line| !line.is_empty());
        (self.applied, self.applied_term) = (index, snapshot.term.unwrap());
        self.conf_state = snapshot.conf_state.clone().unwrap();
        self.installed.push(index);
    }

    fn apply(&mut self, entry: Entry) {
        let index = entry.index.unwrap();
        assert_eq!(
            index,
            self.applied + 1,
            "entries are applied once, in order"
        );
        assert!(index <= self.disk.last().0, "applied before it was durable");
        (self.applied, self.applied_term) = (index, entry.term.unwrap());
        let data = entry.data.unwrap_or_default();
        if entry.r#type == Some(EntryType::EntryConfChange as i32) {
            let change = ConfChange::decode(data).unwrap();
            self.conf_state = match self.refuses_changes {
                true => self.driver.conf_state(),
                false => self.driver.apply_conf_change(&change).unwrap(),
            };
        } else if !data.is_empty() {
            self.data.push(data);
        }
    }

    pub(super) fn finish_write(&mut self) -> Option<Vec<Message>> {
        if self.disk_hangs {
            return None;
        }
        let append = self.writes.pop_front()?;
        self.oldest_write_age = 0;
        self.disk.write(&append);
        self.driver.persisted(append.number);
        Some(append.then_send)
    }
}

pub(super) fn boot(disk: &Disk, applied: u64, conf_state: ConfState) -> Boot {
    let (index, term) = disk.before;
    let (last_index, last_term) = disk.last();
    let run = TermRun { first: index, term };
    Boot {
        hard_state: disk.hard_state,
        conf_state,
        applied,
        first_index: index + 1,
        last_index,
        last_term,
        entries: disk.entries.clone(),
        terms: (index > 0).then_some(run).into_iter().collect(),
    }
}

pub(super) fn change(kind: ConfChangeType, node_id: u64) -> ConfChange {
    ConfChange {
        id: Some(1000 + node_id),
        r#type: Some(kind as i32),
        node_id: Some(node_id),
        context: Some(Bytes::from(format!("{{\"id\":{node_id}}}"))),
    }
}

/// The log of a cluster that was never started, as etcd writes it.
pub(super) fn bootstrapped(members: &[u64]) -> Disk {
    let entries = members.iter().zip(1..).map(|(member, index)| Entry {
        r#type: Some(EntryType::EntryConfChange as i32),
        term: Some(1),
        index: Some(index),
        data: Some(
            change(ConfChangeType::ConfChangeAddNode, *member)
                .encode_to_vec()
                .into(),
        ),
    });
    Disk {
        entries: entries.collect(),
        hard_state: HardState {
            term: Some(1),
            vote: Some(0),
            commit: Some(members.len() as u64),
        },
        ..Disk::default()
    }
}

pub(super) struct Cluster {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) network: VecDeque<Message>,
    /// Nothing goes to or from these.
    pub(super) cut_off: BTreeSet<u64>,
    /// Messages that are lost.
    pub(super) loses: fn(&Message) -> bool,
    /// Whether a sender hears what became of its snapshots.
    pub(super) reports: bool,
    pub(super) sent: Vec<Message>,
}

impl Cluster {
    pub(super) fn new(members: &[u64]) -> Self {
        Self::with(members, Config::new)
    }

    pub(super) fn with(members: &[u64], config: impl Fn(u64) -> Config) -> Self {
        let disk = bootstrapped(members);
        let nodes = members
            .iter()
            .map(|&id| (id, Node::new(config(id), disk.clone())));
        let mut cluster = Self {
            nodes: nodes.collect(),
            network: VecDeque::new(),
            cut_off: BTreeSet::new(),
            loses: |_| false,
            reports: true,
            sent: Vec::new(),
        };
        cluster.settle();
        cluster
    }

    /// A cluster with a leader.
    pub(super) fn started(members: &[u64]) -> Self {
        let mut cluster = Self::new(members);
        cluster.ticks(AN_ELECTION);
        cluster.leader();
        cluster
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub(super) fn join(&mut self, id: u64) {
        let node = Node::new(Config::new(id), Disk::default());
        self.nodes.insert(id, node);
    }

    /// All outputs, writes and messages, until nothing moves.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = false;
            for node in self.nodes.values_mut() {
                while let Some(output) = node.driver.poll() {
                    moved = true;
                    let send = node.take(output);
                    self.network.extend(send);
                }
                moved |= node.run_steps();
                if let Some(send) = node.finish_write() {
                    moved = true;
                    self.network.extend(send);
                }
            }
            moved |= self.deliver();
            if !moved {
                return;
            }
        }
        panic!("never settles");
    }

    fn deliver(&mut self) -> bool {
        let mut moved = false;
        for message in std::mem::take(&mut self.network) {
            moved = true;
            let (from, to) = (message.from.unwrap(), message.to.unwrap());
            self.sent.push(message.clone());
            let lost = self.cut_off.contains(&from) || self.cut_off.contains(&to);
            let arrives = !lost && !(self.loses)(&message) && self.nodes.contains_key(&to);
            if self.reports && is(&message, MessageType::MsgSnap) {
                self.node(from).driver.report_snapshot(to, arrives);
            }
            if arrives {
                self.step(message);
            }
        }
        moved
    }

    /// Over the wire, as bytes.
    pub(super) fn step(&mut self, message: Message) {
        let mut message = Message::decode(&message.encode_to_vec()[..]).unwrap();
        let node = self.nodes.get_mut(&message.to.unwrap()).unwrap();
        if let Some(snapshot) = &mut message.snapshot {
            let index = snapshot.metadata.as_ref().unwrap().index.unwrap();
            let data = snapshot.data.take().unwrap_or_default();
            node.received.insert(index, data);
        }
        if let Err(refused) = node.driver.step(message) {
            assert!(!refused.is_fatal(), "{refused}");
            assert!(!matches!(refused, Error::Malformed { .. }), "{refused}");
        }
    }

    /// The log of `id` keeps no entry that is applied.
    pub(super) fn compact(&mut self, id: u64) {
        let node = self.node(id);
        let first = node.applied + 1;
        node.disk.compact(first);
        node.driver.compacted(first);
    }

    pub(super) fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            node.tick();
        }
        self.settle();
    }

    pub(super) fn ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick();
        }
    }

    /// The leader of the newest term among those that are not cut off.
    pub(super) fn leader(&mut self) -> u64 {
        let cut_off = &self.cut_off;
        let reachable = self.nodes.iter().filter(|(id, _)| !cut_off.contains(id));
        let all = reachable.map(|(_, node)| node.driver.status());
        let leaders = all.filter(|status| status.role == Role::Leader);
        leaders
            .max_by_key(|status| status.term)
            .expect("a leader")
            .id
    }

    pub(super) fn propose(&mut self, id: u64, data: &str) {
        let data = vec![Bytes::copy_from_slice(data.as_bytes())];
        self.node(id).driver.propose(data).unwrap();
        self.settle();
    }

    pub(super) fn change(&mut self, kind: ConfChangeType, node_id: u64) {
        let leader = self.leader();
        let change = change(kind, node_id);
        self.node(leader)
            .driver
            .propose_conf_change(&change)
            .unwrap();
        self.settle();
    }

    /// What everyone who is reachable applied, which must be the same.
    pub(super) fn data(&mut self) -> Vec<String> {
        let leader = self.leader();
        let text = |data: &Vec<Bytes>| -> Vec<String> {
            let all = data.iter();
            all.map(|one| String::from_utf8(one.to_vec()).unwrap())
                .collect()
        };
        let expected = text(&self.node(leader).data);
        for (id, node) in &self.nodes {
            if !self.cut_off.contains(id) {
                assert_eq!(text(&node.data), expected, "member {id}");
            }
        }
        expected
    }
}

pub(super) fn is(message: &Message, kind: MessageType) -> bool {
    message.r#type == Some(kind as i32)
}
