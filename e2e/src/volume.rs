//! A disk that is small, to be filled by somebody else.

use std::{fs, io::Write, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::statvfs;
use tempfile::TempDir;

use crate::powerfs::own_mounts;

const FILLER: &str = "of-somebody-else";
const CHUNK: usize = 64 << 10;

/// A file system in memory with a bounded size. Dropping it unmounts it.
///
/// As with [`crate::powerfs::PowerFs`] the thread that makes it, and whatever it starts from then
/// on, sees it.
pub struct Volume {
    folder: TempDir,
}

impl Volume {
    /// Mounts one of so many bytes.
    ///
    /// # Panics
    /// When nothing can be mounted here; it needs root.
    pub fn new(bytes: u64) -> Self {
        own_mounts();
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        mount(
            Some("volume"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap_or_else(|error| panic!("a tmpfs cannot be mounted: {error}"));
        Self { folder }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let disk = statvfs(self.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Fills it, with a file of somebody else, until at most so many bytes are free.
    pub fn fill(&self, free: u64) {
        let path = self.path().join(FILLER);
        let mut file = fs::OpenOptions::new();
        let mut file = file.create(true).append(true).open(path).unwrap();
        let chunk = [1; CHUNK];
        while self.free() > free {
            let piece = (self.free() - free).min(CHUNK as u64) as usize;
            if file.write_all(&chunk[..piece]).is_err() {
                return;
            }
        }
    }

    /// Removes that file.
    pub fn clear(&self) {
        fs::remove_file(self.path().join(FILLER)).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever still has it open keeps it until the end, but no name leads there any more.
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
