//! etcd's flags, environment and config file, as a struct.
//!
//! Owns: every flag of etcd 3.7 with its default, Go's way to write flags and values, which
//! source wins, and the checks that need nothing but the values. Go's single dash before long
//! names is why no command-line library does this.
//!
//! Must never know: files (the caller reads them), sockets, or what a value is used for.
//!
//! Start reading in `flags.rs`, the table, then [`parse`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod compaction;
mod flags;
mod security;
mod sources;
#[cfg(test)]
mod tests;
mod token;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

pub use compaction::AutoCompaction;
pub use flags::{Effect, FLAGS, Flag, Kind, OWN};
pub use security::{KeyPair, Security, TlsLimits, is_secure};
pub use token::{AuthToken, Jwt};
pub use url::Url;

/// The longest election timeout, in milliseconds.
const MAX_ELECTION_MS: u64 = 50_000;
/// How long a token is good for, when the flag says 0.
const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(300);

/// Why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The command line is not understood: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The values are no configuration: exit code 1.
    #[error("{0}")]
    Invalid(String),
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// To run a server.
    Run(Box<Config>),
    /// To write the data of a server that does not run so that etcd starts on them.
    Export {
        /// Where the data are.
        config: Box<Config>,
        /// The data directory to be made.
        output: PathBuf,
    },
    /// To read all data of a server that does not run, and say whether they are whole.
    Check {
        /// Where the data are.
        config: Box<Config>,
        /// Whether it is said in JSON.
        json: bool,
    },
    /// To say the version.
    Version,
    /// To say what flags there are.
    Help,
}

/// How a server runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This member's name.
    pub name: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// Where its log is; beside the data when not set.
    pub wal_dir: Option<PathBuf>,
    /// Time between two heartbeats of the leader: one tick of raft.
    pub heartbeat: Duration,
    /// Ticks without a leader before an election.
    pub election_ticks: usize,
    /// Whether a restarted member waits less for a leader.
    pub election_tick_advance: bool,
    /// Whether a member asks before it disturbs.
    pub pre_vote: bool,
    /// Where other members connect.
    pub listen_peer: Vec<Url>,
    /// Where clients connect.
    pub listen_client: Vec<Url>,
    /// Where clients connect that speak HTTP and no gRPC; then [`Config::listen_client`] is for gRPC
    /// alone.
    pub listen_client_http: Vec<Url>,
    /// Where probes and scrapers connect besides.
    pub listen_metrics: Vec<Url>,
    /// Origins of pages that may ask over HTTP; `*` is all.
    pub cors: BTreeSet<String>,
    /// Hosts that plain HTTP requests may be sent to; `*` is all.
    pub host_whitelist: BTreeSet<String>,
    /// Whether there is a JSON gateway.
    pub gateway: bool,
    /// Whether CPU profiles can be taken over HTTP.
    pub enable_pprof: bool,
    /// How clients' connections are secured.
    pub client_tls: Security,
    /// How other members' connections are secured.
    pub peer_tls: Security,
    /// What is the same for both.
    pub tls: TlsLimits,
    /// What other members are told to connect to.
    pub advertise_peer: Vec<String>,
    /// What clients are told to connect to.
    pub advertise_client: Vec<String>,
    /// The founding members: name to peer URLs.
    pub initial_cluster: BTreeMap<String, BTreeSet<String>>,
    /// Whether the cluster exists and this member joins it.
    pub join: bool,
    /// What the cluster's and members' IDs are made of besides URLs.
    pub cluster_token: String,
    /// Whether a change of members that endangers the quorum is refused.
    pub strict_reconfig: bool,
    /// Which tokens users get.
    pub auth_token: AuthToken,
    /// The cost of a password's hash.
    pub bcrypt_cost: u32,
    /// How long a token that nobody uses is good for; etcd's default in place of 0.
    pub auth_token_ttl: Duration,
    /// Bytes that the store may take; see etcd's quota.
    pub quota_bytes: i64,
    /// An apply or a read that takes longer is told of in the log.
    pub warning_apply: Duration,
    /// A call of one request and one answer that takes longer is told of in the log.
    pub warning_unary_request: Duration,
    /// Operations in one transaction, at most.
    pub max_txn_ops: usize,
    /// Bytes of one request, at most.
    pub max_request_bytes: usize,
    /// Streams on one connection, at most.
    pub max_concurrent_streams: u32,
    /// Learners in the cluster, at most.
    pub max_learners: usize,
    /// Entries of the log that are kept for members that lag.
    pub catch_up_entries: u64,
    /// Length of a segment of the log, in bytes; how much of it is kept follows from this.
    pub wal_segment_bytes: u64,
    /// etcd's feature gates as they are set: name, stage, whether it is open.
    pub feature_gates: Vec<(&'static str, &'static str, bool)>,
    /// Whether keys are compared with the other members' before anybody is served.
    pub initial_corrupt_check: bool,
    /// Time between two comparisons of all members' keys; zero for none.
    pub corrupt_check_time: Duration,
    /// Time between two comparisons of what members keep of compactions.
    pub compact_hash_check_time: Option<Duration>,
    /// What of the history is kept without anybody asking; `None` keeps all of it.
    pub auto_compaction: Option<AutoCompaction>,
    /// Whether the leader tells others what is left of leases.
    pub lease_checkpoint: bool,
    /// Time between two looks whether a downgrade is done; zero for none.
    pub downgrade_check_time: Duration,
    /// Time between two progress notifications of a watcher.
    pub progress_interval: Duration,
    /// Time after which an idle connection is asked whether it lives.
    pub keepalive_interval: Duration,
    /// Time that it has to answer.
    pub keepalive_timeout: Duration,
    /// Whether several processes may listen on one port.
    pub reuse_port: bool,
    /// debug, info, warn, error, panic or fatal.
    pub log_level: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Where log lines go: default, stderr, stdout, or files.
    pub log_outputs: Vec<String>,
    /// Whether to go on as a cluster of one, with this member's data.
    pub force_new_cluster: bool,
    /// Whether the disk is never asked to sync.
    pub unsafe_no_fsync: bool,
    /// Under an operator: how it is kept from beginning anew on a lost disk.
    pub guard: Option<Guard>,
    /// What the operator should know: flags without effect, variables that nobody knows.
    pub warnings: Vec<String>,
}

