//! Cairn beside real etcd in one run, with one client, in turns: throughput, latency, memory, and
//! server CPU per request, which is the steadiest figure on a noisy machine. `make bench` runs it;
//! the last lines say whether the rules that Cairn is held to are kept, and so does the exit code.
//!
//! Start reading here, then `work.rs` (what a line does), `side.rs` (the servers that it is done
//! to) and `report.rs` (the table and the rules). `foreign.rs` is the cross-check with the load
//! generator of etcd itself: `bench --foreign`. `scale.rs` looks at how Cairn grows: `bench --scale`.

#![allow(clippy::unwrap_used)]

mod foreign;
mod report;
mod scale;
mod side;
mod work;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use e2e::Kind;

use report::{Figures, Report, Rule, Turn};
use side::{Side, VALUE};
use work::Work;

/// As little of the machine as can be should go to the client; glibc gives a list's buffer back to
/// the system after each.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keys that are listed whole, and the limit of lists out of more.
const PAGE: u64 = 1000;
/// Keys under the prefix that is listed out of.
const MANY: u64 = 100_000;
/// Keys of the large store.
const MILLION: u64 = 1_000_000;
/// Both servers are warmed up for so long before the first turn of a line.
const WARM_UP: Duration = Duration::from_millis(300);
/// How often the large store is started again.
const RESTARTS: usize = 3;

/// Measures Cairn beside real etcd.
#[derive(Debug, Parser)]
struct Arguments {
    /// Short turns, and only the lines of one small member unless others are named
    #[arg(long)]
    quick: bool,
    /// The lines to measure, separated by commas; all without
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Length of one turn, in seconds [default: 2, quick: 1]
    #[arg(long)]
    seconds: Option<f64>,
    /// Turns of each server and line, at least 1 [default: 5, quick: 3]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: Option<u64>,
    /// Measure with the load generator of etcd itself instead
    #[arg(long)]
    foreign: bool,
    /// Measure how Cairn alone grows instead, up to ten million keys
    #[arg(long)]
    scale: bool,
    /// Where to keep the report
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What the servers of a line are and hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// One member with [`PAGE`] and [`MANY`] keys.
    One,
    /// Three members.
    Three,
    /// One member with [`MILLION`] keys.
    Million,
}

/// One line of the table.
struct Line {
    name: &'static str,
    stage: Stage,
    work: Work,
    clients: usize,
    /// What it is held to besides CPU.
    rule: Option<Rule>,
}

const fn line(
    name: &'static str,
    stage: Stage,
    work: Work,
    clients: usize,
    rule: Option<Rule>,
) -> Line {
    Line {
        name,
        stage,
        work,
        clients,
        rule,
    }
}

const LIST: Option<Rule> = Some(Rule::List);
const COUNT: Option<Rule> = Some(Rule::LargeCount);

const LINES: &[Line] = &[
    line("put-1", Stage::One, Work::Put, 1, None),
    line("put-256", Stage::One, Work::Put, 256, None),
    line("put-1000", Stage::One, Work::Put, 1000, None),
    line("get-256", Stage::One, Work::Get, 256, None),
    line("list-1000", Stage::One, Work::ListAll, 16, LIST),
    line("list-1000-of-100k", Stage::One, Work::ListSome, 16, LIST),
    line("count-100k", Stage::One, Work::Count, 16, None),
    line("txn-256", Stage::One, Work::Txn, 256, None),
    line("watch-1000", Stage::One, Work::Watch, 1000, None),
    line("keepalive-64", Stage::One, Work::KeepAlive, 64, None),
    line("three-put-256", Stage::Three, Work::Put, 256, None),
    line("three-get-256", Stage::Three, Work::Get, 256, None),
    line("count-1m", Stage::Million, Work::Count, 16, COUNT),
    line("list-1000-of-1m", Stage::Million, Work::ListSome, 16, LIST),
    line("snapshot-mb-1m", Stage::Million, Work::Snapshot, 1, None),
];

/// The large store's line without turns: memory, and the time of a start.
const RESTART: &str = "restart-1m";

struct Bench {
    arguments: Arguments,
    report: Report,
}

impl Bench {
    fn wants(&self, name: &str, stage: Stage) -> bool {
        match self.arguments.only.is_empty() {
            true => stage == Stage::One || !self.arguments.quick,
            false => self.arguments.only.iter().any(|only| only == name),
        }
    }

