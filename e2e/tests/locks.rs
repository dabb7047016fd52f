//! Locks and elections that the server takes for its clients, beside real etcd: one story told by both,
//! and every key, header, error and revision must be the same.

#![allow(clippy::unwrap_used)]

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use bytes::Bytes;
use e2e::{Kind, Server, process};
use proto::{
    authpb::Permission,
    etcdserverpb::{
        AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
        AuthUserGrantRoleRequest, AuthenticateRequest, CompactionRequest, LeaseGrantRequest,
        LeaseRevokeRequest, LeaseTimeToLiveRequest, RangeRequest, ResponseHeader,
        auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient,
    },
    mvccpb::KeyValue,
    v3electionpb::{
        CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
        election_client::ElectionClient,
    },
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, transport::Channel};

/// How long an answer may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lease IDs that the story chooses.
const LEASES: [i64; 4] = [0x11, 0x12, 0x13, 0x14];

/// One server with its clients, and what it has told.
struct Side {
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    auth: AuthClient<Channel>,
    token: Option<String>,
    told: Vec<String>,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Side {
    async fn start(kind: Kind, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = ["--unsafe-no-fsync=true", "--bcrypt-cost=4"];
        let server = Server::start(kind, folder.path(), &[&flags[..], more].concat());
        let channel = connect(&server).await;
        Self {
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel.clone()),
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            auth: AuthClient::new(channel),
            token: None,
            told: Vec::new(),
            server,
            _folder: folder,
        }
    }

    /// Notes an answer without what differs from run to run.
    fn tell<T: Debug>(&mut self, what: &str, answer: &Result<T, Status>) {
        let text = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.told.push(format!("{what}: {text}"));
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let token = token.parse().unwrap();
            request.metadata_mut().insert("token", token);
        }
        request
    }

    async fn grant(&mut self, id: i64) {
        let request = self.request(LeaseGrantRequest { ttl: 600, id });
        self.lease.lease_grant(request).await.unwrap();
    }

    async fn revoke(&mut self, id: i64) {
        let request = self.request(LeaseRevokeRequest { id });
        self.lease.lease_revoke(request).await.unwrap();
    }

    /// All keys that begin with a prefix.
    async fn keys(&mut self, prefix: &str) -> Vec<KeyValue> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let request = self.request(RangeRequest {
            key: prefix.to_owned().into(),
            range_end: end.into(),
            ..RangeRequest::default()
        });
        self.kv.range(request).await.unwrap().into_inner().kvs
    }

    /// Waits until so many keys begin with a prefix.
    async fn wait_keys(&mut self, prefix: &str, count: usize) {
        let began = Instant::now();
        loop {
            let keys = self.keys(prefix).await;
            if keys.len() == count {
                return;
            }
            assert!(began.elapsed() < LIMIT, "{prefix}: {keys:?}, not {count}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn lock(&mut self, name: &'static str, lease: i64) {
        let request = self.request(lock_request(name, lease));
        let locked = answer(self.lock.lock(request)).await;
        let locked = locked.map(|r| (seen(r.header), r.key));
        self.tell(&format!("lock {name} with {lease:x}"), &locked);
    }

    async fn unlock(&mut self, key: &'static str) {
        let key = Bytes::from_static(key.as_bytes());
        let request = self.request(UnlockRequest { key: key.clone() });
        let unlocked = answer(self.lock.unlock(request)).await;
        self.tell(
            &format!("unlock {key:?}"),
            &unlocked.map(|r| seen(r.header)),
        );
    }

    async fn campaign(&mut self, name: &'static str, lease: i64, value: Bytes) -> LeaderKey {
        let request = self.request(campaign_request(name, lease, value.clone()));
        let elected = answer(self.election.campaign(request)).await;
        let leader = elected.as_ref().ok().and_then(|r| r.leader.clone());
        let shown = value.slice(..value.len().min(10));
        let elected = elected.map(|r| (seen(r.header), r.leader));
        self.tell(
            &format!("campaign {name} with {lease:x} {shown:?}"),
            &elected,
        );
        leader.unwrap_or_default()
    }

    async fn proclaim(&mut self, leader: Option<LeaderKey>, value: &'static str) {
        let request = self.request(ProclaimRequest {
            leader: leader.clone(),
            value: value.into(),
        });
        let done = answer(self.election.proclaim(request)).await;
        let done = done.map(|r| seen(r.header));
        self.tell(&format!("proclaim {value} as {leader:?}"), &done);
    }

    async fn resign(&mut self, leader: Option<LeaderKey>) {
        let request = self.request(ResignRequest {
            leader: leader.clone(),
        });
        let done = answer(self.election.resign(request)).await;
        let done = done.map(|r| seen(r.header));
        self.tell(&format!("resign as {leader:?}"), &done);
    }

    async fn leader(&mut self, name: &'static str) {
        let request = self.request(LeaderRequest { name: name.into() });
        let leader = answer(self.election.leader(request)).await;
        let leader = leader.map(|r| (seen(r.header), r.kv));
        self.tell(&format!("leader of {name}"), &leader);
    }

    /// The next leader that an observer is told of.
    async fn observed(&mut self, observer: &mut Observer) {
        let next = tokio::time::timeout(LIMIT, observer.recv()).await;
        let next = next.expect("no leader in time").expect("it goes on");
        let next = next.map(|next| (seen(next.header), next.kv));
        self.tell("observed", &next);
    }

    /// etcd answers an observer not at all until somebody leads, so it waits aside.
    fn observe(&mut self, name: &'static str) -> Observer {
        let request = self.request(LeaderRequest { name: name.into() });
        let mut client = self.election.clone();
        let (sender, observer) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut stream = match client.observe(request).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return drop(sender.send(Err(status)).await),
            };
            while let Some(next) = stream.message().await.transpose() {
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        });
        observer
    }
}

