//! How rows become pages. Both passes run this code, the first with lengths only, so what the first
//! one counts is what the second one writes.
//!
//! Rows fill a leaf; a full leaf is emitted, gets the next page number and becomes a row (first
//! key, page) of the branch above, which fills up in turn. So one page of each level is in memory.
//!
//! Every branch gets at least two children: bbolt panics when the only child of one becomes so small
//! that it is to be merged with its neighbour. A full branch therefore keeps its last child back, so
//! that the next one has two.

use std::{mem, ops::Range};

use bytes::BufMut;

use crate::{
    Error,
    format::{
        BRANCH_PAGE, ELEMENT, HEADER, LEAF_PAGE, MAX_FILE_BYTES, META_PAGES, PAGE_BYTES, PageHeader,
    },
};

/// Fewest children of a branch.
const MIN_CHILDREN: usize = 2;

/// What differs between the passes.
pub(crate) trait Pass {
    /// A key or a value: its length, or its bytes.
    type Text<'a>: Copy;
    fn bytes(text: Self::Text<'_>) -> usize;
    /// Adds it to what a page keeps.
    fn keep(text: Self::Text<'_>, kept: &mut Vec<u8>);
    /// Takes it from there.
    fn kept(kept: &[u8], range: Range<usize>) -> Self::Text<'_>;
    /// Takes a page that is complete.
    fn page(&mut self, id: u64, draft: &Draft) -> Result<(), Error>;
}

/// One element, and where its key and value begin in what the page keeps.
#[derive(Clone, Copy, Debug)]
struct Element {
    flags: u32,
    at: usize,
    key: usize,
    value: usize,
    /// Of a branch.
    child: u64,
}

/// A leaf or branch that fills up.
#[derive(Debug)]
pub(crate) struct Draft {
    kind: u16,
    elements: Vec<Element>,
    /// Keys and values, in the second pass.
    kept: Vec<u8>,
    /// How many bytes these have, in both passes.
    data: usize,
}

impl Draft {
    fn new(kind: u16) -> Self {
        Self {
            kind,
            elements: Vec::new(),
            kept: Vec::new(),
            data: 0,
        }
    }

    fn bytes(&self) -> usize {
        HEADER + ELEMENT * self.elements.len() + self.data
    }

    /// How many pages it takes.
    pub(crate) fn pages(&self) -> u64 {
        self.bytes().div_ceil(PAGE_BYTES) as u64
    }

    fn push<P: Pass>(&mut self, flags: u32, key: P::Text<'_>, value: P::Text<'_>) {
        let element = Element {
            flags,
            at: self.data,
            key: P::bytes(key),
            value: P::bytes(value),
            child: 0,
        };
        self.elements.push(element);
        self.data += element.key + element.value;
        P::keep(key, &mut self.kept);
        P::keep(value, &mut self.kept);
    }

    fn push_child<P: Pass>(&mut self, key: P::Text<'_>, child: u64) {
        self.elements.push(Element {
            flags: 0,
            at: self.data,
            key: P::bytes(key),
            value: 0,
            child,
        });
        self.data += P::bytes(key);
        P::keep(key, &mut self.kept);
    }

    /// The first key. Only what is empty has none, and that is never asked.
    fn first<P: Pass>(&self) -> P::Text<'_> {
        let bytes = self.elements.first().map_or(0, |element| element.key);
        P::kept(&self.kept, 0..bytes)
    }

    /// Takes the last child of a branch away, into one of its own.
    fn split_last<P: Pass>(&mut self) -> Self {
        let mut last = Draft::new(self.kind);
        if let Some(Element { at, key, child, .. }) = self.elements.pop() {
            last.push_child::<P>(P::kept(&self.kept, at..at + key), child);
            self.data = at;
            self.kept.truncate(at);
        }
        last
    }

    /// For the next page, in the same memory.
    fn clear(&mut self) {
        self.elements.clear();
        self.kept.clear();
        self.data = 0;
    }

    /// All pages of it, as they lie in the file. Only for the second pass.
    pub(crate) fn put(&self, id: u64, out: &mut Vec<u8>) {
        let count = self.elements.len();
        let header = PageHeader {
            id,
            kind: self.kind,
            // At most a page full of elements, or three of a branch with long keys.
            count: count as u16,
            overflow: (self.pages() - 1) as u32,
        };
        header.put(out);
        for (i, element) in self.elements.iter().enumerate() {
            let position = ELEMENT * (count - i) + element.at;
            if self.kind == LEAF_PAGE {
                out.put_u32_le(element.flags);
                out.put_u32_le(position as u32);
                out.put_u32_le(element.key as u32);
                out.put_u32_le(element.value as u32);
            } else {
                out.put_u32_le(position as u32);
                out.put_u32_le(element.key as u32);
                out.put_u64_le(element.child);
            }
        }
        out.extend_from_slice(&self.kept);
        let padding = self.pages() as usize * PAGE_BYTES - self.bytes();
        out.put_bytes(0, padding);
    }
}

/// Gives pages their numbers, in the order in which they are emitted.
pub(crate) struct Pages<P> {
    pub(crate) pass: P,
    next: u64,
    failed: bool,
}

impl<P: Pass> Pages<P> {
    /// The first page that it emits is the one behind the freelist.
    pub(crate) fn new(pass: P) -> Self {
        Self {
            pass,
            next: META_PAGES + 1,
            failed: false,
        }
    }

