//! Prometheus' text form.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Metrics being written.
#[derive(Default)]
pub(crate) struct Text(pub String);

impl Text {
    /// Begins a family: what follows are its values.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A value of a family; `labels` as they stand between the braces, or nothing.
    pub fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.value(name, "", value);
    }

    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "counter", help);
        self.value(name, "", value);
    }

    pub fn histogram<const N: usize>(&mut self, name: &str, help: &str, of: &Histogram<N>) {
        self.family(name, "histogram", help);
        self.histogram_values(name, "", of);
    }

    /// The values of one histogram of a family.
    pub fn histogram_values<const N: usize>(
        &mut self,
        name: &str,
        labels: &str,
        of: &Histogram<N>,
    ) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, bucket) in of.bounds().zip(&of.buckets) {
            total += bucket.load(Relaxed);
            let labels = format!("{labels}{comma}le=\"{}\"", go_float(bound));
            self.value(&format!("{name}_bucket"), &labels, total as f64);
        }
        let count = of.count() as f64;
        let labels_inf = format!("{labels}{comma}le=\"+Inf\"");
        self.value(&format!("{name}_bucket"), &labels_inf, count);
        let sum = f64::from_bits(of.sum.load(Relaxed));
        self.value(&format!("{name}_sum"), labels, sum);
        self.value(&format!("{name}_count"), labels, count);
    }
}

/// How often, and how much: `N` buckets, each bound `factor` times the one before.
#[derive(Debug)]
pub(crate) struct Histogram<const N: usize> {
    first: f64,
    factor: f64,
    buckets: [AtomicU64; N],
    /// Beyond the last bucket.
    beyond: AtomicU64,
    /// A float's bits.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub fn new(first: f64, factor: f64) -> Self {
        Self {
            first,
            factor,
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Etcd's usual one for time, in seconds.
    pub fn seconds() -> Self {
        Self::new(0.001, 2.0)
    }

    fn bounds(&self) -> impl Iterator<Item = f64> + use<N> {
        let (first, factor) = (self.first, self.factor);
        // Multiplied one after the other, as Go does: the bounds are part of the series' names.
        std::iter::successors(Some(first), move |bound| Some(bound * factor)).take(N)
    }

    pub fn observe(&self, value: f64) {
        let at = self.bounds().position(|bound| value <= bound);
        let bucket = at.map_or(&self.beyond, |at| &self.buckets[at]);
        bucket.fetch_add(1, Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // The closure never refuses.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }

    pub fn observe_seconds(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    pub fn observe_millis(&self, time: Duration) {
        self.observe(time.as_secs_f64() * 1000.0);
    }

    pub fn count(&self) -> u64 {
        let within: u64 = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum();
        within + self.beyond.load(Relaxed)
    }
}

/// A bound as Go writes it: from 1e+06 on with an exponent.
fn go_float(value: f64) -> String {
    if value < 1e6 && (value >= 1e-4 || value == 0.0) {
        return format!("{value}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            format!("{digits}e{exponent:+03}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn bounds_are_written_as_go_does() {
        for (value, expected) in [
            (0.0001, "0.0001"),
            (0.001, "0.001"),
            (8.192, "8.192"),
            (524_288.0, "524288"),
            (1_048_576.0, "1.048576e+06"),
            (8_388_608.0, "8.388608e+06"),
            (1e-5, "1e-05"),
        ] {
            assert_eq!(go_float(value), expected);
        }
    }

    #[test]
    fn a_histogram_adds_up() {
        let histogram = Histogram::<3>::new(1.0, 2.0);
        for value in [0.5, 1.0, 3.0, 100.0] {
            histogram.observe(value);
        }
        let mut text = Text::default();
        text.histogram("h", "help", &histogram);
        let lines: Vec<&str> = text.0.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "h_bucket{le=\"1\"} 2",
                "h_bucket{le=\"2\"} 2",
                "h_bucket{le=\"4\"} 3",
                "h_bucket{le=\"+Inf\"} 4",
                "h_sum 104.5",
                "h_count 4"
            ]
        );
    }
}
