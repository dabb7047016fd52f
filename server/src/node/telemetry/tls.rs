//! Which certificates and CAs are in use: the proof that new files were taken.

use std::sync::Arc;

use tls::{Standing, Tls};

use super::text::Text;

/// Writes the metrics of all listeners. Who listens without TLS and calls nobody with it has
/// nothing to show.
pub(crate) fn write(all: &[Arc<Tls>], text: &mut Text) {
    let standings: Vec<Arc<Standing>> = all.iter().map(|tls| tls.standing()).collect();
    let used =
        |standing: &&Standing| standing.not_after.is_some() || standing.bundle_sha256.is_some();
    let standings: Vec<&Standing> = standings.iter().map(Arc::as_ref).filter(used).collect();
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
    family(
        text,
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
    family(
        text,
        "cairn_tls_certificate_not_after_seconds",
        "gauge",
        "Until when the certificate in use is good, in seconds since 1970.",
        not_after,
    );
    family(
        text,
        "cairn_tls_reloads_total",
        "counter",
        "How often new TLS files came into use.",
        each(&|standing| standing.reloads as f64),
    );
    family(
        text,
        "cairn_tls_reload_failures_total",
        "counter",
        "How often new TLS files could not be used.",
        each(&|standing| standing.failures as f64),
    );
    family(
        text,
        "cairn_tls_reload_failing",
        "gauge",
        "Whether the TLS files that are there now cannot be used. 1 if so, 0 otherwise.",
        each(&|standing| f64::from(u8::from(standing.failing))),
    );
}

fn family(text: &mut Text, name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>) {
    if !rows.is_empty() {
        text.family(name, kind, help);
    }
    for (labels, value) in rows {
        text.value(name, &labels, value);
    }
}
