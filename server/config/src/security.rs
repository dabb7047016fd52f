//! How clients' and peers' connections are secured, as flags say it.

use std::path::PathBuf;

use url::Url;

use crate::{Config, Error, Values};

/// Schemes of URLs that are secured.
const SECURE: &[&str] = &["https", "unixs"];

/// Whether a URL is served with TLS.
pub fn is_secure(url: &Url) -> bool {
    SECURE.contains(&url.scheme())
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The file with the certificate.
    pub certificate: PathBuf,
    /// The file with the key.
    pub key: PathBuf,
}

/// One side: clients or peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// What listeners show.
    pub certificate: Option<KeyPair>,
    /// What calls show instead.
    pub client_certificate: Option<KeyPair>,
    /// Who signed the certificates that are believed.
    pub trusted_ca: Option<PathBuf>,
    /// Whether everybody who connects must show a certificate.
    pub client_cert_auth: bool,
    /// Certificates that are believed no longer.
    pub crl: Option<PathBuf>,
    /// Common names that are allowed; all when empty.
    pub allowed_cns: Vec<String>,
    /// Host names that are allowed; all when empty.
    pub allowed_hostnames: Vec<String>,
    /// Whether listeners show a certificate that the member makes for itself. Never together with
    /// `certificate`.
    pub self_made: bool,
    /// Whether a certificate need not be good for the address that it comes from.
    pub skip_san_check: bool,
}

/// What is the same for both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsLimits {
    /// Whether only TLS 1.3 is spoken.
    pub min_is_13: bool,
    /// Whether only TLS 1.2 is spoken.
    pub max_is_12: bool,
    /// Cipher suites of TLS 1.2 by Go's names; the good ones when empty.
    pub cipher_suites: Vec<String>,
    /// How many years a certificate is made for.
    pub self_made_years: u32,
}

/// The words of one side's flags and messages.
#[derive(Clone, Copy)]
struct Side {
    /// Before the names of flags.
    prefix: &'static str,
    name: &'static str,
}

const CLIENT: Side = Side {
    prefix: "",
    name: "client",
};
const PEER: Side = Side {
    prefix: "peer-",
    name: "peer",
};

fn invalid<T>(problem: String) -> Result<T, Error> {
    Err(Error::Invalid(problem))
}

impl Security {
    pub(crate) fn client(v: &Values<'_>, warnings: &mut Vec<String>) -> Result<Self, Error> {
        Self::of(v, CLIENT, warnings)
    }

    pub(crate) fn peer(v: &Values<'_>, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let mut peer = Self::of(v, PEER, warnings)?;
        peer.allowed_cns = v.list("peer-cert-allowed-cn");
        peer.skip_san_check = v.bool("peer-skip-client-san-verification");
        peer.check_allowed()?;
        peer.check_self_made(PEER)?;
        Ok(peer)
    }

    fn of(v: &Values<'_>, side: Side, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let Side { prefix, name } = side;
        let flag = |name: &str| format!("{prefix}{name}");
        // Not the prefix of the others.
        let hostnames = format!("{name}-cert-allowed-hostname");
        let crl = format!("{name}-crl-file");
        let mut security = Self {
            certificate: pair(v, &flag("cert-file"), &flag("key-file"), Absent::Neither)?,
            client_certificate: pair(
                v,
                &flag("client-cert-file"),
                &flag("client-key-file"),
                Absent::Both,
            )?,
            trusted_ca: v.path(&flag("trusted-ca-file")),
            client_cert_auth: v.bool(&flag("client-cert-auth")),
            crl: v.path(&crl),
            allowed_cns: Vec::new(),
            allowed_hostnames: v.list(&hostnames),
            self_made: v.bool(&flag("auto-tls")),
            skip_san_check: false,
        };
        if security.self_made && security.certificate.is_some() {
            warnings.push(format!("ignoring {name} auto TLS since certs given"));
            security.self_made = false;
        }
        security.check_self_made(side)?;
        Ok(security)
    }

