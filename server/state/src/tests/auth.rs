//! Users and roles: what their requests do and answer, and what others may do then.

use proto::{
    authpb::{Permission, Role, User, UserAddOptions, permission::Type},
    etcdserverpb::{
        AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
        AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, Compare, DeleteRangeRequest,
        InternalAuthenticateRequest, RequestOp, request_op::Request,
    },
};

use super::*;
use crate::{AuthReply, auth::ROOT};

type Inner = InternalRaftRequest;

/// A machine, and the entries that it gets one by one.
struct World {
    machine: Machine<MemEngine>,
    engine: Arc<MemEngine>,
    log: Log,
}

impl World {
    fn new() -> Self {
        let engine = Arc::new(MemEngine::default());
        Self {
            machine: open(&engine),
            engine,
            log: Log::default(),
        }
    }

    /// Applies a request that `user` sent when the auth store was at `revision`.
    fn at(&mut self, user: &str, revision: u64, request: Inner) -> Result<Reply, Error> {
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: self.log.entries.len() as u64 + 1,
                username: user.to_owned(),
                auth_revision: revision,
            }),
            ..request
        };
        let index = self
            .log
            .add(EntryType::EntryNormal, request.encode_to_vec());
        run(&mut self.machine, &self.log).remove(&index).unwrap()
    }

    fn by(&mut self, user: &str, request: Inner) -> Result<Reply, Error> {
        let revision = match user {
            "" => 0,
            _ => self.revision(),
        };
        self.at(user, revision, request)
    }

    fn revision(&self) -> u64 {
        self.machine.published().auth.revision()
    }

    fn row(&self, family: Family, key: &str) -> Option<Bytes> {
        self.engine.get(family, key.as_bytes()).unwrap()
    }

    /// Auth is on: root, and ann, who may write `[a, c)` and read `[b, d)`.
    fn enabled() -> Self {
        let mut world = Self::new();
        for request in [
            user_add("root", "cm9vdA=="),
            grant_role("root", "root"),
            user_add("ann", "YW5u"),
            role_add("r"),
            grant_role("ann", "r"),
            grant("r", Type::Write, "a", "b"),
            grant("r", Type::Readwrite, "b", "c"),
            grant("r", Type::Read, "c", "d"),
            Inner {
                auth_enable: Some(Default::default()),
                ..Inner::default()
            },
        ] {
            world.by("", request).unwrap();
        }
        world
    }
}

fn user_add(name: &str, hashed_password: &str) -> Inner {
    Inner {
        auth_user_add: Some(AuthUserAddRequest {
            name: name.to_owned(),
            hashed_password: hashed_password.to_owned(),
            ..Default::default()
        }),
        ..Inner::default()
    }
}

fn grant_role(user: &str, role: &str) -> Inner {
    Inner {
        auth_user_grant_role: Some(AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        }),
        ..Inner::default()
    }
}

fn revoke_role(name: &str, role: &str) -> Inner {
    Inner {
        auth_user_revoke_role: Some(AuthUserRevokeRoleRequest {
            name: name.to_owned(),
            role: role.to_owned(),
        }),
        ..Inner::default()
    }
}

fn user_delete(name: &str) -> Inner {
    Inner {
        auth_user_delete: Some(AuthUserDeleteRequest {
            name: name.to_owned(),
        }),
        ..Inner::default()
    }
}

fn user_get(name: &str) -> Inner {
    Inner {
        auth_user_get: Some(AuthUserGetRequest {
            name: name.to_owned(),
        }),
        ..Inner::default()
    }
}

fn role_add(name: &str) -> Inner {
    Inner {
        auth_role_add: Some(AuthRoleAddRequest {
            name: name.to_owned(),
        }),
        ..Inner::default()
    }
}

fn role_get(role: &str) -> Inner {
    Inner {
        auth_role_get: Some(AuthRoleGetRequest {
            role: role.to_owned(),
        }),
        ..Inner::default()
    }
}

fn role_delete(role: &str) -> Inner {
    Inner {
        auth_role_delete: Some(AuthRoleDeleteRequest {
            role: role.to_owned(),
        }),
        ..Inner::default()
    }
}

