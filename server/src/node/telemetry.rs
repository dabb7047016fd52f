//! Counters of a node, and its metrics in Prometheus' text form under etcd's names.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mvcc::Engine;
use proto::etcdserverpb::AlarmType;
use tls::Standing;

use super::shared::Shared;

/// Upper bounds of the fsync histogram in seconds, as etcd's: 1 ms doubled 13 times.
const FSYNC_BUCKETS: usize = 14;
const FIRST_FSYNC_BUCKET: f64 = 0.001;

/// How often, and how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; FSYNC_BUCKETS],
    count: AtomicU64,
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let bounds = bucket_bounds();
        if let Some((_, bucket)) = bounds
            .zip(&self.buckets)
            .find(|(bound, _)| time.as_secs_f64() <= *bound)
        {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        describe(text, name, "histogram", help);
        let mut total = 0;
        for (bound, bucket) in bucket_bounds().zip(&self.buckets) {
            total += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }
}

fn bucket_bounds() -> impl Iterator<Item = f64> {
    (0..FSYNC_BUCKETS).map(|n| FIRST_FSYNC_BUCKET * f64::powi(2.0, n as i32))
}

/// What is counted as it happens.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub fsync: Histogram,
    pub failed_proposals: AtomicU64,
    pub slow_reads: AtomicU64,
    pub leases_expired: AtomicU64,
}

fn describe(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// All metrics.
pub(crate) fn metrics(shared: &Shared) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        describe(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    };
    let published = shared.published.load();
    let view = &published.view;
    let watches = shared.watches.gauges();
    let settings = &shared.settings;
    let flag = f64::from;
    let member = published.members.get(settings.member_id);
    let learner = member.is_some_and(|member| member.is_learner);
    let relaxed = |of: &AtomicU64| of.load(Ordering::Relaxed) as f64;
    let lessor = super::lessor(shared).len() as f64;
    let gauges: &[(&str, &str, f64)] = &[
        (
            "etcd_server_has_leader",
            "Whether or not a leader exists. 1 is existence, 0 is not.",
            flag(u8::from(shared.leader() != 0)),
        ),
        (
            "etcd_server_is_leader",
            "Whether or not this member is a leader. 1 if is, 0 otherwise.",
            flag(u8::from(shared.is_leader())),
        ),
        (
            "etcd_server_is_learner",
            "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            flag(u8::from(learner)),
        ),
        (
            "etcd_server_proposals_committed_total",
            "The total number of consensus proposals committed.",
            relaxed(&shared.raft.committed),
        ),
        (
            "etcd_server_proposals_applied_total",
            "The total number of consensus proposals applied.",
            relaxed(&shared.applied),
        ),
        (
            "etcd_server_proposals_pending",
            "The current number of pending proposals to commit.",
            shared.pending() as f64,
        ),
        (
            "etcd_server_quota_backend_bytes",
            "Current backend storage quota size in bytes.",
            state::cost::quota(settings.quota_bytes).unwrap_or(-1) as f64,
        ),
        (
            "etcd_mvcc_db_total_size_in_bytes",
            "Bytes that etcd's database file would take.",
            view.size() as f64,
        ),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Bytes that etcd's database would use of its file.",
            view.size_in_use() as f64,
        ),
        (
            "etcd_debugging_mvcc_keys_total",
            "Total number of keys.",
            view.key_count() as f64,
        ),
        (
            "etcd_debugging_mvcc_current_revision",
            "The current revision of store.",
            view.revision() as f64,
        ),
        (
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store.",
            view.compact_revision() as f64,
        ),
        (
            "etcd_debugging_mvcc_watch_stream_total",
            "Total number of watch streams.",
            watches.streams as f64,
        ),
        (
            "etcd_debugging_mvcc_watcher_total",
            "Total number of watchers.",
            watches.watchers as f64,
        ),
        (
            "etcd_debugging_mvcc_slow_watcher_total",
            "Total number of unsynced slow watchers.",
            watches.slow_watchers as f64,
        ),
        (
            "etcd_debugging_mvcc_pending_events_total",
            "Total number of pending events to be sent.",
            watches.pending_events as f64,
        ),
        ("cairn_leases", "Leases that are granted.", lessor),
        (
            "cairn_engine_disk_bytes",
            "Bytes that the engine takes on the disk.",
            shared.engine.disk_bytes() as f64,
        ),
        (
            "cairn_engine_unflushed_bytes",
            "Bytes of the engine in memory that no flush has made durable.",
            shared.engine.unflushed_bytes() as f64,
        ),
    ];
    for (name, help, value) in gauges {
        metric(name, "gauge", help, *value);
    }
    let counters: &[(&str, &str, f64)] = &[
        (
            "etcd_server_leader_changes_seen_total",
            "The number of leader changes seen.",
            relaxed(&shared.raft.leader_changes),
        ),
        (
            "etcd_server_proposals_failed_total",
            "The total number of failed proposals seen.",
            relaxed(&shared.counters.failed_proposals),
        ),
        (
            "etcd_server_slow_read_indexes_total",
            "The total number of pending read indexes not in sync with leader's or timed out read \
             index requests.",
            relaxed(&shared.counters.slow_reads),
        ),
        (
            "etcd_debugging_server_lease_expired_total",
            "The total number of expired leases.",
            relaxed(&shared.counters.leases_expired),
        ),
        (
            "etcd_debugging_mvcc_events_total",
            "Total number of events sent by this member.",
            watches.events as f64,
        ),
    ];
    for (name, help, value) in counters {
        metric(name, "counter", help, *value);
    }
    let fsync = "etcd_disk_wal_fsync_duration_seconds";
    let help = "The latency distributions of fsync called by WAL.";
    shared.counters.fsync.write(&mut text, fsync, help);
    labelled(shared, &published, &mut text);
    tls(shared, &mut text);
    process(&mut text);
    text
}