    fn check_allowed(&self) -> Result<(), Error> {
        if self.allowed_cns.is_empty() || self.allowed_hostnames.is_empty() {
            return Ok(());
        }
        invalid(format!(
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns={:?}, hostnames={:?}): \
             give one of --peer-cert-allowed-cn and --peer-cert-allowed-hostname",
            self.allowed_cns, self.allowed_hostnames
        ))
    }

    /// etcd drops all that says who may connect when it makes its own certificates, and lets in
    /// everybody. Nobody means that.
    fn check_self_made(&self, Side { prefix, name }: Side) -> Result<(), Error> {
        let restricted = self.client_cert_auth
            || self.trusted_ca.is_some()
            || self.crl.is_some()
            || self.client_certificate.is_some()
            || !self.allowed_cns.is_empty()
            || !self.allowed_hostnames.is_empty();
        if self.self_made && restricted {
            return invalid(format!(
                "--{prefix}auto-tls lets everybody connect, but other flags say who may: give \
                 --{prefix}cert-file and --{prefix}key-file, or only --{prefix}auto-tls for {name} \
                 connections"
            ));
        }
        Ok(())
    }

    /// Whether listeners have something to show.
    pub fn can_listen(&self) -> bool {
        self.certificate.is_some() || self.self_made
    }

    /// What etcd warns of for a listener without TLS.
    fn warn_plain(&self, url: &Url, side: Side, warnings: &mut Vec<String>) {
        let (scheme, auth) = match side.name {
            "peer" => ("HTTP", "--peer-client-cert-auth"),
            _ => ("http or unix", "--client-cert-auth"),
        };
        if self.can_listen() {
            warnings.push(format!(
                "scheme is {scheme} while key and cert files are present; ignoring key and cert \
                 files ({})",
                plain(url)
            ));
        }
        if self.client_cert_auth {
            warnings.push(format!(
                "scheme is {scheme} while {auth} is enabled; ignoring client cert auth for this \
                 URL ({})",
                plain(url)
            ));
        }
    }
}

/// What may be absent of a pair, which decides over etcd's words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Neither,
    Both,
}

fn pair(v: &Values<'_>, cert: &str, key: &str, absent: Absent) -> Result<Option<KeyPair>, Error> {
    let given = (v.path(cert), v.path(key));
    let (certificate, key_file) = match given {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => return Ok(Some(KeyPair { certificate, key })),
        (certificate, key) => (certificate.unwrap_or_default(), key.unwrap_or_default()),
    };
    let (certificate, key_file) = (certificate.display(), key_file.display());
    let words = match absent {
        Absent::Neither => "KeyFile and CertFile must both be present",
        Absent::Both => "ClientKeyFile and ClientCertFile must both be present or both absent",
    };
    invalid(format!(
        "{words}[key: {key_file}, cert: {certificate}]: give --{cert} and --{key} together"
    ))
}

impl TlsLimits {
    pub(crate) fn of(v: &Values<'_>) -> Result<Self, Error> {
        let (min, max) = (v.text("tls-min-version"), v.text("tls-max-version"));
        if !max.is_empty() && min > max {
            return invalid(format!(
                "min version ({min}) is greater than max version ({max}): change \
                 --tls-min-version or --tls-max-version"
            ));
        }
        let cipher_suites = v.list("cipher-suites");
        if min == "TLS1.3" && !cipher_suites.is_empty() {
            return invalid(
                "cipher suites cannot be configured when only TLS1.3 is enabled: leave out \
                 --cipher-suites"
                    .to_owned(),
            );
        }
        let self_made_years = v.number("self-signed-cert-validity")?;
        let self_made = v.bool("auto-tls") || v.bool("peer-auto-tls");
        if self_made && self_made_years == 0 {
            return invalid(
                "selfSignedCertValidity is invalid,it should be greater than 0: give \
                 --self-signed-cert-validity in years"
                    .to_owned(),
            );
        }
        Ok(Self {
            min_is_13: min == "TLS1.3",
            max_is_12: max == "TLS1.2",
            cipher_suites,
            self_made_years,
        })
    }
}

/// Checks each listener's URL against what there is to show.
pub(crate) fn check(config: &mut Config) -> Result<(), Error> {
    let mut warnings = Vec::new();
    for url in config
        .listen_client
        .iter()
        .chain(&config.listen_client_http)
    {
        if !is_secure(url) {
            config.client_tls.warn_plain(url, CLIENT, &mut warnings);
        } else if !config.client_tls.can_listen() {
            return invalid(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {} with \
                 HTTPS scheme",
                plain(url)
            ));
        }
    }
    for url in &config.listen_peer {
        if !is_secure(url) {
            config.peer_tls.warn_plain(url, PEER, &mut warnings);
        } else if !config.peer_tls.can_listen() {
            return invalid(format!(
                "cannot listen on TLS for {}: KeyFile and CertFile are not presented: give \
                 --peer-cert-file and --peer-key-file",
                url.authority()
            ));
        }
    }
    for url in &config.listen_metrics {
        if is_secure(url) && !config.client_tls.can_listen() {
            return invalid(format!(
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics \
                 secure url {}",
                plain(url)
            ));
        }
    }
    for (security, flag) in [
        (&config.client_tls, "--trusted-ca-file"),
        (&config.peer_tls, "--peer-trusted-ca-file"),
    ] {
        if security.client_cert_auth && security.trusted_ca.is_none() {
            warnings.push(format!(
                "client certificates are asked for without {flag}: everybody with a certificate \
                 of one of the system's CAs is let in"
            ));
        }
    }
    config.warnings.append(&mut warnings);
    Ok(())
}

/// A URL as it is written: without the slash that the parser adds.
pub(crate) fn plain(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}