fn permission(kind: Type, key: &str, range_end: &str) -> Permission {
    Permission {
        perm_type: kind as i32,
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
    }
}

fn grant(role: &str, kind: Type, key: &str, range_end: &str) -> Inner {
    Inner {
        auth_role_grant_permission: Some(AuthRoleGrantPermissionRequest {
            name: role.to_owned(),
            perm: Some(permission(kind, key, range_end)),
        }),
        ..Inner::default()
    }
}

fn revoke(role: &str, key: &'static str, range_end: &'static str) -> Inner {
    Inner {
        auth_role_revoke_permission: Some(AuthRoleRevokePermissionRequest {
            role: role.to_owned(),
            key: key.into(),
            range_end: range_end.into(),
        }),
        ..Inner::default()
    }
}

fn password(name: &str, hashed_password: &str) -> Inner {
    Inner {
        auth_user_change_password: Some(AuthUserChangePasswordRequest {
            name: name.to_owned(),
            hashed_password: hashed_password.to_owned(),
            ..Default::default()
        }),
        ..Inner::default()
    }
}

fn authenticate(name: &str) -> Inner {
    Inner {
        authenticate: Some(InternalAuthenticateRequest {
            name: name.to_owned(),
            simple_token: "abc".to_owned(),
            ..Default::default()
        }),
        ..Inner::default()
    }
}

fn enable() -> Inner {
    Inner {
        auth_enable: Some(Default::default()),
        ..Inner::default()
    }
}

fn disable() -> Inner {
    Inner {
        auth_disable: Some(Default::default()),
        ..Inner::default()
    }
}

fn put_request(key: &'static str, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.into(),
        lease,
        prev_kv,
        ..PutRequest::default()
    }
}

fn put(key: &'static str) -> Inner {
    Inner {
        put: Some(put_request(key, 0, false)),
        ..Inner::default()
    }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    }
}

fn txn(ops: Vec<Request>, compare: Option<&'static str>) -> TxnRequest {
    let op = |request| RequestOp {
        request: Some(request),
    };
    TxnRequest {
        compare: Vec::from_iter(compare.map(|key| Compare {
            key: key.into(),
            ..Compare::default()
        })),
        success: ops.into_iter().map(op).collect(),
        failure: Vec::new(),
    }
}

fn of_txn(txn: TxnRequest) -> Inner {
    Inner {
        txn: Some(txn),
        ..Inner::default()
    }
}

