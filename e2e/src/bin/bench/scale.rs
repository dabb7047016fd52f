//! How Cairn alone grows: the same work on a small store and on large ones, a start, a compaction
//! beside writers, and a member that catches up by a snapshot while the other one serves.

use std::time::{Duration, Instant};

use proto::etcdserverpb::CompactionRequest;

use crate::{
    report::{Report, Turn, median},
    side::Side,
    work::{self, Work},
};

/// CPU for each request, as a multiple of what the smallest store needs. The rows that a request
/// touches are as many; they lie deeper.
const FLAT: f64 = 2.0;
/// Seconds from the start of a process to its first answer.
const START: f64 = 5.0;
/// While the leader sends a snapshot a request may cost so many times as much, the sending included.
const WHILE_SENDING: f64 = 3.0;
/// Puts of the compaction that are superseded.
const SUPERSEDED: u64 = 200_000;
/// How long a learner may take.
const CATCH_UP: Duration = Duration::from_secs(900);

/// A store that is looked at.
struct Store {
    name: &'static str,
    keys: u64,
    value: usize,
}

const fn store(name: &'static str, keys: u64, value: usize) -> Store {
    Store { name, keys, value }
}

/// The first one is what the others are compared with; it is small and yet more than a page.
const BASE: [Store; 2] = [
    store("10k x 128 B", 10_000, 128),
    store("10k x 2 KiB", 10_000, 2048),
];
const LARGE: [Store; 2] = [
    store("10M x 128 B", 10_000_000, 128),
    store("1M x 2 KiB", 1_000_000, 2048),
];
/// With `--quick`.
const QUICK: [Store; 2] = [
    store("3M x 128 B", 3_000_000, 128),
    store("50k x 2 KiB", 50_000, 2048),
];

const LINES: [(&str, Work, usize); 5] = [
    ("put-64", Work::Put, 64),
    ("get-64", Work::Get, 64),
    ("txn-64", Work::Txn, 64),
    ("list-1000", Work::ListSome, 8),
    ("count", Work::Count, 8),
];

/// Looks at all stores.
pub async fn run(report: &mut Report, quick: bool) {
    let large = if quick { QUICK } else { LARGE };
    let (turns, time) = match quick {
        true => (3, Duration::from_secs(1)),
        false => (5, Duration::from_secs(3)),
    };
    report.say(&format!(
        "{:<14} {:<10} {:>9} {:>9} {:>6} {:>8} {:>8}",
        "store", "line", "per s", "cpu us", "ratio", "p50", "p99"
    ));
    for (small, large) in BASE.iter().zip(&large) {
        let mut base = Vec::new();
        for store in [small, large] {
            let mut side = Side::start(e2e::Kind::Cairn, 1, store.value).await;
            fill(report, &side, store).await;
            let mut lines = Vec::new();
            for (name, work, clients) in LINES {
                let turn = measure(&side, work, clients, turns, time).await;
                lines.push(turn.cpu_micros);
                let ratio = base.get(lines.len() - 1).map(|base| turn.cpu_micros / base);
                say(report, store.name, name, &turn, ratio.unwrap_or(1.0));
                if let Some(ratio) = ratio {
                    let what = format!("CPU of {name}, {} to {}", store.name, small.name);
                    report.hold(&what, ratio, FLAT);
                }
            }
            if base.is_empty() {
                base = lines;
                continue;
            }
            restart(report, &mut side, store).await;
            compaction(report, &side, store, time).await;
            catch_up(report, &mut side, store, time).await;
        }
    }
}

/// Says whether it grows as it should.
pub fn verdict(report: &mut Report) -> bool {
    report.conclude(&format!(
        "CPU per request at most {FLAT} times that of 10k keys, a start in {START} s, at most \
         {WHILE_SENDING} times the CPU while a snapshot is sent; larger stores are not tested"
    ))
}

fn say(report: &mut Report, store: &str, line: &str, turn: &Turn, ratio: f64) {
    report.say(&format!(
        "{store:<14} {line:<10} {:>9.0} {:>9.1} {ratio:>6.2} {:>8.2} {:>8.2}",
        turn.per_second, turn.cpu_micros, turn.p50_millis, turn.p99_millis
    ));
}

