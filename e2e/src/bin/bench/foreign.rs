//! The cross-check: the load generator that etcd's own project measures with, against both servers
//! in turns. Another client, in another language, should see the same picture.

use std::process::Command;

use e2e::{Kind, tool};

use crate::{
    PAGE,
    report::{Figures, Report, Turn},
    side::{Side, VALUE},
};

/// What one line runs: its name, the requests of a turn, and the generator's arguments.
const LINES: &[(&str, u64, &str)] = &[
    (
        "foreign-put",
        20_000,
        "put --clients=256 --conns=8 --key-space-size=100000 --val-size=256 --total=20000",
    ),
    (
        "foreign-get",
        20_000,
        "range page/00000001 --clients=256 --conns=8 --total=20000",
    ),
    (
        "foreign-list-1000",
        2000,
        "range page/ page0 --clients=16 --conns=8 --total=2000",
    ),
    (
        "foreign-txn-put",
        20_000,
        "txn-put --clients=256 --conns=8 --key-space-size=100000 --val-size=256 --total=20000",
    ),
    (
        "foreign-watch",
        WATCH_EVENTS,
        "watch-latency --streams=10 --watchers-per-stream=100 --put-total=200 --put-rate=100 \
         --val-size=256",
    ),
    (
        "foreign-keepalive",
        50_000,
        "lease-keepalive --clients=64 --conns=8 --total=50000",
    ),
];

/// 200 puts, each to 1000 watchers.
const WATCH_EVENTS: u64 = 200_000;

/// The names of the lines.
pub fn names() -> impl Iterator<Item = &'static str> {
    LINES.iter().map(|(name, ..)| *name)
}

/// Measures all lines, or those of `only`.
pub async fn run(report: &mut Report, only: &[String], rounds: u64) {
    let cairn = Side::start(Kind::Cairn, 1, VALUE).await;
    let etcd = Side::start(Kind::Etcd, 1, VALUE).await;
    for side in [&cairn, &etcd] {
        side.fill("page/", PAGE).await;
    }
    let generator = tool("benchmark");
    report.say("with etcd's own load generator, go.etcd.io/etcd/v3/tools/benchmark:");
    report.head();
    for (name, requests, arguments) in LINES {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mut figures = Figures::default();
        for round in 0..rounds {
            let ours_first = round % 2 == 0;
            for ours in [ours_first, !ours_first] {
                let side = if ours { &cairn } else { &etcd };
                let before = side.cpu();
                let mut command = Command::new(&generator);
                let endpoint = side.url().trim_start_matches("http://");
                command.args(arguments.split_whitespace());
                command.args(["--precise", "--endpoints", endpoint]);
                let output = command.output().unwrap();
                let cpu = side.cpu() - before;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let failed = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{name}: {text}{failed}");
                let turns = if ours {
                    &mut figures.cairn
                } else {
                    &mut figures.etcd
                };
                turns.push(read(name, &text, cpu * 1e6 / *requests as f64));
            }
        }
        // No rule is made for these.
        report.figures(name, &figures);
    }
}

/// Takes the figures from the generator's last summary.
fn read(name: &str, text: &str, cpu_micros: f64) -> Turn {
    let number = |before: &str, after: &str| -> f64 {
        let mut lines = text.lines().rev().map(str::trim);
        let line = lines.find_map(|line| line.strip_prefix(before));
        let line = line.unwrap_or_else(|| panic!("{name} says no {before}: {text}"));
        line.trim_end_matches(after).trim().parse().unwrap()
    };
    Turn {
        per_second: number("Requests/sec:", ""),
        cpu_micros,
        p50_millis: number("50% in", "secs.") * 1e3,
        p99_millis: number("99% in", "secs.") * 1e3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_summary_counts() {
        let text = "Summary:\n  Requests/sec:\t1.0\n  50% in 1 secs.\n  99% in 1 secs.\n\n\
                    Summary:\n  Requests/sec:\t4617.7018\n\nLatency distribution:\n  \
                    50% in 0.0021 secs.\n  99% in 0.0135 secs.\n  99.9% in 0.0222 secs.\n";
        let turn = read("x", text, 3.0);
        assert!((turn.per_second - 4617.7018).abs() < 1e-9);
        assert!((turn.p50_millis - 2.1).abs() < 1e-9 && (turn.p99_millis - 13.5).abs() < 1e-9);
    }
}
