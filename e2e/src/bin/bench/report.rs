//! The table, and the rules that it is held to.

use std::{
    cmp::Ordering,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Duration,
};

use crate::Figure;

/// Lists must be so many times as fast as etcd's.
const LIST_FACTOR: f64 = 3.0;
/// Counts of the large store likewise.
const LARGE_COUNT_FACTOR: f64 = 100.0;
/// Writes by which the disk is judged.
const SYNCS: u32 = 200;
const SYNC_BYTES: usize = 4096;
/// From so many turns on the highest and the lowest are left out of the spread.
const TURNS_FOR_OUTLIERS: usize = 5;

/// One turn of one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// Units of work in a second.
    pub per_second: f64,
    /// Microseconds of server CPU for each.
    pub cpu_micros: f64,
    pub p50_millis: f64,
    pub p99_millis: f64,
}

/// All turns of a line.
#[derive(Debug, Default)]
pub struct Figures {
    pub cairn: Vec<Turn>,
    pub etcd: Vec<Turn>,
}

/// What Cairn is beside etcd.
pub struct Measured {
    faster: f64,
    dearer: f64,
    /// Of the CPU, as a share of its median.
    spread: f64,
}

/// What a line is held to; all are held to using no more CPU than etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    List,
    LargeCount,
}

/// What is printed and kept, and which rules were broken.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
    /// Lines that were measured.
    lines: usize,
    /// Lines to which a rule of their own applies.
    ruled: [usize; 2],
    broken: Vec<String>,
}

impl Report {
    /// Says on what all is measured.
    pub fn machine(&mut self, rounds: u64, time: Duration) {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let folder = tempfile::tempdir().unwrap();
        self.say(&format!(
            "{cores} cores shared with the client; {rounds} turns of {:.1}s each, medians; \
             fdatasync {:.0}/s",
            time.as_secs_f64(),
            sync_rate(folder.path())
        ));
    }

    /// The head of the table.
    pub fn head(&mut self) {
        self.say(&format!(
            "{:<18} {:>9} {:>9} {:>7} | {:>9} {:>9} {:>6} {:>7} | {:>7} {:>7} | {:>7} {:>7}",
            "line",
            "cairn/s",
            "etcd/s",
            "ratio",
            "cairn us",
            "etcd us",
            "ratio",
            "spread",
            "c p50",
            "e p50",
            "c p99",
            "e p99"
        ));
    }

    /// One line of the table, under the rules.
    pub fn line(&mut self, name: &str, rule: Option<Rule>, figures: &Figures) {
        let measured = self.figures(name, figures);
        let Measured {
            faster,
            dearer,
            spread,
        } = measured;
        self.lines += 1;
        // A figure that is no number breaks a rule too.
        let dear = dearer.partial_cmp(&(1.0 + spread));
        if !dear.is_some_and(Ordering::is_le) {
            self.broken.push(format!(
                "{name} uses {dearer:.2} times etcd's CPU, beyond the spread of {:.0}%",
                100.0 * spread
            ));
        }
        let Some(rule) = rule else { return };
        let factor = rule.factor();
        self.ruled[rule as usize] += 1;
        let fast = faster.partial_cmp(&factor);
        if !fast.is_some_and(Ordering::is_ge) {
            self.broken.push(format!(
                "{name} is {faster:.2} times as fast as etcd, not {factor:.0}"
            ));
        }
    }

    /// One line of the table.
    pub fn figures(&mut self, name: &str, figures: &Figures) -> Measured {
        let ours = |figure: Figure| median(figures.cairn.iter().map(figure));
        let theirs = |figure: Figure| median(figures.etcd.iter().map(figure));
        let rate: Figure = |turn| turn.per_second;
        let cpu: Figure = |turn| turn.cpu_micros;
        let spread =
            spread(figures.cairn.iter().map(cpu)).max(spread(figures.etcd.iter().map(cpu)));
        let faster = ours(rate) / theirs(rate);
        let dearer = ours(cpu) / theirs(cpu);
        self.say(&format!(
            "{name:<18} {:>9.0} {:>9.0} {faster:>7.2} | {:>9.1} {:>9.1} {dearer:>6.2} {:>6.0}% | \
             {:>7.2} {:>7.2} | {:>7.2} {:>7.2}",
            ours(rate),
            theirs(rate),
            ours(cpu),
            theirs(cpu),
            100.0 * spread,
            ours(|turn| turn.p50_millis),
            theirs(|turn| turn.p50_millis),
            ours(|turn| turn.p99_millis),
            theirs(|turn| turn.p99_millis),
        ));
        Measured {
            faster,
            dearer,
            spread,
        }
    }