/// What an observer is told.
type Observer = mpsc::Receiver<Result<LeaderResponse, Status>>;

async fn connect(server: &Server) -> Channel {
    let channel = Channel::from_shared(server.url().to_owned()).unwrap();
    channel.connect().await.unwrap()
}

/// What is the same in two runs of a header.
fn seen(header: Option<ResponseHeader>) -> (u64, u64, i64) {
    let header = header.expect("every answer has a header");
    assert!(header.raft_term > 0, "{header:?}");
    (header.cluster_id, header.member_id, header.revision)
}

async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(LIMIT, call).await;
    answer.expect("no answer in time").map(Response::into_inner)
}

fn lock_request(name: &'static str, lease: i64) -> LockRequest {
    let name = name.into();
    LockRequest { name, lease }
}

fn campaign_request(name: &'static str, lease: i64, value: Bytes) -> CampaignRequest {
    let name = name.into();
    CampaignRequest { name, lease, value }
}

/// What waits for an answer; dropping it is a client that goes away.
struct Waiting<T>(tokio::task::JoinHandle<Result<Response<T>, Status>>);

impl<T: Send + 'static> Waiting<T> {
    fn new(call: impl Future<Output = Result<Response<T>, Status>> + Send + 'static) -> Self {
        Self(tokio::spawn(call))
    }

    async fn answered(mut self) -> Result<T, Status> {
        let ended = tokio::time::timeout(LIMIT, &mut self.0).await;
        let ended = ended.expect("no answer in time").unwrap();
        ended.map(Response::into_inner)
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Side {
    /// A lock that has to wait behind `ahead` others.
    async fn waiting_lock(
        &mut self,
        name: &'static str,
        lease: i64,
        ahead: usize,
    ) -> Waiting<proto::v3lockpb::LockResponse> {
        let mut client = self.lock.clone();
        let request = self.request(lock_request(name, lease));
        let waiting = Waiting::new(async move { client.lock(request).await });
        self.wait_keys(&format!("{name}/"), ahead + 1).await;
        waiting
    }

    async fn locked_at_last(
        &mut self,
        what: &str,
        waiting: Waiting<proto::v3lockpb::LockResponse>,
    ) {
        let locked = waiting.answered().await;
        self.tell(what, &locked.map(|r| (seen(r.header), r.key)));
    }

    async fn waiting_campaign(
        &mut self,
        name: &'static str,
        lease: i64,
        ahead: usize,
    ) -> Waiting<proto::v3electionpb::CampaignResponse> {
        let mut client = self.election.clone();
        let request = self.request(campaign_request(name, lease, Bytes::from_static(b"later")));
        let waiting = Waiting::new(async move { client.campaign(request).await });
        self.wait_keys(&format!("{name}/"), ahead + 1).await;
        waiting
    }

    async fn elected_at_last(
        &mut self,
        what: &str,
        waiting: Waiting<proto::v3electionpb::CampaignResponse>,
    ) -> LeaderKey {
        let elected = waiting.answered().await;
        let leader = elected.as_ref().ok().and_then(|r| r.leader.clone());
        self.tell(what, &elected.map(|r| (seen(r.header), r.leader)));
        leader.unwrap_or_default()
    }
}

/// Tells a story to both, and compares what they said.
async fn compare(more: &[&str], story: impl AsyncFn(&mut Side)) {
    let mut told = Vec::new();
    for kind in [Kind::Etcd, Kind::Cairn] {
        let mut side = Side::start(kind, more).await;
        story(&mut side).await;
        told.push(std::mem::take(&mut side.told));
    }
    let (etcd, cairn) = (&told[0], &told[1]);
    assert!(!etcd.is_empty());
    for (etcd, cairn) in etcd.iter().zip(cairn) {
        assert_eq!(cairn, etcd, "{told:#?}");
    }
    assert_eq!(etcd.len(), cairn.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_taken_and_given_back_in_turn() {
    compare(&[], async |side| {
        for lease in LEASES {
            side.grant(lease).await;
        }
        side.lock("n", 0x99).await;
        side.lock("n", -1).await;
        side.lock("n", LEASES[0]).await;
        // It has the lock.
        side.lock("n", LEASES[0]).await;
        side.lock("", LEASES[0]).await;
        side.lock("n/n", LEASES[0]).await;
        let second = side.waiting_lock("n", LEASES[1], 2).await;
        let third = side.waiting_lock("n", LEASES[2], 3).await;
        side.unlock("n/n/11").await;
        side.unlock("n/11").await;
        side.locked_at_last("second", second).await;
        // The owner's lease ends.
        side.revoke(LEASES[1]).await;
        side.locked_at_last("third", third).await;
        // The waiter's lease ends, and then its turn comes.
        side.grant(LEASES[1]).await;
        let fourth = side.waiting_lock("n", LEASES[1], 1).await;
        side.revoke(LEASES[1]).await;
        side.unlock("n/13").await;
        side.locked_at_last("fourth", fourth).await;
        // What nobody has can be given back; what has no key cannot.
        side.unlock("n/13").await;
        side.unlock("nothing").await;
        side.unlock("").await;
        let keys = side.keys("n/").await;
        side.tell("keys", &Ok(keys));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_loses_its_turn() {
    compare(&[], async |side| {
        for lease in LEASES {
            side.grant(lease).await;
        }
        side.lock("n", LEASES[0]).await;
        let gone = side.waiting_lock("n", LEASES[1], 1).await;
        let stays = side.waiting_lock("n", LEASES[2], 2).await;
        drop(gone);
        side.wait_keys("n/", 2).await;
        side.unlock("n/11").await;
        side.locked_at_last("who stayed", stays).await;
        side.campaign("e", LEASES[0], "v".into()).await;
        let gone = side.waiting_campaign("e", LEASES[1], 1).await;
        drop(gone);
        side.wait_keys("e/", 1).await;
        side.leader("e").await;
        // A lock that is had stays when the client goes: its lease keeps it.
        let keys = side.keys("n/").await;
        side.tell("keys", &Ok(keys));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_are_elected_in_turn() {
    compare(&[], async |side| {
        for lease in LEASES {
            side.grant(lease).await;
        }
        side.leader("e").await;
        side.proclaim(None, "v").await;
        side.resign(None).await;
        side.campaign("e", 0x99, "v".into()).await;
        let leader = side.campaign("e", LEASES[0], "v".into()).await;
        side.campaign("e", LEASES[0], "v".into()).await;
        side.campaign("e", LEASES[0], "other".into()).await;
        side.leader("e").await;
        side.proclaim(Some(leader.clone()), "third").await;
        let wrong = LeaderKey {
            rev: leader.rev + 1,
            ..leader.clone()
        };
        side.proclaim(Some(wrong.clone()), "fourth").await;
        side.resign(Some(wrong)).await;
        let unknown = LeaderKey {
            lease: 0x99,
            ..leader.clone()
        };
        side.proclaim(Some(unknown), "fifth").await;
        side.proclaim(Some(LeaderKey::default()), "sixth").await;
        side.resign(Some(LeaderKey::default())).await;
        side.leader("e").await;
        let second = side.waiting_campaign("e", LEASES[1], 1).await;
        let third = side.waiting_campaign("e", LEASES[2], 2).await;
        side.resign(Some(leader.clone())).await;
        let leader = side.elected_at_last("second", second).await;
        side.leader("e").await;
        side.revoke(LEASES[1]).await;
        side.proclaim(Some(leader), "too late").await;
        side.elected_at_last("third", third).await;
        // Nobody looks whether the lease of who waited has ended.
        let fourth = side.waiting_campaign("e", LEASES[3], 1).await;
        side.revoke(LEASES[3]).await;
        side.revoke(LEASES[2]).await;
        side.elected_at_last("fourth", fourth).await;
        side.leader("e").await;
        side.campaign("big", LEASES[0], vec![0; 1 << 21].into())
            .await;
        side.campaign("big", LEASES[0], vec![0; 1_800_000].into())
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_see_every_leader_and_value() {
    compare(&[], async |side| {
        for lease in LEASES {
            side.grant(lease).await;
        }
        let mut early = side.observe("e");
        let leader = side.campaign("e", LEASES[0], "v".into()).await;
        side.observed(&mut early).await;
        let mut late = side.observe("e");
        side.observed(&mut late).await;
        side.proclaim(Some(leader.clone()), "second").await;
        side.observed(&mut early).await;
        side.observed(&mut late).await;
        let next = side.waiting_campaign("e", LEASES[1], 1).await;
        side.resign(Some(leader)).await;
        let next = side.elected_at_last("next", next).await;
        side.observed(&mut early).await;
        side.observed(&mut late).await;
        side.resign(Some(next)).await;
        // Nobody leads for a while.
        side.campaign("e", LEASES[2], "third".into()).await;
        side.observed(&mut early).await;
        side.observed(&mut late).await;
        side.campaign("e", LEASES[2], "fourth".into()).await;
        side.observed(&mut early).await;
        let compacted = side.request(CompactionRequest {
            revision: 5,
            physical: true,
        });
        side.kv.compact(compacted).await.unwrap();
        side.observed(&mut late).await;
        side.leader("e").await;
    })
    .await;
}

/// IDs are each server's own, so what holds of them is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_lease_gets_one_for_a_minute() {
    for kind in [Kind::Etcd, Kind::Cairn] {
        let mut side = Side::start(kind, &[]).await;
        let locked = answer(side.lock.lock(lock_request("n", 0))).await.unwrap();
        let key = std::str::from_utf8(&locked.key).unwrap();
        let id = i64::from_str_radix(key.strip_prefix("n/").unwrap(), 16).unwrap();
        let campaign = campaign_request("e", 0, "v".into());
        let elected = answer(side.election.campaign(campaign)).await.unwrap();
        let leader = elected.leader.unwrap();
        assert_eq!(leader.key, format!("e/{:x}", leader.lease), "{kind:?}");
        assert_ne!(leader.lease, id);
        for id in [id, leader.lease] {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let lease = answer(side.lease.lease_time_to_live(request))
                .await
                .unwrap();
            assert_eq!(lease.granted_ttl, 60, "{kind:?}");
            assert_eq!(lease.keys.len(), 1, "{kind:?}");
        }
        // A proclamation without a lease makes one, which the key then has.
        let anonymous = LeaderKey {
            lease: 0,
            ..leader.clone()
        };
        side.proclaim(Some(anonymous), "w").await;
        let keys = side.keys("e/").await;
        assert_eq!(keys[0].value, "w", "{kind:?}");
        assert!(![0, leader.lease].contains(&keys[0].lease), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_transactions_hold_for_locks_too() {
    compare(&["--max-txn-ops=1"], async |side| {
        side.grant(LEASES[0]).await;
        side.lock("n", LEASES[0]).await;
        side.campaign("e", LEASES[0], "v".into()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_taken_with_the_rights_of_who_asks() {
    compare(&[], async |side| {
        for lease in LEASES {
            side.grant(lease).await;
        }
        enable_auth(side).await;
        side.lock("n", LEASES[0]).await;
        side.campaign("n", LEASES[0], "v".into()).await;
        side.leader("n").await;
        side.token = Some("nobody.1".to_owned());
        side.lock("n", LEASES[0]).await;
        side.leader("n").await;
        side.token = Some(token(side, "ann").await);
        side.lock("n", LEASES[0]).await;
        side.lock("other", LEASES[1]).await;
        side.campaign("other", LEASES[1], "v".into()).await;
        side.leader("other").await;
        side.unlock("other/11").await;
        let second = side.waiting_lock("n", LEASES[1], 1).await;
        side.unlock("n/11").await;
        side.locked_at_last("second", second).await;
        side.unlock("n/12").await;
        let leader = side.campaign("n", LEASES[2], "v".into()).await;
        let mut observer = side.observe("n");
        side.observed(&mut observer).await;
        side.proclaim(Some(leader.clone()), "w").await;
        side.observed(&mut observer).await;
        side.token = None;
        side.resign(Some(leader)).await;
    })
    .await;
}

/// root, and ann who may do everything below `n/`.
async fn enable_auth(side: &mut Side) {
    let auth = &mut side.auth;
    for role in ["root", "r"] {
        let name = role.to_owned();
        auth.role_add(AuthRoleAddRequest { name }).await.unwrap();
    }
    let permission = AuthRoleGrantPermissionRequest {
        name: "r".to_owned(),
        perm: Some(Permission {
            perm_type: proto::authpb::permission::Type::Readwrite as i32,
            key: "n/".into(),
            range_end: "n0".into(),
        }),
    };
    auth.role_grant_permission(permission).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "r")] {
        let added = AuthUserAddRequest {
            name: user.to_owned(),
            password: "p".to_owned(),
            ..AuthUserAddRequest::default()
        };
        auth.user_add(added).await.unwrap();
        let granted = AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        auth.user_grant_role(granted).await.unwrap();
    }
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn token(side: &mut Side, user: &str) -> String {
    let request = AuthenticateRequest {
        name: user.to_owned(),
        password: "p".to_owned(),
    };
    let answer = side.auth.authenticate(request).await.unwrap();
    answer.into_inner().token
}

/// etcd's metrics know of these services only when they are used.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_was_used() {
    let mut found = Vec::new();
    for kind in [Kind::Etcd, Kind::Cairn] {
        let mut side = Side::start(kind, &[]).await;
        let port = side.server.url().rsplit(':').next().unwrap();
        let port: u16 = port.parse().unwrap();
        let lines = || {
            let (_, text) = process::page(port, "/metrics").unwrap();
            let ours = |line: &&str| {
                let of_calls = ["grpc_server_started_total", "grpc_server_handled_total"];
                let service = line.contains("v3lockpb") || line.contains("v3electionpb");
                service && of_calls.iter().any(|name| line.starts_with(name))
            };
            let mut lines: Vec<_> = text.lines().filter(ours).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(), Vec::<String>::new(), "{kind:?}");
        side.grant(LEASES[0]).await;
        side.lock("n", LEASES[0]).await;
        side.lock("n", 0x99).await;
        side.leader("e").await;
        found.push(lines());
    }
    assert_eq!(found[1], found[0]);
}
