//! Running other programs: once, or for as long as the instance lives.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Where programs are looked for. A user's own may lack the folders of the administrator.
pub const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often something is looked at while it is waited for.
pub const STEP: Duration = Duration::from_millis(100);
/// How much of a log's end an error shows, in bytes.
const TAIL: usize = 3000;

/// A program with a clean environment: nothing from outside may set a flag.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", SEARCH)
        .env("HOME", "/root")
        .stdin(Stdio::null());
    command
}

/// Where a program of this machine lies.
pub fn find(program: &str) -> Option<PathBuf> {
    let mut places = SEARCH
        .split(':')
        .map(|folder| Path::new(folder).join(program));
    places.find(|path| path.exists())
}

/// Runs `program` to its end, and gives what it wrote. An error carries what it complained of.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    let mut command = command(program);
    command.args(arguments);
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("could not run {program}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} ended with {}: {}", output.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// When a process started, in clock ticks since the machine did. None when there is no such
/// process.
pub fn start_time(pid: u32) -> Option<u64> {
    fields(pid)?.get(19)?.parse().ok()
}

/// The processes that `parent` started.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            let found = fields(pid).and_then(|fields| fields.get(1)?.parse().ok());
            found == Some(parent)
        })
        .collect()
}

/// What `/proc/PID/stat` says behind the name, which may itself hold spaces.
fn fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = text.rsplit_once(") ")?;
    Some(behind.split(' ').map(str::to_owned).collect())
}

/// Ends a process without warning. One that is gone already is no error.
pub fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Looks at `attempt` until it gives something. After `limit` its last word is the error.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = attempt().with_context(|| format!("waiting for {what}"))? {
            return Ok(found);
        }
        if began.elapsed() > limit {
            bail!("still waiting for {what} after {} s", limit.as_secs());
        }
        thread::sleep(STEP);
    }
}

/// The end of the file at `path`, for an error.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// A process that is meant to stay.
struct Daemon {
    name: String,
    pid: u32,
}

/// A process that was meant to stay and ended.
pub struct Ended {
    /// Its name.
    pub name: String,
    /// How, in words.
    pub how: String,
}

/// The processes of a first process, which is the parent of all whose parent ended: it has to
/// wait for every one of them.
pub struct Daemons {
    list: Vec<Daemon>,
    logs: PathBuf,
}

impl Daemons {
    /// None yet; each writes a log below `logs`.
    pub fn new(logs: PathBuf) -> Self {
        Self {
            list: Vec::new(),
            logs,
        }
    }

    /// The log of one.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts one.
    pub fn spawn(&mut self, name: &str, mut command: Command) -> Result<u32> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log(name))?;
        let child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        let pid = child.id();
        self.list.push(Daemon {
            name: name.to_owned(),
            pid,
        });
        Ok(pid)
    }

    /// Those that ended since the last call. Waits for orphans as well.
    pub fn reap(&mut self) -> Result<Vec<Ended>> {
        let mut ended = Vec::new();
        while let Some((pid, status)) = wait_any()? {
            let pid = pid.as_raw_nonzero().get() as u32;
            let found = self.list.iter().position(|daemon| daemon.pid == pid);
            if let Some(position) = found {
                let name = self.list.swap_remove(position).name;
                let how = words(status);
                ended.push(Ended { name, how });
            }
        }
        Ok(ended)
    }

    /// An error for the first that ended, with the end of its log.
    pub fn all_alive(&mut self) -> Result<()> {
        match self.reap()?.first() {
            Some(ended) => Err(self.complaint(ended)),
            None => Ok(()),
        }
    }

    /// What to say of one that ended.
    pub fn complaint(&self, ended: &Ended) -> anyhow::Error {
        let log = self.log(&ended.name);
        let (name, how) = (&ended.name, &ended.how);
        anyhow::anyhow!("{name} ended {how}; its log ends:\n{}", tail(&log))
    }
}

fn wait_any() -> Result<Option<(Pid, WaitStatus)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Err(rustix::io::Errno::CHILD) => Ok(None),
        other => Ok(other?),
    }
}

fn words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (_, Some(signal)) => format!("by signal {signal}"),
        _ => "in an unknown way".to_owned(),
    }
}
