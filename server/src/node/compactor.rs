//! Compaction by itself, as `--auto-compaction-mode` and `--auto-compaction-retention` ask for it,
//! by etcd's rules: every member notes revisions, the leader compacts. When that is due is pure
//! ([`Schedule`]); time is what the caller says it is.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use api::{Backend, Caller};
use config::AutoCompaction;
use proto::etcdserverpb::CompactionRequest;
use state::Error;
use tracing::{info, warn};

use super::{backend::NodeBackend, shared::Shared};

/// Of a longer period the history is compacted once an hour.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// A revision is noted so many times in an interval; what failed is tried again as often.
const NOTES: u32 = 10;
/// However short a period is, nobody looks more often.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// How often it is looked whether there are more revisions than are to be kept.
const REVISION_PAUSE: Duration = Duration::from_secs(300);

/// When the history is compacted, and where.
#[derive(Debug)]
pub(crate) enum Schedule {
    Periodic(Periodic),
    /// So many revisions are kept.
    Revisions {
        kept: i64,
        last: i64,
    },
}

/// Keeps what was current in the last period.
#[derive(Debug)]
pub(crate) struct Periodic {
    period: Duration,
    /// The revisions that were noted in the last period, oldest first.
    noted: VecDeque<i64>,
    /// Where the history was compacted last.
    last: i64,
    /// When it was, or when this began.
    since: Duration,
    /// What must have gone by since: a whole period at first, an interval later.
    wait: Duration,
}

impl Periodic {
    fn interval(&self) -> Duration {
        self.period.min(LONGEST_INTERVAL)
    }

    fn pause(&self) -> Duration {
        (self.interval() / NOTES).max(SHORTEST_PAUSE)
    }

    /// How many notes a period has, its beginning and its end included.
    fn notes(&self) -> usize {
        let notes = self.period.as_nanos() / self.pause().as_nanos();
        usize::try_from(notes).map_or(usize::MAX, |notes| notes.saturating_add(1))
    }

    fn note(&mut self, revision: i64) {
        self.noted.push_back(revision);
        if self.noted.len() > self.notes() {
            self.noted.pop_front();
        }
    }

    fn due(&mut self, now: Duration) -> Option<i64> {
        let oldest = *self.noted.front()?;
        if now.saturating_sub(self.since) < self.wait || oldest == self.last {
            return None;
        }
        self.wait = self.interval();
        Some(oldest)
    }
}

impl Schedule {
    /// What begins now.
    pub fn new(policy: AutoCompaction, now: Duration) -> Self {
        match policy {
            AutoCompaction::Periodic(period) => Self::Periodic(Periodic {
                period,
                noted: VecDeque::new(),
                last: 0,
                since: now,
                wait: period,
            }),
            AutoCompaction::Revisions(kept) => Self::Revisions { kept, last: 0 },
        }
    }

    /// Time until the next look.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Periodic(periodic) => periodic.pause(),
            Self::Revisions { .. } => REVISION_PAUSE,
        }
    }

    /// Notes the current revision, before each pause.
    pub fn note(&mut self, revision: i64) {
        if let Self::Periodic(periodic) = self {
            periodic.note(revision);
        }
    }

    /// Behind each pause: where to compact now, if this member leads.
    pub fn due(&mut self, now: Duration, revision: i64) -> Option<i64> {
        match self {
            Self::Periodic(periodic) => periodic.due(now),
            Self::Revisions { kept, last } => {
                let at = revision.saturating_sub(*kept);
                (at > 0 && at != *last).then_some(at)
            }
        }
    }

    /// It is compacted there; without this call it is due again behind the next pause.
    pub fn done(&mut self, at: i64, now: Duration) {
        match self {
            Self::Periodic(periodic) => {
                periodic.last = at;
                periodic.since = now;
            }
            Self::Revisions { last, .. } => *last = at,
        }
    }

    fn mode(&self) -> &'static str {
        match self {
            Self::Periodic(_) => "periodic",
            Self::Revisions { .. } => "revision",
        }
    }
}