async fn fill(report: &mut Report, side: &Side, store: &Store) {
    let (began, before) = (Instant::now(), side.cpu());
    side.fill("many/", store.keys).await;
    let seconds = began.elapsed().as_secs_f64();
    report.say(&format!(
        "{:<14} filled in {seconds:.1} s, {:.1} us of CPU for a key, rss {:.0} MiB",
        store.name,
        (side.cpu() - before) * 1e6 / store.keys as f64,
        side.rss_mib()
    ));
}

/// The medians of some turns.
async fn measure(side: &Side, work: Work, clients: usize, turns: usize, time: Duration) -> Turn {
    work::turn(side, work, clients, time / 4).await;
    let mut all = Vec::new();
    for _ in 0..turns {
        all.push(work::turn(side, work, clients, time).await);
    }
    let of = |figure: fn(&Turn) -> f64| median(all.iter().map(figure));
    Turn {
        per_second: of(|turn| turn.per_second),
        cpu_micros: of(|turn| turn.cpu_micros),
        p50_millis: of(|turn| turn.p50_millis),
        p99_millis: of(|turn| turn.p99_millis),
    }
}

async fn restart(report: &mut Report, side: &mut Side, store: &Store) {
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(side.restart().await);
    }
    let seconds = median(taken.into_iter());
    report.say(&format!(
        "{:<14} start to first answer {seconds:.2} s, rss {:.0} MiB",
        store.name,
        side.rss_mib()
    ));
    report.hold(&format!("start of {}", store.name), seconds, START);
}

/// A physical compaction of many superseded revisions, with writers beside it.
async fn compaction(report: &mut Report, side: &Side, store: &Store, time: Duration) {
    side.fill("many/", SUPERSEDED.min(store.keys)).await;
    let before = work::turn(side, Work::Put, 64, time).await;
    let mut kv = side.kv(0);
    let none = proto::etcdserverpb::RangeRequest {
        key: "none".into(),
        ..Default::default()
    };
    let read = kv.range(none).await.unwrap().into_inner();
    let request = CompactionRequest {
        revision: read.header.unwrap().revision,
        physical: true,
    };
    let compaction = tokio::spawn(async move {
        let began = Instant::now();
        kv.compact(request).await.unwrap();
        began.elapsed()
    });
    let mut worst = 0f64;
    while !compaction.is_finished() {
        let turn = work::turn(side, Work::Put, 64, time / 4).await;
        worst = worst.max(turn.p99_millis);
    }
    let taken = compaction.await.unwrap().as_secs_f64();
    report.say(&format!(
        "{:<14} compaction {taken:.1} s; p99 of puts {:.2} ms before, at most {worst:.2} beside it",
        store.name, before.p99_millis
    ));
}

/// A learner that needs all of it joins, while clients go on.
async fn catch_up(report: &mut Report, side: &mut Side, store: &Store, time: Duration) {
    let work = [Work::Put, Work::Get];
    let mut before = Vec::new();
    for work in work {
        before.push(leader_turn(side, work, time).await);
    }
    side.add_learner().await;
    let began = Instant::now();
    let mut during: [Vec<Turn>; 2] = Default::default();
    while !side.newest_serves() {
        assert!(began.elapsed() < CATCH_UP, "the learner does not catch up");
        for (work, turns) in work.into_iter().zip(&mut during) {
            turns.push(leader_turn(side, work, time / 3).await);
        }
    }
    let taken = began.elapsed().as_secs_f64();
    for (at, (name, turns)) in ["put", "get"].into_iter().zip(&during).enumerate() {
        let of = |figure: fn(&Turn) -> f64| median(turns.iter().map(figure));
        let (cpu, p99) = (of(|turn| turn.cpu_micros), of(|turn| turn.p99_millis));
        let dearer = cpu / before[at].cpu_micros;
        report.say(&format!(
            "{:<14} snapshot to a learner in {taken:.0} s; {name}: leader's CPU {cpu:.1} us \
             ({dearer:.2} times), p99 {p99:.2} ms ({:.2} before)",
            store.name, before[at].p99_millis
        ));
        let what = format!("CPU of {name} while {} is sent", store.name);
        report.hold(&what, dearer, WHILE_SENDING);
    }
}

/// A turn, with the CPU of the first member alone.
async fn leader_turn(side: &Side, work: Work, time: Duration) -> Turn {
    let (cpu, began) = (side.first_cpu(), Instant::now());
    let turn = work::turn(side, work, 64, time).await;
    let units = turn.per_second * began.elapsed().as_secs_f64();
    Turn {
        cpu_micros: (side.first_cpu() - cpu) * 1e6 / units.max(1.0),
        ..turn
    }
}
