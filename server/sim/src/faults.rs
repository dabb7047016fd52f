//! What breaks, and how it is repaired.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, rngs::StdRng};
use state::{Member, members};

use crate::{
    disk::{Crash, Disk},
    world::{Event, MILLI, SECOND, Time, World, member},
};

/// Voters that a cluster shrinks and grows to.
const FEWEST: usize = 3;
const MOST: usize = 5;
/// A learner is promoted when it has so much of the leader's log, in hundredths.
const READY_PERCENT: u64 = 90;

/// What is repaired after a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Repair {
    Network,
    Disk(u64),
    Apply(u64),
    Fuse(u64),
}

/// What happens to members beside their own doing.
pub(crate) struct Keeper {
    /// The ID of the next member.
    next: u64,
    /// Members that were started after they were added.
    pub started: BTreeSet<u64>,
    /// Disks as they were before they decayed.
    pub copies: BTreeMap<u64, Disk>,
    /// Whether disks decay when members crash.
    decay: bool,
}

impl Keeper {
    pub fn new(next: u64) -> Self {
        Self {
            next,
            started: BTreeSet::new(),
            copies: BTreeMap::new(),
            decay: true,
        }
    }

    /// Whether the disk of a member that just crashed decays.
    pub fn decays(&self, rng: &mut StdRng) -> bool {
        self.decay && rng.random_bool(0.05)
    }
}

impl World {
    /// One thing breaks.
    pub(crate) fn fault(&mut self) {
        let next = self.rng.random_range(SECOND / 2..4 * SECOND);
        self.after(next, Event::Fault);
        let ids: Vec<u64> = self.slots.keys().copied().collect();
        let id = ids[self.rng.random_range(0..ids.len())];
        let lasts = self.rng.random_range(100 * MILLI..6 * SECOND);
        let kind = self.rng.random_range(0..100);
        let name = match kind {
            0..14 => self.fault_crash(id),
            14..22 => self.fault_fuse(id),
            22..27 => self.fault_disk_fails(id),
            27..31 => self.fault_disk_full(id),
            31..33 => self.fault_power_cut(&ids),
            33..50 => self.fault_network(id, &ids, lasts),
            50..60 => self.fault_disk_slow(id, lasts),
            60..66 => self.fault_pause(id, lasts),
            66..70 => self.fault_apply_slow(id, lasts),
            70..74 => self.fault_clock(id),
            74..82 => self.fault_transfer(&ids),
            _ => self.change_members(),
        };
        if let Some(name) = name {
            *self.report.faults.entry(name).or_default() += 1;
        }
    }

