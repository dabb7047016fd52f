//! Files and folders, and what a power cut makes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::Path,
};

use fuser::Errno;
use rand::{Rng, rngs::StdRng};

use super::file::File;

/// Number of the root folder, as FUSE has it.
pub(super) const ROOT: u64 = 1;
/// Pages that the disk holds: 4 GiB.
pub(super) const CAPACITY: u64 = 1 << 20;
/// No file is longer.
const MAX_LENGTH: u64 = 1 << 40;

type Names = BTreeMap<OsString, u64>;

/// A name in a folder.
#[derive(Clone)]
pub(super) struct Place {
    pub folder: u64,
    pub name: OsString,
}

impl Place {
    pub(super) fn new(folder: u64, name: &OsStr) -> Self {
        Self {
            folder,
            name: name.to_owned(),
        }
    }
}

/// A change of names that is not synced.
#[derive(Clone)]
enum Change {
    Set(Place, u64),
    Remove(Place),
    Move(Place, Place, u64),
}

impl Change {
    /// The folders that it changes. It happens in all of them or in none.
    fn folders(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, second) = match self {
            Self::Set(place, _) | Self::Remove(place) => (place.folder, place.folder),
            Self::Move(from, to, _) => (from.folder, to.folder),
        };
        [first]
            .into_iter()
            .chain((second != first).then_some(second))
    }
}

#[derive(Clone)]
pub(super) struct Folder {
    pub parent: u64,
    pub names: Names,
    durable: Names,
}

impl Folder {
    fn new(parent: u64) -> Self {
        Self {
            parent,
            names: Names::new(),
            durable: Names::new(),
        }
    }
}

#[derive(Clone)]
pub(super) enum Content {
    File(File),
    Folder(Folder),
}

/// A file or folder. Its mode is durable at once, which nothing here depends on.
#[derive(Clone)]
pub(super) struct Node {
    pub mode: u16,
    pub content: Content,
}

/// A disk. Clones are cheap: they share the content.
#[derive(Clone)]
pub(super) struct Disk {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    /// In the order in which they were made.
    pending: Vec<Change>,
    pages: u64,
}

/// Which of a folder's two states a change is made in.
type State = fn(&mut Folder) -> &mut Names;

