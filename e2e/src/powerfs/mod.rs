//! A disk whose power can be cut.
//!
//! kill -9 cannot show that something was not synced: the page cache outlives the process. So the
//! server runs on a file system of ours, on FUSE, that keeps apart what was synced and what was
//! only written. [`PowerFs::cut`] leaves of the latter what a seed says:
//!
//! - of a file each unsynced sector of 512 bytes as it was synced or as any write since then left
//!   it, and a length that it had since its sync or on the way to the next;
//! - of a folder the first few of its unsynced changes of names, in their order. A file's sync
//!   does not make its name durable;
//! - nothing without a name.
//!
//! Linux's own file systems are kinder: they keep changes of names in one order for the whole file
//! system, and most make a new file's name durable with its content. What survives here survives
//! there.
//!
//! What it cuts is decided by the seed, when it cuts only by [`Moment`]: the calls of a server with
//! threads come in another order each time, so a seed does not lead to the very same cut twice.
//!
//! Start reading in [`PowerFs`], then `disk.rs` and `file.rs`. `fuse.rs` is what the kernel sees.

mod disk;
mod file;
mod fuse;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fuser::{BackgroundSession, Config, Errno, MountOption};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount, umount2},
    sched::{CloneFlags, unshare},
};
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use disk::Disk;

/// How long the last process may take to let go of the disk.
const RELEASE: Duration = Duration::from_secs(20);

/// Moves the calling thread to a mount namespace of its own.
///
/// # Panics
/// When it may not.
pub(crate) fn own_mounts() {
    let alone = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, flags, none)
    });
    alone.unwrap_or_else(|error| {
        panic!("a mount namespace of its own needs root (CAP_SYS_ADMIN): {error}")
    });
}

/// When the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// With the call that comes after so many further ones which change or sync something.
    Calls(u64),
    /// After the next change of a name that ends so, with the call that comes after so many
    /// further ones.
    Name(&'static str, u64),
}

impl Moment {
    /// Whether the power is cut with this call.
    fn comes(&mut self, name: Option<&OsStr>) -> bool {
        let ends = |with: &str| {
            let name = name.map(OsStr::as_encoded_bytes);
            name.is_some_and(|name| name.ends_with(with.as_bytes()))
        };
        match self {
            Self::Calls(0) => return true,
            Self::Calls(calls) => *calls -= 1,
            Self::Name(with, calls) if ends(with) => {
                let calls = *calls;
                *self = Self::Calls(calls.saturating_sub(1));
                return calls == 0;
            }
            Self::Name(..) => {}
        }
        false
    }
}

/// The disk and its power.
struct Power {
    disk: Disk,
    /// As the power came back the last time.
    began: Disk,
    /// What a cut left. From then on every call fails.
    left: Option<Disk>,
    moment: Option<Moment>,
    calls: u64,
    rng: StdRng,
    /// Calls that sync wait as long as this is set.
    hangs: bool,
}

impl Power {
    /// The disk, as long as it has power.
    fn disk(&self) -> Result<&Disk, Errno> {
        match self.left {
            None => Ok(&self.disk),
            Some(_) => Err(Errno::EIO),
        }
    }

    /// A call that changes something. When the power is cut with it, it has happened, but nothing
    /// of it is synced.
    fn change<T>(
        &mut self,
        name: Option<&OsStr>,
        change: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.disk()?;
        let now = self.counts(name);
        let done = change(&mut self.disk);
        if now {
            self.cut();
            return Err(Errno::EIO);
        }
        done
    }

    /// A call that makes something durable. When the power is cut with it, it has not.
    fn sync(&mut self, sync: impl FnOnce(&mut Disk) -> Result<(), Errno>) -> Result<(), Errno> {
        self.disk()?;
        if self.counts(None) {
            self.cut();
            return Err(Errno::EIO);
        }
        sync(&mut self.disk)
    }

    fn counts(&mut self, name: Option<&OsStr>) -> bool {
        self.calls += 1;
        self.moment
            .as_mut()
            .is_some_and(|moment| moment.comes(name))
    }

