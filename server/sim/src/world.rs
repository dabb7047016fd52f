//! The world: a clock that only moves from event to event, members, clients, and what must hold.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use consensus::Role;
use history::{History, Operation, Outcome, Request};
use mvcc::Engine;
use proto::raftpb::{Message, MessageType};
use rand::{Rng, SeedableRng, rngs::StdRng};
use state::{Member, MemberChange, Members, Version, version};

use crate::{
    checks::Checks,
    clients::{self, Clients},
    convert,
    disk::{Buckets, Crash, Disk},
    faults::Keeper,
    network::{Fate, Network},
    node::{Died, LEASE_SCAN, Node, Out, TICK, Waits},
    report::Report,
    watchers::Session,
};

/// Nanoseconds since the world began.
pub type Time = u64;

pub(crate) const MICRO: Time = 1_000;
pub(crate) const MILLI: Time = 1_000 * MICRO;
/// A second of the world.
pub const SECOND: Time = 1_000 * MILLI;

/// The server of members that are still of the version before.
const OLD_SERVER: Version = Version::new(3, 6, 16);
/// How often a founder is one of them.
const OLD_FOUNDERS: f64 = 0.3;
/// How often a member that crashed comes back with the newest server.
const UPGRADES: f64 = 0.3;
/// Members at the beginning, one of these.
const FOUNDERS: [u64; 8] = [1, 3, 3, 3, 3, 3, 3, 5];
const CLIENTS: u64 = 10;
const SESSIONS: usize = 4;
/// A client waits so long for an answer.
const PATIENCE: Time = SECOND;
/// Between two looks of a member at its log, engine and watchers.
const HOUSE: Time = SECOND;
/// A removed member stays so long.
const PARTING: Time = SECOND;
/// The happy end: everything heals, and must come to rest within this time.
const HEALING: Time = 60 * SECOND;
/// How long it must be quiet to be at rest.
const QUIET: Time = 2 * SECOND;
/// A stream has no more for its client than it takes so often.
const MOST_TAKES: usize = 10_000;
/// A lease lives for this share of its time at least, in hundredths, however fast the clock of its
/// leader is.
const LEASE_SHARE: u64 = 90;

/// What happens next.
#[derive(Debug)]
pub(crate) enum Event {
    /// Of a member in one of its lives.
    Member(u64, u64, Step),
    Deliver(Box<Message>),
    /// A sender of a snapshot hears of it.
    Taken {
        sender: u64,
        member: u64,
        ok: bool,
    },
    Start(u64),
    /// A removed member goes.
    Part(u64),
    /// A request arrives at a member.
    Ask {
        member: u64,
        operation: usize,
    },
    /// An answer arrives at a client.
    Answer(usize, Box<Outcome>),
    /// A client begins its next operation.
    Think(u64),
    /// A client waits no longer.
    GiveUp(usize),
    /// A client looks at its stream.
    Watch(usize),
    /// Something breaks.
    Fault,
    /// Something is repaired.
    Repair(crate::faults::Repair),
}

/// A step of one of a member's threads or tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Tick,
    Write,
    Fetch,
    Apply,
    Compact,
    Defragment,
    House,
    Leases,
}

struct Due {
    at: Time,
    seq: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// A member's machine: it may be up or down, slow, and its clock wrong.
pub(crate) struct Slot {
    pub node: Option<Box<Node>>,
    /// What lies there while nothing runs.
    disk: Option<Disk>,
    /// How far its log reached durably when it went down.
    persisted: u64,
    /// Parts per million of the true speed.
    rate: u64,
    /// How far its clock jumped.
    pub jumped: Time,
    /// Nothing runs until then.
    pub paused: Time,
    /// A write takes so long, at most.
    pub slow_disk: Time,
    /// Nothing is written until then.
    pub hung_disk: Time,
    /// A batch waits so long for apply, at most.
    pub slow_apply: Time,
    pub removed: bool,
    /// Of the server that runs there, or did: a start may be of a newer one.
    server: Version,
    /// Steps that are under way already.
    scheduled: BTreeMap<Step, u64>,
}

/// What a world is made of, besides its seed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long things break, in seconds of the world.
    pub seconds: u64,
    /// Whether anything breaks.
    pub faults: bool,
    /// Whether disks say that they have synced and have not: what must hold then does not.
    pub forgetful_disks: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seconds: 60,
            faults: true,
            forgetful_disks: false,
        }
    }
}

