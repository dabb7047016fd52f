//! What the threads of a node and its clients' tasks share.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex as StdMutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use consensus::{Role, SoftState};
use crossbeam_channel::Sender;
use engine::RocksEngine;
use mvcc::Engine;
use parking_lot::Mutex;
use peer::Transport;
use state::{Error, Lessor, Published, Reply, ids::RequestIds};
use tls::Tls;
use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    apply::ApplyInput, auth::Access, raft::RaftInput, snapshots::Snapshots, telemetry::Counters,
    watches::Watches,
};

/// The state of the keys that readers hold.
pub(crate) type Snapshot = <RocksEngine as Engine>::Snapshot;
/// Bytes of proposals that may be on their way; then callers wait.
pub(crate) const PROPOSAL_BYTES: usize = 64 << 20;
/// The unit in which they are counted.
pub(crate) const PROPOSAL_UNIT: usize = 1 << 10;
/// Bytes of messages from other members that may wait for raft; then their streams wait.
pub(crate) const STEP_BYTES: usize = 64 << 20;
/// Beyond so many entries that are committed and not applied new requests are refused, as in etcd.
pub(crate) const MAX_APPLY_GAP: u64 = 5000;

type Waiter = oneshot::Sender<Result<Reply, Error>>;

/// Settings that do not change.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub member_id: u64,
    pub cluster_id: u64,
    pub name: String,
    pub advertise_client: Vec<String>,
    pub advertise_peer: Vec<String>,
    pub tick: Duration,
    pub election: Duration,
    pub max_request_bytes: usize,
    pub max_txn_ops: usize,
    pub max_concurrent_streams: u32,
    pub quota_bytes: i64,
    pub strict_reconfig: bool,
    /// From when on the log tells what was slow.
    pub slow: api::Slow,
    /// As etcd's metric shows them: name, stage, whether it is open.
    pub feature_gates: Vec<(&'static str, &'static str, bool)>,
}

impl Settings {
    /// How long a request may take: time for the disk and for two elections, as in etcd.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election
    }
}

/// Who leads, as last heard from raft. Every field stands alone; readers need no consistent set.
#[derive(Debug)]
pub(crate) struct RaftState {
    pub leader: AtomicU64,
    pub term: AtomicU64,
    role: AtomicU8,
    /// The last entry that is known to be committed, noted before others are told.
    pub committed: AtomicU64,
    /// When the leader was lost, in milliseconds since the origin; 0 while there is one.
    leader_lost_ms: AtomicU64,
    /// When the last leader was elected, likewise.
    leader_elected_ms: AtomicU64,
    pub leader_changes: AtomicU64,
}

/// One node.
pub(crate) struct Shared {
    pub settings: Settings,
    /// The engine in use; a snapshot that is installed brings its own.
    pub engine: ArcSwap<RocksEngine>,
    /// What is on its way to and from other members.
    pub snapshots: Snapshots,
    pub published: ArcSwap<Published<Snapshot>>,
    pub raft: RaftState,
    pub applied: AtomicU64,
    pub lessor: Arc<StdMutex<Lessor>>,
    /// Whether it counts who makes a call, as of what is published.
    pub auth_enabled: AtomicBool,
    pub access: Access,
    /// For metrics.
    pub tls: Vec<Arc<Tls>>,
    pub watches: Watches,
    pub counters: Counters,
    pub meter: Arc<api::Meter>,
    pub to_raft: Sender<RaftInput>,
    pub to_apply: Sender<ApplyInput>,
    pub proposal_room: Arc<Semaphore>,
    pub step_room: Arc<Semaphore>,
    transport: OnceLock<Arc<Transport>>,
    /// The revision up to which compacted rows are gone, with their hash known.
    pub compacted: watch::Sender<i64>,
    /// Set when the node is to end, with why.
    pub ended: watch::Sender<Option<Ended>>,
    pub stopping: AtomicBool,
    request_ids: Mutex<RequestIds>,
    waiters: Mutex<HashMap<u64, Waiter>>,
    applied_waiters: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
    origin: Instant,
}

