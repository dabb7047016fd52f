//! What happens by the clock, and what the apply thread leaves to others.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proto::{
    etcdserverpb::{
        AlarmRequest, AlarmType, InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest,
        LeaseRevokeRequest, alarm_request::AlarmAction,
    },
    membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest},
};
use state::{CHECKPOINTS_PER_ENTRY, Error, REVOKES_PER_SCAN, version};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    apply::Chore,
    backend::NodeBackend,
    peers, probes,
    shared::{Ended, Shared},
};

/// How often leases that have ended are looked for.
const LEASE_SCAN: Duration = Duration::from_millis(500);
/// A scan that comes later than this found the process or the machine asleep.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the leader compares the cluster's version with its members'.
const VERSION_CHECK: Duration = Duration::from_secs(4);
/// How soon it does so first: a new cluster's version should not be long in coming.
const FIRST_VERSION_CHECK: Duration = Duration::from_millis(100);
/// How long a removed member stays.
const PARTING: Duration = Duration::from_secs(1);
/// Time between two attempts to tell the cluster of this member.
const PUBLISH_RETRY: Duration = Duration::from_millis(100);

/// Starts all tasks. They end with the set.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    progress: Duration,
    chores: mpsc::UnboundedReceiver<Chore>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(expire_leases(Arc::clone(shared)));
    tasks.spawn(decide_versions(Arc::clone(shared)));
    tasks.spawn(probes::run(Arc::clone(shared)));
    tasks.spawn(do_chores(Arc::clone(shared), chores));
    tasks.spawn(catch_up(Arc::clone(shared)));
    tasks.spawn(notify_progress(Arc::clone(shared), progress));
    tasks
}

/// Proposes the end of leases that have ended by this leader's clock.
async fn expire_leases(shared: Arc<Shared>) {
    let mut ticks = interval(LEASE_SCAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        ticks.tick().await;
        let pause = last.elapsed();
        last = Instant::now();
        let ended = {
            let mut lessor = super::lessor(&shared);
            if !lessor.is_primary() {
                continue;
            }
            if pause > PAUSE {
                // Nobody could renew a lease while this process stood still.
                warn!(?pause, "the process stood still; leases live on by as much");
                lessor.forgive(pause - LEASE_SCAN);
            }
            lessor.expired(shared.now(), REVOKES_PER_SCAN)
        };
        for id in ended {
            let backend = NodeBackend::new(Arc::clone(&shared));
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let request = InternalRaftRequest {
                    lease_revoke: Some(LeaseRevokeRequest { id }),
                    ..InternalRaftRequest::default()
                };
                // As root: a lease ends whoever its keys belong to.
                match backend.propose_for(&api::Caller::server(), request).await {
                    Ok(_) => {
                        let expired = &shared.counters.leases_expired;
                        expired.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Error::LeaseNotFound) => {}
                    Err(error) => warn!(lease = id, %error, "could not revoke an expired lease"),
                }
            });
        }
    }
}

/// Tells all members, through the log, what is left of leases.
pub(crate) async fn checkpoint_leases(shared: Arc<Shared>) {
    let mut ticks = interval(LEASE_SCAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let due = {
            let mut lessor = super::lessor(&shared);
            lessor.due_checkpoints(shared.now(), CHECKPOINTS_PER_ENTRY)
        };
        if due.is_empty() || !shared.is_leader() {
            continue;
        }
        if let Err(error) = checkpoint(&shared, due).await {
            warn!(%error, "could not tell what is left of leases");
        }
    }
}

/// Tells what is left of leases, in seconds; 0 has it forgotten.
pub(crate) async fn checkpoint(shared: &Arc<Shared>, left: Vec<(i64, i64)>) -> Result<(), Error> {
    let checkpoints = left.into_iter();
    let checkpoints = checkpoints.map(|(id, remaining_ttl)| LeaseCheckpoint { id, remaining_ttl });
    let request = InternalRaftRequest {
        lease_checkpoint: Some(LeaseCheckpointRequest {
            checkpoints: checkpoints.collect(),
        }),
        ..InternalRaftRequest::default()
    };
    let backend = NodeBackend::new(Arc::clone(shared));
    backend.propose(request).await.map(|_| ())
}

