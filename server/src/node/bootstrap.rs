//! From a data directory to a node that can start: a new one is founded, an old one is continued,
//! and one that belongs to somebody else is refused unchanged.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use config::Config;
use consensus::Boot;
use engine::RocksEngine;
use prost::Message;
use proto::raftpb::{Entry, EntryType, HardState};
use state::{Machine, Member, ids, members};
use tracing::{info, warn};
use wal::{Metadata, OsVfs, Vfs, Wal};

use super::forced::{self, Left};
use crate::database::{self, Engines};

/// Below the data directory, as etcd has it.
const MEMBER: &str = "member";
const LOG: &str = "wal";
const ENGINE: &str = "engine";
/// Where an etcd keeps its database, and a member what comes from others.
const SNAPSHOTS: &str = "snap";
/// etcd's database.
const DATABASE: &str = "db";
/// What to do about data that cannot be completed.
const REPLACE: &str = "Put the data back as it was, or remove this member from the cluster, \
                       delete its data directory and add it again";
/// How long a member that joins goes on asking whether it was added.
const ADDED_LATE: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The term of the entries that found a cluster.
const FOUNDING_TERM: u64 = 1;

/// A node's parts before it runs.
pub(crate) struct Parts {
    pub metadata: Metadata,
    /// Members to talk with from the start; the log brings what has changed since.
    pub members: Vec<Member>,
    pub wal: Wal<OsVfs>,
    pub engine: Arc<RocksEngine>,
    pub engines: Engines,
    /// Where snapshots of other members are kept.
    pub snapshot_folder: PathBuf,
    pub machine: Machine<RocksEngine>,
    pub boot: Boot,
}

/// Where the parts of a data directory are.
pub(crate) struct Places {
    /// Of this member, below the data directory.
    pub folder: PathBuf,
    /// The log.
    pub log: PathBuf,
}

impl Places {
    pub fn of(config: &Config) -> Self {
        Self {
            folder: config.data_dir.join(MEMBER),
            log: log_folder(config),
        }
    }

    /// What is this member's, besides the log if that lies elsewhere.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the engines are.
    pub fn engines(&self) -> Engines {
        Engines::new(self.engine())
    }

    /// The folder that they lie in.
    pub fn engine(&self) -> PathBuf {
        self.folder.join(ENGINE)
    }

    /// Where an etcd keeps its database, and a member what comes from others.
    pub fn snapshots(&self) -> PathBuf {
        self.folder.join(SNAPSHOTS)
    }

    /// Where an etcd's database is, if it left one.
    pub fn database(&self) -> PathBuf {
        self.snapshots().join(DATABASE)
    }
}

