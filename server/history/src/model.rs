//! A small model of etcd's keys, with all of their past.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::{
    Base, Compare, Comparison, Event, EventKind, KeyRange, KeyValue, Request, ResponseKind, Target,
    Txn, TxnOp, TxnResult,
};

struct Version {
    revision: i64,
    /// `None` once it is deleted.
    kv: Option<KeyValue>,
}

/// The keys at every revision.
#[derive(Default)]
pub(crate) struct Model {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Keys that were ever attached to a lease.
    leases: HashMap<i64, BTreeSet<Bytes>>,
}

impl Model {
    pub fn new(base: &Base) -> Self {
        let mut model = Self::default();
        for kv in &base.kvs {
            model.add(kv.key.clone(), base.revision, Some(kv.clone()));
        }
        model
    }

    pub fn push(&mut self, event: &Event) {
        let kv = match event.kind {
            EventKind::Put => Some(event.kv.clone()),
            EventKind::Delete => None,
        };
        self.add(event.kv.key.clone(), event.kv.mod_revision, kv);
    }

    fn add(&mut self, key: Bytes, revision: i64, kv: Option<KeyValue>) {
        if let Some(kv) = kv.as_ref().filter(|kv| kv.lease != 0) {
            self.leases.entry(kv.lease).or_default().insert(key.clone());
        }
        let versions = self.keys.entry(key).or_default();
        versions.push(Version { revision, kv });
    }

    /// A key after all that was pushed.
    pub fn newest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.get(key, i64::MAX)
    }

    /// A key at a revision.
    pub fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        version(self.keys.get(key)?, revision)
    }

    /// The keys of a range at a revision, in order.
    pub fn range(&self, keys: &KeyRange, revision: i64) -> Vec<&KeyValue> {
        if keys.is_one() {
            return self.get(&keys.key, revision).into_iter().collect();
        }
        let from = self.keys.range(keys.key.clone()..);
        let within = from.take_while(|(key, _)| keys.contains(key));
        within
            .filter_map(|(_, versions)| version(versions, revision))
            .collect()
    }

    /// The keys that are attached to a lease at a revision, in order.
    pub fn attached(&self, lease: i64, revision: i64) -> Vec<&KeyValue> {
        let keys = self.leases.get(&lease).into_iter().flatten();
        let found = keys.filter_map(|key| self.get(key, revision));
        found.filter(|kv| kv.lease == lease).collect()
    }

    /// What a request answers, and which events it makes, when it is carried out on the state at
    /// revision `before`.
    pub fn carry_out(&self, request: &Request, before: i64) -> (ResponseKind, Vec<Event>) {
        let mut step = Step {
            model: self,
            before,
            changed: BTreeMap::new(),
            events: Vec::new(),
        };
        let kind = step.request(request);
        (kind, step.events)
    }
}

fn version(versions: &[Version], revision: i64) -> Option<&KeyValue> {
    let behind = versions.partition_point(|version| version.revision <= revision);
    versions[..behind].last()?.kv.as_ref()
}

/// A request on its way: a state, and what it has changed already.
struct Step<'a> {
    model: &'a Model,
    before: i64,
    changed: BTreeMap<Bytes, Option<KeyValue>>,
    events: Vec<Event>,
}

