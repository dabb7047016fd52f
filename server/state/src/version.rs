//! Versions of servers, of the cluster and of the storage.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The server version that this one stands for.
pub const SERVER: Version = Version::new(3, 7, 3);
/// The oldest cluster that members of this version join.
pub const MIN_CLUSTER: Version = Version::new(3, 0, 0);
/// From this cluster version on the storage version is kept, and lease checkpoints are.
pub const STORAGE_VERSION_SINCE: Version = Version::new(3, 6, 0);

/// A version of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Incompatible generations.
    pub major: u32,
    /// Releases; the cluster's version goes by these.
    pub minor: u32,
    /// Fixes.
    pub patch: u32,
}

impl Version {
    /// A version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// The release without its fixes, as a cluster has it.
    pub const fn release(self) -> Self {
        Self::new(self.major, self.minor, 0)
    }

    /// The release before, to which a cluster may go down.
    pub fn before(self) -> Option<Self> {
        let minor = self.minor.checked_sub(1)?;
        Some(Self::new(self.major, minor, 0))
    }

    /// Reads a release as people write it: "3.6" or "3.6.0".
    pub fn of_release(text: &str) -> Option<Self> {
        let whole = text.parse().or_else(|_| format!("{text}.0").parse());
        whole.ok().map(Self::release)
    }

    /// "3.7", as `/version` and metrics show a cluster's.
    pub fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads "3.7.3"; what follows behind a minus (a pre-release) is not compared.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no version such as 3.7.0");
        let numbers = text.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = numbers.split('.').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok).ok_or_else(bad);
        let version = Self::new(next()?, next()?, next()?);
        match numbers.next() {
            None => Ok(version),
            Some(_) => Err(bad()),
        }
    }
}

/// The version that a cluster is to get now, if it is to get another: the release of its oldest member,
/// when that is a higher one; under a downgrade the job's, when that is one release below the cluster's
/// and below the oldest member's. `None` also while a member's is unknown.
pub fn decide(
    current: Option<Version>,
    members: impl IntoIterator<Item = Option<Version>>,
    downgrade: &Downgrade,
) -> Option<Version> {
    let versions: Option<Vec<Version>> = members.into_iter().collect();
    let oldest = versions?.into_iter().min()?.release();
    let Some(current) = current else {
        return Some(oldest);
    };
    if downgrade.enabled {
        let target = downgrade.target();
        let may = target.is_some() && current.before() == target && oldest.before() == target;
        return if may { target } else { None };
    }
    let higher = current.major == oldest.major && current < oldest;
    higher.then_some(oldest)
}

/// The job of downgrading the cluster, in etcd's JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downgrade {
    /// The release to go to; empty without a job.
    #[serde(rename = "target-version", default)]
    pub target_version: String,
    /// Whether there is a job.
    #[serde(default)]
    pub enabled: bool,
}

impl Downgrade {
    /// The release to go to, while there is a job.
    pub fn target(&self) -> Option<Version> {
        let target = self
            .enabled
            .then(|| Version::of_release(&self.target_version));
        target.flatten()
    }

    /// Whether all members are of the release to go to, so that the job is done.
    pub fn is_done(&self, members: impl IntoIterator<Item = Option<Version>>) -> bool {
        let target = self.target();
        let mut members = members.into_iter();
        target.is_some() && members.all(|member| member.map(Version::release) == target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_written() {
        let check = |text: &str, expected: Option<Version>| {
            assert_eq!(text.parse::<Version>().ok(), expected, "{text}");
        };
        check("3.7.3", Some(Version::new(3, 7, 3)));
        check("3.8.0-alpha.0", Some(Version::new(3, 8, 0)));
        for bad in ["", "3.7", "3.7.x", "3.7.3.1", "v3.7.3"] {
            check(bad, None);
        }
        assert_eq!(SERVER.to_string(), "3.7.3");
        assert_eq!(SERVER.release().short(), "3.7");
    }

    #[test]
    fn a_cluster_goes_by_its_oldest_member() {
        let (new, old) = (Version::new(3, 7, 3), Version::new(3, 6, 9));
        let none = Downgrade::default();
        let release = |minor| Some(Version::new(3, minor, 0));
        let check = |current, members: &[Option<Version>], expected| {
            let decided = decide(current, members.iter().copied(), &none);
            assert_eq!(decided, expected, "{current:?} {members:?}");
        };
        check(None, &[Some(new), Some(old)], release(6));
        check(None, &[Some(new), None], None);
        check(None, &[], None);
        check(release(6), &[Some(new), Some(old)], None);
        check(release(6), &[Some(new), Some(new)], release(7));
        check(release(7), &[Some(new), Some(old)], None);
        check(Some(MIN_CLUSTER), &[Some(new)], release(7));
        check(Some(Version::new(2, 3, 0)), &[Some(new)], None);
    }

    #[test]
    fn a_cluster_goes_down_by_one_release_when_it_is_told_to() {
        let to = |target: &str| Downgrade {
            target_version: target.to_owned(),
            enabled: true,
        };
        let release = |minor| Some(Version::new(3, minor, 0));
        let (new, old) = (Some(Version::new(3, 7, 3)), Some(Version::new(3, 6, 9)));
        assert_eq!(decide(release(7), [new, new], &to("3.6.0")), release(6));
        assert_eq!(decide(release(6), [new, old], &to("3.6.0")), None);
        assert_eq!(decide(release(7), [new], &to("3.5.0")), None);
        assert_eq!(decide(release(6), [new], &to("3.5.0")), None);
        assert_eq!(decide(release(7), [new, None], &to("3.6.0")), None);
        assert_eq!(decide(release(7), [new], &to("nothing")), None);
        assert!(!to("3.6.0").is_done([new, old]));
        assert!(!to("3.6.0").is_done([old, None]));
        assert!(to("3.6.0").is_done([old, old]));
        assert!(!Downgrade::default().is_done([old]));
        assert_eq!(Version::of_release("3.6"), release(6));
        assert_eq!(Version::of_release("3.6.5"), release(6));
        assert_eq!(Version::of_release("3"), None);
        assert_eq!(Version::new(4, 0, 0).before(), None);
    }
}
