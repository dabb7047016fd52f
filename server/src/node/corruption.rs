//! Members compare the hashes of their keys, as etcd's do: one that starts with the others', the
//! leader all of them now and then, and those that each member keeps of a compaction. Who differs
//! is told to all by the CORRUPT alarm, and nothing is written until somebody clears it.
//!
//! What follows from the hashes is in `judge.rs`.

mod judge;

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use api::Backend as _;
use mvcc::{KeyValueHash, Read, View};
use peer::Client;
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, alarm_request::AlarmAction,
};
use state::{Error, Member, Members};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tracing::{error, info, warn};

use self::judge::{Compacted, Finding, Initial, Own, Peer};
use super::{backend::NodeBackend, shared::Shared};

/// What is compared, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks {
    /// Time between two comparisons of all keys by the leader; none when zero.
    pub keys_every: Duration,
    /// Time between two comparisons of the hashes of compactions; none without.
    pub compactions_every: Option<Duration>,
}

/// Who compares, before a node runs.
pub(crate) struct Local<'a> {
    pub member_id: u64,
    pub cluster_id: u64,
    pub members: &'a Members,
    pub client: &'a Client,
    /// How long each other member may take.
    pub limit: Duration,
}

impl Local<'_> {
    /// Compares this member's keys with the others' before it serves anybody.
    ///
    /// # Errors
    /// In etcd's words, when another member has the same history with other contents.
    pub async fn check<S: Read + Send + 'static>(&self, view: View<S>) -> anyhow::Result<()> {
        let member = format!("{:x}", self.member_id);
        info!("local-member-id" = member, timeout = ?self.limit, "starting initial corruption check");
        let hash = tokio::task::spawn_blocking(move || view.hash_kv(0)).await?;
        let hash = match hash {
            Ok(hash) => hash,
            Err(error) => bail!("{member} failed to fetch hash ({error})"),
        };
        let others = others(self.members, self.member_id);
        let peers = ask(
            self.client,
            self.cluster_id,
            others,
            hash.revision,
            self.limit,
        )
        .await;
        let mut differ = 0;
        for peer in &peers {
            let outcome = judge::initial(&hash, peer);
            if outcome == Initial::Differs {
                differ += 1;
            }
            tell_initial(&member, &hash, peer, outcome);
        }
        ensure!(
            differ == 0,
            "{member} found data inconsistency with peers: its keys differ from those of {differ} \
             of {} at revision {}. Find out which one is wrong ('etcdctl endpoint hashkv --cluster'); \
             remove it from the cluster, delete its data directory and add it again",
            peers.len(),
            hash.revision
        );
        info!(
            "local-member-id" = member,
            "initial corruption checking passed; no corruption"
        );
        Ok(())
    }
}

fn tell_initial(member: &str, own: &KeyValueHash, peer: &Peer, outcome: Initial) {
    let text = match outcome {
        Initial::Equal | Initial::Silent => return,
        Initial::Differs => "found different hash values from remote peer",
        Initial::OtherCompaction => "found different compact revision values from remote peer",
        Initial::Slow => "cannot fetch hash from slow remote peer",
        Initial::Ahead => "cannot fetch hash from remote peer; local member is behind",
        Initial::Foreign => "cluster ID mismatch",
    };
    let answer = peer.answer.as_ref().ok();
    warn!(
        "local-member-id" = member,
        "local-member-revision" = own.revision,
        "local-member-compact-revision" = own.compact_revision,
        "local-member-hash" = own.hash,
        "remote-peer-id" = %format_args!("{:x}", peer.id),
        "remote-peer-endpoints" = ?peer.urls,
        "remote-peer-revision" = answer.map(|answer| answer.current),
        "remote-peer-compact-revision" = answer.map(|answer| answer.compact_revision),
        "remote-peer-hash" = answer.map(|answer| answer.hash),
        text
    );
}

/// All members but one.
fn others(members: &Members, own: u64) -> Vec<Member> {
    let others = members.iter().filter(|member| member.id != own);
    others.cloned().collect()
}

