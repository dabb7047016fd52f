//! One leaf or branch that was read, and every doubt about it.
//!
//! Keys and values must lie one behind the other, as every version of bbolt writes them, so that no
//! element can claim the bytes of another: what a page gives is never more than what it holds.

use bytes::{Buf, Bytes};

use crate::{
    Error,
    error::shown,
    format::{
        BRANCH_PAGE, BUCKET, ELEMENT, HEADER, LEAF_PAGE, MAX_KEY_BYTES, MAX_ROW_BYTES, PageHeader,
    },
};

/// A leaf or branch whose elements are in bounds and in order.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its page; that of the leaf around it when it is inline.
    page: u64,
    header: PageHeader,
    data: Bytes,
}

/// A row of a leaf.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) is_bucket: bool,
    /// Where it lies.
    pub(crate) page: u64,
}

/// One element of either kind.
#[derive(Clone, Copy)]
struct Element {
    flags: u32,
    position: u32,
    key: u32,
    value: u32,
    child: u64,
}

impl Element {
    /// Reads the element at `at`, which must be in bounds.
    fn get(header: &PageHeader, bytes: &[u8], at: usize) -> Self {
        let mut bytes = &bytes[at..at + ELEMENT];
        if header.kind == LEAF_PAGE {
            Self {
                flags: bytes.get_u32_le(),
                position: bytes.get_u32_le(),
                key: bytes.get_u32_le(),
                value: bytes.get_u32_le(),
                child: 0,
            }
        } else {
            Self {
                flags: 0,
                position: bytes.get_u32_le(),
                key: bytes.get_u32_le(),
                value: 0,
                child: bytes.get_u64_le(),
            }
        }
    }
}

/// Where the elements of such a page end.
pub(crate) fn elements_end(header: &PageHeader) -> usize {
    HEADER + ELEMENT * usize::from(header.count)
}

/// Checks all elements, of which `head` holds at least as many bytes as [`elements_end`] says, and
/// says where the last key or value ends: at most `span`, the bytes that belong to the page.
pub(crate) fn data_end(
    page: u64,
    header: &PageHeader,
    head: &[u8],
    span: u64,
) -> Result<u64, Error> {
    let mut end = elements_end(header) as u64;
    for i in 0..usize::from(header.count) {
        let wrong = |problem: String| Err(Error::damaged(page, format!("element {i} {problem}")));
        let at = HEADER + ELEMENT * i;
        let element = Element::get(header, head, at);
        if element.flags & !BUCKET != 0 {
            return wrong(format!("has the unknown flags {:#x}", element.flags));
        }
        if element.key == 0 || element.key as usize > MAX_KEY_BYTES {
            return wrong(format!("has a key of {} bytes", element.key));
        }
        if at as u64 + u64::from(element.position) != end {
            return wrong("does not point to the end of the one before".to_owned());
        }
        let row = u64::from(element.key) + u64::from(element.value);
        let reach = u64::from(element.position) + row;
        if reach > MAX_ROW_BYTES as u64 || row > span - end {
            return wrong(format!("of {row} bytes reaches beyond the page"));
        }
        end += row;
    }
    Ok(end)
}

impl Node {
    /// A page of which `data` holds all up to [`data_end`], which found no fault.
    pub(crate) fn new(page: u64, header: PageHeader, data: Bytes) -> Result<Self, Error> {
        let node = Self { page, header, data };
        for i in 1..node.count() {
            let (before, key) = (node.key_bytes(i - 1), node.key_bytes(i));
            if before >= key {
                let (before, key) = (shown(before), shown(key));
                let problem = format!("key {key} of element {i} is not behind {before}");
                return Err(Error::damaged(page, problem));
            }
        }
        Ok(node)
    }

    /// The leaf in the value of an inline bucket, behind the bucket's header.
    pub(crate) fn inline(page: u64, data: Bytes) -> Result<Self, Error> {
        let header = PageHeader::get(&data).filter(|header| header.kind == LEAF_PAGE);
        let Some(header) = header.filter(|header| elements_end(header) <= data.len()) else {
            return Err(Error::damaged(
                page,
                "holds an inline bucket without a leaf",
            ));
        };
        data_end(page, &header, &data, data.len() as u64)?;
        Self::new(page, header, data)
    }

    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// How many pages it takes.
    pub(crate) fn pages(&self) -> u64 {
        1 + u64::from(self.header.overflow)
    }

    pub(crate) fn is_branch(&self) -> bool {
        self.header.kind == BRANCH_PAGE
    }

    pub(crate) fn count(&self) -> usize {
        usize::from(self.header.count)
    }

    fn element(&self, i: usize) -> (Element, usize) {
        let at = HEADER + ELEMENT * i;
        let element = Element::get(&self.header, &self.data, at);
        (element, at + element.position as usize)
    }

    fn key_bytes(&self, i: usize) -> &[u8] {
        let (element, at) = self.element(i);
        &self.data[at..at + element.key as usize]
    }

    /// The key of element `i`, which must be below the count, as in all that follow.
    pub(crate) fn key(&self, i: usize) -> Bytes {
        let (element, at) = self.element(i);
        self.data.slice(at..at + element.key as usize)
    }

    /// The page that element `i` of a branch points to.
    pub(crate) fn child(&self, i: usize) -> u64 {
        self.element(i).0.child
    }

    /// Row `i` of a leaf.
    pub(crate) fn row(&self, i: usize) -> Row {
        let (element, at) = self.element(i);
        let value = at + element.key as usize;
        Row {
            key: self.data.slice(at..value),
            value: self.data.slice(value..value + element.value as usize),
            is_bucket: element.flags & BUCKET != 0,
            page: self.page,
        }
    }

    /// Refuses keys outside of what the branch above says: from `low` to before `high`.
    pub(crate) fn check_range(&self, low: &[u8], high: Option<&[u8]>) -> Result<(), Error> {
        let Some(last) = self.count().checked_sub(1) else {
            return Err(Error::damaged(self.page, "is empty, and no root"));
        };
        let (first, last) = (self.key_bytes(0), self.key_bytes(last));
        if first < low {
            let problem = format!(
                "its first key {} is before {}, with which its branch names it",
                shown(first),
                shown(low)
            );
            return Err(Error::damaged(self.page, problem));
        }
        match high {
            Some(high) if last >= high => {
                let (last, high) = (shown(last), shown(high));
                let problem = format!("its last key {last} is not before {high}, the next page's");
                Err(Error::damaged(self.page, problem))
            }
            _ => Ok(()),
        }
    }
}
