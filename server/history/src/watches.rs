//! What watchers were told, held against the log.

use crate::{
    Event, History, Summary, Violation, WatchRecord, WatchReport, WatchResponse,
    check::Compactions, log::Log,
};

/// Checks every watcher: ordered, unique, atomic, without a gap, with the right previous states,
/// with progress only when it is true, and ended as compacted only when it is.
pub(crate) fn check(
    history: &History,
    log: &Log<'_>,
    compactions: &Compactions,
    summary: &mut Summary,
) -> Result<(), Violation> {
    for (id, watch) in history.watches.iter().enumerate() {
        let of_its_keys = log
            .events()
            .iter()
            .filter(|event| watch.keys.contains(&event.kv.key));
        let mut watcher = Watcher {
            id,
            watch,
            log,
            compactions,
            wanted: of_its_keys.collect(),
            place: 0,
            session: Session::default(),
        };
        for (place, response) in watch.responses.iter().enumerate() {
            watcher.place = place;
            watcher.response(response, summary)?;
        }
        watcher.finish()?;
    }
    Ok(())
}

/// One life of a watcher.
#[derive(Default)]
struct Session {
    runs: bool,
    /// Its first revision.
    from: i64,
    /// The place in `wanted` of what comes next.
    at: usize,
    /// No event before this revision is to come.
    next: i64,
}

struct Watcher<'a> {
    id: usize,
    watch: &'a WatchRecord,
    log: &'a Log<'a>,
    compactions: &'a Compactions,
    /// The events of its keys.
    wanted: Vec<&'a Event>,
    /// The response that is looked at.
    place: usize,
    session: Session,
}

