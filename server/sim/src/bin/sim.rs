//! Lives through many worlds, on all cores: `make sim SEEDS=1000`. One that fails is said with how
//! to see it again: `make sim SEED=17`.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use sim::{Report, Settings, World};

const USAGE: &str = "usage: sim [--seed FIRST] [--seeds COUNT] [--seconds OF-EACH-WORLD]";
/// Worlds between two lines of progress.
const TELL_EVERY: u64 = 100;

/// What all threads share.
struct Runs {
    first: u64,
    count: u64,
    settings: Settings,
    next: AtomicU64,
    failed: AtomicBool,
    sum: Mutex<(Report, u64)>,
}

fn main() -> ExitCode {
    let runs = match parse(std::env::args().skip(1)) {
        Ok(runs) => runs,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{} worlds from seed {} on {threads} threads",
        runs.count, runs.first
    );
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| runs.work());
        }
    });
    let (sum, cpu) = &*runs.sum.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{sum}");
    let cpu = *cpu as f64 / 1e9;
    println!(
        "{:.0} s, {cpu:.0} s of CPU: {:.0} cluster-seconds for each",
        began.elapsed().as_secs_f64(),
        sum.seconds as f64 / cpu.max(0.001)
    );
    match runs.failed.load(Ordering::Relaxed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Runs, String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut runs = Runs {
        // Others each time.
        first: since.map_or(0, |since| since.as_secs() << 20),
        count: 1,
        settings: Settings::default(),
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        sum: Mutex::default(),
    };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} needs a number"))?;
        let number = value
            .parse()
            .map_err(|_| format!("{flag} needs a number, and {value:?} is none"))?;
        match flag.as_str() {
            "--seed" => runs.first = number,
            "--seeds" => runs.count = number,
            "--seconds" => runs.settings.seconds = number,
            _ => return Err(format!("there is no flag {flag}")),
        }
    }
    Ok(runs)
}

impl Runs {
    fn work(&self) {
        let mut told = cpu_time();
        while !self.failed.load(Ordering::Relaxed) {
            let nth = self.next.fetch_add(1, Ordering::Relaxed);
            if nth >= self.count {
                break;
            }
            let seed = self.first + nth;
            let world = || World::new(seed, self.settings).run();
            let Ok(report) = catch_unwind(AssertUnwindSafe(world)) else {
                self.failed.store(true, Ordering::Relaxed);
                println!("seed {seed} failed; to see it again: make sim SEED={seed}");
                break;
            };
            let now = cpu_time();
            let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.0.add(&report);
            sum.1 += now - told;
            told = now;
            if (nth + 1).is_multiple_of(TELL_EVERY) {
                println!("{} worlds, {} events", nth + 1, sum.0.events);
            }
        }
    }
}

/// What this thread has used, in nanoseconds; 0 where the system does not say.
fn cpu_time() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = stat.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}
