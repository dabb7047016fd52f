//! etcd's own client suite (`go.etcd.io/etcd/tests/v3/common`), which runs the `etcd`, `etcdctl` and
//! `etcdutl` that it finds in a folder. Its ports are fixed, so each test has a network of its own, in
//! which it ends with all that it started.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::{Kind, program, target_folder, tool};

/// Tests that run side by side.
const SIDE_BY_SIDE: usize = 3;
/// How long one may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);
/// How long it has to say what it hangs at, once its own clock has run out.
const LAST_WORDS: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of a failed test's output that are worth showing, at most.
const SHOWN_LINES: usize = 40;

/// Tests that real etcd passes and Cairn does not, with why.
pub const EXCUSED: &[(&str, &str)] = &[];

/// The suite, with the servers that it is run on.
pub struct Suite {
    binary: PathBuf,
    /// With `etcd`, `etcdctl` and `etcdutl`.
    servers: tempfile::TempDir,
    /// Certificates of the module, which tests look for beside their own folder.
    fixtures: PathBuf,
    minimal: bool,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of its cases are well.
    Passed,
    /// It says itself that it does not run here.
    Skipped,
    /// A case is not well, or it did not end.
    Failed,
}

/// What became of a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub test: String,
    /// How it ended.
    pub ended: Ended,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed among others, and was run again alone.
    pub again: bool,
    /// Of a failed one: the cases that failed, with what they said.
    pub words: String,
}

impl Outcome {
    /// One line.
    pub fn line(&self) -> String {
        let word = match self.ended {
            Ended::Passed => "pass",
            Ended::Skipped => "skip",
            Ended::Failed => "FAIL",
        };
        let again = if self.again {
            " (alone, after a failure among others)"
        } else {
            ""
        };
        format!("{word} {:>4}s {}{again}", self.took.as_secs(), self.test)
    }
}

impl Suite {
    /// Builds it, for servers of one kind. `minimal` leaves clusters of one member, and of three with
    /// certificates; the whole has those with certificates of their own making as well.
    ///
    /// # Panics
    /// When something does not build.
    pub fn new(kind: Kind, minimal: bool) -> Self {
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite");
        let package = "go.etcd.io/etcd/tests/v3";
        let binary = target_folder().join("tools").join("etcd-suite.test");
        fs::create_dir_all(binary.parent().unwrap()).unwrap();
        let built = Command::new("go")
            .args(["test", "-c", "-trimpath", "-tags", "e2e", "-o"])
            .arg(&binary)
            .arg(format!("{package}/common"))
            .current_dir(&modules)
            .status();
        assert!(built.unwrap().success(), "the suite does not build");
        let listed = Command::new("go")
            .args(["list", "-m", "-f", "{{.Dir}}", package])
            .current_dir(&modules)
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let module = String::from_utf8(listed.stdout).unwrap();
        let servers = tempfile::tempdir().unwrap();
        let put = |name: &str, at: PathBuf| symlink(at, servers.path().join(name)).unwrap();
        put("etcd", program(kind));
        put("etcdctl", tool("etcdctl"));
        put("etcdutl", tool("etcdutl"));
        Self {
            binary,
            servers,
            fixtures: Path::new(module.trim()).join("fixtures"),
            minimal,
        }
    }

    /// The names of all tests.
    pub fn tests(&self) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(&self.binary)
            .args(["-test.list", "."])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let names = String::from_utf8(output.stdout).unwrap();
        let names = names.lines().filter(|name| name.starts_with("Test"));
        names.map(str::to_owned).collect()
    }

    /// Runs tests, a few side by side, and those that fail once more, each alone: a busy machine is no
    /// failure. `tell` hears of each as it ends.
    pub fn run(&self, tests: Vec<String>, tell: impl Fn(&Outcome) + Sync) -> Vec<Outcome> {
        let waiting = Mutex::new(VecDeque::from(tests));
        let outcomes = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..SIDE_BY_SIDE {
                scope.spawn(|| {
                    loop {
                        let next = waiting.lock().unwrap().pop_front();
                        let Some(test) = next else { break };
                        let outcome = self.one(&test);
                        tell(&outcome);
                        outcomes.lock().unwrap().push(outcome);
                    }
                });
            }
        });
        let mut outcomes = outcomes.into_inner().unwrap();
        for outcome in &mut outcomes {
            if outcome.ended == Ended::Failed {
                *outcome = self.one(&outcome.test);
                outcome.again = true;
                tell(outcome);
            }
        }
        outcomes
    }

    fn one(&self, test: &str) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let (own, scratch) = (folder.path().join("common"), folder.path().join("tmp"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&scratch).unwrap();
        symlink(&self.fixtures, folder.path().join("fixtures")).unwrap();
        let log = folder.path().join("log");
        let output = File::create(&log).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["-n", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c"])
            .arg("ip link set lo up && exec \"$0\" \"$@\"")
            .arg(&self.binary)
            .args(["-test.v", "-test.run", &format!("^{test}$")])
            .arg(format!("-test.timeout={}s", LIMIT.as_secs()))
            .arg("-bin-dir")
            .arg(self.servers.path())
            .current_dir(&own)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &scratch)
            .env("TMPDIR", &scratch)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        if self.minimal {
            command.env("E2E_TEST_MINIMAL", "true");
        }
        let began = Instant::now();
        let ended = Running(command.spawn().unwrap()).wait(LIMIT + LAST_WORDS);
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let ended = match ended {
            Some(status) if status.success() => {
                match text.contains(&format!("--- SKIP: {test} ")) {
                    true => Ended::Skipped,
                    false => Ended::Passed,
                }
            }
            _ => Ended::Failed,
        };
        Outcome {
            test: test.to_owned(),
            ended,
            took: began.elapsed(),
            again: false,
            words: match ended {
                Ended::Failed => words(&text),
                _ => String::new(),
            },
        }
    }
}

/// A process that ends with its owner, and all that is in its namespaces with it.
struct Running(Child);

impl Running {
    fn wait(mut self, limit: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < limit {
            match self.0.try_wait() {
                Ok(None) => thread::sleep(LOOK_EVERY),
                Ok(status) => return status,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What of a failed test's output says why.
fn words(text: &str) -> String {
    let telling = |line: &&str| {
        let line = line.trim_start();
        let why = [
            "--- FAIL",
            "Error:",
            "Error Trace:",
            "Messages:",
            "panic:",
            "expected",
        ];
        why.iter().any(|start| line.starts_with(start)) || line.contains("_test.go:")
    };
    let lines: Vec<&str> = text.lines().filter(telling).collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    lines[from..].join("\n")
}