/// Opens or makes what is in the data directory.
pub(crate) async fn open(
    config: &Config,
    min_lease_ttl: i64,
    client: &peer::Client,
) -> anyhow::Result<Parts> {
    let vfs = Arc::new(match config.unsafe_no_fsync {
        true => OsVfs::without_sync(),
        false => OsVfs::new(),
    });
    let places = Places::of(config);
    let (folder, log) = (&places.folder, &places.log);
    // Before the log is opened, which changes it.
    engine::check(&places.engine()).context("could not open the engine")?;
    let (mut founding, mut left) = (None, None);
    if has_log(&vfs, log)? {
        let database = places.database();
        if database.exists() {
            // An etcd that runs on it holds a lock on its database, and none on its log that counts.
            let applied = database::applied(&database)?.index;
            left = Some((database, applied));
        }
    } else {
        let new = Founding::find(config, client).await?;
        make_private(&config.data_dir)?;
        vfs.create_dir(folder)
            .with_context(|| format!("could not make {}", folder.display()))?;
        create_log(config, &vfs, &places, new.metadata())?;
        failpoint::BOOT_AFTER_CREATE_LOG.hit();
        founding = Some(new);
    }
    // The newest record of a snapshot is where the log begins, if there is the state for it.
    let (mut wal, mut recovered) = open_log(config, &vfs, log, u64::MAX)?;
    if let Some(repair) = &recovered.repair {
        warn!(segment = %repair.segment.display(), copy = %repair.copy.display(),
            "cut a torn tail off the log; nothing in it was acknowledged");
    }
    if is_unfounded(config, &wal, &recovered) {
        let new = match founding {
            Some(new) => new,
            None => Founding::find(config, client).await?,
        };
        found(config, log, &new, &mut wal, &mut recovered)?;
        founding = Some(new);
    }
    let metadata = recovered.metadata;
    let owner = owner(&metadata);
    engine::claim(&places.engine(), &owner).context("could not open the engine")?;
    failpoint::BOOT_AFTER_CLAIM.hit();
    let engine = Arc::new(newest_state(
        &places,
        &owner,
        left,
        recovered.start.mark.index,
    )?);
    let machine = Machine::open(
        Arc::clone(&engine),
        state::Options {
            member_id: metadata.node_id,
            quota_bytes: config.quota_bytes,
            max_learners: config.max_learners,
            min_lease_ttl,
        },
    )?;
    let applied = machine.published().applied.index;
    if applied < recovered.start.mark.index {
        // A snapshot that never came to be the state; the log may reach further back.
        drop(wal);
        (wal, recovered) = open_log(config, &vfs, log, applied).with_context(|| {
            format!(
                "the engine in {} ends at entry {applied}, and the log begins behind it: parts of \
                 this member's data are missing. {REPLACE}",
                places.engine().display()
            )
        })?;
    }
    let last = wal.last_index();
    ensure!(
        applied <= last,
        "the engine in {} holds entry {applied}, but the log in {} ends at {last}: parts of the \
         log are missing. {REPLACE}",
        places.engine().display(),
        log.display()
    );
    // A cluster that is founded just now has lost nothing.
    if config.force_new_cluster && founding.is_none() {
        let left = Left {
            own: Member {
                id: metadata.node_id,
                peer_urls: config.advertise_peer.clone(),
                ..Member::default()
            },
            removed: machine.published().members.is_removed(metadata.node_id),
            conf_state: &machine.conf_state(),
            applied,
            hard_state: in_the_term_of_the_log(
                recovered.hard_state,
                wal.reader().term(last).unwrap_or_default(),
            ),
        };
        if forced::restart_alone(&mut wal, &left)? {
            drop(wal);
            (wal, recovered) = open_log(config, &vfs, log, applied)?;
        }
    }
    let boot = boot(&wal, &machine, recovered, applied)?;
    let published = machine.published();
    ensure!(
        applied == 0 || !published.members.is_empty(),
        "the state in {} has no members: an etcd before 3.6 keeps them elsewhere; upgrade it to \
         3.6 first, and let it run once",
        folder.display()
    );
    let members = match (published.members.is_empty(), founding) {
        (false, _) => published.members.iter().cloned().collect(),
        (true, Some(founding)) => founding.members,
        // Nothing is applied yet of a log that others wrote, and only they know their IDs. Should
        // none of them answer they still find this member, by its URLs.
        (true, None) if config.join => match Founding::join(config, client).await {
            Ok(founding) => founding.members,
            Err(error) => {
                warn!(error = format!("{error:#}"), "going on by the log alone");
                Vec::new()
            }
        },
        (true, None) => Founding::of(config).members,
    };
    Ok(Parts {
        metadata,
        members,
        wal,
        engine,
        engines: places.engines(),
        snapshot_folder: places.snapshots(),
        machine,
        boot,
    })
}

/// Whose an engine is, in the words that lie beside it.
pub(crate) fn owner(metadata: &Metadata) -> String {
    format!(
        "member {:x} of cluster {:x}",
        metadata.node_id, metadata.cluster_id
    )
}

