//! A file system in memory with power cuts, for tests and the simulator.
//!
//! What was not synced is lost or kept piece by piece, as a seed decides: data by sectors of 512
//! bytes, a length as it was at any time since its sync, names in the order in which they were
//! changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::{Vfs, VfsFile, frame::SECTOR};

type Names = BTreeMap<PathBuf, Arc<Node>>;

#[derive(Default)]
struct Content {
    data: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<u64>,
    /// Lengths since the last sync, but not the newest.
    lengths: Vec<usize>,
}

impl Content {
    /// A length that it had, or one on the way to the next longer one.
    fn length_after_cut(&self, dice: &mut Dice) -> usize {
        let newest = self.data.len();
        let at = dice.below(self.lengths.len() as u64 + 1) as usize;
        let length = self.lengths.get(at).copied().unwrap_or(newest);
        let next = self.lengths.get(at + 1).copied().unwrap_or(newest);
        let sectors = next.saturating_sub(length) as u64 / SECTOR;
        length + (dice.below(sectors + 1) * SECTOR) as usize
    }

    fn resize(&mut self, len: usize) {
        if self.data.len() != len {
            self.lengths.push(self.data.len());
            self.data.resize(len, 0);
        }
    }
}

#[derive(Default)]
struct Node(Mutex<Content>);

enum NameOp {
    Create(PathBuf, Arc<Node>),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Default)]
struct Tree {
    names: Names,
    durable: Names,
    pending: Vec<NameOp>,
    dirs: BTreeSet<PathBuf>,
}

/// What is left, in changing calls and in bytes that files may grow by; `u64::MAX` means no limit.
struct Budget {
    calls: AtomicU64,
    room: AtomicU64,
}

impl Budget {
    fn spend(&self) -> io::Result<()> {
        Self::take(&self.calls, 1).map_err(|()| io::Error::other("the disk is gone"))
    }

    fn grow(&self, bytes: u64) -> io::Result<()> {
        Self::take(&self.room, bytes).map_err(|()| io::ErrorKind::StorageFull.into())
    }

    fn take(from: &AtomicU64, much: u64) -> Result<(), ()> {
        let taken = from.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u64::MAX => Some(u64::MAX),
            left => left.checked_sub(much),
        });
        taken.map(drop).map_err(drop)
    }
}

/// A file system in memory. Clones share it.
#[derive(Clone)]
pub struct MemVfs {
    tree: Arc<Mutex<Tree>>,
    budget: Arc<Budget>,
}

impl Default for MemVfs {
    fn default() -> Self {
        Self {
            tree: Arc::default(),
            budget: Arc::new(Budget {
                calls: AtomicU64::new(u64::MAX),
                room: AtomicU64::new(u64::MAX),
            }),
        }
    }
}

/// splitmix64: enough to choose what a cut takes, and what a test does.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `limit` - 1.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

fn apply(names: &mut Names, op: &NameOp) {
    match op {
        NameOp::Create(path, node) => {
            names.insert(path.clone(), Arc::clone(node));
        }
        NameOp::Remove(path) => {
            names.remove(path);
        }
        NameOp::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
            let inside: Vec<PathBuf> = names
                .keys()
                .filter(|p| p.starts_with(from))
                .cloned()
                .collect();
            for path in inside {
                if let (Some(node), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                    names.insert(to.join(rest), node);
                }
            }
        }
    }
}

impl NameOp {
    fn concerns(&self, dir: &Path) -> bool {
        let within = |path: &Path| path.parent() == Some(dir);
        match self {
            NameOp::Create(path, _) | NameOp::Remove(path) => within(path),
            NameOp::Rename(from, to) => within(from) || within(to),
        }
    }
}

impl MemVfs {
    /// An empty file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// After `calls` further changing calls (create, write, sync, rename, remove) every one fails.
    pub fn fail_after(&self, calls: u64) {
        self.budget.calls.store(calls, Ordering::SeqCst);
    }

