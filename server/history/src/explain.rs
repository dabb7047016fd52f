//! Changes that no answer tells of: each must be the work of an operation without an answer, of
//! one operation at most once, or of a lease that ended by itself.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::{
    EventKind, History, Operation, Outcome, Request, Summary, TxnOp, Violation,
    log::{Log, same},
    sightings::Sightings,
};

/// Finds who did what is in the log and not in `claims`.
pub(crate) fn explain(
    history: &History,
    log: &Log<'_>,
    sightings: &Sightings,
    claims: &HashMap<i64, usize>,
    summary: &mut Summary,
) -> Result<(), Violation> {
    let open = |operation: &Operation| operation.outcome == Outcome::Unknown;
    let suspects = Suspects::new(&history.operations, open);
    let mut matching = Matching {
        history,
        log,
        sightings,
        suspects,
        candidates: HashMap::new(),
        done: HashMap::new(),
        expired: HashSet::new(),
    };
    let holes = (log.base() + 1..=log.last()).filter(|revision| !claims.contains_key(revision));
    for revision in holes {
        if !matching.explain(revision, &mut HashSet::new()) {
            // Of a lease that ended early, this is what is wrong.
            matching.check_expiry(revision)?;
            return Err(blame(history, log, revision));
        }
    }
    summary.unknown_done = matching.done.len();
    summary.expired = matching.expired.len();
    Ok(())
}

/// Nobody did it, or somebody who was told that it is not done.
fn blame(history: &History, log: &Log<'_>, revision: i64) -> Violation {
    let refused = |operation: &Operation| matches!(operation.outcome, Outcome::Refused(_));
    let suspects = Suspects::new(&history.operations, refused);
    let found = log.at(revision);
    let culprit = suspects.of(&found[0].kv.key).find(|at| {
        let (_, events) = log
            .model
            .carry_out(&history.operations[*at].request, revision - 1);
        same(&events, found)
    });
    match culprit {
        Some(at) => Violation::RefusedWriteApplied {
            revision,
            operation: format!("{:?}", history.operations[at]),
        },
        None => Violation::InventedWrite {
            revision,
            events: format!("{found:?}"),
        },
    }
}

/// Operations by the keys that they may change.
struct Suspects {
    by_key: HashMap<Bytes, Vec<usize>>,
    /// Those that may change keys which they do not name.
    wide: Vec<usize>,
}

impl Suspects {
    fn new(operations: &[Operation], which: impl Fn(&Operation) -> bool) -> Self {
        let mut suspects = Self {
            by_key: HashMap::new(),
            wide: Vec::new(),
        };
        for (at, operation) in operations.iter().enumerate().filter(|(_, one)| which(one)) {
            suspects.add(at, &operation.request);
        }
        suspects
    }

    fn add(&mut self, at: usize, request: &Request) {
        let mut named: Vec<&Bytes> = Vec::new();
        let mut is_wide = false;
        match request {
            Request::Range { .. } | Request::Compact { .. } | Request::LeaseGrant { .. } => {}
            Request::Put { key, .. } => named.push(key),
            Request::Delete { keys, .. } if keys.is_one() => named.push(&keys.key),
            Request::Delete { .. } | Request::LeaseRevoke { .. } => is_wide = true,
            Request::Txn(txn) => {
                for op in txn.then.iter().chain(&txn.otherwise) {
                    match op {
                        TxnOp::Range { .. } => {}
                        TxnOp::Put { key, .. } => named.push(key),
                        TxnOp::Delete { keys, .. } if keys.is_one() => named.push(&keys.key),
                        TxnOp::Delete { .. } => is_wide = true,
                    }
                }
            }
        }
        if is_wide {
            self.wide.push(at);
            return;
        }
        named.sort_unstable();
        named.dedup();
        for key in named {
            self.by_key.entry(key.clone()).or_default().push(at);
        }
    }

    fn of(&self, key: &Bytes) -> impl Iterator<Item = usize> {
        let named = self.by_key.get(key).into_iter().flatten();
        named.chain(&self.wide).copied()
    }
}

/// Revisions and operations, each of one with at most one of the other.
struct Matching<'a> {
    history: &'a History,
    log: &'a Log<'a>,
    sightings: &'a Sightings,
    suspects: Suspects,
    /// Operations that could have done what happened at a revision.
    candidates: HashMap<i64, Vec<usize>>,
    /// What each operation did.
    done: HashMap<usize, i64>,
    /// Revisions at which a lease ended by itself.
    expired: HashSet<i64>,
}

impl Matching<'_> {
    /// Finds an operation for a revision; one that has another revision already is taken when that
    /// can do with another (Kuhn's matching).
    fn explain(&mut self, revision: i64, tried: &mut HashSet<usize>) -> bool {
        for at in self.candidates(revision) {
            if !tried.insert(at) {
                continue;
            }
            let other = self.done.get(&at).copied();
            if other.is_none_or(|other| self.explain(other, tried)) {
                self.done.insert(at, revision);
                return true;
            }
        }
        let expires = self.ended_lease(revision).is_some() && self.check_expiry(revision).is_ok();
        if expires {
            self.expired.insert(revision);
        }
        expires
    }

    fn candidates(&mut self, revision: i64) -> Vec<usize> {
        if let Some(found) = self.candidates.get(&revision) {
            return found.clone();
        }
        let happened = self.log.at(revision);
        let seen = self.sightings.first_seen(revision);
        let could = |at: &usize| {
            let operation = &self.history.operations[*at];
            // Whoever began after it was seen cannot have done it.
            operation.start <= seen && {
                let (_, events) = self.log.model.carry_out(&operation.request, revision - 1);
                same(&events, happened)
            }
        };
        let found: Vec<usize> = self
            .suspects
            .of(&happened[0].kv.key)
            .filter(could)
            .collect();
        self.candidates.insert(revision, found.clone());
        found
    }

    /// The lease whose keys, all of them and no other, went at a revision.
    fn ended_lease(&self, revision: i64) -> Option<i64> {
        let happened = self.log.at(revision);
        let first = happened.first()?;
        let before = self.log.model.get(&first.kv.key, revision - 1)?;
        let attached = self.log.model.attached(before.lease, revision - 1);
        let pairs = attached.iter().zip(happened);
        let same = before.lease != 0
            && attached.len() == happened.len()
            && pairs
                .into_iter()
                .all(|(kv, event)| event.kind == EventKind::Delete && event.kv.key == kv.key);
        same.then_some(before.lease)
    }

    /// A lease was made by somebody, and lives as long as was said.
    fn check_expiry(&self, revision: i64) -> Result<(), Violation> {
        let Some(lease) = self.ended_lease(revision) else {
            return Ok(());
        };
        let ends = self.history.operations.iter().filter_map(|operation| {
            let granted = !matches!(operation.outcome, Outcome::Refused(_));
            match operation.request {
                Request::LeaseGrant { id, ttl } if id == lease && granted => {
                    Some((operation.start.saturating_add(ttl), ttl))
                }
                _ => None,
            }
        });
        let Some((end, ttl)) = ends.min() else {
            return Err(Violation::InventedWrite {
                revision,
                events: format!("{:?}, and nobody made lease {lease}", self.log.at(revision)),
            });
        };
        let seen = self.sightings.first_seen(revision);
        match ttl > 0 && seen < end {
            true => Err(Violation::EarlyExpiry {
                lease,
                revision,
                why: format!("seen at {seen}, not to end before {end}"),
            }),
            false => Ok(()),
        }
    }
}