#[test]
fn users_and_roles_follow_etcds_rules() {
    let mut world = World::new();
    let mut check = |request: Inner, refusal: Option<Error>, revision: u64| {
        let text = format!("{request:?}");
        assert_eq!(world.by("", request).err(), refusal, "{text}");
        assert_eq!(world.revision(), revision, "{text}");
    };
    check(enable(), Some(Error::RootUserNotExist), 1);
    check(disable(), None, 1);
    check(user_add("", ""), Some(Error::UserEmpty), 1);
    check(user_add("root", "*"), Some(Error::NoPasswordUser), 1);
    check(user_add("root", "cm9v\ndA=="), None, 2);
    check(
        user_add("root", "cm9vdA=="),
        Some(Error::UserAlreadyExist),
        2,
    );
    check(enable(), Some(Error::RootRoleNotExist), 2);
    check(grant_role("bob", "r"), Some(Error::UserNotFound), 2);
    check(grant_role("root", "r"), Some(Error::RoleNotFound), 2);
    check(role_add(""), Some(Error::RoleEmpty), 2);
    check(role_add("r"), None, 3);
    check(role_add("r"), Some(Error::RoleAlreadyExist), 3);
    check(grant_role("root", "r"), None, 4);
    check(grant_role("root", "r"), None, 4);
    check(grant_role("root", "root"), None, 5);
    check(revoke_role("root", "x"), Some(Error::RoleNotGranted), 5);
    check(revoke_role("bob", "x"), Some(Error::UserNotFound), 5);
    check(
        grant("x", Type::Read, "a", ""),
        Some(Error::RoleNotFound),
        5,
    );
    check(
        grant("x", Type::Read, "a", "a"),
        Some(Error::InvalidAuthMgmt),
        5,
    );
    let mut none = grant("r", Type::Read, "a", "");
    none.auth_role_grant_permission.as_mut().unwrap().perm = None;
    check(none, Some(Error::PermissionNotGiven), 5);
    check(grant("r", Type::Read, "b", ""), None, 6);
    check(grant("r", Type::Read, "a", "\0"), None, 7);
    check(grant("r", Type::Write, "b", ""), None, 8);
    check(revoke("r", "b", "c"), Some(Error::PermissionNotGranted), 8);
    check(revoke("x", "b", "c"), Some(Error::RoleNotFound), 8);
    check(revoke("r", "a", "\0"), None, 9);
    check(role_delete("x"), Some(Error::RoleNotFound), 9);
    check(user_get("bob"), Some(Error::UserNotFound), 9);
    check(role_get("root"), Some(Error::RoleNotFound), 9);
    check(password("bob", ""), Some(Error::UserNotFound), 9);
    check(password("root", ""), None, 10);
    check(user_delete("bob"), Some(Error::UserNotFound), 10);
    check(authenticate("root"), Some(Error::AuthNotEnabled), 10);
    check(enable(), None, 10);
    check(enable(), Some(Error::UserEmpty), 10);
    let root = |world: &mut World, request: Inner| world.by(ROOT, request).err();
    for request in [
        user_delete("root"),
        role_delete("root"),
        revoke_role("root", "root"),
    ] {
        assert_eq!(root(&mut world, request), Some(Error::InvalidAuthMgmt));
    }
    assert_eq!(root(&mut world, enable()), None);
    assert_eq!(root(&mut world, role_delete("r")), None);
    assert_eq!(world.revision(), 11);
    assert_eq!(root(&mut world, disable()), None);
    assert_eq!(world.revision(), 12);
    assert_eq!(root(&mut world, user_delete("root")), None);
    assert_eq!(world.row(Family::AuthUsers, "root"), None);
}

#[test]
fn rows_have_etcds_bytes_and_a_restart_reads_them() {
    let mut world = World::enabled();
    world.by(ROOT, grant_role("ann", "root")).unwrap();
    world.by(ROOT, role_add("empty")).unwrap();
    let mut no_password = user_add("bob", "");
    no_password.auth_user_add.as_mut().unwrap().options =
        Some(UserAddOptions { no_password: true });
    world.by(ROOT, no_password).unwrap();
    let user = User {
        name: "ann".into(),
        password: "ann".into(),
        roles: vec!["r".to_owned(), "root".to_owned()],
        options: Some(UserAddOptions { no_password: false }),
    };
    let row = world.row(Family::AuthUsers, "ann").unwrap();
    assert_eq!(
        &row[..],
        b"\x0a\x03ann\x12\x03ann\x1a\x01r\x1a\x04root\x22\x00"
    );
    assert_eq!(User::decode(row).unwrap(), user);
    let row = world.row(Family::AuthUsers, "bob").unwrap();
    assert_eq!(&row[..], b"\x0a\x03bob\x22\x02\x08\x01");
    let role = Role::decode(world.row(Family::AuthRoles, "r").unwrap()).unwrap();
    assert_eq!(
        role.key_permission,
        [
            permission(Type::Write, "a", "b"),
            permission(Type::Readwrite, "b", "c"),
            permission(Type::Read, "c", "d"),
        ]
    );
    let row = world.row(Family::AuthRoles, "empty").unwrap();
    assert_eq!(&row[..], b"\x0a\x05empty");
    assert_eq!(&world.row(Family::Auth, "authEnabled").unwrap()[..], [1]);
    let revision = world.row(Family::Auth, "authRevision").unwrap();
    assert_eq!(revision[..], world.revision().to_be_bytes());
    let before = world.machine.published();
    let again = open(&world.engine).published();
    assert_eq!(again.auth, before.auth);
    assert!(again.auth.is_enabled());
    world.by(ROOT, disable()).unwrap();
    assert_eq!(&world.row(Family::Auth, "authEnabled").unwrap()[..], [0]);
}

