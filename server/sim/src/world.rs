//! The world: members, network, clients, and what must hold.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use consensus::Role;
use mvcc::Engine;
use prost::Message as _;
use proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestHeader, RequestOp, TxnRequest,
        request_op::Request,
    },
    raftpb::{Entry, Message, MessageType},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use state::{Error, Member, Reply};

use crate::node::{Applied, Disk, Node};

/// Members.
const MEMBERS: u64 = 3;
/// Keys that clients use.
const KEYS: u64 = 12;
/// Messages under way; more are lost, oldest first.
const UNDER_WAY: usize = 400;
/// Rounds of the healing phase, each with one tick.
const HEALING: usize = 300;

/// A put that a client was told is done.
#[derive(Clone, Debug)]
struct Acknowledged {
    key: Bytes,
    value: Bytes,
    revision: i64,
}

/// A read that waits: the revision that it must see, and who asked.
struct Reading {
    asked_at: u64,
    must_see: i64,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Entries applied by all.
    pub applied: u64,
    /// Puts that clients were told are done.
    pub acknowledged: usize,
    /// Reads that were served.
    pub reads: usize,
    /// Members that were crashed.
    pub crashes: usize,
    /// Terms that had a leader.
    pub leaders: usize,
    /// Snapshots that members installed.
    pub snapshots: usize,
}

/// Everything there is.
pub struct World {
    rng: StdRng,
    nodes: BTreeMap<u64, Node>,
    network: Vec<Message>,
    /// Nothing reaches these, nor comes from them.
    cut_off: BTreeSet<u64>,
    /// What every member must have applied at an index.
    history: BTreeMap<u64, u32>,
    /// Who led in a term.
    leaders: BTreeMap<u64, u64>,
    /// Requests under way: what they ask for, and at which member.
    asked: HashMap<u64, (u64, InternalRaftRequest)>,
    acknowledged: Vec<Acknowledged>,
    readings: HashMap<u64, Reading>,
    next_id: u64,
    now: Duration,
    report: Report,
}

impl World {
    /// A new cluster.
    pub fn new(seed: u64) -> Self {
        let member = |id| Member {
            id,
            peer_urls: vec![format!("http://m{id}:2380")],
            name: format!("m{id}"),
            ..Member::default()
        };
        let members: Vec<Member> = (1..=MEMBERS).map(member).collect();
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = (1..=MEMBERS).map(|id| {
            let disk = Disk::found(id, &members);
            (id, Node::start(id, disk, rng.random()))
        });
        Self {
            nodes: nodes.collect(),
            rng,
            network: Vec::new(),
            cut_off: BTreeSet::new(),
            history: BTreeMap::new(),
            leaders: BTreeMap::new(),
            asked: HashMap::new(),
            acknowledged: Vec::new(),
            readings: HashMap::new(),
            next_id: 1,
            now: Duration::ZERO,
            report: Report::default(),
        }
    }

    /// From now on no disk syncs, whatever it says. What must hold then does not.
    pub fn forget(&mut self) {
        self.nodes.values_mut().for_each(|node| node.forgets = true);
    }

    /// One thing happens.
    pub fn event(&mut self) {
        let id = self.rng.random_range(1..=MEMBERS);
        match self.rng.random_range(0..1000) {
            0..120 => {
                self.now += Duration::from_millis(30);
                self.node(id).tick();
            }
            120..400 => self.poll(id),
            400..560 => self.write(id),
            560..680 => self.apply(id),
            680..880 => self.deliver(),
            880..930 => self.ask(id),
            930..950 => self.read(id),
            950..962 => {
                self.node(id).machine.compaction_step().unwrap();
            }
            962..970 => self.node(id).disk.engine.flush_all(true).unwrap(),
            970..971 => self.crash(id),
            971..973 => {
                let hangs = self.rng.random_bool(0.2);
                self.node(id).hangs = hangs;
            }
            973..975 => {
                if !self.cut_off.remove(&id) && self.rng.random_bool(0.5) {
                    self.cut_off.insert(id);
                }
            }
            975..985 if !self.network.is_empty() => {
                let which = self.rng.random_range(0..self.network.len());
                let message = self.network.swap_remove(which);
                self.lose(&message);
            }
            985..992 if !self.network.is_empty() => {
                let which = self.rng.random_range(0..self.network.len());
                self.network.push(self.network[which].clone());
            }
            993 => self.node(id).truncate(),
            992 => {
                let to = self.rng.random_range(1..=MEMBERS);
                self.node(id).driver.transfer_leader(to);
            }
            _ => self.poll(id),
        }
        self.check_leader(id);
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    fn poll(&mut self, id: u64) {
        if let Some(messages) = self.node(id).poll() {
            self.send(messages);
        }
        self.serve_reads(id);
    }

    fn write(&mut self, id: u64) {
        let messages = self.node(id).write();
        self.send(messages);
    }

    fn send(&mut self, messages: Vec<Message>) {
        self.network.extend(messages);
        let surplus = self.network.len().saturating_sub(UNDER_WAY);
        let lost: Vec<Message> = self.network.drain(..surplus).collect();
        lost.iter().for_each(|message| self.lose(message));
    }

    /// A message does not arrive. Of one that carries a snapshot its sender hears.
    fn lose(&mut self, message: &Message) {
        if message.r#type() == MessageType::MsgSnap {
            let driver = &mut self.node(message.from()).driver;
            driver.report_snapshot(message.to(), false);
        }
    }

