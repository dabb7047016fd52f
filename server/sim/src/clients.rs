//! Clients: what they ask for, and what is recorded of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use history::{
    Compare, Comparison, KeyRange, Operation, Outcome, Refusal, Request, Response, ResponseKind,
    Target, Txn, TxnOp, wire,
};
use rand::{Rng, rngs::StdRng};
use state::Error;

use crate::{node::Node, world::Time};

/// Keys that clients use.
const KEYS: u64 = 12;
/// Leases that they use.
const LEASES: i64 = 5;
/// How far back they read and compact, in revisions.
const BACK: i64 = 60;

/// All clients, and what they have been told.
#[derive(Default)]
pub(crate) struct Clients {
    pub operations: Vec<Operation>,
    /// The newest revision that any was told.
    pub newest: i64,
    /// The mod revision of each key when it was last read.
    known: BTreeMap<Bytes, i64>,
    /// What the recorder promises of leases: see [`Request::LeaseGrant`].
    lease_time: Time,
}

impl Clients {
    pub fn new(lease_time: Time) -> Self {
        Self {
            lease_time,
            ..Self::default()
        }
    }

    /// What a client asks for next.
    pub fn request(&self, rng: &mut StdRng) -> Request {
        let n = self.operations.len();
        match rng.random_range(0..100) {
            0..33 => put(rng, n),
            33..40 => Request::Delete {
                keys: KeyRange::one(key(rng)),
                prev_kv: rng.random_bool(0.5),
            },
            40..42 => Request::Delete {
                keys: some_keys(rng),
                prev_kv: rng.random_bool(0.5),
            },
            42..52 => self.swap(rng, n),
            52..56 => several(self.past(rng, BACK), rng, n),
            56..59 => Request::LeaseGrant {
                id: rng.random_range(1..=LEASES),
                ttl: self.lease_time,
            },
            59 => Request::LeaseRevoke {
                id: rng.random_range(1..=LEASES),
            },
            60..62 => Request::Compact {
                revision: self.past(rng, 2 * BACK),
            },
            62..66 => reading_txn(self.past(rng, BACK), rng),
            _ => self.range(rng),
        }
    }

    fn past(&self, rng: &mut StdRng, back: i64) -> i64 {
        (self.newest - rng.random_range(0..back)).max(1)
    }

    fn range(&self, rng: &mut StdRng) -> Request {
        let keys = match rng.random_range(0..4) {
            0 => KeyRange::all(),
            1 => some_keys(rng),
            _ => KeyRange::one(key(rng)),
        };
        Request::Range {
            keys,
            limit: if rng.random_bool(0.2) { 3 } else { 0 },
            revision: match rng.random_range(0..5) {
                0 => self.past(rng, BACK),
                _ => 0,
            },
            serializable: rng.random_bool(0.25),
            count_only: rng.random_bool(0.1),
        }
    }

    /// Writes a key if it is as it was last read.
    fn swap(&self, rng: &mut StdRng, n: usize) -> Request {
        let key = key(rng);
        let known = self.known.get(&key).copied().unwrap_or_default();
        Request::Txn(Txn {
            compares: vec![Compare {
                keys: KeyRange::one(key.clone()),
                comparison: Comparison::Equal,
                target: Target::ModRevision(known),
            }],
            then: vec![TxnOp::Put {
                key: key.clone(),
                value: value(n),
                lease: 0,
                prev_kv: rng.random_bool(0.5),
            }],
            otherwise: vec![TxnOp::Range {
                keys: KeyRange::one(key),
                limit: 0,
                revision: 0,
                count_only: false,
            }],
        })
    }

    /// Notes what a client was told.
    pub fn note(&mut self, response: &Response) {
        self.newest = self.newest.max(response.revision);
        if let ResponseKind::Range { kvs, .. } = &response.kind {
            for kv in kvs {
                self.known.insert(kv.key.clone(), kv.mod_revision);
            }
        }
    }
}

fn key(rng: &mut StdRng) -> Bytes {
    format!("k{:02}", rng.random_range(0..KEYS)).into()
}

fn value(n: usize) -> Bytes {
    format!("v{n}").into()
}

fn some_keys(rng: &mut StdRng) -> KeyRange {
    let from = rng.random_range(0..KEYS);
    let to = rng.random_range(from + 1..=KEYS);
    KeyRange {
        key: format!("k{from:02}").into(),
        end: format!("k{to:02}").into(),
    }
}

fn put(rng: &mut StdRng, n: usize) -> Request {
    let lease = match rng.random_range(0..5) {
        0 => rng.random_range(1..=LEASES),
        _ => 0,
    };
    Request::Put {
        key: key(rng),
        value: value(n),
        lease,
        prev_kv: rng.random_bool(0.3),
    }
}

/// Changes several keys at one revision, reads them, and now and then the past too, which may be
/// compacted: then nothing may have changed.
fn several(past: i64, rng: &mut StdRng, n: usize) -> Request {
    let past = if rng.random_bool(0.3) { past } else { 0 };
    let first = rng.random_range(0..KEYS - 3);
    let name = |at: u64| Bytes::from(format!("k{:02}", first + at));
    let put = |at| TxnOp::Put {
        key: name(at),
        value: value(n),
        lease: 0,
        prev_kv: false,
    };
    Request::Txn(Txn {
        compares: Vec::new(),
        then: vec![
            put(0),
            put(1),
            TxnOp::Delete {
                keys: KeyRange::one(name(2)),
                prev_kv: true,
            },
            TxnOp::Range {
                keys: KeyRange::all(),
                limit: 0,
                revision: past,
                count_only: false,
            },
        ],
        otherwise: Vec::new(),
    })
}

/// Reads now and in the past, through the log when there is something to write.
fn reading_txn(past: i64, rng: &mut StdRng) -> Request {
    let range = |revision| TxnOp::Range {
        keys: KeyRange::all(),
        limit: 0,
        revision,
        count_only: false,
    };
    let mut then = vec![range(0), range(past)];
    if rng.random_bool(0.5) {
        then.push(TxnOp::Delete {
            keys: KeyRange::one(key(rng)),
            prev_kv: false,
        });
    }
    Request::Txn(Txn {
        compares: Vec::new(),
        then,
        otherwise: Vec::new(),
    })
}

/// Whether a request is answered from a member's state, and does not go into the log.
pub(crate) fn only_reads(request: &Request) -> bool {
    match request {
        Request::Range { .. } => true,
        Request::Txn(txn) => mvcc::is_read_only(&wire::to_txn(txn)),
        _ => false,
    }
}

/// Answers a read from a member's state.
pub(crate) fn read(node: &Node, request: &Request) -> Outcome {
    let published = node.machine.published();
    let view = &published.view;
    let answer = match request {
        Request::Range {
            keys,
            limit,
            revision,
            count_only,
            ..
        } => {
            let range = view.range(&wire::to_range(keys, *limit, *revision, *count_only));
            range.map(wire::of_range)
        }
        Request::Txn(txn) => view.txn(&wire::to_txn(txn)).map(wire::of_txn),
        other => unreachable!("{other:?} is no read"),
    };
    match answer {
        Ok(kind) => Outcome::Done(Response {
            revision: view.revision(),
            kind,
        }),
        Err(error) => refused(Error::of_store(&error).unwrap()),
    }
}

/// What a client makes of an error.
pub(crate) fn refused(error: Error) -> Outcome {
    Outcome::Refused(match error {
        Error::Compacted => Refusal::Compacted,
        Error::FutureRev => Refusal::FutureRevision,
        _ => Refusal::Other,
    })
}
