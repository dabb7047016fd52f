//! The machine on the engine in memory: what entries do, and that a crash at any point and a
//! replay of the log end in the same state.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use mvcc::{Direction, Engine, Family, MemEngine, Read};
use prost::Message;
use proto::{
    etcdserverpb::{
        AlarmRequest, AlarmType, CompactionRequest, InternalRaftRequest, LeaseGrantRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestHeader, TxnRequest,
        alarm_request::AlarmAction,
    },
    membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest},
    raftpb::{ConfChange, Entry, EntryType},
};

use crate::{
    Error, Fatal, Machine, Member, Options, Outcome, Reply, Version, members,
    validate::MAX_TXN_DEPTH,
};

mod auth;
mod buckets;

const NOW: Duration = Duration::from_secs(100);

fn options(quota_bytes: i64) -> Options {
    Options {
        member_id: 1,
        quota_bytes,
        max_learners: 1,
        min_lease_ttl: 2,
    }
}

fn open(engine: &Arc<MemEngine>) -> Machine<MemEngine> {
    Machine::open(Arc::clone(engine), options(0)).unwrap()
}

fn member(id: u64) -> Member {
    Member {
        id,
        peer_urls: vec![format!("http://10.0.0.{id}:2380")],
        ..Member::default()
    }
}

#[derive(Default)]
struct Log {
    entries: Vec<Entry>,
}

impl Log {
    fn add(&mut self, kind: EntryType, data: Vec<u8>) -> u64 {
        let index = self.entries.len() as u64 + 1;
        self.entries.push(Entry {
            r#type: Some(kind as i32),
            term: Some(2),
            index: Some(index),
            data: Some(data.into()),
        });
        index
    }

    fn request(&mut self, request: InternalRaftRequest) -> u64 {
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: self.entries.len() as u64 + 1,
                ..RequestHeader::default()
            }),
            ..request
        };
        self.add(EntryType::EntryNormal, request.encode_to_vec())
    }

    fn change(&mut self, change: ConfChange) -> u64 {
        self.add(EntryType::EntryConfChange, change.encode_to_vec())
    }

    fn put(&mut self, key: &str, value: &str, lease: i64) -> u64 {
        self.request(InternalRaftRequest {
            put: Some(PutRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
                lease,
                ..PutRequest::default()
            }),
            ..InternalRaftRequest::default()
        })
    }

    fn grant(&mut self, id: i64, ttl: i64) -> u64 {
        self.request(InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id, ttl }),
            ..InternalRaftRequest::default()
        })
    }

    fn revoke(&mut self, id: i64) -> u64 {
        self.request(InternalRaftRequest {
            lease_revoke: Some(LeaseRevokeRequest { id }),
            ..InternalRaftRequest::default()
        })
    }

    fn compact(&mut self, revision: i64) -> u64 {
        self.request(InternalRaftRequest {
            compaction: Some(CompactionRequest {
                revision,
                physical: false,
            }),
            ..InternalRaftRequest::default()
        })
    }

    fn alarm(&mut self, action: AlarmAction, alarm: AlarmType) -> u64 {
        self.request(InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: action as i32,
                member_id: 1,
                alarm: alarm as i32,
            }),
            ..InternalRaftRequest::default()
        })
    }
}

type Replies = BTreeMap<u64, Result<Reply, Error>>;

fn apply(machine: &mut Machine<MemEngine>, entries: &[Entry]) -> Outcome<mvcc::MemSnapshot> {
    machine.apply(entries, NOW, &|_| true).unwrap()
}

fn run(machine: &mut Machine<MemEngine>, log: &Log) -> Replies {
    let from = machine.published().applied.index as usize;
    let outcome = apply(machine, &log.entries[from..]);
    outcome.replies.into_iter().collect()
}

/// All rows, but for the high-water mark of the size: it depends on how entries were batched.
fn all_rows(engine: &MemEngine) -> Vec<(Family, Bytes, Bytes)> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        let mut cursor = engine
            .scan(family, b"", None, Direction::Ascending)
            .unwrap();
        while cursor.valid() {
            let key = Bytes::copy_from_slice(cursor.key());
            let mut value = Bytes::copy_from_slice(cursor.value());
            if &key[..] == b"cairn_store" {
                value.truncate(16);
            }
            rows.push((family, key, value));
            cursor.next().unwrap();
        }
    }
    rows
}