/// Metrics whose labels say more than their value.
fn labelled(
    shared: &Shared,
    published: &state::Published<super::shared::Snapshot>,
    text: &mut String,
) {
    describe(
        text,
        "etcd_server_id",
        "gauge",
        "Server or member ID in hexadecimal format.",
    );
    let id = shared.settings.member_id;
    let _ = writeln!(text, "etcd_server_id{{server_id=\"{id:x}\"}} 1");
    describe(
        text,
        "etcd_server_version",
        "gauge",
        "Which version is running.",
    );
    let server = state::version::SERVER;
    let _ = writeln!(text, "etcd_server_version{{server_version=\"{server}\"}} 1");
    if let Some(version) = published.cluster_version {
        let version = version.short();
        describe(
            text,
            "etcd_cluster_version",
            "gauge",
            "Which version is running.",
        );
        let _ = writeln!(
            text,
            "etcd_cluster_version{{cluster_version=\"{version}\"}} 1"
        );
    }
    describe(
        text,
        "cairn_build_info",
        "gauge",
        "Which version of cairn is running.",
    );
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(text, "cairn_build_info{{version=\"{version}\"}} 1");
    let alarms = published.alarms.of(AlarmType::None);
    if !alarms.is_empty() {
        describe(
            text,
            "etcd_server_alarms",
            "gauge",
            "Alarms that are raised.",
        );
    }
    for alarm in alarms {
        let name = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |of| of.as_str_name());
        let id = alarm.member_id;
        let _ = writeln!(
            text,
            "etcd_server_alarms{{alarm=\"{name}\",server_id=\"{id:x}\"}} 1"
        );
    }
}

/// Which certificates and CAs are in use: the proof that new files were taken.
fn tls(shared: &Shared, text: &mut String) {
    let standings: Vec<Arc<Standing>> = shared.tls.iter().map(|tls| tls.standing()).collect();
    // Who listens without TLS and calls nobody with it has nothing to show.
    let used =
        |standing: &&Standing| standing.not_after.is_some() || standing.bundle_sha256.is_some();
    let standings: Vec<&Standing> = standings.iter().map(Arc::as_ref).filter(used).collect();
    let mut metric = |name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>| {
        if !rows.is_empty() {
            describe(text, name, kind, help);
        }
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    };
    let of = |standing: &Standing| format!("listener=\"{}\"", standing.name);
    let each = |value: &dyn Fn(&Standing) -> f64| -> Vec<(String, f64)> {
        let rows = standings
            .iter()
            .map(|&standing| (of(standing), value(standing)));
        rows.collect()
    };
    let bundles = standings.iter().filter_map(|&standing| {
        let sha256 = standing.bundle_sha256.as_ref()?;
        Some((format!("{},sha256=\"{sha256}\"", of(standing)), 1.0))
    });
    metric(
        "cairn_tls_bundle_info",
        "gauge",
        "SHA-256 of the file of trusted CAs that is in use.",
        bundles.collect(),
    );
    let mut not_after = Vec::new();
    for &standing in &standings {
        let shown = standing.not_after.map(|time| (of(standing), time as f64));
        let called = standing.client_not_after.map(|time| {
            let name = standing.name;
            (format!("listener=\"{name}-calls\""), time as f64)
        });
        not_after.extend(shown.into_iter().chain(called));
    }
    metric(
        "cairn_tls_certificate_not_after_seconds",
        "gauge",
        "Until when the certificate in use is good, in seconds since 1970.",
        not_after,
    );
    metric(
        "cairn_tls_reloads_total",
        "counter",
        "How often new TLS files came into use.",
        each(&|standing| standing.reloads as f64),
    );
    metric(
        "cairn_tls_reload_failures_total",
        "counter",
        "How often new TLS files could not be used.",
        each(&|standing| standing.failures as f64),
    );
    metric(
        "cairn_tls_reload_failing",
        "gauge",
        "Whether the TLS files that are there now cannot be used. 1 if so, 0 otherwise.",
        each(&|standing| f64::from(u8::from(standing.failing))),
    );
}

/// What every process shows to Prometheus; nothing where the system does not tell.
fn process(text: &mut String) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return;
    };
    // The name in parentheses may hold spaces.
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return;
    };
    let fields: Vec<&str> = fields.split(' ').collect();
    let number = |at: usize| -> f64 {
        let text = fields.get(at).copied().unwrap_or_default();
        text.parse().unwrap_or_default()
    };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        describe(text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    };
    metric(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        (number(11) + number(12)) / ticks,
    );
    metric(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        number(21) * page,
    );
    metric(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        number(20),
    );
    metric(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        files as f64,
    );
}
