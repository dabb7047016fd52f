//! Other members: what they ask of this one, and what this one asks of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::Caller;
use peer::{Answer, Client, Config, Handler, MemberHash, SnapshotBody, Transport};
use prost::Message as _;
use proto::{
    etcdserverpb::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member as MemberProto},
    raftpb::Message,
};
use state::{Error, Member, MemberChange, Version, validate, version};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{
    backend::NodeBackend,
    membership,
    raft::RaftInput,
    shared::{Ended, PROPOSAL_UNIT, STEP_BYTES, Shared},
    snapshots,
};

/// How long a connection must have lasted to count, as etcd's health interval.
const SETTLED: Duration = Duration::from_secs(5);
/// How often a new leader is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Makes the transport and begins to talk with the members that are known.
pub(crate) fn start(shared: &Arc<Shared>, client: Client, members: &[Member]) -> Arc<Transport> {
    let settings = &shared.settings;
    let config = Config {
        member_id: settings.member_id,
        cluster_id: settings.cluster_id,
        peer_urls: settings.advertise_peer.clone(),
        version: version::SERVER,
        min_version: version::MIN_CLUSTER,
    };
    let handler = Arc::new(NodeHandler {
        shared: Arc::clone(shared),
    });
    let transport = Transport::new(config, client, handler);
    for member in members {
        transport.add_peer(member.id, member.peer_urls.clone());
    }
    shared.set_transport(Arc::clone(&transport));
    transport
}

/// Follows an applied change of the members.
pub(crate) fn follow(shared: &Shared, change: &MemberChange) {
    let Some(transport) = shared.transport() else {
        return;
    };
    match change {
        MemberChange::Add(member) | MemberChange::Update(member) => {
            transport.add_peer(member.id, member.peer_urls.clone());
        }
        MemberChange::Remove(id) => {
            transport.remove_peer(*id);
            shared.counters.snapshots.forget(*id);
        }
        MemberChange::Promote(_) => {}
    }
}

/// The server versions of all members; `None` for one that does not answer.
pub(crate) async fn versions(shared: &Shared) -> Vec<Option<Version>> {
    let members: Vec<Member> = shared.published.load().members.iter().cloned().collect();
    let mut versions = Vec::with_capacity(members.len());
    for member in members {
        versions.push(
            match (member.id == shared.settings.member_id, shared.transport()) {
                (true, _) => Some(version::SERVER),
                (false, Some(transport)) => transport.client().version(&member.peer_urls).await,
                (false, None) => None,
            },
        );
    }
    versions
}

/// Since when a voter can be heard.
fn connected(shared: &Shared, id: u64) -> Option<Instant> {
    shared
        .transport()
        .and_then(|transport| transport.active_since(id))
}

/// How many voters can be heard and have been for a while, this member among them.
fn settled_voters(shared: &Shared) -> (usize, usize) {
    let published = shared.published.load();
    let own = shared.settings.member_id;
    let settled = |id| {
        let since = connected(shared, id);
        id == own || since.is_some_and(|since| since.elapsed() >= SETTLED)
    };
    let voters: Vec<u64> = published.members.voters().map(|member| member.id).collect();
    let count = voters.iter().filter(|id| settled(**id)).count();
    (count, voters.len())
}

/// Whether the voters that can be heard would still make a quorum with one more that cannot; a
/// member alone may always grow.
pub(crate) fn addition_keeps_quorum(shared: &Shared) -> bool {
    let (settled, voters) = settled_voters(shared);
    voters == 1 || settled > voters.div_ceil(2)
}

/// Whether the voters that can be heard still make a quorum without a member.
pub(crate) fn removal_keeps_quorum(shared: &Shared, id: u64) -> bool {
    let own = shared.settings.member_id;
    let voter = {
        let published = shared.published.load();
        let member = published.members.get(id);
        member.is_some_and(|member| !member.is_learner)
    };
    // A member that cannot be heard is not part of the quorum now.
    if !voter || (id != own && connected(shared, id).is_none()) {
        return true;
    }
    let (settled, voters) = settled_voters(shared);
    settled.saturating_sub(1) > voters.saturating_sub(1) / 2
}

/// Has the leader promote a learner.
pub(crate) async fn promote_at_leader(
    shared: &Shared,
    id: u64,
    token: Option<&str>,
) -> Result<Vec<MemberProto>, Error> {
    let (Some(urls), Some(transport)) = (shared.leader_urls(), shared.transport()) else {
        return Err(Error::NoLeader);
    };
    let members = transport.client().promote(&urls, id, token).await?;
    Ok(members.iter().map(Member::to_proto).collect())
}

