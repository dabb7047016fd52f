//! TLS for clients and members: beside real etcd, with bad files, and with files that change.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::TcpStream as StdTcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{Authority, Issue, KeyFiles, Kind, Member, Server, free_port, program, replace, tool};
use hyper_util::rt::TokioIo;
use proto::etcdserverpb::{
    HashKvRequest, MoveLeaderRequest, PutRequest, RangeRequest, StatusRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use tls::{Options, Pair, Tls};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);

/// Built once: even a build that finds all done takes a while.
static ETCDCTL: LazyLock<PathBuf> = LazyLock::new(|| tool("etcdctl"));

/// What a client shows and believes.
#[derive(Clone, Debug)]
struct Client {
    ca: PathBuf,
    shown: Option<KeyFiles>,
}

/// A secured connection to a server, for HTTP/2 or HTTP/1.1.
async fn connect(
    client: &Client,
    port: u16,
    alpn: &'static str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let options = Options {
        certificate: client.shown.as_ref().map(|shown| Pair {
            certificate: shown.certificate.clone(),
            key: shown.key.clone(),
        }),
        trusted_ca: Some(client.ca.clone()),
        ..Options::default()
    };
    let tls = Tls::load("test", options).unwrap();
    let mut config = (*tls.client_config().unwrap()).clone();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

/// A channel that makes its connection at the first call, with the files of then.
fn channel(client: &Client, url: &str) -> Channel {
    let (client, port) = (client.clone(), port(url));
    // The scheme is plain, since the connector does what else tonic would.
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint
        .timeout(CALL)
        .connect_with_connector_lazy(service_fn(move |_: Uri| {
            let client = client.clone();
            async move { connect(&client, port, "h2").await.map(TokioIo::new) }
        }))
}

/// Calls again until it is answered.
async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < LIMIT, "{what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn put(client: &Client, url: &str, key: &str) -> Result<i64, tonic::Status> {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..PutRequest::default()
    };
    let answer = KvClient::new(channel(client, url)).put(request).await?;
    Ok(answer.into_inner().header.unwrap().revision)
}

async fn count(client: &Client, url: &str) -> Result<i64, tonic::Status> {
    let request = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let answer = KvClient::new(channel(client, url)).range(request).await?;
    Ok(answer.into_inner().count)
}

/// Runs etcdctl.
fn etcdctl(client: &Client, url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(&*ETCDCTL);
    command.env_clear();
    command.args([
        "--endpoints",
        url,
        "--dial-timeout=5s",
        "--command-timeout=10s",
    ]);
    command.arg("--cacert").arg(&client.ca);
    if let Some(shown) = &client.shown {
        command.arg("--cert").arg(&shown.certificate);
        command.arg("--key").arg(&shown.key);
    }
    command.args(arguments).output().unwrap()
}

