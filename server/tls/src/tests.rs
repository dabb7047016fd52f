//! Files, trust and reload, with handshakes over streams in memory.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

use crate::{Acceptor, Allowed, Error, Options, Pair, Rejected, Tls, Version, self_made};

/// A CA.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// What a test says of a certificate.
struct Leaf<'a> {
    name: &'a str,
    hosts: &'a [&'a str],
    serial: u64,
    until: i32,
    usage: Vec<ExtendedKeyUsagePurpose>,
}

const BOTH: [ExtendedKeyUsagePurpose; 2] = [
    ExtendedKeyUsagePurpose::ServerAuth,
    ExtendedKeyUsagePurpose::ClientAuth,
];

impl Default for Leaf<'_> {
    fn default() -> Self {
        Self {
            name: "member",
            hosts: &["localhost", "127.0.0.1"],
            serial: 7,
            until: 2100,
            usage: BOTH.to_vec(),
        }
    }
}

impl Leaf<'_> {
    fn params(&self) -> CertificateParams {
        let hosts: Vec<String> = self.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, self.name);
        params.serial_number = Some(SerialNumber::from(self.serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(self.until, 1, 1);
        params.extended_key_usages = self.usage.clone();
        params
    }
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes itself.
    fn write(&self, path: &Path) -> PathBuf {
        fs::write(path, self.0.pem()).unwrap();
        path.to_owned()
    }

    /// Signs a certificate and writes it with its key.
    fn sign(&self, folder: &Path, file: &str, leaf: &Leaf<'_>) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.params().signed_by(&key, &self.0).unwrap();
        write_pair(folder, file, &certificate.pem(), &key)
    }

    fn revoke(&self, serials: &[u64]) -> rcgen::CertificateRevocationList {
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap()
    }
}

fn write_pair(folder: &Path, file: &str, certificate: &str, key: &KeyPair) -> Pair {
    let pair = Pair {
        certificate: folder.join(format!("{file}.crt")),
        key: folder.join(format!("{file}.key")),
    };
    fs::write(&pair.certificate, certificate).unwrap();
    fs::write(&pair.key, key.serialize_pem()).unwrap();
    pair
}

/// A folder with a CA, and options that show a certificate of it and ask for one.
fn mutual() -> (TempDir, Ca, Options) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let options = Options {
        certificate: Some(ca.sign(folder.path(), "server", &Leaf::default())),
        trusted_ca: Some(ca.write(&folder.path().join("ca.crt"))),
        ..Options::default()
    };
    (folder, ca, options)
}

fn load(options: &Options) -> Arc<Tls> {
    Tls::load("test", options.clone()).unwrap()
}

/// Options of a caller that shows `certificate` and believes what `server` believes.
fn caller(server: &Options, certificate: Option<Pair>) -> Options {
    Options {
        certificate,
        trusted_ca: server.trusted_ca.clone(),
        ..Options::default()
    }
}

/// A word there and back.
async fn meet(server: &Arc<Tls>, client: &Arc<Tls>) -> (Result<(), Rejected>, Result<(), String>) {
    meet_at(&Acceptor::new(Arc::clone(server), false), client).await
}

async fn meet_at(
    acceptor: &Acceptor,
    client: &Arc<Tls>,
) -> (Result<(), Rejected>, Result<(), String>) {
    let (near, far) = duplex(1 << 16);
    let here = Some(IpAddr::from([127, 0, 0, 1]));
    let serve = async {
        let mut stream = acceptor.accept(far, here).await?;
        let mut word = [0; 4];
        let echoed = async {
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
            stream.shutdown().await
        };
        echoed
            .await
            .map_err(|error| Rejected::Failed(error.to_string()))
    };
    tokio::join!(serve, call(client, near))
}

async fn call(client: &Arc<Tls>, stream: DuplexStream) -> Result<(), String> {
    let config = client.client_config().map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let talk = async {
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(b"word").await?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        assert_eq!(&word, b"word");
        std::io::Result::Ok(())
    };
    talk.await.map_err(|error| error.to_string())
}

/// Both ends must fail, and the server must say why.
async fn refused(server: &Arc<Tls>, client: &Arc<Tls>, why: &str) {
    let (rejected, failed) = meet(server, client).await;
    let rejected = rejected.unwrap_err().to_string();
    assert!(rejected.contains(why), "{rejected}");
    failed.unwrap_err();
}

