//! A node's counters, and its metrics in Prometheus' text form under etcd's names. What is counted
//! is counted where it happens, by atomics; the rest is read from the state when someone asks.
//!
//! `text.rs` is the form, `process.rs` what every process shows, `snapshots.rs` snapshots and probes, `tls.rs` the certificates in use. Which of etcd's metrics are not
//! here, and why, stands in `e2e/tests/metrics.rs`.

mod process;
mod snapshots;
mod text;
mod tls;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mvcc::Engine;
use parking_lot::Mutex;
use proto::etcdserverpb::{AlarmType, InternalRaftRequest};
use state::{Error, Published};

use self::text::{Histogram, Text};
use super::shared::{Shared, Snapshot};

/// The kinds of requests whose time is taken, in etcd's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Alarm,
    ClusterMemberAttrSet,
    ClusterVersionSet,
    Compaction,
    DeleteRange,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Range,
    ReadonlyTxn,
    Txn,
    /// What etcd has no word for here.
    Other,
}

const KINDS: [(Kind, &str); 12] = [
    (Kind::Alarm, "Alarm"),
    (Kind::ClusterMemberAttrSet, "ClusterMemberAttrSet"),
    (Kind::ClusterVersionSet, "ClusterVersionSet"),
    (Kind::Compaction, "Compaction"),
    (Kind::DeleteRange, "DeleteRange"),
    (Kind::LeaseGrant, "LeaseGrant"),
    (Kind::LeaseRevoke, "LeaseRevoke"),
    (Kind::Put, "Put"),
    (Kind::Range, "Range"),
    (Kind::ReadonlyTxn, "ReadonlyTxn"),
    (Kind::Txn, "Txn"),
    (Kind::Other, "unknown"),
];

impl Kind {
    /// Of a request that goes through the log.
    pub fn of(r: &InternalRaftRequest) -> Self {
        match r {
            _ if r.put.is_some() => Self::Put,
            _ if r.txn.is_some() => Self::Txn,
            _ if r.delete_range.is_some() => Self::DeleteRange,
            _ if r.compaction.is_some() => Self::Compaction,
            _ if r.lease_grant.is_some() => Self::LeaseGrant,
            _ if r.lease_revoke.is_some() => Self::LeaseRevoke,
            _ if r.alarm.is_some() => Self::Alarm,
            _ if r.cluster_member_attr_set.is_some() => Self::ClusterMemberAttrSet,
            _ if r.cluster_version_set.is_some() => Self::ClusterVersionSet,
            _ => Self::Other,
        }
    }
}

/// Time by success.
#[derive(Debug)]
struct Outcomes<const N: usize> {
    well: Histogram<N>,
    ill: Histogram<N>,
}

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Counters {
    fsync: Histogram<14>,
    log_write: Histogram<14>,
    log_bytes: AtomicU64,
    commit: Histogram<14>,
    defragment: Histogram<13>,
    pub defragmenting: AtomicU64,
    hash: Histogram<15>,
    requests: [Outcomes<14>; KINDS.len()],
    range: Outcomes<20>,
    pub failed_proposals: AtomicU64,
    pub slow_reads: AtomicU64,
    pub failed_reads: AtomicU64,
    slow_applies: AtomicU64,
    pub promotions: AtomicU64,
    failed_promotions: Mutex<BTreeMap<&'static str, u64>>,
    pub leases_expired: AtomicU64,
    pub leases_renewed: AtomicU64,
    leases_granted: AtomicU64,
    leases_revoked: AtomicU64,
    lease_ttl: Histogram<24>,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    deletes: AtomicU64,
    pub ranges: AtomicU64,
    txns: AtomicU64,
    compaction_pause: Histogram<13>,
    compaction_total: Histogram<14>,
    compacted_at: AtomicI64,
    pub compacted_rows: AtomicU64,
    pub snapshots: snapshots::Snapshots,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            fsync: Histogram::seconds(),
            log_write: Histogram::seconds(),
            log_bytes: zero(),
            commit: Histogram::seconds(),
            defragment: Histogram::new(0.1, 2.0),
            defragmenting: zero(),
            hash: Histogram::new(0.01, 2.0),
            requests: std::array::from_fn(|_| Outcomes {
                well: Histogram::seconds(),
                ill: Histogram::seconds(),
            }),
            range: Outcomes {
                well: Histogram::new(0.0001, 2.0),
                ill: Histogram::new(0.0001, 2.0),
            },
            failed_proposals: zero(),
            slow_reads: zero(),
            failed_reads: zero(),
            slow_applies: zero(),
            promotions: zero(),
            failed_promotions: Mutex::default(),
            leases_expired: zero(),
            leases_renewed: zero(),
            leases_granted: zero(),
            leases_revoked: zero(),
            lease_ttl: Histogram::new(1.0, 2.0),
            puts: zero(),
            put_bytes: zero(),
            deletes: zero(),
            ranges: zero(),
            txns: zero(),
            compaction_pause: Histogram::new(1.0, 2.0),
            compaction_total: Histogram::new(100.0, 2.0),
            compacted_at: AtomicI64::new(0),
            compacted_rows: zero(),
            snapshots: snapshots::Snapshots::default(),
        }
    }
}