    /// The number of the page that is emitted next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Emits a page and says its number. After an error no other one is taken: what was to be in
    /// that page is gone.
    pub(crate) fn emit(&mut self, draft: &Draft) -> Result<u64, Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let (id, end) = (self.next, self.next + draft.pages());
        let emitted = match end > MAX_FILE_BYTES / PAGE_BYTES as u64 {
            true => Err(Error::Refused(format!(
                "the file would be longer than {MAX_FILE_BYTES} bytes"
            ))),
            false => self.pass.page(id, draft),
        };
        self.failed = emitted.is_err();
        emitted?;
        self.next = end;
        Ok(id)
    }
}

/// The rows of one bucket.
pub(crate) struct Tree {
    leaf: Draft,
    /// Those right above the leaves are the first.
    branches: Vec<Draft>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self {
            leaf: Draft::new(LEAF_PAGE),
            branches: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.leaf.elements.is_empty()
    }

    /// Adds a row. What is longer than a page gets pages of its own.
    pub(crate) fn row<P: Pass>(
        &mut self,
        pages: &mut Pages<P>,
        flags: u32,
        key: P::Text<'_>,
        value: P::Text<'_>,
    ) -> Result<(), Error> {
        let row = ELEMENT + P::bytes(key) + P::bytes(value);
        if !self.is_empty() && self.leaf.bytes() + row > PAGE_BYTES {
            let mut full = mem::replace(&mut self.leaf, Draft::new(LEAF_PAGE));
            let id = pages.emit(&full)?;
            self.child(pages, 0, full.first::<P>(), id)?;
            full.clear();
            self.leaf = full;
        }
        self.leaf.push::<P>(flags, key, value);
        Ok(())
    }

    /// Adds a page to the branch above it.
    fn child<P: Pass>(
        &mut self,
        pages: &mut Pages<P>,
        level: usize,
        key: P::Text<'_>,
        id: u64,
    ) -> Result<(), Error> {
        if level == self.branches.len() {
            self.branches.push(Draft::new(BRANCH_PAGE));
        }
        let branch = &mut self.branches[level];
        let fits = branch.bytes() + ELEMENT + P::bytes(key) <= PAGE_BYTES;
        // With keys so long that it cannot be split it grows beyond a page, as in bbolt.
        if fits || branch.elements.len() <= MIN_CHILDREN {
            branch.push_child::<P>(key, id);
            return Ok(());
        }
        let mut next = branch.split_last::<P>();
        next.push_child::<P>(key, id);
        let full = mem::replace(branch, next);
        let id = pages.emit(&full)?;
        self.child(pages, level + 1, full.first::<P>(), id)
    }

    /// Emits all pages but the root, which it returns.
    pub(crate) fn close<P: Pass>(mut self, pages: &mut Pages<P>) -> Result<Draft, Error> {
        let mut draft = self.leaf;
        self.leaf = Draft::new(LEAF_PAGE);
        let mut level = 0;
        // A level that is not the last has emitted a page before, so the one above has two.
        while level < self.branches.len() {
            let id = pages.emit(&draft)?;
            self.child(pages, level, draft.first::<P>(), id)?;
            draft = mem::replace(&mut self.branches[level], Draft::new(BRANCH_PAGE));
            level += 1;
        }
        Ok(draft)
    }
}
