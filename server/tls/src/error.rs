//! What can be wrong with files and settings.

use std::path::PathBuf;

/// Why there is no TLS, with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(
        "could not read {what} {}: {problem}; is the path right, and may this user read it?",
        path.display()
    )]
    Unreadable {
        /// What the file should hold.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// A file is too long to be what it should be.
    #[error("{what} {} is longer than {limit} bytes, so it is none", path.display())]
    TooLong {
        /// What the file should hold.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The longest that is read.
        limit: u64,
    },
    /// A file holds something else.
    #[error("{what} {} cannot be used: {problem}", path.display())]
    Unusable {
        /// What the file should hold.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong, with what to do.
        problem: String,
    },
    /// A key that is another certificate's.
    #[error(
        "the key {} does not belong to the certificate {}: give the key that the certificate was \
         made for", key.display(), certificate.display()
    )]
    OtherKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A cipher suite that nobody knows, in etcd's words.
    #[error("unexpected TLS cipher suite {0:?}")]
    UnknownSuite(String),
    /// Suites that are known and not spoken here.
    #[error(
        "none of the cipher suites {0:?} is spoken here: take some with ECDHE and GCM or CHACHA20"
    )]
    NoSuite(Vec<String>),
    /// The system has no CAs.
    #[error("the system has no CA certificates ({0}): give a trusted CA file")]
    NoSystemCa(String),
    /// A certificate could not be made.
    #[error("could not make a certificate in {}: {problem}", path.display())]
    NotMade {
        /// The folder that it should be in.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The TLS library does not take the settings.
    #[error("TLS cannot be set up so: {0}")]
    Settings(String),
}
