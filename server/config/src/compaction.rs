//! `--auto-compaction-mode` and `--auto-compaction-retention`, read as etcd reads them.

use std::time::Duration;

use crate::{Error, values};

const RETENTION: &str = "auto-compaction-retention";

/// What of the history is kept without anybody asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// What was current in this time.
    Periodic(Duration),
    /// So many revisions.
    Revisions(i64),
}

impl AutoCompaction {
    /// `None` keeps everything. A number alone counts hours or revisions; in the mode of revisions a
    /// duration counts its nanoseconds, as in etcd.
    pub(crate) fn of(mode: &str, retention: &str) -> Result<Option<Self>, Error> {
        let too_long = || Error::Invalid(format!("--{RETENTION}[{retention}] is out of range"));
        let by_revision = mode == "revision";
        if retention.is_empty() {
            return Ok(None);
        }
        let policy = match retention.parse::<i64>() {
            Ok(revisions @ 0..) if by_revision => Self::Revisions(revisions),
            Ok(hours @ 0..) => {
                let seconds = hours.checked_mul(3600).ok_or_else(too_long)?;
                Self::Periodic(Duration::from_secs(seconds.unsigned_abs()))
            }
            _ => {
                let period = values::duration(retention).ok_or_else(|| {
                    Error::Invalid(format!(
                        "error parsing CompactionRetention: time: invalid duration \
                         {retention:?}; give --{RETENTION} a duration as 30m or 12h, or a number"
                    ))
                })?;
                match by_revision {
                    true => {
                        let nanos = i64::try_from(period.as_nanos()).map_err(|_| too_long())?;
                        Self::Revisions(nanos)
                    }
                    false => Self::Periodic(period),
                }
            }
        };
        let nothing = [Self::Periodic(Duration::ZERO), Self::Revisions(0)];
        Ok((!nothing.contains(&policy)).then_some(policy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retentions_are_read_as_etcd_reads_them() {
        let of = |mode, retention| AutoCompaction::of(mode, retention).ok();
        let hours = |n: u64| {
            Some(Some(AutoCompaction::Periodic(Duration::from_secs(
                n * 3600,
            ))))
        };
        assert_eq!(of("periodic", "0"), Some(None));
        assert_eq!(of("revision", "0"), Some(None));
        assert_eq!(of("periodic", "0s"), Some(None));
        assert_eq!(of("periodic", ""), Some(None));
        assert_eq!(of("periodic", "2"), hours(2));
        assert_eq!(of("periodic", "1h"), hours(1));
        let minutes = Some(Some(AutoCompaction::Periodic(Duration::from_secs(90))));
        assert_eq!(of("periodic", "1m30s"), minutes);
        assert_eq!(
            of("revision", "1000"),
            Some(Some(AutoCompaction::Revisions(1000)))
        );
        assert_eq!(
            of("revision", "1us"),
            Some(Some(AutoCompaction::Revisions(1000)))
        );
        for bad in ["-1", "-5m", "day", "9223372036854775807"] {
            assert_eq!(of("periodic", bad), None, "{bad}");
        }
    }
}
