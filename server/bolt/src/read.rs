//! Opening a file and reading its rows, by reads at offsets. Nothing that the file says is believed:
//! pages must be what they are called, and each branch must keep to the range of its parent. So no
//! page is read twice for one bucket, and no walk is longer than the file.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;

use crate::{
    Error,
    error::shown,
    format::{
        BRANCH_PAGE, BUCKET_HEADER, BucketHeader, HEADER, LEAF_PAGE, MAX_BRANCH_BYTES, MAX_BUCKETS,
        MAX_PAGE_BYTES, META, META_PAGES, MIN_PAGE_BYTES, Meta, NO_FREELIST, PageHeader,
    },
    node::{Node, Row, data_end, elements_end},
};

/// Most levels of one tree; with two children for each branch that is more than any file holds.
const MAX_DEPTH: usize = 48;

/// What is read at offsets.
pub trait ReadAt {
    /// Its length now.
    fn file_bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on, or fails, also when the file ends before.
    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let begin = usize::try_from(offset).ok();
        let found = begin
            .and_then(|begin| self.get(begin..))
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn file_bytes(&self) -> io::Result<u64> {
        self.as_slice().file_bytes()
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_at_exactly(buffer, offset)
    }
}

impl ReadAt for Bytes {
    fn file_bytes(&self) -> io::Result<u64> {
        self.as_ref().file_bytes()
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_ref().read_at_exactly(buffer, offset)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn file_bytes(&self) -> io::Result<u64> {
        (**self).file_bytes()
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at_exactly(buffer, offset)
    }
}

/// A bbolt file, as of the last transaction that was committed to it. Nobody may write to the file
/// meanwhile: stop the etcd that it belongs to.
///
/// Any page size, and a freelist that is not in the file (as etcd leaves it), are taken. Memory is
/// bounded by the pages of one path through a tree; a leaf takes its rows' length, at most 2 GiB.
#[derive(Debug)]
pub struct Database<R> {
    file: R,
    meta: Meta,
}

impl<R: ReadAt> Database<R> {
    /// Reads the meta pages and takes the newer valid one. Refuses a file that is shorter than that
    /// one says; the other pages are not looked at.
    pub fn open(file: R) -> Result<Self, Error> {
        let found = file
            .file_bytes()
            .map_err(Error::io("see the file's length"))?;
        let meta = newest_meta(&file, found)?;
        let needed = meta.high_water.checked_mul(u64::from(meta.page_bytes));
        let needed = needed.unwrap_or(u64::MAX);
        if needed > found {
            return Err(Error::Truncated { needed, found });
        }
        let database = Self { file, meta };
        let meta_page = meta.transaction % META_PAGES;
        database.within(meta_page, "root", meta.root.root, 1)?;
        if meta.freelist != NO_FREELIST {
            database.within(meta_page, "freelist", meta.freelist, 1)?;
        }
        Ok(database)
    }

    /// Size of a page, in bytes.
    pub fn page_bytes(&self) -> usize {
        self.meta.page_bytes as usize
    }

    /// The names of all buckets, in order. Refuses more than [`MAX_BUCKETS`].
    pub fn buckets(&self) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        let mut walk = self.root(&mut unseen)?;
        while let Some(row) = walk.next(&mut unseen)? {
            bucket_of_root(&row)?;
            if names.len() == MAX_BUCKETS {
                let problem = format!("the file has more than {MAX_BUCKETS} buckets");
                return Err(Error::Unsupported(problem));
            }
            names.push(row.key.to_vec());
        }
        Ok(names)
    }

