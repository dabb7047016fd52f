//! What the edge asks of the server runtime. Requests and responses are the wire's own types;
//! a response header that the backend leaves out or at zero is completed by the edge.

use std::{future::Future, sync::Arc, time::Duration};

use proto::{
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AuthRoleAddRequest, AuthRoleDeleteRequest,
        AuthRoleGetRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
        AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
        AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
        AuthenticateRequest, CompactionRequest, CompactionResponse, DeleteRangeRequest,
        DeleteRangeResponse, DowngradeRequest, HashKvRequest, HashKvResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member, MemberAddRequest,
        MemberUpdateRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusResponse,
        TxnRequest, TxnResponse, WatchCreateRequest,
    },
    framed,
};
use state::{AuthReply, Error};

use crate::{Caller, Meter, Slow, SnapshotFile};

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
    /// From when on calls are told of in the log.
    pub slow: Slow,
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

/// The auth store's revision by which a read was permitted; `None` when nobody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPermit(pub Option<u64>);

/// What is about users and roles. Passwords are as clients send them.
#[expect(missing_docs, reason = "each is the RPC of its name")]
#[derive(Clone, PartialEq)]
pub enum AuthRequest {
    Enable,
    Disable,
    Status,
    Authenticate(AuthenticateRequest),
    UserAdd(AuthUserAddRequest),
    UserGet(AuthUserGetRequest),
    UserList,
    UserDelete(AuthUserDeleteRequest),
    UserChangePassword(AuthUserChangePasswordRequest),
    UserGrantRole(AuthUserGrantRoleRequest),
    UserRevokeRole(AuthUserRevokeRoleRequest),
    RoleAdd(AuthRoleAddRequest),
    RoleGet(AuthRoleGetRequest),
    RoleList,
    RoleDelete(AuthRoleDeleteRequest),
    RoleGrantPermission(AuthRoleGrantPermissionRequest),
    RoleRevokePermission(AuthRoleRevokePermissionRequest),
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

    /// Whether it counts who makes a call. Reading it costs next to nothing.
    fn asks_who(&self) -> bool;
    /// Looks whether a caller may read `[key, range_end)` now; without an end it is the one key.
    /// What it returns is for [`Backend::recheck`].
    fn permit_read(
        &self,
        caller: &Caller,
        key: &[u8],
        range_end: &[u8],
    ) -> impl Future<Output = Result<ReadPermit, Error>> + Send;
    /// Looks whether users and roles are still those that a permit was given by.
    ///
    /// # Errors
    /// `AuthOldRevision` when they are not.
    fn recheck(&self, permit: ReadPermit) -> Result<(), Error>;
    /// Looks whether a caller is a user, if it counts.
    fn require_user(&self, caller: &Caller) -> impl Future<Output = Result<(), Error>> + Send;
    /// Looks whether a caller has the rights of root, if it counts.
    fn require_root(&self, caller: &Caller) -> impl Future<Output = Result<(), Error>> + Send;
    /// Carries out what is about users and roles.
    fn auth(
        &self,
        caller: &Caller,
        r: AuthRequest,
    ) -> impl Future<Output = Result<AuthReply, Error>> + Send;

    /// Waits until this member has applied all that was committed when the call began.
    fn linearizable(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// A range; linearizable unless the request says serializable.
    fn range(
        &self,
        caller: &Caller,
        r: RangeRequest,
    ) -> impl Future<Output = Result<framed::RangeResponse, Error>> + Send;
    /// A range of what this member has applied, whatever the request says.
    fn read(&self, r: RangeRequest) -> impl Future<Output = Result<RangeResponse, Error>> + Send;
    /// Writes one key.
    fn put(
        &self,
        caller: &Caller,
        r: PutRequest,
    ) -> impl Future<Output = Result<PutResponse, Error>> + Send;
    /// Deletes a range.
    fn delete_range(
        &self,
        caller: &Caller,
        r: DeleteRangeRequest,
    ) -> impl Future<Output = Result<DeleteRangeResponse, Error>> + Send;
    /// Runs a transaction; the backend decides whether it can be answered locally.
    fn txn(
        &self,
        caller: &Caller,
        r: TxnRequest,
    ) -> impl Future<Output = Result<TxnResponse, Error>> + Send;
    /// Compacts; with `physical` the future ends when the rows are gone.
    fn compact(
        &self,
        caller: &Caller,
        r: CompactionRequest,
    ) -> impl Future<Output = Result<CompactionResponse, Error>> + Send;

    /// Grants a lease; ID 0 lets the server choose.
    fn lease_grant(
        &self,
        caller: &Caller,
        r: LeaseGrantRequest,
    ) -> impl Future<Output = Result<LeaseGrantResponse, Error>> + Send;
    /// Revokes a lease with its keys.
    fn lease_revoke(
        &self,
        caller: &Caller,
        r: LeaseRevokeRequest,
    ) -> impl Future<Output = Result<LeaseRevokeResponse, Error>> + Send;
    /// Renews a lease and returns its TTL in seconds; `LeaseNotFound` when there is none.
    fn lease_keep_alive(
        &self,
        caller: &Caller,
        id: i64,
    ) -> impl Future<Output = Result<i64, Error>> + Send;
    /// What is left of a lease; TTL -1 when there is none.
    fn lease_time_to_live(
        &self,
        caller: &Caller,
        r: LeaseTimeToLiveRequest,
    ) -> impl Future<Output = Result<LeaseTimeToLiveResponse, Error>> + Send;
    /// All leases, soonest expiry first.
    fn lease_leases(
        &self,
        caller: &Caller,
    ) -> impl Future<Output = Result<LeaseLeasesResponse, Error>> + Send;

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
    /// Makes a learner a voter; returns all members. Another member may ask who the caller is.
    fn member_promote(
        &self,
        caller: &Caller,
        id: u64,
    ) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;
    /// All members, from local state unless `linearizable`, for whoever is a user.
    fn member_list(
        &self,
        caller: &Caller,
        linearizable: bool,
    ) -> impl Future<Output = Result<Vec<Member>, Error>> + Send;

    /// Lists, raises or clears alarms.
    fn alarm(
        &self,
        caller: &Caller,
        r: AlarmRequest,
    ) -> impl Future<Output = Result<AlarmResponse, Error>> + Send;
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
    /// Looks at, begins or calls off the job of going to the release before; returns the cluster's
    /// version, as "3.7".
    fn downgrade(&self, r: DowngradeRequest) -> impl Future<Output = Result<String, Error>> + Send;
    /// Hands leadership to `target`; `NotLeader` on any other member.
    fn move_leader(&self, target: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Opens a watch stream; dropping the handle closes it.
    fn watch(&self) -> Self::Watch;
}

/// One watch stream. Responses need no cluster ID, member ID or term in their headers.
pub trait WatchHandle: Send + 'static {
    /// Asks for a watcher; the answer, also a refusal, comes through [`WatchHandle::next`].
    fn create(&mut self, r: WatchCreateRequest);
    /// Answers that a watcher may not be, and why.
    fn refuse(&mut self, reason: &str);
    /// Ends a watcher; an unknown ID is ignored.
    fn cancel(&mut self, watch_id: i64);
    /// Asks for a progress response once every watcher of the stream is synced.
    fn progress(&mut self);
    /// The next responses, at least one; `None` when the server ends the stream. Cancel-safe: a
    /// future that is dropped loses no response.
    fn next(&mut self) -> impl Future<Output = Option<Vec<framed::WatchResponse>>> + Send;
}
