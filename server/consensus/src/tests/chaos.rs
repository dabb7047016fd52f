//! Random runs, one small event at a time, checked against what raft promises.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use proto::raftpb::{
    ConfChange, ConfChangeType as Kind, ConfState, Entry, EntryType, Message, MessageType,
    Snapshot, SnapshotMetadata,
};

use super::cluster::{Disk, Step, boot, bootstrapped, change, is, steps};
use crate::{Append, Config, Driver, Error, Output, Role};

const EVENTS: usize = 12_000;
/// Runs in the gate.
const RUNS: u64 = 48;

/// What a state machine holds.
#[derive(Clone, Default)]
struct State {
    applied: u64,
    conf_state: ConfState,
    removed: BTreeSet<u64>,
}

impl State {
    /// etcd looks again at every change when it applies it.
    fn admits(&self, change: &ConfChange) -> bool {
        let id = change.node_id.unwrap();
        let conf = &self.conf_state;
        let member = conf.voters.contains(&id) || conf.learners.contains(&id);
        let kind = Kind::try_from(change.r#type.unwrap()).unwrap();
        !self.removed.contains(&id)
            && match kind {
                Kind::ConfChangeAddNode => !conf.voters.contains(&id),
                Kind::ConfChangeAddLearnerNode => !member,
                Kind::ConfChangeRemoveNode => member && conf.voters != [id],
                Kind::ConfChangeUpdateNode => member,
            }
    }
}

struct Member {
    driver: Driver,
    config: Config,
    writes: Vec<Append>,
    /// What the page cache holds, and what a power cut leaves of it.
    disk: Disk,
    durable: Disk,
    state: State,
    flushed: State,
    to_apply: Vec<Step>,
    hangs: bool,
    age: usize,
}

#[derive(Default)]
struct World {
    members: BTreeMap<u64, Member>,
    network: Vec<Message>,
    /// Nothing reaches these, nor comes from them.
    cut_off: BTreeSet<u64>,
    random: u64,
    seed: u64,
    next_id: u64,
    /// By index, what anybody applied, and the membership after it.
    history: BTreeMap<u64, (Entry, ConfState)>,
    leaders: BTreeMap<u64, u64>,
    next_read: u64,
    /// The least index that each read must have.
    reads: BTreeMap<u64, u64>,
    answered: usize,
    /// What snapshots hold, by index. It does not travel with the messages.
    saved: BTreeMap<u64, State>,
    installed: usize,
}

impl World {
    fn new(seed: u64, members: &[u64]) -> Self {
        let mut world = World {
            random: seed,
            seed,
            next_id: 10,
            ..World::default()
        };
        for id in members {
            world.join(*id, bootstrapped(members));
        }
        world
    }

    fn join(&mut self, id: u64, disk: Disk) {
        let config = Config {
            seed: self.seed,
            cache_bytes: 1000,
            max_size_per_msg: 600,
            max_inflight: 4,
            max_committed_bytes_per_output: 600,
            max_unapplied_bytes: 2000,
            max_unpersisted_bytes: 4000,
            max_uncommitted_bytes: 4000,
            ..Config::new(id)
        };
        let state = State::default();
        let driver = Driver::new(config.clone(), boot(&disk, 0, ConfState::default())).unwrap();
        let member = Member {
            driver,
            config,
            writes: Vec::new(),
            durable: disk.clone(),
            disk,
            flushed: state.clone(),
            state,
            to_apply: Vec::new(),
            hangs: false,
            age: 0,
        };
        self.members.insert(id, member);
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.random >> 33) as usize % below.max(1)
    }