/// The engine with the newest state that lies here: its own, or one made of the database that an
/// etcd left (`left`, with the last entry in it), or of one that came with the snapshot of entry
/// `snapshot`. What is older is put aside, never deleted.
fn newest_state(
    places: &Places,
    owner: &str,
    left: Option<(PathBuf, u64)>,
    snapshot: u64,
) -> anyhow::Result<RocksEngine> {
    let engines = places.engines();
    let own = match engines.exists() {
        true => {
            let engine = engines.open()?;
            let applied = state::persisted(&engine)?.map_or(0, |state| state.applied.index);
            Some((engine, applied))
        }
        false => None,
    };
    let own_applied = own.as_ref().map_or(0, |(_, applied)| *applied);
    let left_applied = left.as_ref().map_or(0, |(_, applied)| *applied);
    let snapshots = places.snapshots();
    let received = super::snapshots::received(&snapshots)
        .with_context(|| format!("could not look into {}", snapshots.display()))?
        .into_iter()
        .find(|(index, _)| *index == snapshot);
    let engine = match (own, received, &left) {
        (own, Some((index, file)), _) if index > own_applied.max(left_applied) => {
            drop(own);
            info!(index, file = %file.display(), "installing a snapshot that was received");
            engines.import(&file, None)?
        }
        (mut own, _, Some((left, _))) if left_applied > own_applied || own.is_none() => {
            if own.take().is_some() {
                put_aside(&places.engine())?;
                engine::claim(&places.engine(), owner)?;
            }
            info!(index = left_applied, file = %left.display(), "taking over a database of etcd");
            engines.import(left, None)?
        }
        (Some((engine, _)), ..) => engine,
        (None, ..) => engines.open()?,
    };
    if let Some((left, _)) = left {
        // The engine goes on from here: an etcd that opened the database again would go back.
        put_aside(&left)?;
    }
    Ok(engine)
}

/// Renames what is not used any more, durably, and keeps it.
fn put_aside(path: &Path) -> anyhow::Result<()> {
    let aside = path.with_extension("superseded");
    let folder = path.parent().unwrap_or(path);
    failpoint::TAKEOVER_BEFORE_ASIDE.hit();
    std::fs::rename(path, &aside)
        .inspect(|()| failpoint::TAKEOVER_BEFORE_DIR_SYNC.hit())
        .and_then(|()| sync_folder(folder))
        .with_context(|| format!("could not put {} aside", path.display()))?;
    info!(to = %aside.display(), "put older data aside");
    Ok(())
}

fn boot(
    wal: &Wal<OsVfs>,
    machine: &Machine<RocksEngine>,
    recovered: wal::Recovered,
    applied: u64,
) -> anyhow::Result<Boot> {
    let (first_index, last_index) = (wal.first_index(), wal.last_index());
    let reader = wal.reader();
    // Raft looks at the term of the entry before the first one, too.
    let known = first_index.saturating_sub(1).max(1);
    let terms = consensus::term_runs(known, last_index, |index| reader.term(index));
    let last_term = reader.term(last_index).unwrap_or_default();
    Ok(Boot {
        hard_state: in_the_term_of_the_log(recovered.hard_state, last_term),
        conf_state: machine.conf_state(),
        applied,
        entries: recovered.entries,
        first_index,
        last_index,
        last_term,
        terms: terms.context("the log has entries without a term")?,
    })
}

/// The state to begin with. Entries and the state that belongs to them are one write, of which a
/// power cut can keep the entries alone: they may be of a later term than the state before them.
/// Nobody was told of a vote in that term, since that needs the write to be durable; so none is
/// taken back by beginning the term without one.
fn in_the_term_of_the_log(mut state: HardState, last_term: u64) -> HardState {
    if state.term.unwrap_or_default() < last_term {
        warn!(
            term = last_term,
            "the log ends before the state that belongs to its last entries; going on in their term"
        );
        state.term = Some(last_term);
        state.vote = Some(0);
    }
    state
}

/// The members that found a cluster, and the IDs that follow from them.
struct Founding {
    members: Vec<Member>,
    member_id: u64,
    cluster_id: u64,
}

/// Nobody of the cluster that a member is to join answers.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not ask the existing cluster for its members; does --initial-cluster name one that \
     runs?"
)]
pub(crate) struct NoAnswer;

impl Founding {
    async fn find(config: &Config, client: &peer::Client) -> anyhow::Result<Self> {
        config.check_founding()?;
        match config.join {
            true => Self::join(config, client).await,
            false => Ok(Self::of(config)),
        }
    }

