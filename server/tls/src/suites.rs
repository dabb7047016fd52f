//! Versions and cipher suites: Go's names, and what is spoken here.

use std::sync::Arc;

use rustls::{CipherSuite, SupportedCipherSuite, SupportedProtocolVersion, crypto::CryptoProvider};
use tracing::warn;

use crate::{Error, Options};

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.2.
    #[default]
    Tls12,
    /// 1.3.
    Tls13,
}

/// Suites of TLS 1.2 that Go has and that are not spoken here: without forward secrecy, without
/// authenticated encryption, or broken.
const NOT_SPOKEN: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// The provider with the suites that are wanted.
pub(crate) fn provider(options: &Options) -> Result<Arc<CryptoProvider>, Error> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if !options.cipher_suites.is_empty() {
        provider.cipher_suites = chosen(&options.cipher_suites, &provider.cipher_suites)?;
        let left = |suite: &SupportedCipherSuite| versions(options).contains(&suite.version());
        if !provider.cipher_suites.iter().any(left) {
            return Err(Error::NoSuite(options.cipher_suites.clone()));
        }
    }
    Ok(Arc::new(provider))
}

/// The versions that are wanted.
pub(crate) fn versions(options: &Options) -> Vec<&'static SupportedProtocolVersion> {
    let spoken = [
        (Version::Tls13, &rustls::version::TLS13),
        (Version::Tls12, &rustls::version::TLS12),
    ];
    let max = options.max_version.unwrap_or(Version::Tls13);
    let wanted = spoken
        .into_iter()
        .filter(|(version, _)| (options.min_version..=max).contains(version));
    wanted.map(|(_, version)| version).collect()
}

/// The suites of TLS 1.3, and those of TLS 1.2 that are named.
fn chosen(
    names: &[String],
    spoken: &[SupportedCipherSuite],
) -> Result<Vec<SupportedCipherSuite>, Error> {
    let tls13 = |suite: &&SupportedCipherSuite| suite.tls13().is_some();
    let mut chosen: Vec<SupportedCipherSuite> = spoken.iter().filter(tls13).copied().collect();
    for name in names {
        match spoken.iter().find(|suite| is_named(suite.suite(), name)) {
            Some(suite) if chosen.contains(suite) => {}
            Some(suite) => chosen.push(*suite),
            None if NOT_SPOKEN.contains(&name.as_str()) => {
                warn!(
                    suite = name,
                    "a cipher suite is left out: it is not spoken here"
                );
            }
            None => return Err(Error::UnknownSuite(name.clone())),
        }
    }
    Ok(chosen)
}

/// Whether a suite has a name: Go's, which is IANA's, or one of two short ones of its past.
fn is_named(suite: CipherSuite, name: &str) -> bool {
    // The library's names say TLS13 where IANA's say TLS.
    let iana = suite.as_str().unwrap_or_default().replace("TLS13_", "TLS_");
    let short = name.ends_with("_CHACHA20_POLY1305");
    iana == name || (short && iana == format!("{name}_SHA256"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(suites: &[&str], max: Version) -> Options {
        Options {
            cipher_suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
            max_version: Some(max),
            ..Options::default()
        }
    }

    #[test]
    fn suites_have_gos_names() {
        let spoken = [
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
            "TLS_RSA_WITH_AES_256_GCM_SHA384",
            "TLS_AES_128_GCM_SHA256",
        ];
        let provider = provider(&options(&spoken, Version::Tls13)).unwrap();
        // Three of TLS 1.3, and the six that are spoken.
        assert_eq!(provider.cipher_suites.len(), 9);
        let one = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"];
        let provider = super::provider(&options(&one, Version::Tls12)).unwrap();
        assert_eq!(provider.cipher_suites.len(), 4);
        assert_eq!(versions(&options(&[], Version::Tls12)).len(), 1);
        assert_eq!(versions(&Options::default()).len(), 2);
    }

    #[test]
    fn suites_that_leave_nothing_are_refused() {
        let unknown = provider(&options(&["NOPE"], Version::Tls13)).unwrap_err();
        assert_eq!(unknown.to_string(), "unexpected TLS cipher suite \"NOPE\"");
        let none = options(&["TLS_RSA_WITH_AES_128_GCM_SHA256"], Version::Tls12);
        assert!(matches!(provider(&none), Err(Error::NoSuite(_))));
    }
}
