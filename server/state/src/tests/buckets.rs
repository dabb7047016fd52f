//! The state on its way through etcd's buckets: what comes out is what etcd has, and what goes in
//! is the state that it came from.

use mvcc::{MemSnapshot, View};
use proto::{etcdserverpb::DeleteRangeRequest, membershippb::DowngradeInfoSetRequest};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    BucketRow, BucketSink, BucketSource, CopyError, MemberChange, export, import, v2_store,
};

type Row = (Bytes, Bytes);

/// Buckets with their rows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Buckets {
    buckets: Vec<(String, Vec<Row>)>,
}

impl Buckets {
    fn of(rows: &MemSnapshot) -> Self {
        let mut buckets = Self::default();
        export(rows, &mut buckets).unwrap();
        buckets
    }

    fn bucket(&mut self, name: &str) -> &mut Vec<Row> {
        let found = self.buckets.iter_mut().find(|(of, _)| of == name);
        &mut found.unwrap().1
    }

    fn set(&mut self, bucket: &str, key: &[u8], value: &[u8]) {
        let rows = self.bucket(bucket);
        rows.retain(|(of, _)| of != key);
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        rows.sort();
    }

    /// As a Go program prints them.
    fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, rows) in &self.buckets {
            for (key, value) in rows {
                let (key, value) = (key.escape_ascii(), value.escape_ascii());
                lines.push(format!("{name} {key} = {value}"));
            }
        }
        lines
    }
}

impl BucketSink for Buckets {
    type Error = String;

    fn bucket(&mut self, name: &str) -> Result<(), String> {
        assert!(self.buckets.last().is_none_or(|(last, _)| &last[..] < name));
        self.buckets.push((name.to_owned(), Vec::new()));
        Ok(())
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let (_, rows) = self.buckets.last_mut().ok_or("no bucket")?;
        assert!(rows.last().is_none_or(|(last, _)| &last[..] < key));
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        Ok(())
    }
}

impl BucketSource for Buckets {
    type Error = String;

    fn buckets(&self) -> Result<Vec<Vec<u8>>, String> {
        let names = self.buckets.iter();
        Ok(names.map(|(name, _)| name.clone().into_bytes()).collect())
    }

    fn rows(&self, bucket: &[u8]) -> Result<impl Iterator<Item = BucketRow<String>>, String> {
        let found = self.buckets.iter();
        let found = found.filter(move |(name, _)| name.as_bytes() == bucket);
        Ok(found.flat_map(|(_, rows)| rows.iter().cloned().map(Ok)))
    }
}

fn imported(buckets: &Buckets) -> Result<Arc<MemEngine>, CopyError<String>> {
    let engine = Arc::new(MemEngine::default());
    import(&*engine, buckets)?;
    assert_eq!(engine.unflushed_batches(), 0, "it is not durable");
    Ok(engine)
}

fn snapshot(machine: &Machine<MemEngine>) -> MemSnapshot {
    machine.published().view.snapshot().clone()
}

/// Everything that a state has, but for what depends on how batches were cut: how keys lie in the
/// buckets of counts, and the high-water mark of the size.
fn rows_of(machine: &Machine<MemEngine>) -> Vec<(Family, Bytes, Bytes)> {
    let rows = all_rows(machine.engine()).into_iter();
    rows.filter(|(family, ..)| *family != Family::Count)
        .collect()
}

fn finish_compaction(machine: &mut Machine<MemEngine>) {
    while machine.compaction_pending() {
        machine.compaction_step().unwrap();
    }
}

