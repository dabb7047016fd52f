//! The check of a whole file: every page below the high-water mark is in use once, or free once, and
//! never both.

use bytes::Buf;

use crate::{
    Database, Error, ReadAt,
    error::shown,
    format::{BucketHeader, FREELIST_PAGE, HEADER, META_PAGES, NO_FREELIST},
    node::{Node, Row},
    read::{Walk, bucket_of_root},
};

/// Most buckets in buckets. etcd has none.
const MAX_NESTED: usize = 8;
/// In place of the count of a freelist that is longer than a header can say; the list then begins
/// with its length.
const LONG_FREELIST: u16 = u16::MAX;
/// Page numbers of the freelist that are read at once.
const FREELIST_CHUNK: u64 = 8192;
/// Bytes of a page number.
const ID: u64 = 8;

impl<R: ReadAt> Database<R> {
    /// Reads every page that is in use and refuses the file at the first fault: a page in two
    /// places, lost or free though in use, keys out of order, anything outside of its bounds.
    ///
    /// Takes two bits for each page. bbolt keeps no checksums of rows, so a flipped bit in a value
    /// is not seen.
    pub fn check(&self) -> Result<(), Error> {
        let pages = self.meta().high_water;
        let mut used = Marks::new(pages);
        used.set(0, META_PAGES);
        let free = match self.meta().freelist {
            NO_FREELIST => None,
            freelist => Some(self.free_pages(freelist, &mut used)?),
        };
        let mut seen = |node: &Node| match used.set(node.page(), node.pages()) {
            None => Ok(()),
            Some(twice) => Err(Error::damaged(twice, "is in use in two places")),
        };
        let mut root = self.root(&mut seen)?;
        while let Some(row) = root.next(&mut seen)? {
            self.check_bucket(&row, bucket_of_root(&row)?, 0, &mut seen)?;
        }
        let Some(free) = free else {
            return Ok(());
        };
        for page in 0..pages {
            match (used.get(page), free.get(page)) {
                (true, true) => return Err(Error::damaged(page, "is in use and in the freelist")),
                (false, false) => {
                    let problem = "is neither in use nor in the freelist";
                    return Err(Error::damaged(page, problem));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_bucket(
        &self,
        row: &Row,
        header: BucketHeader,
        nested: usize,
        seen: &mut impl FnMut(&Node) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut walk = Walk::new(self, row, header, seen)?;
        while let Some(row) = walk.next(seen)? {
            if !row.is_bucket {
                continue;
            }
            if nested == MAX_NESTED {
                let name = shown(&row.key);
                let problem = format!("bucket {name} is in {MAX_NESTED} others");
                return Err(Error::Unsupported(problem));
            }
            self.check_bucket(&row, bucket_of_root(&row)?, nested + 1, seen)?;
        }
        Ok(())
    }

    /// The pages in the freelist, which lies at `page`.
    fn free_pages(&self, page: u64, used: &mut Marks) -> Result<Marks, Error> {
        let wrong = |problem: String| Err(Error::damaged(page, problem));
        let mut begin = [0; HEADER + ID as usize];
        self.read(page, 0, &mut begin)?;
        let header = self.header(page, &begin)?;
        if header.kind != FREELIST_PAGE {
            return wrong(format!("is no freelist, its kind is {:#x}", header.kind));
        }
        let pages = 1 + u64::from(header.overflow);
        if let Some(twice) = used.set(page, pages) {
            return Err(Error::damaged(twice, "is in use in two places"));
        }
        let (count, at) = match header.count {
            LONG_FREELIST => ((&begin[HEADER..]).get_u64_le(), HEADER as u64 + ID),
            count => (u64::from(count), HEADER as u64),
        };
        let room = (pages * self.page_bytes() as u64 - at) / ID;
        if count > room {
            return wrong(format!("has no room for {count} page numbers"));
        }
        let mut free = Marks::new(self.meta().high_water);
        let mut chunk = Vec::new();
        let mut done = 0;
        while done < count {
            let next = (count - done).min(FREELIST_CHUNK);
            chunk.resize((next * ID) as usize, 0);
            self.read(page, at + done * ID, &mut chunk)?;
            let mut ids = chunk.as_slice();
            while ids.has_remaining() {
                let id = ids.get_u64_le();
                self.within(page, "entry", id, 1)?;
                if free.set(id, 1).is_some() {
                    return wrong(format!("names page {id} twice"));
                }
            }
            done += next;
        }
        Ok(free)
    }
}

/// One bit for each page.
struct Marks(Vec<u64>);

impl Marks {
    fn new(pages: u64) -> Self {
        // The file is as long as these pages, so this is a small part of it.
        Self(vec![0; pages.div_ceil(64) as usize])
    }

    /// Marks pages; says which of them was marked before, if any. They must be within the file.
    fn set(&mut self, first: u64, pages: u64) -> Option<u64> {
        let mut before = None;
        for page in first..first + pages {
            let word = &mut self.0[(page / 64) as usize];
            let bit = 1 << (page % 64);
            if *word & bit != 0 {
                before = before.or(Some(page));
            }
            *word |= bit;
        }
        before
    }

    fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] & 1 << (page % 64) != 0
    }
}
