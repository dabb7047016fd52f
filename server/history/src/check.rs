//! The check that revisions guide: each answer against the state at its revision, and all of them
//! against the clock.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use crate::{
    History, Operation, Outcome, Refusal, Request, Response, ResponseKind, TxnOp, Violation,
    explain::explain,
    log::{Log, same},
    sightings::{Sightings, told},
    watches,
};

/// How much was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations that were answered.
    pub answered: usize,
    /// Those among them that changed something.
    pub writes: usize,
    /// Operations that were definitely not done.
    pub refused: usize,
    /// Changes without an answer that turned out to be done.
    pub unknown_done: usize,
    /// Leases whose keys went by themselves.
    pub expired: usize,
    /// Events that watchers were told.
    pub events: usize,
    /// Times that a watcher was told it knows everything.
    pub progress: usize,
    /// The last revision.
    pub revision: i64,
}

/// Checks a history whose events are known. It takes time in proportion to n log n for operations
/// and events, times the keys in a range.
///
/// # Errors
/// The first violation found: of the log itself, then of answers, of their order in time, of
/// changes without an answer, of refusals, of watchers.
pub fn check(history: &History) -> Result<Summary, Violation> {
    let log = Log::new(&history.base, &history.log)?;
    let mut checker = Checker {
        history,
        sightings: Sightings::of_all(history),
        compactions: Compactions::new(&history.operations),
        log,
        claims: HashMap::new(),
        summary: Summary::default(),
    };
    checker.summary.revision = checker.log.last();
    // Of a revision that ends a lease only the log tells whether the revocation made it. So all
    // others come first.
    let is_revoke = |one: &Operation| matches!(one.request, Request::LeaseRevoke { .. });
    for revokes in [false, true] {
        let all = history.operations.iter().enumerate();
        for (at, operation) in all.filter(|(_, one)| is_revoke(one) == revokes) {
            checker.answer(at, operation)?;
        }
    }
    checker.times()?;
    checker.members()?;
    let Checker {
        sightings,
        compactions,
        log,
        claims,
        mut summary,
        ..
    } = checker;
    explain(history, &log, &sightings, &claims, &mut summary)?;
    for operation in &history.operations {
        refusal(operation, &sightings, &compactions)?;
    }
    watches::check(history, &log, &compactions, &mut summary)?;
    Ok(summary)
}

/// Which revisions were, or may have been, compacted at what time.
pub(crate) struct Compactions {
    /// Asked for, by the start of the request.
    asked: Sightings,
    /// Done, by the answer.
    done: Sightings,
}

impl Compactions {
    fn new(operations: &[Operation]) -> Self {
        let mut asked = Vec::new();
        let mut done = Vec::new();
        for operation in operations {
            let Request::Compact { revision } = operation.request else {
                continue;
            };
            if !matches!(operation.outcome, Outcome::Refused(_)) {
                asked.push((operation.start, revision));
            }
            if let Some((at, _)) = told(operation) {
                done.push((at, revision));
            }
        }
        Self {
            asked: Sightings::new(asked),
            done: Sightings::new(done),
        }
    }

    /// The highest revision that may have been compacted at a time.
    pub fn possible(&self, time: u64) -> i64 {
        self.asked
            .known_before(time.saturating_add(1))
            .unwrap_or(-1)
    }

    /// The highest revision that was compacted for certain before a time.
    fn certain(&self, time: u64) -> i64 {
        self.done.known_before(time).unwrap_or(-1)
    }
}

struct Checker<'a> {
    history: &'a History,
    log: Log<'a>,
    sightings: Sightings,
    compactions: Compactions,
    /// The operations that wrote each revision.
    claims: HashMap<i64, usize>,
    summary: Summary,
}