    fn one(&mut self) -> u64 {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        let drawn = self.draw(ids.len());
        ids[drawn]
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    fn event(&mut self) {
        let id = self.one();
        match self.draw(1000) {
            0..300 => self.poll(id),
            300..520 => (0..8).for_each(|_| self.deliver()),
            520..640 => self.finish_write(id),
            640..740 => self.apply(id),
            740..870 => self.tick(id),
            870..910 => self.propose(id),
            910..950 => self.read(id),
            950..962 => {
                let member = self.member(id);
                member.flushed = member.state.clone();
            }
            962..970 => self.compact(id),
            970..974 => self.crash(id),
            974..980 => self.member(id).hangs ^= true,
            980..988 => {
                let to = self.one();
                self.member(id).driver.transfer_leader(to);
            }
            988..990 => self.member(id).driver.report_unreachable(1),
            990..992 => drop(self.cut_off.insert(id)),
            992..996 => self.cut_off.clear(),
            _ => self.change(id),
        }
    }

    fn poll(&mut self, id: u64) {
        while let Some(output) = self.member(id).driver.poll() {
            self.take(id, output);
        }
        let status = self.member(id).driver.status();
        if status.role == Role::Leader {
            let leads = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leads, id, "two leaders in term {}", status.term);
        }
    }

    fn take(&mut self, id: u64, mut output: Output) {
        let steps = steps(&mut output);
        self.network.extend(output.send);
        for read in output.reads {
            let least = self.reads[&read.ctx];
            assert!(read.index >= least, "stale read {read:?}, {least}");
            self.answered += 1;
        }
        let member = self.member(id);
        member.writes.extend(output.append);
        member.to_apply.extend(steps);
        if let Some(request) = output.fetch {
            // Only what was handed to the log and finished can be asked for.
            let entries = member.disk.read(&request);
            member.driver.fetched(request, entries).unwrap();
        }
        for peer in output.needs_snapshot {
            self.offer(id, peer);
        }
    }

