//! Meets a filling disk early: below a low-water mark the member raises NOSPACE through the log, so
//! that no member takes what this one could not keep; when space is back it takes the alarm back.
//!
//! A file that holds nothing, the ballast, is what a disk that fills up nevertheless leaves for the
//! next start. Two files tell what happened, over restarts: the ballast, and a marker that the alarm
//! is this rule's and not the quota's, which only a user takes back.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use config::Config;
use proto::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, alarm_request::AlarmAction,
};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::{apply, backend::NodeBackend, bootstrap, shared::Shared};

/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Names below `member`.
const BALLAST: &str = "ballast";
const MARKER: &str = "low-water";
/// The least that must be free, and the least ballast: the engine's small files need room as well.
const MIN_LOW_BYTES: u64 = 16 << 20;
const MIN_BALLAST_BYTES: u64 = 8 << 20;
/// Zeros are written in pieces of this many bytes, where the file system reserves no space.
const CHUNK: usize = 1 << 20;
/// What the system says when a disk is full.
const FULL: &str = "No space left on device";

/// What is looked at, and when something is done.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Folders on the disks that are written to.
    folders: Vec<PathBuf>,
    /// The member's folder.
    member: PathBuf,
    /// Below so many free bytes writes are refused: two segments of the log and two flushes.
    low_bytes: u64,
    ballast_bytes: u64,
}

impl Policy {
    pub fn of(config: &Config) -> Self {
        let places = bootstrap::Places::of(config);
        let segment = config.wal_segment_bytes;
        let flush = apply::FLUSH_AT_BYTES.min(2 * segment);
        Self {
            low_bytes: (2 * segment + 2 * flush).max(MIN_LOW_BYTES),
            ballast_bytes: segment.max(MIN_BALLAST_BYTES),
            folders: vec![places.folder.clone(), places.log],
            member: places.folder,
        }
    }

    /// From so many free bytes on writes are taken again.
    fn enough_bytes(&self) -> u64 {
        self.low_bytes + self.low_bytes / 2
    }

    fn ballast(&self) -> PathBuf {
        self.member.join(BALLAST)
    }

    fn marker(&self) -> PathBuf {
        self.member.join(MARKER)
    }

    /// Gives the ballast back when the disk is nearly full, so that a start has room to open what
    /// is there, and then to compact it. Never anything else goes.
    ///
    /// # Errors
    /// The disk's.
    pub fn release_ballast(&self) -> io::Result<()> {
        if !self.ballast().exists() {
            return Ok(());
        }
        match self.look() {
            Ok((folder, free)) if free < self.low_bytes => {
                warn!(
                    folder = %folder.display(),
                    "free-bytes" = free,
                    "the disk is nearly full; giving back the ballast"
                );
                fs::remove_file(self.ballast())
            }
            Ok(_) => Ok(()),
            // The start itself says what is wrong with a folder.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The fullest of the disks: its folder and what is free.
    fn look(&self) -> io::Result<(&Path, u64)> {
        let mut least: Option<(&Path, u64)> = None;
        for folder in &self.folders {
            let disk = statvfs(folder)?;
            // What an ordinary user may use: some file systems keep a part for root.
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if least.is_none_or(|(_, other)| free < other) {
                least = Some((folder, free));
            }
        }
        least.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Reserves the ballast, when there is room for it.
    fn take_ballast(&self, free: u64) -> io::Result<()> {
        let path = self.ballast();
        let there = fs::metadata(&path).map_or(0, |found| found.len());
        // A power cut leaves a part of it.
        if free < self.enough_bytes() + self.ballast_bytes || there == self.ballast_bytes {
            return Ok(());
        }
        let reserved = reserve(&path, self.ballast_bytes);
        if reserved.is_err() {
            // Half of it would pass for all of it.
            fs::remove_file(&path)?;
        }
        reserved
    }
}

fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        reserved => return Ok(reserved?),
    }
    let zeros = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(CHUNK as u64);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

/// What a look finds.
#[derive(Clone, Copy, Debug)]
struct Found {
    free: u64,
    /// This member's alarm is raised.
    raised: bool,
    /// It was raised by this rule.
    marked: bool,
    /// The store is beyond its quota, too.
    beyond_quota: bool,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Mark, then raise the alarm.
    Raise,
    /// Take the alarm back, then remove the mark.
    Clear,
    /// Remove the mark: a user has taken the alarm back, or the quota keeps it.
    Unmark,
}

fn decide(policy: &Policy, found: Found) -> Step {
    if found.free < policy.low_bytes {
        return match found.raised {
            true => Step::Nothing,
            false => Step::Raise,
        };
    }
    if found.free < policy.enough_bytes() || !found.marked {
        return Step::Nothing;
    }
    match found.raised && !found.beyond_quota {
        true => Step::Clear,
        false => Step::Unmark,
    }
}

/// Looks at the disk by the clock.
pub(crate) async fn run(shared: Arc<Shared>, policy: Policy) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let policy = Arc::new(policy);
    loop {
        looks.tick().await;
        if shared.engine.load().background_errors() > 0 {
            // A flush or compaction failed beside; nothing that is written from now on would last.
            shared.fatal(format!(
                "the engine in {} could not write to its disk; its LOG file there says why",
                policy.member.display()
            ));
            return;
        }
        let (looker, node) = (Arc::clone(&policy), Arc::clone(&shared));
        // A disk that hangs must hang nothing else.
        let looked = tokio::task::spawn_blocking(move || look(&looker, &node)).await;
        match looked {
            Ok(Ok(Step::Raise)) => propose(&shared, AlarmAction::Activate).await,
            Ok(Ok(Step::Clear)) => propose(&shared, AlarmAction::Deactivate).await,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "could not look how full the disk is"),
            Err(error) => warn!(%error, "could not look how full the disk is"),
        }
    }
}