/// What the bootstrap guard needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The file with the record that the operator wrote for this member.
    pub record: PathBuf,
    /// A folder that lives as long as the pod: records that were acted on are marked there.
    pub marks: PathBuf,
    /// UID of the pod.
    pub pod_uid: String,
    /// UID of the object that the cluster belongs to.
    pub cluster_uid: String,
    /// Where the kubelet finds the container's last words; written only where it exists.
    pub termination_log: PathBuf,
}

/// The guard's settings.
const GUARD: [&str; 4] = [
    "cairn-bootstrap-record",
    "cairn-bootstrap-marks",
    "cairn-pod-uid",
    "cairn-cluster-uid",
];

/// Below, a segment is little more than its head; above, a start would read too much.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 30);

fn segment_bytes(bytes: u64) -> Result<u64, Error> {
    if SEGMENT_BYTES.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (SEGMENT_BYTES.start(), SEGMENT_BYTES.end());
    Err(Error::Invalid(format!(
        "--cairn-wal-segment-bytes is {bytes}; give {least} to {most}"
    )))
}

impl Guard {
    /// The four settings belong together.
    fn of(v: &Values<'_>) -> Result<Option<Self>, Error> {
        let [record, marks, pod_uid, cluster_uid] = GUARD.map(|name| v.text(name));
        let given = [&record, &marks, &pod_uid, &cluster_uid];
        let given = given.iter().filter(|text| !text.is_empty()).count();
        if given == 0 {
            return Ok(None);
        }
        if given < GUARD.len() {
            let names = GUARD.map(|name| format!("--{name}")).join(", ");
            return Err(Error::Invalid(format!(
                "{names} belong together: give all of them or none"
            )));
        }
        Ok(Some(Self {
            record: PathBuf::from(record),
            marks: PathBuf::from(marks),
            pod_uid,
            cluster_uid,
            termination_log: PathBuf::from(v.text("cairn-termination-log")),
        }))
    }
}

