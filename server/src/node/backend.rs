//! What clients ask of a node.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use api::{
    Backend, Caller, SnapshotFile,
    backend::{AuthRequest, Identity, Limits, ReadPermit, Standing, Versions},
};
use mvcc::Engine;
use peer::MemberHash;
use prost::Message;
use proto::{
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, CompactionResponse,
        DeleteRangeRequest, DeleteRangeResponse, DowngradeInfo, DowngradeRequest, HashKvRequest,
        HashKvResponse, InternalRaftRequest, LeaseGrantRequest, LeaseGrantResponse,
        LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member, MemberAddRequest,
        MemberUpdateRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestHeader,
        ResponseHeader, StatusResponse, TxnRequest, TxnResponse,
    },
    framed,
};
use state::{Auth, AuthInfo, AuthReply, Error, Published, Reply, validate, version};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tracing::warn;

use super::{
    apply::ApplyInput,
    membership,
    raft::RaftInput,
    shared::{MAX_APPLY_GAP, PROPOSAL_BYTES, PROPOSAL_UNIT, Shared, Snapshot},
    snapshots, tasks, telemetry, watches,
};

/// A list of more keys is read away from the tasks that serve connections.
const SMALL_RANGE: i64 = 16;
/// How often the end of a lease, a new leader, or what a token rests on is looked for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The backend of the client edge.
#[derive(Clone)]
pub(crate) struct NodeBackend {
    shared: Arc<Shared>,
}

/// Unwraps the reply that a request of this kind gets.
macro_rules! expect {
    ($reply:expr, $kind:ident) => {
        match $reply {
            Reply::$kind(response) => Ok(response),
            // Request IDs are unique, so this reply is another's: nothing true can be said.
            _ => Err(Error::Stopped),
        }
    };
}

impl NodeBackend {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn published(&self) -> Arc<Published<Snapshot>> {
        self.shared.published.load_full()
    }

    /// Puts a request into the log that asks for nobody's rights; see [`Self::propose_by`].
    pub async fn propose(&self, request: InternalRaftRequest) -> Result<Reply, Error> {
        self.propose_by(AuthInfo::default(), request).await
    }

    /// Puts a user's request into the log and waits until it is applied.
    pub async fn propose_by(
        &self,
        by: AuthInfo,
        mut request: InternalRaftRequest,
    ) -> Result<Reply, Error> {
        let shared = &self.shared;
        let committed = shared.raft.committed.load(Ordering::Acquire);
        let applied = shared.applied.load(Ordering::Acquire);
        if committed > applied + MAX_APPLY_GAP {
            return Err(Error::TooManyRequests);
        }
        let id = shared.next_id();
        request.header = Some(RequestHeader {
            id,
            username: by.username,
            auth_revision: by.revision,
        });
        validate::admit(&request)?;
        let kind = telemetry::Kind::of(&request);
        let length = request.encoded_len();
        if length > shared.settings.max_request_bytes {
            return Err(Error::RequestTooLarge);
        }
        let began = shared.now();
        let limit = shared.settings.request_timeout();
        let deadline = Instant::now() + limit;
        let outcome = timeout(limit, async {
            let units = (length / PROPOSAL_UNIT + 1).min(PROPOSAL_BYTES / PROPOSAL_UNIT);
            let room = shared.proposal_room.acquire_many(units as u32).await;
            let _room = room.map_err(|_| Error::Stopped)?;
            let reply = shared.wait_for(id);
            let data = request.encode_to_vec().into();
            let input = RaftInput::Propose { id, data, deadline };
            shared.to_raft.send(input).map_err(|_| Error::Stopped)?;
            reply.await.map_err(|_| Error::Stopped)?
        });
        let outcome = outcome.await;
        let took = shared.now().saturating_sub(began);
        let through = !matches!(outcome, Err(_) | Ok(Err(Error::Stopped)));
        shared.counters.requested(kind, took, through);
        match outcome {
            Ok(outcome) => outcome,
            Err(_) => {
                shared.forget(id);
                let failed = &shared.counters.failed_proposals;
                failed.fetch_add(1, Ordering::Relaxed);
                Err(shared.timeout_since(began))
            }
        }
    }

