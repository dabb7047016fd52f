//! The log as raft sees it: all of it in terms, the newest entries in memory, the rest on request.
//!
//! raft counts on reading what it handed out for writing at once, long before it is durable. So
//! entries enter here when they are handed out, and leave only when they are durable and the memory
//! for them is used up.

use std::{
    cell::{Cell, RefCell},
    cmp,
    collections::{BTreeSet, VecDeque},
};

use raft::{
    Error as RaftError, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{Entry, EntryType, HardState, Snapshot},
};

use crate::{Boot, Error, FetchRequest, TermRun, codec, fetch::Fetches, terms::Terms};

/// What an entry weighs in memory besides its data.
const ENTRY_OVERHEAD: usize = 128;

/// Why raft reads entries without being able to wait for them. It says so to nobody, but all ways
/// into it are the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It looks for membership changes before an election. The driver has looked already, so it is
    /// shown none.
    Scan,
    /// It hands out entries for apply, and none is wanted now.
    Shut,
    /// It hands out entries for apply.
    Open,
}

pub(crate) struct LogStore {
    boot: RaftState,
    first: u64,
    last: u64,
    terms: Terms,
    /// The entries up to `last`.
    cache: VecDeque<Entry>,
    cached: usize,
    cache_bytes: usize,
    persisted: u64,
    /// Which entries above `changes_from` are membership changes. Older entries were never seen.
    changes: VecDeque<u64>,
    changes_from: u64,
    apply_bytes: u64,
    pub(crate) gate: Cell<Gate>,
    pub(crate) fetches: RefCell<Fetches>,
    /// A snapshot for the one member that raft is being asked to send to.
    pub(crate) offer: Option<Snapshot>,
    needs_snapshot: RefCell<BTreeSet<u64>>,
}

pub(crate) fn weight(entry: &Entry) -> usize {
    // A membership change's data is small beside its overhead.
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

impl LogStore {
    /// Checks what the disk holds, so that raft need not panic about it.
    pub(crate) fn new(boot: Boot, cache_bytes: usize, apply_bytes: u64) -> Result<Self, Error> {
        let refuse = |problem: String| Err(Error::Boot(problem));
        let first = boot.first_index.max(1);
        let last = boot.last_index;
        let mut hard_state = codec::hard_state_in(&boot.hard_state);
        hard_state.commit = hard_state.commit.max(boot.applied);
        if last + 1 < first {
            return refuse(format!("the log ends at {last}, before its start {first}"));
        }
        if hard_state.commit > last {
            let commit = hard_state.commit;
            return refuse(format!("committed up to {commit}, the log ends at {last}"));
        }
        if boot.applied + 1 < first {
            let applied = boot.applied;
            return refuse(format!("applied {applied}, the log begins at {first}"));
        }
        let Some(conf_state) = codec::conf_state_in(&boot.conf_state) else {
            return refuse("the membership is a joint one, which is never entered".into());
        };
        let runs = boot.terms.windows(2);
        if runs
            .into_iter()
            .any(|two| two[0].first >= two[1].first || two[0].term >= two[1].term)
        {
            return refuse("the terms do not rise".into());
        }
        let mut store = Self {
            boot: RaftState::new(hard_state, conf_state),
            first,
            last,
            terms: Terms::new(boot.terms),
            cache: VecDeque::new(),
            cached: 0,
            cache_bytes,
            persisted: last,
            changes: VecDeque::new(),
            changes_from: (last + 1).saturating_sub(boot.entries.len() as u64),
            apply_bytes,
            gate: Cell::new(Gate::Scan),
            fetches: RefCell::default(),
            offer: None,
            needs_snapshot: RefCell::default(),
        };
        let tail: Result<Vec<_>, _> = boot.entries.into_iter().map(codec::entry_in).collect();
        let tail = tail.map_err(|problem| Error::Boot(problem.into()))?;
        store.load(tail)?;
        if store.term_of(last) != Some(boot.last_term) {
            let (found, said) = (store.term_of(last), boot.last_term);
            return refuse(format!("the last entry has term {found:?} and not {said}"));
        }
        // All later terms follow from the first one's being there.
        let oldest = cmp::max(first - 1, 1);
        if last > 0 && store.term_of(oldest).is_none() {
            return refuse(format!("the term of entry {oldest} is missing"));
        }
        if boot.last_term > store.boot.hard_state.term {
            return refuse("the last entry's term is above the log's state".into());
        }
        Ok(store)
    }

    fn load(&mut self, tail: Vec<Entry>) -> Result<(), Error> {
        let begins = self.changes_from;
        if begins < self.first {
            return Err(Error::Boot("more entries than the log holds".into()));
        }
        self.terms.truncate(begins);
        for (expected, entry) in (begins..).zip(&tail) {
            let before = self.term_of(expected - 1);
            if entry.index != expected || before.is_none_or(|term| term > entry.term) {
                let index = entry.index;
                return Err(Error::Boot(format!("entry {index} does not follow")));
            }
            self.note(entry);
        }
        for entry in tail {
            self.hold(entry);
        }
        self.evict();
        Ok(())
    }

    fn note(&mut self, entry: &Entry) {
        self.terms.push(entry.index, entry.term);
        if entry.entry_type != EntryType::EntryNormal {
            self.changes.push_back(entry.index);
        }
    }

    fn hold(&mut self, entry: Entry) {
        self.cached += weight(&entry);
        self.cache.push_back(entry);
    }

    /// Takes what is about to be written; returns its weight.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> usize {
        let Some(first) = entries.first() else {
            return 0;
        };
        self.truncate(first.index);
        let before = self.cached;
        for entry in entries {
            self.note(entry);
            self.hold(entry.clone());
            self.last = entry.index;
        }
        self.cached - before
    }

    fn truncate(&mut self, index: u64) {
        self.terms.truncate(index);
        while self.changes.back().is_some_and(|change| *change >= index) {
            self.changes.pop_back();
        }
        while self.cache.back().is_some_and(|entry| entry.index >= index) {
            if let Some(entry) = self.cache.pop_back() {
                self.cached -= weight(&entry);
            }
        }
        self.last = index - 1;
    }

    /// Entries up to `index` are durable, as raft counts it.
    pub(crate) fn persisted(&mut self, index: u64) {
        self.persisted = index;
        self.evict();
    }

    fn evict(&mut self) {
        while self.cached > self.cache_bytes
            && let Some(oldest) = self.cache.front()
            && oldest.index <= self.persisted
        {
            self.cached -= weight(oldest);
            self.cache.pop_front();
        }
    }

    /// Whether an entry in `applied+1..=commit` changes the membership, or may: what was on the
    /// disk before the newest entries is not known.
    pub(crate) fn may_change(&self, applied: u64, commit: u64) -> bool {
        let mut changes = self.changes.iter();
        (commit > applied && applied + 1 < self.changes_from)
            || changes.any(|change| *change > applied && *change <= commit)
    }

    /// Changes up to `index` are no longer asked about.
    pub(crate) fn applied(&mut self, index: u64) {
        while self.changes.front().is_some_and(|change| *change <= index) {
            self.changes.pop_front();
        }
    }

    /// The log begins at `first` from now on; the term before it is kept.
    pub(crate) fn compact(&mut self, first: u64) {
        if first > self.first {
            self.first = first;
            self.terms.compact(first - 1);
        }
    }

    /// A snapshot takes the place of the log, which begins behind it from now on.
    pub(crate) fn restart(&mut self, index: u64, term: u64) {
        self.first = index + 1;
        self.last = index;
        self.terms = Terms::new(vec![TermRun { first: index, term }]);
        self.cache.clear();
        self.cached = 0;
        // What was durable behind the snapshot was of another log.
        self.persisted = cmp::min(self.persisted, index);
        self.changes.clear();
        self.changes_from = index + 1;
        self.fetches.get_mut().forget();
    }

    /// The peers that raft wanted to send a snapshot to.
    pub(crate) fn take_needs_snapshot(&self) -> Vec<u64> {
        self.needs_snapshot.take().into_iter().collect()
    }

    /// Whether these were written under their index. One index and one term have one content.
    pub(crate) fn holds(&self, entry: &Entry) -> bool {
        self.term_of(entry.index) == Some(entry.term)
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        if index == 0 {
            return Some(0);
        }
        if index + 1 < self.first || index > self.last {
            return None;
        }
        self.terms.get(index)
    }

    /// The state that raft starts with.
    pub(crate) fn boot_state(&self) -> &HardState {
        &self.boot.hard_state
    }

    fn cache_first(&self) -> u64 {
        self.last + 1 - self.cache.len() as u64
    }

    #[cfg(test)]
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached
    }
}