/// Compacts for as long as the node runs.
pub(crate) async fn run(shared: Arc<Shared>, policy: AutoCompaction) {
    let mut schedule = Schedule::new(policy, shared.now());
    let revision = || shared.published.load().view.revision();
    let mode = schedule.mode();
    loop {
        schedule.note(revision());
        tokio::time::sleep(schedule.pause()).await;
        if !shared.is_leader() {
            continue;
        }
        let Some(at) = schedule.due(shared.now(), revision()) else {
            continue;
        };
        info!(revision = at, "starting auto {mode} compaction");
        let backend = NodeBackend::new(Arc::clone(&shared));
        let request = CompactionRequest {
            revision: at,
            physical: false,
        };
        match backend.compact(&Caller::server(), request).await {
            // Somebody else may have compacted further.
            Ok(_) | Err(Error::Compacted) => {
                info!(revision = at, "completed auto {mode} compaction");
                schedule.done(at, shared.now());
            }
            Err(error) => warn!(revision = at, %error, "failed auto {mode} compaction"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Runs for some time on a clock of its own, with a new revision each second (in the beginning it
    /// is 1), and returns when and where it was compacted. `works` says by the time whether it can be.
    fn compactions(
        policy: AutoCompaction,
        time: Duration,
        works: impl Fn(Duration) -> bool,
    ) -> Vec<(u64, i64)> {
        let revision = |now: Duration| 1 + now.as_secs() as i64;
        let mut now = Duration::ZERO;
        let mut schedule = Schedule::new(policy, now);
        let mut done = Vec::new();
        while now < time {
            schedule.note(revision(now));
            now += schedule.pause();
            if !works(now) {
                continue;
            }
            if let Some(at) = schedule.due(now, revision(now)) {
                done.push((now.as_secs(), at));
                schedule.done(at, now);
            }
        }
        done
    }

    #[test]
    fn a_short_period_is_kept_each_time_it_is_over() {
        let found = compactions(AutoCompaction::Periodic(10 * MINUTE), HOUR, |_| true);
        // Noted a minute apart; the oldest of 11 notes is a period and a pause old.
        assert_eq!(found[..3], [(600, 1), (1200, 541), (1800, 1141)]);
        let found = compactions(AutoCompaction::Periodic(5 * SECOND), 20 * SECOND, |_| true);
        assert_eq!(found[..3], [(5, 1), (10, 5), (15, 10)]);
    }

    #[test]
    fn a_long_period_is_kept_every_hour() {
        let found = compactions(AutoCompaction::Periodic(24 * HOUR), 27 * HOUR, |_| true);
        let hour = 3600;
        assert_eq!(
            found,
            [
                (24 * hour, 1),
                (25 * hour, 3241),
                (26 * hour, 6841),
                (27 * hour, 10441),
            ]
        );
    }

    #[test]
    fn what_could_not_be_is_made_up_for_at_once() {
        let from = |now: Duration| now >= 25 * MINUTE;
        let found = compactions(AutoCompaction::Periodic(10 * MINUTE), HOUR, from);
        assert_eq!(found[..2], [(1500, 841), (2100, 1441)]);
    }

    #[test]
    fn without_new_revisions_nothing_is_compacted() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(SECOND), Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut found = Vec::new();
        for _ in 0..100 {
            schedule.note(7);
            now += schedule.pause();
            if let Some(at) = schedule.due(now, 7) {
                found.push(at);
                schedule.done(at, now);
            }
        }
        assert_eq!(found, [7]);
    }

    #[test]
    fn so_many_revisions_are_kept() {
        let policy = AutoCompaction::Revisions(1000);
        let found = compactions(policy, HOUR / 2, |_| true);
        assert_eq!(found, [(1200, 201), (1500, 501), (1800, 801)]);
        let late = |now: Duration| now > HOUR / 4;
        assert_eq!(
            compactions(policy, HOUR / 2, late),
            [(1200, 201), (1500, 501), (1800, 801)]
        );
    }

    #[test]
    fn a_failed_compaction_is_due_again() {
        let mut schedule = Schedule::new(AutoCompaction::Revisions(10), Duration::ZERO);
        assert_eq!(schedule.due(REVISION_PAUSE, 10), None);
        assert_eq!(schedule.due(REVISION_PAUSE, 11), Some(1));
        assert_eq!(schedule.due(REVISION_PAUSE, 11), Some(1));
        schedule.done(1, REVISION_PAUSE);
        assert_eq!(schedule.due(REVISION_PAUSE, 11), None);
    }

    #[test]
    fn no_period_is_too_short_to_be_slept() {
        let schedule = Schedule::new(AutoCompaction::Periodic(Duration::from_nanos(1)), SECOND);
        assert_eq!(schedule.pause(), SHORTEST_PAUSE);
    }
}