    /// Holds a figure to a bound.
    pub fn hold(&mut self, what: &str, figure: f64, most: f64) {
        self.lines += 1;
        // A figure that is no number breaks the rule too.
        let within = figure.partial_cmp(&most);
        if !within.is_some_and(Ordering::is_le) {
            self.broken
                .push(format!("{what}: {figure:.2}, not {most:.2}"));
        }
    }

    /// Memory of both sides.
    pub fn memory(&mut self, stage: &str, when: &str, cairn: f64, etcd: f64) {
        self.say(&format!(
            "rss, {stage}, {when}: cairn {cairn:.0} MiB, etcd {etcd:.0} MiB ({:.2})",
            cairn / etcd
        ));
    }

    /// Seconds from the start of a process to its first answer.
    pub fn restart(&mut self, name: &str, cairn: &[f64], etcd: &[f64]) {
        let (ours, theirs) = (median(cairn.iter().copied()), median(etcd.iter().copied()));
        self.say(&format!(
            "{name}, start to first answer: cairn {ours:.2} s, etcd {theirs:.2} s ({:.2})",
            ours / theirs
        ));
    }

    /// Says whether the rules of the table are kept.
    pub fn verdict(&mut self) -> bool {
        let kept = format!(
            "no line of {} uses more CPU than etcd beyond the spread; {} lists at least \
             {LIST_FACTOR}x; {} counts at 1M keys at least {LARGE_COUNT_FACTOR}x",
            self.lines,
            self.ruled[Rule::List as usize],
            self.ruled[Rule::LargeCount as usize],
        );
        self.conclude(&kept)
    }

    /// Says which rules are broken, or what is kept. Without any line there is nothing to say it of.
    pub fn conclude(&mut self, kept: &str) -> bool {
        let broken = std::mem::take(&mut self.broken);
        for problem in &broken {
            self.say(&format!("BROKEN: {problem}"));
        }
        let verdict = match (self.lines, broken.len()) {
            (0, _) => "nothing was measured under a rule".to_owned(),
            (_, 0) => format!("kept: {kept}"),
            (_, broken) => format!("{broken} rules are broken"),
        };
        self.say(&verdict);
        broken.is_empty()
    }

    /// Writes all that was said into a file.
    pub fn keep(&self, path: &Path) {
        fs::write(path, &self.text).unwrap();
        println!("kept in {}", path.display());
    }

    /// Prints a line and keeps it.
    pub fn say(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }
}

impl Rule {
    fn factor(self) -> f64 {
        match self {
            Self::List => LIST_FACTOR,
            Self::LargeCount => LARGE_COUNT_FACTOR,
        }
    }
}

fn sorted(of: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = of.collect();
    values.sort_by(f64::total_cmp);
    values
}

pub fn median(of: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(of);
    values[values.len() / 2]
}

/// The spread of a figure over the turns, as a share of its median.
fn spread(of: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(of);
    let outliers = usize::from(values.len() >= TURNS_FOR_OUTLIERS);
    let (low, high) = (values[outliers], values[values.len() - 1 - outliers]);
    (high - low) / values[values.len() / 2]
}

/// How often the disk below can sync in a second.
fn sync_rate(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("sync")).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[7; SYNC_BYTES]).unwrap();
        file.sync_data().unwrap();
    }
    f64::from(SYNCS) / began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(rates: [f64; 5], cpu: [f64; 5]) -> Vec<Turn> {
        let turns = rates.into_iter().zip(cpu);
        turns
            .map(|(per_second, cpu_micros)| Turn {
                per_second,
                cpu_micros,
                ..Turn::default()
            })
            .collect()
    }

    fn kept(rule: Option<Rule>, rate: f64, cpu: f64) -> bool {
        let mut report = Report::default();
        let even = [1.0; 5];
        let figures = Figures {
            cairn: turns(
                even.map(|one| one * rate),
                [0.1, 0.95, 1.0, 1.05, 9.0].map(|c| c * cpu),
            ),
            etcd: turns(even, even),
        };
        report.line("a line", rule, &figures);
        report.verdict()
    }

    #[test]
    fn rules_are_kept_or_broken() {
        assert!(kept(None, 0.5, 1.0));
        assert!(kept(None, 0.5, 1.09));
        assert!(!kept(None, 0.5, 1.2));
        assert!(!kept(None, 0.5, f64::NAN));
        assert!(kept(Some(Rule::List), 3.0, 1.0));
        assert!(!kept(Some(Rule::List), 2.9, 1.0));
        assert!(kept(Some(Rule::LargeCount), 100.0, 1.0));
        assert!(!kept(Some(Rule::LargeCount), 99.0, 1.0));
    }
}
