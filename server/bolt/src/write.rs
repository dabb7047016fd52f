//! The two passes. The file is: both meta pages, an empty freelist, then the pages of all buckets as
//! they fill, and last the root of the tree that names the buckets.

use std::{io::Write, ops::Range};

use crate::{
    Error,
    error::shown,
    format::{
        BUCKET, BUCKET_HEADER, BucketHeader, ELEMENT, FREELIST_PAGE, HEADER, LEAF_PAGE,
        MAX_BUCKETS, MAX_KEY_BYTES, MAX_ROW_BYTES, MAX_VALUE_BYTES, META_PAGE, META_PAGES, Meta,
        PAGE_BYTES, PageHeader,
    },
    tree::{Draft, Pages, Pass, Tree},
};

/// The first pass: finds how long the file will be and where its root lies.
///
/// Takes the buckets and rows that [`Writer`] will get, in that order, and looks only at lengths;
/// that they are in order is checked there. Holds one page's elements for each level of the tree.
pub struct Planner {
    layout: Layout<Lengths>,
}

impl Planner {
    /// Of an empty file.
    pub fn new() -> Self {
        Self {
            layout: Layout::new(Lengths),
        }
    }

    /// Begins a bucket. A name that is too short or long, or one bucket too many, is refused.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.layout.bucket(name.len())
    }

    /// Adds a row to the bucket. A key or value that is too short or long is refused.
    pub fn row(&mut self, key: &[u8], value_len: usize) -> Result<(), Error> {
        self.layout.row(key.len(), value_len)
    }

    /// The plan for these rows.
    pub fn finish(self) -> Result<Plan, Error> {
        let mut layout = self.layout;
        let top = layout.close()?;
        let root = layout.pages.emit(&top)?;
        Ok(Plan {
            root,
            high_water: layout.pages.next(),
            tally: layout.tally,
        })
    }
}

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

/// What the first pass found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    root: u64,
    high_water: u64,
    tally: Tally,
}

impl Plan {
    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.high_water * PAGE_BYTES as u64
    }
}

/// The second pass: writes the file to `sink`, front to back, one page (with what belongs to it) for
/// each call of `write_all`. Holds one page for each level of the tree, and the longest row twice.
///
/// After an error the file is of no use, and all further calls fail.
pub struct Writer<W> {
    layout: Layout<Stream<W>>,
    plan: Plan,
    /// Key of the bucket's last row, to see the order.
    last: Option<Vec<u8>>,
    last_bucket: Option<Vec<u8>>,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Writes the meta pages and the freelist.
    pub fn new(plan: Plan, mut sink: W) -> Result<Self, Error> {
        let mut front = Vec::with_capacity((META_PAGES as usize + 1) * PAGE_BYTES);
        put_front(&plan, &mut front);
        sink.write_all(&front)
            .map_err(Error::io("write the meta pages"))?;
        let stream = Stream {
            sink,
            page: Vec::new(),
            end: plan.root,
        };
        Ok(Self {
            layout: Layout::new(stream),
            plan,
            last: None,
            last_bucket: None,
            failed: false,
        })
    }

    /// Begins a bucket, whose name must be behind that of the one before.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.unless_failed(|writer| {
            in_order(&mut writer.last_bucket, name, "bucket")?;
            writer.last = None;
            writer.layout.bucket(name)
        })
    }

    /// Adds a row to the bucket; its key must be behind that of the one before.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.unless_failed(|writer| {
            in_order(&mut writer.last, key, "key")?;
            writer.layout.row(key, value)
        })
    }

    /// Writes what is left, flushes the sink and returns it. Refuses, before the last page is
    /// written, when the rows differ from the plan in number or in any length.
    pub fn finish(mut self) -> Result<W, Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let top = self.layout.close()?;
        let pages = &mut self.layout.pages;
        let end = pages.next() + top.pages();
        if self.layout.tally != self.plan.tally
            || pages.next() != self.plan.root
            || end != self.plan.high_water
        {
            let (found, planned) = (self.layout.tally, self.plan.tally);
            return Err(Error::PlanDiffers(format!(
                "{} buckets and {} rows came, {} and {} were planned{}",
                found.buckets,
                found.rows,
                planned.buckets,
                planned.rows,
                match (found.buckets, found.rows) == (planned.buckets, planned.rows) {
                    true => ", with other lengths",
                    false => "",
                }
            )));
        }
        pages.pass.end = end;
        pages.emit(&top)?;
        let mut sink = self.layout.pages.pass.sink;
        sink.flush().map_err(Error::io("flush the file"))?;
        Ok(sink)
    }

    fn unless_failed(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let result = call(self);
        self.failed = result.is_err();
        result
    }
}

