//! A process as launchers and kubelets see it: started with flags and variables, looked at from
//! outside, ended with its owner.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hasher},
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use crate::server::target_folder;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs `cairn export` to its end.
pub fn export(data: &Path, output: &Path) -> Output {
    Command::new(target_folder().join("cairn"))
        .arg("export")
        .arg(format!("--data-dir={}", data.display()))
        .arg(output)
        .output()
        .unwrap()
}

/// Copies a folder as it is, rights and links included.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// A running `cairn`. Dropping it kills the process.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `cairn`; what it writes goes to the file `log`. Nothing else from outside sets a flag.
    pub fn cairn<A: AsRef<str>>(log: &Path, arguments: &[A], env: &[(&str, &str)]) -> Self {
        let binary = target_folder().join("cairn");
        Self::of(Command::new(&binary), log, arguments, env)
    }

    /// Starts any program that way.
    pub fn of<A: AsRef<str>>(
        mut command: Command,
        log: &Path,
        arguments: &[A],
        env: &[(&str, &str)],
    ) -> Self {
        let output = File::create(log).unwrap();
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .env_clear()
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it has written something.
    pub fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status} before {text:?}:\n{}", self.log());
            }
            assert!(
                began.elapsed() < LIMIT,
                "{text:?} is missing:\n{}",
                self.log()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until it ends by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < LIMIT, "does not end:\n{}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Sends a signal, as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Kills it without warning, as a power cut does.
    pub fn kill(&mut self) {
        // It may have ended by itself, which the tests see elsewhere.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a folder holds: every path below it, with the length and a hash of each file. Equal before
/// and after means that nothing was changed.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.insert(path.clone(), (0, 0));
                folders.push(path);
                continue;
            }
            let mut hasher = DefaultHasher::new();
            let mut file = File::open(&path).unwrap();
            let mut chunk = vec![0; 1 << 20];
            let mut length = 0;
            loop {
                let n = file.read(&mut chunk).unwrap();
                if n == 0 {
                    break;
                }
                hasher.write(&chunk[..n]);
                length += n as u64;
            }
            found.insert(path, (length, hasher.finish()));
        }
    }
    found
}

/// Asks for a page over HTTP/1.0; `None` when nobody answers.
pub fn page(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Asks until the page says what is expected.
pub fn wait_for_page(port: u16, path: &str, status: u16, text: &str) {
    let began = Instant::now();
    loop {
        let found = page(port, path);
        if found
            .as_ref()
            .is_some_and(|(code, body)| *code == status && body.contains(text))
        {
            return;
        }
        assert!(
            began.elapsed() < LIMIT,
            "{path}: {found:?}, not {status} {text:?}"
        );
        std::thread::sleep(LOOK_EVERY);
    }
}
