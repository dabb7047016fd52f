//! TLS for everything that listens or calls: certificates, trust, reload, handshakes.
//!
//! Owns: reading certificates, keys, CAs and revocation lists; who is believed; making
//! certificates for `--auto-tls`; new files in use without a restart; handshakes bounded in time.
//! aws-lc-rs is the one provider, always given explicitly.
//!
//! Must never know: HTTP, flags, raft, or what is said on a connection.
//!
//! Files are told apart by their content. A certificate and its key are one part, the CA another,
//! the revocation list a third: a part that cannot be used keeps what it had, and the others go on.
//!
//! Start reading in `reload.rs`, [`Tls`], then `trust.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod addresses;
mod error;
mod files;
mod handshake;
mod reload;
mod self_made;
mod suites;
#[cfg(test)]
mod tests;
mod trust;
mod x509;

use std::path::PathBuf;

pub use error::Error;
pub use handshake::{Acceptor, Rejected};
pub use reload::{Standing, Tls};
pub use rustls::ClientConfig;
pub use self_made::self_made;
pub use suites::Version;
pub use tokio_rustls::server::TlsStream;
pub use trust::Allowed;

/// A certificate (with those that lead to its CA behind it) and its key, both as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The file with the certificates, this one's first.
    pub certificate: PathBuf,
    /// The file with the key.
    pub key: PathBuf,
}

/// How one side, clients' or peers', is secured.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What listeners show. Without it nothing can listen, but calls can be made.
    pub certificate: Option<Pair>,
    /// What calls show when they are asked; that of the listeners when there is none.
    pub client_certificate: Option<Pair>,
    /// Who signed the certificates that are believed; the system's CAs when there is none. With
    /// one, everybody who connects must show a certificate.
    pub trusted_ca: Option<PathBuf>,
    /// Whether everybody who connects must show a certificate.
    pub client_cert_auth: bool,
    /// Certificates that are believed no longer, by their serial numbers; DER or PEM.
    pub revoked: Option<PathBuf>,
    /// Who is believed, of those whose certificate is.
    pub allowed: Allowed,
    /// Whether calls believe any certificate, since each member made its own.
    pub self_made: bool,
    /// The oldest version of TLS that is spoken.
    pub min_version: Version,
    /// The newest; any when there is none.
    pub max_version: Option<Version>,
    /// Cipher suites of TLS 1.2 by Go's names; all that are good when empty. Those of TLS 1.3 are
    /// always on, as in Go.
    pub cipher_suites: Vec<String>,
}
