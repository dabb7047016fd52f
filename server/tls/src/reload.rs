//! What is in use now, and how new files come into use.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    ClientConfig, ServerConfig, client::Resumption, crypto::CryptoProvider,
    server::NoServerSessionStorage, sign::SingleCertAndKey,
};
use tracing::{info, warn};

use crate::{
    Error, Options,
    files::{self, Anchors, Digest256, Identity, Revoked, Source, digest},
    suites,
    trust::{Clients, Servers},
};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);

/// The system's CAs, read at most once: few need them.
static SYSTEM: LazyLock<Result<Arc<Anchors>, Error>> =
    LazyLock::new(|| files::system_anchors().map(Arc::new));

/// How one side is secured now. Connections that are made keep what they were made with.
#[derive(Debug)]
pub struct Tls {
    name: &'static str,
    options: Options,
    provider: Arc<CryptoProvider>,
    parts: Mutex<Parts>,
    current: ArcSwap<Current>,
    /// Beside `parts`, which are locked as long as a file system takes to read.
    standing: ArcSwap<Standing>,
}

/// What handshakes use.
#[derive(Debug)]
struct Current {
    server: Option<Arc<ServerConfig>>,
    /// `None` while the system's CAs are needed and nobody has called.
    client: Option<Arc<ClientConfig>>,
}

/// What the files say.
#[derive(Debug)]
struct Parts {
    identity: Option<Part<Identity>>,
    client_identity: Option<Part<Identity>>,
    anchors: Option<Part<Anchors>>,
    revoked: Option<Part<Revoked>>,
    /// Whether somebody calls who believes the system's CAs.
    system: bool,
    reloads: u64,
    failures: u64,
}

/// How it stands, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whose TLS this is, as it was named.
    pub name: &'static str,
    /// SHA-256 of the CA file in use, in hexadecimal digits; `None` without one.
    pub bundle_sha256: Option<String>,
    /// Until when what listeners show is good, in seconds since 1970.
    pub not_after: Option<i64>,
    /// The same of what calls show, where it is another.
    pub client_not_after: Option<i64>,
    /// How often new files came into use.
    pub reloads: u64,
    /// How often new files could not be used.
    pub failures: u64,
    /// Whether the files that are there now cannot be used.
    pub failing: bool,
}

impl Tls {
    /// Reads all files. `name` says whose TLS this is, in logs and metrics.
    ///
    /// # Errors
    /// The first file or setting that cannot be used.
    pub fn load(name: &'static str, options: Options) -> Result<Arc<Self>, Error> {
        let provider = suites::provider(&options)?;
        let identity = |pair: Option<&crate::Pair>| -> Result<Option<Part<Identity>>, Error> {
            let Some(pair) = pair else {
                return Ok(None);
            };
            let provider = Arc::clone(&provider);
            let part = Part::load(files::pair(pair), move |sources, contents| {
                files::identity(sources, contents, &provider)
            })?;
            warn_of_time(name, &part.value);
            Ok(Some(part))
        };
        let source = |what, path: Option<&std::path::PathBuf>| {
            let source = |path: &std::path::PathBuf| Source {
                what,
                path: path.clone(),
            };
            path.map(|path| vec![source(path)])
        };
        let anchors = source("the trusted CA file", options.trusted_ca.as_ref());
        let revoked = source("the revocation list", options.revoked.as_ref());
        let parts = Parts {
            identity: identity(options.certificate.as_ref())?,
            client_identity: identity(options.client_certificate.as_ref())?,
            anchors: anchors
                .map(|sources| Part::load(sources, files::anchors))
                .transpose()?,
            revoked: revoked
                .map(|sources| Part::load(sources, files::revoked))
                .transpose()?,
            system: false,
            reloads: 0,
            failures: 0,
        };
        let current = parts.build(&options, &provider)?;
        let standing = parts.standing(name);
        Ok(Arc::new(Self {
            name,
            options,
            provider,
            parts: Mutex::new(parts),
            current: ArcSwap::from_pointee(current),
            standing: ArcSwap::from_pointee(standing),
        }))
    }

