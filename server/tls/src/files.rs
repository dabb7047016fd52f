//! What files hold: certificates with their key, CAs, revocation lists.

use std::{collections::HashSet, fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, KeyProvider},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use sha2::{Digest, Sha256};

use crate::{
    Error, Pair,
    x509::{self, X509},
};

/// The longest file that is read: the largest revocation lists have some hundred thousand rows.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The first byte of anything in DER that is of interest here.
const DER_SEQUENCE: u8 = 0x30;

/// What the content of files is told apart by.
pub(crate) type Digest256 = [u8; 32];

/// A file and what it should hold.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub what: &'static str,
    pub path: PathBuf,
}

impl Source {
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let unreadable = |error: std::io::Error| Error::Unreadable {
            what: self.what,
            path: self.path.clone(),
            problem: error.to_string(),
        };
        let file = File::open(&self.path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        let mut file = file.take(MAX_FILE_BYTES + 1);
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::TooLong {
                what: self.what,
                path: self.path.clone(),
                limit: MAX_FILE_BYTES,
            });
        }
        Ok(bytes)
    }

    fn unusable(&self, problem: impl Into<String>) -> Error {
        Error::Unusable {
            what: self.what,
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    /// All certificates of a PEM file, at least one.
    fn certificates(&self, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
        let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(bytes).collect();
        let found =
            found.map_err(|error| self.unusable(format!("it is no PEM file: {error:?}")))?;
        if found.is_empty() {
            return Err(self.unusable("it holds no certificate in PEM form"));
        }
        for certificate in &found {
            self.parse(certificate)?;
        }
        Ok(found)
    }

    fn parse(&self, certificate: &CertificateDer<'_>) -> Result<X509, Error> {
        let parsed = X509::read(certificate);
        parsed.map_err(|error| self.unusable(format!("a certificate in it is none: {error}")))
    }
}

/// The sources of a certificate and its key.
pub(crate) fn pair(pair: &Pair) -> Vec<Source> {
    vec![
        Source {
            what: "the certificate",
            path: pair.certificate.clone(),
        },
        Source {
            what: "the key",
            path: pair.key.clone(),
        },
    ]
}

/// The digest of the contents of several files.
pub(crate) fn digest(contents: &[Vec<u8>]) -> Digest256 {
    let mut hash = Sha256::new();
    for content in contents {
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

/// A certificate that can be shown.
#[derive(Debug)]
pub(crate) struct Identity {
    pub key: Arc<CertifiedKey>,
    /// Seconds since 1970 from which and until which it is good.
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads a certificate and its key from their files' contents.
pub(crate) fn identity(
    sources: &[Source],
    contents: &[Vec<u8>],
    provider: &CryptoProvider,
) -> Result<Identity, Error> {
    let ([certificate, key], [chain, secret]) = (sources, contents) else {
        return Err(Error::Settings("a certificate and a key".to_owned()));
    };
    let chain = certificate.certificates(chain)?;
    let (not_before, not_after) = certificate.parse(&chain[0])?.validity();
    let secret = secret_key(key, secret, provider.key_provider)?;
    let certified = CertifiedKey::new(chain, secret);
    match certified.keys_match() {
        // Some keys do not tell; a handshake would.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(Error::OtherKey {
                certificate: certificate.path.clone(),
                key: key.path.clone(),
            });
        }
        Err(error) => return Err(certificate.unusable(error.to_string())),
    }
    Ok(Identity {
        key: Arc::new(certified),
        not_before: seconds(not_before),
        not_after: seconds(not_after),
    })
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn secret_key(
    source: &Source,
    bytes: &[u8],
    provider: &dyn KeyProvider,
) -> Result<Arc<dyn rustls::sign::SigningKey>, Error> {
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let encrypted = bytes.windows(9).any(|word| word == b"ENCRYPTED");
            source.unusable(match encrypted {
                true => "it is encrypted; decrypt it, as with 'openssl pkey'",
                false => "it holds no private key in PEM form",
            })
        }
        error => source.unusable(format!("it is no PEM file: {error:?}")),
    })?;
    let key = provider.load_private_key(key);
    key.map_err(|error| source.unusable(format!("its key is of no kind that is known: {error}")))
}

/// Who is believed: what a CA file says.
#[derive(Debug)]
pub(crate) struct Anchors {
    /// Those whose signature is believed.
    pub roots: Arc<RootCertStore>,
    /// All certificates of the file: each is believed itself, also when it may not sign.
    pub exact: Vec<CertificateDer<'static>>,
    /// Those who may be named to a client that asks whose certificate it should show.
    pub hints: Arc<RootCertStore>,
    /// SHA-256 of the file.
    pub sha256: Digest256,
}

/// Reads a file of CAs.
pub(crate) fn anchors(sources: &[Source], contents: &[Vec<u8>]) -> Result<Anchors, Error> {
    let (Some(source), Some(bytes)) = (sources.first(), contents.first()) else {
        return Err(Error::Settings("a CA file".to_owned()));
    };
    let exact = source.certificates(bytes)?;
    let (mut roots, mut hints) = (RootCertStore::empty(), RootCertStore::empty());
    for certificate in &exact {
        let unusable = |error: rustls::Error| source.unusable(error.to_string());
        if source.parse(certificate)?.may_sign() {
            roots.add(certificate.clone()).map_err(unusable)?;
        }
        hints.add(certificate.clone()).map_err(unusable)?;
    }
    Ok(Anchors {
        roots: Arc::new(roots),
        exact,
        hints: Arc::new(hints),
        sha256: Sha256::digest(bytes).into(),
    })
}

/// The system's CAs.
pub(crate) fn system_anchors() -> Result<Anchors, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(Error::NoSystemCa(match problems.is_empty() {
            true => "none found".to_owned(),
            false => problems.join("; "),
        }));
    }
    let roots = Arc::new(roots);
    Ok(Anchors {
        hints: Arc::clone(&roots),
        roots,
        exact: Vec::new(),
        sha256: Digest256::default(),
    })
}

/// Serial numbers that are believed no longer, without leading zeros.
pub(crate) type Revoked = HashSet<Vec<u8>>;

/// Reads a revocation list: DER as etcd wants it, or PEM with one or more lists.
pub(crate) fn revoked(sources: &[Source], contents: &[Vec<u8>]) -> Result<Revoked, Error> {
    let (Some(source), Some(bytes)) = (sources.first(), contents.first()) else {
        return Err(Error::Settings("a revocation list".to_owned()));
    };
    // PEM may have words before it; DER begins with the tag of a sequence.
    let is_pem = !bytes.starts_with(&[DER_SEQUENCE]);
    let lists: Vec<Vec<u8>> = match is_pem {
        false => vec![bytes.clone()],
        true => {
            let lists: Result<Vec<_>, pem::Error> =
                CertificateRevocationListDer::pem_slice_iter(bytes).collect();
            let lists = lists.map_err(|error| source.unusable(format!("{error:?}")))?;
            lists.iter().map(|list| list.to_vec()).collect()
        }
    };
    if lists.is_empty() {
        return Err(source.unusable("it holds no revocation list"));
    }
    let mut revoked = Revoked::new();
    for list in &lists {
        let serials = x509::revoked(list).map_err(|error| {
            source.unusable(format!("it is no revocation list of version 2: {error}"))
        })?;
        revoked.extend(serials);
    }
    Ok(revoked)
}