/// As many as fit into `max_bytes`, but one at least.
fn fitting<'a>(entries: impl Iterator<Item = &'a Entry>, max_bytes: Option<u64>) -> Vec<Entry> {
    let max_bytes = max_bytes.unwrap_or(u64::MAX);
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes += weight(entry) as u64;
        if !taken.is_empty() && bytes > max_bytes {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

/// `low..high` out of entries without a gap, when they hold `low`.
fn within(entries: &[Entry], low: u64, high: u64) -> Option<&[Entry]> {
    let first = entries.first()?.index;
    let skip = usize::try_from(low.checked_sub(first)?).ok()?;
    let end = cmp::min(usize::try_from(high - first).ok()?, entries.len());
    entries.get(skip..end).filter(|found| !found.is_empty())
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.boot.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_size = max_size.into();
        if low < self.first {
            return Err(RaftError::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(RaftError::Store(StorageError::Unavailable));
        }
        if !context.can_async() && self.gate.get() != Gate::Open {
            return Ok(Vec::new());
        }
        if let Some(skip) = low.checked_sub(self.cache_first()) {
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let found = self.cache.range(skip..).take((high - low) as usize);
            return Ok(fitting(found, max_size));
        }
        let mut fetches = self.fetches.borrow_mut();
        let request = |max_bytes| FetchRequest {
            id: 0,
            lo: low,
            hi: cmp::min(high, self.cache_first()),
            max_bytes,
        };
        if context.can_async() {
            if let Some(found) = within(&fetches.arrived, low, high) {
                return Ok(fitting(found.iter(), max_size));
            }
            fetches.for_follower(request(max_size.unwrap_or(self.apply_bytes)), context);
            return Err(RaftError::Store(StorageError::LogTemporarilyUnavailable));
        }
        if let Some(found) = within(&fetches.to_apply, low, high) {
            return Ok(fitting(found.iter(), max_size));
        }
        fetches.for_apply(request(self.apply_bytes));
        Ok(Vec::new())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.first => Err(RaftError::Store(StorageError::Compacted)),
            None => Err(RaftError::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if let Some(offer) = &self.offer {
            return Ok(offer.clone());
        }
        self.needs_snapshot.borrow_mut().insert(to);
        Err(RaftError::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}