    fn of(config: &Config) -> Self {
        let member = |urls: &BTreeSet<String>| {
            let peer_urls: Vec<String> = urls.iter().cloned().collect();
            Member {
                id: ids::member_id(&peer_urls, &config.cluster_token, None),
                peer_urls,
                ..Member::default()
            }
        };
        let own = config.initial_cluster.get(&config.name).map(member);
        let members: Vec<Member> = config
            .initial_cluster
            .iter()
            .map(|(name, urls)| Member {
                name: name.clone(),
                ..member(urls)
            })
            .collect();
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        Self {
            member_id: own.map_or(0, |own| own.id),
            cluster_id: ids::cluster_id(&ids),
            members,
        }
    }

    /// Learns who this member is from those who are there: it was added under an ID that only
    /// they know.
    async fn join(config: &Config, client: &peer::Client) -> anyhow::Result<Self> {
        let others = config.initial_cluster.iter();
        let others = others.filter(|(name, _)| **name != config.name);
        let urls: Vec<String> = others.flat_map(|(_, urls)| urls.iter().cloned()).collect();
        let began = Instant::now();
        loop {
            let (cluster_id, members) = client
                .members(&urls)
                .await
                .map_err(anyhow::Error::msg)
                .context(NoAnswer)?;
            let own = members.iter().find(|member| {
                let mut urls = member.peer_urls.clone();
                urls.sort();
                urls == config.advertise_peer
            });
            if let Some(member_id) = own.map(|own| own.id) {
                return Ok(Self {
                    member_id,
                    cluster_id,
                    members,
                });
            }
            // Whoever answers may be behind the one that answered for the addition.
            ensure!(
                began.elapsed() < ADDED_LATE,
                "the existing cluster has no member with the peer URLs {}; add it first, with \
                 'etcdctl member add'",
                config.advertise_peer.join(",")
            );
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    fn metadata(&self) -> Metadata {
        Metadata {
            node_id: self.member_id,
            cluster_id: self.cluster_id,
        }
    }
}

/// Whether the data directory holds a member's data: a log.
///
/// # Errors
/// A folder that cannot be read, which must not pass for an empty one.
pub(crate) fn has_data(config: &Config) -> anyhow::Result<bool> {
    has_log(&OsVfs::new(), &log_folder(config))
}

fn log_folder(config: &Config) -> PathBuf {
    let beside = || config.data_dir.join(MEMBER).join(LOG);
    config.wal_dir.clone().unwrap_or_else(beside)
}

fn has_log(vfs: &OsVfs, log: &Path) -> anyhow::Result<bool> {
    match vfs.list(log) {
        Ok(names) => Ok(names.iter().any(|name| name.ends_with(".wal"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| {
            format!(
                "could not read the log's folder {}; it must be one, and this user's",
                log.display()
            )
        }),
    }
}

fn create_log(
    config: &Config,
    vfs: &Arc<OsVfs>,
    places: &Places,
    metadata: Metadata,
) -> anyhow::Result<()> {
    let (folder, log) = (&places.folder, &places.log);
    ensure!(
        !places.engine().exists(),
        "{} holds an engine, but there is no log in {}: give --wal-dir as before, or delete the \
         data directory if its data is not needed",
        folder.display(),
        log.display()
    );
    if let Some(parent) = log.parent() {
        vfs.create_dir(parent)
            .with_context(|| format!("could not make {}", parent.display()))?;
    }
    let database = places.database();
    ensure!(
        !database.exists(),
        "{} is a database of etcd, but there is no log in {}: give --wal-dir as that etcd had it, \
         or make a data directory of the database with 'etcdutl snapshot restore'",
        database.display(),
        log.display()
    );
    let created = Wal::create(Arc::clone(vfs), log, metadata, log_options(config));
    created.with_context(|| format!("could not make the log {}", log.display()))?;
    Ok(())
}

fn log_options(config: &Config) -> wal::Options {
    wal::Options {
        segment_bytes: config.wal_segment_bytes,
        ..wal::Options::default()
    }
}

fn open_log(
    config: &Config,
    vfs: &Arc<OsVfs>,
    log: &Path,
    at_most: u64,
) -> anyhow::Result<(Wal<OsVfs>, wal::Recovered)> {
    Wal::open(Arc::clone(vfs), log, at_most, log_options(config))
        .with_context(|| format!("could not open the log {}", log.display()))
}

/// Whether the member has yet to begin, as the same one. A crash between making the log and its
/// first append leaves an empty log. One within the founding leaves a log without a state, which
/// every later append brings; it may hold some of the founding entries, since a power cut can tear
/// them off the rest.
fn is_unfounded(config: &Config, wal: &Wal<OsVfs>, recovered: &wal::Recovered) -> bool {
    recovered.hard_state == HardState::default() && (!config.join || wal.last_index() == 0)
}

/// Begins such a log: with the founding entries, or with nothing when it joins.
fn found(
    config: &Config,
    log: &Path,
    founding: &Founding,
    wal: &mut Wal<OsVfs>,
    recovered: &mut wal::Recovered,
) -> anyhow::Result<()> {
    ensure!(
        recovered.metadata == founding.metadata(),
        "the log in {} was made for another member or cluster: give the --initial-cluster and \
         --initial-cluster-token that it was made with, or delete the data directory",
        log.display()
    );
    if config.join {
        return Ok(());
    }
    let (entries, hard_state) = founding_entries(&founding.members);
    wal.append(&entries, Some(&hard_state), true)
        .context("could not write the founding entries")?;
    failpoint::BOOT_AFTER_FOUND.hit();
    recovered.entries = entries;
    recovered.hard_state = hard_state;
    info!(member = %format_args!("{:x}", founding.member_id),
        cluster = %format_args!("{:x}", founding.cluster_id), "founded a cluster");
    Ok(())
}

/// The entries that every log of a founding member begins with. They are equal on all members and
/// so count as committed.
fn founding_entries(members: &[Member]) -> (Vec<Entry>, HardState) {
    let changes = members::found(members);
    let count = changes.len() as u64;
    let entries = changes.iter().zip(1..).map(|(change, index)| Entry {
        r#type: Some(EntryType::EntryConfChange as i32),
        term: Some(FOUNDING_TERM),
        index: Some(index),
        data: Some(change.encode_to_vec().into()),
    });
    let hard_state = HardState {
        term: Some(FOUNDING_TERM),
        vote: Some(0),
        commit: Some(count),
    };
    (entries.collect(), hard_state)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    OsVfs::new().sync_dir(folder)
}

/// Makes a directory that only its owner may look into, as etcd does, durably.
pub(crate) fn make_private(folder: &Path) -> anyhow::Result<()> {
    OsVfs::new()
        .create_dir(folder)
        .with_context(|| format!("could not make the data directory {}", folder.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(folder: &Path) -> Config {
        let args = [
            format!("--data-dir={}", folder.display()),
            "--name=a".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
            "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2".to_owned(),
        ];
        let parsed = config::parse(args.into_iter(), std::iter::empty(), |_| {
            unreachable!("no file is named")
        });
        match parsed {
            Ok(config::Command::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_that_lost_their_state_begin_their_term_without_a_vote() {
        let state = |term, vote| HardState {
            term: Some(term),
            vote: Some(vote),
            commit: Some(5),
        };
        assert_eq!(in_the_term_of_the_log(state(2, 7), 3), state(3, 0));
        for last_term in [0, 1, 2] {
            assert_eq!(in_the_term_of_the_log(state(2, 7), last_term), state(2, 7));
        }
    }

    /// The founding entries and the state behind them are one write, of which a power cut keeps a
    /// part.
    #[test]
    fn a_founding_that_a_power_cut_tore_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let founding = Founding::of(&config);
        let (entries, hard_state) = founding_entries(&founding.members);
        assert_eq!(entries.len(), 2);
        for whole in 0..=entries.len() {
            let vfs = Arc::new(OsVfs::new());
            let log = folder.path().join(format!("wal{whole}"));
            let options = wal::Options::default();
            let made = Wal::create(Arc::clone(&vfs), &log, founding.metadata(), options);
            made.unwrap().append(&entries[..whole], None, true).unwrap();
            for _ in 0..2 {
                let (mut wal, mut recovered) = open_log(&config, &vfs, &log, u64::MAX).unwrap();
                if is_unfounded(&config, &wal, &recovered) {
                    found(&config, &log, &founding, &mut wal, &mut recovered).unwrap();
                }
                assert_eq!(wal.last_index(), 2);
                assert_eq!(
                    (&recovered.entries, recovered.hard_state),
                    (&entries, hard_state)
                );
            }
        }
    }
}
