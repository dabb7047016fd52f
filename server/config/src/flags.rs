//! The table of all flags: etcd 3.7's names, kinds and defaults, and what each does here.

/// What values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true` or `false`; given alone it means `true`.
    Bool,
    /// A whole number.
    Int,
    /// A whole number that is not negative.
    Uint,
    /// Time in Go's notation, as `1h30m` or `100ms`.
    Duration,
    /// URLs, separated by commas.
    Urls,
    /// URLs, separated by commas, or `*`.
    Origins,
    /// Feature gates with `true` or `false`, separated by commas.
    Gates,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// What a flag does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What etcd's does.
    Full,
    /// Nothing: what it tunes does not exist here.
    Never,
    /// Nothing yet; setting it is told at start.
    NotYet,
    /// Nothing yet, and going on without would be unsafe or wrong: setting it ends the start.
    Refused,
}

/// One flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when it is not given, as `--help` prints it.
    pub default: &'static str,
    /// What it does.
    pub effect: Effect,
    /// The section of `--help`.
    pub section: &'static str,
}

use Effect::{Full, Never, NotYet, Refused};
use Kind::{Bool, Duration, Gates, Int, OneOf, Origins, Text, Uint, Urls};

macro_rules! flags {
    ($(#[$meta:meta])* $table:ident: $($section:literal { $($name:literal $kind:expr, $default:literal, $effect:expr;)* })*) => {
        $(#[$meta])*
        pub const $table: &[Flag] = &[$($(Flag {
            name: $name,
            kind: $kind,
            default: $default,
            effect: $effect,
            section: $section,
        },)*)*];
    };
}

flags! {
    /// All flags of etcd's, in the order of `--help`.
    FLAGS:
    "Member" {
        "name" Text, "default", Full;
        "data-dir" Text, "", Full;
        "wal-dir" Text, "", Full;
        "snapshot-count" Uint, "10000", Never;
        "heartbeat-interval" Uint, "100", Full;
        "election-timeout" Uint, "1000", Full;
        "initial-election-tick-advance" Bool, "true", Full;
        "listen-peer-urls" Urls, "http://localhost:2380", Full;
        "listen-client-urls" Urls, "http://localhost:2379", Full;
        "listen-client-http-urls" Urls, "", Full;
        "max-snapshots" Uint, "5", Never;
        "max-wals" Uint, "5", Never;
        "memory-mlock" Bool, "false", NotYet;
        "quota-backend-bytes" Int, "0", Full;
        "backend-bbolt-freelist-type" Text, "map", Never;
        "backend-batch-interval" Duration, "0s", Never;
        "backend-batch-limit" Int, "0", Never;
        "max-txn-ops" Uint, "128", Full;
        "max-request-bytes" Uint, "1572864", Full;
        "max-concurrent-streams" Uint, "4294967295", Full;
        "grpc-keepalive-min-time" Duration, "5s", NotYet;
        "grpc-keepalive-interval" Duration, "2h0m0s", Full;
        "grpc-keepalive-timeout" Duration, "20s", Full;
        "socket-reuse-port" Bool, "false", Full;
        "socket-reuse-address" Bool, "false", Full;
        "enable-grpc-gateway" Bool, "true", Full;
        "raft-read-timeout" Duration, "5s", NotYet;
        "raft-write-timeout" Duration, "5s", NotYet;
        "feature-gates" Gates, "", Full;
    }
    "Clustering" {
        "initial-advertise-peer-urls" Urls, "http://localhost:2380", Full;
        "initial-cluster" Text, "default=http://localhost:2380", Full;
        "initial-cluster-state" OneOf(&["new", "existing"]), "new", Full;
        "initial-cluster-token" Text, "etcd-cluster", Full;
        "advertise-client-urls" Urls, "http://localhost:2379", Full;
        "discovery" Text, "", Refused;
        "discovery-token" Text, "", Refused;
        "discovery-endpoints" Text, "", Refused;
        "discovery-dial-timeout" Duration, "2s", NotYet;
        "discovery-request-timeout" Duration, "5s", NotYet;
        "discovery-keepalive-time" Duration, "2s", NotYet;
        "discovery-keepalive-timeout" Duration, "6s", NotYet;
        "discovery-insecure-transport" Bool, "true", NotYet;
        "discovery-insecure-skip-tls-verify" Bool, "false", NotYet;
        "discovery-cert" Text, "", NotYet;
        "discovery-key" Text, "", NotYet;
        "discovery-cacert" Text, "", NotYet;
        "discovery-user" Text, "", NotYet;
        "discovery-password" Text, "", NotYet;
        "discovery-fallback" OneOf(&["exit", "proxy"]), "exit", NotYet;
        "discovery-proxy" Text, "", NotYet;
        "discovery-srv" Text, "", Refused;
        "discovery-srv-name" Text, "", Refused;
        "strict-reconfig-check" Bool, "true", Full;
        "pre-vote" Bool, "true", Full;
        "auto-compaction-retention" Text, "0", Full;
        "auto-compaction-mode" OneOf(&["periodic", "revision"]), "periodic", Full;
        "v2-deprecation" OneOf(&["write-only", "write-only-drop-data", "gone"]), "write-only", Never;
    }
    "Security" {
        "cert-file" Text, "", Full;
        "key-file" Text, "", Full;
        "client-cert-auth" Bool, "false", Full;
        "client-cert-file" Text, "", Full;
        "client-key-file" Text, "", Full;
        "client-crl-file" Text, "", Full;
        "client-cert-allowed-hostname" Text, "", Full;
        "trusted-ca-file" Text, "", Full;
        "auto-tls" Bool, "false", Full;
        "peer-cert-file" Text, "", Full;
        "peer-key-file" Text, "", Full;
        "peer-client-cert-auth" Bool, "false", Full;
        "peer-client-cert-file" Text, "", Full;
        "peer-client-key-file" Text, "", Full;
        "peer-trusted-ca-file" Text, "", Full;
        "peer-cert-allowed-cn" Text, "", Full;
        "peer-cert-allowed-hostname" Text, "", Full;
        "peer-auto-tls" Bool, "false", Full;
        "self-signed-cert-validity" Uint, "1", Full;
        "peer-crl-file" Text, "", Full;
        "cipher-suites" Text, "", Full;
        "cors" Origins, "*", Full;
        "host-whitelist" Text, "*", Full;
        "tls-min-version" OneOf(&["TLS1.2", "TLS1.3"]), "TLS1.2", Full;
        "tls-max-version" OneOf(&["", "TLS1.2", "TLS1.3"]), "", Full;
    }
    "Auth" {
        "auth-token" Text, "simple", Full;
        "bcrypt-cost" Uint, "10", Full;
        "auth-token-ttl" Uint, "300", Full;
    }
    "Profiling and Monitoring" {
        "enable-pprof" Bool, "false", Full;
        "metrics" OneOf(&["basic", "extensive"]), "basic", NotYet;
        "listen-metrics-urls" Urls, "", Full;
    }
    "Logging" {
        "logger" OneOf(&["zap"]), "zap", Full;
        "log-outputs" Text, "default", Full;
        "log-level" OneOf(&["debug", "info", "warn", "error", "panic", "fatal"]), "info", Full;
        "log-format" OneOf(&["json", "console"]), "json", Full;
        "enable-log-rotation" Bool, "false", NotYet;
        "log-rotation-config-json" Text, "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", NotYet;
        "warning-unary-request-duration" Duration, "300ms", Full;
    }
    "Distributed tracing" {
        "enable-distributed-tracing" Bool, "false", NotYet;
        "distributed-tracing-address" Text, "localhost:4317", NotYet;
        "distributed-tracing-service-name" Text, "etcd", NotYet;
        "distributed-tracing-instance-id" Text, "", NotYet;
        "distributed-tracing-sampling-rate" Uint, "0", NotYet;
    }
    "Features" {
        "corrupt-check-time" Duration, "0s", Full;
        "compact-hash-check-time" Duration, "1m0s", Full;
        "compaction-batch-limit" Int, "1000", Never;
        "peer-skip-client-san-verification" Bool, "false", Full;
        "watch-progress-notify-interval" Duration, "10m0s", Full;
        "warning-apply-duration" Duration, "100ms", Full;
        "bootstrap-defrag-threshold-megabytes" Uint, "0", Never;
        "max-learners" Uint, "1", Full;
        "compaction-sleep-interval" Duration, "10ms", Never;
        "downgrade-check-time" Duration, "5s", Full;
        "snapshot-catchup-entries" Uint, "5000", Full;
    }
    "Unsafe feature" {
        "force-new-cluster" Bool, "false", Full;
        "unsafe-no-fsync" Bool, "false", Full;
    }
}

flags! {
    /// Cairn's own. They begin with `cairn-`, and their variables with `CAIRN_`, so that none ever
    /// meets one of etcd's.
    OWN:
    "Cairn" {
        "cairn-bootstrap-record" Text, "", Full;
        "cairn-bootstrap-marks" Text, "", Full;
        "cairn-pod-uid" Text, "", Full;
        "cairn-cluster-uid" Text, "", Full;
        "cairn-termination-log" Text, "/dev/termination-log", Full;
        "cairn-wal-segment-bytes" Uint, "67108864", Full;
    }
}

/// Etcd's flags and Cairn's own.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().chain(OWN)
}

/// Flags of past versions, which are taken and do nothing.
pub const IGNORED: &[&str] = &[
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
];

/// The flag of a name.
pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}
