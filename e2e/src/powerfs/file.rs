//! One file: what reads see, what is on the disk for sure, and what lies between.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use rand::{Rng, rngs::StdRng};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// Content is kept in pieces of this many bytes.
pub(super) const PAGE: usize = 4096;
/// Versions of a page that are remembered between the synced one and the newest.
const OLDER: usize = 2;
/// Lengths that are remembered from the synced one to the newest.
const LENGTHS: usize = 8;
/// A cut keeps so many of [`ODDS`] unsynced sectors, drawn for each file: some lose all, some
/// nothing.
const ODDS: u32 = 8;

/// A page's bytes; `None` stands for zeros, of which logs are full.
type Bytes = Option<Arc<[u8; PAGE]>>;

static ZEROS: [u8; PAGE] = [0; PAGE];

fn bytes(data: &Bytes) -> &[u8; PAGE] {
    data.as_deref().unwrap_or(&ZEROS)
}

fn packed(data: [u8; PAGE]) -> Bytes {
    (data != ZEROS).then(|| Arc::new(data))
}

#[derive(Clone, Default)]
struct Page {
    newest: Bytes,
    durable: Bytes,
    /// Versions between the two, oldest first.
    older: Vec<Bytes>,
    /// One bit for each sector that was written since the last sync.
    dirty: u8,
}

impl Page {
    fn synced(data: Bytes) -> Self {
        Self {
            newest: data.clone(),
            durable: data,
            ..Self::default()
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        if self.dirty != 0 {
            if self.older.len() == OLDER {
                self.older.remove(0);
            }
            self.older.push(self.newest.clone());
        }
        if data.len() == PAGE {
            self.newest = data.try_into().ok().and_then(packed);
        } else {
            let newest = self.newest.get_or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(newest)[at..at + data.len()].copy_from_slice(data);
        }
        for sector in at / SECTOR..(at + data.len()).div_ceil(SECTOR) {
            self.dirty |= 1 << sector;
        }
    }

    /// Each unsynced sector is as it was synced, or as any write since then left it.
    fn after_cut(&self, keep: u32, rng: &mut StdRng) -> Bytes {
        if self.dirty == 0 {
            return self.durable.clone();
        }
        let mut left = *bytes(&self.durable);
        for sector in (0..PAGE / SECTOR).filter(|sector| self.dirty & 1 << sector != 0) {
            if rng.random_range(0..ODDS) >= keep {
                continue;
            }
            let version = rng.random_range(0..2 * (self.older.len() + 1));
            let version = self.older.get(version).unwrap_or(&self.newest);
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            left[range.clone()].copy_from_slice(&bytes(version)[range]);
        }
        packed(left)
    }
}

/// A file's content and length.
#[derive(Clone)]
pub(super) struct File {
    /// Lengths since the last sync: the synced one first, the newest last.
    lengths: Vec<u64>,
    /// Pages that are or were something else than zeros.
    pages: BTreeMap<u64, Page>,
    /// Those of them with sectors that are not synced.
    dirty: BTreeSet<u64>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            lengths: vec![0],
            pages: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }
}

/// The pages that a range of bytes touches, and which part of each.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let page = PAGE as u64;
    (range.start / page..range.end.div_ceil(page)).map(move |number| {
        let base = number * page;
        let from = range.start.saturating_sub(base) as usize;
        let to = (range.end - base).min(page) as usize;
        (number, from..to)
    })
}

impl File {
    pub(super) fn len(&self) -> u64 {
        self.lengths.last().copied().unwrap_or_default()
    }

    /// Pages that take room: the file's size on the disk.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = self.len().min(offset.saturating_add(length as u64));
        let mut out = Vec::with_capacity(end.saturating_sub(offset) as usize);
        if offset < end {
            for (number, part) in parts(offset..end) {
                let page = self.pages.get(&number).map(|page| bytes(&page.newest));
                out.extend_from_slice(&page.unwrap_or(&ZEROS)[part]);
            }
        }
        out
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for (number, part) in parts(offset..offset + data.len() as u64) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            self.write_page(number, part.start, now);
        }
        self.length_is(self.len().max(offset + data.len() as u64));
    }

    fn write_page(&mut self, number: u64, at: usize, data: &[u8]) {
        // Zeros on zeros are on the disk already.
        if !self.pages.contains_key(&number) && data == &ZEROS[..data.len()] {
            return;
        }
        self.pages.entry(number).or_default().write(at, data);
        self.dirty.insert(number);
    }

    pub(super) fn set_len(&mut self, length: u64) {
        let old = self.len();
        if length < old {
            self.zero(length..old);
        }
        self.length_is(length);
    }

    /// Fills with zeros what there is in the range; the length stays.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        let page = PAGE as u64;
        let touched = self
            .pages
            .range(range.start / page..range.end.div_ceil(page));
        let numbers: Vec<u64> = touched.map(|(number, _)| *number).collect();
        for number in numbers {
            let base = number * page;
            let from = range.start.saturating_sub(base) as usize;
            let to = (range.end - base).min(page) as usize;
            self.write_page(number, from, &ZEROS[from..to]);
        }
    }

    fn length_is(&mut self, length: u64) {
        if length == self.len() {
            return;
        }
        if self.lengths.len() == LENGTHS {
            self.lengths.remove(1);
        }
        self.lengths.push(length);
    }

    /// Makes content and length durable.
    pub(super) fn sync(&mut self) {
        self.lengths = vec![self.len()];
        for number in std::mem::take(&mut self.dirty) {
            let Some(page) = self.pages.get_mut(&number) else {
                continue;
            };
            match page.newest.take() {
                None => drop(self.pages.remove(&number)),
                newest => *page = Page::synced(newest),
            }
        }
    }

    /// What a power cut leaves.
    pub(super) fn after_cut(&self, rng: &mut StdRng) -> Self {
        let keep = rng.random_range(0..=ODDS);
        let length = self.length_after_cut(keep, rng);
        let mut left = Self {
            lengths: vec![length],
            ..Self::default()
        };
        for (number, page) in &self.pages {
            let Some(inside) = length.checked_sub(number * PAGE as u64) else {
                break;
            };
            let mut data = page.after_cut(keep, rng);
            if let Some(data) = &mut data
                && inside < PAGE as u64
            {
                Arc::make_mut(data)[inside as usize..].fill(0);
            }
            if inside > 0 && data.is_some() {
                left.pages.insert(*number, Page::synced(data));
            }
        }
        left
    }

    /// A length that the file had since its sync, or one on the way to the next.
    fn length_after_cut(&self, keep: u32, rng: &mut StdRng) -> u64 {
        let last = self.lengths.len() - 1;
        let chosen = match keep {
            0 => 0,
            ODDS => last,
            _ => rng.random_range(0..=last),
        };
        let length = self.lengths[chosen];
        let next = self.lengths.get(chosen + 1).copied().unwrap_or(length);
        if keep == 0 || next <= length {
            return length;
        }
        let pages = rng.random_range(0..=(next - length) / PAGE as u64);
        length + pages * PAGE as u64
    }
}
