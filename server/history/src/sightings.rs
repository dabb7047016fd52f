//! Who knew of which revision at what time.

use crate::{History, Operation, Outcome};

/// Revisions that somebody was told, by the time.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    /// Times with the highest revision known then, both rising.
    known: Vec<(u64, i64)>,
    /// Revisions with the earliest time at which that or a later one was known, both rising.
    first: Vec<(i64, u64)>,
}

impl Sightings {
    pub fn new(sightings: impl IntoIterator<Item = (u64, i64)>) -> Self {
        let mut by_time: Vec<(u64, i64)> = sightings.into_iter().collect();
        by_time.sort_unstable();
        let mut by_revision: Vec<(i64, u64)> = by_time.iter().map(|(at, of)| (*of, *at)).collect();
        by_revision.sort_unstable();
        let mut newest = i64::MIN;
        for (_, revision) in &mut by_time {
            newest = newest.max(*revision);
            *revision = newest;
        }
        let mut earliest = u64::MAX;
        for (_, at) in by_revision.iter_mut().rev() {
            earliest = earliest.min(*at);
            *at = earliest;
        }
        Self {
            known: by_time,
            first: by_revision,
        }
    }

    /// All that anybody was told.
    pub fn of_all(history: &History) -> Self {
        let told = history.operations.iter().filter_map(told);
        let watched = history.watches.iter().flat_map(|watch| &watch.responses);
        let watched = watched.map(|response| (response.at, response.revision));
        Self::new(told.chain(watched))
    }

    /// The newest revision that was known before a time, if any.
    pub fn known_before(&self, time: u64) -> Option<i64> {
        let behind = self.known.partition_point(|(at, _)| *at < time);
        self.known[..behind].last().map(|(_, revision)| *revision)
    }

    /// When a revision or a later one was known first; never is the end of time.
    pub fn first_seen(&self, revision: i64) -> u64 {
        let at = self.first.partition_point(|(of, _)| *of < revision);
        self.first.get(at).map_or(u64::MAX, |(_, at)| *at)
    }
}

/// When the answer of an operation came, and its revision.
pub(crate) fn told(operation: &Operation) -> Option<(u64, i64)> {
    match &operation.outcome {
        Outcome::Done(response) => Some((operation.end?, response.revision)),
        Outcome::Refused(_) | Outcome::Unknown => None,
    }
}
