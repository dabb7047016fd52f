use super::cluster::*;
use crate::{Config, Driver, Error, FetchRequest, Role};

#[test]
fn a_leader_with_a_hung_disk_falls_silent_and_another_takes_over() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let old = cluster.leader();
    cluster.node(old).disk_hangs = true;
    cluster.propose(old, "a");
    cluster.ticks(9);
    assert_eq!(cluster.leader(), old);
    cluster.ticks(AN_ELECTION);
    let node = cluster.node(old);
    assert!(node.driver.status().stalled);
    assert_eq!(node.driver.propose(vec!["x".into()]), Err(Error::Stalled));
    assert!(node.driver.poll().is_none());
    let others = cluster.nodes.iter().filter(|(id, _)| **id != old);
    let leads = others.filter(|(_, node)| node.driver.status().role == Role::Leader);
    let (&new, _) = leads.last().expect("a new leader");
    cluster.propose(new, "b");
    assert_eq!(cluster.node(new).data.len(), 2);

    cluster.sent.clear();
    cluster.ticks(AN_ELECTION);
    assert!(cluster.sent.iter().all(|message| message.from != Some(old)));
    cluster.node(old).disk_hangs = false;
    cluster.ticks(AN_ELECTION);
    assert!(!cluster.node(old).driver.status().stalled);
    assert_eq!(cluster.leader(), new);
    assert_eq!(cluster.data(), ["a", "b"]);
}

#[test]
fn a_burst_of_ticks_after_a_pause_starts_no_election() {
    let mut cluster = Cluster::started(&[1, 2, 3]);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    let term = cluster.node(leader).driver.status().term;
    for _ in 0..1000 {
        cluster.node(follower).driver.tick(0);
    }
    cluster.settle();
    cluster.ticks(5);
    assert_eq!(cluster.node(follower).driver.status().term, term);
    assert_eq!(cluster.leader(), leader);
}

/// Entries that left memory come back from the log, for a follower that was away and for apply.
#[test]
fn old_entries_are_fetched() {
    let config = |id| Config {
        cache_bytes: 2000,
        max_size_per_msg: 1000,
        max_committed_bytes_per_output: 1000,
        ..Config::new(id)
    };
    let mut cluster = Cluster::with(&[1, 2, 3], config);
    cluster.ticks(AN_ELECTION);
    let leader = cluster.leader();
    let away = leader % 3 + 1;
    cluster.cut_off.insert(away);
    for i in 0..200 {
        cluster.propose(leader, &format!("{i}"));
    }
    assert_eq!(cluster.node(leader).fetches, 0);
    assert!(cluster.node(leader).driver.node.store().cached_bytes() <= 2000);
    cluster.cut_off.clear();
    cluster.ticks(AN_ELECTION);
    assert!(cluster.node(leader).fetches > 0);
    assert_eq!(cluster.data().len(), 200);

    // A member whose state machine lost all of it, restarting from the log.
    let node = cluster.node(away);
    (node.applied, node.data, node.conf_state) = (0, Vec::new(), Default::default());
    let before = node.fetches;
    node.restart();
    cluster.ticks(AN_ELECTION);
    assert!(cluster.node(away).fetches > before);
    assert_eq!(cluster.data().len(), 200);
}

#[test]
fn fetched_entries_must_be_those_that_were_written() {
    let config = |id| Config {
        cache_bytes: 0,
        ..Config::new(id)
    };
    let mut cluster = Cluster::with(&[7], config);
    cluster.tick();
    for data in ["a", "b", "c"] {
        cluster.propose(7, data);
    }
    let node = cluster.node(7);
    (node.applied, node.conf_state) = (0, Default::default());
    let fetch = |driver: &mut Driver| -> FetchRequest {
        let mut outputs = std::iter::from_fn(|| driver.poll());
        outputs.find_map(|output| output.fetch).expect("a request")
    };
    for (spoil, taken) in [(0, true), (1, false), (2, false), (3, false)] {
        node.restart();
        let request = fetch(&mut node.driver);
        let mut entries = node.disk.entries[request.lo as usize - 1..].to_vec();
        match spoil {
            1 => entries[0].term = Some(99),
            2 => drop(entries.remove(0)),
            3 => entries.clear(),
            _ => {}
        }
        let result = node.driver.fetched(request, entries);
        let expected = match taken {
            true => Ok(()),
            false => Err(Error::LogChanged(request.lo)),
        };
        assert_eq!(result, expected, "{spoil}");
        // An answer that nobody waits for is nothing.
        assert_eq!(node.driver.fetched(request, Vec::new()), Ok(()));
    }
}