/// Reads the command line (without the program's name), the environment, and, if one is named,
/// the config file, by `read_file`. A file stands alone: flags and variables are ignored beside it.
///
/// # Errors
/// What is wrong, with what to do.
pub fn parse(
    args: impl Iterator<Item = String>,
    env: impl Iterator<Item = (String, String)>,
    read_file: impl FnOnce(&str) -> std::io::Result<String>,
) -> Result<Command, Error> {
    let mut args = args.peekable();
    if args.next_if(|first| first == EXPORT).is_some() {
        return export(args.collect(), env, read_file);
    }
    if args.next_if(|first| first == CHECK).is_some() {
        return check(args.collect(), env, read_file);
    }
    let mut line = sources::command_line(args)?;
    if line.version {
        return Ok(Command::Version);
    }
    if line.help {
        return Ok(Command::Help);
    }
    let env: BTreeMap<String, String> = env.collect();
    let mut warnings = Vec::new();
    let from_env = || env.get("ETCD_CONFIG_FILE").filter(|path| !path.is_empty());
    let path = line.config_file.take().or_else(|| from_env().cloned());
    let values = match path {
        Some(path) => {
            let text = read_file(&path)
                .map_err(|error| Error::Invalid(format!("the config file {path}: {error}")))?;
            if !line.values.is_empty() {
                warnings.push("flags are ignored beside a config file".to_owned());
            }
            sources::file(&text, &mut warnings)?
        }
        None => {
            sources::environment(&mut line, &env, &mut warnings)?;
            line.values
        }
    };
    Config::of(&values, warnings).map(|config| Command::Run(Box::new(config)))
}

/// The word that asks for an export.
const EXPORT: &str = "export";

fn export(
    mut args: Vec<String>,
    env: impl Iterator<Item = (String, String)>,
    read_file: impl FnOnce(&str) -> std::io::Result<String>,
) -> Result<Command, Error> {
    let output = args.pop().filter(|output| !output.starts_with('-'));
    let Some(output) = output else {
        let usage = "usage: cairn export --data-dir DIRECTORY [--wal-dir DIRECTORY] NEW-DIRECTORY";
        return Err(Error::Usage(usage.to_owned()));
    };
    match parse(args.into_iter(), env, read_file)? {
        Command::Run(config) => Ok(Command::Export {
            config,
            output: PathBuf::from(output),
        }),
        other => Ok(other),
    }
}

/// The word that asks for a check.
const CHECK: &str = "check";

fn check(
    args: Vec<String>,
    env: impl Iterator<Item = (String, String)>,
    read_file: impl FnOnce(&str) -> std::io::Result<String>,
) -> Result<Command, Error> {
    let usage = "usage: cairn check --data-dir DIRECTORY [--wal-dir DIRECTORY] [-w simple|json]";
    let mut rest = Vec::new();
    let mut form = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg.clone(), None),
        };
        match name.as_str() {
            "-w" | "--write-out" => form = value.or_else(|| args.next()).or(Some(String::new())),
            _ => rest.push(arg),
        }
    }
    let json = match form.as_deref() {
        None | Some("simple") => false,
        Some("json") => true,
        Some(_) => return Err(Error::Usage(usage.to_owned())),
    };
    // Nobody means the folder that a server without flags would make.
    let names_data = |arg: &String| arg.trim_start_matches('-').starts_with("data-dir");
    let env: Vec<_> = env.collect();
    let from_env = env.iter().any(|(name, _)| name == "ETCD_DATA_DIR");
    let asks = |arg: &String| matches!(arg.as_str(), "-h" | "--help" | "--version");
    if !from_env && !rest.iter().any(|arg| names_data(arg) || asks(arg)) {
        return Err(Error::Usage(usage.to_owned()));
    }
    match parse(rest.into_iter(), env.into_iter(), read_file)? {
        Command::Run(config) => Ok(Command::Check { config, json }),
        other => Ok(other),
    }
}