async fn accepted(server: &Arc<Tls>, client: &Arc<Tls>) {
    let (served, called) = meet(server, client).await;
    assert_eq!((served, called), (Ok(()), Ok(())));
}

#[tokio::test]
async fn both_ends_show_and_believe() {
    let (folder, ca, options) = mutual();
    let server = load(&options);
    let shown = ca.sign(folder.path(), "client", &Leaf::default());
    accepted(&server, &load(&caller(&options, Some(shown)))).await;
    let bare = load(&caller(&options, None));
    refused(&server, &bare, "peer sent no certificates").await;
    let other = Ca::new("ca");
    let foreign = other.sign(folder.path(), "foreign", &Leaf::default());
    let foreign = load(&caller(&options, Some(foreign)));
    refused(&server, &foreign, "invalid peer certificate").await;
    // The caller refuses as well: another CA, another name.
    let believes_other = Options {
        trusted_ca: Some(other.write(&folder.path().join("other.crt"))),
        ..caller(&options, None)
    };
    let (_, failed) = meet(&server, &load(&believes_other)).await;
    assert!(failed.unwrap_err().contains("invalid peer certificate"));
    let elsewhere = Leaf {
        hosts: &["elsewhere"],
        ..Leaf::default()
    };
    let elsewhere = Options {
        certificate: Some(ca.sign(folder.path(), "elsewhere", &elsewhere)),
        ..options.clone()
    };
    let (_, failed) = meet(&load(&elsewhere), &load(&caller(&options, None))).await;
    assert!(failed.unwrap_err().contains("not valid for name"));
}

#[tokio::test]
async fn versions_and_suites_are_kept_to() {
    let (folder, ca, options) = mutual();
    let shown = Some(ca.sign(folder.path(), "client", &Leaf::default()));
    let old = Options {
        max_version: Some(Version::Tls12),
        cipher_suites: vec!["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384".to_owned()],
        ..caller(&options, shown.clone())
    };
    accepted(&load(&options), &load(&old)).await;
    let new = Options {
        min_version: Version::Tls13,
        ..options.clone()
    };
    refused(&load(&new), &load(&old), "Tls12NotOfferedOrEnabled").await;
    let only_rsa = Options {
        max_version: Some(Version::Tls12),
        cipher_suites: vec!["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384".to_owned()],
        ..options
    };
    refused(&load(&only_rsa), &load(&old), "NoCipherSuitesInCommon").await;
}