    /// As in etcd what would go beyond the quota is not proposed; it raises the alarm.
    async fn admit_size(&self, cost: i64) -> Result<(), Error> {
        let Some(quota) = state::cost::quota(self.shared.settings.quota_bytes) else {
            return Ok(());
        };
        let raised = {
            let published = self.shared.published.load();
            if cost == 0 || published.view.size().saturating_add(cost) < quota {
                return Ok(());
            }
            published.alarms.is_raised(AlarmType::Nospace)
        };
        if !raised {
            warn!("a request would go beyond the quota; raising the NOSPACE alarm");
            tasks::raise_no_space(&self.shared, Vec::new()).await;
        }
        Err(Error::NoSpace)
    }

    /// Waits until all that was committed when the call began is applied.
    pub(super) async fn wait_linearizable(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let began = shared.now();
        let read = async {
            let (reader, index) = oneshot::channel();
            let input = RaftInput::Read(reader);
            shared.to_raft.send(input).map_err(|_| Error::Stopped)?;
            let index = index.await.map_err(|_| Error::Stopped)?;
            shared.wait_applied(index).await;
            Ok(())
        };
        match timeout(shared.settings.request_timeout(), read).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                shared.counters.failed_reads.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
            Err(_) => {
                shared.counters.slow_reads.fetch_add(1, Ordering::Relaxed);
                Err(shared.timeout_since(began))
            }
        }
    }

    /// Reads a state away from the tasks that serve connections.
    async fn read_aside<T: Send + 'static>(
        &self,
        published: Arc<Published<Snapshot>>,
        read: impl FnOnce(&Published<Snapshot>) -> Result<T, mvcc::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let read = tokio::task::spawn_blocking(move || read(&published)).await;
        self.told(read.map_err(|_| Error::Stopped)?)
    }

    /// The hash of this member's keys at a revision; 0 is the current one.
    pub async fn hash_at(&self, revision: i64) -> Result<MemberHash, Error> {
        let began = Instant::now();
        let hash = move |published: &Published<Snapshot>| {
            let view = &published.view;
            view.hash_kv(revision).map(|hash| (hash, view.revision()))
        };
        let (hash, current) = self.read_aside(self.published(), hash).await?;
        self.shared.counters.hashed(began.elapsed());
        Ok(MemberHash {
            current,
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            revision: hash.revision,
        })
    }

    /// Parts a client's error from what ends the node.
    pub(super) fn told<T>(&self, result: Result<T, mvcc::Error>) -> Result<T, Error> {
        result.map_err(|error| {
            Error::of_store(&error).unwrap_or_else(|| {
                self.shared.fatal(error);
                Error::Stopped
            })
        })
    }

    /// Waits until a lease that has ended is revoked, or this member leads no more.
    async fn wait_revoked(&self, id: i64) -> Error {
        let limit = self.shared.settings.request_timeout();
        let revoked = async {
            loop {
                {
                    let lessor = super::lessor(&self.shared);
                    if !lessor.contains(id) {
                        return Error::LeaseNotFound;
                    }
                    if !lessor.is_primary() {
                        return Error::NoLeader;
                    }
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(limit, revoked).await.unwrap_or(Error::Timeout)
    }

    /// Waits, on the member that decides about leases, until it knows those that others know: a
    /// follower may have applied a grant, and its client ask for more, before this member has.
    async fn wait_granted(&self) -> Result<(), Error> {
        if !super::lessor(&self.shared).is_primary() {
            return Err(Error::NotLeader);
        }
        let committed = self.shared.raft.committed.load(Ordering::Acquire);
        if self.shared.applied.load(Ordering::Acquire) >= committed {
            return Ok(());
        }
        let applied = self.shared.wait_applied(committed);
        let waited = timeout(self.shared.settings.request_timeout(), applied).await;
        waited.map_err(|_| Error::Timeout)
    }

    /// Renews a lease here, if this member decides about leases.
    pub async fn renew_here(&self, id: i64) -> Result<i64, Error> {
        self.wait_granted().await?;
        // Or the next leader would let it end too soon.
        let told = super::lessor(&self.shared).must_forget_checkpoint(id);
        if told {
            tasks::checkpoint(&self.shared, vec![(id, 0)]).await?;
        }
        let renewed = {
            let mut lessor = super::lessor(&self.shared);
            if !lessor.is_primary() {
                return Err(Error::NotLeader);
            }
            lessor.renew(id, self.shared.now())?
        };
        match renewed {
            Some(ttl) => {
                let renewed = &self.shared.counters.leases_renewed;
                renewed.fetch_add(1, Ordering::Relaxed);
                Ok(ttl)
            }
            None => Err(self.wait_revoked(id).await),
        }
    }

    async fn may_renew(&self, caller: &Caller, id: i64) -> Result<(), Error> {
        let permit = self.permit_lease(caller, &[id], may_write).await?;
        self.recheck_permit(permit)
    }

    /// Renews a lease here, for who may write its keys.
    async fn renew_for(&self, caller: &Caller, id: i64) -> Result<i64, Error> {
        // Its keys are known when what was committed is applied.
        self.wait_granted().await?;
        self.may_renew(caller, id).await?;
        self.renew_here(id).await
    }

    /// What is left of a lease, if this member decides about leases.
    pub async fn time_to_live_here(
        &self,
        r: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        self.wait_granted().await?;
        let left = {
            let lessor = super::lessor(&self.shared);
            if !lessor.is_primary() {
                return Err(Error::NotLeader);
            }
            lessor.time_to_live(r.id, self.shared.now())
        };
        let left = left.ok_or(Error::LeaseNotFound)?;
        let keys = match r.keys {
            true => self.told(self.published().view.lease_keys(r.id))?,
            false => Vec::new(),
        };
        Ok(LeaseTimeToLiveResponse {
            header: None,
            id: r.id,
            ttl: left.remaining,
            granted_ttl: left.granted,
            keys,
        })
    }

    /// How to reach the leader, when it is another member: it decides about leases.
    fn leader_elsewhere(&self) -> Option<(peer::Client, Vec<String>)> {
        let transport = self.shared.transport()?;
        let urls = self.shared.leader_urls()?;
        Some((transport.client().clone(), urls))
    }

    /// Bounds a call that looks for the leader until one answers.
    async fn in_time<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.shared.settings.request_timeout();
        timeout(limit, asked).await.map_err(|_| Error::Timeout)?
    }
}

fn may_read(auth: &Auth, by: &AuthInfo, key: &[u8]) -> Result<(), Error> {
    auth.check_read(by, key, b"")
}

fn may_write(auth: &Auth, by: &AuthInfo, key: &[u8]) -> Result<(), Error> {
    auth.check_write(by, key, b"")
}

/// Whether another attempt may find the leader.
fn is_leaderless<T>(answer: &Result<T, Error>) -> bool {
    matches!(
        answer,
        Err(Error::NotLeader | Error::NoLeader | Error::Unhealthy)
    )
}

impl Backend for NodeBackend {
    type Watch = watches::Handle;

    fn identity(&self) -> Identity {
        Identity {
            cluster_id: self.shared.settings.cluster_id,
            member_id: self.shared.settings.member_id,
        }
    }

    fn standing(&self) -> Standing {
        let shared = &self.shared;
        let published = shared.published.load();
        let own = published.members.get(shared.settings.member_id);
        Standing {
            revision: published.view.revision(),
            term: shared.raft.term.load(Ordering::Acquire),
            leader: shared.leader(),
            is_learner: own.is_some_and(|member| member.is_learner),
            leaderless_for: shared.leaderless_for(),
        }
    }

    fn limits(&self) -> Limits {
        let settings = &self.shared.settings;
        Limits {
            max_request_bytes: settings.max_request_bytes,
            max_txn_ops: settings.max_txn_ops,
            max_concurrent_streams: settings.max_concurrent_streams,
            leaderless_grace: 3 * settings.election,
            slow: settings.slow,
        }
    }

    fn versions(&self) -> Versions {
        let published = self.shared.published.load();
        Versions {
            server: version::SERVER.to_string(),
            cluster: published.cluster_version.map(|version| version.to_string()),
            storage: published.storage_version.map(|version| version.to_string()),
        }
    }

    fn alarms(&self) -> Vec<AlarmMember> {
        self.shared.published.load().alarms.of(AlarmType::None)
    }

    fn meter(&self) -> Arc<api::Meter> {
        Arc::clone(&self.shared.meter)
    }

    fn metrics(&self) -> String {
        telemetry::metrics(&self.shared)
    }

    async fn linearizable(&self) -> Result<(), Error> {
        self.wait_linearizable().await
    }

    fn asks_who(&self) -> bool {
        self.is_auth_enabled()
    }

    async fn permit_read(
        &self,
        caller: &Caller,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<ReadPermit, Error> {
        self.permit_range(caller, key, range_end).await
    }

    fn recheck(&self, permit: ReadPermit) -> Result<(), Error> {
        self.recheck_permit(permit)
    }

    async fn require_user(&self, caller: &Caller) -> Result<(), Error> {
        self.known_user(caller).await
    }

    async fn require_root(&self, caller: &Caller) -> Result<(), Error> {
        self.root(caller).await
    }

    async fn auth(&self, caller: &Caller, r: AuthRequest) -> Result<AuthReply, Error> {
        self.change_auth(caller, r).await
    }

    async fn range(
        &self,
        caller: &Caller,
        r: RangeRequest,
    ) -> Result<framed::RangeResponse, Error> {
        let began = self.shared.now();
        if !r.serializable {
            self.wait_linearizable().await?;
        }
        let waited = self.shared.now();
        let small = r.range_end.is_empty() || r.count_only || (1..=SMALL_RANGE).contains(&r.limit);
        let may_read = |published: &Published<Snapshot>, by: &AuthInfo| {
            published.auth.check_read(by, &r.key, &r.range_end)
        };
        // What is read is the state by which it is permitted.
        let answer = match self.permitted(caller, may_read).await {
            Ok(published) if small => self.told(published.view.range_framed(&r)),
            Ok(published) => {
                self.read_aside(published, move |published| published.view.range_framed(&r))
                    .await
            }
            Err(refusal) => Err(refusal),
        };
        let ended = self.shared.now();
        let counters = &self.shared.counters;
        counters.ranged(ended.saturating_sub(waited), answer.is_ok());
        let took = ended.saturating_sub(began);
        counters.requested(telemetry::Kind::Range, took, answer.is_ok());
        answer
    }

    async fn read(&self, r: RangeRequest) -> Result<RangeResponse, Error> {
        self.read_aside(self.published(), move |published| published.view.range(&r))
            .await
    }

    async fn put(&self, caller: &Caller, r: PutRequest) -> Result<PutResponse, Error> {
        self.admit_size(state::cost::put(&r)).await?;
        let request = InternalRaftRequest {
            put: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, Put)
    }

    async fn delete_range(
        &self,
        caller: &Caller,
        r: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        let request = InternalRaftRequest {
            delete_range: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, DeleteRange)
    }

    async fn txn(&self, caller: &Caller, r: TxnRequest) -> Result<TxnResponse, Error> {
        if mvcc::is_read_only(&r) {
            if !mvcc::is_serializable(&r) {
                self.wait_linearizable().await?;
            }
            let began = self.shared.now();
            // There are no puts in it, so no leases.
            let may_read = |published: &Published<Snapshot>, by: &AuthInfo| {
                published.auth.check_txn(by, &r, &|_| Vec::new())
            };
            let published = self.permitted(caller, may_read).await?;
            let answer = self.read_aside(published, move |published| {
                let response = published.view.txn(&r)?;
                let ranges = state::ranges_of(&r, &response);
                Ok((response, ranges))
            });
            let answer = answer.await;
            let counters = &self.shared.counters;
            let took = self.shared.now().saturating_sub(began);
            counters.requested(telemetry::Kind::ReadonlyTxn, took, answer.is_ok());
            return answer.map(|(response, ranges)| {
                counters.read_txn(ranges);
                response
            });
        }
        self.admit_size(state::cost::txn(&r)).await?;
        let request = InternalRaftRequest {
            txn: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, Txn)
    }

    async fn compact(
        &self,
        caller: &Caller,
        r: CompactionRequest,
    ) -> Result<CompactionResponse, Error> {
        let mut compacted = self.shared.compacted.subscribe();
        let request = InternalRaftRequest {
            compaction: Some(r),
            ..InternalRaftRequest::default()
        };
        let response = expect!(self.propose_for(caller, request).await?, Compaction)?;
        if r.physical {
            let done = compacted.wait_for(|done| *done >= r.revision).await;
            done.map_err(|_| Error::Stopped)?;
        }
        Ok(response)
    }

    async fn lease_grant(
        &self,
        caller: &Caller,
        mut r: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Error> {
        self.admit_size(state::cost::LEASE).await?;
        while r.id == 0 {
            // As in etcd: a request ID without its sign, which is unlike any other.
            r.id = (self.shared.next_id() & i64::MAX as u64) as i64;
        }
        self.known_user(caller).await?;
        let request = InternalRaftRequest {
            lease_grant: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, LeaseGrant)
    }

    async fn lease_revoke(
        &self,
        caller: &Caller,
        r: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Error> {
        self.known_user(caller).await?;
        let request = InternalRaftRequest {
            lease_revoke: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, LeaseRevoke)
    }

    async fn lease_keep_alive(&self, caller: &Caller, id: i64) -> Result<i64, Error> {
        let asked = async {
            loop {
                let answer = match self.leader_elsewhere() {
                    Some((client, urls)) => match self.may_renew(caller, id).await {
                        Ok(()) => client.renew_lease(&urls, id).await,
                        Err(refusal) => return Err(refusal),
                    },
                    None => self.renew_for(caller, id).await,
                };
                if !is_leaderless(&answer) {
                    return answer;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        self.in_time(asked).await
    }

    async fn lease_time_to_live(
        &self,
        caller: &Caller,
        r: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        self.known_user(caller).await?;
        let permit = match r.keys {
            true => self.permit_lease(caller, &[r.id], may_read).await?,
            false => ReadPermit(None),
        };
        let asked = async {
            loop {
                let answer = match self.leader_elsewhere() {
                    Some((client, urls)) => client.lease_time_to_live(&urls, r).await,
                    None => self.time_to_live_here(r).await,
                };
                if !is_leaderless(&answer) {
                    return answer;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let mut response = self.in_time(asked).await?;
        self.recheck_permit(permit)?;
        // Another member's header is completed with this one's.
        response.header = None;
        Ok(response)
    }

    async fn lease_leases(&self, caller: &Caller) -> Result<LeaseLeasesResponse, Error> {
        let ids = super::lessor(&self.shared).ids();
        let permit = self.permit_lease(caller, &ids, may_read).await?;
        self.recheck_permit(permit)?;
        Ok(LeaseLeasesResponse {
            header: None,
            leases: ids.into_iter().map(|id| LeaseStatus { id }).collect(),
        })
    }

    async fn member_add(&self, r: MemberAddRequest) -> Result<(Member, Vec<Member>), Error> {
        membership::add(&self.shared, r).await
    }

    async fn member_remove(&self, id: u64) -> Result<Vec<Member>, Error> {
        membership::remove(&self.shared, id).await
    }

    async fn member_update(&self, r: MemberUpdateRequest) -> Result<Vec<Member>, Error> {
        membership::update(&self.shared, r).await
    }

    async fn member_promote(&self, caller: &Caller, id: u64) -> Result<Vec<Member>, Error> {
        membership::promote(&self.shared, id, caller.token()).await
    }

    async fn member_list(&self, caller: &Caller, linearizable: bool) -> Result<Vec<Member>, Error> {
        if linearizable {
            self.wait_linearizable().await?;
        }
        self.known_user(caller).await?;
        Ok(self.published().members.to_proto())
    }

    async fn alarm(&self, caller: &Caller, r: AlarmRequest) -> Result<AlarmResponse, Error> {
        let request = InternalRaftRequest {
            alarm: Some(r),
            ..InternalRaftRequest::default()
        };
        expect!(self.propose_for(caller, request).await?, Alarm)
    }

    async fn status(&self) -> Result<StatusResponse, Error> {
        let shared = &self.shared;
        let published = self.published();
        let standing = self.standing();
        let mut errors = Vec::new();
        if standing.leader == 0 {
            errors.push(Error::NoLeader.text().to_owned());
        }
        for alarm in published.alarms.of(AlarmType::None) {
            let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |of| of.as_str_name());
            errors.push(format!("memberID:{}  alarm:{name}", alarm.member_id));
        }
        Ok(StatusResponse {
            header: Some(ResponseHeader {
                revision: standing.revision,
                ..ResponseHeader::default()
            }),
            version: version::SERVER.to_string(),
            db_size: published.view.size(),
            leader: standing.leader,
            raft_index: shared.raft.committed.load(Ordering::Acquire),
            raft_term: standing.term,
            raft_applied_index: published.applied.index,
            errors,
            db_size_in_use: published.view.size_in_use(),
            is_learner: standing.is_learner,
            storage_version: published
                .storage_version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            db_size_quota: state::cost::quota(shared.settings.quota_bytes)
                .unwrap_or(shared.settings.quota_bytes),
            downgrade_info: Some(DowngradeInfo {
                enabled: published.downgrade.enabled,
                target_version: published.downgrade.target_version.clone(),
            }),
        })
    }

    async fn hash_kv(&self, r: HashKvRequest) -> Result<HashKvResponse, Error> {
        let hash = self.hash_at(r.revision).await?;
        Ok(HashKvResponse {
            header: None,
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        })
    }

    async fn snapshot(&self) -> Result<SnapshotFile, Error> {
        let published = self.published();
        let version = published.storage_version;
        let made = snapshots::make(&self.shared, published)
            .await
            .map_err(|error| {
                self.shared.fatal(error);
                Error::Stopped
            })?;
        Ok(SnapshotFile {
            bytes: made.bytes,
            version: version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            pieces: made.pieces,
        })
    }

    async fn defragment(&self) -> Result<(), Error> {
        let engine = self.shared.engine.load_full();
        let counters = &self.shared.counters;
        let began = Instant::now();
        counters.defragmenting.fetch_add(1, Ordering::Relaxed);
        let done = tokio::task::spawn_blocking(move || engine.defragment()).await;
        counters.defragmenting.fetch_sub(1, Ordering::Relaxed);
        counters.defragmented(began.elapsed());
        if let Err(error) = done.map_err(|_| Error::Stopped)? {
            self.shared.fatal(error);
            return Err(Error::Stopped);
        }
        let (done, accounted) = oneshot::channel();
        let input = ApplyInput::Defragmented(done);
        self.shared
            .to_apply
            .send(input)
            .map_err(|_| Error::Stopped)?;
        accounted.await.map_err(|_| Error::Stopped)
    }

    async fn downgrade(&self, r: DowngradeRequest) -> Result<String, Error> {
        Ok(self.change_downgrade(&r).await?.short())
    }

    async fn move_leader(&self, target: u64) -> Result<(), Error> {
        let shared = &self.shared;
        if !shared.is_leader() {
            return Err(Error::NotLeader);
        }
        let voter = {
            let published = shared.published.load();
            let target = published.members.get(target);
            target.is_some_and(|member| !member.is_learner)
        };
        if !voter {
            return Err(Error::BadLeaderTransferee);
        }
        if target == shared.settings.member_id {
            return Ok(());
        }
        let input = RaftInput::Transfer(target);
        shared.to_raft.send(input).map_err(|_| Error::Stopped)?;
        let moved = async {
            while shared.leader() != target {
                sleep(LOOK_EVERY).await;
            }
        };
        let limit = shared.settings.request_timeout();
        timeout(limit, moved).await.map_err(|_| Error::Timeout)
    }

    fn watch(&self) -> watches::Handle {
        watches::Handle::open(&self.shared)
    }
}