/// Asks all of them at once, and returns their answers in their order.
async fn ask(
    client: &Client,
    cluster_id: u64,
    members: Vec<Member>,
    revision: i64,
    limit: Duration,
) -> Vec<Peer> {
    let mut asked = JoinSet::new();
    for member in members
        .into_iter()
        .filter(|member| !member.peer_urls.is_empty())
    {
        let client = client.clone();
        asked.spawn(async move {
            let urls = member.peer_urls;
            let answer = client.hash_kv(cluster_id, &urls, revision, limit).await;
            Peer {
                id: member.id,
                urls,
                answer,
            }
        });
    }
    let mut peers = asked.join_all().await;
    peers.sort_by_key(|peer| peer.id);
    peers
}

/// Starts the comparisons that the leader makes.
pub(crate) fn spawn(tasks: &mut JoinSet<()>, shared: &Arc<Shared>, checks: Checks) {
    if !checks.keys_every.is_zero() {
        tasks.spawn(compare_keys(Arc::clone(shared), checks.keys_every));
    }
    if let Some(every) = checks.compactions_every {
        tasks.spawn(compare_compactions(Arc::clone(shared), every));
    }
}

async fn compare_keys(shared: Arc<Shared>, every: Duration) {
    info!(
        "local-member-id" = %format_args!("{:x}", shared.settings.member_id),
        interval = ?every,
        "enabled corruption checking"
    );
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !shared.is_leader() {
            continue;
        }
        if let Err(error) = check_keys(&shared).await {
            warn!(%error, "failed to check hash KV");
        }
    }
}

async fn check_keys(shared: &Arc<Shared>) -> Result<(), Error> {
    let backend = NodeBackend::new(Arc::clone(shared));
    let before = Own::of(backend.hash_at(0).await?);
    let peers = ask_others(shared, before.hash.revision).await;
    // What others have that this leader has not is its own loss only when it is none of the
    // requests on their way.
    backend.linearizable().await?;
    let after = Own::of(backend.hash_at(0).await?);
    let findings = judge::keys(shared.settings.member_id, &before, &after, &peers);
    for finding in &findings {
        tell(finding);
    }
    // As in etcd: the first one. Others may differ only because this one does.
    if let Some(finding) = findings.first() {
        raise(shared, finding.member());
    }
    let checked = peers.iter().filter(|peer| peer.answer.is_ok()).count();
    info!(
        "number-of-peers-checked" = checked,
        "finished peer corruption check"
    );
    Ok(())
}

fn tell(finding: &Finding) {
    match *finding {
        Finding::OwnChanged { before, after, .. } => warn!(
            "revision-1" = before.revision,
            "compact-revision-1" = before.compact_revision,
            "hash-1" = before.hash,
            "revision-2" = after.revision,
            "compact-revision-2" = after.compact_revision,
            "hash-2" = after.hash,
            "found hash mismatch"
        ),
        Finding::Ahead { member, own, other } => warn!(
            "leader-revision" = own,
            "follower-revision" = other,
            "follower-peer-id" = %format_args!("{member:x}"),
            "revision from follower must be less than or equal to leader's"
        ),
        Finding::CompactedAhead { member, own, other } => warn!(
            "leader-compact-revision" = own,
            "follower-compact-revision" = other,
            "follower-peer-id" = %format_args!("{member:x}"),
            "compact revision from follower must be less than or equal to leader's"
        ),
        Finding::Differs { member, own, other } => warn!(
            "leader-compact-revision" = own.compact_revision,
            "leader-hash" = own.hash,
            "follower-compact-revision" = other.compact_revision,
            "follower-hash" = other.hash,
            "follower-peer-id" = %format_args!("{member:x}"),
            "same compact revision then hashes must match"
        ),
    }
}

async fn compare_compactions(shared: Arc<Shared>, every: Duration) {
    // The last revision that all members agreed on.
    let mut checked = i64::MIN;
    loop {
        sleep(every).await;
        if shared.is_leader() {
            checked = checked.max(check_compactions(&shared, checked).await);
        }
    }
}

