//! A plain store, with clients and watchers that overlap, and what they are told of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    Compare, Comparison, Event, EventKind, History, KeyRange, KeyValue, Operation, Outcome,
    Refusal, Request, Response, ResponseKind, Target, Txn, TxnOp, TxnResult, WatchRecord,
    WatchReport, WatchResponse, check, log_of,
};

/// splitmix64.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

pub(crate) fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub(crate) fn put(name: &str, value: &str) -> Request {
    Request::Put {
        key: key(name),
        value: key(value),
        lease: 0,
        prev_kv: false,
    }
}

pub(crate) fn get(name: &str) -> Request {
    Request::Range {
        keys: KeyRange::one(key(name)),
        limit: 0,
        revision: 0,
        serializable: false,
        count_only: false,
    }
}

pub(crate) fn delete(name: &str) -> Request {
    Request::Delete {
        keys: KeyRange::one(key(name)),
        prev_kv: false,
    }
}

/// One state at a time, and written without a look at the checker's model.
#[derive(Default)]
pub(crate) struct Store {
    pub revision: i64,
    pub keys: BTreeMap<Bytes, KeyValue>,
    pub log: Vec<Event>,
    past: BTreeMap<i64, BTreeMap<Bytes, KeyValue>>,
}

impl Store {
    pub fn new() -> Self {
        Self {
            revision: 1,
            past: BTreeMap::from([(1, BTreeMap::new())]),
            ..Self::default()
        }
    }

    pub fn do_it(&mut self, request: &Request) -> Response {
        let next = self.revision + 1;
        let events = self.log.len();
        let kind = match request {
            Request::Put { .. } | Request::Delete { .. } | Request::Range { .. } => {
                self.one(request, next)
            }
            Request::Txn(txn) => {
                let [compare] = &txn.compares[..] else {
                    panic!("one comparison")
                };
                let found = self.keys.get(&compare.keys.key);
                let Target::ModRevision(target) = compare.target else {
                    panic!("of the mod revision")
                };
                let succeeded = found.map_or(0, |kv| kv.mod_revision) == target;
                let ops = if succeeded { &txn.then } else { &txn.otherwise };
                let responses = ops.iter().map(|op| self.one(&as_request(op), next));
                ResponseKind::Txn(TxnResult {
                    succeeded,
                    responses: responses.collect(),
                })
            }
            Request::LeaseRevoke { id } => {
                let keys = self.keys.values().filter(|kv| kv.lease == *id);
                let keys: Vec<Bytes> = keys.map(|kv| kv.key.clone()).collect();
                keys.iter().for_each(|key| self.remove(key, next));
                ResponseKind::Nothing
            }
            Request::LeaseGrant { .. } | Request::Compact { .. } => ResponseKind::Nothing,
        };
        if self.log.len() > events {
            self.revision = next;
            self.past.insert(next, self.keys.clone());
        }
        Response {
            revision: self.revision,
            kind,
        }
    }

    fn remove(&mut self, key: &Bytes, revision: i64) {
        let prev = self.keys.remove(key);
        self.log.push(Event {
            kind: EventKind::Delete,
            kv: KeyValue {
                key: key.clone(),
                mod_revision: revision,
                ..KeyValue::default()
            },
            prev,
        });
    }