    fn is_up(&self, id: u64) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.node.is_some())
    }

    fn fault_crash(&mut self, id: u64) -> Option<&'static str> {
        if !self.is_up(id) {
            return None;
        }
        let how = self.some_crash();
        self.crash(id, how);
        Some(match how {
            Crash::Kill => "kill",
            Crash::PowerCut => "power cut",
        })
    }

    /// A member dies at one of its next steps, wherever that is.
    fn fault_fuse(&mut self, id: u64) -> Option<&'static str> {
        let steps = self.rng.random_range(0..60);
        self.node(id)?.fuse = Some(steps);
        self.after(10 * SECOND, Event::Repair(Repair::Fuse(id)));
        Some("crash within a step")
    }

    /// A member dies within one of its next writes.
    fn fault_disk_fails(&mut self, id: u64) -> Option<&'static str> {
        let calls = self.rng.random_range(0..30);
        let node = self.node(id)?;
        node.disk_may_fail = true;
        node.disk.files.fail_after(calls);
        Some("failing disk")
    }

    fn fault_disk_full(&mut self, id: u64) -> Option<&'static str> {
        let bytes = self.rng.random_range(0..8 << 10);
        let node = self.node(id)?;
        node.disk_may_fail = true;
        node.disk.files.fill_after(bytes);
        Some("full disk")
    }

    /// All members lose their power at once.
    fn fault_power_cut(&mut self, ids: &[u64]) -> Option<&'static str> {
        for id in ids
            .iter()
            .copied()
            .filter(|id| self.is_up(*id))
            .collect::<Vec<_>>()
        {
            self.crash(id, Crash::PowerCut);
        }
        Some("power cut of all")
    }

    fn fault_network(&mut self, id: u64, ids: &[u64], lasts: Time) -> Option<&'static str> {
        let others: Vec<u64> = ids.iter().copied().filter(|other| *other != id).collect();
        let other = *others.get(self.rng.random_range(0..others.len().max(1)))?;
        self.after(lasts, Event::Repair(Repair::Network));
        Some(match self.rng.random_range(0..7) {
            0 => {
                self.network.cut.insert((id, other));
                "one-way cut"
            }
            1 => {
                self.network.isolate(id, &others, true, true);
                "isolation"
            }
            2 => {
                let from = self.rng.random_bool(0.5);
                self.network.isolate(id, &others, from, !from);
                "one-way isolation"
            }
            3 => {
                self.network.lost = self.rng.random_range(10..300);
                "loss"
            }
            4 => {
                self.network.doubled = self.rng.random_range(10..300);
                "doubles"
            }
            5 => {
                self.network.slow = self.rng.random_range(5 * MILLI..800 * MILLI);
                "delays"
            }
            _ => {
                let end = self.now + lasts;
                for link in [(id, other), (other, id)] {
                    self.network.clogged.insert(link, end);
                }
                "clog"
            }
        })
    }

    fn fault_disk_slow(&mut self, id: u64, lasts: Time) -> Option<&'static str> {
        let now = self.now;
        let hangs = self.rng.random_bool(0.3);
        let slow = self.rng.random_range(20 * MILLI..600 * MILLI);
        let slot = self.slots.get_mut(&id)?;
        if hangs {
            slot.hung_disk = now + lasts;
            return Some("hung disk");
        }
        slot.slow_disk = slow;
        self.after(lasts, Event::Repair(Repair::Disk(id)));
        Some("slow disk")
    }

    fn fault_pause(&mut self, id: u64, lasts: Time) -> Option<&'static str> {
        let now = self.now;
        self.slots.get_mut(&id)?.paused = now + lasts;
        Some("pause")
    }

    fn fault_apply_slow(&mut self, id: u64, lasts: Time) -> Option<&'static str> {
        let slow = self.rng.random_range(20 * MILLI..2 * SECOND);
        self.slots.get_mut(&id)?.slow_apply = slow;
        self.after(lasts, Event::Repair(Repair::Apply(id)));
        Some("slow apply")
    }

    /// A snapshot is on its way into a member: now and then it takes long there, and meanwhile the
    /// member is cut off until it needs another.
    pub(crate) fn disturb_install(&mut self, id: u64) {
        if !self.settings.faults || self.rng.random_bool(0.7) {
            return;
        }
        let (apart, slow) = (
            self.rng.random_range(SECOND..4 * SECOND),
            self.rng.random_range(2 * SECOND..10 * SECOND),
        );
        let others: Vec<u64> = self
            .slots
            .keys()
            .copied()
            .filter(|other| *other != id)
            .collect();
        self.network.isolate(id, &others, false, true);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.slow_apply = slow;
        }
        self.after(apart, Event::Repair(Repair::Network));
        self.after(slow, Event::Repair(Repair::Apply(id)));
        *self.report.faults.entry("slow install").or_default() += 1;
    }

    /// A member has just won an election. Now and then something is in the way of the first entry
    /// of its term, before which it must not answer reads.
    pub(crate) fn disturb_leader(&mut self, id: u64) {
        if !self.settings.faults || self.rng.random_bool(0.7) {
            return;
        }
        let lasts = self.rng.random_range(50 * MILLI..2 * SECOND);
        let ids: Vec<u64> = self.slots.keys().copied().collect();
        let name = match self.rng.random_range(0..5) {
            0 => self.fault_pause(id, lasts).map(|_| "pause of a new leader"),
            1 => self.node(id).map(|node| {
                // It dies within the steps that bring the entry to its quorum.
                node.fuse = Some(lasts as u32 % 8);
                "crash of a new leader"
            }),
            2 => {
                for id in &ids {
                    if let Some(slot) = self.slots.get_mut(id) {
                        slot.slow_disk = lasts;
                    }
                    self.after(lasts, Event::Repair(Repair::Disk(*id)));
                }
                Some("slow disks under a new leader")
            }
            3 => self.fault_voters(id, &ids),
            _ => {
                let others: Vec<u64> = ids.into_iter().filter(|other| *other != id).collect();
                let from = self.rng.random();
                self.network.isolate(id, &others, from, !from);
                self.after(lasts, Event::Repair(Repair::Network));
                Some("isolation of a new leader")
            }
        };
        if let Some(name) = name {
            *self.report.faults.entry(name).or_default() += 1;
        }
    }

    /// All who may have voted for a new leader lose their power, and come back without hearing of
    /// it: who does not remember its vote votes again in that term, and for another.
    fn fault_voters(&mut self, leader: u64, ids: &[u64]) -> Option<&'static str> {
        let others = ids.iter().copied().filter(|id| *id != leader);
        let others: Vec<u64> = others.collect();
        if others.is_empty() {
            return None;
        }
        let apart = self.rng.random_range(2 * SECOND..6 * SECOND);
        self.network.isolate(leader, &others, true, true);
        self.after(apart, Event::Repair(Repair::Network));
        for id in others {
            if self.is_up(id) {
                self.crash(id, Crash::PowerCut);
            }
        }
        Some("power cut of the voters of a new leader")
    }

    fn fault_clock(&mut self, id: u64) -> Option<&'static str> {
        if !self.clocks_jump {
            return None;
        }
        let jump = self.rng.random_range(0..5 * SECOND);
        self.slots.get_mut(&id)?.jumped += jump;
        Some("clock jump")
    }

    fn fault_transfer(&mut self, ids: &[u64]) -> Option<&'static str> {
        let to = ids[self.rng.random_range(0..ids.len())];
        let leader = self.leader()?;
        self.node(leader)?.driver.transfer_leader(to);
        self.settle(leader);
        Some("transfer")
    }

    /// Who takes itself for the leader, in the newest term of these.
    fn leader(&self) -> Option<u64> {
        let ups = self.slots.values().filter_map(|slot| slot.node.as_deref());
        let statuses = ups.map(|node| node.driver.status());
        let leaders = statuses.filter(|status| status.leader == status.id);
        leaders
            .max_by_key(|status| status.term)
            .map(|status| status.id)
    }

    /// A member is added, promoted or removed, as far as the server would let it.
    fn change_members(&mut self) -> Option<&'static str> {
        let leader = self.leader()?;
        let clock = self.clock(leader);
        let status = self.node(leader)?.driver.status();
        let known = self.node(leader)?.machine.published().members.clone();
        let learner = known.learners().next().map(|member| member.id);
        let voters: Vec<u64> = known.voters().map(|member| member.id).collect();
        let draw = self.rng.random_range(0..10);
        if let Some(learner) = learner {
            let matched = |id| {
                let mut peers = status.peers.iter();
                peers
                    .find(|peer| peer.id == id)
                    .map_or(0, |peer| peer.matched)
            };
            if draw < 2 {
                self.configure(leader, |id| members::remove(id, learner));
                return Some("removal of a learner");
            }
            if matched(learner) * 100 < matched(leader) * READY_PERCENT || !known.may_promote() {
                return None;
            }
            self.node(leader)?
                .configure(|id| members::promote(id, learner), clock);
            self.settle(leader);
            return Some("promotion");
        }
        if voters.len() < MOST && (draw < 5 || voters.len() <= FEWEST) {
            let new = Member {
                is_learner: true,
                name: String::new(),
                ..member(self.keeper.next)
            };
            self.keeper.next += 1;
            self.configure(leader, |id| members::add(id, &new));
            return Some("new learner");
        }
        if voters.len() <= FEWEST {
            return None;
        }
        let gone = match draw % 2 {
            0 => leader,
            _ => voters[self.rng.random_range(0..voters.len())],
        };
        let active = status.peers.iter().filter(|peer| {
            !peer.is_learner && peer.id != gone && (peer.recent_active || peer.id == leader)
        });
        // As the server: those that are left and heard of must be a quorum.
        if active.count() <= (voters.len() - 1) / 2 || !known.may_remove_voter(gone) {
            return None;
        }
        self.configure(leader, |id| members::remove(id, gone));
        Some(match gone == leader {
            true => "removal of the leader",
            false => "removal",
        })
    }

    fn configure(&mut self, leader: u64, change: impl FnOnce(u64) -> proto::raftpb::ConfChange) {
        let clock = self.clock(leader);
        if let Some(node) = self.node(leader) {
            node.configure(change, clock);
        }
        self.settle(leader);
    }

    pub(crate) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Network => self.network.heal(),
            Repair::Disk(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.slow_disk = 2 * MILLI;
                }
            }
            Repair::Apply(id) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.slow_apply = MILLI;
                }
            }
            Repair::Fuse(id) => {
                if let Some(node) = self.node(id) {
                    node.fuse = None;
                }
            }
        }
    }

    /// Everything is repaired, and nothing breaks any more.
    pub(crate) fn repair_all(&mut self) {
        self.settings.faults = false;
        self.network.heal();
        let now = self.now;
        for slot in self.slots.values_mut() {
            slot.paused = now.min(slot.paused);
            slot.hung_disk = now.min(slot.hung_disk);
            slot.slow_disk = 2 * MILLI;
            slot.slow_apply = MILLI;
            if let Some(node) = slot.node.as_deref_mut() {
                node.fuse = None;
                node.disk_may_fail = false;
                node.disk.files.fail_after(u64::MAX);
                node.disk.files.fill_after(u64::MAX);
            }
        }
    }
}