    /// Delivers any of the messages under way, so order means nothing.
    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let which = self.rng.random_range(0..self.network.len());
        let message = self.network.swap_remove(which);
        self.step(message);
    }

    fn step(&mut self, message: Message) {
        let (from, to) = (message.from(), message.to());
        if self.cut_off.contains(&from) || self.cut_off.contains(&to) {
            return self.lose(&message);
        }
        let is_snapshot = message.r#type() == MessageType::MsgSnap;
        if is_snapshot {
            let index = message.snapshot.as_ref().unwrap().metadata.as_ref();
            let index = index.unwrap().index();
            let Some(state) = self.node(from).sends.get(&index).cloned() else {
                // Its sender crashed meanwhile, and with it the connection.
                return self.lose(&message);
            };
            self.node(to).disk.received.insert(index, state);
        }
        let stepped = self.node(to).driver.step(message);
        if let Err(error) = &stepped {
            assert!(!error.is_fatal(), "{error}");
        }
        if is_snapshot {
            self.node(from).driver.report_snapshot(to, stepped.is_ok());
        }
    }

    /// A member loses what it did not sync, and starts again.
    fn crash(&mut self, id: u64) {
        let chance = self.rng.random();
        let seed = self.rng.random();
        let disk = self.node(id).disk.crash(chance);
        self.report.snapshots += self.node(id).installed;
        let forgets = self.node(id).forgets;
        self.nodes.insert(id, Node::start(id, disk, seed));
        self.node(id).forgets = forgets;
        // Its clients never hear of their requests; others may still apply them.
        self.asked.retain(|_, (at, _)| *at != id);
        self.readings.retain(|_, reading| reading.asked_at != id);
        self.report.crashes += 1;
    }

    /// A client asks a member for something.
    fn ask(&mut self, id: u64) {
        self.next_id += 1;
        let request_id = self.next_id;
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: request_id,
                ..RequestHeader::default()
            }),
            ..self.request()
        };
        let data = Bytes::from(request.encode_to_vec());
        if self.node(id).driver.propose(vec![data]).is_ok() {
            self.asked.insert(request_id, (id, request));
        }
    }

    fn key(&mut self) -> Bytes {
        format!("k{}", self.rng.random_range(0..KEYS)).into()
    }

    fn request(&mut self) -> InternalRaftRequest {
        let mut request = InternalRaftRequest::default();
        let put = PutRequest {
            key: self.key(),
            value: format!("v{}", self.next_id).into(),
            ..PutRequest::default()
        };
        match self.rng.random_range(0..20) {
            0..12 => request.put = Some(put),
            12..14 => {
                let key = self.key();
                request.delete_range = Some(DeleteRangeRequest {
                    key,
                    ..DeleteRangeRequest::default()
                });
            }
            14..16 => {
                let success = vec![RequestOp {
                    request: Some(Request::RequestPut(put)),
                }];
                request.txn = Some(TxnRequest {
                    success,
                    ..TxnRequest::default()
                });
            }
            16 => {
                let id = self.rng.random_range(1..5);
                request.lease_grant = Some(LeaseGrantRequest { id, ttl: 60 });
            }
            17 => {
                let id = self.rng.random_range(1..5);
                request.lease_revoke = Some(LeaseRevokeRequest { id });
            }
            18 => {
                let lease = self.rng.random_range(1..5);
                request.put = Some(PutRequest { lease, ..put });
            }
            _ => {
                let newest = self.newest();
                request.compaction = Some(CompactionRequest {
                    revision: self.rng.random_range(0..=newest),
                    physical: false,
                });
            }
        }
        request
    }

    /// The newest revision that any member has published.
    fn newest(&self) -> i64 {
        let views = self.nodes.values().map(|node| node.machine.published());
        views
            .map(|published| published.view.revision())
            .max()
            .unwrap()
    }

    fn apply(&mut self, id: u64) {
        let now = self.now;
        let Some(applied) = self.node(id).apply(now) else {
            return;
        };
        let Applied { entries, replies } = applied;
        for entry in &entries {
            self.check_history(id, entry);
        }
        for (request, reply) in replies {
            self.answer(id, request, reply);
        }
        self.serve_reads(id);
    }

    /// A client hears of its request from the member that it asked.
    fn answer(&mut self, id: u64, request: u64, reply: Result<Reply, Error>) {
        if self.asked.get(&request).is_none_or(|(at, _)| *at != id) {
            return;
        }
        let (_, request) = self.asked.remove(&request).unwrap();
        if let (Some(put), Ok(Reply::Put(response))) = (request.put, reply) {
            self.acknowledged.push(Acknowledged {
                key: put.key,
                value: put.value,
                revision: response.header.unwrap().revision,
            });
        }
    }

    /// A client asks for a linearizable read.
    fn read(&mut self, id: u64) {
        self.next_id += 1;
        let ctx = self.next_id;
        let told = self.acknowledged.iter().map(|put| put.revision);
        let reading = Reading {
            asked_at: id,
            must_see: told.max().unwrap_or_default(),
        };
        if self.node(id).driver.read_index(ctx).is_ok() {
            self.readings.insert(ctx, reading);
        }
    }

    /// Serves the reads whose index is applied: they must see all that was acknowledged before
    /// they were asked.
    fn serve_reads(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let published = node.machine.published();
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut node.reads)
            .into_iter()
            .partition(|read| read.index <= published.applied.index);
        node.reads = waiting;
        for read in ready {
            if let Some(reading) = self.readings.remove(&read.ctx) {
                let revision = published.view.revision();
                assert!(
                    revision >= reading.must_see,
                    "a read at member {id} saw revision {revision}, {} was acknowledged before",
                    reading.must_see
                );
                self.report.reads += 1;
            }
        }
    }

    /// At an index all members apply the same entry.
    fn check_history(&mut self, id: u64, entry: &Entry) {
        let crc = crc32c::crc32c(&entry.encode_to_vec());
        let before = *self.history.entry(entry.index()).or_insert(crc);
        let index = entry.index();
        assert_eq!(before, crc, "member {id} applied another entry {index}");
    }

    /// A term has one leader.
    fn check_leader(&mut self, id: u64) {
        let status = self.node(id).driver.status();
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", status.term);
        }
    }

    /// No more faults: all members come to the same state, it holds all that was acknowledged, and
    /// more is possible.
    pub fn heal(mut self) -> Report {
        self.cut_off.clear();
        self.nodes.values_mut().for_each(|node| node.hangs = false);
        for round in 0..HEALING {
            for id in 1..=MEMBERS {
                self.node(id).tick();
                self.check_leader(id);
            }
            if round == HEALING / 2 {
                (1..=MEMBERS).for_each(|id| self.ask(id));
            }
            for _ in 0..40 {
                for id in 1..=MEMBERS {
                    self.poll(id);
                    self.write(id);
                    self.apply(id);
                }
                for message in std::mem::take(&mut self.network) {
                    self.step(message);
                }
            }
        }
        for node in self.nodes.values_mut() {
            while node.machine.compaction_pending() {
                node.machine.compaction_step().unwrap();
            }
        }
        self.check_agreement();
        self.check_acknowledged();
        self.report.acknowledged = self.acknowledged.len();
        self.report.applied = *self.history.last_key_value().unwrap().0;
        self.report.leaders = self.leaders.len();
        let installed = self.nodes.values().map(|node| node.installed);
        self.report.snapshots += installed.sum::<usize>();
        self.report
    }

    fn check_agreement(&self) {
        let last = *self.history.last_key_value().unwrap().0;
        let mut seen = Vec::new();
        for node in self.nodes.values() {
            let published = node.machine.published();
            let status = node.driver.status();
            assert_eq!(
                published.applied.index, last,
                "member {}: {status:?}",
                node.id
            );
            let view = &published.view;
            let hash = view.hash_kv(view.revision()).unwrap();
            seen.push((hash, view.size_in_use(), view.key_count(), view.revision()));
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }

    /// Every acknowledged put is there at its revision, unless it was compacted.
    fn check_acknowledged(&self) {
        let published = self.nodes[&1].machine.published();
        let view = &published.view;
        for put in &self.acknowledged {
            if put.revision < view.compact_revision() {
                continue;
            }
            let request = RangeRequest {
                key: put.key.clone(),
                revision: put.revision,
                ..RangeRequest::default()
            };
            let found = view.range(&request).unwrap().kvs;
            assert_eq!(found.len(), 1, "{put:?} is lost");
            assert_eq!(found[0].value, put.value, "{put:?}");
            assert_eq!(found[0].mod_revision, put.revision, "{put:?}");
        }
    }
}
