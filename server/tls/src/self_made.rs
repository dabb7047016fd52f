//! Certificates that a member makes for itself, for `--auto-tls`.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512,
};
use tracing::{info, warn};

use crate::{Error, Pair};

/// A year, as etcd counts it.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// The longest that a certificate is made for.
const MAX_YEARS: u32 = 1000;

/// The certificate in `folder` that is good for `hosts` (names and addresses); it is made, for
/// some years, when it is not there. Files and contents are like etcd's.
///
/// # Errors
/// What cannot be made or written.
pub fn self_made(folder: &Path, hosts: &[String], years: u32) -> Result<Pair, Error> {
    let pair = Pair {
        certificate: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    };
    if pair.certificate.exists() && pair.key.exists() {
        return Ok(pair);
    }
    let not_made = |problem: String| Error::NotMade {
        path: folder.to_owned(),
        problem,
    };
    let (certificate, key) =
        make(hosts, years.min(MAX_YEARS)).map_err(|error| not_made(error.to_string()))?;
    let write = || -> std::io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        // The certificate last: a crash before it leaves no pair, and a new one is made.
        let _ = fs::remove_file(&pair.certificate);
        write_file(&pair.key, &key, 0o600)?;
        write_file(&pair.certificate, &certificate, 0o644)
    };
    write().map_err(|error| not_made(error.to_string()))?;
    info!(path = %pair.certificate.display(), "created cert file");
    info!(path = %pair.key.display(), "created key file");
    Ok(pair)
}

fn write_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let beside = path.with_extension("pem.tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn make(hosts: &[String], years: u32) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512)?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "etcd");
    let now = SystemTime::now();
    params.not_before = now.into();
    params.not_after = (now + YEAR * years).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    warn!(
        "certificate-validity-bound-not-after" = %params.not_after,
        "automatically generate certificates"
    );
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
