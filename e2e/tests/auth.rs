//! Users and roles beside real etcd: the same requests of several users to both, one by one, and
//! every answer, error and revision must be the same.
//!
//! `CAIRN_AUTH_REQUESTS` sets how many requests each server gets, `CAIRN_SEED` which; a failure
//! prints both.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, fmt::Debug, time::Duration};

use bytes::Bytes;
use e2e::{Kind, Server, setting};
use proto::{
    authpb::{Permission, UserAddOptions},
    etcdserverpb::{
        AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest,
        AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest,
        AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
        AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
        AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest,
        AuthUserRevokeRoleRequest, AuthenticateRequest, CompactionRequest, Compare,
        DefragmentRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
        LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
        MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
        MemberUpdateRequest, MoveLeaderRequest, PutRequest, RangeRequest, RequestOp,
        SnapshotRequest, StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest,
        WatchResponse, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
        request_op::Request as Op, watch_client::WatchClient, watch_request::RequestUnion,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::{Code, Request, Status, transport::Channel};

/// Requests to each server in the gate.
const REQUESTS: usize = 6000;
/// How long an answer may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

/// Names of users. The third one is sometimes a user without a password.
const USERS: [&str; 4] = ["root", "ann", "bob", "cat"];
const ROLES: [&str; 4] = ["root", "r1", "r2", "r3"];
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "\u{7f}"];
const PASSWORDS: [&str; 3] = ["one", "two", ""];

/// One server's clients, and the tokens that its users hold.
struct Side {
    auth: AuthClient<Channel>,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    watch: WatchClient<Channel>,
    tokens: HashMap<usize, String>,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Side {
    async fn start(kind: Kind, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flags = ["--unsafe-no-fsync=true", "--bcrypt-cost=4"];
        let server = Server::start(kind, folder.path(), &[&flags[..], more].concat());
        let channel = Channel::from_shared(server.url().to_owned()).unwrap();
        let channel = channel.timeout(ANSWER).connect().await.unwrap();
        Self {
            auth: AuthClient::new(channel.clone()),
            kv: KvClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            watch: WatchClient::new(channel),
            tokens: HashMap::new(),
            server,
            _folder: folder,
        }
    }

    /// A request as `actor` makes it.
    fn request<T>(&self, actor: Actor, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = match actor {
            Actor::Nobody => return request,
            Actor::Stranger(token) => token,
            Actor::User(user) => match self.tokens.get(&user) {
                Some(token) => token,
                None => return request,
            },
        };
        let (key, token) = match token.len() % 2 {
            0 => ("token", token.to_owned()),
            _ => ("authorization", format!("Bearer {token}")),
        };
        request.metadata_mut().insert(key, token.parse().unwrap());
        request
    }

    /// The first answer of a watch.
    async fn watch(&mut self, actor: Actor, create: &WatchCreateRequest) -> WatchResponse {
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create.clone())),
        };
        let (_keep, open) = tokio::sync::oneshot::channel::<()>();
        let requests = async_stream(request, open);
        let request = self.request(actor, requests);
        let answer = async {
            let mut stream = self.watch.watch(request).await?.into_inner();
            stream.message().await
        };
        let answer = tokio::time::timeout(ANSWER, answer).await;
        answer.expect("no watch response in time").unwrap().unwrap()
    }
}

/// One request, behind which the stream stays open as long as `open`'s other end is there.
fn async_stream<T: Send + 'static>(
    request: T,
    open: tokio::sync::oneshot::Receiver<()>,
) -> impl tokio_stream::Stream<Item = T> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _ = sender.send(request).await;
        let _ = open.await;
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    Nobody,
    /// Has a token that is none.
    Stranger(&'static str),
    User(usize),
}

type Answer<T> = Result<T, (Code, String)>;

