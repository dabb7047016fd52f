//! From flags to TLS: what clients, peers and calls to peers are secured with.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use config::{Config, Security, Url, is_secure};
use tls::{Acceptor, Allowed, Options, Pair, Tls, Version};
use tokio::task::JoinSet;
use tracing::info;

use crate::listen::Cover;

/// Below the data directory, as etcd has it: certificates that the member made for itself.
const SELF_MADE: &str = "fixtures";

/// Both sides, and the tasks that follow their files.
pub(crate) struct Secured {
    /// `None` when no client's connection is secured.
    client: Option<Arc<Tls>>,
    peer: Arc<Tls>,
    skip_peer_san_check: bool,
    /// Whether a client's certificate says which user it is.
    names_users: bool,
    _following: JoinSet<()>,
}

impl Secured {
    /// Reads all files that are used; makes certificates where the flags say so.
    ///
    /// # Errors
    /// The first file or setting that cannot be used, with what to do.
    pub fn load(config: &Config) -> anyhow::Result<Self> {
        let clients = config.listen_client.iter().chain(&config.listen_metrics);
        let client = match clients.clone().any(is_secure) {
            true => Some(side(
                config,
                "client",
                &config.client_tls,
                &config.listen_client,
            )?),
            false => None,
        };
        let peer = side(config, "peer", &config.peer_tls, &config.listen_peer)?;
        let mut following = JoinSet::new();
        for tls in client.iter().chain([&peer]) {
            following.spawn(Arc::clone(tls).follow());
        }
        Ok(Self {
            client,
            peer,
            skip_peer_san_check: config.peer_tls.skip_san_check,
            names_users: config.client_tls.client_cert_auth,
            _following: following,
        })
    }

    /// For calls to other members.
    pub fn peer(&self) -> Arc<Tls> {
        Arc::clone(&self.peer)
    }

    /// All, for metrics.
    pub fn all(&self) -> Vec<Arc<Tls>> {
        self.client.iter().chain([&self.peer]).cloned().collect()
    }

    /// What a client's listener speaks: plain, with TLS, or both.
    pub fn client_cover(&self, plain: bool, secure: bool) -> Cover {
        let acceptor =
            |tls: &Arc<Tls>| Acceptor::new(Arc::clone(tls), false).naming_users(self.names_users);
        match (&self.client, plain, secure) {
            (Some(tls), false, true) => Cover::Tls(acceptor(tls)),
            (Some(tls), true, true) => Cover::Both(acceptor(tls)),
            _ => Cover::Plain,
        }
    }

    /// What a listener for metrics speaks. As in etcd it shows what clients see, but looks at the
    /// addresses of those who connect.
    pub fn metrics_cover(&self, url: &Url) -> Cover {
        match (&self.client, is_secure(url)) {
            (Some(tls), true) => Cover::Tls(Acceptor::new(Arc::clone(tls), true)),
            _ => Cover::Plain,
        }
    }

    /// What a listener for other members speaks.
    pub fn peer_cover(&self, url: &Url) -> Cover {
        match is_secure(url) {
            true => {
                let check = !self.skip_peer_san_check;
                Cover::Tls(Acceptor::new(Arc::clone(&self.peer), check))
            }
            false => Cover::Plain,
        }
    }
}

fn side(
    config: &Config,
    name: &'static str,
    security: &Security,
    listeners: &[Url],
) -> anyhow::Result<Arc<Tls>> {
    let pair = |pair: &config::KeyPair| Pair {
        certificate: pair.certificate.clone(),
        key: pair.key.clone(),
    };
    let limits = &config.tls;
    let version = |is: bool, version: Version| is.then_some(version);
    let options = Options {
        certificate: match security.self_made {
            true => {
                let folder = config.data_dir.join(SELF_MADE).join(name);
                Some(self_made(&folder, listeners, limits.self_made_years)?)
            }
            false => security.certificate.as_ref().map(pair),
        },
        client_certificate: security.client_certificate.as_ref().map(pair),
        trusted_ca: security.trusted_ca.clone(),
        client_cert_auth: security.client_cert_auth,
        revoked: security.crl.clone(),
        allowed: match (&security.allowed_cns, &security.allowed_hostnames) {
            (names, _) if !names.is_empty() => Allowed::CommonNames(names.clone()),
            (_, names) if !names.is_empty() => Allowed::Hostnames(names.clone()),
            _ => Allowed::All,
        },
        self_made: security.self_made,
        min_version: version(limits.min_is_13, Version::Tls13).unwrap_or_default(),
        max_version: version(limits.max_is_12, Version::Tls12),
        cipher_suites: limits.cipher_suites.clone(),
    };
    if options.certificate.is_some() {
        info!(
            "tls-info" = described(&options),
            "cipher-suites" = ?options.cipher_suites,
            "starting with {name} TLS"
        );
    }
    Tls::load(name, options).with_context(|| format!("{name} TLS"))
}

fn self_made(folder: &Path, listeners: &[Url], years: u32) -> anyhow::Result<Pair> {
    let hosts = listeners.iter().filter_map(Url::host_str);
    let hosts = hosts.map(|host| host.trim_matches(['[', ']']).to_owned());
    let hosts: Vec<String> = hosts.collect();
    tls::self_made(folder, &hosts, years).context("could not make certificates")
}

/// The settings in the form of etcd's log.
fn described(options: &Options) -> String {
    let text = |path: Option<&Path>| path.unwrap_or(Path::new("")).display().to_string();
    let pair = |pair: &Option<Pair>| {
        let pair = pair.as_ref();
        let certificate = text(pair.map(|pair| pair.certificate.as_path()));
        (certificate, text(pair.map(|pair| pair.key.as_path())))
    };
    let ((cert, key), (client_cert, client_key)) = (
        pair(&options.certificate),
        pair(&options.client_certificate),
    );
    format!(
        "cert = {cert}, key = {key}, client-cert={client_cert}, client-key={client_key}, \
         trusted-ca = {}, client-cert-auth = {}, crl-file = {}",
        text(options.trusted_ca.as_deref()),
        options.client_cert_auth,
        text(options.revoked.as_deref()),
    )
}
