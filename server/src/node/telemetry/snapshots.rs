//! What is measured of snapshots, and of the way to other members: one series for each of them,
//! which appears, as in etcd, when there is something to say.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::text::{Histogram, Text};

/// Snapshots to a member, or from one.
#[derive(Debug, Default)]
struct Way {
    /// Begin of those that are on their way.
    under_way: Vec<Instant>,
    successes: u64,
    failures: u64,
    time: Option<Histogram<10>>,
}

impl Way {
    fn ended(&mut self, began: Option<Instant>, well: bool) {
        if !well {
            self.failures += 1;
            return;
        }
        self.successes += 1;
        if let Some(began) = began {
            let time = self.time.get_or_insert_with(|| Histogram::new(0.1, 2.0));
            time.observe_seconds(began.elapsed());
        }
    }
}

/// Ways by the other member's ID.
type Ways = Mutex<BTreeMap<u64, Way>>;

/// What is counted as it happens.
#[derive(Debug)]
pub(crate) struct Snapshots {
    made: Histogram<17>,
    synced: Histogram<14>,
    saved: Histogram<10>,
    /// Snapshots that take the place of the state now: at most one.
    pub installing: AtomicU64,
    sends: Ways,
    receives: Ways,
    round_trips: Mutex<BTreeMap<u64, Histogram<16>>>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            made: Histogram::new(0.01, 2.0),
            synced: Histogram::seconds(),
            saved: Histogram::new(0.1, 2.0),
            installing: AtomicU64::new(0),
            sends: Ways::default(),
            receives: Ways::default(),
            round_trips: Mutex::default(),
        }
    }
}

impl Snapshots {
    /// A database file was made of the state, for whomever.
    pub fn made(&self, time: Duration) {
        self.made.observe_seconds(time);
    }

    /// One that came was saved; its sync took a part of the time.
    pub fn saved(&self, time: Duration, sync: Duration) {
        self.saved.observe_seconds(time);
        self.synced.observe_seconds(sync);
    }

    /// Sending to a member begins.
    pub fn send_began(&self, to: u64) {
        let mut sends = self.sends.lock();
        sends.entry(to).or_default().under_way.push(Instant::now());
    }

    /// Sending to a member ended, which may have failed before it began.
    pub fn send_ended(&self, to: u64, well: bool) {
        let mut sends = self.sends.lock();
        let way = sends.entry(to).or_default();
        let began = way.under_way.pop();
        way.ended(began, well);
    }

    /// Counts a snapshot from a member as being under way until what this returns is dropped, then
    /// as a failure unless it was told otherwise.
    pub fn receive(&self, from: u64) -> Receiving<'_> {
        let began = Instant::now();
        let mut receives = self.receives.lock();
        receives.entry(from).or_default().under_way.push(began);
        Receiving {
            of: self,
            from,
            began,
            well: false,
        }
    }

    /// A member is gone for good, and its series with it.
    pub fn forget(&self, id: u64) {
        self.sends.lock().remove(&id);
        self.receives.lock().remove(&id);
        self.round_trips.lock().remove(&id);
    }

    /// A member answered a probe.
    pub fn round_trip(&self, to: u64, time: Duration) {
        let mut all = self.round_trips.lock();
        let of = all.entry(to).or_insert_with(|| Histogram::new(0.0001, 2.0));
        of.observe_seconds(time);
    }
}

/// A snapshot that comes.
pub(crate) struct Receiving<'a> {
    of: &'a Snapshots,
    from: u64,
    began: Instant,
    /// Whether it was taken.
    pub well: bool,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        let mut receives = self.of.receives.lock();
        let way = receives.entry(self.from).or_default();
        way.under_way.retain(|began| *began != self.began);
        way.ended(Some(self.began), self.well);
    }
}

/// Writes them all.
pub(crate) fn write(snapshots: &Snapshots, text: &mut Text) {
    text.histogram(
        "etcd_disk_backend_snapshot_duration_seconds",
        "The latency distribution of backend snapshots.",
        &snapshots.made,
    );
    text.histogram(
        "etcd_snap_db_fsync_duration_seconds",
        "The latency distributions of fsyncing .snap.db file",
        &snapshots.synced,
    );
    text.histogram(
        "etcd_snap_db_save_total_duration_seconds",
        "The total latency distributions of v3 snapshot save",
        &snapshots.saved,
    );
    text.gauge(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 if the server is applying the incoming snapshot. 0 if none.",
        snapshots.installing.load(Relaxed) as f64,
    );
    ways(&snapshots.sends, "send", "To", "sends", text);
    ways(&snapshots.receives, "receive", "From", "receives", text);
    let round_trips = snapshots.round_trips.lock();
    if !round_trips.is_empty() {
        let name = "etcd_network_peer_round_trip_time_seconds";
        text.family(name, "histogram", "Round-Trip-Time histogram between peers");
        for (id, of) in round_trips.iter() {
            text.histogram_values(name, &format!("To=\"{id:x}\""), of);
        }
    }
}

fn ways(ways: &Ways, verb: &str, label: &str, verbs: &str, text: &mut Text) {
    let ways = ways.lock();
    let of = |id: &u64| format!("{label}=\"{id:x}\"");
    let mut family = |end: &str, kind: &str, help: &str, value: fn(&Way) -> Option<f64>| {
        let values = ways.iter().filter_map(|(id, way)| Some((id, value(way)?)));
        let values: Vec<(&u64, f64)> = values.collect();
        if values.is_empty() {
            return;
        }
        let name = format!("etcd_network_snapshot_{verb}_{end}");
        text.family(&name, kind, help);
        for (id, value) in values {
            text.value(&name, &of(id), value);
        }
    };
    family(
        "success",
        "counter",
        &format!("Total number of successful snapshot {verbs}"),
        |way| (way.successes > 0).then_some(way.successes as f64),
    );
    family(
        "failures",
        "counter",
        &format!("Total number of snapshot {verb} failures"),
        |way| (way.failures > 0).then_some(way.failures as f64),
    );
    family(
        "inflights_total",
        "gauge",
        &format!("Total number of inflight snapshot {verbs}"),
        |way| Some(way.under_way.len() as f64),
    );
    let timed: Vec<(&u64, &Histogram<10>)> = ways
        .iter()
        .filter_map(|(id, way)| Some((id, way.time.as_ref()?)))
        .collect();
    if !timed.is_empty() {
        let name = format!("etcd_network_snapshot_{verb}_total_duration_seconds");
        let help = format!("Total latency distributions of v3 snapshot {verbs}");
        text.family(&name, "histogram", &help);
        for (id, time) in timed {
            text.histogram_values(&name, &of(id), time);
        }
    }
}