    /// What listeners use; `None` when they have nothing to show.
    pub(crate) fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.current.load().server.clone()
    }

    /// What calls use.
    ///
    /// # Errors
    /// There are no CAs to believe.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(client) = &self.current.load().client {
            return Ok(Arc::clone(client));
        }
        let mut parts = self.parts.lock();
        parts.system = true;
        let current = parts.build(&self.options, &self.provider)?;
        let client = current.client.clone();
        self.current.store(Arc::new(current));
        client.ok_or_else(|| Error::Settings("calls cannot be made".to_owned()))
    }

    /// Looks at the files again and again; never ends, unless there are none.
    pub async fn follow(self: Arc<Self>) {
        while self.parts.lock().has_files() {
            tokio::time::sleep(POLL).await;
            let tls = Arc::clone(&self);
            // A file system that hangs must hang no task of the runtime.
            let _ = tokio::task::spawn_blocking(move || tls.refresh()).await;
        }
    }

    /// Looks at the files once.
    pub(crate) fn refresh(&self) {
        let mut parts = self.parts.lock();
        let mut is_new = false;
        for seen in parts.look() {
            match seen {
                Seen::Same => {}
                Seen::New => is_new = true,
                Seen::Unusable(error) => self.failed(&mut parts, &error),
            }
        }
        if is_new {
            match parts.build(&self.options, &self.provider) {
                Ok(current) => self.renewed(&mut parts, current),
                Err(error) => self.failed(&mut parts, &error),
            }
        }
        self.standing.store(Arc::new(parts.standing(self.name)));
    }

    fn renewed(&self, parts: &mut Parts, current: Current) {
        self.current.store(Arc::new(current));
        parts.reloads += 1;
        let standing = parts.standing(self.name);
        info!(
            listener = self.name,
            not_after = standing.not_after,
            bundle_sha256 = standing.bundle_sha256,
            "reloaded TLS files"
        );
        let identities = parts.identity.iter().chain(&parts.client_identity);
        for identity in identities {
            warn_of_time(self.name, &identity.value);
        }
    }

    fn failed(&self, parts: &mut Parts, error: &Error) {
        parts.failures += 1;
        warn!(
            listener = self.name,
            %error,
            "new TLS files cannot be used; those before stay in use"
        );
    }

    /// How it stands.
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }
}

/// A certificate that is not good now is shown all the same, as etcd does: clients decide. But it
/// is said.
fn warn_of_time(name: &'static str, identity: &Identity) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    if now > identity.not_after {
        warn!(
            listener = name,
            not_after = identity.not_after,
            "the certificate has expired: clients will refuse it; put a new one in its place"
        );
    } else if now < identity.not_before {
        warn!(
            listener = name,
            not_before = identity.not_before,
            "the certificate is not good yet: clients will refuse it; is the clock right?"
        );
    }
}

impl Parts {
    fn has_files(&self) -> bool {
        let pairs = self.identity.is_some() || self.client_identity.is_some();
        pairs || self.anchors.is_some() || self.revoked.is_some()
    }

    fn look(&mut self) -> Vec<Seen> {
        let seen = [
            self.identity.as_mut().map(Part::look),
            self.client_identity.as_mut().map(Part::look),
            self.anchors.as_mut().map(Part::look),
            self.revoked.as_mut().map(Part::look),
        ];
        seen.into_iter().flatten().collect()
    }

    fn failing(&self) -> bool {
        let failing = [
            self.identity.as_ref().is_some_and(Part::is_failing),
            self.client_identity.as_ref().is_some_and(Part::is_failing),
            self.anchors.as_ref().is_some_and(Part::is_failing),
            self.revoked.as_ref().is_some_and(Part::is_failing),
        ];
        failing.contains(&true)
    }

    fn standing(&self, name: &'static str) -> Standing {
        let bundle = self.anchors.as_ref();
        let until = |part: &Part<Identity>| part.value.not_after;
        Standing {
            name,
            bundle_sha256: bundle.map(|part| hex::encode(part.value.sha256)),
            not_after: self.identity.as_ref().map(until),
            client_not_after: self.client_identity.as_ref().map(until),
            reloads: self.reloads,
            failures: self.failures,
            failing: self.failing(),
        }
    }

    fn anchors(&self) -> Option<Arc<Anchors>> {
        self.anchors.as_ref().map(|part| Arc::clone(&part.value))
    }

    fn build(&self, options: &Options, provider: &Arc<CryptoProvider>) -> Result<Current, Error> {
        let server = match &self.identity {
            Some(identity) => Some(self.server(options, provider, &identity.value)?),
            None => None,
        };
        let anchors = match (options.self_made, self.anchors()) {
            (true, _) => Some(None),
            (false, Some(anchors)) => Some(Some(anchors)),
            (false, None) if self.system => Some(Some(SYSTEM.clone()?)),
            (false, None) => None,
        };
        let client = match anchors {
            Some(anchors) => Some(self.client(options, provider, anchors)?),
            None => None,
        };
        Ok(Current { server, client })
    }