/// What was read from the database of an etcd 3.7.3 that did the same, its IDs and URLs replaced.
#[test]
fn the_rows_are_those_of_etcd() {
    let mut machine = open(&Arc::new(MemEngine::default()));
    let mut log = whole_log();
    log.grant(0x7ee1, 600);
    log.put("l", "x", 0x7ee1);
    log.change(members::add(
        60,
        &Member {
            peer_urls: vec!["http://h:1/?a=1&b=<x>".to_owned()],
            is_learner: true,
            ..member(5)
        },
    ));
    log.alarm(AlarmAction::Activate, AlarmType::Corrupt);
    log.request(InternalRaftRequest {
        downgrade_info_set: Some(DowngradeInfoSetRequest {
            enabled: true,
            ver: "3.6.0".to_owned(),
        }),
        ..InternalRaftRequest::default()
    });
    run(&mut machine, &log);
    finish_compaction(&mut machine);
    let buckets = Buckets::of(&snapshot(&machine));
    let names: Vec<&str> = buckets.buckets.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(
        names,
        [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "key",
            "lease",
            "members",
            "members_removed",
            "meta"
        ]
    );
    let zeros = r"\x00".repeat(8);
    let compacted = format!(r"{}\x04_{zeros}", r"\x00".repeat(7));
    let number = |n: u8| format!(r"{}\x{n:02x}", r"\x00".repeat(7));
    let row = |main: u8, value: &str| format!("key {}_{zeros} = {value}", number(main));
    let index = log.entries.len() as u8;
    assert_eq!(
        buckets.text(),
        [
            r"alarm \x08\x01\x10\x02 = ".to_owned(),
            format!("auth authRevision = {}", number(1)),
            "cluster clusterVersion = 3.7.0".to_owned(),
            r#"cluster downgrade = {\"target-version\":\"3.6.0\",\"enabled\":true}"#.to_owned(),
            row(2, r"\n\x01a\x10\x02\x18\x02 \x01*\x0110\x07"),
            row(3, r"\n\x01b\x10\x03\x18\x03 \x01*\x0110\x07"),
            row(4, r"\n\x01c\x10\x04\x18\x04 \x01*\x011"),
            row(5, r"\n\x01d\x10\x05\x18\x05 \x01*\x011"),
            format!(r"key {}_{zeros}t = \n\x01a", number(6)),
            format!(r"key {}_{}t = \n\x01b", number(6), number(1)),
            row(7, r"\n\x01e\x10\x07\x18\x07 \x01*\x011"),
            row(8, r"\n\x01l\x10\x08\x18\x08 \x01*\x01x0\xe1\xfd\x01"),
            r"lease \x00\x00\x00\x00\x00\x00~\xe1 = \x08\xe1\xfd\x01\x10\xd8\x04".to_owned(),
            concat!(
                r#"members 1 = {\"id\":1,\"peerURLs\":[\"http://10.0.0.1:2380\"],"#,
                r#"\"name\":\"one\",\"clientURLs\":[\"http://c\"]}"#
            )
            .to_owned(),
            r#"members 3 = {\"id\":3,\"peerURLs\":[\"http://10.0.0.3:2380\"]}"#.to_owned(),
            concat!(
                r#"members 5 = {\"id\":5,"#,
                r#"\"peerURLs\":[\"http://h:1/?a=1\\u0026b=\\u003cx\\u003e\"],"#,
                r#"\"isLearner\":true}"#
            )
            .to_owned(),
            "members_removed 2 = removed".to_owned(),
            r#"meta confState = {\"voters\":[1,3],\"learners\":[5],\"auto_leave\":false}"#
                .to_owned(),
            format!(r"meta consistent_index = {}", number(index)),
            format!("meta finishedCompactRev = {compacted}"),
            format!("meta scheduledCompactRev = {compacted}"),
            "meta storageVersion = 3.7.0".to_owned(),
            format!("meta term = {}", number(2)),
        ]
    );
}