/// What `--help` prints.
pub fn help() -> String {
    let mut text = String::from(
        "Usage:\n\n  cairn [flags]\n    Start a cairn server.\n\n  \
         cairn export --data-dir DIRECTORY [--wal-dir DIRECTORY] NEW-DIRECTORY\n    \
         Write the data of a server that does not run so that etcd starts on them.\n\n  \
         cairn check --data-dir DIRECTORY [--wal-dir DIRECTORY] [-w simple|json]\n    \
         Read all data of a server that does not run, and say whether they are whole.\n",
    );
    let mut section = "";
    for flag in flags::all() {
        if flag.section != section {
            section = flag.section;
            text += &format!("\n{section}:\n");
        }
        let note = match flag.effect {
            Effect::Full => "",
            Effect::Never => "  (no effect: nothing here needs it)",
            Effect::NotYet => "  (no effect yet)",
            Effect::Refused => "  (not there yet)",
        };
        text += &format!("  --{} '{}'{note}\n", flag.name, flag.default);
    }
    text + "\n  --config-file, --version, --help\n"
}

/// The flag of feature gates.
const GATES: &str = "feature-gates";

/// Typed access to checked values.
struct Values<'a>(&'a BTreeMap<&'static str, String>);

impl Values<'_> {
    fn set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn text(&self, name: &str) -> String {
        let default = || flags::find(name).map_or("", |flag| flag.default).to_owned();
        self.0.get(name).cloned().unwrap_or_else(default)
    }

    fn bool(&self, name: &str) -> bool {
        values::bool(&self.text(name)).unwrap_or_default()
    }

    fn number<N: TryFrom<i128>>(&self, name: &str) -> Result<N, Error> {
        let text = self.text(name);
        let number = text.parse::<i128>().ok().and_then(|n| N::try_from(n).ok());
        number.ok_or_else(|| Error::Invalid(format!("--{name}[{text}] is out of range")))
    }

    fn duration(&self, name: &str) -> Duration {
        values::duration(&self.text(name)).unwrap_or_default()
    }

    /// Whether a feature gate is open.
    fn gate(&self, name: &str) -> bool {
        let gates = self.text(GATES);
        let gate = values::GATES.iter().find(|gate| gate.name == name);
        gate.is_some_and(|gate| values::is_open(&gates, gate))
    }

    fn urls(&self, name: &str) -> Result<Vec<Url>, Error> {
        values::urls(&self.text(name)).map_err(Error::Invalid)
    }

    /// Words that are separated by commas.
    fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name);
        let words = text.split(',').map(str::trim);
        let words = words.filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let path = self.text(name);
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// URLs as they were written: IDs are made of the text.
    fn url_texts(&self, name: &str) -> Vec<String> {
        let text = self.text(name);
        let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
        let mut urls: Vec<String> = urls.map(str::to_owned).collect();
        urls.sort();
        urls
    }
}

