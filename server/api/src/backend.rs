//! What the edge asks of the server runtime. Requests and responses are the wire's own types;
//! a response header that the backend leaves out or at zero is completed by the edge.

use std::{future::Future, sync::Arc, time::Duration};

use proto::{
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse,
        DeleteRangeRequest, DeleteRangeResponse, HashKvRequest, HashKvResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member, MemberAddRequest,
        MemberUpdateRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
        TxnRequest, TxnResponse, WatchCreateRequest,
    },
    framed,
};
use state::Error;

use crate::{Meter, SnapshotFile};

/// Who answers. Constant while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's ID.
    pub cluster_id: u64,
    /// This member's ID.
    pub member_id: u64,
}

/// Where this member stands now. Reading it takes no lock and does no I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The revision of the last published commit; an empty store has 1.
    pub revision: i64,
    /// The raft term.
    pub term: u64,
    /// The leader's member ID; 0 when there is none.
    pub leader: u64,
    /// Whether this member is a learner.
    pub is_learner: bool,
    /// How long there has been no leader; `None` while there is one.
    pub leaderless_for: Option<Duration>,
}

/// Bounds that the edge enforces before it calls the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request, in bytes.
    pub max_request_bytes: usize,
    /// Most operations in one transaction.
    pub max_txn_ops: usize,
    /// Most streams on one connection.
    pub max_concurrent_streams: u32,
    /// How long a stream that requires a leader outlives the last one.
    pub leaderless_grace: Duration,
}

/// The versions that `/version` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The server's version.
    pub server: String,
    /// The cluster's version; `None` until it is decided.
    pub cluster: Option<String>,
    /// The storage version; `None` until it is set.
    pub storage: Option<String>,
}

/// The server as the edge sees it. Clones are cheap and name the same server.
///
/// Static request checks are done before a call. Semantic errors, back-pressure and the request
/// timeout are the backend's: every future ends in bounded time.
pub trait Backend: Clone + Send + Sync + 'static {
    /// One client's watch stream.
    type Watch: WatchHandle;

    /// Who answers.
    fn identity(&self) -> Identity;
    /// Where this member stands now.
    fn standing(&self) -> Standing;
    /// The bounds in force.
    fn limits(&self) -> Limits;
    /// The versions to show.
    fn versions(&self) -> Versions;
    /// The alarms that are raised, from local state.
    fn alarms(&self) -> Vec<AlarmMember>;
    /// What the edge counts, for this server's metrics.
    fn meter(&self) -> Arc<Meter>;
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> String;

    /// Waits until this member has applied all that was committed when the call began.
    fn linearizable(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// A range; linearizable unless the request says serializable.
    fn range(
        &self,
        r: RangeRequest,
    ) -> impl Future<Output = Result<framed::RangeResponse, Error>> + Send;
    /// A range of what this member has applied, whatever the request says.
    fn read(&self, r: RangeRequest) -> impl Future<Output = Result<RangeResponse, Error>> + Send;
    /// Writes one key.
    fn put(&self, r: PutRequest) -> impl Future<Output = Result<PutResponse, Error>> + Send;
    /// Deletes a range.
    fn delete_range(
        &self,
        r: DeleteRangeRequest,
    ) -> impl Future<Output = Result<DeleteRangeResponse, Error>> + Send;
    /// Runs a transaction; the backend decides whether it can be answered locally.
    fn txn(&self, r: TxnRequest) -> impl Future<Output = Result<TxnResponse, Error>> + Send;
    /// Compacts; with `physical` the future ends when the rows are gone.
    fn compact(
        &self,
        r: CompactionRequest,
    ) -> impl Future<Output = Result<CompactionResponse, Error>> + Send;

    /// Grants a lease; ID 0 lets the server choose.
    fn lease_grant(
        &self,
        r: LeaseGrantRequest,
    ) -> impl Future<Output = Result<LeaseGrantResponse, Error>> + Send;
    /// Revokes a lease with its keys.
    fn lease_revoke(
        &self,
        r: LeaseRevokeRequest,
    ) -> impl Future<Output = Result<LeaseRevokeResponse, Error>> + Send;
    /// Renews a lease and returns its TTL in seconds; `LeaseNotFound` when there is none.
    fn lease_keep_alive(&self, id: i64) -> impl Future<Output = Result<i64, Error>> + Send;
    /// What is left of a lease; TTL -1 when there is none.
    fn lease_time_to_live(
        &self,
        r: LeaseTimeToLiveRequest,
    ) -> impl Future<Output = Result<LeaseTimeToLiveResponse, Error>> + Send;
    /// All leases, soonest expiry first.
    fn lease_leases(&self) -> impl Future<Output = Result<LeaseLeasesResponse, Error>> + Send;

    /// Adds a member; returns it and all members after the change.
    fn member_add(
        &self,
        r: MemberAddRequest,
    ) -> impl Future<Output = Result<(Member, Vec<Member>), Error>> + Send;
    /// Removes a member; returns the rest.
    fn member_remove(&self, id: u64) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;
    /// Changes a member's peer URLs; returns all members.
    fn member_update(
        &self,
        r: MemberUpdateRequest,
    ) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;
    /// Makes a learner a voter; returns all members.
    fn member_promote(&self, id: u64) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;
    /// All members, from local state unless `linearizable`.
    fn member_list(
        &self,
        linearizable: bool,
    ) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;

    /// Lists, raises or clears alarms.
    fn alarm(&self, r: AlarmRequest) -> impl Future<Output = Result<AlarmResponse, Error>> + Send;
    /// The member's status; answers without a leader too.
    fn status(&self) -> impl Future<Output = Result<StatusResponse, Error>> + Send;
    /// The hash over the keys at a revision; 0 is the current one.
    fn hash_kv(
        &self,
        r: HashKvRequest,
    ) -> impl Future<Output = Result<HashKvResponse, Error>> + Send;
    /// The state as a database file of etcd's.
    fn snapshot(&self) -> impl Future<Output = Result<SnapshotFile, Error>> + Send;
    /// Rewrites the local files to give space back.
    fn defragment(&self) -> impl Future<Output = Result<(), Error>> + Send;
    /// Hands leadership to `target`; `NotLeader` on any other member.
    fn move_leader(&self, target: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Opens a watch stream; dropping the handle closes it.
    fn watch(&self) -> Self::Watch;
}

/// One watch stream. Responses need no cluster ID, member ID or term in their headers.
pub trait WatchHandle: Send + 'static {
    /// Asks for a watcher; the answer, also a refusal, comes through [`WatchHandle::next`].
    fn create(&mut self, r: WatchCreateRequest);
    /// Ends a watcher; an unknown ID is ignored.
    fn cancel(&mut self, watch_id: i64);
    /// Asks for a progress response once every watcher of the stream is synced.
    fn progress(&mut self);
    /// The next responses, at least one; `None` when the server ends the stream. Cancel-safe: a
    /// future that is dropped loses no response.
    fn next(&mut self) -> impl Future<Output = Option<Vec<framed::WatchResponse>>> + Send;
}