#[test]
fn permission_is_decided_by_the_entry() {
    let mut world = World::enabled();
    world.by(ROOT, put("a")).unwrap();
    let range = |key: &'static str, end: &'static str| Inner {
        range: Some(RangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..RangeRequest::default()
        }),
        ..Inner::default()
    };
    let delete_range = |key, end, prev_kv| Inner {
        delete_range: Some(delete(key, end, prev_kv)),
        ..Inner::default()
    };
    let put_prev = |key| Inner {
        put: Some(put_request(key, 0, true)),
        ..Inner::default()
    };
    let denied = Some(Error::PermissionDenied);
    let mut check = |user: &str, request: Inner, refusal: Option<Error>| {
        let text = format!("{user}: {request:?}");
        assert_eq!(world.by(user, request).err(), refusal, "{text}");
    };
    check("ann", put("a"), None);
    check("ann", put_prev("a"), denied);
    check("ann", put_prev("b"), None);
    check("ann", put("c"), denied);
    check("ann", range("a", ""), denied);
    check("ann", range("b", "d"), None);
    check("ann", range("b", "\0"), denied);
    check("ann", delete_range("a", "c", false), None);
    check("ann", delete_range("a", "c", true), denied);
    check("ann", delete_range("b", "c", true), None);
    check("ann", delete_range("b", "d", false), denied);
    check("", put("a"), Some(Error::UserEmpty));
    check("bob", put("a"), denied);
    check("root", put("z"), None);
    // Transactions, with what is nested in them and in the branch that is not taken.
    let put_op = |key| Request::RequestPut(put_request(key, 0, false));
    let nest = |inner: TxnRequest| txn(vec![Request::RequestTxn(inner)], None);
    check("ann", of_txn(txn(vec![put_op("a")], Some("b"))), None);
    check("ann", of_txn(txn(vec![put_op("a")], Some("a"))), denied);
    check(
        "ann",
        of_txn(nest(nest(txn(vec![put_op("a")], None)))),
        None,
    );
    check(
        "ann",
        of_txn(nest(nest(txn(vec![put_op("c")], None)))),
        denied,
    );
    let failure = TxnRequest {
        failure: txn(vec![put_op("c")], None).success,
        ..TxnRequest::default()
    };
    check("ann", of_txn(failure), denied);
    let prev = Request::RequestDeleteRange(delete("a", "", true));
    check("ann", of_txn(txn(vec![prev], None)), denied);
    // A refused transaction changes nothing.
    let published = world.machine.published();
    let all = RangeRequest {
        key: "c".into(),
        ..RangeRequest::default()
    };
    assert_eq!(published.view.range(&all).unwrap().count, 0);
}

#[test]
fn requests_of_an_older_auth_store_are_refused() {
    let mut world = World::enabled();
    let before = world.revision();
    world.by(ROOT, role_add("later")).unwrap();
    let old = Err(Error::AuthOldRevision);
    assert_eq!(world.at("ann", before, put("a")), old);
    assert_eq!(world.at(ROOT, before, put("a")), old);
    // Root's own requests are not that strict.
    assert!(world.at(ROOT, before, role_add("more")).is_ok());
    assert!(world.by("ann", put("a")).is_ok());
}