impl Disk {
    pub(super) fn new() -> Self {
        let root = Node {
            mode: 0o755,
            content: Content::Folder(Folder::new(ROOT)),
        };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            pending: Vec::new(),
            pages: 0,
        }
    }

    pub(super) fn node(&self, node: u64) -> Result<&Node, Errno> {
        self.nodes.get(&node).ok_or(Errno::ENOENT)
    }

    pub(super) fn folder(&self, node: u64) -> Result<&Folder, Errno> {
        match &self.node(node)?.content {
            Content::Folder(folder) => Ok(folder),
            Content::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn file(&self, node: u64) -> Result<&File, Errno> {
        match &self.node(node)?.content {
            Content::File(file) => Ok(file),
            Content::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(super) fn find(&self, place: &Place) -> Result<u64, Errno> {
        let folder = self.folder(place.folder)?;
        folder.names.get(&place.name).copied().ok_or(Errno::ENOENT)
    }

    /// Pages that are left of [`CAPACITY`].
    pub(super) fn free_pages(&self) -> u64 {
        CAPACITY.saturating_sub(self.pages)
    }

    pub(super) fn set_mode(&mut self, node: u64, mode: u16) -> Result<(), Errno> {
        self.nodes.get_mut(&node).ok_or(Errno::ENOENT)?.mode = mode;
        Ok(())
    }

    /// Makes a file's content or length another, up to the byte `end`.
    pub(super) fn edit(
        &mut self,
        node: u64,
        end: u64,
        edit: impl FnOnce(&mut File),
    ) -> Result<(), Errno> {
        if end > MAX_LENGTH {
            return Err(Errno::EFBIG);
        }
        if self.free_pages() == 0 {
            return Err(Errno::ENOSPC);
        }
        self.touch(node, edit)
    }

    /// Makes a file's content and length durable.
    pub(super) fn sync_file(&mut self, node: u64) -> Result<(), Errno> {
        self.touch(node, File::sync)
    }

    fn touch(&mut self, node: u64, touch: impl FnOnce(&mut File)) -> Result<(), Errno> {
        let Some(node) = self.nodes.get_mut(&node) else {
            return Err(Errno::ENOENT);
        };
        let Content::File(file) = &mut node.content else {
            return Err(Errno::EISDIR);
        };
        let before = file.pages();
        touch(file);
        self.pages = self.pages + file.pages() - before;
        Ok(())
    }

    /// A new file or folder.
    pub(super) fn make(&mut self, place: Place, mode: u16, folder: bool) -> Result<u64, Errno> {
        if self.folder(place.folder)?.names.contains_key(&place.name) {
            return Err(Errno::EEXIST);
        }
        let node = self.next;
        self.next += 1;
        let content = match folder {
            true => Content::Folder(Folder::new(place.folder)),
            false => Content::File(File::default()),
        };
        self.nodes.insert(node, Node { mode, content });
        self.change(Change::Set(place, node));
        Ok(node)
    }

    /// Takes a name away. What it named stays until the cut: it may be open, and the name may come
    /// back.
    pub(super) fn remove(&mut self, place: Place, folder: bool) -> Result<(), Errno> {
        let node = self.find(&place)?;
        match (&self.node(node)?.content, folder) {
            (Content::Folder(_), false) => return Err(Errno::EISDIR),
            (Content::File(_), true) => return Err(Errno::ENOTDIR),
            (Content::Folder(inner), true) if !inner.names.is_empty() => {
                return Err(Errno::ENOTEMPTY);
            }
            _ => {}
        }
        self.change(Change::Remove(place));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: Place, to: Place, replace: bool) -> Result<(), Errno> {
        let node = self.find(&from)?;
        if let Ok(target) = self.find(&to) {
            if !replace {
                return Err(Errno::EEXIST);
            }
            match (&self.node(node)?.content, &self.node(target)?.content) {
                (Content::Folder(_), Content::File(_)) => return Err(Errno::ENOTDIR),
                (Content::File(_), Content::Folder(_)) => return Err(Errno::EISDIR),
                (Content::Folder(_), Content::Folder(old)) if !old.names.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                _ => {}
            }
            if target == node {
                return Ok(());
            }
        }
        self.folder(to.folder)?;
        self.change(Change::Move(from, to.clone(), node));
        if let Some(folder) = self.folder_mut(node) {
            folder.parent = to.folder;
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        self.apply(&change, |folder| &mut folder.names);
        self.pending.push(change);
    }

    fn apply(&mut self, change: &Change, state: State) {
        match change {
            Change::Set(place, node) => self.set(place, *node, state),
            Change::Remove(place) => self.unset(place, state),
            Change::Move(from, to, node) => {
                self.unset(from, state);
                self.set(to, *node, state);
            }
        }
    }

    fn set(&mut self, place: &Place, node: u64, state: State) {
        if let Some(folder) = self.folder_mut(place.folder) {
            state(folder).insert(place.name.clone(), node);
        }
    }

    fn unset(&mut self, place: &Place, state: State) {
        if let Some(folder) = self.folder_mut(place.folder) {
            state(folder).remove(&place.name);
        }
    }

    fn folder_mut(&mut self, node: u64) -> Option<&mut Folder> {
        match &mut self.nodes.get_mut(&node)?.content {
            Content::Folder(folder) => Some(folder),
            Content::File(_) => None,
        }
    }

    /// Makes the names of a folder durable, and of others what those depend on: a file that was
    /// moved here has left the folder that it came from, for which it must have come into that one.
    pub(super) fn sync_folder(&mut self, folder: u64) -> Result<(), Errno> {
        self.folder(folder)?;
        let mut concerned = BTreeSet::from([folder]);
        let mut durable = Vec::new();
        let mut later = Vec::new();
        for change in std::mem::take(&mut self.pending).into_iter().rev() {
            if change.folders().any(|folder| concerned.contains(&folder)) {
                concerned.extend(change.folders());
                durable.push(change);
            } else {
                later.push(change);
            }
        }
        for change in durable.into_iter().rev() {
            self.apply(&change, |folder| &mut folder.durable);
        }
        later.reverse();
        self.pending = later;
        Ok(())
    }

    /// What a power cut leaves: of each folder's unsynced changes the first few; of each file what
    /// [`File::after_cut`] says; of nothing that has no name any more anything.
    pub(super) fn after_cut(&self, rng: &mut StdRng) -> Self {
        let mut left = self.clone();
        left.keep_some_names(rng);
        let mut reachable = BTreeMap::new();
        let mut folders = vec![ROOT];
        while let Some(number) = folders.pop() {
            let Some(node) = left.nodes.remove(&number) else {
                continue;
            };
            let Content::Folder(mut folder) = node.content else {
                reachable.insert(number, node);
                continue;
            };
            folder.names = folder.durable.clone();
            folders.extend(folder.names.values());
            let content = Content::Folder(folder);
            reachable.insert(number, Node { content, ..node });
        }
        left.pages = 0;
        for node in reachable.values_mut() {
            if let Content::File(file) = &mut node.content {
                *file = file.after_cut(rng);
                left.pages += file.pages();
            }
        }
        left.nodes = reachable;
        left
    }

    fn keep_some_names(&mut self, rng: &mut StdRng) {
        let pending = std::mem::take(&mut self.pending);
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        for folder in pending.iter().flat_map(Change::folders) {
            *left.entry(folder).or_default() += 1;
        }
        for count in left.values_mut() {
            *count = rng.random_range(0..=*count);
        }
        for change in &pending {
            let kept = change.folders().all(|folder| left[&folder] > 0);
            for folder in change.folders() {
                // Nothing in a folder happens behind a change that did not.
                let count = left.entry(folder).or_default();
                *count = if kept { *count - 1 } else { 0 };
            }
            if kept {
                self.apply(change, |folder| &mut folder.durable);
            }
        }
    }

    /// Writes everything below a folder of the host, to be looked at.
    pub(super) fn save(&self, node: u64, to: &Path) -> io::Result<()> {
        let Some(found) = self.nodes.get(&node) else {
            return Ok(());
        };
        match &found.content {
            Content::File(file) => fs::write(to, file.read(0, file.len() as usize)),
            Content::Folder(folder) => {
                fs::create_dir_all(to)?;
                let mut names = folder.names.iter();
                names.try_for_each(|(name, node)| self.save(*node, &to.join(name)))
            }
        }
    }
}