fn look(policy: &Policy, shared: &Shared) -> io::Result<Step> {
    let (folder, free) = policy.look()?;
    let published = shared.published.load();
    let raised = published.alarms.of(AlarmType::Nospace);
    let own = shared.settings.member_id;
    let quota = state::cost::quota(shared.settings.quota_bytes).unwrap_or(i64::MAX);
    let found = Found {
        free,
        raised: raised.iter().any(|alarm| alarm.member_id == own),
        marked: policy.marker().exists(),
        beyond_quota: published.view.size() >= quota,
    };
    let step = decide(policy, found);
    match step {
        Step::Raise => {
            error!(
                folder = %folder.display(),
                "free-bytes" = free,
                "low-water-bytes" = policy.low_bytes,
                "the disk is nearly full: the cluster takes no writes but deletes and compactions. \
                 Free space on this disk or enlarge it; writes are taken again by themselves when \
                 {} bytes are free",
                policy.enough_bytes()
            );
            // On a disk that has no room for a name the alarm is left to the user after a restart.
            if let Err(error) = File::create(policy.marker()) {
                warn!(%error, "could not note that the alarm is the disk's");
            }
        }
        Step::Clear => info!("free-bytes" = free, "there is room on the disk again"),
        Step::Unmark => fs::remove_file(policy.marker())?,
        Step::Nothing => policy.take_ballast(free)?,
    }
    Ok(step)
}

/// Changes this member's alarm through the log. Without a quorum the next look tries again.
async fn propose(shared: &Arc<Shared>, action: AlarmAction) {
    let request = InternalRaftRequest {
        alarm: Some(AlarmRequest {
            action: action as i32,
            member_id: shared.settings.member_id,
            alarm: AlarmType::Nospace as i32,
        }),
        ..InternalRaftRequest::default()
    };
    let backend = NodeBackend::new(Arc::clone(shared));
    if let Err(error) = backend.propose(request).await {
        warn!(%error, "could not change the NOSPACE alarm; trying again");
    }
}

/// What to do about an error that ended the process, when the disk is why.
pub(crate) fn advice(error: &str) -> Option<&'static str> {
    error.contains(FULL).then_some(
        "the disk is full: free space on it or enlarge it, and start again; nothing that was \
         acknowledged is lost",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn policy(member: &Path) -> Policy {
        Policy {
            folders: vec![member.to_owned()],
            member: member.to_owned(),
            low_bytes: 100,
            ballast_bytes: 3 << 20,
        }
    }

    #[test]
    fn only_what_this_rule_raised_is_taken_back() {
        let policy = policy(Path::new("member"));
        for (free, raised, marked, beyond_quota, expected) in [
            (99, false, false, false, Step::Raise),
            (0, false, true, true, Step::Raise),
            (99, true, false, false, Step::Nothing),
            (99, true, true, false, Step::Nothing),
            (100, false, false, false, Step::Nothing),
            (149, true, true, false, Step::Nothing),
            (150, true, true, false, Step::Clear),
            (150, true, true, true, Step::Unmark),
            (150, false, true, false, Step::Unmark),
            (150, true, false, false, Step::Nothing),
            (150, false, false, true, Step::Nothing),
        ] {
            let found = Found {
                free,
                raised,
                marked,
                beyond_quota,
            };
            assert_eq!(decide(&policy, found), expected, "{found:?}");
        }
    }

    #[test]
    fn ballast_is_taken_where_there_is_room_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut policy = policy(folder.path());
        policy.release_ballast().unwrap();
        policy.take_ballast(149).unwrap();
        assert!(!policy.ballast().exists());
        for _ in 0..2 {
            policy.take_ballast(u64::MAX).unwrap();
            let length = fs::metadata(policy.ballast()).unwrap().len();
            assert_eq!(length, policy.ballast_bytes);
        }
        // There is room, so it stays.
        policy.release_ballast().unwrap();
        assert!(policy.ballast().exists());
        policy.low_bytes = u64::MAX;
        policy.release_ballast().unwrap();
        assert!(!policy.ballast().exists());
        let (found, free) = policy.look().unwrap();
        assert!(found == folder.path() && free > 0);
    }

    #[test]
    fn a_full_disk_is_told_from_others() {
        assert!(advice("could not write x: No space left on device (os error 28)").is_some());
        assert!(advice("could not write x: Input/output error (os error 5)").is_none());
    }
}