    /// The rows of a bucket, in the order of their keys; none when there is no such bucket.
    ///
    /// Keys and values share the memory of the page that they came from, so whoever keeps one keeps
    /// the page.
    pub fn rows(&self, bucket: &[u8]) -> Result<Rows<'_, R>, Error> {
        let mut root = self.root(&mut unseen)?;
        let mut walk = None;
        while let Some(row) = root.next(&mut unseen)? {
            let header = bucket_of_root(&row)?;
            if row.key == bucket {
                walk = Some(Walk::new(self, &row, header, &mut unseen)?);
                break;
            }
        }
        Ok(Rows {
            walk,
            bucket: shown(bucket),
        })
    }

    /// Walks the buckets; `seen` is told of each page.
    pub(crate) fn root(&self, seen: &mut impl Seen) -> Result<Walk<'_, R>, Error> {
        Walk::of_page(self, self.meta.root.root, seen)
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Reads bytes of a page.
    pub(crate) fn read(&self, page: u64, at: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let offset = page * u64::from(self.meta.page_bytes) + at;
        self.file
            .read_at_exactly(buffer, offset)
            .map_err(Error::io("read a page"))
    }

    /// Refuses pages beyond the end that the meta page names. `from` is the page that names them.
    pub(crate) fn within(&self, from: u64, what: &str, id: u64, pages: u64) -> Result<(), Error> {
        let end = self.meta.high_water;
        if (META_PAGES..end).contains(&id) && pages <= end - id {
            return Ok(());
        }
        let problem = match pages {
            1 => format!("its {what} is page {id}, of pages {META_PAGES} to {end}"),
            _ => format!("its {what} has {pages} pages from {id} on, of {META_PAGES} to {end}"),
        };
        Err(Error::damaged(from, problem))
    }

    /// Reads the header of a page and checks that it is the page's own.
    pub(crate) fn header(&self, page: u64, begin: &[u8]) -> Result<PageHeader, Error> {
        let Some(header) = PageHeader::get(begin) else {
            return Err(Error::damaged(page, "is too short"));
        };
        if header.id != page {
            return Err(Error::damaged(
                page,
                format!("calls itself page {}", header.id),
            ));
        }
        self.within(page, "content", page, 1 + u64::from(header.overflow))?;
        Ok(header)
    }

    /// Reads a leaf or branch, which page `from` names: one page, and more only as far as its
    /// elements reach.
    pub(crate) fn node(&self, from: u64, page: u64) -> Result<Node, Error> {
        self.within(from, "child", page, 1)?;
        let mut data = vec![0; self.page_bytes()];
        self.read(page, 0, &mut data)?;
        let header = self.header(page, &data)?;
        if header.kind != LEAF_PAGE && header.kind != BRANCH_PAGE {
            let problem = format!("is no leaf or branch, its kind is {:#x}", header.kind);
            return Err(Error::damaged(page, problem));
        }
        let span = (1 + u64::from(header.overflow)) * u64::from(self.meta.page_bytes);
        let elements = elements_end(&header);
        if elements as u64 > span {
            let problem = format!("has no room for {} elements", header.count);
            return Err(Error::damaged(page, problem));
        }
        self.read_up_to(page, elements, &mut data)?;
        let end = data_end(page, &header, &data, span)?;
        if header.kind == BRANCH_PAGE && end > MAX_BRANCH_BYTES {
            return Err(Error::damaged(page, format!("is a branch of {end} bytes")));
        }
        // A leaf ends where its last row does, which is little more than MAX_ROW_BYTES.
        let end = end as usize;
        self.read_up_to(page, end, &mut data)?;
        Node::new(page, header, data.into())
    }

    /// Lengthens what was read of a page.
    fn read_up_to(&self, page: u64, end: usize, data: &mut Vec<u8>) -> Result<(), Error> {
        let have = data.len();
        if end > have {
            data.resize(end, 0);
            self.read(page, have as u64, &mut data[have..])?;
        }
        Ok(())
    }
}

/// The newer of the valid meta pages. The second one lies at the page size, which only the first one
/// tells; without it all sizes are tried.
fn newest_meta<R: ReadAt>(file: &R, file_bytes: u64) -> Result<Meta, Error> {
    let meta_at = |offset: u64| -> Result<Result<Meta, String>, Error> {
        let mut page = [0; HEADER + META];
        if file_bytes < offset + page.len() as u64 {
            return Ok(Err("behind the end of the file".to_owned()));
        }
        file.read_at_exactly(&mut page, offset)
            .map_err(Error::io("read a meta page"))?;
        Ok(Meta::get(&page[HEADER..]).and_then(|meta| {
            match offset == 0 || offset == u64::from(meta.page_bytes) {
                true => Ok(meta),
                false => Err(format!(
                    "at byte {offset}, with pages of {}",
                    meta.page_bytes
                )),
            }
        }))
    };
    let first = match meta_at(0)? {
        Ok(first) => {
            let second = meta_at(u64::from(first.page_bytes))?;
            let newer = second
                .ok()
                .filter(|second| second.transaction > first.transaction);
            return Ok(newer.unwrap_or(first));
        }
        Err(problem) => problem,
    };
    let mut offset = MIN_PAGE_BYTES;
    while offset <= MAX_PAGE_BYTES {
        if let Ok(second) = meta_at(offset)? {
            return Ok(second);
        }
        offset *= 2;
    }
    Err(Error::NoMeta(format!(
        "the first: {first}; no second one at any page size"
    )))
}

