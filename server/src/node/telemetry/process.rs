//! What every process shows to Prometheus; nothing where the system does not tell.

use super::text::Text;

/// Fields of `/proc/self/stat` behind the name, by proc(5)'s numbers less three.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
const START_TIME: usize = 19;
const VIRTUAL_BYTES: usize = 20;
const RESIDENT_PAGES: usize = 21;

pub(super) fn write(text: &mut Text) {
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64;
    let limit = limit("Max open files");
    text.gauge("os_fd_used", "The number of used file descriptors.", files);
    text.gauge("os_fd_limit", "The file descriptor limit.", limit);
    text.gauge(
        "process_open_fds",
        "Number of open file descriptors.",
        files,
    );
    text.gauge(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        limit,
    );
    text.gauge(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
        self::limit("Max address space"),
    );
    network(text);
    stat(text);
}

fn stat(text: &mut Text) {
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
    text.counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        (number(USER_TIME) + number(SYSTEM_TIME)) / ticks,
    );
    text.gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        number(RESIDENT_PAGES) * page,
    );
    text.gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        number(VIRTUAL_BYTES),
    );
    if let Some(booted) = boot_time() {
        text.gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            booted + number(START_TIME) / ticks,
        );
    }
}

/// When the system began, in seconds of the epoch.
fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// A soft limit; one that is unlimited is the largest number, as Go shows it.
fn limit(name: &str) -> f64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft {
        Some("unlimited") => u64::MAX as f64,
        soft => soft.and_then(|text| text.parse().ok()).unwrap_or_default(),
    }
}

/// Bytes of all connections of the network namespace, as Go's collector has them.
fn network(text: &mut Text) {
    let Ok(netstat) = std::fs::read_to_string("/proc/self/net/netstat") else {
        return;
    };
    let mut lines = netstat
        .lines()
        .filter_map(|line| line.strip_prefix("IpExt: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return;
    };
    let pairs = names.split(' ').zip(values.split(' '));
    let value = |wanted: &str| -> Option<f64> {
        let (_, value) = pairs.clone().find(|(name, _)| *name == wanted)?;
        value.parse().ok()
    };
    if let (Some(received), Some(sent)) = (value("InOctets"), value("OutOctets")) {
        text.counter(
            "process_network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            received,
        );
        text.counter(
            "process_network_transmit_bytes_total",
            "Number of bytes sent by the process over the network.",
            sent,
        );
    }
}