/// Requests of every kind, some of them refused.
fn random_entry(log: &mut Log, rng: &mut StdRng, revision: i64) {
    let key = |rng: &mut StdRng| format!("k{}", rng.random_range(0..20));
    match rng.random_range(0..20) {
        0..9 => {
            let lease = match rng.random_bool(0.3) {
                true => rng.random_range(1..5),
                false => 0,
            };
            let value = "v".repeat(if rng.random_bool(0.1) { 2000 } else { 3 });
            log.put(&key(rng), &value, lease);
        }
        9..12 => {
            let (key, end) = (key(rng), key(rng));
            log.request(InternalRaftRequest {
                delete_range: Some(DeleteRangeRequest {
                    key: key.into(),
                    range_end: end.into(),
                    prev_kv: false,
                }),
                ..InternalRaftRequest::default()
            });
        }
        12 | 13 => {
            log.grant(rng.random_range(1..5), rng.random_range(1..99));
        }
        14 => {
            log.revoke(rng.random_range(1..5));
        }
        15 => {
            log.compact(rng.random_range(1..=revision));
        }
        16 => {
            let id = rng.random_range(1..8);
            let member = Member {
                is_learner: rng.random_bool(0.5),
                ..member(id)
            };
            log.change(members::add(100, &member));
        }
        17 => {
            // This member stays.
            log.change(members::remove(101, rng.random_range(2..8)));
        }
        18 => {
            let action = match rng.random_bool(0.3) {
                true => AlarmAction::Activate,
                false => AlarmAction::Deactivate,
            };
            log.alarm(action, AlarmType::Nospace);
        }
        _ => {
            log.change(members::promote(102, rng.random_range(1..8)));
        }
    }
}

/// What readers can be told of a state.
fn answers(view: &View<MemSnapshot>) -> Vec<String> {
    let mut answers = Vec::new();
    for at in view.compact_revision().max(1)..=view.revision() {
        let all = RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            revision: at,
            ..RangeRequest::default()
        };
        let part = RangeRequest {
            key: "k12".into(),
            range_end: "k4".into(),
            count_only: true,
            ..all.clone()
        };
        answers.push(format!("{:?}", view.range(&all)));
        answers.push(format!("{:?}", view.range(&part)));
        answers.push(format!("{:?}", view.hash_kv(at)));
    }
    let from = view.compact_revision().max(0);
    answers.push(format!("{:?}", view.history(from, usize::MAX)));
    for lease in 1..5 {
        answers.push(format!("{:?}", view.lease_keys(lease)));
    }
    let numbers = (view.key_count(), view.size_in_use(), view.revision());
    answers.push(format!("{numbers:?}"));
    answers
}

#[test]
fn a_state_goes_through_the_buckets_and_goes_on_alike() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Log::default();
        for change in members::found(&[member(1), member(2), member(3)]) {
            log.change(change);
        }
        let mut leader = open(&Arc::new(MemEngine::default()));
        let mut follower = open(&Arc::new(MemEngine::default()));
        run(&mut leader, &log);
        run(&mut follower, &log);
        let lessor = follower.lessor();
        for round in 0..4 {
            for _ in 0..rng.random_range(0..60) {
                let revision = leader.published().view.revision();
                random_entry(&mut log, &mut rng, revision);
                if rng.random_bool(0.8) {
                    run(&mut leader, &log);
                }
                if rng.random_bool(0.05) {
                    finish_compaction(&mut leader);
                }
                if rng.random_bool(0.3) && round % 2 == 0 {
                    run(&mut follower, &log);
                }
            }
            run(&mut leader, &log);
            let sent = Buckets::of(&snapshot(&leader));
            let engine = imported(&sent).unwrap();
            let before = follower.published();
            let replaced = follower.replace(Arc::clone(&engine), NOW).unwrap();
            assert!(!replaced.removed_self);
            let mut members = crate::Members::clone(&before.members);
            for change in &replaced.members {
                members.apply(change);
            }
            let (of, published) = (leader.published(), follower.published());
            let list = |members: &crate::Members| members.iter().cloned().collect::<Vec<_>>();
            assert_eq!(list(&members), list(&of.members));
            assert_eq!(published.members, of.members);
            assert_eq!(published.alarms, of.alarms);
            assert_eq!(published.applied, of.applied);
            assert_eq!(published.cluster_version, of.cluster_version);
            assert_eq!(follower.conf_state(), leader.conf_state());
            assert!(Arc::ptr_eq(&lessor, &follower.lessor()));
            assert_eq!(
                lessor.lock().unwrap().ids(),
                leader.lessor().lock().unwrap().ids()
            );
            // Without the hashes that only the leader has kept.
            let kept = open(&Arc::new(leader.engine().crash(usize::MAX)));
            let expected = answers(&kept.published().view);
            assert_eq!(answers(&published.view), expected, "seed {seed}");
            assert_eq!(Buckets::of(&snapshot(&follower)), sent);
            if !leader.compaction_pending() {
                assert_eq!(rows_of(&follower), rows_of(&leader), "seed {seed}");
            }
        }
        for _ in 0..30 {
            let revision = leader.published().view.revision();
            random_entry(&mut log, &mut rng, revision);
            let told = run(&mut leader, &log);
            assert_eq!(run(&mut follower, &log), told);
        }
        finish_compaction(&mut leader);
        finish_compaction(&mut follower);
        assert_eq!(rows_of(&follower), rows_of(&leader), "seed {seed}");
    }
}