    fn server(
        &self,
        options: &Options,
        provider: &Arc<CryptoProvider>,
        identity: &Identity,
    ) -> Result<Arc<ServerConfig>, Error> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&suites::versions(options))
            .map_err(|error| Error::Settings(error.to_string()))?;
        let builder = match options.client_cert_auth || options.trusted_ca.is_some() {
            true => {
                let anchors = match self.anchors() {
                    Some(anchors) => anchors,
                    None => SYSTEM.clone()?,
                };
                let revoked = self.revoked.as_ref().map(|part| Arc::clone(&part.value));
                let allowed = options.allowed.clone();
                builder
                    .with_client_cert_verifier(Clients::new(anchors, revoked, allowed, provider)?)
            }
            false => builder.with_no_client_auth(),
        };
        let shown = SingleCertAndKey::from(Arc::clone(&identity.key));
        let mut config = builder.with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session that is taken up again would skip the look at its certificate, which may be
        // revoked since, or its CA gone. Connections live long, so little is lost.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn client(
        &self,
        options: &Options,
        provider: &Arc<CryptoProvider>,
        anchors: Option<Arc<Anchors>>,
    ) -> Result<Arc<ClientConfig>, Error> {
        let verifier = Servers {
            anchors,
            allowed: options.allowed.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&suites::versions(options))
            .map_err(|error| Error::Settings(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let identity = self.client_identity.as_ref().or(self.identity.as_ref());
        let mut config = match identity {
            Some(identity) => {
                let shown = SingleCertAndKey::from(Arc::clone(&identity.value.key));
                builder.with_client_cert_resolver(Arc::new(shown))
            }
            None => builder.with_no_client_auth(),
        };
        // No ALPN: an etcd would choose h2 for its peer port and then not speak it.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

type Parse<T> = Box<dyn Fn(&[Source], &[Vec<u8>]) -> Result<T, Error> + Send + Sync>;

/// Files that mean something together.
struct Part<T> {
    sources: Vec<Source>,
    parse: Parse<T>,
    value: Arc<T>,
    /// Of the contents that `value` was read from.
    digest: Digest256,
    refused: Option<Refused>,
}

/// Contents that cannot be used.
#[derive(Debug)]
struct Refused {
    digest: Digest256,
    /// Why, until it was told.
    error: Option<Error>,
}

/// What a look at files shows.
enum Seen {
    /// What is in use, or what was told before.
    Same,
    New,
    Unusable(Error),
}

impl<T> std::fmt::Debug for Part<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl<T> Part<T> {
    fn load(
        sources: Vec<Source>,
        parse: impl Fn(&[Source], &[Vec<u8>]) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let contents = read(&sources)?;
        Ok(Self {
            value: Arc::new(parse(&sources, &contents)?),
            digest: digest(&contents),
            parse: Box::new(parse),
            sources,
            refused: None,
        })
    }

    fn is_failing(&self) -> bool {
        let refused = self.refused.as_ref();
        refused.is_some_and(|refused| refused.error.is_none())
    }

    /// Looks at the files and takes what is new and good. What cannot be used is told when it is
    /// still there at the second look: files may be written one after the other.
    fn look(&mut self) -> Seen {
        let contents = read(&self.sources);
        let digest = match &contents {
            Ok(contents) => digest(contents),
            Err(error) => digest(&[error.to_string().into_bytes()]),
        };
        if digest == self.digest {
            self.refused = None;
            return Seen::Same;
        }
        if let Some(refused) = &mut self.refused
            && refused.digest == digest
        {
            return refused.error.take().map_or(Seen::Same, Seen::Unusable);
        }
        match contents.and_then(|contents| (self.parse)(&self.sources, &contents)) {
            Ok(value) => {
                self.value = Arc::new(value);
                self.digest = digest;
                self.refused = None;
                Seen::New
            }
            Err(error) => {
                let error = Some(error);
                self.refused = Some(Refused { digest, error });
                Seen::Same
            }
        }
    }
}

fn read(sources: &[Source]) -> Result<Vec<Vec<u8>>, Error> {
    sources.iter().map(Source::read).collect()
}