/// Hands the lead to the voter that can be heard for longest, so that the others need no election
/// timeout to find that this one is gone.
pub(crate) async fn hand_over(shared: &Shared) {
    if !shared.is_leader() {
        return;
    }
    let successor = {
        let published = shared.published.load();
        let others = published.members.voters().map(|member| member.id);
        let heard = others.filter_map(|id| Some((connected(shared, id)?, id)));
        heard.min().map(|(_, id)| id)
    };
    let Some(successor) = successor else {
        info!("skipped leadership transfer: there is no other voter that can be heard");
        return;
    };
    if shared.to_raft.send(RaftInput::Transfer(successor)).is_err() {
        return;
    }
    let moved = async {
        while shared.is_leader() {
            sleep(LOOK_EVERY).await;
        }
    };
    match timeout(shared.settings.election, moved).await {
        Ok(()) => info!(to = %format_args!("{successor:x}"), "leadership transferred"),
        Err(_) => warn!("leadership transfer took too long; leaving anyway"),
    }
}

/// Answers other members.
struct NodeHandler {
    shared: Arc<Shared>,
}

impl NodeHandler {
    fn backend(&self) -> NodeBackend {
        NodeBackend::new(Arc::clone(&self.shared))
    }

    /// Raft is gone only when the node ends; then nothing need be told.
    fn tell(&self, input: RaftInput) {
        let _ = self.shared.to_raft.send(input);
    }
}

impl Handler for NodeHandler {
    fn step(&self, message: Message) -> Answer<'_, ()> {
        Box::pin(async move {
            if let Err(problem) = validate::admit_message(&message) {
                warn!(from = %format_args!("{:x}", message.from.unwrap_or_default()), problem,
                    "dropped a proposal of another member");
                return;
            }
            let length = message.encoded_len();
            let units = (length / PROPOSAL_UNIT + 1).min(STEP_BYTES / PROPOSAL_UNIT);
            let room = Arc::clone(&self.shared.step_room);
            if let Ok(room) = room.acquire_many_owned(units as u32).await {
                self.tell(RaftInput::Step(Box::new(message), room));
            }
        })
    }

    fn report_unreachable(&self, id: u64) {
        self.tell(RaftInput::Unreachable(id));
    }

    fn report_snapshot(&self, id: u64, ok: bool) {
        self.shared.snapshots.ended(id);
        self.shared.counters.snapshots.send_ended(id, ok);
        self.tell(RaftInput::Snapshot(id, ok));
    }

    fn open_snapshot<'a>(
        &'a self,
        message: &'a Message,
    ) -> Answer<'a, Result<SnapshotBody, String>> {
        Box::pin(snapshots::open(&self.shared, message))
    }

    fn receive_snapshot(
        &self,
        message: Message,
        body: SnapshotBody,
    ) -> Answer<'_, Result<(), String>> {
        Box::pin(snapshots::receive(&self.shared, message, body))
    }

    fn removed(&self) {
        self.shared.end(Ended::Removed);
    }

    fn is_removed(&self, id: u64) -> bool {
        self.shared.published.load().members.is_removed(id)
    }

    fn members(&self) -> Vec<Member> {
        let published = self.shared.published.load();
        published.members.iter().cloned().collect()
    }

    fn promote(&self, id: u64, token: Option<String>) -> Answer<'_, Result<Vec<Member>, Error>> {
        Box::pin(async move {
            let caller = token.map_or_else(Caller::default, |token| Caller::with_token(&token));
            self.backend().root(&caller).await?;
            if !self.shared.is_leader() {
                return Err(Error::NotLeader);
            }
            membership::promote(&self.shared, id, None).await?;
            Ok(self.members())
        })
    }

    fn renew_lease(&self, id: i64) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async move { self.backend().renew_here(id).await })
    }

    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Answer<'_, Result<LeaseTimeToLiveResponse, Error>> {
        Box::pin(async move { self.backend().time_to_live_here(request).await })
    }

    fn hash_kv(&self, revision: i64) -> Answer<'_, Result<MemberHash, Error>> {
        Box::pin(async move {
            let hash = self.backend().hash_at(revision).await;
            hash.inspect_err(|error| {
                warn!("requested-revision" = revision, %error, "failed to get hashKV");
            })
        })
    }

    fn versions(&self) -> String {
        api::versions_json(&self.backend())
    }

    fn downgrading(&self) -> bool {
        self.shared.published.load().downgrade.enabled
    }

    fn wall_clock(&self) -> String {
        jiff::Timestamp::now().to_string()
    }
}
