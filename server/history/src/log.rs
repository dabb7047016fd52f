//! The log of events, checked and cut into revisions.

use std::collections::BTreeMap;

use crate::{
    Base, Event, EventKind, KeyRange, KeyValue, Violation, WatchRecord, WatchReport, model::Model,
};

/// Every event since the base, with the state at each revision.
pub(crate) struct Log<'a> {
    events: &'a [Event],
    /// Where each revision after the base's begins in `events`, and where the last one ends.
    starts: Vec<usize>,
    base: i64,
    pub model: Model,
}

impl<'a> Log<'a> {
    /// Replays the events: each must be what etcd's rules make of the one before, and no revision
    /// may be missing.
    pub fn new(base: &Base, events: &'a [Event]) -> Result<Self, Violation> {
        let mut log = Self {
            events,
            starts: Vec::new(),
            base: base.revision,
            model: Model::new(base),
        };
        for (at, event) in events.iter().enumerate() {
            log.push(at, event)?;
        }
        log.starts.push(events.len());
        Ok(log)
    }

    fn push(&mut self, at: usize, event: &Event) -> Result<(), Violation> {
        let revision = event.kv.mod_revision;
        let broken = |problem: String| Violation::BrokenLog { revision, problem };
        let newest = self.base + self.starts.len() as i64;
        if revision == newest + 1 {
            self.starts.push(at);
        } else if revision != newest || self.starts.is_empty() {
            return Err(broken(format!("it follows {newest}")));
        }
        let before = self.model.newest(&event.kv.key);
        let expected = match event.kind {
            EventKind::Put => KeyValue {
                create_revision: before.map_or(revision, |kv| kv.create_revision),
                version: before.map_or(1, |kv| kv.version + 1),
                ..event.kv.clone()
            },
            EventKind::Delete if before.is_none() => {
                return Err(broken(format!("{event:?} deletes what is not there")));
            }
            EventKind::Delete => KeyValue {
                key: event.kv.key.clone(),
                mod_revision: revision,
                ..KeyValue::default()
            },
        };
        if event.kv != expected {
            return Err(broken(format!("{event:?} should have {expected:?}")));
        }
        if event.prev.is_some() && event.prev.as_ref() != before {
            return Err(broken(format!("{event:?} comes after {before:?}")));
        }
        self.model.push(event);
        Ok(())
    }

    pub fn base(&self) -> i64 {
        self.base
    }

    /// The last revision.
    pub fn last(&self) -> i64 {
        self.base + self.starts.len() as i64 - 1
    }

    pub fn events(&self) -> &'a [Event] {
        self.events
    }

    /// What happened at a revision; nothing when it is not in the log.
    pub fn at(&self, revision: i64) -> &'a [Event] {
        if revision <= self.base || revision > self.last() {
            return &[];
        }
        let at = (revision - self.base - 1) as usize;
        &self.events[self.starts[at]..self.starts[at + 1]]
    }
}

/// Whether these are the same events, whatever they say of before.
pub(crate) fn same(one: &[Event], other: &[Event]) -> bool {
    let pairs = one.iter().zip(other);
    one.len() == other.len()
        && pairs
            .into_iter()
            .all(|(a, b)| a.kind == b.kind && a.kv == b.kv)
}

/// The log that the watchers of all keys among these saw together.
///
/// # Errors
/// [`Violation::WatchWrongEvent`] when two were told different things of one revision.
pub fn log_of(watches: &[WatchRecord]) -> Result<Vec<Event>, Violation> {
    let mut log: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    let of_all = |watch: &&WatchRecord| watch.keys == KeyRange::all();
    for (watcher, watch) in watches
        .iter()
        .enumerate()
        .filter(|(_, watch)| of_all(watch))
    {
        for response in &watch.responses {
            let WatchReport::Events(events) = &response.report else {
                continue;
            };
            for told in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
                let known = log
                    .entry(told[0].kv.mod_revision)
                    .or_insert_with(|| told.to_vec());
                if !same(known, told) {
                    return Err(Violation::WatchWrongEvent {
                        watcher,
                        event: format!("{told:?}"),
                        found: format!("{known:?}"),
                    });
                }
            }
        }
    }
    Ok(log.into_values().flatten().collect())
}