    fn offer(&mut self, id: u64, peer: u64) {
        let chance = self.draw(4);
        let member = self.members.get_mut(&id).unwrap();
        if chance == 0 {
            // None can be made.
            return member.driver.report_snapshot(peer, false);
        }
        let state = &member.state;
        let mut metadata = SnapshotMetadata {
            conf_state: Some(state.conf_state.clone()),
            index: Some(state.applied),
            term: self.history[&state.applied].0.term,
        };
        match self.saved.first_key_value() {
            // An old one.
            Some((&index, old)) if chance == 1 && index <= state.applied => {
                metadata.conf_state = Some(old.conf_state.clone());
                metadata.index = Some(index);
                metadata.term = self.history[&index].0.term;
            }
            _ => drop(self.saved.insert(state.applied, state.clone())),
        }
        let snapshot = Snapshot {
            data: None,
            metadata: Some(metadata),
        };
        if let Err(refused) = member.driver.offer_snapshot(peer, snapshot) {
            assert!(!matches!(refused, Error::Malformed { .. }), "{refused}");
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let drawn = self.draw(self.network.len().min(8));
        let message = match self.draw(20) {
            0 => self.network[drawn].clone(),
            _ => self.network.remove(drawn),
        };
        match self.draw(20) {
            0 => self.report(&message, false),
            _ => self.step(message),
        }
    }

    /// Who sends a snapshot hears what became of it.
    fn report(&mut self, message: &Message, ok: bool) {
        if is(message, MessageType::MsgSnap)
            && let Some(sender) = self.members.get_mut(&message.from.unwrap())
        {
            let to = message.to.unwrap();
            sender.driver.report_snapshot(to, ok);
        }
    }

    fn step(&mut self, message: Message) {
        let bytes = message.encode_to_vec();
        let (from, to) = (message.from.unwrap(), message.to.unwrap());
        let cut_off = self.cut_off.contains(&from) || self.cut_off.contains(&to);
        self.report(&message, !cut_off && self.members.contains_key(&to));
        if cut_off {
            return;
        }
        let message = Message::decode(&bytes[..]).unwrap();
        if let Some(member) = self.members.get_mut(&to)
            && let Err(refused) = member.driver.step(message)
        {
            let wrong = refused.is_fatal() || matches!(refused, Error::Malformed { .. });
            assert!(!wrong, "{refused}");
        }
    }

    fn finish_write(&mut self, id: u64) {
        let member = self.member(id);
        if member.hangs || member.writes.is_empty() {
            return;
        }
        let append = member.writes.remove(0);
        member.age = 0;
        member.disk.write(&append);
        if append.must_sync {
            member.durable = member.disk.clone();
        }
        member.driver.persisted(append.number);
        self.network.extend(append.then_send);
    }

    fn apply(&mut self, id: u64) {
        let take = self.draw(4);
        let member = self.members.get_mut(&id).unwrap();
        let take = take.min(member.to_apply.len());
        for step in member.to_apply.drain(..take) {
            let entry = match step {
                Step::Apply(entry) => entry,
                Step::Install(snapshot) => {
                    let index = snapshot.index.unwrap();
                    assert!(index > member.state.applied);
                    assert_eq!(snapshot.term, self.history[&index].0.term);
                    assert_eq!(snapshot.conf_state.as_ref(), Some(&self.history[&index].1));
                    member.state = self.saved[&index].clone();
                    member.flushed = member.state.clone();
                    member.driver.applied(index);
                    self.installed += 1;
                    continue;
                }
            };
            let index = entry.index.unwrap();
            assert_eq!(index, member.state.applied + 1);
            member.state.applied = index;
            if entry.r#type == Some(EntryType::EntryConfChange as i32) {
                let change = ConfChange::decode(entry.data.clone().unwrap()).unwrap();
                let admitted = member.state.admits(&change);
                if admitted && change.r#type == Some(Kind::ConfChangeRemoveNode as i32) {
                    member.state.removed.insert(change.node_id.unwrap());
                }
                let result = match admitted {
                    true => member.driver.apply_conf_change(&change).unwrap(),
                    false => member.driver.conf_state(),
                };
                member.state.conf_state = result;
                // The server makes a change durable before it tells anyone: with its commit index
                // alone, which raft writes without a sync, a member could forget after a power
                // cut that it needs no vote of one that was removed and thrown away.
                member.flushed = member.state.clone();
            }
            let now = (entry, member.state.conf_state.clone());
            let before = self.history.entry(index).or_insert_with(|| now.clone());
            assert_eq!(*before, now, "member {id} applied something else");
        }
        let applied = member.state.applied;
        member.driver.applied(applied);
    }

    fn tick(&mut self, id: u64) {
        let member = self.member(id);
        member.age = match member.writes.is_empty() {
            true => 0,
            false => member.age + 1,
        };
        member.driver.tick(member.age);
    }

    fn propose(&mut self, id: u64) {
        let data = format!("{}", self.draw(1 << 30));
        let _ = self.member(id).driver.propose(vec![Bytes::from(data)]);
    }

    fn read(&mut self, id: u64) {
        // All that anybody has applied was acknowledged before.
        let least = self.history.keys().last().copied().unwrap_or_default();
        self.next_read += 1;
        let ctx = self.next_read;
        self.reads.insert(ctx, least);
        let _ = self.member(id).driver.read_index(ctx);
    }

    /// Drops entries that are applied for good.
    fn compact(&mut self, id: u64) {
        let applied = self.member(id).flushed.applied;
        let kept = self.draw(8) as u64;
        let member = self.member(id);
        let first = (applied + 1).saturating_sub(kept);
        if first > member.disk.before.0 + 1 {
            member.disk.compact(first);
            member.durable.compact(first);
            member.driver.compacted(first);
        }
    }

    fn crash(&mut self, id: u64) {
        let saved = &self.saved;
        let member = self.members.get_mut(&id).unwrap();
        member.writes.clear();
        member.to_apply.clear();
        member.age = 0;
        member.disk = member.durable.clone();
        member.state = member.flushed.clone();
        let received = member.disk.received.as_ref();
        let received = received
            .and_then(|snapshot| snapshot.index)
            .unwrap_or_default();
        if received > member.state.applied {
            // Its installing was interrupted.
            member.state = saved[&received].clone();
            member.flushed = member.state.clone();
        }
        let boot = boot(
            &member.disk,
            member.state.applied,
            member.state.conf_state.clone(),
        );
        member.driver = Driver::new(member.config.clone(), boot).unwrap();
    }

    fn change(&mut self, id: u64) {
        self.members
            .retain(|one, member| *one == id || !member.driver.status().removed);
        let other = self.one();
        let voters = self.member(id).state.conf_state.voters.len();
        let kind = match self.draw(3) {
            0 => Kind::ConfChangeAddLearnerNode,
            1 => Kind::ConfChangeAddNode,
            _ => Kind::ConfChangeRemoveNode,
        };
        let node_id = match kind {
            Kind::ConfChangeAddLearnerNode if self.members.len() < 6 => {
                self.next_id += 1;
                self.next_id
            }
            // Of two members the removed one may hear that it is before the other's commit index is
            // durable, and a power cut then leaves a member that waits for it for ever; in etcd too.
            Kind::ConfChangeRemoveNode if voters < 3 => return,
            _ => other,
        };
        let change = change(kind, node_id);
        if self.member(id).driver.propose_conf_change(&change).is_ok()
            && !self.members.contains_key(&node_id)
        {
            self.join(node_id, Disk::default());
        }
    }

    /// No more faults: whoever is a member ends up with all that was committed, and more commits.
    fn heal(&mut self) {
        self.members
            .values_mut()
            .for_each(|member| member.hangs = false);
        self.cut_off.clear();
        for round in 0..400 {
            let ids: Vec<u64> = self.members.keys().copied().collect();
            for &id in &ids {
                self.tick(id);
            }
            for _ in 0..60 {
                for &id in &ids {
                    self.poll(id);
                    self.finish_write(id);
                    self.apply(id);
                }
                for message in std::mem::take(&mut self.network) {
                    self.step(message);
                }
            }
            if round > 100 && round % 10 == 0 {
                for &id in &ids {
                    self.propose(id);
                }
            }
        }
        let (&last, (_, conf_state)) = self.history.last_key_value().unwrap();
        let leader = *self.leaders.last_key_value().unwrap().1;
        assert!(conf_state.voters.contains(&leader));
        for id in conf_state.voters.iter().chain(&conf_state.learners) {
            let status = self.members[id].driver.status();
            assert_eq!(status.leader, leader, "member {id}: {status:?}");
            assert_eq!(status.applied, last, "member {id}: {status:?}");
        }
        assert!(last > 20, "little happened");
    }
}

fn run(seed: u64) -> World {
    let members: &[u64] = match seed % 3 {
        0 => &[1],
        1 => &[1, 2, 3],
        _ => &[1, 2, 3, 4, 5],
    };
    let mut world = World::new(seed, members);
    for _ in 0..EVENTS {
        world.event();
    }
    world.heal();
    world
}

#[test]
fn chaos_answers_reads_and_changes_members() {
    let world = run(8);
    assert!(world.answered > 10, "{}", world.answered);
    assert!(world.leaders.len() > 2, "{:?}", world.leaders);
    assert!(world.installed > 0);
    let changes = world.history.values();
    let changes = changes.filter(|(entry, _)| entry.r#type == Some(1));
    assert!(changes.count() > 5);
}

/// `CAIRN_CHAOS` sets how many runs there are; each has its own seed, always the same.
#[test]
fn chaos_forks_nothing_and_loses_nothing() {
    let runs = std::env::var("CAIRN_CHAOS").map_or(RUNS, |runs| runs.parse().unwrap());
    let mut installed = 0;
    for seed in 0..runs {
        println!("seed {seed}");
        installed += run(seed).installed;
    }
    println!("{installed} snapshots were installed");
    assert!(installed as u64 > runs, "{installed}");
}