#[tokio::test]
async fn names_decide_who_is_allowed() {
    let (folder, ca, options) = mutual();
    let allow = |allowed: Allowed| {
        load(&Options {
            allowed,
            ..options.clone()
        })
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let shown = Leaf {
        name: "root",
        hosts: &["a.example", "*.b.example", "10.0.0.1"],
        ..Leaf::default()
    };
    let shown = ca.sign(folder.path(), "client", &shown);
    let client = load(&caller(&options, Some(shown)));
    let why = "client certificate authentication failed";
    for (allowed, good) in [
        (Allowed::CommonNames(names(&["other", "root"])), true),
        (Allowed::CommonNames(names(&["other"])), false),
        (Allowed::Hostnames(names(&["x", "a.example"])), true),
        (Allowed::Hostnames(names(&["c.b.example"])), true),
        (Allowed::Hostnames(names(&["10.0.0.1"])), true),
        (Allowed::Hostnames(names(&["b.example", "10.0.0.2"])), false),
    ] {
        let server = allow(allowed);
        match good {
            true => accepted(&server, &client).await,
            false => refused(&server, &client, why).await,
        }
    }
    // Calls look as well, as in etcd.
    let picky = Options {
        allowed: Allowed::CommonNames(names(&["nobody"])),
        ..caller(
            &options,
            Some(ca.sign(folder.path(), "picky", &Leaf::default())),
        )
    };
    let (_, failed) = meet(&load(&options), &load(&picky)).await;
    assert!(failed.unwrap_err().contains(why));
}

#[tokio::test]
async fn revoked_serials_are_refused_in_der_and_pem() {
    let (folder, ca, mut options) = mutual();
    let list = folder.path().join("crl");
    options.revoked = Some(list.clone());
    let client = |serial: u64| {
        let leaf = Leaf {
            serial,
            ..Leaf::default()
        };
        let shown = ca.sign(folder.path(), "client", &leaf);
        load(&caller(&options, Some(shown)))
    };
    // The high bit makes DER put a zero before the number.
    let (good, bad) = (client(5), client(200));
    let revoked = ca.revoke(&[200, 300]);
    for bytes in [revoked.der().to_vec(), revoked.pem().unwrap().into_bytes()] {
        fs::write(&list, bytes).unwrap();
        let server = load(&options);
        accepted(&server, &good).await;
        refused(&server, &bad, "Revoked").await;
    }
    // A new list is followed.
    let server = load(&options);
    fs::write(&list, ca.revoke(&[5]).der()).unwrap();
    server.refresh();
    accepted(&server, &bad).await;
    refused(&server, &good, "Revoked").await;
}

#[tokio::test]
async fn a_certificate_in_the_ca_file_is_believed_and_signs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let params = Leaf::default().params();
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let own = write_pair(folder.path(), "own", &issuer.pem(), issuer.key());
    let options = Options {
        certificate: Some(own.clone()),
        trusted_ca: Some(own.certificate.clone()),
        ..Options::default()
    };
    let server = load(&options);
    accepted(&server, &load(&options)).await;
    // It signs another, which Go does not believe either.
    let signed = Ca(issuer).sign(folder.path(), "signed", &Leaf::default());
    let signed = load(&caller(&options, Some(signed)));
    refused(&server, &signed, "UnknownIssuer").await;
    // One that is a CA too shows itself, as those do that etcd makes.
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = self_made(&folder.path().join("made"), &hosts, 1).unwrap();
    let options = Options {
        certificate: Some(made.clone()),
        ..Options::default()
    };
    let believer = Options {
        trusted_ca: Some(made.certificate),
        ..Options::default()
    };
    accepted(&load(&options), &load(&believer)).await;
}

#[tokio::test]
async fn certificates_that_are_not_good_now_or_not_for_this_are_refused() {
    let (folder, ca, options) = mutual();
    let server = load(&options);
    let old = Leaf {
        until: 2021,
        ..Leaf::default()
    };
    let old = ca.sign(folder.path(), "old", &old);
    refused(
        &server,
        &load(&caller(&options, Some(old.clone()))),
        "expired",
    )
    .await;
    let only_server = Leaf {
        usage: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..Leaf::default()
    };
    let only_server = ca.sign(folder.path(), "only", &only_server);
    let client = load(&caller(&options, Some(only_server)));
    refused(&server, &client, "invalid peer certificate").await;
    // As in etcd, one's own is shown whatever its time; the caller decides.
    let expired = Options {
        certificate: Some(old),
        ..options.clone()
    };
    let server = load(&expired);
    assert_eq!(server.standing().not_after, Some(1_609_459_200));
    let (_, failed) = meet(&server, &load(&caller(&options, None))).await;
    assert!(failed.unwrap_err().contains("expired"));
}

#[tokio::test]
async fn addresses_are_looked_at_where_they_are_to_be() {
    let (folder, ca, options) = mutual();
    let elsewhere = Leaf {
        hosts: &["10.0.0.1"],
        ..Leaf::default()
    };
    let elsewhere = ca.sign(folder.path(), "elsewhere", &elsewhere);
    let client = load(&caller(&options, Some(elsewhere)));
    let server = load(&options);
    let (rejected, _) = meet_at(&Acceptor::new(Arc::clone(&server), true), &client).await;
    let rejected = rejected.unwrap_err().to_string();
    assert_eq!(rejected, "x509: certificate is not valid for 127.0.0.1");
    accepted(&server, &client).await;
}