/// Refuses what is not behind `last`, otherwise keeps it there.
fn in_order(last: &mut Option<Vec<u8>>, next: &[u8], what: &str) -> Result<(), Error> {
    match last {
        Some(last) if last.as_slice() < next => {
            last.clear();
            last.extend_from_slice(next);
        }
        Some(last) => {
            let how = match last == next {
                true => "comes twice".to_owned(),
                false => format!("comes behind {}", shown(last)),
            };
            return Err(Error::Refused(format!("the {what} {} {how}", shown(next))));
        }
        None => *last = Some(next.to_vec()),
    }
    Ok(())
}

/// Meta pages and freelist. The two meta pages differ in transaction ID alone, as in a file that
/// bbolt has just made: it takes the second, and overwrites the first.
fn put_front(plan: &Plan, out: &mut Vec<u8>) {
    let freelist = META_PAGES;
    for id in 0..META_PAGES {
        let meta = Meta {
            page_bytes: PAGE_BYTES as u32,
            root: BucketHeader {
                root: plan.root,
                sequence: 0,
            },
            freelist,
            high_water: plan.high_water,
            transaction: id,
        };
        put_header(id, META_PAGE, out);
        meta.put(out);
        out.resize((id as usize + 1) * PAGE_BYTES, 0);
    }
    put_header(freelist, FREELIST_PAGE, out);
    out.resize((freelist as usize + 1) * PAGE_BYTES, 0);
}

fn put_header(id: u64, kind: u16, out: &mut Vec<u8>) {
    let header = PageHeader {
        id,
        kind,
        count: 0,
        overflow: 0,
    };
    header.put(out);
}

/// What both passes do with buckets and rows.
struct Layout<P> {
    pages: Pages<P>,
    /// The buckets that are complete.
    root: Tree,
    bucket: Option<Bucket>,
    tally: Tally,
}

/// The bucket that is being filled.
struct Bucket {
    name_bytes: usize,
    name: Vec<u8>,
    tree: Tree,
}

impl<P: Pass> Layout<P> {
    fn new(pass: P) -> Self {
        Self {
            pages: Pages::new(pass),
            root: Tree::new(),
            bucket: None,
            tally: Tally::new(),
        }
    }

    fn bucket(&mut self, name: P::Text<'_>) -> Result<(), Error> {
        let name_bytes = P::bytes(name);
        within("a bucket's name", name_bytes, 1, MAX_KEY_BYTES)?;
        within(
            "the number of buckets",
            self.tally.buckets + 1,
            0,
            MAX_BUCKETS,
        )?;
        self.end_bucket()?;
        self.tally.bucket(name_bytes);
        let mut bucket = Bucket {
            name_bytes,
            name: Vec::new(),
            tree: Tree::new(),
        };
        P::keep(name, &mut bucket.name);
        self.bucket = Some(bucket);
        Ok(())
    }

    fn row(&mut self, key: P::Text<'_>, value: P::Text<'_>) -> Result<(), Error> {
        let (key_bytes, value_bytes) = (P::bytes(key), P::bytes(value));
        within("a key's length", key_bytes, 1, MAX_KEY_BYTES)?;
        within("a value's length", value_bytes, 0, MAX_VALUE_BYTES)?;
        let row_bytes = ELEMENT + key_bytes + value_bytes;
        within("a row's length", row_bytes, 0, MAX_ROW_BYTES)?;
        let Some(bucket) = &mut self.bucket else {
            return Err(Error::Refused("a row comes before any bucket".to_owned()));
        };
        self.tally.row(key_bytes, value_bytes);
        bucket.tree.row(&mut self.pages, 0, key, value)
    }

