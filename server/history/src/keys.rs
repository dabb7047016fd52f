//! The check without a log: for each key the search for an order of its operations that explains
//! all answers, by Wing and Gong with Lowe's memory of what was tried.
//!
//! Answers are compared by value, version and lease, not by their revisions.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::{
    Compare, KeyRange, KeyValue, Operation, Outcome, Request, ResponseKind, Target, Txn, TxnOp,
    Violation, model::compares,
};

/// States that a search remembers; one that needs more is given up.
const MAX_STATES: usize = 1_000_000;

/// Checks that operations on single keys have an order which explains their answers and fits the
/// clock. Those without an answer may have been done at any time after their start, or never.
/// Serializable reads are passed over. Returns how many operations were judged.
///
/// # Errors
/// [`Violation::NotLinearizable`]; [`Violation::Unsuited`] for operations on several keys, at old
/// revisions, with comparisons of revisions but 0, and for leases that have keys;
/// [`Violation::Undecided`] when the search would take too long.
pub fn check_keys(operations: &[Operation]) -> Result<usize, Violation> {
    let mut by_key: BTreeMap<Bytes, Vec<&Operation>> = BTreeMap::new();
    let mut judged = 0;
    for operation in operations {
        if matches!(operation.outcome, Outcome::Refused(_)) {
            continue;
        }
        match key_of(&operation.request) {
            Ok(Some(key)) => by_key.entry(key).or_default().push(operation),
            Ok(None) => continue,
            Err(()) => {
                return Err(Violation::Unsuited {
                    operation: format!("{operation:?}"),
                });
            }
        }
        judged += 1;
    }
    for (key, operations) in by_key {
        Search::new(&key, operations).run()?;
    }
    Ok(judged)
}

/// The one key that a request is about; none when it is passed over.
fn key_of(request: &Request) -> Result<Option<Bytes>, ()> {
    match request {
        Request::Range {
            serializable: true, ..
        }
        | Request::Compact { .. }
        | Request::LeaseGrant { .. } => Ok(None),
        Request::Range {
            keys, revision: 0, ..
        } => one(keys).map(Some),
        Request::Put { key, .. } => Ok(Some(key.clone())),
        Request::Delete { keys, .. } => one(keys).map(Some),
        Request::Txn(txn) => key_of_txn(txn),
        Request::Range { .. } | Request::LeaseRevoke { .. } => Err(()),
    }
}

fn one(keys: &KeyRange) -> Result<Bytes, ()> {
    match keys.is_one() {
        true => Ok(keys.key.clone()),
        false => Err(()),
    }
}

fn key_of_txn(txn: &Txn) -> Result<Option<Bytes>, ()> {
    let mut keys = Vec::new();
    for compare in &txn.compares {
        if let Target::CreateRevision(1..) | Target::ModRevision(1..) = compare.target {
            return Err(());
        }
        keys.push(one(&compare.keys)?);
    }
    for op in txn.then.iter().chain(&txn.otherwise) {
        keys.push(match op {
            TxnOp::Range {
                keys, revision: 0, ..
            }
            | TxnOp::Delete { keys, .. } => one(keys)?,
            TxnOp::Put { key, .. } => key.clone(),
            TxnOp::Range { .. } => return Err(()),
        });
    }
    keys.dedup();
    match keys.len() {
        0 | 1 => Ok(keys.pop()),
        _ => Err(()),
    }
}

/// What a key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Value {
    value: Bytes,
    version: i64,
    lease: i64,
}

impl Value {
    fn of(kv: &KeyValue) -> Self {
        Self {
            value: kv.value.clone(),
            version: kv.version,
            lease: kv.lease,
        }
    }

    fn as_kv(&self) -> KeyValue {
        KeyValue {
            value: self.value.clone(),
            // A key that is there has revisions other than 0.
            create_revision: 1,
            mod_revision: 1,
            version: self.version,
            lease: self.lease,
            ..KeyValue::default()
        }
    }
}

type State = Option<Value>;

/// What has its place in the order so far, and the state after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Point {
    /// All answered operations before this one have their place.
    first: usize,
    /// Answered operations behind `first` that have theirs, in order.
    beyond: Vec<usize>,
    /// Operations without an answer that have theirs, in order.
    unknown: Vec<usize>,
    state: State,
}

struct Search<'a> {
    key: &'a Bytes,
    answered: Vec<&'a Operation>,
    unknown: Vec<&'a Operation>,
}

impl<'a> Search<'a> {
    fn new(key: &'a Bytes, mut operations: Vec<&'a Operation>) -> Self {
        operations.sort_by_key(|operation| operation.start);
        let is_answered = |one: &&Operation| matches!(one.outcome, Outcome::Done(_));
        let (answered, mut unknown): (Vec<_>, Vec<_>) =
            operations.into_iter().partition(is_answered);
        // A read without an answer explains nothing.
        unknown.retain(|one| !matches!(one.request, Request::Range { .. }));
        Self {
            key,
            answered,
            unknown,
        }
    }