    fn cut(&mut self) {
        if self.left.is_none() {
            self.left = Some(self.disk.after_cut(&mut self.rng));
            self.moment = None;
        }
    }
}

/// A mounted disk whose power can be cut. Dropping it unmounts it.
pub struct PowerFs {
    power: Arc<Mutex<Power>>,
    session: Option<BackgroundSession>,
    folder: TempDir,
}

impl PowerFs {
    /// Mounts an empty disk. `seed` decides what cuts leave.
    ///
    /// The calling thread moves to a mount namespace of its own: it, and whatever it starts from
    /// then on, sees the disk. So nothing of it is left when the test ends, in whatever way.
    ///
    /// # Panics
    /// When nothing can be mounted here.
    pub fn new(seed: u64) -> Self {
        own_mounts();
        let disk = Disk::new();
        let power = Power {
            began: disk.clone(),
            disk,
            left: None,
            moment: None,
            calls: 0,
            rng: StdRng::seed_from_u64(seed),
            hangs: false,
        };
        let mut power_fs = Self {
            power: Arc::new(Mutex::new(power)),
            session: None,
            folder: tempfile::tempdir().unwrap(),
        };
        power_fs.mount();
        power_fs
    }

    fn mount(&mut self) {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("power".to_owned()),
            MountOption::DefaultPermissions,
        ];
        let adapter = fuse::Adapter::new(Arc::clone(&self.power));
        let session = fuser::spawn_mount(adapter, self.folder.path(), &config);
        self.session = Some(session.unwrap_or_else(|error| {
            panic!("FUSE cannot be mounted; it needs /dev/fuse (modprobe fuse) and root: {error}")
        }));
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Calls so far that changed or synced something.
    pub fn calls(&self) -> u64 {
        self.power().calls
    }

    /// Sets when the power will be cut.
    pub fn arm(&self, moment: Moment) {
        self.power().moment = Some(moment);
    }

    /// From now on nothing that is synced comes back, and with it all else that is asked, until
    /// what this returns is dropped. Drop it before the servers on the disk: a process that waits
    /// for it cannot even be killed.
    #[must_use]
    pub fn hang(&self) -> Hang {
        self.power().hangs = true;
        Hang(Arc::clone(&self.power))
    }

    /// Whether the power is cut.
    pub fn is_cut(&self) -> bool {
        self.power().left.is_some()
    }

    /// Cuts the power now, if it is not cut yet. Every call fails from then on.
    pub fn cut(&self) {
        self.power().cut();
    }

    /// The power is back, on what the cut left. The processes that used the disk must have ended.
    ///
    /// # Panics
    /// When the power was not cut, or a process still uses the disk.
    pub fn power_on(&mut self) {
        let began = Instant::now();
        while let Err(error) = umount(self.path()) {
            assert!(began.elapsed() < RELEASE, "the disk is in use: {error}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = self.session.take().map(BackgroundSession::join);
        match ended {
            // So the kernel says, too, that it is unmounted.
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Some(ended) => ended.unwrap(),
            None => {}
        }
        {
            let mut power = self.power();
            power.disk = power.left.take().expect("the power was not cut");
            power.began = power.disk.clone();
            power.moment = None;
        }
        self.mount();
    }

    /// Writes what was on the disk when the power came back the last time to `folder`, on the
    /// host, to be looked at.
    ///
    /// # Errors
    /// What the host's disk refuses.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let began = self.power().began.clone();
        began.save(disk::ROOT, folder)
    }
}

/// A disk hangs as long as this lives.
pub struct Hang(Arc<Mutex<Power>>);

impl Drop for Hang {
    fn drop(&mut self) {
        let power = self.0.lock();
        power.unwrap_or_else(PoisonError::into_inner).hangs = false;
    }
}

impl Drop for PowerFs {
    fn drop(&mut self) {
        // Whoever still has it open keeps it until the end, but no name leads there any more. It
        // may be unmounted already, when a test failed in between.
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