#[test]
fn an_older_or_damaged_state_replaces_nothing() {
    let mut machine = open(&Arc::new(MemEngine::default()));
    let log = whole_log();
    apply(&mut machine, &log.entries[..10]);
    let old = imported(&Buckets::of(&snapshot(&machine))).unwrap();
    run(&mut machine, &log);
    let whole = Buckets::of(&snapshot(&machine));
    let rows = all_rows(machine.engine());
    let error = machine.replace(old, NOW).err().unwrap().to_string();
    assert!(
        error.contains("ends at entry 10, and this one at"),
        "{error}"
    );
    let damaged = imported(&whole).unwrap();
    let mut batch = mvcc::WriteBatch::default();
    batch.put(Family::Lease, &b"x"[..], &b"\xff"[..]);
    damaged.write(&batch).unwrap();
    assert!(machine.replace(damaged, NOW).is_err());
    assert_eq!(all_rows(machine.engine()), rows);
    let same = machine.replace(imported(&whole).unwrap(), NOW).unwrap();
    assert!(same.members.is_empty());
}

#[test]
fn a_member_learns_from_a_state_that_it_was_removed() {
    let mut leader = open(&Arc::new(MemEngine::default()));
    let mut log = Log::default();
    for change in members::found(&[member(1), member(2), member(3)]) {
        log.change(change);
    }
    let founded = log.entries.clone();
    log.change(members::remove(50, 1));
    log.change(members::update(
        51,
        &Member {
            peer_urls: vec!["http://elsewhere".to_owned()],
            ..member(3)
        },
    ));
    log.change(members::add(
        52,
        &Member {
            is_learner: true,
            ..member(4)
        },
    ));
    run(&mut leader, &log);
    let mut removed = open(&Arc::new(MemEngine::default()));
    apply(&mut removed, &founded);
    let engine = imported(&Buckets::of(&snapshot(&leader))).unwrap();
    let replaced = removed.replace(engine, NOW).unwrap();
    assert!(replaced.removed_self);
    let kinds: Vec<String> = replaced
        .members
        .iter()
        .map(|change| match change {
            MemberChange::Add(member) => format!("add {}", member.id),
            MemberChange::Remove(id) => format!("remove {id}"),
            MemberChange::Update(member) => format!("update {}", member.id),
            MemberChange::Promote(id) => format!("promote {id}"),
        })
        .collect();
    assert_eq!(kinds, ["remove 1", "update 3", "add 4"]);
}

