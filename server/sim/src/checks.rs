//! What must hold after each step, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use consensus::{Role, Status};
use history::Event;
use mvcc::RevisionEvents;
use prost::Message as _;
use proto::raftpb::Entry;
use state::Version;

use crate::{
    convert,
    node::{Applied, COMPARE_EVERY, Node},
};

/// How far a member was in this life.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    life: u64,
    term: u64,
    commit: u64,
    applied: u64,
    version: Option<Version>,
}

/// What all members have shown so far.
#[derive(Default)]
pub(crate) struct Checks {
    /// Who led in a term.
    pub leaders: BTreeMap<u64, u64>,
    /// The entries that were applied: term and checksum by index.
    pub entries: BTreeMap<u64, (u64, u32)>,
    /// The highest commit index of anybody.
    commit: u64,
    marks: BTreeMap<u64, Mark>,
    /// The state of whoever applied an entry at which members are compared, by where its hash counts
    /// from: a hash that was kept of a compaction counts from the one before.
    states: BTreeMap<(u64, i64), String>,
    /// The hashes of compactions, by the revisions that they cover.
    hashes: BTreeMap<(i64, i64), u32>,
    /// All events, by their revisions.
    truth: BTreeMap<i64, Vec<Event>>,
    /// Those that the cluster has had.
    pub versions: BTreeSet<Version>,
}

impl Checks {
    /// The last entry that anybody applied.
    pub fn applied(&self) -> u64 {
        self.entries.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// The last revision.
    pub fn revision(&self) -> i64 {
        self.truth.last_key_value().map_or(1, |(of, _)| *of)
    }

    /// All events in order.
    pub fn log(&self) -> Vec<Event> {
        self.truth.values().flatten().cloned().collect()
    }

    /// After each step of a member. `durable` says how far the logs of members reach that are down.
    pub fn step(
        &mut self,
        node: &Node,
        status: &Status,
        others: &BTreeMap<u64, u64>,
        ups: &[&Node],
    ) {
        let id = node.id;
        let now = Mark {
            life: node.life,
            term: status.term,
            commit: status.commit,
            applied: node.machine.published().applied.index,
            version: node.machine.published().cluster_version,
        };
        self.versions.extend(now.version);
        let before = self.marks.insert(id, now).unwrap_or_default();
        if before.life == now.life {
            assert!(
                now.term >= before.term && now.commit >= before.commit,
                "member {id} went back from {before:?} to {now:?}"
            );
            assert!(
                now.applied >= before.applied && now.version >= before.version,
                "member {id} went back from {before:?} to {now:?}"
            );
        }
        assert!(
            status.applied <= now.applied.max(status.commit) && status.commit <= status.last_index,
            "member {id}: {status:?}"
        );
        if status.role == Role::Leader {
            self.leader(node, status, &before, &now);
            if status.commit > self.commit {
                on_quorum(node, status, others, ups);
            }
        }
        self.commit = self.commit.max(status.commit);
    }

    /// A term has one leader, and that has all that is committed.
    fn leader(&mut self, node: &Node, status: &Status, before: &Mark, now: &Mark) {
        let id = node.id;
        let leader = *self.leaders.entry(now.term).or_insert(id);
        assert_eq!(leader, id, "two leaders in term {}", now.term);
        if before.term == now.term && before.life == now.life {
            return;
        }
        assert!(
            status.last_index >= self.commit || status.term < self.newest_term(),
            "member {id} leads term {} up to {}, and {} is committed",
            now.term,
            status.last_index,
            self.commit
        );
    }

    fn newest_term(&self) -> u64 {
        self.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }

    /// After each batch of entries.
    pub fn applied_batch(&mut self, node: &Node, applied: &Applied) {
        self.entries_and_events(node.id, &applied.entries, &applied.events);
        if let Some(hash) = &applied.hash {
            let covered = (hash.compact_revision, hash.revision);
            let before = *self.hashes.entry(covered).or_insert(hash.hash);
            assert_eq!(before, hash.hash, "member {}: {hash:?}", node.id);
        }
        let index = node.machine.published().applied.index;
        if index > 0 && index.is_multiple_of(COMPARE_EVERY) {
            self.compare(node, index);
        }
    }

    /// What a member has applied.
    pub fn entries_and_events(&mut self, id: u64, entries: &[Entry], events: &[RevisionEvents]) {
        for entry in entries {
            self.entry(id, entry);
        }
        for events in events {
            self.events(id, events);
        }
    }

    /// At an index all members apply the same entry.
    fn entry(&mut self, id: u64, entry: &Entry) {
        let own = (entry.term(), crc32c::crc32c(&entry.encode_to_vec()));
        let before = *self.entries.entry(entry.index()).or_insert(own);
        let index = entry.index();
        assert_eq!(before, own, "member {id} applied another entry {index}");
    }

    /// At a revision all members see the same events.
    fn events(&mut self, id: u64, events: &RevisionEvents) {
        let own: Vec<Event> = events.events.iter().map(convert::of_event).collect();
        let revision = events.revision;
        let before = self.truth.entry(revision).or_insert_with(|| own.clone());
        assert_eq!(*before, own, "member {id} at revision {revision}");
    }

    /// At an entry all members have the same state.
    pub fn compare(&mut self, node: &Node, index: u64) {
        let published = node.machine.published();
        let view = &published.view;
        let hash = view.hash_kv(view.revision()).unwrap();
        let leases = node.with_leases(|leases| leases.ids().into_iter().collect::<BTreeSet<i64>>());
        let own = format!(
            "hash {}, revision {}, compacted {}, keys {}, leases {leases:?}, members {:?}, {:?}",
            hash.hash,
            view.revision(),
            view.compact_revision(),
            view.key_count(),
            published.members,
            published.cluster_version
        );
        let at = (index, hash.compact_revision);
        let before = self.states.entry(at).or_insert_with(|| own.clone());
        assert_eq!(*before, own, "member {} at entry {index}", node.id);
    }
}

/// What is committed lies durably with a majority.
fn on_quorum(node: &Node, status: &Status, others: &BTreeMap<u64, u64>, ups: &[&Node]) {
    let voters = status.peers.iter().filter(|peer| !peer.is_learner);
    let voters: Vec<u64> = voters.map(|peer| peer.id).collect();
    let holds = |id: &&u64| match ups.iter().find(|other| other.id == **id) {
        Some(other) => holds(other, node, status.commit),
        None => others.get(*id).is_some_and(|last| *last >= status.commit),
    };
    let have = voters.iter().filter(holds).count();
    let told = |id: &u64| match ups.iter().find(|other| other.id == *id) {
        Some(up) => format!(
            "{id}: synced {} of {}, term {:?} there",
            up.synced,
            up.wal.last_index(),
            up.wal.reader().term(status.commit)
        ),
        None => format!("{id}: down with {:?}", others.get(id)),
    };
    assert!(
        have > voters.len() / 2,
        "member {} commits {} with {have} of {:?}",
        node.id,
        status.commit,
        voters.iter().map(told).collect::<Vec<_>>()
    );
}

/// Whether a member has the leader's entry at an index, durably.
fn holds(node: &Node, leader: &Node, index: u64) -> bool {
    // Not what raft takes for durable, which may lag.
    let (own, leaders) = (node.wal.reader(), leader.wal.reader());
    let differs = match (own.term(index), leaders.term(index)) {
        (Some(own), Some(leaders)) => own != leaders,
        _ => false,
    };
    node.synced >= index && !differs
}
