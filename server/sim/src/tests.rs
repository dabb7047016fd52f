//! Worlds of many seeds, other ones each time. `CAIRN_SIM` sets how many, `CAIRN_SIM_SEED` the
//! first. A seed that failed is tried again by `make sim SEED=...`, and belongs into [`NAMED`] once
//! it is understood.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Report, Settings, World};

/// Fresh worlds in the gate: a minute or less, by how busy the machine is.
const RUNS: u64 = 400;
/// Worlds that showed something once: a bug of etcd that was put in (see `BUGS.md`), or one of ours.
const NAMED: &[(&str, u64)] = &[
    ("etcd #13766 #15220 #17529 #17780 #18089 #18667 #19179", 0),
    ("etcd #15271 #20221", 1),
    ("etcd #14370", 2),
    ("etcd #20418", 3),
    ("a snapshot after which watchers miss events", 4),
    ("etcd #14685", 6),
    ("etcd #18055", 9),
    ("votes that leave before they are durable", 13),
];

fn run(seed: u64) -> Report {
    println!("make sim SEED={seed}");
    World::new(seed, Settings::default()).run()
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn a_cluster_keeps_its_promises_whatever_happens() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = setting("CAIRN_SIM_SEED").unwrap_or(since.as_secs() << 20);
    let runs = setting("CAIRN_SIM").unwrap_or(RUNS);
    let mut all = Report::default();
    for seed in first..first + runs {
        all.add(&run(seed));
    }
    println!("{runs} worlds: {all}");
    if runs < RUNS / 10 {
        return;
    }
    // A world in which nothing happens would promise anything.
    assert!(all.operations >= 20 * all.seconds, "{all}");
    assert!(all.answered > all.operations / 2, "{all}");
    assert!(5 * all.broken() >= all.seconds, "{all}");
    assert!(all.crashes > 3 * runs && all.leaders > 2 * runs, "{all}");
    assert!(all.snapshots > runs && all.refused_starts > 0, "{all}");
    assert!(all.unknown_done > runs && all.expired > runs, "{all}");
    assert!(all.progress > 50 * runs, "{all}");
    // In some worlds members of the version before are replaced one by one.
    let of_new_leaders = |name: &&&str| name.contains("new leader");
    assert_eq!(all.faults.keys().filter(of_new_leaders).count(), 5, "{all}");
    assert!(all.raised > runs + runs / 5, "{all}");
}

#[test]
fn seeds_that_have_shown_something() {
    for (name, seed) in NAMED {
        println!("{name}");
        run(*seed);
    }
}

/// Without it the tests above might look at nothing.
#[test]
#[should_panic]
fn disks_that_do_not_sync_are_found_out() {
    for seed in 0..20 {
        let settings = Settings {
            forgetful_disks: true,
            ..Settings::default()
        };
        World::new(seed, settings).run();
    }
}

#[test]
fn a_world_without_faults_answers_everything() {
    let settings = Settings {
        faults: false,
        ..Settings::default()
    };
    let report = World::new(1, settings).run();
    assert_eq!(report.broken(), 0);
    assert!(report.crashes == 0 && report.unknown_done == 0, "{report}");
}

#[test]
fn a_seed_makes_one_world() {
    assert_eq!(run(7), run(7));
}