    fn one(&mut self, request: &Request, next: i64) -> ResponseKind {
        match request {
            Request::Put {
                key,
                value,
                lease,
                prev_kv,
            } => {
                let prev = self.keys.get(key).cloned();
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: prev.as_ref().map_or(next, |prev| prev.create_revision),
                    mod_revision: next,
                    version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                    lease: *lease,
                };
                self.keys.insert(key.clone(), kv.clone());
                self.log.push(Event {
                    kind: EventKind::Put,
                    kv,
                    prev: prev.clone(),
                });
                ResponseKind::Put {
                    prev: prev.filter(|_| *prev_kv),
                }
            }
            Request::Delete { keys, prev_kv } => {
                let found = self.keys.values().filter(|kv| keys.contains(&kv.key));
                let found: Vec<KeyValue> = found.cloned().collect();
                found.iter().for_each(|kv| self.remove(&kv.key, next));
                ResponseKind::Delete {
                    deleted: found.len() as i64,
                    prevs: if *prev_kv { found } else { Vec::new() },
                }
            }
            Request::Range {
                keys,
                limit,
                revision,
                count_only,
                ..
            } => {
                let state = self.past.get(revision).unwrap_or(&self.keys);
                let found = state.values().filter(|kv| keys.contains(&kv.key));
                let mut kvs: Vec<KeyValue> = found.cloned().collect();
                let count = kvs.len() as i64;
                let more = *limit > 0 && count > *limit && !count_only;
                if *count_only {
                    kvs.clear();
                } else if *limit > 0 {
                    kvs.truncate(*limit as usize);
                }
                ResponseKind::Range { kvs, more, count }
            }
            _ => panic!("not one change: {request:?}"),
        }
    }
}

fn as_request(op: &TxnOp) -> Request {
    match op.clone() {
        TxnOp::Range {
            keys,
            limit,
            revision,
            count_only,
        } => Request::Range {
            keys,
            limit,
            revision,
            serializable: false,
            count_only,
        },
        TxnOp::Put {
            key,
            value,
            lease,
            prev_kv,
        } => Request::Put {
            key,
            value,
            lease,
            prev_kv,
        },
        TxnOp::Delete { keys, prev_kv } => Request::Delete { keys, prev_kv },
    }
}

/// Clients that ask for all there is, in intervals that overlap; some never hear of it.
pub(crate) fn run(seed: u64, operations: u64) -> History {
    let mut dice = Dice(seed);
    let mut store = Store::new();
    let mut history = History::default();
    let mut compacted = 0;
    for n in 0..operations {
        let now = 1000 + n * 100;
        let request = request(&mut dice, &store, n, &mut compacted);
        let start = now - dice.below(500).min(now);
        let end = Some(now + 1 + dice.below(500));
        let fate = dice.below(20);
        let outcome = match fate {
            0 => Outcome::Refused(Refusal::Other),
            1 => Outcome::Unknown,
            _ => Outcome::Done(store.do_it(&request)),
        };
        if fate == 2 {
            history.operations.push(Operation {
                outcome: Outcome::Unknown,
                ..operation(request, start, None, outcome)
            });
        } else {
            history
                .operations
                .push(operation(request, start, end, outcome));
        }
    }
    history.log = store.log;
    history.watches = (0..6)
        .map(|_| watch(&mut dice, &history, operations))
        .collect();
    history
}

pub(crate) fn operation(
    request: Request,
    start: u64,
    end: Option<u64>,
    outcome: Outcome,
) -> Operation {
    Operation {
        client: 1,
        member: 1,
        request,
        start,
        end,
        outcome,
    }
}

fn request(dice: &mut Dice, store: &Store, n: u64, compacted: &mut i64) -> Request {
    let name = |dice: &mut Dice| format!("k{}", dice.below(8));
    let range = |dice: &mut Dice| match dice.below(3) {
        0 => KeyRange::all(),
        1 => KeyRange::one(key(&name(dice))),
        _ => KeyRange {
            key: key(&name(dice)),
            end: key("k6"),
        },
    };
    let value = format!("v{n}");
    match dice.below(12) {
        0..4 => Request::Put {
            key: key(&name(dice)),
            value: key(&value),
            lease: if dice.below(4) == 0 { 7 } else { 0 },
            prev_kv: dice.below(2) == 0,
        },
        4 => Request::Delete {
            keys: range(dice),
            prev_kv: dice.below(2) == 0,
        },
        5..7 => {
            let name = name(dice);
            let known = store.keys.get(&key(&name)).map_or(0, |kv| kv.mod_revision);
            Request::Txn(Txn {
                compares: vec![Compare {
                    keys: KeyRange::one(key(&name)),
                    comparison: Comparison::Equal,
                    target: Target::ModRevision(known - i64::from(dice.below(3) == 0)),
                }],
                then: vec![
                    TxnOp::Put {
                        key: key(&name),
                        value: key(&value),
                        lease: 0,
                        prev_kv: true,
                    },
                    TxnOp::Put {
                        key: key("other"),
                        value: key(&value),
                        lease: 0,
                        prev_kv: false,
                    },
                    TxnOp::Range {
                        keys: KeyRange::all(),
                        limit: 3,
                        revision: 0,
                        count_only: false,
                    },
                ],
                otherwise: vec![TxnOp::Range {
                    keys: KeyRange::one(key(&name)),
                    limit: 0,
                    revision: 0,
                    count_only: false,
                }],
            })
        }
        7 if dice.below(10) == 0 => {
            *compacted = *compacted + (store.revision - *compacted) / 2;
            Request::Compact {
                revision: *compacted,
            }
        }
        8 if dice.below(4) == 0 => Request::LeaseRevoke { id: 7 },
        9 => Request::LeaseGrant { id: 7, ttl: 5 },
        _ => Request::Range {
            keys: range(dice),
            limit: dice.below(4) as i64,
            revision: match dice.below(3) {
                0 => (*compacted).max(1) + dice.below(1 + store.revision as u64 / 4) as i64,
                _ => 0,
            }
            .min(store.revision),
            serializable: false,
            count_only: dice.below(4) == 0,
        },
    }
}