impl Checker<'_> {
    /// Holds an answer against the state at its revision.
    fn answer(&mut self, at: usize, operation: &Operation) -> Result<(), Violation> {
        let response = match &operation.outcome {
            Outcome::Done(response) => response,
            Outcome::Refused(_) => {
                self.summary.refused += 1;
                return Ok(());
            }
            Outcome::Unknown => return Ok(()),
        };
        self.summary.answered += 1;
        let (revision, last) = (response.revision, self.log.last());
        let wrote = self.wrote(operation, response);
        if revision > last && !wrote {
            return Err(Violation::NeverWas {
                operation: format!("{operation:?}"),
                revision,
                last,
            });
        }
        if revision < self.log.base() {
            // What was there before the base nobody knows; old states may be read nevertheless.
            return match is_serializable(&operation.request) {
                true => Ok(()),
                false => Err(Violation::StaleRead {
                    operation: format!("{operation:?}"),
                    known: self.log.base(),
                }),
            };
        }
        if wrote {
            self.claim(at, operation, response)
        } else {
            self.read(operation, response)
        }
    }

    /// Whether an answered operation changed something, and so has a revision of its own.
    fn wrote(&self, operation: &Operation, response: &Response) -> bool {
        let request = &operation.request;
        match request {
            Request::Range { .. } | Request::Compact { .. } | Request::LeaseGrant { .. } => false,
            Request::LeaseRevoke { .. } => {
                // The keys may have gone with an earlier lease of that ID, and this one had none.
                let revision = response.revision;
                let known = self.sightings.known_before(operation.start);
                let (_, events) = self.log.model.carry_out(request, revision - 1);
                let happened = self.log.at(revision);
                !events.is_empty()
                    && same(&events, happened)
                    && !self.claims.contains_key(&revision)
                    && known.is_none_or(|known| known < revision)
            }
            Request::Put { .. } | Request::Delete { .. } | Request::Txn(_) => {
                changed(&response.kind)
            }
        }
    }

    fn claim(
        &mut self,
        at: usize,
        operation: &Operation,
        response: &Response,
    ) -> Result<(), Violation> {
        let revision = response.revision;
        self.summary.writes += 1;
        let (kind, events) = self.log.model.carry_out(&operation.request, revision - 1);
        let found = self.log.at(revision);
        match self.claims.entry(revision) {
            Entry::Occupied(first) => {
                return Err(Violation::SharedRevision {
                    revision,
                    first: format!("{:?}", self.history.operations[*first.get()]),
                    second: format!("{operation:?}"),
                });
            }
            Entry::Vacant(_) if !same(&events, found) => {
                return Err(Violation::LostWrite {
                    operation: format!("{operation:?}"),
                    found: format!("{found:?}"),
                });
            }
            Entry::Vacant(place) => place.insert(at),
        };
        self.compare(operation, response, &kind)
    }

    fn read(&self, operation: &Operation, response: &Response) -> Result<(), Violation> {
        let request = &operation.request;
        if let Request::Range { revision, .. } = request {
            if *revision > response.revision {
                return self.wrong(operation, "a refusal, since that has not happened");
            }
            if *revision > 0 && *revision < self.log.base() {
                return Ok(());
            }
        }
        let (kind, events) = self.log.model.carry_out(request, response.revision);
        if !events.is_empty() {
            return self.wrong(operation, &format!("{kind:?}, with {events:?}"));
        }
        self.compare(operation, response, &kind)
    }

    fn compare(
        &self,
        operation: &Operation,
        response: &Response,
        kind: &ResponseKind,
    ) -> Result<(), Violation> {
        match response.kind == *kind {
            true => self.compacted(operation, response),
            false => self.wrong(operation, &format!("{kind:?}")),
        }
    }

    fn wrong(&self, operation: &Operation, expected: &str) -> Result<(), Violation> {
        Err(Violation::WrongAnswer {
            operation: format!("{operation:?}"),
            expected: expected.to_owned(),
        })
    }

    /// Of what was compacted before, nothing may be read.
    fn compacted(&self, operation: &Operation, response: &Response) -> Result<(), Violation> {
        let compacted = self.compactions.certain(operation.start);
        let oldest = match (&operation.request, &response.kind) {
            (request, ResponseKind::Txn(result)) => {
                revisions(request, Some(result.succeeded)).min()
            }
            (request, _) => revisions(request, None).min(),
        };
        match oldest.is_some_and(|oldest| oldest < compacted)
            && !is_serializable(&operation.request)
        {
            true => Err(Violation::ReadOfCompacted {
                operation: format!("{operation:?}"),
                compacted,
            }),
            false => Ok(()),
        }
    }

    /// Whatever ended before an operation began has its place before it.
    fn times(&self) -> Result<(), Violation> {
        let writes = self.claims.iter();
        let writes = writes.filter_map(|(revision, at)| {
            let end = self.history.operations[*at].end?;
            Some((end, *revision))
        });
        let writes = Sightings::new(writes);
        for (at, operation) in self.history.operations.iter().enumerate() {
            let Outcome::Done(response) = &operation.outcome else {
                continue;
            };
            let Some(known) = self.sightings.known_before(operation.start) else {
                continue;
            };
            let text = || format!("{operation:?}");
            if self.claims.get(&response.revision) == Some(&at) {
                let written = writes.known_before(operation.start).unwrap_or_default();
                if written > response.revision {
                    return Err(Violation::ReorderedWrite {
                        operation: text(),
                        known: written,
                    });
                }
                if known >= response.revision {
                    return Err(Violation::VisibleEarly {
                        operation: text(),
                        known,
                    });
                }
            } else if known > response.revision && !is_serializable(&operation.request) {
                return Err(Violation::StaleRead {
                    operation: text(),
                    known,
                });
            }
        }
        Ok(())
    }

    /// A member that has shown a state shows no older one afterwards.
    fn members(&self) -> Result<(), Violation> {
        let mut by_member: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.history.operations {
            by_member
                .entry(operation.member)
                .or_default()
                .push(operation);
        }
        for (member, operations) in by_member {
            let shown = Sightings::new(operations.iter().filter_map(|operation| told(operation)));
            for operation in operations {
                if let Outcome::Done(response) = &operation.outcome
                    && let Some(known) = shown.known_before(operation.start)
                    && known > response.revision
                {
                    return Err(Violation::BackInTime {
                        member,
                        known,
                        operation: format!("{operation:?}"),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A refusal that names a reason must have it.
fn refusal(
    operation: &Operation,
    sightings: &Sightings,
    compactions: &Compactions,
) -> Result<(), Violation> {
    let Outcome::Refused(refusal) = operation.outcome else {
        return Ok(());
    };
    let request = &operation.request;
    let justified = match refusal {
        Refusal::Other => true,
        Refusal::Compacted => {
            let possible = compactions.possible(operation.end.unwrap_or(u64::MAX));
            match request {
                Request::Compact { revision } => *revision <= possible.max(0),
                _ => revisions(request, None).any(|revision| revision < possible),
            }
        }
        Refusal::FutureRevision => {
            let known = sightings.known_before(operation.start).unwrap_or_default();
            let newest = match request {
                Request::Compact { revision } => Some(*revision),
                _ => revisions(request, None).max(),
            };
            is_serializable(request) || newest.is_some_and(|newest| newest > known)
        }
    };
    match justified {
        true => Ok(()),
        false => Err(Violation::FalseRefusal {
            operation: format!("{operation:?}"),
        }),
    }
}

/// The revisions that a request reads at, of both branches or of one.
fn revisions(request: &Request, branch: Option<bool>) -> impl Iterator<Item = i64> {
    let mut found = Vec::new();
    match request {
        Request::Range { revision, .. } => found.push(*revision),
        Request::Txn(txn) => {
            let then = (branch != Some(false)).then_some(&txn.then);
            let otherwise = (branch != Some(true)).then_some(&txn.otherwise);
            for op in then.into_iter().chain(otherwise).flatten() {
                if let TxnOp::Range { revision, .. } = op {
                    found.push(*revision);
                }
            }
        }
        _ => {}
    }
    found.into_iter().filter(|revision| *revision > 0)
}

fn is_serializable(request: &Request) -> bool {
    matches!(
        request,
        Request::Range {
            serializable: true,
            ..
        }
    )
}

fn changed(kind: &ResponseKind) -> bool {
    match kind {
        ResponseKind::Put { .. } => true,
        ResponseKind::Delete { deleted, .. } => *deleted > 0,
        ResponseKind::Txn(result) => result.responses.iter().any(changed),
        ResponseKind::Range { .. } | ResponseKind::Nothing => false,
    }
}