    /// Files may grow by `bytes` in all from now on; then the disk is full. `u64::MAX` is no limit.
    pub fn fill_after(&self, bytes: u64) {
        self.budget.room.store(bytes, Ordering::SeqCst);
    }

    /// The file system after a power cut now. `self` is the lost world: files open in it go on
    /// there and are never seen in the new one.
    pub fn crash(&self, seed: u64) -> MemVfs {
        let mut dice = Dice(seed);
        let tree = self.tree.lock();
        let mut names = tree.durable.clone();
        let kept = dice.below(tree.pending.len() as u64 + 1);
        for op in tree.pending.iter().take(kept as usize) {
            apply(&mut names, op);
        }
        // Of 8 sectors the cut keeps `odds`, so that some seeds lose all and some nothing.
        let odds = dice.below(9);
        let names: Names = names
            .iter()
            .map(|(path, node)| (path.clone(), node.after_cut(&mut dice, odds)))
            .collect();
        let after = MemVfs::new();
        *after.tree.lock() = Tree {
            durable: names.clone(),
            names,
            pending: Vec::new(),
            dirs: tree.dirs.clone(),
        };
        after
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Node>> {
        self.tree
            .lock()
            .names
            .get(path)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }

    fn file(&self, node: Arc<Node>) -> MemFile {
        MemFile {
            node,
            budget: Arc::clone(&self.budget),
        }
    }

    fn change(&self, op: NameOp) -> io::Result<()> {
        self.budget.spend()?;
        let mut tree = self.tree.lock();
        apply(&mut tree.names, &op);
        tree.pending.push(op);
        Ok(())
    }
}

impl Node {
    fn after_cut(&self, dice: &mut Dice, odds: u64) -> Arc<Node> {
        let content = self.0.lock();
        let mut data = content.durable.clone();
        if !content.lengths.is_empty() && dice.below(8) < odds {
            data.resize(content.length_after_cut(dice), 0);
        }
        for sector in &content.dirty {
            if dice.below(8) >= odds {
                continue;
            }
            let from = (sector * SECTOR) as usize;
            let to = (from + SECTOR as usize)
                .min(data.len())
                .min(content.data.len());
            if from < to {
                data[from..to].copy_from_slice(&content.data[from..to]);
            }
        }
        Arc::new(Node(Mutex::new(Content {
            durable: data.clone(),
            data,
            ..Content::default()
        })))
    }
}

impl Vfs for MemVfs {
    type File = MemFile;