impl Counters {
    /// A write of the log: its length, how long the write took, and how long its sync.
    pub fn logged(&self, bytes: u64, write: Duration, sync: Option<Duration>) {
        self.log_bytes.fetch_add(bytes, Relaxed);
        self.log_write.observe_seconds(write);
        if let Some(sync) = sync {
            self.fsync.observe_seconds(sync);
        }
    }

    /// A flush of the engine: what makes its state durable, as a commit does in etcd's.
    pub fn committed(&self, time: Duration) {
        self.commit.observe_seconds(time);
    }

    /// A defragmentation that ended.
    pub fn defragmented(&self, time: Duration) {
        self.defragment.observe_seconds(time);
    }

    /// A HashKV.
    pub fn hashed(&self, time: Duration) {
        self.hash.observe_seconds(time);
    }

    /// A request: whether it came through, not what it was told.
    pub fn requested(&self, kind: Kind, time: Duration, well: bool) {
        let of = &self.requests[kind as usize];
        if well { &of.well } else { &of.ill }.observe_seconds(time);
    }

    /// A range that was read.
    pub fn ranged(&self, time: Duration, well: bool) {
        self.ranges.fetch_add(1, Relaxed);
        let of = &self.range;
        if well { &of.well } else { &of.ill }.observe_seconds(time);
    }

    /// A learner that was not made a voter.
    pub fn promotion_failed(&self, why: Error) {
        *self.failed_promotions.lock().entry(why.text()).or_default() += 1;
    }

    /// A batch that was applied, and whether it took long.
    pub fn applied(&self, counts: &state::Counts, slow: bool) {
        if slow {
            self.slow_applies.fetch_add(1, Relaxed);
        }
        let add = |to: &AtomicU64, n: u64| {
            if n > 0 {
                to.fetch_add(n, Relaxed);
            }
        };
        add(&self.puts, counts.puts);
        add(&self.put_bytes, counts.put_bytes);
        add(&self.deletes, counts.deletes);
        add(&self.ranges, counts.ranges);
        add(&self.txns, counts.txns);
        add(&self.leases_granted, counts.granted.len() as u64);
        add(&self.leases_revoked, counts.revoked);
        for ttl in &counts.granted {
            self.lease_ttl.observe(*ttl as f64);
        }
    }

    /// A read-only transaction of so many ranges.
    pub fn read_txn(&self, ranges: u64) {
        self.ranges.fetch_add(ranges, Relaxed);
        if ranges > 1 {
            self.txns.fetch_add(1, Relaxed);
        }
    }

    /// A piece of a compaction; `total` when it was the last.
    pub fn compacted(&self, pause: Duration, total: Option<Duration>) {
        self.compaction_pause.observe_millis(pause);
        if let Some(total) = total {
            self.compaction_total.observe_millis(total);
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.unwrap_or_default().as_secs();
            self.compacted_at.store(now as i64, Relaxed);
        }
    }
}

