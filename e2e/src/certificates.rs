//! CAs, certificates and revocation lists for tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};

/// A CA.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Issue {
    /// Its common name.
    pub name: &'static str,
    /// Its host names and addresses.
    pub hosts: Vec<&'static str>,
    /// Its number.
    pub serial: u64,
    /// The year that it is good until the first day of.
    pub until: i32,
    /// Whether clients may show it.
    pub for_clients: bool,
}

impl Default for Issue {
    fn default() -> Self {
        Self {
            name: "member",
            hosts: vec!["localhost", "127.0.0.1"],
            serial: 1,
            until: 2100,
            for_clients: true,
        }
    }
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a CA.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes a certificate of it and the key, each by one rename, over those that are there.
    pub fn issue(&self, folder: &Path, file: &str, issue: &Issue) -> KeyFiles {
        let hosts: Vec<String> = issue.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, issue.name);
        params.serial_number = Some(SerialNumber::from(issue.serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(issue.until, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if issue.for_clients {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let files = KeyFiles {
            certificate: folder.join(format!("{file}.crt")),
            key: folder.join(format!("{file}.key")),
        };
        replace(&files.certificate, certificate.pem().as_bytes());
        replace(&files.key, key.serialize_pem().as_bytes());
        files
    }

    /// A list that revokes certificates by their numbers, as etcd reads it.
    pub fn revoke(&self, serials: &[u64]) -> Vec<u8> {
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().der().to_vec()
    }
}

/// Writes a file beside and renames it, so that nobody reads half of it.
pub fn replace(path: &Path, content: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::rename(&beside, path).unwrap();
}