/// The bucket that a row of the root holds. There is nothing else in there.
pub(crate) fn bucket_of_root(row: &Row) -> Result<BucketHeader, Error> {
    let header = BucketHeader::get(&row.value).filter(|_| row.is_bucket);
    header.ok_or_else(|| {
        let key = shown(&row.key);
        Error::damaged(row.page, format!("its row {key} is no bucket"))
    })
}

/// Is told of each page that a walk comes to, before what is in there is walked.
pub(crate) trait Seen: FnMut(&Node) -> Result<(), Error> {}
impl<F: FnMut(&Node) -> Result<(), Error>> Seen for F {}

fn unseen(_: &Node) -> Result<(), Error> {
    Ok(())
}

/// A walk over all rows of one tree.
#[derive(Debug)]
pub(crate) struct Walk<'a, R> {
    database: &'a Database<R>,
    /// From the root down.
    stack: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    node: Node,
    /// The element that is next.
    next: usize,
    /// All keys in there are before this one.
    high: Option<Bytes>,
}

impl<'a, R: ReadAt> Walk<'a, R> {
    fn of_page(database: &'a Database<R>, page: u64, seen: &mut impl Seen) -> Result<Self, Error> {
        let node = database.node(0, page)?;
        seen(&node)?;
        if node.is_branch() && node.count() == 0 {
            return Err(Error::damaged(page, "is a branch without children"));
        }
        Ok(Self::of_node(database, node))
    }

    fn of_node(database: &'a Database<R>, node: Node) -> Self {
        let step = Step {
            node,
            next: 0,
            high: None,
        };
        Self {
            database,
            stack: vec![step],
        }
    }

    /// Of the bucket in that row.
    pub(crate) fn new(
        database: &'a Database<R>,
        row: &Row,
        header: BucketHeader,
        seen: &mut impl Seen,
    ) -> Result<Self, Error> {
        if header.root == 0 {
            let node = Node::inline(row.page, row.value.slice(BUCKET_HEADER..))?;
            return Ok(Self::of_node(database, node));
        }
        database.within(row.page, "bucket's root", header.root, 1)?;
        Self::of_page(database, header.root, seen)
    }

    /// The next row, in the order of keys.
    pub(crate) fn next(&mut self, seen: &mut impl Seen) -> Result<Option<Row>, Error> {
        loop {
            let Some(step) = self.stack.last_mut() else {
                return Ok(None);
            };
            let i = step.next;
            if i == step.node.count() {
                self.stack.pop();
                continue;
            }
            step.next += 1;
            if !step.node.is_branch() {
                return Ok(Some(step.node.row(i)));
            }
            let high = match i + 1 < step.node.count() {
                true => Some(step.node.key(i + 1)),
                false => step.high.clone(),
            };
            let (low, child) = (step.node.key(i), step.node.child(i));
            self.descend(child, &low, high, seen)?;
        }
    }

    fn descend(
        &mut self,
        page: u64,
        low: &[u8],
        high: Option<Bytes>,
        seen: &mut impl Seen,
    ) -> Result<(), Error> {
        let from = self.stack.last().map_or(0, |step| step.node.page());
        if self.stack.iter().any(|step| step.node.page() == page) {
            let problem = format!("names page {page}, which it is below of itself");
            return Err(Error::damaged(from, problem));
        }
        if self.stack.len() == MAX_DEPTH {
            let problem = format!("is below {MAX_DEPTH} others");
            return Err(Error::damaged(page, problem));
        }
        let node = self.database.node(from, page)?;
        seen(&node)?;
        node.check_range(low, high.as_deref())?;
        self.stack.push(Step {
            node,
            next: 0,
            high,
        });
        Ok(())
    }
}

/// The rows of one bucket, keys and values. After an error there is no other item.
#[derive(Debug)]
pub struct Rows<'a, R> {
    walk: Option<Walk<'a, R>>,
    bucket: String,
}

impl<R: ReadAt> Iterator for Rows<'_, R> {
    type Item = Result<(Bytes, Bytes), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.walk.as_mut()?.next(&mut unseen) {
            Ok(None) => return None,
            Ok(Some(row)) if row.is_bucket => Err(Error::Unsupported(format!(
                "bucket {} holds another bucket, {}",
                self.bucket,
                shown(&row.key)
            ))),
            Ok(Some(row)) => Ok((row.key, row.value)),
            Err(error) => Err(error),
        };
        if item.is_err() {
            self.walk = None;
        }
        Some(item)
    }
}