/// All metrics.
pub(crate) fn metrics(shared: &Shared) -> String {
    let published = shared.published.load();
    let mut text = Text::default();
    server(shared, &published, &mut text);
    store(shared, &published, &mut text);
    leases(shared, &mut text);
    disk(shared, &mut text);
    times(&shared.counters, &mut text);
    names(shared, &published, &mut text);
    network(shared, &published, &mut text);
    snapshots::write(&shared.counters.snapshots, &mut text);
    own(shared, &mut text);
    tls::write(&shared.tls, &mut text);
    process::write(&mut text);
    shared.meter.write(&mut text.0);
    text.0
}

fn value(of: &AtomicU64) -> f64 {
    of.load(Relaxed) as f64
}

fn server(shared: &Shared, published: &Published<Snapshot>, text: &mut Text) {
    let counters = &shared.counters;
    let flag = |on: bool| f64::from(u8::from(on));
    let settings = &shared.settings;
    let member = published.members.get(settings.member_id);
    text.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        flag(shared.leader() != 0),
    );
    text.gauge(
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
        flag(shared.is_leader()),
    );
    text.gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
        flag(member.is_some_and(|member| member.is_learner)),
    );
    text.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        value(&shared.raft.committed),
    );
    text.gauge(
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
        value(&shared.applied),
    );
    text.gauge(
        "etcd_server_proposals_pending",
        "The current number of pending proposals to commit.",
        shared.pending() as f64,
    );
    text.gauge(
        "etcd_server_quota_backend_bytes",
        "Current backend storage quota size in bytes.",
        state::cost::quota(settings.quota_bytes).unwrap_or(settings.quota_bytes) as f64,
    );
    for (name, help, of) in [
        (
            "etcd_server_leader_changes_seen_total",
            "The number of leader changes seen.",
            &shared.raft.leader_changes,
        ),
        (
            "etcd_server_proposals_failed_total",
            "The total number of failed proposals seen.",
            &counters.failed_proposals,
        ),
        (
            "etcd_server_slow_read_indexes_total",
            "The total number of pending read indexes not in sync with leader's or timed out read \
             index requests.",
            &counters.slow_reads,
        ),
        (
            "etcd_server_read_indexes_failed_total",
            "The total number of failed read indexes seen.",
            &counters.failed_reads,
        ),
        (
            "etcd_server_slow_apply_total",
            "The total number of slow apply batches (likely overloaded from slow disk).",
            &counters.slow_applies,
        ),
        (
            "etcd_server_learner_promote_successes",
            "The total number of successful learner promotions while this member is leader.",
            &counters.promotions,
        ),
    ] {
        text.counter(name, help, value(of));
    }
    let failed = counters.failed_promotions.lock();
    if !failed.is_empty() {
        let name = "etcd_server_learner_promote_failures";
        let help = "The total number of failed learner promotions (likely learner not ready) while \
                    this member is leader.";
        text.family(name, "counter", help);
        for (reason, count) in failed.iter() {
            text.value(name, &format!("Reason=\"{reason}\""), *count as f64);
        }
    }
}

fn store(shared: &Shared, published: &Published<Snapshot>, text: &mut Text) {
    let (view, counters) = (&published.view, &shared.counters);
    let watches = shared.watches.gauges();
    for (name, help, value) in [
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
            "etcd_debugging_auth_revision",
            "The current revision of auth store.",
            published.auth.revision() as f64,
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
        (
            "etcd_debugging_mvcc_total_put_size_in_bytes",
            "The total size of put kv pairs seen by this member.",
            value(&counters.put_bytes),
        ),
        (
            "etcd_debugging_mvcc_db_compaction_last",
            "The unix time of the last db compaction. Resets to 0 on start.",
            counters.compacted_at.load(Relaxed) as f64,
        ),
    ] {
        text.gauge(name, help, value);
    }
    for (name, help, of) in [
        (
            "etcd_mvcc_put_total",
            "Total number of puts seen by this member.",
            &counters.puts,
        ),
        (
            "etcd_mvcc_delete_total",
            "Total number of deletes seen by this member.",
            &counters.deletes,
        ),
        (
            "etcd_mvcc_range_total",
            "Total number of ranges seen by this member.",
            &counters.ranges,
        ),
        (
            "etcd_mvcc_txn_total",
            "Total number of txns seen by this member.",
            &counters.txns,
        ),
        (
            "etcd_debugging_mvcc_db_compaction_keys_total",
            "Total number of db keys compacted.",
            &counters.compacted_rows,
        ),
    ] {
        text.counter(name, help, value(of));
    }
    text.counter(
        "etcd_debugging_mvcc_events_total",
        "Total number of events sent by this member.",
        watches.events as f64,
    );
    text.histogram(
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        "Bucketed histogram of db compaction pause duration.",
        &counters.compaction_pause,
    );
    text.histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "Bucketed histogram of db compaction total duration.",
        &counters.compaction_total,
    );
    text.histogram(
        "etcd_mvcc_hash_rev_duration_seconds",
        "The latency distribution of storage hash by revision operation.",
        &counters.hash,
    );
}

