//! Runs from many seeds. `CAIRN_SIM` sets how many, `CAIRN_SIM_SEED` the first.

use crate::{Report, World};

/// Runs in the gate.
const RUNS: u64 = 100;
/// Events of one run.
const EVENTS: usize = 30_000;

fn run(seed: u64) -> Report {
    let mut world = World::new(seed);
    for _ in 0..EVENTS {
        world.event();
    }
    world.heal()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn a_cluster_keeps_its_promises_whatever_happens() {
    let first = setting("CAIRN_SIM_SEED", 0);
    let runs = setting("CAIRN_SIM", RUNS);
    let mut all = Report::default();
    for seed in first..first + runs {
        println!("CAIRN_SIM_SEED={seed} CAIRN_SIM=1");
        let report = run(seed);
        all.applied += report.applied;
        all.acknowledged += report.acknowledged;
        all.reads += report.reads;
        all.crashes += report.crashes;
        all.leaders += report.leaders;
        all.snapshots += report.snapshots;
    }
    println!("{runs} runs: {all:?}");
    // A world in which nothing happens would promise anything.
    let runs = runs as usize;
    assert!(all.acknowledged > 20 * runs, "{all:?}");
    assert!(all.crashes > 20 * runs, "{all:?}");
    assert!(all.snapshots > runs / 2, "{all:?}");
    assert!(all.reads > runs && all.leaders > runs, "{all:?}");
}

/// Without it the test above might look at nothing.
#[test]
#[should_panic]
fn disks_that_do_not_sync_are_found_out() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.forget();
        for _ in 0..EVENTS {
            world.event();
        }
        world.heal();
    }
}

#[test]
fn a_seed_makes_one_world() {
    let (one, two) = (run(7), run(7));
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}