#[test]
fn buckets_that_no_etcd_leaves_are_refused_with_advice() {
    let mut machine = open(&Arc::new(MemEngine::default()));
    run(&mut machine, &whole_log());
    let whole = Buckets::of(&snapshot(&machine));
    let check = |change: &dyn Fn(&mut Buckets), says: &str| {
        let mut buckets = whole.clone();
        change(&mut buckets);
        match imported(&buckets) {
            Ok(_) => assert!(says.is_empty(), "{says}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!says.is_empty() && text.contains(says), "{text}");
            }
        }
    };
    let set = |bucket: &'static str, key: &'static [u8], value: &'static [u8]| {
        move |buckets: &mut Buckets| buckets.set(bucket, key, value)
    };
    let with = |name: &'static str, rows: Vec<Row>| {
        move |buckets: &mut Buckets| buckets.buckets.push((name.to_owned(), rows.clone()))
    };
    let row = (Bytes::from("a"), Bytes::from("b"));
    check(&|_| {}, "");
    check(&with("test", vec![row.clone()]), "");
    check(&with("later", vec![]), "");
    check(&with("later", vec![row]), "bucket \"later\" has rows");
    check(&set("meta", b"a new row", b"1"), "");
    check(&set("auth", b"authEnabled", b"\x01"), "");
    check(&set("auth", b"authRevision", b"\x01"), "no 8 bytes");
    check(
        &set("authUsers", b"ann", b"\xff"),
        "a row of bucket authUsers",
    );
    check(
        &set("authRoles", b"r", b"\xff"),
        "a row of bucket authRoles",
    );
    check(&set("meta", b"term", b"1"), "no number of 8 bytes");
    check(&set("meta", b"confState", b"{"), "no JSON");
    check(&set("meta", b"cairn_store", b""), "export writes none");
    check(&set("meta", b"storageVersion", b"3.6.0"), "");
    check(&set("meta", b"storageVersion", b"3.8.0"), "run a newer one");
    check(&set("cluster", b"clusterVersion", b"3.8.0"), "says 3.8.0");
    check(&set("cluster", b"clusterVersion", b"new"), "is no version");
    check(&set("cluster", b"downgrade", b"no"), "bucket cluster");
    check(&set("lease", &[0; 8], b"\x08\x09"), "of another lease");
    check(&set("lease", &[0; 8], b"\xff"), "bucket lease");
    check(&set("alarm", b"\xff", b""), "bucket alarm");
    check(&set("members", b"a", b"{\"id\":11}"), "of another member");
    check(&set("members", b"a", b""), "bucket members");
    check(&set("members_removed", b"x", b""), "bucket members_removed");
    check(&set("key", b"k", b""), "bucket key");
    check(
        &|buckets| buckets.bucket("key").reverse(),
        "it is out of order",
    );
    // etcd 3.5 has no version of the storage, and 3.4 neither term nor members here.
    check(
        &|buckets| {
            buckets
                .bucket("meta")
                .retain(|(key, _)| key == "consistent_index");
            buckets
                .buckets
                .retain(|(name, _)| !name.starts_with("members"));
        },
        "",
    );
}

/// As etcd 3.7.3 writes it, and the Go program in its place reads it.
#[test]
fn members_stand_in_the_store_of_version_2() {
    let mut machine = open(&Arc::new(MemEngine::default()));
    run(&mut machine, &whole_log());
    let text = v2_store(&machine.published());
    let store: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let of = |path: &str| {
        let mut node = &store["Root"];
        for part in path.split('/').skip(1) {
            node = &node["Children"][part];
        }
        assert_eq!(node["Path"], path);
        assert_eq!(node["ExpireTime"], "0001-01-01T00:00:00Z");
        node
    };
    assert_eq!(
        of("/0/members/1/raftAttributes")["Value"],
        r#"{"peerURLs":["http://10.0.0.1:2380"]}"#
    );
    assert_eq!(
        of("/0/members/1/attributes")["Value"],
        r#"{"name":"one","clientURLs":["http://c"]}"#
    );
    let files = of("/0/members/3")["Children"].as_object().unwrap();
    assert_eq!(files.len(), 1, "it has not started");
    assert!(of("/0/removed_members/2")["Children"].is_null());
    assert_eq!(of("/0/version")["Value"], "3.7.0");
    assert_eq!(store["CurrentIndex"], 5);
    assert_eq!(of("/0/version")["CreatedIndex"], 5);
    let events = &store["WatcherHub"]["EventHistory"]["Queue"];
    assert_eq!(events["Events"].as_array().unwrap().len(), 1000);
}