fn leases(shared: &Shared, text: &mut Text) {
    let counters = &shared.counters;
    for (name, help, of) in [
        (
            "etcd_debugging_server_lease_expired_total",
            "The total number of expired leases.",
            &counters.leases_expired,
        ),
        (
            "etcd_debugging_lease_granted_total",
            "The total number of granted leases.",
            &counters.leases_granted,
        ),
        (
            "etcd_debugging_lease_revoked_total",
            "The total number of revoked leases.",
            &counters.leases_revoked,
        ),
        (
            "etcd_debugging_lease_renewed_total",
            "The number of renewed leases seen by the leader.",
            &counters.leases_renewed,
        ),
    ] {
        text.counter(name, help, value(of));
    }
    text.histogram(
        "etcd_debugging_lease_ttl_total",
        "Bucketed histogram of lease TTLs.",
        &counters.lease_ttl,
    );
}

fn disk(shared: &Shared, text: &mut Text) {
    let counters = &shared.counters;
    text.histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "The latency distributions of fsync called by WAL.",
        &counters.fsync,
    );
    text.histogram(
        "etcd_disk_wal_write_duration_seconds",
        "The latency distributions of write called by WAL.",
        &counters.log_write,
    );
    text.gauge(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
        value(&counters.log_bytes),
    );
    text.histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "The latency distributions of commit called by backend: here, of flushes of the engine.",
        &counters.commit,
    );
    text.histogram(
        "etcd_disk_backend_defrag_duration_seconds",
        "The latency distribution of backend defragmentation.",
        &counters.defragment,
    );
    text.gauge(
        "etcd_disk_defrag_inflight",
        "Whether or not defrag is active on the member. 1 means active, 0 means not.",
        value(&counters.defragmenting).min(1.0),
    );
}

fn times(counters: &Counters, text: &mut Text) {
    let by = |outcomes: &Outcomes<14>| [outcomes.well.count(), outcomes.ill.count()];
    let name = "etcd_server_request_duration_seconds";
    let help = "Response latency distribution in seconds for each type.";
    text.family(name, "histogram", help);
    for ((_, word), outcomes) in KINDS.iter().zip(&counters.requests) {
        let [well, ill] = by(outcomes);
        for (success, count, of) in [
            ("true", well, &outcomes.well),
            ("false", ill, &outcomes.ill),
        ] {
            if count > 0 {
                let labels = format!("success=\"{success}\",type=\"{word}\"");
                text.histogram_values(name, &labels, of);
            }
        }
    }
    let name = "etcd_server_range_duration_seconds";
    let help = "The latency distributions of txn.Range";
    text.family(name, "histogram", help);
    for (success, of) in [
        ("true", &counters.range.well),
        ("false", &counters.range.ill),
    ] {
        if of.count() > 0 {
            text.histogram_values(name, &format!("success=\"{success}\""), of);
        }
    }
}

