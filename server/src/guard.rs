//! The bootstrap guard at work: reads the record and the disk, waits, and keeps the identity.
//!
//! The table is in the crate `record`. In order, so that each crash leaves something safe: the
//! identity is synced, then the data are made (both by [`Guarded::begin`] and the node), then the
//! record is marked as used. A crash before the data are made begins again; one before the mark
//! finds the data, which need no record.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use arc_swap::ArcSwapOption;
use axum::{Router, extract::Request, http::StatusCode, response::IntoResponse};
use config::{Config, Guard};
use record::{Action, Decision, Disk, IDENTITY_FILE, Identity, Pod, Record, Refusal, decide};
use tower::ServiceExt;
use tracing::{info, warn};

use crate::node;

/// How often a waiting member looks at its record again.
const POLL: Duration = Duration::from_millis(250);
/// The longest record that is read.
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// Where the kubelet finds a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// A member that may start.
pub(crate) struct Guarded {
    data_dir: PathBuf,
    marks: PathBuf,
    identity: Identity,
    record: Option<Record>,
}

/// Waits until the member may start, and says how in `config`.
///
/// # Errors
/// A [`Refusal`], or files that cannot be read.
pub(crate) async fn wait(config: &mut Config, guard: &Guard) -> anyhow::Result<Guarded> {
    let pod = Pod {
        uid: guard.pod_uid.clone(),
        cluster_uid: guard.cluster_uid.clone(),
        member: config.name.clone(),
    };
    let mut told = String::new();
    loop {
        let disk = Disk {
            data: node::has_data(config),
            identity: read_identity(&config.data_dir)?,
        };
        let record = read_record(&guard.record)?;
        let used = match &record {
            Some(record) => mark(&guard.marks, record)?.exists(),
            None => false,
        };
        let identity = disk.identity.clone().unwrap_or_else(|| Identity {
            cluster_uid: pod.cluster_uid.clone(),
            member: pod.member.clone(),
            cluster_id: None,
            last_record_id: None,
        });
        let guarded = |record| Guarded {
            data_dir: config.data_dir.clone(),
            marks: guard.marks.clone(),
            identity,
            record,
        };
        match decide(&disk, record.as_ref(), used, &pod) {
            Decision::Run => {
                let own = |record: &Record| record.member_pod_uid.as_ref() == Some(&pod.uid);
                let guarded = guarded(record.filter(own));
                // A crash between making the log and founding the cluster goes on as it began.
                guarded.as_recorded(config)?;
                return Ok(guarded);
            }
            Decision::Begin => {
                let mut guarded = guarded(record);
                guarded.begin(config)?;
                return Ok(guarded);
            }
            Decision::Wait(why) if why != told => {
                info!(why, record = %guard.record.display(), "waiting for the bootstrap record");
                told = why;
            }
            Decision::Wait(_) => {}
            Decision::Refuse(refusal) => return Err(refusal.into()),
        }
        tokio::time::sleep(POLL).await;
    }
}

impl Guarded {
    /// Writes whose disk this is and sets the flags that the record stands for.
    fn begin(&mut self, config: &mut Config) -> anyhow::Result<()> {
        self.as_recorded(config)?;
        let Some(record) = &self.record else {
            bail!("a member cannot begin without a record");
        };
        info!(action = ?record.action, record = record.record_id, "beginning as the record says");
        self.identity.last_record_id = Some(record.record_id.clone());
        node::make_private(&self.data_dir)?;
        write_identity(&self.data_dir, &self.identity)
    }

    fn as_recorded(&self, config: &mut Config) -> anyhow::Result<()> {
        let begins = |record: &&Record| matches!(record.action, Action::New | Action::Join);
        let Some(record) = self.record.as_ref().filter(begins) else {
            return Ok(());
        };
        let join = record.action == Action::Join;
        config
            .begin(join, &record.initial_cluster, &record.token)
            .context("the bootstrap record")
    }

    /// The data are there and durable: notes the cluster and marks the record, so that it cannot be
    /// acted on again in this pod, whatever happens to the disk.
    pub fn started(mut self, cluster_id: u64) -> anyhow::Result<()> {
        let cluster_id = Some(format!("{cluster_id:x}"));
        if self.identity.cluster_id != cluster_id {
            self.identity.cluster_id = cluster_id;
            write_identity(&self.data_dir, &self.identity)?;
        }
        if let Some(record) = &self.record {
            let mark = mark(&self.marks, record)?;
            File::create(&mark).with_context(|| format!("could not make {}", mark.display()))?;
        }
        Ok(())
    }
}

/// Leaves the reason where the operator reads it, when there is such a place.
pub(crate) fn leave_word(refusal: &Refusal) {
    let path = Path::new(TERMINATION_LOG);
    if !path.exists() {
        return;
    }
    let words = serde_json::to_vec(&refusal.termination()).unwrap_or_default();
    if let Err(error) = fs::write(path, words) {
        warn!(%error, "could not write the termination message");
    }
}

fn read_record(path: &Path) -> anyhow::Result<Option<Record>> {
    let Some(text) = read(path, "the bootstrap record")? else {
        return Ok(None);
    };
    let record = serde_json::from_str(&text)
        .with_context(|| format!("the bootstrap record {} is not one", path.display()))?;
    Ok(Some(record))
}

fn read_identity(data_dir: &Path) -> anyhow::Result<Option<Identity>> {
    let path = data_dir.join(IDENTITY_FILE);
    let Some(text) = read(&path, "the identity file")? else {
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

fn read(path: &Path, what: &str) -> anyhow::Result<Option<String>> {
    let context = || format!("could not read {what} {}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
        Ok(metadata) if metadata.len() > MAX_RECORD_BYTES => {
            bail!("{what} {} is longer than 64 KiB", path.display())
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).with_context(context)
}

/// Written beside and renamed, and synced with its folder: after a crash it is whole, old or new.
fn write_identity(data_dir: &Path, identity: &Identity) -> anyhow::Result<()> {
    let path = data_dir.join(IDENTITY_FILE);
    let context = || format!("could not write {}", path.display());
    let beside = path.with_extension("json.tmp");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(identity)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(data_dir)?.sync_all()
    };
    write().with_context(context)
}

/// The file that says that a record was acted on.
fn mark(marks: &Path, record: &Record) -> anyhow::Result<PathBuf> {
    let id = &record.record_id;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.starts_with('.') || !id.chars().all(plain) {
        bail!("the bootstrap record's ID {id:?} is not one: letters, digits, '-', '_' and '.'");
    }
    Ok(marks.join(id))
}

/// What the metrics port serves before there is a node to ask, and afterwards.
#[derive(Clone, Default)]
pub(crate) struct Front(Arc<ArcSwapOption<Router>>);

impl Front {
    /// From now on this is served.
    pub fn open(&self, router: Router) {
        self.0.store(Some(Arc::new(router)));
    }

    /// A router for the port: alive from the start, ready when the node is.
    pub fn router(&self) -> Router {
        let front = self.clone();
        Router::new().fallback(move |request: Request| async move {
            match front.0.load_full() {
                Some(router) => {
                    let router = Router::clone(&router);
                    router.oneshot(request).await.unwrap_or_else(|never| match never {})
                }
                None if request.uri().path() == "/livez" => "ok\n".into_response(),
                None => (StatusCode::SERVICE_UNAVAILABLE, "the server is starting\n").into_response(),
            }
        })
    }
}
