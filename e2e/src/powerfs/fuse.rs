//! What the kernel asks, answered from the disk.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::{
    Power,
    disk::{CAPACITY, Content, Disk, Place},
    file::PAGE,
};

/// Nothing changes but through the kernel, so it may remember what it was told.
const TTL: Duration = Duration::from_secs(3600);
/// How often a disk that hangs looks whether it still does.
const HANGS: Duration = Duration::from_millis(5);
const GENERATION: Generation = Generation(0);
const NAME_LENGTH: u32 = 255;

/// Modes of `fallocate`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

pub(super) struct Adapter {
    power: Arc<Mutex<Power>>,
    /// What was in each open folder when it was opened: a listing that is read in pieces is not
    /// confused by changes in between.
    listings: Mutex<HashMap<u64, Vec<(OsString, u64)>>>,
    next_listing: AtomicU64,
}

impl Adapter {
    pub(super) fn new(power: Arc<Mutex<Power>>) -> Self {
        Self {
            power,
            listings: Mutex::default(),
            next_listing: AtomicU64::new(1),
        }
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().unwrap()
    }

    /// Waits as long as the disk hangs. The kernel's calls are answered one by one, so those behind
    /// wait too.
    fn wait(&self) {
        while self.power().hangs {
            thread::sleep(HANGS);
        }
    }

    /// Makes a file or folder and says what it is.
    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        folder: bool,
    ) -> Result<FileAttr, Errno> {
        let place = Place::new(parent.0, name);
        self.power().change(Some(name), |disk| {
            let node = disk.make(place, mode as u16 & 0o7777, folder)?;
            attributes(disk, node)
        })
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, folder: bool) -> Result<(), Errno> {
        let place = Place::new(parent.0, name);
        let mut power = self.power();
        power.change(Some(name), |disk| disk.remove(place, folder))
    }

    fn list(&self, node: u64) -> Result<u64, Errno> {
        let power = self.power();
        let folder = power.disk()?.folder(node)?;
        let mut names = vec![(".".into(), node), ("..".into(), folder.parent)];
        names.extend(
            folder
                .names
                .iter()
                .map(|(name, node)| (name.clone(), *node)),
        );
        let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
        self.listings.lock().unwrap().insert(handle, names);
        Ok(handle)
    }
}

fn attributes(disk: &Disk, number: u64) -> Result<FileAttr, Errno> {
    let node = disk.node(number)?;
    let (kind, size, blocks, nlink) = match &node.content {
        Content::File(file) => {
            let blocks = file.pages() * (PAGE as u64 / 512);
            (FileType::RegularFile, file.len(), blocks, 1)
        }
        Content::Folder(_) => (FileType::Directory, 0, 0, 2),
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks,
        // Nobody here asks for times.
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: node.mode,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    })
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(made: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match made {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn attr(found: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match found {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

// Locks, seeking and copying within the file system stay with the kernel, which does them itself
// when nobody answers.
impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let power = self.power();
        let place = Place::new(parent.0, name);
        let found = power
            .disk()
            .and_then(|disk| attributes(disk, disk.find(&place)?));
        entry(found, reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let power = self.power();
        attr(power.disk().and_then(|disk| attributes(disk, ino.0)), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.power().change(None, |disk| {
            if let Some(mode) = mode {
                disk.set_mode(ino.0, mode as u16 & 0o7777)?;
            }
            if let Some(size) = size {
                disk.edit(ino.0, size, |file| file.set_len(size))?;
            }
            attributes(disk, ino.0)
        });
        attr(changed, reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        entry(self.make(parent, name, mode & !umask, true), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, mode & !umask, false) {
            Ok(attributes) => reply.created(
                &TTL,
                &attributes,
                GENERATION,
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.remove(parent, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.remove(parent, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = (Place::new(parent.0, name), Place::new(newparent.0, newname));
        let mut power = self.power();
        let renamed = power.change(Some(newname), |disk| disk.rename(from, to, replace));
        drop(power);
        empty(renamed, reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let power = self.power();
        let file = power.disk().and_then(|disk| disk.file(ino.0));
        match file.map(|file| file.read(offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset.saturating_add(data.len() as u64);
        let mut power = self.power();
        let written = power.change(None, |disk| {
            disk.edit(ino.0, end, |file| file.write(offset, data))
        });
        drop(power);
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.wait();
        let synced = self.power().sync(|disk| disk.sync_file(ino.0));
        empty(synced, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.wait();
        let synced = self.power().sync(|disk| disk.sync_folder(ino.0));
        empty(synced, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let power = self.power();
        let disk = match power.disk() {
            Ok(disk) => disk,
            Err(error) => return reply.error(error),
        };
        let listings = self.listings.lock().unwrap();
        let names = listings.get(&fh.0).into_iter().flatten();
        for ((name, node), next) in names.zip(1..).skip(offset as usize) {
            let kind = match disk.folder(*node) {
                Ok(_) => FileType::Directory,
                Err(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(*node), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().unwrap().remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let power = self.power();
        match power.disk().map(Disk::free_pages) {
            Ok(free) => reply.statfs(
                CAPACITY,
                free,
                free,
                CAPACITY,
                free,
                PAGE as u32,
                NAME_LENGTH,
                PAGE as u32,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & !(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE) != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let end = offset.saturating_add(length);
        let mut power = self.power();
        let done = power.change(None, |disk| {
            disk.edit(ino.0, end, |file| {
                if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
                    file.zero(offset..end.min(file.len()).max(offset));
                }
                if mode & KEEP_SIZE == 0 {
                    file.set_len(end.max(file.len()));
                }
            })
        });
        drop(power);
        empty(done, reply);
    }
}