    fn rounds(&self) -> u64 {
        let default = if self.arguments.quick { 3 } else { 5 };
        self.arguments.rounds.unwrap_or(default)
    }

    fn time(&self) -> Duration {
        let default = if self.arguments.quick { 1.0 } else { 2.0 };
        Duration::from_secs_f64(self.arguments.seconds.unwrap_or(default))
    }

    async fn stage(&mut self, stage: Stage) {
        let lines = LINES.iter().filter(|line| line.stage == stage);
        let lines: Vec<&Line> = lines.filter(|line| self.wants(line.name, stage)).collect();
        let restarts = stage == Stage::Million && self.wants(RESTART, stage);
        if lines.is_empty() && !restarts {
            return;
        }
        let mut cairn = prepare(Kind::Cairn, stage).await;
        let mut etcd = prepare(Kind::Etcd, stage).await;
        let (ours, theirs) = (cairn.rss_mib(), etcd.rss_mib());
        self.report.memory(stage.name(), "filled", ours, theirs);
        for line in lines {
            self.measure(line, &cairn, &etcd).await;
        }
        let (ours, theirs) = (cairn.rss_mib(), etcd.rss_mib());
        self.report.memory(stage.name(), "worked on", ours, theirs);
        if restarts {
            self.restart(&mut cairn, &mut etcd).await;
        }
    }

    async fn measure(&mut self, line: &Line, cairn: &Side, etcd: &Side) {
        for side in [cairn, etcd] {
            work::turn(side, line.work, line.clients, WARM_UP).await;
        }
        let mut figures = Figures::default();
        for round in 0..self.rounds() {
            // Whoever goes first may find the machine in another state than who goes second.
            let ours_first = round % 2 == 0;
            for ours in [ours_first, !ours_first] {
                let side = if ours { cairn } else { etcd };
                let turn = work::turn(side, line.work, line.clients, self.time()).await;
                match ours {
                    true => figures.cairn.push(turn),
                    false => figures.etcd.push(turn),
                }
            }
        }
        self.report.line(line.name, line.rule, &figures);
    }

    async fn restart(&mut self, cairn: &mut Side, etcd: &mut Side) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..RESTARTS {
            ours.push(cairn.restart().await);
            theirs.push(etcd.restart().await);
        }
        self.report.restart(RESTART, &ours, &theirs);
        let (ours, theirs) = (cairn.rss_mib(), etcd.rss_mib());
        let stage = Stage::Million.name();
        self.report.memory(stage, "started again", ours, theirs);
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::One => "one member",
            Self::Three => "three members",
            Self::Million => "1M keys",
        }
    }
}

async fn prepare(kind: Kind, stage: Stage) -> Side {
    let members = if stage == Stage::Three { 3 } else { 1 };
    let side = Side::start(kind, members, VALUE).await;
    match stage {
        Stage::One => {
            side.fill("page/", PAGE).await;
            side.fill("many/", MANY).await;
        }
        Stage::Three => side.fill("many/", MANY).await,
        Stage::Million => side.fill("many/", MILLION).await,
    }
    side
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let known = LINES.iter().map(|line| line.name).chain([RESTART]);
    let known: Vec<&str> = known.chain(foreign::names()).collect();
    if let Some(unknown) = arguments
        .only
        .iter()
        .find(|name| !known.contains(&&name[..]))
    {
        eprintln!("there is no line {unknown}; there are {}", known.join(", "));
        return ExitCode::from(2);
    }
    let keep = arguments.keep.clone();
    let mut bench = Bench {
        arguments,
        report: Report::default(),
    };
    bench.report.machine(bench.rounds(), bench.time());
    if bench.arguments.foreign {
        let (only, rounds) = (bench.arguments.only.clone(), bench.rounds());
        foreign::run(&mut bench.report, &only, rounds).await;
    } else if bench.arguments.scale {
        scale::run(&mut bench.report, bench.arguments.quick).await;
    } else {
        bench.report.head();
        for stage in [Stage::One, Stage::Three, Stage::Million] {
            bench.stage(stage).await;
        }
    }
    let kept = match (bench.arguments.foreign, bench.arguments.scale) {
        (true, _) => true,
        (_, true) => scale::verdict(&mut bench.report),
        _ => bench.report.verdict(),
    };
    if let Some(path) = keep {
        bench.report.keep(&path);
    }
    match kept {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// One number of a turn.
type Figure = fn(&Turn) -> f64;