#[tokio::test]
async fn who_says_nothing_is_left_and_holds_up_nobody() {
    let (folder, ca, options) = mutual();
    let server = load(&options);
    let client = load(&caller(
        &options,
        Some(ca.sign(folder.path(), "client", &Leaf::default())),
    ));
    let acceptor = Acceptor::new(Arc::clone(&server), false).within(Duration::from_secs(2));
    let (_silent, far) = duplex(64);
    let (silent, others) = tokio::join!(acceptor.accept(far, None), async {
        for _ in 0..20 {
            let (served, called) = meet_at(&acceptor, &client).await;
            assert_eq!((served, called), (Ok(()), Ok(())));
        }
    });
    assert_eq!(silent.unwrap_err(), Rejected::Late);
    let () = others;
    // Who leaves at once is told apart from who fails.
    let (gone, far) = duplex(64);
    drop(gone);
    assert_eq!(
        acceptor.accept(far, None).await.unwrap_err(),
        Rejected::Left
    );
    let (mut plain, far) = duplex(64);
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let rejected = acceptor.accept(far, None).await.unwrap_err();
    assert!(matches!(rejected, Rejected::Failed(_)), "{rejected}");
}

#[tokio::test]
async fn without_a_ca_all_members_believe_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = ["::1".to_owned(), "elsewhere".to_owned()];
    let pair = self_made(&folder.path().join("fixtures/peer"), &hosts, 1).unwrap();
    let again = self_made(&folder.path().join("fixtures/peer"), &hosts, 1).unwrap();
    assert_eq!(pair, again);
    let options = Options {
        certificate: Some(pair),
        self_made: true,
        ..Options::default()
    };
    let member = load(&options);
    let year = SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
    let year = year.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let until = member.standing().not_after.unwrap();
    assert!((until - year.as_secs() as i64).abs() < 3600, "{until}");
    accepted(&member, &member).await;
}

#[test]
fn what_cannot_be_used_is_said_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ca = Ca::new("ca");
    let good = ca.sign(folder.path(), "good", &Leaf::default());
    let other = ca.sign(folder.path(), "other", &Leaf::default());
    fs::write(at("text"), "no certificate").unwrap();
    fs::write(at("empty"), "").unwrap();
    let torn = "-----BEGIN CERTIFICATE-----\nMIIB\n";
    fs::write(at("torn"), torn).unwrap();
    let garbage = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";
    fs::write(at("garbage"), garbage).unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nQUJD\n-----END PRIVATE KEY-----\n";
    fs::write(at("bad-key"), key).unwrap();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nQUJD\n\
                     -----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(at("encrypted"), encrypted).unwrap();
    let huge = fs::File::create(at("huge")).unwrap();
    huge.set_len(17 << 20).unwrap();
    let check = |options: Options, path: &Path, expected: &str| {
        let error = Tls::load("test", options).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    let certificate = |path: PathBuf| Options {
        certificate: Some(Pair {
            certificate: path,
            key: good.key.clone(),
        }),
        ..Options::default()
    };
    let with_key = |key: PathBuf| Options {
        certificate: Some(Pair {
            certificate: good.certificate.clone(),
            key,
        }),
        ..Options::default()
    };
    let trusted = |path: PathBuf| Options {
        trusted_ca: Some(path),
        ..Options::default()
    };
    let revoked = |path: PathBuf| Options {
        revoked: Some(path),
        ..Options::default()
    };
    for (name, expected) in [
        ("missing", "could not read the certificate"),
        (".", "Is a directory"),
        ("text", "it holds no certificate in PEM form"),
        ("empty", "it holds no certificate in PEM form"),
        ("torn", "it is no PEM file"),
        ("garbage", "a certificate in it is none"),
        ("huge", "is longer than 16777216 bytes"),
        ("good.key", "it holds no certificate in PEM form"),
    ] {
        check(certificate(at(name)), &at(name), expected);
    }
    for (name, expected) in [
        ("missing", "could not read the key"),
        ("text", "it holds no private key in PEM form"),
        ("good.crt", "it holds no private key in PEM form"),
        ("bad-key", "its key is of no kind that is known"),
        ("encrypted", "it is encrypted; decrypt it"),
        ("other.key", "does not belong to the certificate"),
    ] {
        check(with_key(at(name)), &at(name), expected);
    }
    for (name, expected) in [
        ("missing", "could not read the trusted CA file"),
        ("text", "it holds no certificate in PEM form"),
        ("good.key", "it holds no certificate in PEM form"),
        ("garbage", "a certificate in it is none"),
    ] {
        check(trusted(at(name)), &at(name), expected);
    }
    for (name, expected) in [
        ("missing", "could not read the revocation list"),
        ("text", "it holds no revocation list"),
        ("good.crt", "it holds no revocation list"),
    ] {
        check(revoked(at(name)), &at(name), expected);
    }
    let clients = Options {
        client_certificate: Some(Pair {
            certificate: good.certificate.clone(),
            key: other.key,
        }),
        ..Options::default()
    };
    let error = Tls::load("test", clients).unwrap_err();
    assert!(matches!(error, Error::OtherKey { .. }), "{error}");
}