impl Watcher<'_> {
    fn response(
        &mut self,
        response: &WatchResponse,
        summary: &mut Summary,
    ) -> Result<(), Violation> {
        let revision = response.revision;
        if revision > self.log.last() {
            return Err(Violation::NeverWas {
                operation: format!("watcher {}: {response:?}", self.id),
                revision,
                last: self.log.last(),
            });
        }
        match &response.report {
            WatchReport::Created { from } => {
                let from = match from {
                    0 => revision + 1,
                    from => *from,
                };
                self.session = Session {
                    runs: true,
                    from,
                    at: self
                        .wanted
                        .partition_point(|event| event.kv.mod_revision < from),
                    next: from,
                };
                Ok(())
            }
            WatchReport::Events(events) => {
                summary.events += events.len();
                self.events(response, events)
            }
            WatchReport::Progress => {
                summary.progress += 1;
                self.progress(revision)
            }
            WatchReport::Compacted { compact_revision } => {
                let possible = self.compactions.possible(response.at);
                let (next, compacted) = (self.session.next, *compact_revision);
                self.session.runs = false;
                match compacted <= possible && next < compacted {
                    true => Ok(()),
                    false => Err(Violation::WatchFalseCompacted {
                        watcher: self.id,
                        next,
                        compacted,
                    }),
                }
            }
            WatchReport::Ended => {
                self.session.runs = false;
                Ok(())
            }
        }
    }

    fn events(&mut self, response: &WatchResponse, events: &[Event]) -> Result<(), Violation> {
        for event in events {
            self.event(response, event)?;
        }
        let Some(last) = events.last() else {
            return Ok(());
        };
        let told = last.kv.mod_revision;
        if response.revision < told {
            return Err(Violation::WatchOldHeader {
                watcher: self.id,
                revision: response.revision,
                told,
            });
        }
        match self.wanted.get(self.session.at) {
            Some(event) if event.kv.mod_revision == told => Err(Violation::WatchSplit {
                watcher: self.id,
                revision: told,
            }),
            _ => Ok(()),
        }
    }

    fn event(&mut self, response: &WatchResponse, event: &Event) -> Result<(), Violation> {
        let expected = self.wanted.get(self.session.at).copied();
        let is_expected = |expected: &Event| {
            expected.kv.mod_revision == event.kv.mod_revision && expected.kv.key == event.kv.key
        };
        match expected.filter(|expected| is_expected(expected)) {
            Some(expected) if self.session.runs => {
                if expected.kv != event.kv || expected.kind != event.kind {
                    return Err(self.wrong(event));
                }
                self.session.at += 1;
                self.session.next = event.kv.mod_revision + 1;
                self.previous(response, event)
            }
            _ => Err(self.unexpected(event, expected)),
        }
    }

    /// Says what is wrong with an event that is not the next one.
    fn unexpected(&self, event: &Event, expected: Option<&Event>) -> Violation {
        let (watcher, session) = (self.id, &self.session);
        let (revision, text) = (event.kv.mod_revision, format!("{event:?}"));
        if !session.runs || revision < session.from || !self.watch.keys.contains(&event.kv.key) {
            return Violation::WatchUnwanted {
                watcher,
                event: text,
            };
        }
        let is_same = |one: &&Event| one.kind == event.kind && one.kv == event.kv;
        let Some(place) = self.wanted.iter().position(is_same) else {
            return self.wrong(event);
        };
        let Some(expected) = expected.filter(|_| place >= session.at) else {
            return Violation::WatchDuplicate {
                watcher,
                event: text,
            };
        };
        // Whether what was left out comes later decides what it is.
        match self.comes_later(expected) {
            true if expected.kv.mod_revision == revision => {
                Violation::WatchSplit { watcher, revision }
            }
            true => Violation::WatchDisorder {
                watcher,
                event: text,
                before: expected.kv.mod_revision,
            },
            false => Violation::WatchGap {
                watcher,
                missing: format!("{expected:?}"),
                instead: text,
            },
        }
    }

    /// Whether an event is told by this response or a later one of this life.
    fn comes_later(&self, event: &Event) -> bool {
        let rest = self.watch.responses[self.place..].iter();
        let rest = rest.take_while(|one| !matches!(one.report, WatchReport::Created { .. }));
        let told = rest.filter_map(|response| match &response.report {
            WatchReport::Events(events) => Some(events),
            _ => None,
        });
        told.flatten()
            .any(|told| told.kind == event.kind && told.kv == event.kv)
    }

    fn wrong(&self, event: &Event) -> Violation {
        Violation::WatchWrongEvent {
            watcher: self.id,
            event: format!("{event:?}"),
            found: format!("{:?}", self.log.at(event.kv.mod_revision)),
        }
    }

    /// The previous state is what it was; it may be missing only when it may be compacted.
    fn previous(&self, response: &WatchResponse, event: &Event) -> Result<(), Violation> {
        let revision = event.kv.mod_revision;
        let before = self.log.model.get(&event.kv.key, revision - 1);
        let expected = before.filter(|_| self.watch.prev_kv);
        let compacted = self.compactions.possible(response.at) >= revision;
        if event.prev.as_ref() == expected || (event.prev.is_none() && compacted) {
            return Ok(());
        }
        Err(Violation::WatchWrongPrevious {
            watcher: self.id,
            event: format!("{event:?}"),
            expected: format!("{expected:?}"),
        })
    }

    fn progress(&mut self, revision: i64) -> Result<(), Violation> {
        let next = self.wanted.get(self.session.at);
        if let Some(missing) = next.filter(|event| event.kv.mod_revision <= revision) {
            return Err(Violation::WatchEarlyProgress {
                watcher: self.id,
                revision,
                missing: format!("{missing:?}"),
            });
        }
        self.session.next = self.session.next.max(revision + 1);
        Ok(())
    }

    /// What the recorder waited for must have come.
    fn finish(&self) -> Result<(), Violation> {
        let next = self.wanted.get(self.session.at);
        match next.filter(|event| event.kv.mod_revision <= self.watch.reached) {
            Some(missing) => Err(Violation::WatchGap {
                watcher: self.id,
                missing: format!("{missing:?}"),
                instead: "nothing more".to_owned(),
            }),
            None => Ok(()),
        }
    }
}
