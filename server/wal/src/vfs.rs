//! The file system below the log.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Mode of the log's files, as etcd's.
const FILE_MODE: u32 = 0o600;
/// Mode of the log's directory, as etcd's.
const DIR_MODE: u32 = 0o700;

/// A file system as far as the log needs one. Every change is only durable after the matching
/// sync: data and length by [`VfsFile::sync_data`], names by [`Vfs::sync_dir`] of their directory.
pub trait Vfs: Send + Sync + 'static {
    /// An open file.
    type File: VfsFile;

    /// Creates an empty file, or empties the one that is there, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing, and locks it against other processes.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an existing file to be read only, and locks it against processes that write.
    fn open_to_read(&self, path: &Path) -> io::Result<Self::File>;
    /// Renames a file or directory; an existing file at `to` is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// File and directory names in `dir`, sorted, without their path.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates a directory and its parents, durably; an existing one is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Reads and writes name their offset, so it can be shared between threads.
pub trait VfsFile: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes; less only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`, growing the file where needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts the file, or grows it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsVfs {
    no_sync: bool,
}

impl OsVfs {
    /// The normal one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Never syncs: for `--unsafe-no-fsync`. A power cut then loses acknowledged writes.
    pub fn without_sync() -> Self {
        Self { no_sync: true }
    }

    fn lock(&self, file: File) -> io::Result<OsFile> {
        let locked = file.try_lock();
        self.locked(file, locked)
    }

    fn locked(&self, file: File, locked: Result<(), fs::TryLockError>) -> io::Result<OsFile> {
        match locked {
            Ok(()) => Ok(OsFile {
                file,
                no_sync: self.no_sync,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the file is locked: another process uses this data directory",
            )),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Vfs for OsVfs {
    type File = OsFile;

    fn create(&self, path: &Path) -> io::Result<OsFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(path)?;
        self.lock(file)
    }

    fn open(&self, path: &Path) -> io::Result<OsFile> {
        self.lock(OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn open_to_read(&self, path: &Path) -> io::Result<OsFile> {
        let file = File::open(path)?;
        let locked = file.try_lock_shared();
        self.locked(file, locked)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.no_sync {
            return Ok(());
        }
        File::open(dir)?.sync_all()
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let parent = match dir.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Ok(()),
        };
        let there = dir.is_dir();
        if !there {
            self.create_dir(parent)?;
            let created = fs::DirBuilder::new().mode(DIR_MODE).create(dir);
            // Somebody else may have been faster.
            created.or_else(|error| if dir.is_dir() { Ok(()) } else { Err(error) })?;
        }
        if self.no_sync || (there && is_mount(dir, parent)?) {
            return Ok(());
        }
        // Also when it was there: whoever made it may have crashed before this step.
        match File::open(parent) {
            Ok(parent) => parent.sync_all(),
            // Its owner does not show what else is in there. Most file systems make a new
            // directory's name durable with the directory.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                File::open(dir)?.sync_all()
            }
            Err(error) => Err(error),
        }
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }
}

/// Whether another file system begins at `dir`: its name in `parent` is none of ours then.
fn is_mount(dir: &Path, parent: &Path) -> io::Result<bool> {
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// A file of [`OsVfs`], locked as long as it is open.
#[derive(Debug)]
pub struct OsFile {
    file: File,
    no_sync: bool,
}

impl VfsFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.no_sync {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
