//! A node: the raft, log and apply threads, the tasks beside them, its peers, and the backend of
//! the client edge.
//!
//! `bootstrap.rs` brings a data directory to life, `raft.rs`, `log.rs` and `apply.rs` are the
//! threads, `shared.rs` is what they share, `tasks.rs` is what happens by the clock, `backend.rs`
//! answers clients, `peers.rs` other members. `snapshots.rs` is the state as a whole, `truncate.rs`
//! keeps the log short, `corruption.rs` compares members, `disk.rs` meets a disk that fills up,
//! `compactor.rs` compacts by itself, `downgrade.rs` goes back a release.

mod apply;
mod auth;
mod backend;
mod bootstrap;
mod compactor;
mod corruption;
mod disk;
mod downgrade;
mod forced;
mod jwt;
mod log;
mod membership;
mod peers;
mod probes;
mod raft;
mod shared;
mod snapshots;
mod tasks;
mod telemetry;
mod truncate;
mod watches;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use config::Config;
use consensus::Driver;
use crossbeam_channel::unbounded;
use parking_lot::Mutex;
use state::Lessor;
use tokio::{sync::mpsc, task::JoinSet};

use self::{
    apply::{ApplyInput, ApplyThread},
    raft::{Held, Outbox, RaftInput, RaftThread},
    shared::{Parts, Settings, Shared},
};

use crate::security::Secured;

pub(crate) use self::{
    backend::NodeBackend,
    bootstrap::{NoAnswer, Places, has_data, make_private, owner, sync_folder},
    disk::advice,
    shared::Ended,
    snapshots::received,
};

/// A running node.
pub(crate) struct Node {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tasks: JoinSet<()>,
}

impl Node {
    /// Opens the data directory and starts all threads and tasks; other members are called as
    /// `secured` says. A member that is `guarded` ends
    /// if the cluster has removed it.
    ///
    /// # Errors
    /// Why it cannot start, with what to do; nothing is changed then.
    pub async fn start(config: &Config, guarded: bool, secured: &Secured) -> anyhow::Result<Self> {
        let election = config.heartbeat * u32::try_from(config.election_ticks)?;
        let client = peer::Client::new(secured.peer());
        let had_data = has_data(config)?;
        let disk = disk::Policy::of(config);
        disk.release_ballast()
            .context("could not give back the ballast in the data directory")?;
        let parts = bootstrap::open(config, min_lease_ttl(election), &client).await?;
        let members = &parts.machine.published().members;
        if guarded && members.is_removed(parts.metadata.node_id) {
            return Err(record::Refusal::Removed.into());
        }
        let settings = Settings {
            member_id: parts.metadata.node_id,
            cluster_id: parts.metadata.cluster_id,
            name: config.name.clone(),
            advertise_client: config.advertise_client.clone(),
            advertise_peer: config.advertise_peer.clone(),
            tick: config.heartbeat,
            election,
            max_request_bytes: config.max_request_bytes,
            max_txn_ops: config.max_txn_ops,
            max_concurrent_streams: config.max_concurrent_streams,
            quota_bytes: config.quota_bytes,
            strict_reconfig: config.strict_reconfig,
            slow: api::Slow {
                unary: config.warning_unary_request,
                apply: config.warning_apply,
            },
            feature_gates: config.feature_gates.clone(),
        };
        if had_data && config.initial_corrupt_check {
            let local = corruption::Local {
                member_id: settings.member_id,
                cluster_id: settings.cluster_id,
                members: &parts.machine.published().members,
                client: &client,
                limit: settings.request_timeout(),
            };
            local.check(parts.machine.published().view.clone()).await?;
        }
        let mut raft_config = consensus::Config::new(settings.member_id);
        raft_config.election_ticks = config.election_ticks;
        raft_config.pre_vote = config.pre_vote;
        raft_config.seed = settings.member_id ^ process_seed();
        let mut driver = Driver::new(raft_config, parts.boot).context("raft cannot start")?;
        if config.election_tick_advance {
            driver.advance_election_clock(config.election_ticks.saturating_sub(2));
        }
        let (to_raft, raft_inputs) = unbounded::<RaftInput>();
        let (to_apply, apply_inputs) = unbounded::<ApplyInput>();
        let (to_log, appends) = unbounded();
        let (to_fetch, fetches) = unbounded();
        let access = auth::Access::of(config, parts.machine.tokens())?;
        let shared = Arc::new(Shared::new(Parts {
            settings,
            engine: parts.engine,
            snapshot_folder: parts.snapshot_folder,
            published: parts.machine.published(),
            lessor: parts.machine.lessor(),
            access,
            tls: secured.all(),
            to_raft: to_raft.clone(),
            to_apply,
        }));
        let transport = peers::start(&shared, client, &parts.members);
        let sender = Arc::clone(&transport);
        let outbox: Outbox = Arc::new(move |messages| sender.send(messages));
        let reader = parts.wal.reader();
        let wal = Arc::new(Mutex::new(parts.wal));
        let (chores, chores_inbox) = mpsc::unbounded_channel();
        let raft = RaftThread {
            driver,
            wal: Arc::clone(&wal),
            shared: Arc::clone(&shared),
            inputs: raft_inputs,
            to_log,
            to_fetch,
            outbox: Arc::clone(&outbox),
            held: Held::default(),
        };
        let apply = ApplyThread {
            machine: parts.machine,
            shared: Arc::clone(&shared),
            engines: parts.engines,
            flush_at: apply::FLUSH_AT_LOG_BYTES.min(config.wal_segment_bytes as usize / 2),
            inputs: apply_inputs,
            chores,
            log_bytes: 0,
            compacting: None,
        };
        let for_truncation = Arc::clone(&wal);
        let for_log = Arc::clone(&shared);
        let for_fetches = Arc::clone(&shared);
        let threads = vec![
            spawn(&shared, "raft", move || raft.run())?,
            spawn(&shared, "log", move || {
                log::run(&wal, &for_log, &appends, &outbox);
            })?,
            spawn(&shared, "fetch", move || {
                log::serve_fetches(&reader, &for_fetches, &fetches, &to_raft);
            })?,
            spawn(&shared, "apply", move || apply.run())?,
        ];
        let mut tasks = tasks::spawn(&shared, config.progress_interval, chores_inbox);
        let policy = truncate::Policy {
            segment_bytes: config.wal_segment_bytes,
            catch_up_entries: config.catch_up_entries,
        };
        tasks.spawn(truncate::run(Arc::clone(&shared), for_truncation, policy));
        let checks = corruption::Checks {
            keys_every: config.corrupt_check_time,
            compactions_every: config.compact_hash_check_time,
        };
        corruption::spawn(&mut tasks, &shared, checks);
        tasks.spawn(disk::run(Arc::clone(&shared), disk));
        if config.lease_checkpoint {
            lessor(&shared).enable_checkpoints();
            tasks.spawn(tasks::checkpoint_leases(Arc::clone(&shared)));
        }
        if !config.downgrade_check_time.is_zero() {
            let period = config.downgrade_check_time;
            tasks.spawn(downgrade::run(Arc::clone(&shared), period));
        }
        if let Some(policy) = config.auto_compaction {
            tasks.spawn(compactor::run(Arc::clone(&shared), policy));
        }
        if let Some(signer) = shared.access.signer() {
            tasks.spawn(Arc::clone(signer).follow());
        }
        Ok(Self {
            shared,
            threads,
            tasks,
        })
    }