/// Why a node ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Asked,
    /// It was removed from the cluster.
    Removed,
    /// It cannot go on.
    Fatal(String),
}

/// What [`Shared::new`] is made of.
pub(crate) struct Parts {
    pub settings: Settings,
    pub engine: Arc<RocksEngine>,
    /// Where snapshots of other members are kept.
    pub snapshot_folder: PathBuf,
    pub published: Arc<Published<Snapshot>>,
    pub lessor: Arc<StdMutex<Lessor>>,
    pub access: Access,
    pub tls: Vec<Arc<Tls>>,
    pub to_raft: Sender<RaftInput>,
    pub to_apply: Sender<ApplyInput>,
}

impl Shared {
    pub fn new(parts: Parts) -> Self {
        let origin = Instant::now();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = since_epoch.unwrap_or_default().as_millis() as u64;
        let view = &parts.published.view;
        let fragment = parts.settings.max_request_bytes + (512 << 10);
        Self {
            request_ids: Mutex::new(RequestIds::new(parts.settings.member_id, now_ms)),
            applied: AtomicU64::new(parts.published.applied.index),
            watches: Watches::new(view.revision(), fragment),
            compacted: watch::Sender::new(view.compact_revision()),
            auth_enabled: AtomicBool::new(parts.published.auth.is_enabled()),
            access: parts.access,
            published: ArcSwap::new(parts.published),
            settings: parts.settings,
            engine: ArcSwap::new(parts.engine),
            snapshots: Snapshots::new(parts.snapshot_folder),
            lessor: parts.lessor,
            tls: parts.tls,
            to_raft: parts.to_raft,
            to_apply: parts.to_apply,
            raft: RaftState {
                leader: AtomicU64::new(0),
                term: AtomicU64::new(0),
                role: AtomicU8::new(0),
                committed: AtomicU64::new(0),
                leader_lost_ms: AtomicU64::new(1),
                leader_elected_ms: AtomicU64::new(0),
                leader_changes: AtomicU64::new(0),
            },
            counters: Counters::default(),
            meter: Arc::default(),
            proposal_room: Arc::new(Semaphore::new(PROPOSAL_BYTES / PROPOSAL_UNIT)),
            step_room: Arc::new(Semaphore::new(STEP_BYTES / PROPOSAL_UNIT)),
            transport: OnceLock::new(),
            ended: watch::Sender::new(None),
            stopping: AtomicBool::new(false),
            waiters: Mutex::default(),
            applied_waiters: Mutex::default(),
            origin,
        }
    }

    /// Shows readers another state. Who makes a call counts from before it can be read, and until
    /// nothing of it can be read any more.
    pub fn publish(&self, published: Arc<Published<Snapshot>>) {
        let enabled = published.auth.is_enabled();
        if enabled {
            self.auth_enabled.store(true, Ordering::Release);
        }
        self.published.store(published);
        if !enabled {
            self.auth_enabled.store(false, Ordering::Release);
        }
    }

    /// Joins the node and its transport, once, before any thread runs.
    pub fn set_transport(&self, transport: Arc<Transport>) {
        // A second one cannot be: there is one caller.
        let _ = self.transport.set(transport);
    }

    /// How other members are reached; `None` only while the node is being made.
    pub fn transport(&self) -> Option<&Arc<Transport>> {
        self.transport.get()
    }

    /// The peer URLs of another member that leads; `None` when none does or this one does.
    pub fn leader_urls(&self) -> Option<Vec<String>> {
        let leader = self.leader();
        if leader == self.settings.member_id {
            return None;
        }
        let published = self.published.load();
        published
            .members
            .get(leader)
            .map(|member| member.peer_urls.clone())
    }