    fn create(&self, path: &Path) -> io::Result<MemFile> {
        if let Ok(node) = self.find(path) {
            let file = self.file(node);
            file.set_len(0)?;
            return Ok(file);
        }
        let node = Arc::new(Node::default());
        self.change(NameOp::Create(path.to_path_buf(), Arc::clone(&node)))?;
        Ok(self.file(node))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<MemFile> {
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<MemFile> {
        Ok(self.file(self.find(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        {
            let mut tree = self.tree.lock();
            if tree.dirs.contains(from) {
                let inside: Vec<PathBuf> = tree
                    .dirs
                    .iter()
                    .filter(|d| d.starts_with(from))
                    .cloned()
                    .collect();
                for dir in inside {
                    tree.dirs.remove(&dir);
                    if let Ok(rest) = dir.strip_prefix(from) {
                        tree.dirs.insert(to.join(rest).components().collect());
                    }
                }
            } else if !tree.names.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        self.change(NameOp::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.change(NameOp::Remove(path.to_path_buf()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let tree = self.tree.lock();
        if !tree.dirs.contains(dir) && !tree.names.keys().any(|p| p.starts_with(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let paths = tree.names.keys().chain(&tree.dirs);
        let mut names: Vec<String> = paths
            .filter(|p| p.parent() == Some(dir))
            .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.budget.spend()?;
        let mut tree = self.tree.lock();
        let (now, later) = std::mem::take(&mut tree.pending)
            .into_iter()
            .partition(|op| op.concerns(dir));
        tree.pending = later;
        let now: Vec<NameOp> = now;
        for op in &now {
            apply(&mut tree.durable, op);
        }
        Ok(())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.budget.spend()?;
        let mut tree = self.tree.lock();
        for dir in dir.ancestors() {
            tree.dirs.insert(dir.to_path_buf());
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.budget.spend()?;
        if !self.list(dir)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.tree.lock().dirs.remove(dir);
        Ok(())
    }
}

/// A file of [`MemVfs`].
pub struct MemFile {
    node: Arc<Node>,
    budget: Arc<Budget>,
}

impl VfsFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.node.0.lock();
        let rest = content.data.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.budget.spend()?;
        let mut content = self.node.0.lock();
        let end = offset as usize + data.len();
        if content.data.len() < end {
            self.budget.grow((end - content.data.len()) as u64)?;
            content.resize(end);
        }
        content.data[offset as usize..end].copy_from_slice(data);
        if !data.is_empty() {
            content
                .dirty
                .extend(offset / SECTOR..=(end as u64 - 1) / SECTOR);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.budget.spend()?;
        let mut content = self.node.0.lock();
        let Content {
            data,
            durable,
            dirty,
            lengths,
        } = &mut *content;
        lengths.clear();
        durable.resize(data.len(), 0);
        for sector in std::mem::take(dirty) {
            let from = (sector * SECTOR) as usize;
            let to = (from + SECTOR as usize).min(data.len());
            if from < to {
                durable[from..to].copy_from_slice(&data[from..to]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.budget.spend()?;
        let mut content = self.node.0.lock();
        let old = content.data.len() as u64;
        self.budget.grow(len.saturating_sub(old))?;
        content.resize(len as usize);
        // What a cut-off part held before must not come back when the file grows again.
        let (from, to) = (old.min(len), old.max(len));
        content.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.node.0.lock().data.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vfs: &MemVfs, path: &str) -> Option<Vec<u8>> {
        let file = vfs.open(Path::new(path)).ok()?;
        let mut data = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut data, 0).unwrap();
        Some(data)
    }

    #[test]
    fn a_cut_keeps_what_was_synced_and_some_of_the_rest() {
        let vfs = MemVfs::new();
        vfs.create_dir(Path::new("/d")).unwrap();
        let file = vfs.create(Path::new("/d/a")).unwrap();
        file.write_at(&[1; 1024], 0).unwrap();
        file.sync_data().unwrap();
        vfs.sync_dir(Path::new("/d")).unwrap();
        file.write_at(&[2; 1024], 0).unwrap();
        vfs.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let after = vfs.crash(seed);
            let (a, b) = (read(&after, "/d/a"), read(&after, "/d/b"));
            assert!(a.is_some() != b.is_some());
            let data = a.clone().or(b).unwrap();
            assert_eq!(data.len(), 1024);
            seen.insert((a.is_some(), data[0], data[512]));
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
    }

    #[test]
    fn names_without_a_sync_may_vanish() {
        let vfs = MemVfs::new();
        vfs.create_dir(Path::new("/d")).unwrap();
        let file = vfs.create(Path::new("/d/a")).unwrap();
        file.sync_data().unwrap();
        let kept = (0..100)
            .filter(|seed| read(&vfs.crash(*seed), "/d/a").is_some())
            .count();
        assert!(kept > 20 && kept < 80, "{kept}");
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_room() {
        let vfs = MemVfs::new();
        let file = vfs.create(Path::new("/a")).unwrap();
        vfs.fill_after(4);
        file.write_at(b"abcd", 0).unwrap();
        file.write_at(b"xy", 1).unwrap();
        let full = file.write_at(b"z", 4).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        vfs.fill_after(u64::MAX);
        file.set_len(9).unwrap();
        assert_eq!(read(&vfs, "/a").unwrap(), b"axyd\0\0\0\0\0");
    }

    #[test]
    fn a_disk_that_fails_stays_failed() {
        let vfs = MemVfs::new();
        let file = vfs.create(Path::new("/a")).unwrap();
        vfs.fail_after(1);
        file.write_at(b"x", 0).unwrap();
        assert!(file.sync_data().is_err());
        assert!(file.write_at(b"x", 0).is_err());
    }
}
