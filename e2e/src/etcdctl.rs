//! The real etcdctl, as people and scripts run it, and its output in a form that two servers can
//! be compared by.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long one command may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What differs between any two runs: sizes, raft's counters, time.
const LOOSE: &[&str] = &[
    "dbSize",
    "dbSizeInUse",
    "raftIndex",
    "raftAppliedIndex",
    "raftTerm",
    "raft_term",
    "took",
    "DBSize",
    "DBSizeInUse",
    "RaftIndex",
    "RaftAppliedIndex",
    "RaftTerm",
    "Took",
];
/// From so many digits on a number is an ID.
const ID_DIGITS: usize = 13;

/// etcdctl, with the server that it talks to.
pub struct Etcdctl {
    binary: PathBuf,
    url: String,
    ca: Option<PathBuf>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub output: String,
    /// What it printed as errors, without the log lines of its client.
    pub errors: String,
}

/// What a command printed that must succeed.
///
/// # Panics
/// When it did not.
pub fn ok(outcome: Outcome) -> String {
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.output
}

impl Etcdctl {
    /// etcdctl for the server behind `url`; `binary` is [`crate::tool`]'s.
    pub fn new(binary: &Path, url: &str) -> Self {
        Self {
            binary: binary.to_owned(),
            url: url.to_owned(),
            ca: None,
        }
    }

    /// The same for a server with TLS, of a certificate that a CA of this file signed.
    pub fn with_ca(mut self, file: &Path) -> Self {
        self.ca = Some(file.to_owned());
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env_clear()
            .env("ETCDCTL_ENDPOINTS", &self.url)
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null());
        if let Some(ca) = &self.ca {
            command.env("ETCDCTL_CACERT", ca);
        }
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_with(arguments, "")
    }

    /// Runs a command that reads `input`.
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Outcome {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that does not read its input has closed it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let errors = text(&output.stderr);
        let errors = errors.lines().filter(|line| !line.starts_with('{'));
        Outcome {
            code: output.status.code().unwrap_or(-1),
            output: text(&output.stdout),
            errors: errors.map(|line| format!("{line}\n")).collect(),
        }
    }

    /// Runs a command that prints bytes; returns its exit code and them.
    pub fn run_bytes(&self, arguments: &[&str]) -> (i32, Vec<u8>) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code().unwrap_or(-1), output.stdout)
    }

    /// Runs a command that does not end by itself until it has printed `lines` lines.
    pub fn run_until(&self, arguments: &[&str], lines: usize) -> String {
        self.run_until_with(arguments, "", lines)
    }

    /// The same for one that reads `input`, behind which nothing comes.
    pub fn run_until_with(&self, arguments: &[&str], input: &str, lines: usize) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output");
        let file = File::create(&path).unwrap();
        let errors = file.try_clone().unwrap();
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap();
        // It stays open as long as this lives.
        let mut stdin = child.stdin.take().unwrap();
        // One that does not read its input has closed it.
        let _ = stdin.write_all(input.as_bytes());
        let began = Instant::now();
        let read = || {
            let mut text = String::new();
            File::open(&path)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        };
        while read().lines().count() < lines && began.elapsed() < LIMIT {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // It may have ended by itself, which its output shows.
        let _ = child.kill();
        let _ = child.wait();
        read()
    }

    /// An outcome without what differs between two servers that answer alike.
    pub fn masked(&self, outcome: &Outcome) -> Outcome {
        let mask = |text: &str| {
            let text = text.replace(&self.url, "URL");
            match serde_json::from_str::<Value>(&text) {
                Ok(mut value) if value.is_object() || value.is_array() => {
                    mask_json(&mut value);
                    mask_text(&format!("{value:#}\n"))
                }
                _ => mask_text(&text),
            }
        };
        Outcome {
            code: outcome.code,
            output: mask(&outcome.output),
            errors: mask(&outcome.errors),
        }
    }
}

fn mask_json(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match LOOSE.contains(&name.as_str()) {
                    true => *value = Value::from("~"),
                    false => mask_json(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(mask_json),
        _ => {}
    }
}

/// Masks IDs, and the values of loose fields as `-w fields` prints them.
fn mask_text(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let loose = |name: &&&str| line.starts_with(&format!("\"{name}\" :"));
        match LOOSE.iter().find(loose) {
            Some(name) => format!("\"{name}\" : ~"),
            None => mask_ids(line),
        }
    });
    lines.map(|line| line + "\n").collect()
}

fn mask_ids(line: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    let end = |word: &mut String, masked: &mut String| {
        let id = word.len() >= ID_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        // Times, as "2.1ms" or "160.9µs".
        let digits = word.trim_end_matches(|c: char| c.is_alphabetic());
        let time = word.len() > digits.len()
            && digits.parse::<f64>().is_ok()
            && ["s", "ms", "µs", "ns"].contains(&&word[digits.len()..]);
        match (id, time) {
            (true, _) => masked.push_str("ID"),
            (_, true) => masked.push_str("TIME"),
            _ => masked.push_str(word),
        }
        word.clear();
    };
    for c in line.chars() {
        if c.is_alphanumeric() || c == '.' {
            word.push(c);
            continue;
        }
        end(&mut word, &mut masked);
        // Words in Go's text form are parted by one or two blanks, by chance.
        if !(c == ' ' && masked.ends_with(' ')) {
            masked.push(c);
        }
    }
    end(&mut word, &mut masked);
    masked
}