/// A watcher that is told all after the run, in responses of some revisions each, and is made anew
/// now and then.
fn watch(dice: &mut Dice, history: &History, operations: u64) -> WatchRecord {
    let keys = match dice.below(2) {
        0 => KeyRange::all(),
        _ => KeyRange::one(key("k3")),
    };
    let prev_kv = dice.below(2) == 0;
    let last = history.log.last().map_or(1, |event| event.kv.mod_revision);
    let mut at = 2000 + operations * 100;
    let mut next = 1 + dice.below(10) as i64;
    let mut responses = vec![WatchResponse {
        at,
        revision: last,
        report: WatchReport::Created { from: next },
    }];
    let mut push = |revision, report| {
        at += 10;
        responses.push(WatchResponse {
            at,
            revision,
            report,
        });
    };
    while next <= last {
        let until = (next + dice.below(5) as i64).min(last);
        let wanted = history.log.iter().filter(|event| {
            (next..=until).contains(&event.kv.mod_revision) && keys.contains(&event.kv.key)
        });
        let events: Vec<Event> = wanted
            .map(|event| Event {
                prev: event.prev.clone().filter(|_| prev_kv),
                ..event.clone()
            })
            .collect();
        if !events.is_empty() {
            push(until, WatchReport::Events(events));
        }
        next = until + 1;
        if dice.below(4) == 0 {
            push(until, WatchReport::Progress);
        }
        if dice.below(6) == 0 {
            push(until, WatchReport::Ended);
            push(last, WatchReport::Created { from: next });
        }
    }
    WatchRecord {
        keys,
        prev_kv,
        responses,
        reached: last,
    }
}

#[test]
fn what_an_honest_store_shows_passes() {
    for seed in 0..100 {
        let history = run(seed, 300);
        let summary = check(&history).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(summary.writes > 50 && summary.events > 100, "{summary:?}");
        assert!(
            summary.unknown_done > 0 && summary.progress > 0,
            "{summary:?}"
        );
    }
}

#[test]
fn long_histories_take_little_time_and_memory() {
    let summary = check(&run(1, 20_000)).unwrap();
    assert!(summary.answered > 15_000, "{summary:?}");
}

#[test]
fn watchers_of_all_keys_make_the_log() {
    let history = run(3, 200);
    let of_all = |watch: &&WatchRecord| watch.keys == KeyRange::all();
    let log = log_of(&history.watches).unwrap();
    let first = history.watches.iter().filter(of_all).map(|watch| {
        let WatchReport::Created { from } = watch.responses[0].report else {
            panic!("begins with its creation")
        };
        from
    });
    let first = first.min().unwrap();
    let expected = history
        .log
        .iter()
        .filter(|event| event.kv.mod_revision >= first);
    assert!(log.len() > 50);
    assert!(
        log.iter()
            .zip(expected)
            .all(|(one, other)| one.kv == other.kv && one.kind == other.kind)
    );
}