/// What etcdctl says when it succeeds.
fn ctl(client: &Client, url: &str, arguments: &[&str]) -> String {
    let output = etcdctl(client, url, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The body of an answer to GET over HTTP/1.1.
async fn get(client: &Client, port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = connect(client, port, "http/1.1").await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Servers may leave out the last word of TLS.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(std::io::Error::other(format!("no answer: {answer:?}"))),
    }
}

/// A flag that names a file.
fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Files of a cluster: one CA for clients and members, as etcd's guides have it.
struct Files {
    folder: tempfile::TempDir,
    ca: Authority,
    bundle: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new("ca");
        let bundle = folder.path().join("ca.crt");
        replace(&bundle, ca.pem().as_bytes());
        Self { folder, ca, bundle }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn issue(&self, file: &str, issue: &Issue) -> KeyFiles {
        self.ca.issue(self.path(), file, issue)
    }

    /// Who may call.
    fn client(&self) -> Client {
        let root = Issue {
            name: "root",
            hosts: vec!["client.example"],
            ..Issue::default()
        };
        Client {
            ca: self.bundle.clone(),
            shown: Some(self.issue("client", &root)),
        }
    }

    fn certificate(&self, name: &str) -> KeyFiles {
        self.issue(name, &Issue::default())
    }

    /// All flags for both sides, with certificates asked for.
    fn mutual(&self, shown: &KeyFiles) -> Vec<String> {
        vec![
            flag("cert-file", &shown.certificate),
            flag("key-file", &shown.key),
            flag("trusted-ca-file", &self.bundle),
            "--client-cert-auth".to_owned(),
            flag("peer-cert-file", &shown.certificate),
            flag("peer-key-file", &shown.key),
            flag("peer-trusted-ca-file", &self.bundle),
            "--peer-client-cert-auth".to_owned(),
            // A busy machine must not change leaders while requests are counted.
            "--heartbeat-interval=500".to_owned(),
            "--election-timeout=5000".to_owned(),
        ]
    }
}

fn start(member: &Member, folder: &Path) -> Server {
    let mut server = member.launch(folder, &[member], "new");
    server.wait_ready();
    server
}

/// Waits until all members are at one revision with one hash.
async fn agree(client: &Client, urls: &[&str]) {
    let revision = eventually("barrier", async || put(client, urls[0], "barrier").await).await;
    let mut hashes = Vec::new();
    for url in urls {
        let mut maintenance = MaintenanceClient::new(channel(client, url));
        let request = HashKvRequest { revision };
        let hash = eventually("hash", async || maintenance.hash_kv(request).await).await;
        hashes.push(hash.into_inner().hash);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:x?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_trust_each_other_and_nobody_else() {
    let files = Files::new();
    let client = files.client();
    let members = ["a", "b", "c"].map(|name| {
        let mut flags = files.mutual(&files.certificate(name));
        flags.push("--peer-cert-allowed-cn=member".to_owned());
        Member::new(Kind::Cairn, name).with_tls(flags)
    });
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(files.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    let urls: Vec<&str> = servers.iter().map(Server::url).collect();
    for url in &urls {
        put(&client, url, url).await.unwrap();
    }
    assert_eq!(count(&client, urls[2]).await.unwrap(), 3);
    let list = urls.join(",");
    ctl(&client, &list, &["endpoint", "health"]);
    ctl(&client, &list, &["put", "by", "etcdctl"]);
    agree(&client, &urls).await;
    for server in &servers {
        assert!(server.log().contains("serving client traffic securely"));
        assert!(
            !server.log().contains("rejected connection"),
            "{}",
            server.log()
        );
    }

    // Who shows nothing, or a certificate of another CA, is not let in; nor are plain connections.
    let bare = Client {
        shown: None,
        ..client.clone()
    };
    let other = Authority::new("ca");
    let foreign = Client {
        shown: Some(other.issue(files.path(), "foreign", &Issue::default())),
        ..client.clone()
    };
    for refused in [&bare, &foreign] {
        put(refused, urls[0], "k").await.unwrap_err();
        assert!(
            !etcdctl(refused, urls[0], &["put", "k", "v"])
                .status
                .success()
        );
    }
    let plain = Endpoint::from_shared(urls[0].replacen("https", "http", 1)).unwrap();
    let mut plain = KvClient::new(plain.timeout(CALL).connect_lazy());
    plain.put(PutRequest::default()).await.unwrap_err();
    assert!(
        servers[0]
            .log()
            .contains("rejected connection on client endpoint")
    );

    // A member whose common name is not allowed is kept out, and it says why it does not start.
    let stranger = Issue {
        name: "stranger",
        ..Issue::default()
    };
    let shown = files.issue("d", &stranger);
    let stranger = Member::new(Kind::Cairn, "d").with_tls(files.mutual(&shown));
    let with_stranger: Vec<&Member> = all.iter().copied().chain([&stranger]).collect();
    let stranger = stranger.launch(files.path(), &with_stranger, "existing");
    wait_for(
        &stranger,
        "could not ask the existing cluster for its members",
    )
    .await;
    let rejected = servers.iter().any(|server| {
        let log = server.log();
        log.contains("rejected connection on peer endpoint")
            && log.contains("client certificate authentication failed")
    });
    assert!(rejected, "{}", servers[0].log());
}

async fn wait_for(server: &Server, word: &str) {
    let began = Instant::now();
    while !server.log().contains(word) {
        assert!(began.elapsed() < LIMIT, "no {word:?} in:\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cairn_and_real_etcds_make_one_secured_cluster() {
    let files = Files::new();
    let client = files.client();
    let kinds = [("a", Kind::Etcd), ("b", Kind::Etcd), ("c", Kind::Cairn)];
    let members = kinds.map(|(name, kind)| {
        let mut flags = files.mutual(&files.certificate(name));
        flags.push("--peer-cert-allowed-hostname=localhost".to_owned());
        Member::new(kind, name).with_tls(flags)
    });
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(files.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    let urls: Vec<&str> = servers.iter().map(Server::url).collect();
    for url in &urls {
        put(&client, url, url).await.unwrap();
    }
    assert_eq!(count(&client, urls[2]).await.unwrap(), 3);
    agree(&client, &urls).await;

    // Cairn leads: it dials etcds, and they dial it.
    let mut maintenance = MaintenanceClient::new(channel(&client, urls[2]));
    let status = maintenance
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let own = status.header.unwrap().member_id;
    if status.leader != own {
        let of = async |url: &str| -> u64 {
            let mut maintenance = MaintenanceClient::new(channel(&client, url));
            let status = maintenance.status(StatusRequest {}).await.unwrap();
            status.into_inner().header.unwrap().member_id
        };
        let mut leader = urls[0];
        if of(urls[1]).await == status.leader {
            leader = urls[1];
        }
        let mut maintenance = MaintenanceClient::new(channel(&client, leader));
        let to = MoveLeaderRequest { target_id: own };
        eventually("move", async || maintenance.move_leader(to).await).await;
    }
    for url in &urls {
        eventually("put", async || put(&client, url, "after").await).await;
    }
    let table = ctl(&client, &urls.join(","), &["endpoint", "status"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    agree(&client, &urls).await;
    for server in &servers {
        let log = server.log();
        assert!(
            !log.contains("rejected connection on peer endpoint"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_make_their_own_certificates_meet_etcds_that_do() {
    let files = Files::new();
    let flags = ["--auto-tls", "--peer-auto-tls"]
        .map(str::to_owned)
        .to_vec();
    let members = [("a", Kind::Etcd), ("b", Kind::Cairn)]
        .map(|(name, kind)| Member::new(kind, name).with_tls(flags.clone()));
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(files.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    // Clients find the certificate where etcd's charts look for it.
    for (server, name) in servers.iter().zip(["a", "b"]) {
        let client = Client {
            ca: files.path().join(name).join("fixtures/client/cert.pem"),
            shown: None,
        };
        ctl(&client, server.url(), &["put", name, "v"]);
        let table = ctl(
            &client,
            server.url(),
            &["get", "", "--prefix", "--keys-only"],
        );
        assert!(table.contains(name), "{table}");
        let folder = files.path().join(name).join("fixtures/peer");
        for file in ["cert.pem", "key.pem"] {
            assert!(folder.join(file).exists(), "{file} of {name}");
        }
    }
    // The same certificate after a restart.
    let path = files.path().join("b/fixtures/client/cert.pem");
    let before = fs::read(&path).unwrap();
    servers[1].stop();
    servers[1].restart();
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_kinds_let_in_the_same() {
    let files = Files::new();
    let good = Issue {
        name: "root",
        hosts: vec!["allowed.example", "b.example"],
        serial: 5,
        ..Issue::default()
    };
    let cases = [
        ("good", good.clone(), true),
        (
            "revoked",
            Issue {
                serial: 200,
                ..good.clone()
            },
            false,
        ),
        (
            "expired",
            Issue {
                until: 2021,
                ..good.clone()
            },
            false,
        ),
        (
            "servers-only",
            Issue {
                for_clients: false,
                ..good.clone()
            },
            false,
        ),
        (
            "other-name",
            Issue {
                hosts: vec!["c.example"],
                ..good.clone()
            },
            false,
        ),
        (
            "no-name",
            Issue {
                hosts: vec![],
                ..good.clone()
            },
            false,
        ),
    ];
    let list = files.path().join("crl");
    replace(&list, &files.ca.revoke(&[200, 201]));
    for kind in [Kind::Etcd, Kind::Cairn] {
        let name = format!("{kind:?}");
        let mut flags = files.mutual(&files.certificate(&name));
        flags.push(flag("client-crl-file", &list));
        flags.push("--client-cert-allowed-hostname=x.example,allowed.example".to_owned());
        let server = start(&Member::new(kind, &name).with_tls(flags), files.path());
        for (file, issue, expected) in &cases {
            let client = Client {
                ca: files.bundle.clone(),
                shown: Some(files.issue(file, issue)),
            };
            let output = etcdctl(&client, server.url(), &["put", "k", "v"]);
            assert_eq!(output.status.success(), *expected, "{file} at {kind:?}");
        }
    }
}

/// Starts a server that should not start, and returns what it wrote.
fn refusal(kind: Kind, folder: &Path, flags: &[String]) -> String {
    let data = folder.join("refused");
    let _ = fs::remove_dir_all(&data);
    let log = folder.join("refused.log");
    let file = fs::File::create(&log).unwrap();
    let mut child = Command::new(program(kind))
        .env_clear()
        .arg(flag("data-dir", &data))
        .args(flags)
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{kind:?} goes on with {flags:?}: {}",
                fs::read_to_string(&log).unwrap()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(1), "{kind:?} with {flags:?}: {log}");
    log
}

#[test]
fn what_cannot_be_secured_does_not_start_and_says_why() {
    let files = Files::new();
    let shown = files.certificate("server");
    let other = files.certificate("other");
    let text = files.path().join("text");
    replace(&text, b"no certificate");
    let missing = files.path().join("missing");
    let (client, peer) = (free_port(), free_port());
    let listen = |clients: &str, peers: &str| {
        vec![
            "--name=m".to_owned(),
            format!("--listen-client-urls={clients}://127.0.0.1:{client}"),
            format!("--advertise-client-urls={clients}://127.0.0.1:{client}"),
            format!("--listen-peer-urls={peers}://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls={peers}://127.0.0.1:{peer}"),
            format!("--initial-cluster=m={peers}://127.0.0.1:{peer}"),
        ]
    };
    let cert = flag("cert-file", &shown.certificate);
    let key = flag("key-file", &shown.key);
    let word = str::to_owned;
    // Both kinds, in etcd's words.
    for (clients, peers, flags, expected) in [
        (
            "https",
            "http",
            vec![],
            "TLS key/cert (--cert-file, --key-file) must be provided",
        ),
        (
            "http",
            "https",
            vec![],
            "KeyFile and CertFile are not presented",
        ),
        (
            "https",
            "http",
            vec![cert.clone()],
            "KeyFile and CertFile must both be present[key: ",
        ),
        (
            "https",
            "http",
            vec![
                cert.clone(),
                key.clone(),
                flag("client-cert-file", &shown.certificate),
            ],
            "ClientKeyFile and ClientCertFile must both be present or both absent",
        ),
        (
            "http",
            "https",
            vec![
                flag("peer-cert-file", &shown.certificate),
                flag("peer-key-file", &shown.key),
                word("--peer-cert-allowed-cn=a"),
                word("--peer-cert-allowed-hostname=b"),
            ],
            "AllowedCNs and AllowedHostnames are mutually exclusive",
        ),
        (
            "https",
            "http",
            vec![cert.clone(), key.clone(), word("--cipher-suites=NOPE")],
            "unexpected TLS cipher suite",
        ),
        (
            "https",
            "http",
            vec![word("--auto-tls"), word("--self-signed-cert-validity=0")],
            "selfSignedCertValidity is invalid,it should be greater than 0",
        ),
        (
            "http",
            "http",
            vec![format!(
                "--listen-metrics-urls=https://127.0.0.1:{}",
                free_port()
            )],
            "must be provided for metrics secure url",
        ),
    ] {
        for kind in [Kind::Etcd, Kind::Cairn] {
            let flags = [listen(clients, peers), flags.clone()].concat();
            let log = refusal(kind, files.path(), &flags);
            assert!(log.contains(expected), "{kind:?} with {flags:?}: {log}");
        }
    }
    // Cairn before it serves anybody, with the file and what to do; etcd finds some of these only
    // when it is ready.
    let pair = |certificate: &Path, key: &Path| {
        vec![flag("cert-file", certificate), flag("key-file", key)]
    };
    let with = |more: String| vec![cert.clone(), key.clone(), more];
    for (flags, path, expected) in [
        (
            pair(&missing, &shown.key),
            &missing,
            "could not read the certificate",
        ),
        (
            pair(&text, &shown.key),
            &text,
            "it holds no certificate in PEM form",
        ),
        (
            pair(&shown.certificate, &missing),
            &missing,
            "could not read the key",
        ),
        (
            pair(&shown.certificate, &other.key),
            &other.key,
            "give the key that the certificate was made for",
        ),
        (
            with(flag("trusted-ca-file", &text)),
            &text,
            "it holds no certificate in PEM form",
        ),
        (
            with(flag("trusted-ca-file", &missing)),
            &missing,
            "is the path right, and may this user read it?",
        ),
        (
            with(flag("client-crl-file", &text)),
            &text,
            "it holds no revocation list",
        ),
    ] {
        let log = refusal(
            Kind::Cairn,
            files.path(),
            &[listen("https", "http"), flags].concat(),
        );
        assert!(log.contains(expected), "{log}");
        assert!(log.contains(&path.display().to_string()), "{log}");
        assert!(!files.path().join("refused").exists(), "data were made");
    }
    let flags = [
        listen("https", "http"),
        vec![word("--auto-tls"), word("--client-cert-auth")],
    ];
    let log = refusal(Kind::Cairn, files.path(), &flags.concat());
    assert!(log.contains("--auto-tls lets everybody connect"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_takes_all_and_waits_for_nobody() {
    let files = Files::new();
    let shown = files.certificate("m");
    let (port, metrics, plain_metrics) = (free_port(), free_port(), free_port());
    let clients = format!("http://127.0.0.1:{port},https://127.0.0.1:{port}");
    let flags = [
        &format!("--listen-client-urls={clients}"),
        &format!("--advertise-client-urls={clients}"),
        &format!(
            "--listen-metrics-urls=https://127.0.0.1:{metrics},http://127.0.0.1:{plain_metrics}"
        ),
        &flag("cert-file", &shown.certificate),
        &flag("key-file", &shown.key),
    ];
    let flags: Vec<&str> = flags.iter().map(|flag| flag.as_str()).collect();
    let server = Server::start(Kind::Cairn, files.path(), &flags);
    let client = Client {
        ca: files.bundle.clone(),
        shown: None,
    };
    let (plain, secured) = (
        format!("http://127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}"),
    );
    // These connect and say nothing, or stop in the middle of a word.
    let silent: Vec<StdTcpStream> = (0..200)
        .map(|n| {
            let mut stream = StdTcpStream::connect(("127.0.0.1", port)).unwrap();
            if n % 2 == 0 {
                use std::io::Write;
                stream.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
            }
            stream
        })
        .collect();
    put(&client, &secured, "by h2 and TLS").await.unwrap();
    ctl(&client, &secured, &["put", "by", "etcdctl"]);
    ctl(&client, &plain, &["put", "by", "plain etcdctl"]);
    let health = get(&client, port, "/health").await.unwrap();
    assert_eq!(health, "{\"health\":\"true\",\"reason\":\"\"}");
    drop(silent);
    for word in [
        "serving client traffic securely",
        "serving client traffic insecurely; this is strongly discouraged!",
    ] {
        assert!(server.log().contains(word), "{}", server.log());
    }
    let text = get(&client, metrics, "/metrics").await.unwrap();
    assert!(
        text.contains("cairn_tls_certificate_not_after_seconds{listener=\"client\"} 4102444800")
    );
    let mut stream = TcpStream::connect(("127.0.0.1", plain_metrics))
        .await
        .unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Waits until a member's metrics hold a row.
async fn wait_metric(client: &Client, url: &str, row: &str) {
    eventually(row, async || {
        let text = get(client, port(url), "/metrics").await;
        let text = text.map_err(|error| error.to_string())?;
        match text.contains(row) {
            true => Ok(()),
            false => {
                let tls = text.lines().filter(|line| line.starts_with("cairn_tls"));
                Err(tls.collect::<Vec<_>>().join("\n"))
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_renewed_under_load_without_a_failed_request() {
    let files = Files::new();
    let client = files.client();
    let names = ["a", "b", "c"];
    let members = names.map(|name| {
        let flags = files.mutual(&files.certificate(name));
        Member::new(Kind::Cairn, name).with_tls(flags)
    });
    let all: Vec<&Member> = members.iter().collect();
    let launch = |member: &Member| member.launch(files.path(), &all, "new");
    let mut servers: Vec<Server> = members.iter().map(launch).collect();
    servers.iter_mut().for_each(Server::wait_ready);
    let urls: Vec<String> = servers
        .iter()
        .map(|server| server.url().to_owned())
        .collect();
    // Clients believe what the members' bundle says, and show what is theirs at the time.
    let (stop, puts) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let writers: Vec<_> = (0..3)
        .map(|n| {
            let (client, urls) = (client.clone(), urls.clone());
            let (stop, puts) = (Arc::clone(&stop), Arc::clone(&puts));
            tokio::spawn(async move {
                let mut at = n;
                while !stop.load(Ordering::Relaxed) {
                    // A new connection for each: every put is a handshake.
                    put(&client, &urls[at % 3], &format!("w{n}")).await.unwrap();
                    puts.fetch_add(1, Ordering::Relaxed);
                    at += 1;
                }
            })
        })
        .collect();
    let by_ctl = {
        let (client, urls, stop) = (client.clone(), urls.clone(), Arc::clone(&stop));
        tokio::task::spawn_blocking(move || {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                ctl(&client, &urls[calls % 3], &["put", "ctl", "v"]);
                calls += 1;
            }
            calls
        })
    };

    // Each member's certificate is renewed by the same CA.
    let renewed = Issue {
        until: 2101,
        ..Issue::default()
    };
    for name in names {
        files.issue(name, &renewed);
    }
    for url in &urls {
        for listener in ["client", "peer"] {
            let name = "cairn_tls_certificate_not_after_seconds";
            let row = format!("{name}{{listener=\"{listener}\"}} 4133980800");
            wait_metric(&client, url, &row).await;
        }
    }
    // A new CA: first both are believed, then all show what the new one signed, then it is alone.
    let new = Authority::new("new");
    let bundles = async |text: &str| {
        replace(&files.bundle, text.as_bytes());
        let hash = sha256(&files.bundle);
        for url in &urls {
            for listener in ["client", "peer"] {
                let row =
                    format!("cairn_tls_bundle_info{{listener=\"{listener}\",sha256=\"{hash}\"}} 1");
                wait_metric(&client, url, &row).await;
            }
        }
    };
    bundles(&format!("{}{}", files.ca.pem(), new.pem())).await;
    let by_new = Issue {
        until: 2102,
        ..Issue::default()
    };
    let old_client = Client {
        ca: files.bundle.clone(),
        shown: Some(files.issue("old-client", &Issue::default())),
    };
    for name in names {
        new.issue(files.path(), name, &by_new);
    }
    // Who reads two files may meet the old one of one and the new one of the other; servers wait
    // for the pair, but these clients would fail. So they end before theirs change.
    for url in &urls {
        let row = "cairn_tls_certificate_not_after_seconds{listener=\"peer\"} 4165516800";
        wait_metric(&client, url, row).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let calls = by_ctl.await.unwrap();
    new.issue(files.path(), "client", &by_new);
    bundles(&new.pem()).await;
    for url in &urls {
        put(&client, url, "by the new CA").await.unwrap();
        put(&old_client, url, "by the old CA").await.unwrap_err();
    }
    let puts = puts.load(Ordering::Relaxed);
    println!("{puts} puts and {calls} calls of etcdctl, none failed");
    assert!(puts > 20 && calls > 3, "{puts} puts, {calls} calls");

    // Members meet again with what is new only.
    servers[1].kill();
    servers[1].restart();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    agree(&client, &urls).await;

    // A broken file changes nothing and is told.
    replace(&files.path().join("a.key"), b"broken");
    let row = "cairn_tls_reload_failing{listener=\"client\"} 1";
    wait_metric(&client, urls[0], row).await;
    wait_for(&servers[0], "new TLS files cannot be used").await;
    put(&client, urls[0], "still").await.unwrap();
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}