fn answer<T>(result: Result<tonic::Response<T>, Status>) -> Answer<T> {
    match result {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

/// Both servers.
struct Pair {
    cairn: Side,
    etcd: Side,
    rng: StdRng,
    revision: i64,
    refused: usize,
    answered: usize,
}

macro_rules! both {
    ($pair:ident, $actor:ident, $client:ident . $call:ident ( $message:expr )) => {{
        let message = $message;
        let to_cairn = $pair.cairn.request($actor, message.clone());
        let to_etcd = $pair.etcd.request($actor, message.clone());
        let (cairn, etcd) = tokio::join!(
            $pair.cairn.$client.$call(to_cairn),
            $pair.etcd.$client.$call(to_etcd)
        );
        let (cairn, etcd) = (answer(cairn), answer(etcd));
        match &etcd {
            Ok(_) => $pair.answered += 1,
            Err(_) => $pair.refused += 1,
        }
        (message, cairn, etcd)
    }};
}

/// Sends a request to both and compares all of both answers.
macro_rules! same {
    ($pair:ident, $actor:ident, $client:ident . $call:ident ( $message:expr )) => {{
        let (message, cairn, etcd) = both!($pair, $actor, $client.$call($message));
        equal($actor, &message, &cairn, &etcd);
    }};
}

fn equal<T: PartialEq + Debug>(
    actor: Actor,
    message: &dyn Debug,
    cairn: &Answer<T>,
    etcd: &Answer<T>,
) {
    assert!(
        cairn == etcd,
        "{actor:?}: {message:?}\n cairn: {cairn:?}\n etcd:  {etcd:?}"
    );
}

impl Pair {
    async fn start(seed: u64) -> Self {
        Self {
            cairn: Side::start(Kind::Cairn, &[]).await,
            etcd: Side::start(Kind::Etcd, &[]).await,
            rng: StdRng::seed_from_u64(seed),
            revision: 1,
            refused: 0,
            answered: 0,
        }
    }

    fn pick(&mut self, of: &'static [&'static str]) -> &'static str {
        of[self.rng.random_range(0..of.len())]
    }

    fn user(&mut self) -> String {
        self.pick(&["root", "ann", "bob", "cat", "ann", "bob", "nobody", ""])
            .to_owned()
    }

    /// Root keeps one that lets it in.
    fn password_of(&mut self, user: &str) -> String {
        match user == USERS[0] {
            true => self.pick(&PASSWORDS[..2]).to_owned(),
            false => self.pick(&PASSWORDS).to_owned(),
        }
    }

    fn role(&mut self) -> String {
        self.pick(&["root", "r1", "r2", "r3", "r1", "r2", "none", ""])
            .to_owned()
    }

    fn key(&mut self) -> Bytes {
        self.pick(&KEYS).into()
    }

    fn end(&mut self) -> Bytes {
        match self.rng.random_range(0..8) {
            0..4 => Bytes::new(),
            4 => Bytes::from_static(b"\0"),
            _ => self.key(),
        }
    }

    fn actor(&mut self) -> Actor {
        match self.rng.random_range(0..20) {
            0 => Actor::Nobody,
            1 => Actor::Stranger(self.pick(&["x.1", "x", "x.y", "a.b.1", "x.-1"])),
            2..8 => Actor::User(0),
            _ => Actor::User(self.rng.random_range(1..USERS.len())),
        }
    }

    fn permission(&mut self) -> Permission {
        Permission {
            perm_type: self.rng.random_range(0..3),
            key: match self.rng.random_range(0..15) {
                0 => Bytes::new(),
                _ => self.key(),
            },
            range_end: self.end(),
        }
    }

    fn put(&mut self) -> PutRequest {
        PutRequest {
            key: self.key(),
            value: "v".into(),
            lease: self.rng.random_range(-8..6).max(0),
            prev_kv: self.rng.random_bool(0.3),
            ..PutRequest::default()
        }
    }

    fn range(&mut self) -> RangeRequest {
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            serializable: self.rng.random(),
            ..RangeRequest::default()
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.end(),
            prev_kv: self.rng.random_bool(0.3),
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let compares = self.rng.random_range(0..2);
        TxnRequest {
            compare: (0..compares)
                .map(|_| Compare {
                    result: self.rng.random_range(0..4),
                    key: self.key(),
                    range_end: self.end(),
                    ..Compare::default()
                })
                .collect(),
            success: self.ops(depth),
            failure: self.ops(depth),
        }
    }

    fn ops(&mut self, depth: u32) -> Vec<RequestOp> {
        let count = self.rng.random_range(0..3);
        let ops = (0..count).map(|_| RequestOp {
            request: Some(match self.rng.random_range(0..8) {
                0..3 => Op::RequestRange(self.range()),
                3..6 => Op::RequestPut(self.put()),
                6 if depth < 3 => Op::RequestTxn(self.txn(depth + 1)),
                _ => Op::RequestDeleteRange(self.delete()),
            }),
        });
        ops.collect()
    }

    /// Users get tokens with passwords that may be wrong.
    async fn authenticate(&mut self) {
        let user = self.rng.random_range(0..USERS.len());
        let actor = Actor::Nobody;
        let message = AuthenticateRequest {
            name: USERS[user].to_owned(),
            password: self.pick(&PASSWORDS).to_owned(),
        };
        let (message, mut cairn, mut etcd) = both!(self, actor, auth.authenticate(message));
        let token = |answer: &mut Answer<proto::etcdserverpb::AuthenticateResponse>| {
            let answer = answer.as_mut().ok()?;
            let token = std::mem::take(&mut answer.token);
            let (letters, _) = token.split_once('.').unwrap();
            assert_eq!(letters.len(), 16, "{token}");
            Some(token)
        };
        let tokens = (token(&mut cairn), token(&mut etcd));
        equal(actor, &message, &cairn, &etcd);
        if let (Some(cairn), Some(etcd)) = tokens {
            self.cairn.tokens.insert(user, cairn);
            self.etcd.tokens.insert(user, etcd);
        }
    }

    async fn change_users(&mut self, actor: Actor) {
        match self.rng.random_range(0..9) {
            0..2 => {
                let name = self.user();
                let message = AuthUserAddRequest {
                    password: self.password_of(&name),
                    options: match self.rng.random_range(0..5) {
                        0 if name != USERS[0] => Some(UserAddOptions { no_password: true }),
                        1 => Some(UserAddOptions { no_password: false }),
                        _ => None,
                    },
                    name,
                    hashed_password: String::new(),
                };
                same!(self, actor, auth.user_add(message));
            }
            2 if self.rng.random_bool(0.4) => {
                let message = AuthUserDeleteRequest { name: self.user() };
                same!(self, actor, auth.user_delete(message));
            }
            2..4 => {
                let name = self.user();
                let message = AuthUserChangePasswordRequest {
                    password: self.password_of(&name),
                    name,
                    hashed_password: self.pick(&["", "", "", "*"]).to_owned(),
                };
                same!(self, actor, auth.user_change_password(message));
            }
            4..6 => {
                let (user, role) = (self.user(), self.role());
                let message = AuthUserGrantRoleRequest { user, role };
                same!(self, actor, auth.user_grant_role(message));
            }
            6 => {
                let (name, role) = (self.user(), self.role());
                let message = AuthUserRevokeRoleRequest { name, role };
                same!(self, actor, auth.user_revoke_role(message));
            }
            7 => {
                let message = AuthUserGetRequest { name: self.user() };
                same!(self, actor, auth.user_get(message));
            }
            _ => same!(self, actor, auth.user_list(AuthUserListRequest {})),
        }
    }

    async fn change_roles(&mut self, actor: Actor) {
        match self.rng.random_range(0..12) {
            0 => same!(
                self,
                actor,
                auth.role_add(AuthRoleAddRequest { name: self.role() })
            ),
            1 if self.rng.random_bool(0.3) => {
                let message = AuthRoleDeleteRequest { role: self.role() };
                same!(self, actor, auth.role_delete(message));
            }
            1..6 => {
                let message = AuthRoleGrantPermissionRequest {
                    name: self.role(),
                    perm: self.rng.random_bool(0.97).then(|| self.permission()),
                };
                same!(self, actor, auth.role_grant_permission(message));
            }
            6..9 => {
                let message = AuthRoleRevokePermissionRequest {
                    role: self.role(),
                    key: self.key(),
                    range_end: self.end(),
                };
                same!(self, actor, auth.role_revoke_permission(message));
            }
            9..11 => {
                let message = AuthRoleGetRequest { role: self.role() };
                same!(self, actor, auth.role_get(message));
            }
            _ => same!(self, actor, auth.role_list(AuthRoleListRequest {})),
        }
    }

    async fn use_keys(&mut self, actor: Actor) {
        match self.rng.random_range(0..14) {
            0..4 => same!(self, actor, kv.put(self.put())),
            4..7 => same!(self, actor, kv.range(self.range())),
            7..9 => same!(self, actor, kv.delete_range(self.delete())),
            9..12 => same!(self, actor, kv.txn(self.txn(0))),
            12 => {
                let revision = self.revision - self.rng.random_range(0..50);
                let physical = true;
                let message = CompactionRequest { revision, physical };
                same!(self, actor, kv.compact(message));
            }
            _ => {
                let message = RangeRequest {
                    key: self.key(),
                    range_end: self.end(),
                    ..RangeRequest::default()
                };
                let (cairn, etcd) = tokio::join!(
                    pieces(&self.cairn, actor, message.clone()),
                    pieces(&self.etcd, actor, message.clone())
                );
                equal(actor, &message, &cairn, &etcd);
            }
        }
    }

    async fn use_leases(&mut self, actor: Actor) {
        let id = self.rng.random_range(1..6);
        match self.rng.random_range(0..8) {
            0..3 => {
                let message = LeaseGrantRequest { id, ttl: 5000 };
                same!(self, actor, lease.lease_grant(message));
            }
            3 => {
                let message = LeaseRevokeRequest { id };
                same!(self, actor, lease.lease_revoke(message));
            }
            4..6 => {
                let keys = self.rng.random();
                let message = LeaseTimeToLiveRequest { id, keys };
                let (message, mut cairn, mut etcd) =
                    both!(self, actor, lease.lease_time_to_live(message));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    answer.keys.sort();
                    answer.ttl = answer.ttl.min(1);
                }
                equal(actor, &message, &cairn, &etcd);
            }
            6 => {
                let message = LeaseLeasesRequest {};
                let (message, mut cairn, mut etcd) =
                    both!(self, actor, lease.lease_leases(message));
                for answer in [&mut cairn, &mut etcd].into_iter().flatten() {
                    answer.leases.sort_by_key(|lease| lease.id);
                }
                equal(actor, &message, &cairn, &etcd);
            }
            _ => {
                let (cairn, etcd) = tokio::join!(
                    renewed(&self.cairn, actor, id),
                    renewed(&self.etcd, actor, id)
                );
                equal(actor, &("keep alive", id), &cairn, &etcd);
            }
        }
    }

    async fn maintain(&mut self, actor: Actor) {
        let id = 99;
        match self.rng.random_range(0..12) {
            0 => same!(self, actor, maintenance.alarm(AlarmRequest::default())),
            1 => {
                let message = AlarmRequest {
                    action: 2,
                    member_id: 77,
                    alarm: 1,
                };
                same!(self, actor, maintenance.alarm(message));
            }
            2 => {
                let (message, cairn, etcd) =
                    both!(self, actor, maintenance.status(StatusRequest {}));
                let told =
                    |answer: Answer<_>| answer.map(|_: proto::etcdserverpb::StatusResponse| ());
                equal(actor, &message, &told(cairn), &told(etcd));
            }
            3 => same!(
                self,
                actor,
                maintenance.hash_kv(HashKvRequest { revision: 0 })
            ),
            4 => same!(self, actor, maintenance.defragment(DefragmentRequest {})),
            5 => {
                let message = MoveLeaderRequest { target_id: id };
                same!(self, actor, maintenance.move_leader(message));
            }
            6 => {
                let linearizable = self.rng.random();
                let message = MemberListRequest { linearizable };
                same!(self, actor, cluster.member_list(message));
            }
            7 => same!(
                self,
                actor,
                cluster.member_remove(MemberRemoveRequest { id })
            ),
            8 => same!(
                self,
                actor,
                cluster.member_promote(MemberPromoteRequest { id })
            ),
            9 => {
                let message = MemberUpdateRequest {
                    id,
                    peer_ur_ls: vec!["http://127.0.0.1:9".to_owned()],
                };
                same!(self, actor, cluster.member_update(message));
            }
            10 => {
                let message = MemberAddRequest {
                    // The URL that the only member has.
                    peer_ur_ls: vec!["http://127.0.0.1:2".to_owned()],
                    is_learner: true,
                };
                same!(self, actor, cluster.member_add(message));
            }
            _ => {
                let (cairn, etcd) =
                    tokio::join!(saved(&self.cairn, actor), saved(&self.etcd, actor));
                equal(actor, &"snapshot", &cairn, &etcd);
            }
        }
    }

    async fn step(&mut self) {
        let actor = self.actor();
        match self.rng.random_range(0..100) {
            0..8 => self.authenticate().await,
            8..20 => self.change_users(actor).await,
            20..38 => self.change_roles(actor).await,
            38..72 => self.use_keys(actor).await,
            72..82 => self.use_leases(actor).await,
            82..88 => self.maintain(actor).await,
            88..94 => {
                let create = WatchCreateRequest {
                    key: match self.rng.random_range(0..10) {
                        0 => Bytes::new(),
                        _ => self.key(),
                    },
                    range_end: self.end(),
                    start_revision: self.rng.random_range(-1..1),
                    ..WatchCreateRequest::default()
                };
                let (cairn, etcd) = tokio::join!(
                    self.cairn.watch(actor, &create),
                    self.etcd.watch(actor, &create)
                );
                equal(actor, &create, &Ok(cairn), &Ok(etcd));
            }
            94..97 => same!(self, actor, auth.auth_status(AuthStatusRequest {})),
            97 if self.rng.random_bool(0.2) => {
                same!(self, actor, auth.auth_disable(AuthDisableRequest {}));
            }
            _ => same!(self, actor, auth.auth_enable(AuthEnableRequest {})),
        }
    }

    /// Makes a start that is worth something: a root with a token, and roles.
    async fn settle(&mut self) {
        let actor = Actor::User(0);
        for name in USERS {
            let message = AuthUserAddRequest {
                name: name.to_owned(),
                password: PASSWORDS[0].to_owned(),
                ..AuthUserAddRequest::default()
            };
            same!(self, actor, auth.user_add(message));
        }
        for (user, role) in USERS.iter().zip(ROLES) {
            let name = role.to_owned();
            same!(self, actor, auth.role_add(AuthRoleAddRequest { name }));
            let message = AuthUserGrantRoleRequest {
                user: (*user).to_owned(),
                role: role.to_owned(),
            };
            same!(self, actor, auth.user_grant_role(message));
        }
        same!(self, actor, auth.auth_enable(AuthEnableRequest {}));
    }

    /// Where the store is; who asks does not matter.
    async fn look(&mut self) {
        let actor = Actor::Nobody;
        let (_, cairn, etcd) = both!(self, actor, auth.auth_status(AuthStatusRequest {}));
        equal(actor, &"status", &cairn, &etcd);
        self.revision = etcd.unwrap().header.unwrap().revision;
    }
}

