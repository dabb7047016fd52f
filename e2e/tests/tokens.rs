//! Signed tokens (`--auth-token=jwt,…`) beside real etcd: each takes what the other signed, with
//! every method; in one cluster; and with keys that change.

#![allow(clippy::unwrap_used)]

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use e2e::{Etcdctl, Kind, Member, Process, Server, client::channel, etcdctl::ok, replace, tool};
use proto::{
    authpb::{Permission, permission::Type},
    etcdserverpb::{
        AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
        AuthUserGrantRoleRequest, AuthenticateRequest, PutRequest, RangeRequest,
        auth_client::AuthClient, kv_client::KvClient,
    },
};
use rcgen::{KeyPair, SignatureAlgorithm};
use tonic::{Code, Request, Status};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How tokens may be signed; `None` by a secret.
const METHODS: [(&str, Option<&SignatureAlgorithm>); 13] = [
    ("RS256", Some(&rcgen::PKCS_RSA_SHA256)),
    ("RS384", Some(&rcgen::PKCS_RSA_SHA256)),
    ("RS512", Some(&rcgen::PKCS_RSA_SHA256)),
    ("PS256", Some(&rcgen::PKCS_RSA_SHA256)),
    ("PS384", Some(&rcgen::PKCS_RSA_SHA256)),
    ("PS512", Some(&rcgen::PKCS_RSA_SHA256)),
    ("ES256", Some(&rcgen::PKCS_ECDSA_P256_SHA256)),
    ("ES384", Some(&rcgen::PKCS_ECDSA_P384_SHA384)),
    ("ES512", Some(&rcgen::PKCS_ECDSA_P521_SHA512)),
    ("EdDSA", Some(&rcgen::PKCS_ED25519)),
    ("HS256", None),
    ("HS384", None),
    ("HS512", None),
];

/// The files of a key.
struct Keys {
    public: PathBuf,
    private: PathBuf,
}

impl Keys {
    fn new(folder: &Path, algorithm: Option<&'static SignatureAlgorithm>, number: u8) -> Self {
        let keys = Self {
            public: folder.join("token.pub"),
            private: folder.join("token.key"),
        };
        keys.fill(algorithm, number);
        keys
    }

    /// Puts a new key into the files; `number` makes one secret unlike another.
    fn fill(&self, algorithm: Option<&'static SignatureAlgorithm>, number: u8) {
        let Some(algorithm) = algorithm else {
            return replace(&self.private, &[number; 64]);
        };
        let pair = match algorithm == &rcgen::PKCS_RSA_SHA256 {
            true => KeyPair::generate_rsa_for(algorithm, rcgen::RsaKeySize::_2048),
            false => KeyPair::generate_for(algorithm),
        };
        let pair = pair.unwrap();
        replace(&self.public, pair.public_key_pem().as_bytes());
        replace(&self.private, pair.serialize_pem().as_bytes());
    }

    /// The flag that has tokens signed by them.
    fn flag(&self, method: &str) -> String {
        let private = self.private.display();
        match method.starts_with("HS") {
            true => format!("--auth-token=jwt,priv-key={private},sign-method={method},ttl=5m"),
            false => format!(
                "--auth-token=jwt,pub-key={},priv-key={private},sign-method={method},ttl=5m",
                self.public.display()
            ),
        }
    }
}

/// Root, and ann, who may read and write what begins with `a/`.
async fn users(server: &Server) {
    let mut auth = AuthClient::new(channel(server.url()));
    for name in ["root", "ann"] {
        let user = AuthUserAddRequest {
            name: name.to_owned(),
            password: name.to_owned(),
            ..AuthUserAddRequest::default()
        };
        auth.user_add(user).await.unwrap();
    }
    let role = AuthRoleAddRequest {
        name: "r".to_owned(),
    };
    auth.role_add(role).await.unwrap();
    let permission = AuthRoleGrantPermissionRequest {
        name: "r".to_owned(),
        perm: Some(Permission {
            perm_type: Type::Readwrite.into(),
            key: "a/".into(),
            range_end: "a0".into(),
        }),
    };
    auth.role_grant_permission(permission).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "r")] {
        let grant = AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(AuthEnableRequest {}).await.unwrap();
}

async fn login(server: &Server, name: &str, password: &str) -> Result<String, Status> {
    let request = AuthenticateRequest {
        name: name.to_owned(),
        password: password.to_owned(),
    };
    let mut auth = AuthClient::new(channel(server.url()));
    Ok(auth.authenticate(request).await?.into_inner().token)
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("token", token.parse().unwrap());
    request
}