/// A log that touches everything.
fn whole_log() -> Log {
    let mut log = Log::default();
    for change in members::found(&[member(2), member(1)]) {
        log.change(change);
    }
    log.add(EntryType::EntryNormal, Vec::new());
    log.request(InternalRaftRequest {
        cluster_version_set: Some(ClusterVersionSetRequest {
            ver: "3.7.0".to_owned(),
        }),
        ..InternalRaftRequest::default()
    });
    log.request(InternalRaftRequest {
        cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
            member_id: 1,
            member_attributes: Some(Attributes {
                name: "one".to_owned(),
                client_urls: vec!["http://c".to_owned()],
            }),
        }),
        ..InternalRaftRequest::default()
    });
    log.grant(7, 60);
    log.put("a", "1", 7);
    log.put("b", "1", 7);
    log.put("c", "1", 0);
    log.put("c", "2", 99);
    log.change(members::add(
        50,
        &Member {
            is_learner: true,
            ..member(3)
        },
    ));
    log.change(members::add(
        51,
        &Member {
            is_learner: true,
            ..member(4)
        },
    ));
    log.change(members::promote(52, 3));
    log.alarm(AlarmAction::Activate, AlarmType::Nospace);
    log.put("d", "1", 0);
    log.alarm(AlarmAction::Deactivate, AlarmType::Nospace);
    log.put("d", "1", 0);
    log.revoke(7);
    log.compact(4);
    log.put("e", "1", 0);
    log.change(members::remove(53, 2));
    log
}

#[test]
fn entries_do_what_they_say() {
    let engine = Arc::new(MemEngine::default());
    let mut machine = open(&engine);
    let log = whole_log();
    let outcome = apply(&mut machine, &log.entries);
    assert!(outcome.term_began && !outcome.removed_self);
    let told: Vec<bool> = outcome
        .conf_changes
        .iter()
        .map(|c| c.change.is_some())
        .collect();
    assert_eq!(told, [true, true, true, false, true, true]);
    let replies: Replies = outcome.replies.into_iter().collect();
    assert_eq!(replies[&10], Err(Error::LeaseNotFound));
    assert_eq!(replies[&51], Err(Error::TooManyLearners));
    assert_eq!(replies[&15], Err(Error::NoSpace));
    assert!(matches!(&replies[&17], Ok(Reply::Put(_))));
    let published = machine.published();
    assert_eq!(published.applied.index, log.entries.len() as u64);
    assert_eq!(published.view.revision(), 7);
    assert_eq!(published.view.compact_revision(), 4);
    assert_eq!(published.cluster_version, Some(Version::new(3, 7, 0)));
    assert_eq!(published.storage_version, Some(Version::new(3, 7, 0)));
    assert_eq!(published.members.get(1).unwrap().name, "one");
    assert_eq!(machine.conf_state().voters, [1, 3]);
    assert!(published.members.is_removed(2));
    assert!(!machine.lessor().lock().unwrap().contains(7));
    let all = RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        ..RangeRequest::default()
    };
    let keys = published.view.range(&all).unwrap().kvs;
    let keys: Vec<&[u8]> = keys.iter().map(|kv| &kv.key[..]).collect();
    assert_eq!(keys, [b"c", b"d", b"e"]);
}

#[test]
fn a_replay_after_any_crash_ends_in_the_same_state() {
    let log = whole_log();
    let whole = Arc::new(MemEngine::default());
    let mut machine = open(&whole);
    let replies = run(&mut machine, &log);
    for cut in 0..=log.entries.len() {
        for kept in [0, 1, usize::MAX] {
            let engine = Arc::new(MemEngine::default());
            let mut machine = open(&engine);
            for entry in &log.entries[..cut / 2] {
                apply(&mut machine, std::slice::from_ref(entry));
            }
            engine.flush_all(true).unwrap();
            for entry in &log.entries[cut / 2..cut] {
                apply(&mut machine, std::slice::from_ref(entry));
            }
            drop(machine);
            let engine = Arc::new(engine.crash(kept));
            let mut machine = open(&engine);
            // The log is read from before what the state holds.
            let from = machine.published().applied.index.saturating_sub(1) as usize;
            let again = apply(&mut machine, &log.entries[from..]);
            // Founding members are added by requests without an ID.
            for (id, reply) in again.replies.into_iter().filter(|(id, _)| *id != 0) {
                assert_eq!(reply, replies[&id], "of {id}");
            }
            assert_eq!(all_rows(&engine), all_rows(&whole), "cut {cut} kept {kept}");
        }
    }
}