impl Config {
    fn of(values: &BTreeMap<&'static str, String>, warnings: Vec<String>) -> Result<Self, Error> {
        let v = Values(values);
        let mut warnings = warnings;
        without_effect(&v, &mut warnings)?;
        let heartbeat_ms: u64 = v.number("heartbeat-interval")?;
        let election_ms: u64 = v.number("election-timeout")?;
        if heartbeat_ms == 0 {
            return Err(Error::Invalid(
                "--heartbeat-interval must be >0 (set to 0ms)".to_owned(),
            ));
        }
        if election_ms / 5 < heartbeat_ms {
            return Err(Error::Invalid(format!(
                "--election-timeout[{election_ms}ms] should be at least as 5 times as \
                 --heartbeat-interval[{heartbeat_ms}ms]"
            )));
        }
        if election_ms > MAX_ELECTION_MS {
            return Err(Error::Invalid(format!(
                "--election-timeout[{election_ms}ms] is too long, and should be set less than \
                 {MAX_ELECTION_MS}ms"
            )));
        }
        if v.duration("compact-hash-check-time").is_zero() {
            return Err(Error::Invalid(
                "--compact-hash-check-time must be >0 (set to 0s)".to_owned(),
            ));
        }
        if v.set("listen-client-urls") && !v.set("advertise-client-urls") {
            return Err(Error::Invalid(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly"
                    .to_owned(),
            ));
        }
        let name = v.text("name");
        let advertise_peer = v.url_texts("initial-advertise-peer-urls");
        let mut config = Self {
            initial_cluster: match v.set("initial-cluster") {
                true => initial_cluster(&v.text("initial-cluster"))?,
                false => {
                    let urls = advertise_peer.iter().cloned().collect();
                    BTreeMap::from([(name.clone(), urls)])
                }
            },
            data_dir: match v.text("data-dir") {
                none if none.is_empty() => PathBuf::from(format!("{name}.etcd")),
                dir => PathBuf::from(dir),
            },
            wal_dir: Some(v.text("wal-dir"))
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from),
            name,
            heartbeat: Duration::from_millis(heartbeat_ms),
            election_ticks: usize::try_from(election_ms / heartbeat_ms).unwrap_or(usize::MAX),
            election_tick_advance: v.bool("initial-election-tick-advance"),
            pre_vote: v.bool("pre-vote"),
            listen_peer: v.urls("listen-peer-urls")?,
            listen_client: v.urls("listen-client-urls")?,
            listen_client_http: v.urls("listen-client-http-urls")?,
            listen_metrics: v.urls("listen-metrics-urls")?,
            cors: v.list("cors").into_iter().collect(),
            host_whitelist: v.list("host-whitelist").into_iter().collect(),
            gateway: v.bool("enable-grpc-gateway"),
            enable_pprof: v.bool("enable-pprof"),
            client_tls: Security::client(&v, &mut warnings)?,
            peer_tls: Security::peer(&v, &mut warnings)?,
            tls: TlsLimits::of(&v)?,
            advertise_peer,
            advertise_client: v.url_texts("advertise-client-urls"),
            join: v.text("initial-cluster-state") == "existing",
            cluster_token: v.text("initial-cluster-token"),
            strict_reconfig: v.bool("strict-reconfig-check"),
            auth_token: AuthToken::parse(&v.text("auth-token"), &mut warnings)
                .map_err(Error::Invalid)?,
            bcrypt_cost: v.number("bcrypt-cost")?,
            auth_token_ttl: match v.number("auth-token-ttl")? {
                0 => DEFAULT_TOKEN_TTL,
                seconds => Duration::from_secs(seconds),
            },
            quota_bytes: v.number("quota-backend-bytes")?,
            max_txn_ops: v.number("max-txn-ops")?,
            warning_apply: v.duration("warning-apply-duration"),
            warning_unary_request: v.duration("warning-unary-request-duration"),
            max_request_bytes: v.number("max-request-bytes")?,
            max_concurrent_streams: v.number("max-concurrent-streams")?,
            max_learners: v.number("max-learners")?,
            catch_up_entries: v.number("snapshot-catchup-entries")?,
            wal_segment_bytes: segment_bytes(v.number("cairn-wal-segment-bytes")?)?,
            feature_gates: values::all_gates(&v.text(GATES)),
            initial_corrupt_check: v.gate(values::INITIAL_CORRUPT_CHECK),
            corrupt_check_time: v.duration("corrupt-check-time"),
            compact_hash_check_time: v
                .gate(values::COMPACT_HASH_CHECK)
                .then(|| v.duration("compact-hash-check-time")),
            auto_compaction: AutoCompaction::of(
                &v.text("auto-compaction-mode"),
                &v.text("auto-compaction-retention"),
            )?,
            lease_checkpoint: v.gate(values::LEASE_CHECKPOINT),
            downgrade_check_time: v.duration("downgrade-check-time"),
            progress_interval: v.duration("watch-progress-notify-interval"),
            keepalive_interval: v.duration("grpc-keepalive-interval"),
            keepalive_timeout: v.duration("grpc-keepalive-timeout"),
            reuse_port: v.bool("socket-reuse-port"),
            log_level: v.text("log-level"),
            log_json: v.text("log-format") == "json",
            log_outputs: v
                .text("log-outputs")
                .split(',')
                .map(str::to_owned)
                .collect(),
            force_new_cluster: v.bool("force-new-cluster"),
            unsafe_no_fsync: v.bool("unsafe-no-fsync"),
            guard: Guard::of(&v)?,
            warnings,
        };
        config.check_listeners()?;
        security::check(&mut config)?;
        Ok(config)
    }

    /// Begins as somebody else says and not as the flags do: founds the cluster that
    /// `cluster_text` (in the notation of `--initial-cluster`) describes, or joins it.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn begin(&mut self, join: bool, cluster_text: &str, token: &str) -> Result<(), Error> {
        self.initial_cluster = initial_cluster(cluster_text)?;
        self.join = join;
        token.clone_into(&mut self.cluster_token);
        self.check_founding()
    }

    /// Checks that this member is one of those that found or make up the cluster. Only a member
    /// without data needs that: later the log says who is in the cluster.
    ///
    /// # Errors
    /// In etcd's words.
    pub fn check_founding(&self) -> Result<(), Error> {
        let name = &self.name;
        let own = self.initial_cluster.get(name).ok_or_else(|| {
            Error::Invalid(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ))
        })?;
        let advertised: BTreeSet<String> = self.advertise_peer.iter().cloned().collect();
        if *own != advertised {
            let join = |urls: &BTreeSet<String>| urls.iter().cloned().collect::<Vec<_>>().join(",");
            return Err(Error::Invalid(format!(
                "--initial-cluster has {name}={} but missing from \
                 --initial-advertise-peer-urls={}",
                join(own),
                join(&advertised)
            )));
        }
        Ok(())
    }

    fn check_listeners(&self) -> Result<(), Error> {
        let listeners = self.listen_peer.iter().chain(&self.listen_client);
        let listeners = listeners.chain(&self.listen_client_http);
        for url in listeners.chain(&self.listen_metrics) {
            let domain = url.domain().filter(|domain| *domain != "localhost");
            if let ("http" | "https", Some(domain)) = (url.scheme(), domain) {
                return Err(Error::Invalid(format!(
                    "expected IP in URL for binding ({url}): {domain} is a name; listen on an \
                     address or on 0.0.0.0"
                )));
            }
        }
        if self.listen_client.is_empty() || self.listen_peer.is_empty() {
            return Err(Error::Invalid(
                "--listen-client-urls and --listen-peer-urls need at least one URL".to_owned(),
            ));
        }
        for url in &self.listen_client_http {
            if self
                .listen_client
                .iter()
                .any(|other| same_address(other, url))
            {
                return Err(Error::Invalid(format!(
                    "cannot bind both --listen-client-urls and --listen-client-http-urls on the \
                     same url {}",
                    security::plain(url)
                )));
            }
        }
        if self.max_txn_ops == 0 || self.max_request_bytes == 0 {
            return Err(Error::Invalid(
                "--max-txn-ops and --max-request-bytes must be more than 0".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether two URLs name one address to listen on.
fn same_address(one: &Url, other: &Url) -> bool {
    let address = |url: &Url| {
        let unix = matches!(url.scheme(), "unix" | "unixs");
        let host = url.host_str().map(str::to_owned);
        (unix, host, url.port_or_known_default())
    };
    address(one) == address(other)
}

/// Says of every flag that was set and does nothing that it does; refuses those that must not be
/// silently without effect.
fn without_effect(v: &Values<'_>, warnings: &mut Vec<String>) -> Result<(), Error> {
    for flag in flags::all().filter(|flag| v.set(flag.name)) {
        let changed = v.text(flag.name) != flag.default;
        match flag.effect {
            Effect::Refused if changed => {
                return Err(Error::Invalid(format!(
                    "--{} is not there yet; start without it, or wait for a version that has it",
                    flag.name
                )));
            }
            Effect::NotYet if changed => {
                warnings.push(format!("--{} has no effect yet", flag.name));
            }
            Effect::Never if changed => {
                warnings.push(format!(
                    "--{} has no effect: nothing here needs it",
                    flag.name
                ));
            }
            _ => {}
        }
    }
    let gates = v.text(GATES);
    for gate in values::GATES.iter().filter(|gate| !gate.works) {
        if values::is_open(&gates, gate) != values::is_open_by_default(gate) {
            warnings.push(format!("the feature gate {} has no effect", gate.name));
        }
    }
    Ok(())
}

/// The founding members, as `name=URL` pairs; a name may come several times.
fn initial_cluster(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
    let mut cluster: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pair in text.split(',').map(str::trim) {
        let (name, url) = pair.split_once('=').ok_or_else(|| {
            Error::Invalid(format!(
                "--initial-cluster: {pair:?} has not the form name=URL"
            ))
        })?;
        values::urls(url).map_err(|error| Error::Invalid(format!("--initial-cluster: {error}")))?;
        let urls = cluster.entry(name.to_owned()).or_default();
        urls.insert(url.to_owned());
    }
    Ok(cluster)
}