/// All pieces of a range, put together.
async fn pieces(side: &Side, actor: Actor, message: RangeRequest) -> Answer<(Vec<Bytes>, i64)> {
    let request = side.request(actor, message);
    let read = async {
        let mut stream = side.kv.clone().range_stream(request).await?.into_inner();
        let (mut keys, mut count) = (Vec::new(), 0);
        while let Some(piece) = stream.message().await? {
            let piece = piece.range_response.unwrap_or_default();
            keys.extend(piece.kvs.into_iter().map(|kv| kv.key));
            count = piece.count;
        }
        Ok(tonic::Response::new((keys, count)))
    };
    answer(read.await)
}

/// Whether a snapshot may be had.
async fn saved(side: &Side, actor: Actor) -> Answer<()> {
    let request = side.request(actor, SnapshotRequest {});
    let read = async {
        let stream = side.maintenance.clone().snapshot(request).await?;
        let mut stream = stream.into_inner();
        while stream.message().await?.is_some() {}
        Ok(tonic::Response::new(()))
    };
    answer(read.await)
}

async fn renewed(side: &Side, actor: Actor, id: i64) -> Answer<(i64, i64)> {
    let (_keep, open) = tokio::sync::oneshot::channel::<()>();
    let requests = async_stream(LeaseKeepAliveRequest { id }, open);
    let request = side.request(actor, requests);
    let renew = async {
        let stream = side.lease.clone().lease_keep_alive(request).await?;
        let response = stream.into_inner().message().await?.unwrap_or_default();
        Ok(tonic::Response::new((response.id, response.ttl)))
    };
    let renewed = tokio::time::timeout(ANSWER, renew).await;
    answer(renewed.expect("no renewal in time"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_are_as_in_etcd() {
    let seed = setting("CAIRN_SEED", 1);
    let requests = setting("CAIRN_AUTH_REQUESTS", REQUESTS as u64);
    println!("CAIRN_SEED={seed} CAIRN_AUTH_REQUESTS={requests}");
    let mut pair = Pair::start(seed).await;
    pair.settle().await;
    for done in 0..requests {
        if done % 50 == 0 {
            // Whatever was changed, root gets its rights back.
            pair.look().await;
            pair.revive().await;
        }
        pair.step().await;
    }
    println!("{} answered, {} refused", pair.answered, pair.refused);
    assert!(pair.answered > requests as usize / 5);
    assert!(pair.refused > requests as usize / 10);
    let log = pair.cairn.server.log();
    assert!(pair.cairn.tokens.values().all(|token| !log.contains(token)));
}

impl Pair {
    /// Root's password and rights are brought back, with authentication off if need be.
    async fn revive(&mut self) {
        let actor = Actor::User(0);
        for password in PASSWORDS {
            let message = AuthenticateRequest {
                name: "root".to_owned(),
                password: password.to_owned(),
            };
            let nobody = Actor::Nobody;
            let (_, cairn, etcd) = both!(self, nobody, auth.authenticate(message));
            if let (Ok(cairn), Ok(etcd)) = (cairn, etcd) {
                self.cairn.tokens.insert(0, cairn.token);
                self.etcd.tokens.insert(0, etcd.token);
                break;
            }
        }
        let message = AuthUserAddRequest {
            name: "root".to_owned(),
            password: PASSWORDS[0].to_owned(),
            ..AuthUserAddRequest::default()
        };
        same!(self, actor, auth.user_add(message));
        let message = AuthUserGrantRoleRequest {
            user: "root".to_owned(),
            role: "root".to_owned(),
        };
        same!(self, actor, auth.user_grant_role(message));
        same!(self, actor, auth.auth_enable(AuthEnableRequest {}));
    }
}

/// Makes root, with `r` as a role, and switches authentication on.
async fn enable(side: &mut Side) {
    let add = AuthUserAddRequest {
        name: "root".to_owned(),
        password: "one".to_owned(),
        ..AuthUserAddRequest::default()
    };
    side.auth.user_add(add).await.unwrap();
    let grant = AuthUserGrantRoleRequest {
        user: "root".to_owned(),
        role: "root".to_owned(),
    };
    side.auth.user_grant_role(grant).await.unwrap();
    side.auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn log_in(side: &mut Side) -> Answer<String> {
    let message = AuthenticateRequest {
        name: "root".to_owned(),
        password: "one".to_owned(),
    };
    let token = answer(side.auth.authenticate(message).await);
    token.map(|answer| answer.token)
}

/// A token that nobody uses ends; one that is used lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_when_they_are_not_used() {
    for kind in [Kind::Cairn, Kind::Etcd] {
        let mut side = Side::start(kind, &["--auth-token-ttl=4"]).await;
        enable(&mut side).await;
        for user in 0..2 {
            let token = log_in(&mut side).await.unwrap();
            side.tokens.insert(user, token);
        }
        let range = RangeRequest {
            key: "a".into(),
            ..RangeRequest::default()
        };
        let began = std::time::Instant::now();
        let mut late = false;
        // The first one is used all the time; how late this task runs decides what it may see.
        while began.elapsed() < Duration::from_secs(8) {
            let before = std::time::Instant::now();
            let request = side.request(Actor::User(0), range.clone());
            let used = side.kv.clone().range(request).await;
            late |= before.elapsed() > Duration::from_secs(2);
            assert!(late || used.is_ok(), "{kind:?}: {used:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let request = side.request(Actor::User(1), range.clone());
        let refused = answer(side.kv.clone().range(request).await).unwrap_err();
        let text = "etcdserver: invalid auth token".to_owned();
        assert_eq!(refused, (Code::Unauthenticated, text), "{kind:?}");
        if kind == Kind::Cairn {
            // Of an entry that is not there; an etcd waits for it as long as its caller does.
            let request = side.request(Actor::Stranger("x.18446744073709551615"), range);
            let refused = answer(side.kv.clone().range(request).await).unwrap_err();
            assert_eq!(refused.0, Code::Unauthenticated);
        }
    }
}