    /// What the client edge asks.
    pub fn backend(&self) -> NodeBackend {
        NodeBackend::new(Arc::clone(&self.shared))
    }

    /// The ID of the cluster that the data belong to.
    pub fn cluster_id(&self) -> u64 {
        self.shared.settings.cluster_id
    }

    /// What says how raft stands, with the names of raft's own JSON. What only its thread knows, votes
    /// and progress, is left out.
    pub fn raft_status(&self) -> impl Fn() -> serde_json::Value + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let raft = &shared.raft;
            serde_json::json!({
                "id": format!("{:x}", shared.settings.member_id),
                "term": raft.term.load(Ordering::Acquire),
                "commit": raft.committed.load(Ordering::Acquire),
                "lead": format!("{:x}", shared.leader()),
                "raftState": match (shared.is_leader(), shared.leader()) {
                    (true, _) => "StateLeader",
                    (false, 0) => "StateCandidate",
                    (false, _) => "StateFollower",
                },
                "applied": shared.applied.load(Ordering::Acquire),
            })
        }
    }

    /// What the peer port serves.
    pub fn peer_router(&self) -> axum::Router {
        let transport = self.shared.transport().map(Arc::clone);
        transport.map_or_else(axum::Router::new, peer::router)
    }

    /// Hands the lead to another member, if this one leads and there is one to take it.
    pub async fn hand_over(&self) {
        peers::hand_over(&self.shared).await;
    }

    /// Waits until the member is known in the cluster and may serve clients.
    pub async fn ready(&self) {
        tasks::publish_attributes(&self.shared).await;
    }

    /// Waits until the node is to end, and says why.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.shared.ended.subscribe();
        loop {
            if let Some(why) = ended.borrow_and_update().clone() {
                return why;
            }
            if ended.changed().await.is_err() {
                return Ended::Asked;
            }
        }
    }

    /// Stops everything. What was acknowledged is durable at any time, so nothing is waited for
    /// but the threads themselves.
    pub async fn stop(mut self) {
        self.shared
            .stopping
            .store(true, std::sync::atomic::Ordering::Release);
        self.tasks.shutdown().await;
        if let Some(transport) = self.shared.transport() {
            transport.stop();
        }
        let _ = self.shared.to_apply.send(ApplyInput::Stop);
        let _ = self.shared.to_raft.send(RaftInput::Stop);
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic has been reported where it was caught.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }
}

/// The shortest lease, as etcd's: three election timeouts by two, in whole seconds.
fn min_lease_ttl(election: Duration) -> i64 {
    let millis = i64::try_from((election * 3 / 2).as_millis()).unwrap_or(i64::MAX);
    millis / 1000 + i64::from(millis % 1000 != 0)
}

/// Different for each start, so that members started together do not stand for election together.
fn process_seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    time.unwrap_or_default().as_nanos() as u64 ^ u64::from(std::process::id())
}

/// Starts a thread whose panic ends the node: it held state that nothing else can vouch for.
fn spawn(
    shared: &Arc<Shared>,
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                shared.fatal(format!("the {name} thread panicked"));
            }
        })
        .with_context(|| format!("could not start the {name} thread"))
}

/// The leases, locked.
fn lessor(shared: &Shared) -> MutexGuard<'_, Lessor> {
    shared.lessor.lock().unwrap_or_else(PoisonError::into_inner)
}
