//! The bootstrap guard at work: reads the record and the disk, waits, and keeps the identity.
//!
//! The table is in the crate `record`. In order, so that each crash leaves something safe:
//! 1. the identity is synced, with how the data begin;
//! 2. the data are made and synced, by the node;
//! 3. the record is marked as used, and the mark synced; only then are clients and peers served.
//!
//! A crash before 2 begins again: nothing was there to lose. One between 2 and 3 finds the data,
//! which need no record, also when they are a log without a single entry. A disk that is lost after
//! 3 meets a used record.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use config::{Config, Guard};
use record::{Decision, Disk, IDENTITY_FILE, Identity, Pod, Record, Refusal, decide};
use tracing::{info, warn};

use crate::{
    front::Front,
    node::{self, Node},
    security::Secured,
};

/// How often a waiting member looks at its record again.
const POLL: Duration = Duration::from_millis(250);
/// How long a joining member rests when nobody of the cluster answers.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The longest record or identity that is read.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// Starts the node once the member may start.
///
/// # Errors
/// A [`Refusal`], or why the node cannot start.
pub(crate) async fn start(
    config: &mut Config,
    guard: &Guard,
    front: &Front,
    secured: &Secured,
) -> anyhow::Result<Node> {
    loop {
        let guarded = wait(config, guard, front).await?;
        match Node::start(config, true, secured).await {
            Ok(node) => {
                failpoint::GUARD_BEFORE_MARK.hit();
                guarded.started(node.cluster_id())?;
                return Ok(node);
            }
            // Names of pods and the other members may be on their way; the record may change.
            Err(error) if error.is::<node::NoAnswer>() => {
                let why = format!("{error:#}");
                warn!(error = why, "nobody to join yet; asking again");
                front.waits(&why);
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leaves the reason where the operator reads it, when there is such a place.
pub(crate) fn leave_word(guard: &Guard, refusal: &Refusal) {
    let path = &guard.termination_log;
    // The kubelet makes the file; elsewhere nobody would read it.
    if !path.exists() {
        return;
    }
    let words = serde_json::to_vec(&refusal.termination()).unwrap_or_default();
    if let Err(error) = fs::write(path, words) {
        warn!(%error, path = %path.display(), "could not write the termination message");
    }
}

/// Waits until the member may start, and says how in `config`.
async fn wait(config: &mut Config, guard: &Guard, front: &Front) -> anyhow::Result<Guarded> {
    let pod = Pod {
        uid: guard.pod_uid.clone(),
        cluster_uid: guard.cluster_uid.clone(),
        member: config.name.clone(),
    };
    let mut told = String::new();
    loop {
        match look(config, guard, &pod)? {
            Look::Start(guarded) => return Ok(*guarded),
            Look::Wait(why) if why != told => {
                info!(
                    why,
                    record = %guard.record.display(),
                    "waiting for the bootstrap record"
                );
                front.waits(&why);
                told = why;
            }
            Look::Wait(_) => {}
        }
        tokio::time::sleep(POLL).await;
    }
}

enum Look {
    Start(Box<Guarded>),
    Wait(String),
}

/// Decides once. Only when the member begins is anything written.
fn look(config: &mut Config, guard: &Guard, pod: &Pod) -> anyhow::Result<Look> {
    let disk = Disk {
        data: node::has_data(config)?,
        identity: read_identity(&config.data_dir)?,
    };
    let (record, problem) = match read_record(&guard.record) {
        Ok(record) => (record, None),
        Err(problem) => (None, Some(format!("the record cannot be read: {problem}"))),
    };
    // Data need neither record nor marks, so neither may stop them.
    let used = match &record {
        Some(record) if !disk.data => is_marked(&guard.marks, record)?,
        _ => false,
    };
    match decide(&disk, record.as_ref(), used, pod) {
        Decision::Run => {
            if let Some(problem) = problem {
                warn!(
                    problem,
                    "going on without the bootstrap record, on the data"
                );
            }
            let own = |record: &Record| record.member_pod_uid.as_ref() == Some(&pod.uid);
            let record = record
                .filter(own)
                .filter(|record| record.begins().is_some());
            let guarded = Guarded::new(config, guard, disk, record, pod);
            guarded.go_on(config);
            Ok(Look::Start(guarded))
        }
        Decision::Begin => {
            let mut guarded = Guarded::new(config, guard, disk, record, pod);
            match guarded.begin(config)? {
                Some(problem) => Ok(Look::Wait(problem)),
                None => Ok(Look::Start(guarded)),
            }
        }
        Decision::Wait(why) => Ok(Look::Wait(problem.unwrap_or(why))),
        Decision::Refuse(refusal) => Err(refusal.into()),
    }
}

/// A member that may start.
struct Guarded {
    data_dir: PathBuf,
    marks: PathBuf,
    identity: Identity,
    /// The record to mark as used.
    record: Option<Record>,
    /// Whether there were no data before.
    fresh: bool,
}

impl Guarded {
    fn new(
        config: &Config,
        guard: &Guard,
        disk: Disk,
        record: Option<Record>,
        pod: &Pod,
    ) -> Box<Self> {
        let identity = disk.identity.unwrap_or_else(|| Identity {
            cluster_uid: pod.cluster_uid.clone(),
            member: pod.member.clone(),
            cluster_id: None,
            last_record_id: None,
            begun: None,
        });
        Box::new(Self {
            data_dir: config.data_dir.clone(),
            marks: guard.marks.clone(),
            identity,
            record,
            fresh: !disk.data,
        })
    }

    /// Sets the flags by which the data began: a log without an entry is founded by them.
    fn go_on(&self, config: &mut Config) {
        if let Some(begun) = &self.identity.begun {
            // Later flags may contradict a beginning that is long over, which does not matter then:
            // the log says who is in the cluster.
            let _ = config.begin(begun.join, &begun.initial_cluster, &begun.token);
        }
    }

    /// Writes whose disk this is and sets the flags that the record stands for. Returns what is
    /// wrong with a record that cannot be acted on.
    fn begin(&mut self, config: &mut Config) -> anyhow::Result<Option<String>> {
        let Some((record, begun)) = self.record.as_ref().and_then(|r| Some((r, r.begins()?)))
        else {
            bail!("a member cannot begin without a record");
        };
        if let Err(error) = config.begin(begun.join, &begun.initial_cluster, &begun.token) {
            return Ok(Some(format!("the record cannot be acted on: {error}")));
        }
        // Without a place for the mark a lost disk could begin twice, so this is found out first.
        write_synced(&self.marks, ".writable", b"").context("nothing was touched")?;
        info!(action = ?record.action, record = record.record_id, "beginning as the record says");
        self.identity.last_record_id = Some(record.record_id.clone());
        self.identity.begun = Some(begun);
        node::make_private(&self.data_dir)?;
        // The folder's own name; a mounted one has no parent on its disk, and needs none.
        if let Some(parent) = self.data_dir.parent() {
            let _ = node::sync_folder(parent);
        }
        self.write_identity()?;
        Ok(None)
    }

    /// The data are there and durable: notes the cluster and marks the record, so that it cannot be
    /// acted on again in this pod, whatever happens to the disk.
    fn started(mut self, cluster_id: u64) -> anyhow::Result<()> {
        let cluster_id = Some(format!("{cluster_id:x}"));
        if self.identity.cluster_id != cluster_id {
            self.identity.cluster_id = cluster_id;
            // For people to read; the data say it themselves.
            if let Err(error) = self.write_identity() {
                warn!(
                    error = format!("{error:#}"),
                    "could not note the cluster's ID"
                );
            }
        }
        let Some(record) = &self.record else {
            return Ok(());
        };
        match write_synced(&self.marks, &record.record_id, b"") {
            Err(error) if self.fresh => Err(error),
            Err(error) => {
                // Data are not stopped by this; until the record says `run` a disk that is lost
                // now would not be noticed.
                warn!(
                    error = format!("{error:#}"),
                    "could not mark the record as used"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn write_identity(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec(&self.identity)?;
        write_synced(&self.data_dir, IDENTITY_FILE, &text)
    }
}

/// Whether a record was acted on. A place that cannot be read must not count as no.
fn is_marked(marks: &Path, record: &Record) -> anyhow::Result<bool> {
    let mark = marks.join(&record.record_id);
    mark.try_exists()
        .with_context(|| format!("could not look for {}", mark.display()))
}

fn read_record(path: &Path) -> Result<Option<Record>, String> {
    match read(path) {
        Ok(Some(text)) => Record::parse(&text).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn read_identity(data_dir: &Path) -> anyhow::Result<Option<Identity>> {
    let path = data_dir.join(IDENTITY_FILE);
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    let identity = serde_json::from_str(&text).with_context(|| {
        format!(
            "the identity file {} is damaged; it says whose data these are. Restore it, or remove \
             this member and add a new one",
            path.display()
        )
    })?;
    Ok(Some(identity))
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let context = || format!("could not read {}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
        Ok(metadata) if metadata.len() > MAX_RECORD_BYTES => {
            bail!("{} is longer than 64 KiB", path.display())
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).with_context(context)
}

/// Written beside and renamed, and synced with its folder: after a crash it is whole, old or new.
fn write_synced(folder: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    let beside = folder.join(format!("{name}.tmp"));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        failpoint::GUARD_BEFORE_RENAME.hit();
        fs::rename(&beside, &path)?;
        failpoint::GUARD_BEFORE_DIR_SYNC.hit();
        node::sync_folder(folder)
    };
    write().with_context(|| format!("could not write {}", path.display()))
}
