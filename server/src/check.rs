//! `cairn check`: all data of a member that does not run, read once and held against each other.
//! Nothing is opened for writing, and no server can start on the data meanwhile.
//!
//! Read are the log, the engine with every row, a database that an etcd left, and what came from
//! other members and is not in use yet.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use config::Config;
use engine::{OpenError, RocksEngine};
use serde_json::{Map, Value, json};
use state::Machine;
use wal::{OsVfs, Verified, Wal};

use crate::{database, node};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// All is as it was written.
    Whole,
    /// Something is not.
    Damaged,
    /// It could not be read: a server runs on it, or there is nothing.
    Unchecked,
}

/// One part of a data directory.
struct Part {
    name: &'static str,
    path: PathBuf,
    verdict: Verdict,
    /// What it holds.
    facts: Map<String, Value>,
    /// Why it is not whole.
    problem: Option<String>,
}

/// What a part's check has found: facts by name, or what is wrong.
type Facts = Map<String, Value>;

/// All parts, and what lies beside them.
pub(crate) struct Report {
    parts: Vec<Part>,
    notes: Vec<String>,
}

impl Report {
    /// The worst of all parts.
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.parts.iter().map(|part| part.verdict);
        // What could not be read may be damaged, too; what was read and is damaged is for certain.
        let damaged = verdicts
            .clone()
            .find(|verdict| *verdict == Verdict::Damaged);
        damaged.or(verdicts.max()).unwrap_or(Verdict::Unchecked)
    }

    /// In lines for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            let facts = part.facts.iter();
            let facts: Vec<String> = facts
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            text += &match part.verdict {
                Verdict::Whole => format!("{} is whole", part.name),
                Verdict::Damaged => format!("{} is DAMAGED", part.name),
                Verdict::Unchecked => format!("{} could not be checked", part.name),
            };
            text += &format!(": {}\n", part.path.display());
            if !facts.is_empty() {
                text += &format!("  {}\n", facts.join(", "));
            }
            if let Some(problem) = &part.problem {
                text += &format!("  {problem}\n");
            }
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        text
    }

    /// The same for programs.
    pub fn to_json(&self) -> String {
        let parts: Vec<Value> = self
            .parts
            .iter()
            .map(|part| {
                json!({
                    "name": part.name,
                    "path": part.path,
                    "verdict": word(part.verdict),
                    "facts": part.facts,
                    "problem": part.problem,
                })
            })
            .collect();
        let verdict = word(self.verdict());
        json!({ "verdict": verdict, "parts": parts, "notes": self.notes }).to_string() + "\n"
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Whole => "whole",
        Verdict::Damaged => "damaged",
        Verdict::Unchecked => "unchecked",
    }
}

/// Checks the data directory that `config` names.
pub(crate) fn run(config: &Config) -> Report {
    let places = node::Places::of(config);
    let mut report = Report {
        parts: Vec::new(),
        notes: Vec::new(),
    };
    let verified = Wal::verify(&OsVfs::new(), &places.log, u64::MAX);
    let log = verified.as_ref().ok().cloned();
    let facts = verified.map(|log| log_facts(&log));
    report.add("log", &places.log, facts.map_err(anyhow::Error::from));
    if places.engines().exists() {
        report.add("engine", &places.engine(), check_engine(&places, log));
    }
    let left = places.database();
    if left.exists() {
        report.add("etcd's database", &left, check_database(&left));
    }
    match node::received(&places.snapshots()) {
        Ok(received) => {
            for (_, file) in received {
                report.add("received snapshot", &file, check_database(&file));
            }
        }
        Err(error) => report.add("snapshots", &places.snapshots(), Err(error.into())),
    }
    if report.parts.len() == 1 {
        let none = io::Error::new(
            ErrorKind::NotFound,
            "neither a cairn's engine nor an etcd's",
        );
        report.add("state", &config.data_dir, Err(none.into()));
    }
    for folder in [
        &places.log,
        &places.snapshots(),
        &places.folder().to_owned(),
    ] {
        report.note_leftovers(folder);
    }
    report
}

impl Report {
    fn add(&mut self, name: &'static str, path: &Path, found: anyhow::Result<Facts>) {
        let (verdict, facts, problem) = match found {
            Ok(facts) => (Verdict::Whole, facts, None),
            Err(error) => {
                let problem = format!("{error:#}");
                (verdict_of(&error), Map::new(), Some(problem))
            }
        };
        self.parts.push(Part {
            name,
            path: path.to_owned(),
            verdict,
            facts,
            problem,
        });
    }