#[tokio::test]
async fn new_files_come_into_use_part_by_part() {
    let (folder, ca, options) = mutual();
    let pair = options.certificate.clone().unwrap();
    let bundle = options.trusted_ca.clone().unwrap();
    let server = load(&options);
    let first = server.standing();
    assert_eq!(
        (first.reloads, first.failures, first.failing),
        (0, 0, false)
    );
    let shown = ca.sign(folder.path(), "client", &Leaf::default());
    let old_client = load(&caller(&options, Some(shown)));
    accepted(&server, &old_client).await;

    // A certificate without its key is not taken; told once, when it stays so.
    let later = Leaf {
        until: 2101,
        ..Leaf::default()
    };
    let next = ca.sign(folder.path(), "next", &later);
    fs::copy(&next.certificate, &pair.certificate).unwrap();
    for (looks, failures) in [(1, 0), (2, 1), (3, 1)] {
        server.refresh();
        let standing = server.standing();
        assert_eq!(standing.failures, failures, "look {looks}");
        assert_eq!(standing.failing, failures > 0);
        assert_eq!(standing.not_after, first.not_after);
    }
    accepted(&server, &old_client).await;

    // Meanwhile the CA changes to old and new, which is taken nevertheless.
    let new_ca = Ca::new("new");
    let both = format!("{}{}", ca.0.pem(), new_ca.0.pem());
    fs::write(&bundle, both).unwrap();
    server.refresh();
    let standing = server.standing();
    assert_ne!(standing.bundle_sha256, first.bundle_sha256);
    assert_eq!((standing.reloads, standing.failing), (1, true));
    let shown = new_ca.sign(folder.path(), "new-client", &Leaf::default());
    let new_client = load(&Options {
        trusted_ca: Some(ca.write(&folder.path().join("old.crt"))),
        ..caller(&options, Some(shown))
    });
    accepted(&server, &new_client).await;
    accepted(&server, &old_client).await;

    // The key follows.
    fs::copy(&next.key, &pair.key).unwrap();
    server.refresh();
    let standing = server.standing();
    assert_eq!((standing.reloads, standing.failing), (2, false));
    assert_eq!(standing.not_after, Some(4_133_980_800));

    // The old CA goes, and with it who it signed.
    new_ca.write(&bundle);
    server.refresh();
    accepted(&server, &new_client).await;
    refused(&server, &old_client, "invalid peer certificate").await;

    // Files that are gone or empty change nothing.
    let before = server.standing();
    fs::remove_file(&bundle).unwrap();
    fs::write(&pair.key, "").unwrap();
    server.refresh();
    server.refresh();
    let standing = server.standing();
    assert_eq!(standing.bundle_sha256, before.bundle_sha256);
    assert_eq!((standing.failures, standing.failing), (3, true));
    accepted(&server, &new_client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_followed() {
    let (folder, ca, options) = mutual();
    let server = load(&options);
    let following = tokio::spawn(Arc::clone(&server).follow());
    let later = Leaf {
        until: 2102,
        ..Leaf::default()
    };
    ca.sign(folder.path(), "server", &later);
    let seen = async {
        while server.standing().not_after != Some(4_165_516_800) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
    following.abort();
    seen.unwrap();
}

#[tokio::test]
async fn keys_of_each_common_kind_are_taken() {
    let (folder, ca, options) = mutual();
    let client = load(&caller(
        &options,
        Some(ca.sign(folder.path(), "client", &Leaf::default())),
    ));
    for (name, key) in [
        (
            "p521",
            KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap(),
        ),
        (
            "ed25519",
            KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        ),
        (
            "rsa",
            KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap(),
        ),
    ] {
        let certificate = Leaf::default().params().signed_by(&key, &ca.0).unwrap();
        let pair = write_pair(folder.path(), name, &certificate.pem(), &key);
        let server = load(&Options {
            certificate: Some(pair),
            ..options.clone()
        });
        accepted(&server, &client).await;
    }
}
