//! What a run came to.

use std::{collections::BTreeMap, fmt};

use history::Summary;

/// How much happened in one world or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Seconds of the world until the happy end.
    pub seconds: u64,
    /// Events of all kinds.
    pub events: u64,
    /// Messages that members took.
    pub delivered: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Operations that clients began.
    pub operations: u64,
    /// Those that were done and answered.
    pub answered: u64,
    /// Those that changed something, of these.
    pub writes: u64,
    /// Those without an answer that turned out to be done.
    pub unknown_done: u64,
    /// Leases that ended by themselves, with keys.
    pub expired: u64,
    /// Events that watchers were told.
    pub watched: u64,
    /// Times that watchers were told they know everything.
    pub progress: u64,
    /// Entries that were committed.
    pub entries: u64,
    /// Terms that had a leader.
    pub leaders: u64,
    /// Members that crashed.
    pub crashes: u64,
    /// Members that started.
    pub starts: u64,
    /// Disks that decayed, and members that refused to start on one.
    pub decays: u64,
    /// Members that refused to start on a decayed disk.
    pub refused_starts: u64,
    /// Snapshots that members installed.
    pub snapshots: u64,
    /// Versions that the cluster has had.
    pub raised: u64,
    /// What broke, and how often.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(crate) fn judged(&mut self, summary: &Summary) {
        self.writes = summary.writes as u64;
        self.unknown_done = summary.unknown_done as u64;
        self.expired = summary.expired as u64;
        self.watched = summary.events as u64;
        self.progress = summary.progress as u64;
    }

    /// Adds another world's.
    pub fn add(&mut self, other: &Self) {
        let numbers = [
            (&mut self.seconds, other.seconds),
            (&mut self.events, other.events),
            (&mut self.delivered, other.delivered),
            (&mut self.lost, other.lost),
            (&mut self.operations, other.operations),
            (&mut self.answered, other.answered),
            (&mut self.writes, other.writes),
            (&mut self.unknown_done, other.unknown_done),
            (&mut self.expired, other.expired),
            (&mut self.watched, other.watched),
            (&mut self.progress, other.progress),
            (&mut self.entries, other.entries),
            (&mut self.leaders, other.leaders),
            (&mut self.crashes, other.crashes),
            (&mut self.starts, other.starts),
            (&mut self.decays, other.decays),
            (&mut self.refused_starts, other.refused_starts),
            (&mut self.snapshots, other.snapshots),
            (&mut self.raised, other.raised),
        ];
        for (sum, number) in numbers {
            *sum += number;
        }
        for (fault, count) in &other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
    }

    /// How many things broke.
    pub fn broken(&self) -> u64 {
        self.faults.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cluster-seconds, {} events, {} messages delivered, {} lost",
            self.seconds, self.events, self.delivered, self.lost
        )?;
        writeln!(
            f,
            "{} operations, {} answered, {} of them writes; {} writes without an answer were done, \
             {} leases ended by themselves",
            self.operations, self.answered, self.writes, self.unknown_done, self.expired
        )?;
        writeln!(
            f,
            "{} entries, {} terms with a leader, {} snapshots installed; watchers: {} events, {} \
             times progress",
            self.entries, self.leaders, self.snapshots, self.watched, self.progress
        )?;
        writeln!(
            f,
            "{} crashes, {} starts; {} disks decayed, {} refused; {} versions of clusters",
            self.crashes, self.starts, self.decays, self.refused_starts, self.raised
        )?;
        write!(f, "{} faults: {:?}", self.broken(), self.faults)
    }
}