#[test]
fn the_commit_index_reaches_the_disk_without_another_entry() {
    let mut cluster = Cluster::started(&[7]);
    cluster.propose(7, "a");
    cluster.ticks(2);
    let commit = cluster.node(7).driver.status().commit;
    assert_eq!(cluster.node(7).disk.hard_state.commit, Some(commit));
    assert_eq!(commit, 3);
}

/// The newest entries come with the boot, the older ones as terms only.
#[test]
fn a_log_boots_from_its_tail_and_its_terms() {
    use crate::{Boot, TermRun, term_runs};
    use proto::raftpb::{ConfState, Entry, HardState};
    let entry = |index, term| Entry {
        r#type: Some(0),
        term: Some(term),
        index: Some(index),
        data: Some("x".into()),
    };
    let terms = |index| (100..=120).contains(&index).then(|| 2 + index / 110);
    let boot = |first_index, applied| Boot {
        hard_state: HardState {
            term: Some(5),
            vote: Some(0),
            commit: Some(118),
        },
        conf_state: ConfState {
            voters: vec![7],
            ..ConfState::default()
        },
        applied,
        entries: (115..=120).map(|index| entry(index, 3)).collect(),
        first_index,
        last_index: 120,
        last_term: 3,
        terms: term_runs(100, 114, terms).unwrap(),
    };
    let good = boot(101, 105);
    let mut driver = Driver::new(Config::new(7), good.clone()).unwrap();
    assert_eq!(driver.node.raft.raft_log.term(100).unwrap(), 2);
    assert_eq!(driver.node.raft.raft_log.term(110).unwrap(), 3);
    assert_eq!(driver.status().commit, 118);
    let request = driver.poll().and_then(|output| output.fetch).unwrap();
    assert_eq!((request.lo, request.hi), (106, 115));
    let old = (106..115).map(|index| entry(index, 2 + index / 110));
    driver.fetched(request, old.collect()).unwrap();
    let mut applied = 105;
    while let Some(output) = driver.poll() {
        applied += output.apply.len() as u64;
        driver.applied(applied);
    }
    assert_eq!(applied, 118);
    driver.tick(0);
    assert_eq!(driver.status().role, Role::Leader);

    let bad = [
        // The term before the first entry is missing, or all before the tail are.
        boot(100, 105),
        Boot {
            terms: Vec::new(),
            ..good.clone()
        },
        Boot {
            terms: vec![
                TermRun {
                    first: 100,
                    term: 2,
                },
                TermRun { first: 90, term: 3 },
            ],
            ..good.clone()
        },
        // A tail with a hole, and one that falls in terms.
        Boot {
            entries: vec![entry(115, 3), entry(117, 3)],
            ..good.clone()
        },
        Boot {
            entries: vec![entry(119, 2), entry(120, 3)],
            ..good.clone()
        },
        boot(101, 99),
    ];
    for boot in bad {
        let refused = Driver::new(Config::new(7), boot.clone()).err();
        assert!(matches!(refused, Some(Error::Boot(_))), "{boot:?}");
    }
}

/// As after a snapshot that was received and installed, with nothing behind it yet.
#[test]
fn a_log_boots_from_a_snapshot_alone() {
    use crate::{Boot, TermRun};
    use proto::raftpb::{ConfState, HardState};
    let boot = Boot {
        hard_state: HardState {
            term: Some(5),
            vote: Some(0),
            commit: Some(40),
        },
        conf_state: ConfState {
            voters: vec![7],
            ..ConfState::default()
        },
        applied: 40,
        entries: Vec::new(),
        first_index: 41,
        last_index: 40,
        last_term: 3,
        terms: vec![TermRun { first: 40, term: 3 }],
    };
    let mut driver = Driver::new(Config::new(7), boot.clone()).unwrap();
    assert_eq!(driver.node.raft.raft_log.last_term(), 3);
    driver.tick(0);
    assert_eq!(driver.status().role, Role::Leader);
    let append = driver.poll().unwrap().append.unwrap();
    assert_eq!(append.entries[0].index, Some(41));
    driver.persisted(append.number);
    assert_eq!(driver.status().commit, 41);
    let bad = [
        Boot {
            terms: Vec::new(),
            ..boot.clone()
        },
        Boot {
            last_term: 4,
            ..boot.clone()
        },
        Boot {
            applied: 39,
            ..boot.clone()
        },
        Boot {
            last_index: 39,
            ..boot
        },
    ];
    for boot in bad {
        let refused = Driver::new(Config::new(7), boot.clone()).err();
        assert!(matches!(refused, Some(Error::Boot(_))), "{boot:?}");
    }
}