#[test]
fn the_last_request_within_the_quota_is_done_and_told_so() {
    let engine = Arc::new(MemEngine::default());
    let mut machine = Machine::open(engine, options(24 << 10)).unwrap();
    let mut log = Log::default();
    let value = "v".repeat(2000);
    log.put("a", &value, 0);
    let beyond = log.put("b", &value, 0);
    let outcome = apply(&mut machine, &log.entries);
    assert_eq!(outcome.beyond_quota, [beyond]);
    assert_eq!(outcome.replies.len(), 1);
    assert_eq!(machine.published().view.revision(), 3);
    log.alarm(AlarmAction::Activate, AlarmType::Nospace);
    let refused = log.put("c", &value, 0);
    let granted = log.grant(1, 10);
    let read = log.request(InternalRaftRequest {
        txn: Some(TxnRequest::default()),
        ..InternalRaftRequest::default()
    });
    let replies = run(&mut machine, &log);
    assert_eq!(replies[&refused], Err(Error::NoSpace));
    assert_eq!(replies[&granted], Err(Error::NoSpace));
    assert!(replies[&read].is_ok());
    assert_eq!(machine.published().view.revision(), 3);
}

#[test]
fn an_entry_that_cannot_be_applied_ends_the_process() {
    let check = |kind: i32, data: &[u8], index: u64| {
        let mut machine = open(&Arc::new(MemEngine::default()));
        let entry = Entry {
            r#type: Some(kind),
            term: Some(1),
            index: Some(index),
            data: Some(Bytes::copy_from_slice(data)),
        };
        machine.apply(&[entry], NOW, &|_| true).unwrap_err()
    };
    assert!(matches!(check(0, b"\xff\xff", 1), Fatal::Entry { .. }));
    assert!(matches!(check(1, b"\xff\xff", 1), Fatal::Entry { .. }));
    assert!(matches!(check(2, b"", 1), Fatal::Entry { .. }));
    assert!(matches!(check(0, b"", 2), Fatal::Entry { .. }));
    let newer = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 9,
            ..RequestHeader::default()
        }),
        cluster_version_set: Some(ClusterVersionSetRequest {
            ver: "3.8.0".to_owned(),
        }),
        ..InternalRaftRequest::default()
    };
    assert!(matches!(
        check(0, &newer.encode_to_vec(), 1),
        Fatal::Entry { .. }
    ));
    let clear = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 9,
            ..RequestHeader::default()
        }),
        auth_user_add: Some(proto::etcdserverpb::AuthUserAddRequest {
            name: "ann".to_owned(),
            password: "secret".to_owned(),
            ..Default::default()
        }),
        ..InternalRaftRequest::default()
    };
    assert!(matches!(
        check(0, &clear.encode_to_vec(), 1),
        Fatal::Entry { .. }
    ));
    let nothing = InternalRaftRequest {
        auth_user_add: None,
        ..clear
    };
    assert!(matches!(
        check(0, &nothing.encode_to_vec(), 1),
        Fatal::Unsupported { .. }
    ));
}

#[test]
fn the_deepest_transaction_that_is_admitted_can_be_applied() {
    use proto::etcdserverpb::{RequestOp, request_op::Request};
    let mut txn = TxnRequest::default();
    for _ in 1..MAX_TXN_DEPTH {
        txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(txn)),
            }],
            ..TxnRequest::default()
        };
    }
    let mut log = Log::default();
    let id = log.request(InternalRaftRequest {
        txn: Some(txn),
        ..InternalRaftRequest::default()
    });
    let replies = run(&mut open(&Arc::new(MemEngine::default())), &log);
    assert!(replies[&id].is_ok());
}
