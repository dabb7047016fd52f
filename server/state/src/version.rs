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

/// The cluster version that its members' server versions allow: the release of the oldest.
/// `None` while a member's is unknown.
pub fn decide(members: impl IntoIterator<Item = Option<Version>>) -> Option<Version> {
    let versions: Option<Vec<Version>> = members.into_iter().collect();
    versions?.into_iter().min().map(Version::release)
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
        assert_eq!(decide([Some(new), Some(old)]), Some(Version::new(3, 6, 0)));
        assert_eq!(decide([Some(new), None]), None);
        assert_eq!(decide([]), None);
    }
}