    /// Names what a start would not look at.
    fn note_leftovers(&mut self, folder: &Path) {
        // Why it cannot be read was said of what is in it.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let why = match path.extension().and_then(|extension| extension.to_str()) {
                Some("broken") => "a copy of a segment whose end a power cut had torn",
                Some("superseded") => "older data that was put aside when newer was taken over",
                Some("part") => "a snapshot that broke off while it came",
                _ => continue,
            };
            self.notes
                .push(format!("not looked at: {}, {why}", path.display()));
        }
    }
}

/// Whether an error says that something is damaged, or that it could not be read.
fn verdict_of(error: &anyhow::Error) -> Verdict {
    let unread = |cause: &(dyn std::error::Error + 'static)| {
        let refused = cause.downcast_ref::<io::Error>().is_some_and(|cause| {
            matches!(
                cause.kind(),
                ErrorKind::WouldBlock | ErrorKind::PermissionDenied | ErrorKind::NotFound
            )
        });
        let open = cause.downcast_ref::<OpenError>().is_some_and(|cause| {
            matches!(
                cause,
                OpenError::Busy { .. } | OpenError::Newer { .. } | OpenError::Torn { .. }
            )
        });
        let nothing = matches!(cause.downcast_ref(), Some(wal::Error::NotFound(_)));
        refused || open || nothing || cause.is::<fs::TryLockError>()
    };
    match error.chain().any(unread) {
        true => Verdict::Unchecked,
        false => Verdict::Damaged,
    }
}

fn facts(json: Value) -> Facts {
    match json {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}

fn log_facts(log: &Verified) -> Facts {
    let mut found = facts(json!({
        "member": format!("{:x}", log.metadata.node_id),
        "cluster": format!("{:x}", log.metadata.cluster_id),
        "segments": log.segments,
        "bytes": log.bytes,
        "begins behind entry": log.start.index,
        "committed": log.commit,
        "last entry": log.last,
    }));
    if let Some((segment, offset)) = &log.torn {
        let told = format!(
            "{} at byte {offset}: the next start cuts off what a power cut tore there",
            segment.display()
        );
        found.insert("torn".to_owned(), told.into());
    }
    found
}

/// Reads the engine, and holds it against the log when that is whole.
fn check_engine(places: &node::Places, log: Option<Verified>) -> anyhow::Result<Facts> {
    let folder = places.engine();
    let engine = RocksEngine::open_to_read(&folder, &engine::Options::default())?;
    let rows = engine.verify()?;
    let engine = Arc::new(engine);
    let persisted = state::persisted(&*engine)?.context("the engine has no state")?;
    let options = state::Options {
        member_id: log.as_ref().map_or(0, |log| log.metadata.node_id),
        quota_bytes: -1,
        max_learners: usize::MAX,
        min_lease_ttl: 1,
    };
    let published = Machine::open(Arc::clone(&engine), options)?.published();
    let checked = published.view.check()?;
    let applied = persisted.applied.index;
    ensure!(
        applied == 0 || !published.members.is_empty(),
        "the state has no members"
    );
    if let Some(log) = log {
        fits(places, &log, applied)?;
    }
    Ok(facts(json!({
        "rows": rows,
        "applied": applied,
        "revision": checked.revision,
        "compacted": checked.compact_revision,
        "keys": checked.keys,
        "versions": checked.versions,
        "leased": checked.leased,
        "bytes": checked.bytes,
        "hash": checked.hash.hash,
        "members": published.members.iter().count(),
    })))
}

/// Whether a start could go on from the engine by the log.
fn fits(places: &node::Places, log: &Verified, applied: u64) -> anyhow::Result<()> {
    let folder = places.engine();
    let owner = engine::owner(&folder)?.unwrap_or_default();
    let wanted = node::owner(&log.metadata);
    ensure!(
        owner == wanted,
        "the engine in {} is that of {owner:?}, and the log is that of {wanted:?}",
        folder.display()
    );
    if applied < log.start.index {
        // Unless the state of the record is still to be installed the log must reach further back.
        let received = node::received(&places.snapshots())?;
        if !received.iter().any(|(index, _)| *index == log.start.index) {
            Wal::verify(&OsVfs::new(), &places.log, applied)?;
        }
    }
    ensure!(
        applied <= log.last,
        "the engine holds entry {applied}, and the log ends at {}: parts of the log are missing",
        log.last
    );
    Ok(())
}

/// Reads a database of etcd's form.
fn check_database(file: &Path) -> anyhow::Result<Facts> {
    let checked = database::check(file)?;
    Ok(facts(json!({
        "applied": checked.applied,
        "buckets": checked.buckets,
        "rows": checked.rows,
        "checksum": match checked.summed {
            true => "fits",
            false => "none: pages are checked, and a value that changed is not seen",
        },
    })))
}