#[test]
fn leases_belong_to_who_may_write_all_their_keys() {
    let mut world = World::enabled();
    let lease = |id| Inner {
        lease_grant: Some(LeaseGrantRequest { id, ttl: 60 }),
        ..Inner::default()
    };
    let revoke = |id| Inner {
        lease_revoke: Some(LeaseRevokeRequest { id }),
        ..Inner::default()
    };
    let attach = |key, id| Inner {
        put: Some(put_request(key, id, false)),
        ..Inner::default()
    };
    world.by("ann", lease(7)).unwrap();
    world.by("ann", lease(8)).unwrap();
    world.by("ann", attach("a", 7)).unwrap();
    world.by(ROOT, attach("x", 7)).unwrap();
    let denied = Err(Error::PermissionDenied);
    assert_eq!(world.by("ann", revoke(7)), denied);
    assert_eq!(world.by("ann", attach("b", 7)), denied);
    let in_txn = txn(vec![Request::RequestPut(put_request("b", 7, false))], None);
    assert_eq!(world.by("ann", of_txn(in_txn)), denied);
    assert!(world.by("ann", attach("a", 8)).is_ok());
    assert!(world.by("", revoke(8)) == Err(Error::UserEmpty));
    assert!(world.by("ann", revoke(8)).is_ok());
    assert_eq!(world.by("ann", revoke(9)), Err(Error::LeaseNotFound));
    // Entries of one batch see what those before them attached.
    world.by("ann", lease(9)).unwrap();
    for (user, request) in [(ROOT, attach("x", 9)), ("ann", revoke(9))] {
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: world.log.entries.len() as u64 + 1,
                username: user.to_owned(),
                auth_revision: world.revision(),
            }),
            ..request
        };
        world
            .log
            .add(EntryType::EntryNormal, request.encode_to_vec());
    }
    let last = world.log.entries.len() as u64;
    let replies = run(&mut world.machine, &world.log);
    assert_eq!(replies[&last], denied);
    assert!(world.by(ROOT, revoke(9)).is_ok());
}

#[test]
fn users_see_themselves_and_their_roles() {
    let mut world = World::enabled();
    let roles = |reply| match reply {
        Ok(Reply::Auth(AuthReply::User(user))) => user.roles,
        other => panic!("{other:?}"),
    };
    assert_eq!(roles(world.by("ann", user_get("ann"))), ["r"]);
    let denied = Err(Error::PermissionDenied);
    assert_eq!(world.by("ann", user_get("root")), denied);
    assert_eq!(world.by("ann", role_get("root")), denied);
    let Ok(Reply::Auth(AuthReply::Role(role))) = world.by("ann", role_get("r")) else {
        panic!("no role")
    };
    assert_eq!(role.perm.len(), 3);
    world.by(ROOT, role_add("root")).unwrap();
    let Ok(Reply::Auth(AuthReply::Role(role))) = world.by(ROOT, role_get("root")) else {
        panic!("no role")
    };
    assert_eq!(role.perm, [permission(Type::Readwrite, "", "\0")]);
    let list = Inner {
        auth_user_list: Some(Default::default()),
        ..Inner::default()
    };
    assert_eq!(world.by("ann", list.clone()), denied);
    let Ok(Reply::Auth(AuthReply::Users(users))) = world.by(ROOT, list) else {
        panic!("no users")
    };
    assert_eq!(users.users, ["ann", "root"]);
    let gone = Err(Error::UserNotFound);
    assert_eq!(world.by("bob", role_add("x")), gone);
    let status = Inner {
        auth_status: Some(Default::default()),
        ..Inner::default()
    };
    let Ok(Reply::Auth(AuthReply::Status(status))) = world.by("", status) else {
        panic!("no status")
    };
    assert!(status.enabled);
    assert_eq!(status.auth_revision, world.revision());
}

#[test]
fn tokens_are_given_by_entries_and_end_with_what_they_rest_on() {
    let mut world = World::enabled();
    let token = |reply| match reply {
        Ok(Reply::Auth(AuthReply::Authenticated(response, _))) => response.token,
        other => panic!("{other:?}"),
    };
    let first = token(world.by("", authenticate("ann")));
    assert_eq!(first, format!("abc.{}", world.log.entries.len()));
    let tokens = world.machine.tokens();
    let user = |token: &str| tokens.lock().unwrap().user_of(token, NOW);
    assert_eq!(user(&first).as_deref(), Some("ann"));
    assert_eq!(world.by("", authenticate("bob")), Err(Error::AuthFailed));
    world.by(ROOT, password("ann", "bmV3")).unwrap();
    assert_eq!(user(&first), None);
    let second = token(world.by("", authenticate("ann")));
    let root = token(world.by("", authenticate(ROOT)));
    world.by(ROOT, user_delete("ann")).unwrap();
    assert_eq!(user(&second), None);
    assert_eq!(user(&root).as_deref(), Some(ROOT));
    world.by(ROOT, disable()).unwrap();
    assert_eq!(user(&root), None);
}