    fn run(&self) -> Result<(), Violation> {
        let mut furthest = 0;
        let mut seen = HashSet::new();
        let mut open = vec![Point::default()];
        while let Some(point) = open.pop() {
            if point.first == self.answered.len() {
                return Ok(());
            }
            furthest = furthest.max(point.first);
            // Reversed, so that the operation that began first is tried first.
            let next = self.next(&point);
            for point in next.into_iter().rev() {
                if !seen.contains(&point) {
                    seen.insert(point.clone());
                    open.push(point);
                }
            }
            if seen.len() > MAX_STATES {
                return Err(Violation::Undecided {
                    key: self.key.escape_ascii().to_string(),
                });
            }
        }
        Err(Violation::NotLinearizable {
            key: self.key.escape_ascii().to_string(),
            operations: self.answered.len() + self.unknown.len(),
            at: format!("{:?}", self.answered[furthest]),
        })
    }

    /// What may come next: whatever began before the first end of all that have no place yet.
    fn next(&self, point: &Point) -> Vec<Point> {
        let mut next = Vec::new();
        let mut end = u64::MAX;
        for at in point.first..self.answered.len() {
            let operation = self.answered[at];
            if operation.start > end {
                break;
            }
            if point.beyond.binary_search(&at).is_err() {
                end = end.min(operation.end.unwrap_or(u64::MAX));
                next.extend(self.placed(point, at));
            }
        }
        for (at, operation) in self.unknown.iter().enumerate() {
            if operation.start > end {
                break;
            }
            if let Err(place) = point.unknown.binary_search(&at) {
                let (state, _) = carry_out(&operation.request, &point.state);
                if state != point.state {
                    let mut point = point.clone();
                    point.unknown.insert(place, at);
                    point.state = state;
                    next.push(point);
                }
            }
        }
        next
    }

    /// The point after an answered operation, if its answer fits.
    fn placed(&self, point: &Point, at: usize) -> Option<Point> {
        let Outcome::Done(response) = &self.answered[at].outcome else {
            return None;
        };
        let (state, answer) = carry_out(&self.answered[at].request, &point.state);
        if answer != Answer::of(&response.kind) {
            return None;
        }
        let mut point = Point {
            state,
            ..point.clone()
        };
        if let Err(place) = point.beyond.binary_search(&at) {
            point.beyond.insert(place, at);
        }
        while point.beyond.first() == Some(&point.first) {
            point.beyond.remove(0);
            point.first += 1;
        }
        Some(point)
    }
}

/// An answer without revisions.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Keys(State, i64),
    Put(State),
    Deleted(i64, State),
    Txn(bool, Vec<Answer>),
    Nothing,
}

impl Answer {
    fn of(kind: &ResponseKind) -> Self {
        match kind {
            ResponseKind::Range { kvs, count, .. } => {
                Self::Keys(kvs.first().map(Value::of), *count)
            }
            ResponseKind::Put { prev } => Self::Put(prev.as_ref().map(Value::of)),
            ResponseKind::Delete { deleted, prevs } => {
                Self::Deleted(*deleted, prevs.first().map(Value::of))
            }
            ResponseKind::Txn(result) => {
                let answers = result.responses.iter().map(Self::of);
                Self::Txn(result.succeeded, answers.collect())
            }
            ResponseKind::Nothing => Self::Nothing,
        }
    }
}

fn carry_out(request: &Request, state: &State) -> (State, Answer) {
    let mut state = state.clone();
    let answer = match request {
        Request::Range { count_only, .. } => range(*count_only, &state),
        Request::Put {
            value,
            lease,
            prev_kv,
            ..
        } => put(value, *lease, *prev_kv, &mut state),
        Request::Delete { prev_kv, .. } => delete(*prev_kv, &mut state),
        Request::Txn(txn) => {
            let kv = state.as_ref().map(Value::as_kv);
            let passes = |compare: &Compare| compares(compare, kv.as_ref());
            let succeeded = txn.compares.iter().all(passes);
            let ops = match succeeded {
                true => &txn.then,
                false => &txn.otherwise,
            };
            let answers = ops.iter().map(|op| match op {
                TxnOp::Range { count_only, .. } => range(*count_only, &state),
                TxnOp::Put {
                    value,
                    lease,
                    prev_kv,
                    ..
                } => put(value, *lease, *prev_kv, &mut state),
                TxnOp::Delete { prev_kv, .. } => delete(*prev_kv, &mut state),
            });
            let answers = answers.collect();
            Answer::Txn(succeeded, answers)
        }
        Request::Compact { .. } | Request::LeaseGrant { .. } | Request::LeaseRevoke { .. } => {
            Answer::Nothing
        }
    };
    (state, answer)
}

fn range(count_only: bool, state: &State) -> Answer {
    let count = i64::from(state.is_some());
    Answer::Keys(state.clone().filter(|_| !count_only), count)
}

fn put(value: &Bytes, lease: i64, prev_kv: bool, state: &mut State) -> Answer {
    let before = state.take();
    *state = Some(Value {
        value: value.clone(),
        version: before.as_ref().map_or(1, |before| before.version + 1),
        lease,
    });
    Answer::Put(before.filter(|_| prev_kv))
}

fn delete(prev_kv: bool, state: &mut State) -> Answer {
    let before = state.take();
    Answer::Deleted(i64::from(before.is_some()), before.filter(|_| prev_kv))
}