/// Looks for the newest compaction behind `checked` of which all members keep a hash. Returns its
/// revision when they agree.
async fn check_compactions(shared: &Arc<Shared>, checked: i64) -> i64 {
    let leader = shared.settings.member_id;
    let mut kept = shared.published.load().view.compaction_hashes();
    kept.retain(|hash| hash.revision > checked);
    let count = kept.len();
    info!(
        "local-member-id" = %format_args!("{leader:x}"),
        timeout = ?shared.settings.request_timeout(),
        "starting compact hash check"
    );
    let mut agreed = checked;
    let mut looked = 0;
    for own in kept.into_iter().rev() {
        looked += 1;
        let peers = ask_others(shared, own.revision).await;
        if peers.is_empty() {
            continue;
        }
        tell_skipped(leader, &own, &peers);
        match judge::compaction(leader, &own, &peers) {
            Compacted::Agreed => {
                info!(
                    "number-of-peers-checked" = peers.len(),
                    revision = own.revision,
                    compactRevision = own.compact_revision,
                    "successfully checked hash on whole cluster"
                );
                agreed = own.revision;
                break;
            }
            Compacted::Incomplete { compared } => warn!(
                "number-of-peers-checked" = compared,
                "number-of-peers" = peers.len(),
                revision = own.revision,
                compactRevision = own.compact_revision,
                "skipped revision in compaction hash check; was not able to check all peers"
            ),
            Compacted::Differ { alarms, groups } => {
                for id in &alarms {
                    raise(shared, *id);
                }
                tell_differing(leader, &own, &alarms, &groups);
                break;
            }
        }
    }
    info!(
        "number-of-hashes-checked" = looked.min(count),
        "finished compaction hash check"
    );
    agreed
}

fn tell_skipped(leader: u64, own: &KeyValueHash, peers: &[Peer]) {
    for peer in peers {
        let reason = match &peer.answer {
            Err(_) => "no response".to_owned(),
            Ok(answer) if answer.compact_revision != own.compact_revision => format!(
                "the peer's CompactRevision {} doesn't match leader's CompactRevision {}",
                answer.compact_revision, own.compact_revision
            ),
            Ok(_) => continue,
        };
        warn!(
            "number-of-peers" = peers.len(),
            "leader-id" = %format_args!("{leader:x}"),
            "peer-id" = %format_args!("{:x}", peer.id),
            reason,
            "Skipped peer's hash"
        );
    }
}

fn tell_differing(leader: u64, own: &KeyValueHash, alarms: &[u64], groups: &[(u32, Vec<u64>)]) {
    let of_cluster = alarms == [judge::WHOLE_CLUSTER];
    if of_cluster {
        error!(
            "leader-id" = %format_args!("{leader:x}"),
            "leader-revision" = own.revision,
            "leader-compact-revision" = own.compact_revision,
            "leader-hash" = own.hash,
            "Detected compaction hash mismatch but cannot identify the corrupted members, so \
             intentionally set the memberID as 0"
        );
    }
    for (hash, ids) in groups {
        let ids: Vec<String> = ids.iter().map(|id| format!("{id:x}")).collect();
        error!(
            "leader-id" = %format_args!("{leader:x}"),
            "leader-revision" = own.revision,
            "leader-compact-revision" = own.compact_revision,
            "leader-hash" = own.hash,
            "peer-hash" = hash,
            "peer-ids" = ids.join(","),
            "quorum-exist" = !of_cluster,
            "Detected compaction hash mismatch"
        );
    }
}

async fn ask_others(shared: &Shared, revision: i64) -> Vec<Peer> {
    let settings = &shared.settings;
    let Some(transport) = shared.transport() else {
        return Vec::new();
    };
    let others = others(&shared.published.load().members, settings.member_id);
    let (cluster, limit) = (settings.cluster_id, settings.request_timeout());
    ask(transport.client(), cluster, others, revision, limit).await
}

/// Raises the alarm of a member through the log, and does not wait: what cannot be raised now is
/// found again by the next comparison.
fn raise(shared: &Arc<Shared>, member_id: u64) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let request = InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id,
                alarm: AlarmType::Corrupt as i32,
            }),
            ..InternalRaftRequest::default()
        };
        let member = format!("{member_id:x}");
        match NodeBackend::new(shared).propose(request).await {
            Ok(_) => warn!(alarm = "CORRUPT", member, "alarm raised"),
            Err(error) => warn!(%error, member, "could not raise the CORRUPT alarm"),
        }
    });
}