impl Step<'_> {
    fn request(&mut self, request: &Request) -> ResponseKind {
        match request {
            Request::Range {
                keys,
                limit,
                revision,
                count_only,
                ..
            } => self.range(keys, *limit, *revision, *count_only),
            Request::Put {
                key,
                value,
                lease,
                prev_kv,
            } => self.put(key, value, *lease, *prev_kv),
            Request::Delete { keys, prev_kv } => self.delete(keys, *prev_kv),
            Request::Txn(txn) => self.txn(txn),
            Request::LeaseRevoke { id } => {
                for kv in self.model.attached(*id, self.before) {
                    self.remove(kv.clone());
                }
                ResponseKind::Nothing
            }
            Request::Compact { .. } | Request::LeaseGrant { .. } => ResponseKind::Nothing,
        }
    }

    fn current(&self, keys: &KeyRange) -> Vec<KeyValue> {
        let old = self.model.range(keys, self.before).into_iter();
        let mut found: BTreeMap<&[u8], &KeyValue> = old.map(|kv| (&kv.key[..], kv)).collect();
        for (key, kv) in self.changed.iter().filter(|(key, _)| keys.contains(key)) {
            match kv {
                Some(kv) => found.insert(key, kv),
                None => found.remove(&key[..]),
            };
        }
        found.into_values().cloned().collect()
    }

    fn range(&self, keys: &KeyRange, limit: i64, revision: i64, count_only: bool) -> ResponseKind {
        let mut kvs = match revision {
            1.. if revision <= self.before => {
                let old = self.model.range(keys, revision);
                old.into_iter().cloned().collect()
            }
            _ => self.current(keys),
        };
        let count = kvs.len() as i64;
        if count_only {
            kvs.clear();
        }
        let more = limit > 0 && kvs.len() as i64 > limit;
        if more {
            kvs.truncate(limit as usize);
        }
        ResponseKind::Range { kvs, more, count }
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, lease: i64, prev_kv: bool) -> ResponseKind {
        let before = self.current(&KeyRange::one(key.clone())).pop();
        let revision = self.before + 1;
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
        };
        self.changed.insert(key.clone(), Some(kv.clone()));
        self.events.push(Event {
            kind: EventKind::Put,
            kv,
            prev: before.clone(),
        });
        ResponseKind::Put {
            prev: before.filter(|_| prev_kv),
        }
    }

    fn delete(&mut self, keys: &KeyRange, prev_kv: bool) -> ResponseKind {
        let found = self.current(keys);
        for kv in &found {
            self.remove(kv.clone());
        }
        ResponseKind::Delete {
            deleted: found.len() as i64,
            prevs: if prev_kv { found } else { Vec::new() },
        }
    }

    fn remove(&mut self, kv: KeyValue) {
        self.changed.insert(kv.key.clone(), None);
        self.events.push(Event {
            kind: EventKind::Delete,
            kv: KeyValue {
                key: kv.key.clone(),
                mod_revision: self.before + 1,
                ..KeyValue::default()
            },
            prev: Some(kv),
        });
    }

    fn txn(&mut self, txn: &Txn) -> ResponseKind {
        let succeeded = txn.compares.iter().all(|compare| {
            let found = self.current(&compare.keys);
            match &found[..] {
                [] => compares(compare, None),
                found => found.iter().all(|kv| compares(compare, Some(kv))),
            }
        });
        let ops = match succeeded {
            true => &txn.then,
            false => &txn.otherwise,
        };
        let carry_out = |op: &TxnOp| match op {
            TxnOp::Range {
                keys,
                limit,
                revision,
                count_only,
            } => self.range(keys, *limit, *revision, *count_only),
            TxnOp::Put {
                key,
                value,
                lease,
                prev_kv,
            } => self.put(key, value, *lease, *prev_kv),
            TxnOp::Delete { keys, prev_kv } => self.delete(keys, *prev_kv),
        };
        let responses = ops.iter().map(carry_out).collect();
        ResponseKind::Txn(TxnResult {
            succeeded,
            responses,
        })
    }
}

/// Whether a key passes a comparison. One that is not there counts as all zeros, and has no value.
pub(crate) fn compares(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> i64, target: &i64| kv.map_or(0, of).cmp(target);
    let ordering = match &compare.target {
        Target::Value(value) => match kv {
            Some(kv) => kv.value.cmp(value),
            None => return false,
        },
        Target::Version(target) => number(|kv| kv.version, target),
        Target::CreateRevision(target) => number(|kv| kv.create_revision, target),
        Target::ModRevision(target) => number(|kv| kv.mod_revision, target),
        Target::Lease(target) => number(|kv| kv.lease, target),
    };
    match compare.comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::Less => ordering.is_lt(),
    }
}