/// Metrics whose labels say more than their value.
fn names(shared: &Shared, published: &Published<Snapshot>, text: &mut Text) {
    let id = format!("{:x}", shared.settings.member_id);
    let mut name = |name: &str, help: &str, labels: String| {
        text.family(name, "gauge", help);
        text.value(name, &labels, 1.0);
    };
    name(
        "etcd_server_id",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
        format!("server_id=\"{id}\""),
    );
    name(
        "etcd_server_version",
        "Which version is running. 1 for 'server_version' label with current version.",
        format!("server_version=\"{}\"", state::version::SERVER),
    );
    name(
        "cairn_build_info",
        "Which version of cairn is running.",
        format!("version=\"{}\"", env!("CARGO_PKG_VERSION")),
    );
    if let Some(version) = published.cluster_version {
        name(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            format!("cluster_version=\"{}\"", version.short()),
        );
    }
    let name = "etcd_server_feature_enabled";
    let help = "Whether or not a feature is enabled. 1 is enabled, 0 is not.";
    text.family(name, "gauge", help);
    for (gate, stage, open) in &shared.settings.feature_gates {
        let labels = format!("name=\"{gate}\",stage=\"{stage}\"");
        text.value(name, &labels, f64::from(u8::from(*open)));
    }
    let alarms = published.alarms.of(AlarmType::None);
    if alarms.is_empty() {
        return;
    }
    let name = "etcd_debugging_server_alarms";
    let help = "Alarms for every member in cluster. 1 for 'server_id' label with current ID.";
    text.family(name, "gauge", help);
    for alarm in alarms {
        let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |of| of.as_str_name());
        let labels = format!("alarm_type=\"{kind}\",server_id=\"{:x}\"", alarm.member_id);
        text.value(name, &labels, 1.0);
    }
}

fn network(shared: &Shared, published: &Published<Snapshot>, text: &mut Text) {
    let own = shared.settings.member_id;
    let known = published.members.iter();
    let name = "etcd_network_known_peers";
    text.family(name, "gauge", "The current number of known peers.");
    for member in known {
        let labels = format!("Local=\"{own:x}\",Remote=\"{:x}\"", member.id);
        text.value(name, &labels, 1.0);
    }
    let Some(transport) = shared.transport() else {
        return;
    };
    let links = transport.traffic();
    if links.is_empty() {
        return;
    }
    let mut family =
        |name: &str, kind: &str, help: &str, of: &dyn Fn(&peer::Traffic) -> (String, f64)| {
            text.family(name, kind, help);
            for link in &links {
                let (labels, value) = of(link);
                text.value(name, &labels, value);
            }
        };
    let both = |id: u64| format!("Local=\"{own:x}\",Remote=\"{id:x}\"");
    let from = |id: u64| format!("From=\"{id:x}\"");
    let to = |id: u64| format!("To=\"{id:x}\"");
    family(
        "etcd_network_active_peers",
        "gauge",
        "The current number of active peer connections.",
        &|link| (both(link.id), f64::from(u8::from(link.active))),
    );
    family(
        "etcd_network_disconnected_peers_total",
        "counter",
        "The total number of disconnected peers.",
        &|link| (both(link.id), link.lost as f64),
    );
    family(
        "etcd_network_peer_sent_bytes_total",
        "counter",
        "The total number of bytes sent to peers.",
        &|link| (to(link.id), link.sent_bytes as f64),
    );
    family(
        "etcd_network_peer_received_bytes_total",
        "counter",
        "The total number of bytes received from peers.",
        &|link| (from(link.id), link.received_bytes as f64),
    );
    family(
        "etcd_network_peer_sent_failures_total",
        "counter",
        "The total number of send failures from peers.",
        &|link| (to(link.id), link.unsent as f64),
    );
}

/// What etcd has no name for.
fn own(shared: &Shared, text: &mut Text) {
    let leases = super::lessor(shared).len() as f64;
    text.gauge("cairn_leases", "Leases that are granted.", leases);
    text.gauge(
        "cairn_engine_disk_bytes",
        "Bytes that the engine takes on the disk.",
        shared.engine.load().disk_bytes() as f64,
    );
    text.gauge(
        "cairn_engine_unflushed_bytes",
        "Bytes of the engine in memory that no flush has made durable.",
        shared.engine.load().unflushed_bytes() as f64,
    );
}