/// Everything there is.
pub struct World {
    pub(crate) rng: StdRng,
    pub(crate) now: Time,
    seq: u64,
    lives: u64,
    queue: BinaryHeap<Reverse<Due>>,
    pub(crate) slots: BTreeMap<u64, Slot>,
    pub(crate) network: Network,
    pub(crate) keeper: Keeper,
    clients: Clients,
    sessions: Vec<Session>,
    checks: Checks,
    pub(crate) report: Report,
    pub(crate) settings: Settings,
    /// Whether clocks of this world may jump.
    pub(crate) clocks_jump: bool,
    /// The happy end has begun.
    heals: bool,
}

impl World {
    /// A new cluster.
    pub fn new(seed: u64, settings: Settings) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let founders = FOUNDERS[rng.random_range(0..FOUNDERS.len())];
        let clocks_jump = settings.faults && rng.random_bool(0.3);
        let mut world = Self {
            now: 0,
            seq: 0,
            lives: 0,
            queue: BinaryHeap::new(),
            slots: BTreeMap::new(),
            network: Network::default(),
            keeper: Keeper::new(founders + 1),
            clients: Clients::new(match clocks_jump {
                true => 0,
                false => convert::LEASE_SECONDS as u64 * SECOND * LEASE_SHARE / 100,
            }),
            sessions: (0..SESSIONS).map(|_| Session::new(&mut rng)).collect(),
            checks: Checks::default(),
            report: Report::default(),
            settings,
            clocks_jump,
            heals: false,
            rng,
        };
        let members: Vec<Member> = (1..=founders).map(member).collect();
        for id in 1..=founders {
            let server = match world.rng.random_bool(OLD_FOUNDERS) {
                true => OLD_SERVER,
                false => version::SERVER,
            };
            world.add_slot(id, Disk::found(id, &members), server);
            world.start(id);
        }
        for client in 0..CLIENTS {
            world.after(SECOND, Event::Think(client));
        }
        for session in 0..SESSIONS {
            world.after(SECOND, Event::Watch(session));
        }
        if settings.faults {
            world.after(2 * SECOND, Event::Fault);
        }
        world
    }

    /// Lives through it all: faults, then the happy end, then the judgement.
    pub fn run(mut self) -> Report {
        let end = self.settings.seconds * SECOND;
        self.live_until(end);
        self.heal();
        self.judge()
    }

    fn live_until(&mut self, end: Time) {
        while let Some(Reverse(due)) = self.queue.pop() {
            if due.at > end {
                self.queue.push(Reverse(due));
                break;
            }
            self.now = self.now.max(due.at);
            self.report.events += 1;
            self.happen(due.event);
        }
        self.now = end;
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse(Due {
            at: self.now + delay,
            seq: self.seq,
            event,
        }));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Member(id, life, step) => self.step(id, life, step),
            Event::Deliver(message) => self.deliver(message),
            Event::Taken { sender, member, ok } => {
                if let Some(node) = self.node(sender) {
                    node.driver.report_snapshot(member, ok);
                    self.settle(sender);
                }
            }
            Event::Start(id) => self.start(id),
            Event::Part(id) => {
                self.end(id, Crash::Kill);
                self.slots.remove(&id);
            }
            Event::Ask { member, operation } => self.asked(member, operation),
            Event::Answer(operation, outcome) => self.answered(operation, *outcome),
            Event::Think(client) => self.think(client),
            Event::GiveUp(operation) => self.give_up(operation),
            Event::Watch(session) => self.watch(session),
            Event::Fault if self.heals => {}
            Event::Fault => self.fault(),
            Event::Repair(repair) => self.repair(repair),
        }
    }

    // Members.

    pub(crate) fn add_slot(&mut self, id: u64, disk: Disk, server: Version) {
        let rate = self.rng.random_range(950_000..1_050_000);
        self.slots.insert(
            id,
            Slot {
                node: None,
                disk: Some(disk),
                persisted: 0,
                rate,
                jumped: 0,
                paused: 0,
                slow_disk: 2 * MILLI,
                hung_disk: 0,
                slow_apply: MILLI,
                removed: false,
                server,
                scheduled: BTreeMap::new(),
            },
        );
    }

    pub(crate) fn node(&mut self, id: u64) -> Option<&mut Node> {
        self.slots.get_mut(&id)?.node.as_deref_mut()
    }

    /// What a member's clock says.
    pub(crate) fn clock(&self, id: u64) -> Duration {
        let slot = &self.slots[&id];
        Duration::from_nanos(self.now / 1000 * slot.rate / 1000 + slot.jumped)
    }

    /// A member starts on its disk. One whose log is damaged does not, and gets it back from a copy
    /// that was made before.
    fn start(&mut self, id: u64) {
        let seed = self.rng.random();
        self.lives += 1;
        let life = self.lives;
        let decayed = self.keeper.copies.remove(&id);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.node.is_some() {
            return;
        }
        let disk = slot.disk.take().unwrap();
        let mut node = match (Node::start(id, life, disk, seed), decayed) {
            (Ok(node), _) => node,
            (Err(_), Some(copy)) => {
                self.report.refused_starts += 1;
                Node::start(id, life, copy, seed).unwrap()
            }
            (Err(error), None) => panic!("member {id} does not start: {error}"),
        };
        node.forgets = self.settings.forgetful_disks;
        slot.node = Some(Box::new(node));
        slot.scheduled.clear();
        self.report.starts += 1;
        for (step, period) in [(Step::Tick, TICK), (Step::Leases, LEASE_SCAN)] {
            let first = self.rng.random_range(0..period.as_nanos() as u64);
            self.after(first, Event::Member(id, life, step));
        }
        let first = self.rng.random_range(0..HOUSE);
        self.after(first, Event::Member(id, life, Step::House));
        self.settle(id);
    }

    /// A member ends. Its clients hear nothing more of what they asked.
    pub(crate) fn end(&mut self, id: u64, how: Crash) {
        let chance = self.rng.random();
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let Some(node) = slot.node.take() else {
            return;
        };
        self.report.snapshots += node.installed as u64;
        slot.persisted = match node.forgets {
            true => 0,
            false => node.synced,
        };
        slot.disk = Some(node.disk.crash(how, chance));
        slot.paused = 0;
        if let Some((sender, _)) = node.received {
            // The connection ends with it.
            let (member, ok) = (id, false);
            self.after(MILLI, Event::Taken { sender, member, ok });
        }
    }

    /// A member ends, and comes back after a while.
    pub(crate) fn crash(&mut self, id: u64, how: Crash) {
        self.end(id, how);
        self.report.crashes += 1;
        let rest = self.rng.random_range(50 * MILLI..3 * SECOND);
        if self.rng.random_bool(UPGRADES)
            && let Some(slot) = self.slots.get_mut(&id)
        {
            slot.server = version::SERVER;
        }
        if self.keeper.decays(&mut self.rng)
            && let Some(disk) = self.slots.get(&id).and_then(|slot| slot.disk.as_ref())
        {
            self.keeper.copies.insert(id, disk.copy());
            disk.decay(self.rng.random());
            self.report.decays += 1;
        }
        self.after(rest, Event::Start(id));
    }

    fn died(&mut self, id: u64, why: &Died) {
        if let Died::Disk(error) = why {
            let expected = self.node(id).is_some_and(|node| node.disk_may_fail);
            assert!(expected, "member {id} died: {error}");
        }
        let how = self.some_crash();
        self.crash(id, how);
    }

    pub(crate) fn some_crash(&mut self) -> Crash {
        match self.rng.random_bool(0.5) {
            true => Crash::Kill,
            false => Crash::PowerCut,
        }
    }

    fn step(&mut self, id: u64, life: u64, step: Step) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.node.as_ref().is_none_or(|node| node.life != life) {
            return;
        }
        let wait = match step {
            Step::Write => slot.paused.max(slot.hung_disk),
            _ => slot.paused,
        };
        if wait > now {
            self.after(wait - now, Event::Member(id, life, step));
            return;
        }
        slot.scheduled.remove(&step);
        match self.do_step(id, step) {
            Ok(()) => self.settle(id),
            Err(died) => self.died(id, &died),
        }
        if let Some((step, period)) = periodic(step) {
            let rate = self.slots.get(&id).map_or(1_000_000, |slot| slot.rate);
            let delay = period * 1_000_000 / rate;
            self.after(delay, Event::Member(id, life, step));
        }
    }

    fn do_step(&mut self, id: u64, step: Step) -> Result<(), Died> {
        let clock = self.clock(id);
        let gather = self.rng.random_range(1..5);
        let (flushes, defragments) = (self.rng.random_bool(0.4), self.rng.random_bool(0.02));
        let Some(node) = self.node(id) else {
            return Ok(());
        };
        match step {
            Step::Tick => {
                node.tick(clock);
                node.publish(clock);
            }
            Step::Write => {
                let out = node.write(gather)?;
                self.sent(id, out);
            }
            Step::Fetch => node.fetch(),
            Step::Apply => {
                let applied = node.apply(gather, clock);
                if let Some((entries, events)) = node.untold.take() {
                    self.checks.entries_and_events(id, &entries, &events);
                }
                self.applied(id, applied?);
            }
            Step::Compact => {
                node.compact();
            }
            Step::Defragment => node.defragment(),
            Step::House => {
                if flushes {
                    node.disk.engine.flush_all(true).unwrap();
                }
                if defragments {
                    node.begin_defragment();
                }
                node.truncate()?;
                node.hub.progress_tick();
                let durable = state::persisted(&*node.disk.engine).unwrap();
                let applied = node.machine.published().applied.index;
                assert!(durable.is_none_or(|durable| durable.applied.index <= applied));
                self.decide_version(id);
            }
            Step::Leases => node.scan_leases(clock),
        }
        Ok(())
    }

    /// A leader raises the version of the cluster to what all members can do, if it hears of all.
    fn decide_version(&mut self, id: u64) {
        let clock = self.clock(id);
        let Some(node) = self.slots[&id].node.as_deref() else {
            return;
        };
        if node.driver.status().role != Role::Leader {
            return;
        }
        let published = node.machine.published();
        let Some(decided) = self.allowed_version(&published.members) else {
            return;
        };
        if published.cluster_version.is_none_or(|now| now < decided) {
            self.node(id).unwrap().raise_version(decided, clock);
        }
    }

    /// What the members can do, if all of them are up.
    fn allowed_version(&self, members: &Members) -> Option<Version> {
        let versions = members.iter().map(|member| {
            let slot = self.slots.get(&member.id)?;
            slot.node.as_ref().map(|_| slot.server)
        });
        version::decide(None, versions, &version::Downgrade::default())
    }

    /// After each step of a member: its raft thread runs, and what comes out goes its way.
    pub(crate) fn settle(&mut self, id: u64) {
        let clock = self.clock(id);
        let Some(node) = self.node(id) else {
            return;
        };
        match node.round(clock) {
            Ok(out) => self.sent(id, out),
            Err(died) => return self.died(id, &died),
        }
        if self
            .node(id)
            .is_some_and(|node| std::mem::take(&mut node.elected))
        {
            self.disturb_leader(id);
        }
        self.check(id);
        self.schedule(id);
    }

    fn schedule(&mut self, id: u64) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let Some(node) = slot.node.as_deref() else {
            return;
        };
        let life = node.life;
        let disk = slot.slow_disk;
        let wanted = [
            (!node.appends.is_empty(), Step::Write, disk),
            (!node.fetches.is_empty(), Step::Fetch, MILLI),
            (!node.to_apply.is_empty(), Step::Apply, slot.slow_apply),
            (node.machine.compaction_pending(), Step::Compact, 20 * MILLI),
            (!node.fragmented.is_empty(), Step::Defragment, 20 * MILLI),
        ];
        for (wanted, step, most) in wanted {
            let slot = self.slots.get_mut(&id).unwrap();
            if wanted && slot.scheduled.insert(step, life).is_none() {
                let delay = self.rng.random_range(most / 10..=most);
                self.after(delay, Event::Member(id, life, step));
            }
        }
    }

    fn sent(&mut self, id: u64, out: Out) {
        for message in out.send {
            self.send(message);
        }
        for (sender, ok) in out.taken {
            let member = id;
            self.after(MILLI, Event::Taken { sender, member, ok });
        }
        for operation in out.reads {
            let request = &self.clients.operations[operation].request;
            if let Some(node) = self.slots[&id].node.as_deref() {
                let outcome = clients::read(node, request);
                self.answer(operation, outcome);
            }
        }
    }

    fn send(&mut self, message: Message) {
        match self.network.fate(&mut self.rng, &message, self.now) {
            Fate::Lost => self.lose(&message),
            Fate::Arrives(delay, again) => {
                if let Some(again) = again {
                    self.after(again, Event::Deliver(Box::new(message.clone())));
                }
                self.after(delay, Event::Deliver(Box::new(message)));
            }
        }
    }

    /// A message does not arrive. Of one that carries a snapshot its sender hears.
    fn lose(&mut self, message: &Message) {
        self.report.lost += 1;
        if message.r#type() == MessageType::MsgSnap {
            let (sender, member) = (message.from(), message.to());
            let ok = false;
            self.after(MILLI, Event::Taken { sender, member, ok });
        }
    }

    fn deliver(&mut self, message: Box<Message>) {
        let (from, to) = (message.from(), message.to());
        let now = self.now;
        let Some(slot) = self.slots.get(&to).filter(|slot| slot.node.is_some()) else {
            return self.lose(&message);
        };
        if slot.paused > now {
            let delay = slot.paused - now + self.rng.random_range(0..MILLI);
            self.after(delay, Event::Deliver(message));
            return;
        }
        let mut state = None;
        if message.r#type() == MessageType::MsgSnap {
            state = self.sent_state(from, &message);
            if state.is_none() {
                // Its sender crashed meanwhile, and with it the connection.
                return self.lose(&message);
            }
        }
        self.report.delivered += 1;
        if state.is_some() {
            self.disturb_install(to);
        }
        let mut out = Out::default();
        self.node(to).unwrap().step(*message, state, &mut out);
        self.sent(to, out);
        self.settle(to);
    }

    fn sent_state(&mut self, from: u64, message: &Message) -> Option<Arc<Buckets>> {
        let index = message.snapshot.as_ref()?.metadata.as_ref()?.index();
        self.node(from)?.sends.get(&index).cloned()
    }

    fn applied(&mut self, id: u64, applied: crate::node::Applied) {
        let node = self.slots[&id].node.as_deref().unwrap();
        self.checks.applied_batch(node, &applied);
        for (waits, reply) in applied.replies {
            if let Waits::Client(operation) = waits {
                let outcome = match reply {
                    Ok(reply) => Outcome::Done(convert::of_reply(reply)),
                    Err(error) => clients::refused(error),
                };
                self.answer(operation, outcome);
            }
        }
        for change in applied.members {
            self.follow(&change);
        }
        if applied.removed_self {
            self.after(PARTING, Event::Part(id));
        }
    }

    /// The members have changed: whoever is new starts, whoever is gone goes sooner or later.
    fn follow(&mut self, change: &MemberChange) {
        match change {
            // Each member is told of it; the first one counts.
            MemberChange::Add(member)
                if !self.slots.contains_key(&member.id)
                    && self.keeper.started.insert(member.id) =>
            {
                self.add_slot(member.id, Disk::join(member.id), version::SERVER);
                self.after(100 * MILLI, Event::Start(member.id));
            }
            MemberChange::Remove(id) => {
                if let Some(slot) = self.slots.get_mut(id)
                    && !std::mem::replace(&mut slot.removed, true)
                {
                    self.after(5 * SECOND, Event::Part(*id));
                }
            }
            _ => {}
        }
    }

    fn check(&mut self, id: u64) {
        let ups: Vec<&Node> = self
            .slots
            .values()
            .filter_map(|slot| slot.node.as_deref())
            .collect();
        let Some(node) = ups.iter().find(|node| node.id == id) else {
            return;
        };
        let version = node.machine.published().cluster_version;
        assert!(
            version <= Some(self.slots[&id].server),
            "member {id} is of version {}, and the cluster of {version:?}",
            self.slots[&id].server
        );
        let status = node.driver.status();
        let downs = self.slots.iter().filter(|(_, slot)| slot.node.is_none());
        let downs = downs.map(|(id, slot)| (*id, slot.persisted)).collect();
        self.checks.step(node, &status, &downs, &ups);
    }

    // Clients.

    /// A client begins an operation, with any member that serves.
    fn think(&mut self, client: u64) {
        if self.heals {
            return;
        }
        let serving = self.serving();
        if serving.is_empty() {
            let delay = self.rng.random_range(50 * MILLI..200 * MILLI);
            self.after(delay, Event::Think(client));
            return;
        }
        let member = serving[self.rng.random_range(0..serving.len())];
        self.begin(client, member);
    }

    fn begin(&mut self, client: u64, member: u64) {
        let request = self.clients.request(&mut self.rng);
        let operation = self.clients.operations.len();
        self.clients.operations.push(Operation {
            client,
            member,
            request,
            start: self.now,
            end: None,
            outcome: Outcome::Unknown,
        });
        let delay = self.on_the_way();
        self.after(delay, Event::Ask { member, operation });
        self.after(PATIENCE, Event::GiveUp(operation));
    }

    fn on_the_way(&mut self) -> Time {
        self.rng.random_range(50 * MICRO..2 * MILLI)
    }

    /// Members that clients may ask. Learners are left alone: they answer little.
    pub(crate) fn serving(&self) -> Vec<u64> {
        let ups = self.slots.iter().filter_map(|(id, slot)| {
            let node = slot.node.as_deref()?;
            let members = &node.machine.published().members;
            let votes = members.get(*id).is_some_and(|own| !own.is_learner);
            (node.serving && votes).then_some(*id)
        });
        ups.collect()
    }

    fn asked(&mut self, member: u64, operation: usize) {
        let clock = self.slots.get(&member).map(|_| self.clock(member));
        let paused = self.slots.get(&member).map_or(0, |slot| slot.paused);
        if paused > self.now {
            let delay = paused - self.now;
            self.after(delay, Event::Ask { member, operation });
            return;
        }
        let request = self.clients.operations[operation].request.clone();
        let node = self.node(member).filter(|node| node.serving);
        let (Some(node), Some(clock)) = (node, clock) else {
            // Nobody listens.
            return self.answer(operation, Outcome::Refused(history::Refusal::Other));
        };
        if let Request::Range {
            serializable: true, ..
        } = request
        {
            let outcome = clients::read(node, &request);
            return self.answer(operation, outcome);
        }
        match clients::only_reads(&request) {
            true => node.read(operation),
            false => node.propose(convert::to_entry(&request), Waits::Client(operation), clock),
        }
        self.settle(member);
    }

    fn answer(&mut self, operation: usize, outcome: Outcome) {
        let delay = self.on_the_way();
        self.after(delay, Event::Answer(operation, Box::new(outcome)));
    }

    fn answered(&mut self, operation: usize, outcome: Outcome) {
        let recorded = &mut self.clients.operations[operation];
        if recorded.end.is_some() {
            // It has given up.
            return;
        }
        recorded.end = Some(self.now);
        let client = recorded.client;
        if let Outcome::Done(response) = &outcome {
            self.report.answered += 1;
            self.clients.note(response);
        }
        self.clients.operations[operation].outcome = outcome;
        self.next(client);
    }

    fn give_up(&mut self, operation: usize) {
        let recorded = &mut self.clients.operations[operation];
        if recorded.end.is_none() {
            recorded.end = Some(self.now);
            let client = recorded.client;
            self.next(client);
        }
    }

    fn next(&mut self, client: u64) {
        let delay = self.rng.random_range(20 * MILLI..400 * MILLI);
        self.after(delay, Event::Think(client));
    }

    /// A client looks at its stream: opens it, takes what waits, or goes elsewhere with it.
    fn watch(&mut self, session: usize) {
        let delay = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..3 * SECOND),
            _ => self.rng.random_range(0..200 * MILLI),
        };
        self.after(delay, Event::Watch(session));
        let serving = self.serving();
        let other = match serving.is_empty() {
            true => None,
            false => Some(serving[self.rng.random_range(0..serving.len())]),
        };
        let (moves, asks) = (self.rng.random_bool(0.02), self.rng.random_bool(0.1));
        let now = self.now;
        let session = &mut self.sessions[session];
        let Some((id, life)) = session.member() else {
            if let Some(id) = other {
                let node = self.slots.get_mut(&id).unwrap().node.as_deref_mut();
                session.open(node.unwrap());
            }
            return;
        };
        let slot = self.slots.get_mut(&id);
        if slot.as_ref().is_some_and(|slot| slot.paused > now) {
            return;
        }
        let node = slot.and_then(|slot| slot.node.as_deref_mut());
        let Some(node) = node.filter(|node| node.life == life) else {
            return session.close(None, now);
        };
        session.take(node, now);
        if asks {
            session.ask_progress(node);
        }
        if moves && !self.heals {
            session.close(Some(node), now);
        }
    }

    // The end.

    /// No more faults: all members come to the same state, more is possible, and every watcher is
    /// told all of it.
    fn heal(&mut self) {
        self.heals = true;
        self.report.seconds = self.now / SECOND;
        self.repair_all();
        let end = self.now + HEALING;
        let mut last = None;
        while self.now < end {
            let until = self.now + QUIET;
            self.live_until(until);
            let at_rest = self.at_rest();
            if at_rest.is_some() && at_rest == last {
                break;
            }
            last = at_rest;
        }
        assert!(
            last.is_some(),
            "the cluster does not come to rest: {}",
            self.describe()
        );
        // What a healed cluster cannot do is no good. Who was removed may still have to notice.
        let mut members = self.serving();
        members.retain(|id| !self.slots[id].removed);
        let first = self.clients.operations.len();
        for (client, member) in (0..).zip(members) {
            self.begin(CLIENTS + client, member);
        }
        let until = self.now + 2 * QUIET;
        self.live_until(until);
        for operation in &self.clients.operations[first..] {
            assert!(
                operation.outcome != Outcome::Unknown,
                "nobody answers {operation:?}: {}",
                self.describe()
            );
        }
        let rest = self.at_rest();
        assert!(rest.is_some(), "{}", self.describe());
    }

    /// Where the cluster is, if all of its members are there.
    fn at_rest(&self) -> Option<u64> {
        let applied = self.checks.applied();
        let nodes = self.slots.values().filter(|slot| !slot.removed);
        let at = |slot: &Slot| {
            let node = slot.node.as_deref()?;
            Some((
                node.machine.published().applied.index,
                node.driver.status().leader,
            ))
        };
        let all: Option<Vec<_>> = nodes.map(at).collect();
        let all = all?;
        let (_, leader) = *all.first()?;
        (leader != 0 && all.iter().all(|one| *one == (applied, leader))).then_some(applied)
    }

    fn describe(&self) -> String {
        let nodes = self
            .slots
            .iter()
            .map(|(id, slot)| match slot.node.as_deref() {
                Some(node) => format!("{:?} serves: {}\n", node.driver.status(), node.serving),
                None => format!("{id} is down\n"),
            });
        nodes.collect()
    }

    /// In the end the cluster has the version that its members allow.
    fn judge_version(&mut self) {
        let mut nodes = self.slots.values().filter(|slot| !slot.removed);
        let node = nodes.find_map(|slot| slot.node.as_deref()).unwrap();
        let published = node.machine.published();
        let (now, allowed) = (
            published.cluster_version,
            self.allowed_version(&published.members),
        );
        assert_eq!(now, allowed, "the version of the cluster");
        self.report.raised = self.checks.versions.len() as u64;
    }

    /// Compares the members, and has the history judged.
    fn judge(mut self) -> Report {
        let now = self.now;
        // Streams of members that went are made anew, and all take what is left for them.
        for session in &mut self.sessions {
            let (id, life) = session.member().unwrap_or_default();
            let slot = self.slots.get_mut(&id);
            let node = slot.and_then(|slot| slot.node.as_deref_mut());
            match node.filter(|node| node.life == life) {
                Some(node) => take_all(session, node, now),
                None => session.close(None, now),
            }
            if session.member().is_none() {
                let mut slots = self.slots.values_mut();
                let node = slots.find_map(|slot| slot.node.as_deref_mut());
                let node = node.unwrap();
                session.open(node);
                take_all(session, node, now);
            }
        }
        for slot in self.slots.values_mut().filter(|slot| !slot.removed) {
            let node = slot.node.as_deref_mut().unwrap();
            while node.compact() {}
            self.checks.compare(node, self.checks.applied());
            self.report.snapshots += node.installed as u64;
        }
        self.judge_version();
        let reached = self.checks.revision();
        let sessions = std::mem::take(&mut self.sessions).into_iter();
        let history = History {
            operations: std::mem::take(&mut self.clients.operations),
            watches: sessions.flat_map(|one| one.records(reached)).collect(),
            log: self.checks.log(),
            ..History::default()
        };
        let summary = history::check(&history).unwrap_or_else(|violation| panic!("{violation}"));
        self.report.operations = history.operations.len() as u64;
        self.report.leaders = self.checks.leaders.len() as u64;
        self.report.entries = self.checks.applied();
        self.report.judged(&summary);
        self.report
    }
}

/// Takes all that a member has for a stream.
fn take_all(session: &mut Session, node: &mut Node, now: Time) {
    for _ in 0..MOST_TAKES {
        session.take(node, now);
        if node.hub.gauges().pending_events == 0 && !node.hub.is_behind() {
            break;
        }
    }
    session.take(node, now);
}

fn periodic(step: Step) -> Option<(Step, Time)> {
    match step {
        Step::Tick => Some((step, TICK.as_nanos() as u64)),
        Step::Leases => Some((step, LEASE_SCAN.as_nanos() as u64)),
        Step::House => Some((step, HOUSE)),
        Step::Write | Step::Fetch | Step::Apply | Step::Compact | Step::Defragment => None,
    }
}

pub(crate) fn member(id: u64) -> Member {
    Member {
        id,
        peer_urls: vec![format!("http://m{id}:2380")],
        name: format!("m{id}"),
        ..Member::default()
    }
}