    /// Time since the node's origin: what leases count by.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn now_ms(&self) -> u64 {
        // 0 means "never" in the fields that hold these.
        (self.now().as_millis() as u64).max(1)
    }

    /// An ID for a request, unlike any other in the cluster.
    pub fn next_id(&self) -> u64 {
        self.request_ids.lock().next_id()
    }

    /// Ends the node: nothing true can be said any more.
    pub fn fatal(&self, why: impl std::fmt::Display) {
        self.end(Ended::Fatal(why.to_string()));
    }

    /// Ends the node; the first reason counts.
    pub fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(why);
            }
            first
        });
    }

    /// Registers who waits for the reply of a request.
    pub fn wait_for(&self, id: u64) -> oneshot::Receiver<Result<Reply, Error>> {
        let (waiter, reply) = oneshot::channel();
        self.waiters.lock().insert(id, waiter);
        reply
    }

    /// Nobody waits any more.
    pub fn forget(&self, id: u64) {
        self.waiters.lock().remove(&id);
    }

    /// Whether anyone waits for the reply of a request.
    pub fn is_awaited(&self, id: u64) -> bool {
        self.waiters.lock().contains_key(&id)
    }

    /// How many requests wait for their reply.
    pub fn pending(&self) -> usize {
        self.waiters.lock().len()
    }

    /// Answers those who wait.
    pub fn answer(&self, replies: Vec<(u64, Result<Reply, Error>)>) {
        let mut told = Vec::with_capacity(replies.len());
        {
            let mut waiters = self.waiters.lock();
            for (id, reply) in replies {
                if let Some(waiter) = waiters.remove(&id) {
                    told.push((waiter, reply));
                }
            }
        }
        for (waiter, reply) in told {
            // A caller that has given up needs no answer.
            let _ = waiter.send(reply);
        }
    }

    /// Notes that everything up to an entry is applied and published, and wakes who waits for it.
    pub fn set_applied(&self, index: u64) {
        self.applied.store(index, Ordering::Release);
        let reached = {
            let mut waiters = self.applied_waiters.lock();
            if waiters.first_key_value().is_none_or(|(at, _)| *at > index) {
                return;
            }
            let later = waiters.split_off(&(index + 1));
            std::mem::replace(&mut *waiters, later)
        };
        for waiter in reached.into_values().flatten() {
            let _ = waiter.send(());
        }
    }

    /// Waits until an entry is applied.
    pub async fn wait_applied(&self, index: u64) {
        let reached = {
            let mut waiters = self.applied_waiters.lock();
            // Looked at under the lock: set_applied stores before it takes it.
            if self.applied.load(Ordering::Acquire) >= index {
                return;
            }
            let (waiter, reached) = oneshot::channel();
            let at = waiters.entry(index).or_default();
            at.retain(|waiter| !waiter.is_closed());
            at.push(waiter);
            reached
        };
        let _ = reached.await;
    }

    /// Takes what raft says of itself.
    pub fn set_soft(&self, soft: SoftState) {
        let raft = &self.raft;
        raft.term.store(soft.term, Ordering::Release);
        raft.role.store(soft.role as u8, Ordering::Release);
        let before = raft.leader.swap(soft.leader, Ordering::AcqRel);
        if before == soft.leader {
            return;
        }
        if soft.leader == 0 {
            raft.leader_lost_ms.store(self.now_ms(), Ordering::Release);
        } else {
            raft.leader_lost_ms.store(0, Ordering::Release);
            raft.leader_elected_ms
                .store(self.now_ms(), Ordering::Release);
            raft.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Who leads; 0 when nobody does.
    pub fn leader(&self) -> u64 {
        self.raft.leader.load(Ordering::Acquire)
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raft.role.load(Ordering::Acquire) == Role::Leader as u8
    }

    /// How long there has been no leader.
    pub fn leaderless_for(&self) -> Option<Duration> {
        let lost = self.raft.leader_lost_ms.load(Ordering::Acquire);
        let since = |lost| Duration::from_millis(self.now_ms().saturating_sub(lost));
        (lost != 0).then(|| since(lost))
    }

    /// What a caller is told whose request began at `began` and did not end in time.
    pub fn timeout_since(&self, began: Duration) -> Error {
        let elected = Duration::from_millis(self.raft.leader_elected_ms.load(Ordering::Acquire));
        let lost = elected.saturating_sub(2 * self.settings.election);
        match began > lost && began < elected {
            true => Error::TimeoutDueToLeaderFail,
            false => Error::Timeout,
        }
    }
}