/// Raises the cluster's version to what all members can do, or takes it down when it is told to.
async fn decide_versions(shared: Arc<Shared>) {
    let mut wait = FIRST_VERSION_CHECK;
    loop {
        tokio::time::sleep(wait).await;
        wait = VERSION_CHECK;
        if !shared.is_leader() {
            wait = FIRST_VERSION_CHECK;
            continue;
        }
        let members = peers::versions(&shared).await;
        let (current, decided) = {
            let published = shared.published.load();
            let current = published.cluster_version;
            (
                current,
                version::decide(current, members, &published.downgrade),
            )
        };
        let Some(decided) = decided else {
            // A member that does not answer; a new cluster's should not be long in coming.
            if current.is_none() {
                wait = FIRST_VERSION_CHECK;
            }
            continue;
        };
        let request = InternalRaftRequest {
            cluster_version_set: Some(ClusterVersionSetRequest {
                ver: decided.to_string(),
            }),
            ..InternalRaftRequest::default()
        };
        let backend = NodeBackend::new(Arc::clone(&shared));
        match backend.propose(request).await {
            Ok(_) => info!("cluster-version" = %decided.short(), "cluster version is updated"),
            Err(error) => warn!(%error, "could not update the cluster version"),
        }
    }
}

async fn do_chores(shared: Arc<Shared>, mut chores: mpsc::UnboundedReceiver<Chore>) {
    while let Some(chore) = chores.recv().await {
        match chore {
            Chore::RaiseNoSpace(callers) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { raise_no_space(&shared, callers).await });
            }
            Chore::Removed => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // The others should hear that the removal is committed before this member goes.
                    tokio::time::sleep(PARTING).await;
                    shared.end(Ended::Removed);
                });
            }
            Chore::Compacted(revision) => {
                shared.compacted.send_replace(revision);
            }
            Chore::Hash(hash) => {
                let shared = Arc::clone(&shared);
                // Nobody waits for a hash; one that fails ends the node like any failed read.
                let computed = tokio::task::spawn_blocking(move || match hash.compute() {
                    Ok(hash) => info!(
                        hash = hash.hash,
                        "compact-revision" = hash.compact_revision,
                        revision = hash.revision,
                        "storing new hash"
                    ),
                    Err(error) => shared.fatal(error),
                });
                let _ = computed.await;
            }
        }
    }
}

/// Raises the alarm through the log, then tells the callers whose requests went beyond.
pub(crate) async fn raise_no_space(shared: &Arc<Shared>, callers: Vec<u64>) {
    let request = InternalRaftRequest {
        alarm: Some(AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: shared.settings.member_id,
            alarm: AlarmType::Nospace as i32,
        }),
        ..InternalRaftRequest::default()
    };
    let backend = NodeBackend::new(Arc::clone(shared));
    if let Err(error) = backend.propose(request).await {
        warn!(%error, "could not raise the NOSPACE alarm");
    }
    let told = callers.into_iter().map(|id| (id, Err(Error::NoSpace)));
    shared.answer(told.collect());
}

/// Reads history for watchers that are behind.
async fn catch_up(shared: Arc<Shared>) {
    loop {
        shared.watches.wait_behind().await;
        let reader = Arc::clone(&shared);
        let read = tokio::task::spawn_blocking(move || {
            let view =
                || -> Box<dyn watch::History> { Box::new(reader.published.load().view.clone()) };
            if let Err(error) = reader.watches.catch_up(view) {
                reader.fatal(error);
            }
        });
        let _ = read.await;
    }
}

async fn notify_progress(shared: Arc<Shared>, period: Duration) {
    let mut ticks = interval(period.max(Duration::from_millis(100)));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        shared.watches.progress_tick();
    }
}

/// Tells the cluster this member's name and client URLs, until it knows.
pub(crate) async fn publish_attributes(shared: &Arc<Shared>) {
    let settings = &shared.settings;
    if let Some(pause) = failpoint::BEFORE_PUBLISHING.pause() {
        tokio::time::sleep(pause).await;
    }
    loop {
        let request = InternalRaftRequest {
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: settings.member_id,
                member_attributes: Some(Attributes {
                    name: settings.name.clone(),
                    client_urls: settings.advertise_client.clone(),
                }),
            }),
            ..InternalRaftRequest::default()
        };
        let backend = NodeBackend::new(Arc::clone(shared));
        match backend.propose(request).await {
            Ok(_) => break,
            Err(error) => warn!(%error, "could not publish this member; trying again"),
        }
        tokio::time::sleep(PUBLISH_RETRY).await;
    }
    info!(
        "local-member-id" = %format_args!("{:x}", settings.member_id),
        "published local member to cluster through raft"
    );
}