    /// Completes the bucket and names it in the root. One without rows gets no page: an empty leaf
    /// lies in its value.
    fn end_bucket(&mut self) -> Result<(), Error> {
        let Some(bucket) = self.bucket.take() else {
            return Ok(());
        };
        let mut value = Vec::with_capacity(BUCKET_HEADER + HEADER);
        if bucket.tree.is_empty() {
            let inline = BucketHeader {
                root: 0,
                sequence: 0,
            };
            inline.put(&mut value);
            put_header(0, LEAF_PAGE, &mut value);
        } else {
            let top = bucket.tree.close(&mut self.pages)?;
            let root = self.pages.emit(&top)?;
            BucketHeader { root, sequence: 0 }.put(&mut value);
        }
        let name = P::kept(&bucket.name, 0..bucket.name_bytes);
        let value = P::kept(&value, 0..value.len());
        self.root.row(&mut self.pages, BUCKET, name, value)
    }

    /// Completes everything but the root page of the root, which it returns.
    fn close(&mut self) -> Result<Draft, Error> {
        self.end_bucket()?;
        let root = std::mem::replace(&mut self.root, Tree::new());
        root.close(&mut self.pages)
    }
}

fn within(what: &str, found: usize, least: usize, most: usize) -> Result<(), Error> {
    match (least..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "{what} is {found}, but must be {least} to {most}"
        ))),
    }
}

/// What came: how much, and a hash of all lengths in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    buckets: usize,
    rows: u64,
    lengths: u64,
}

impl Tally {
    fn new() -> Self {
        Self {
            buckets: 0,
            rows: 0,
            lengths: 0xcbf2_9ce4_8422_2325,
        }
    }

    fn bucket(&mut self, name: usize) {
        self.buckets += 1;
        self.length(u64::MAX);
        self.length(name as u64);
    }

    fn row(&mut self, key: usize, value: usize) {
        self.rows += 1;
        self.length(key as u64);
        self.length(value as u64);
    }

    fn length(&mut self, length: u64) {
        let mixed = (self.lengths ^ length).wrapping_mul(0x0000_0100_0000_01b3);
        // The multiplication only carries upwards; lengths differ in their low bits.
        self.lengths = mixed ^ (mixed >> 32);
    }
}

/// The first pass.
struct Lengths;

impl Pass for Lengths {
    type Text<'a> = usize;

    fn bytes(text: usize) -> usize {
        text
    }

    fn keep(_: usize, _: &mut Vec<u8>) {}

    fn kept(_: &[u8], range: Range<usize>) -> usize {
        range.len()
    }

    fn page(&mut self, _: u64, _: &Draft) -> Result<(), Error> {
        Ok(())
    }
}

/// The second pass.
struct Stream<W> {
    sink: W,
    /// The page that is being written.
    page: Vec<u8>,
    /// No page may reach beyond this one: the root, and only at the end the high water.
    end: u64,
}

impl<W: Write> Pass for Stream<W> {
    type Text<'a> = &'a [u8];

    fn bytes(text: &[u8]) -> usize {
        text.len()
    }

    fn keep(text: &[u8], kept: &mut Vec<u8>) {
        kept.extend_from_slice(text);
    }

    fn kept(kept: &[u8], range: Range<usize>) -> &[u8] {
        &kept[range]
    }

    fn page(&mut self, id: u64, draft: &Draft) -> Result<(), Error> {
        if id + draft.pages() > self.end {
            return Err(Error::PlanDiffers(format!(
                "they take more than the {} pages that were planned for them",
                self.end
            )));
        }
        self.page.clear();
        draft.put(id, &mut self.page);
        self.sink
            .write_all(&self.page)
            .map_err(Error::io("write a page"))
    }
}