/// Writes and reads a key with a token.
async fn use_it(server: &Server, token: &str, key: &'static str) -> Result<(), Status> {
    let mut kv = KvClient::new(channel(server.url()));
    let put = PutRequest {
        key: key.into(),
        ..PutRequest::default()
    };
    kv.put(with(token, put)).await?;
    let range = RangeRequest {
        key: key.into(),
        ..RangeRequest::default()
    };
    let found = kv.range(with(token, range)).await?;
    assert_eq!(found.into_inner().count, 1);
    Ok(())
}

/// Code and text of an error.
fn told<T: Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}

/// Repeats what a reload or another member's entry will make right.
async fn until<T: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, Status>,
    right: impl Fn(&Result<T, Status>) -> bool,
) -> Result<T, Status> {
    let began = Instant::now();
    loop {
        let answer = look().await;
        if right(&answer) {
            return answer;
        }
        assert!(began.elapsed() < LIMIT, "{what}: {answer:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test]
async fn each_takes_what_the_other_signed() {
    let etcdctl = tool("etcdctl");
    for (method, algorithm) in METHODS {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new(folder.path(), algorithm, 1);
        let flag = keys.flag(method);
        let servers = [Kind::Cairn, Kind::Etcd].map(|kind| {
            let folder = folder.path().join(format!("{kind:?}"));
            std::fs::create_dir(&folder).unwrap();
            let flags = [flag.as_str(), "--bcrypt-cost=4", "--unsafe-no-fsync=true"];
            Server::start(kind, &folder, &flags)
        });
        for server in &servers {
            users(server).await;
        }
        for signs in &servers {
            let token = login(signs, "ann", "ann").await.unwrap();
            assert_eq!(token.split('.').count(), 3, "{method}: {token}");
            for takes in &servers {
                let used = use_it(takes, &token, "a/1").await;
                used.unwrap_or_else(|error| panic!("{method}: {error:?}"));
                let denied = (
                    Code::PermissionDenied,
                    "etcdserver: permission denied".to_owned(),
                );
                assert_eq!(told(use_it(takes, &token, "b").await), denied, "{method}");
            }
            // A letter of the claims is another.
            let mut other = token.into_bytes();
            let claims = other.iter().position(|&c| c == b'.').unwrap() + 20;
            other[claims] ^= 1;
            let other = String::from_utf8(other).unwrap();
            let [cairn, etcd] = [&servers[0], &servers[1]].map(|server| {
                let (other, server) = (other.clone(), server);
                async move { told(use_it(server, &other, "a/1").await) }
            });
            let (cairn, etcd) = (cairn.await, etcd.await);
            assert_eq!(cairn, etcd, "{method}");
            assert_eq!(cairn.0, Code::Unauthenticated);
        }
        // A token is of its revision.
        for server in &servers {
            let token = login(server, "ann", "ann").await.unwrap();
            let root = login(server, "root", "root").await.unwrap();
            let role = AuthRoleAddRequest {
                name: "late".to_owned(),
            };
            let mut auth = AuthClient::new(channel(server.url()));
            auth.role_add(with(&root, role)).await.unwrap();
            let old = (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old".to_owned(),
            );
            assert_eq!(told(use_it(server, &token, "a/1").await), old, "{method}");
            // Go's client asks for a new one by itself.
            let etcdctl = Etcdctl::new(&etcdctl, server.url());
            ok(etcdctl.run(&["put", "a/2", "v", "--user=ann:ann"]));
        }
    }
}

#[tokio::test]
async fn members_of_both_kinds_take_each_others() {
    let folder = tempfile::tempdir().unwrap();
    let algorithm = Some(&rcgen::PKCS_ECDSA_P256_SHA256);
    let keys = Keys::new(folder.path(), algorithm, 1);
    let flags = vec![keys.flag("ES256"), "--bcrypt-cost=4".to_owned()];
    let members = [(Kind::Etcd, "a"), (Kind::Cairn, "b"), (Kind::Cairn, "c")]
        .map(|(kind, name)| Member::new(kind, name).with_flags(flags.clone()));
    let all: Vec<&Member> = members.iter().collect();
    let mut servers: Vec<Server> = all
        .iter()
        .map(|member| member.launch(folder.path(), &all, "new"))
        .collect();
    servers.iter_mut().for_each(Server::wait_ready);
    users(&servers[0]).await;
    for signs in &servers {
        let token = until(
            "log in",
            async || login(signs, "ann", "ann").await,
            Result::is_ok,
        );
        let token = token.await.unwrap();
        for takes in &servers {
            // It may be behind.
            let used = until(
                "use",
                async || use_it(takes, &token, "a/1").await,
                Result::is_ok,
            );
            used.await.unwrap();
        }
    }
}

#[tokio::test]
async fn keys_change_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let algorithm = Some(&rcgen::PKCS_ED25519);
    let keys = Keys::new(folder.path(), algorithm, 1);
    let flags = [&keys.flag("EdDSA"), "--bcrypt-cost=4"];
    let server = Server::start(Kind::Cairn, folder.path(), &flags);
    users(&server).await;
    let old = login(&server, "ann", "ann").await.unwrap();
    use_it(&server, &old, "a/1").await.unwrap();

    // What is no pair is told and not used.
    let private = std::fs::read(&keys.private).unwrap();
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    replace(&keys.private, other.serialize_pem().as_bytes());
    let began = Instant::now();
    while !server
        .log()
        .contains("could not use the new keys of tokens")
    {
        assert!(began.elapsed() < LIMIT, "{}", server.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    use_it(&server, &old, "a/1").await.unwrap();
    replace(&keys.private, &private);

    keys.fill(algorithm, 2);
    let refused = until(
        "the old token",
        async || use_it(&server, &old, "a/1").await,
        Result::is_err,
    );
    let invalid = (
        Code::Unauthenticated,
        "etcdserver: invalid auth token".to_owned(),
    );
    assert_eq!(told(refused.await), invalid);
    let new = login(&server, "ann", "ann").await.unwrap();
    use_it(&server, &new, "a/1").await.unwrap();
    assert!(server.log().contains("reloaded the keys of tokens"));
    assert!(!server.log().contains(&new), "a token is in the log");
}

#[tokio::test]
async fn a_member_without_the_private_key_only_checks() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::new(folder.path(), Some(&rcgen::PKCS_ECDSA_P384_SHA384), 1);
    let signing = keys.flag("ES384");
    let checking = format!(
        "--auth-token=jwt,pub-key={},sign-method=ES384",
        keys.public.display()
    );
    let mut refusals = Vec::new();
    for kind in [Kind::Cairn, Kind::Etcd] {
        let folder = folder.path().join(format!("{kind:?}"));
        std::fs::create_dir(&folder).unwrap();
        let start = |flag: &str| Server::start(kind, &folder, &[flag, "--bcrypt-cost=4"]);
        let mut server = start(&signing);
        users(&server).await;
        let token = login(&server, "ann", "ann").await.unwrap();
        server.stop();
        let server = start(&checking);
        use_it(&server, &token, "a/1").await.unwrap();
        refusals.push(told(login(&server, "ann", "ann").await));
    }
    assert_eq!(refusals[0], refusals[1], "cairn left, etcd right");
    assert!(refusals[0].1.contains("verify-only key"), "{refusals:?}");
}

#[test]
fn keys_of_no_use_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::new(folder.path(), Some(&rcgen::PKCS_ECDSA_P256_SHA256), 1);
    let (public, private) = (keys.public.display(), keys.private.display());
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let other = Keys::new(&other, Some(&rcgen::PKCS_ECDSA_P256_SHA256), 1);
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (options, word) in [
        (format!("pub-key={public}"), "sign-method must be one of"),
        (
            format!("priv-key={private},sign-method=RS256"),
            "priv-key: it is no private key for this sign-method",
        ),
        (
            format!("pub-key={public},sign-method=EdDSA"),
            "pub-key is no key for this sign-method",
        ),
        (
            format!("pub-key={public},sign-method=ES384"),
            "pub-key is no key for this sign-method",
        ),
        (
            format!(
                "pub-key={public},priv-key={},sign-method=ES256",
                other.private.display()
            ),
            "pub-key and priv-key are no pair",
        ),
        (
            format!("priv-key={},sign-method=HS256", empty.display()),
            "priv-key is empty",
        ),
        (
            "pub-key=/nowhere,sign-method=ES256".to_owned(),
            "could not read /nowhere",
        ),
    ] {
        let data = folder.path().join("data");
        let flags = [
            format!("--data-dir={}", data.display()),
            format!("--auth-token=jwt,{options}"),
            "--listen-client-urls=http://127.0.0.1:0".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:1".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
        ];
        let mut process = Process::cairn(&folder.path().join("log"), &flags, &[]);
        let ended = process.wait_end();
        assert!(!ended.success(), "{options}: {ended}");
        assert!(process.log().contains(word), "{options}: {}", process.log());
    }
}
