//! The bytes: page headers, meta pages, bucket headers. All numbers are little-endian, as bbolt
//! writes them on every machine that Cairn runs on.
//!
//! A page is a header of 16 bytes (number, kind, how many elements, how many pages follow that
//! belong to it), then one element of 16 bytes for each row, then the rows' keys and values, one
//! behind the other. An element says where its key lies, counted from the element itself. Pages 0
//! and 1 are meta pages: of those that are valid, the one with the higher transaction ID counts.

use bytes::{Buf, BufMut};

/// Size of the pages that are written. Those that are read may have another.
pub const PAGE_BYTES: usize = 4096;
/// Longest key, and longest name of a bucket.
pub const MAX_KEY_BYTES: usize = 32_768;
/// Longest value.
pub const MAX_VALUE_BYTES: usize = (1 << 31) - 2;
/// How far a row may reach from its element, with which it begins: bbolt cannot address more.
pub const MAX_ROW_BYTES: usize = (1 << 31) - 1;
/// Longest file: the most that bbolt can map.
pub const MAX_FILE_BYTES: u64 = (1 << 48) - 1;
/// Most buckets of one file. etcd has ten or so; a limit bounds what a list of them takes.
pub const MAX_BUCKETS: usize = 4096;

/// Page sizes that are read: powers of two. bbolt takes that of the system, 4 to 64 KiB.
pub(crate) const MIN_PAGE_BYTES: u64 = 1 << 10;
pub(crate) const MAX_PAGE_BYTES: u64 = 1 << 24;

/// Longest branch that is read. bbolt lets one grow beyond its page only for up to five long keys.
pub(crate) const MAX_BRANCH_BYTES: u64 = MAX_PAGE_BYTES;

/// Bytes of a page's header.
pub(crate) const HEADER: usize = 16;
/// Bytes of an element, of either kind of page.
pub(crate) const ELEMENT: usize = 16;
/// Bytes of a bucket's header, which is the value of a row with the flag [`BUCKET`].
pub(crate) const BUCKET_HEADER: usize = 16;
/// Bytes of a meta page that count, behind its header.
pub(crate) const META: usize = 64;

/// Kinds of pages.
pub(crate) const BRANCH_PAGE: u16 = 0x01;
pub(crate) const LEAF_PAGE: u16 = 0x02;
pub(crate) const META_PAGE: u16 = 0x04;
pub(crate) const FREELIST_PAGE: u16 = 0x10;

/// Flag of a row whose value is a bucket.
pub(crate) const BUCKET: u32 = 1;
/// In place of the freelist's page: the list is not kept in the file.
pub(crate) const NO_FREELIST: u64 = u64::MAX;
/// Pages 0 and 1 are meta pages.
pub(crate) const META_PAGES: u64 = 2;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Where a meta page's checksum stands; it covers what is before.
const CHECKSUM_AT: usize = META - 8;

/// What every page begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) id: u64,
    pub(crate) kind: u16,
    /// Elements, or pages in the freelist.
    pub(crate) count: u16,
    /// Pages behind this one that belong to it.
    pub(crate) overflow: u32,
}

impl PageHeader {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.id);
        out.put_u16_le(self.kind);
        out.put_u16_le(self.count);
        out.put_u32_le(self.overflow);
    }

    /// `None` when there are too few bytes.
    pub(crate) fn get(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.get(..HEADER)?;
        Some(Self {
            id: bytes.get_u64_le(),
            kind: bytes.get_u16_le(),
            count: bytes.get_u16_le(),
            overflow: bytes.get_u32_le(),
        })
    }
}

/// Where a bucket's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketHeader {
    /// Its root page; 0 when the rows lie in a page behind this header, in the same value.
    pub(crate) root: u64,
    /// bbolt's counter for its users; etcd has no use for it.
    pub(crate) sequence: u64,
}

impl BucketHeader {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.root);
        out.put_u64_le(self.sequence);
    }

    pub(crate) fn get(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.get(..BUCKET_HEADER)?;
        Some(Self {
            root: bytes.get_u64_le(),
            sequence: bytes.get_u64_le(),
        })
    }
}

/// One of the two meta pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) page_bytes: u32,
    /// The bucket whose rows are the buckets.
    pub(crate) root: BucketHeader,
    pub(crate) freelist: u64,
    /// All pages in use are below this one.
    pub(crate) high_water: u64,
    pub(crate) transaction: u64,
}

impl Meta {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.put_u32_le(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(self.page_bytes);
        // Flags, of which there are none.
        out.put_u32_le(0);
        self.root.put(out);
        out.put_u64_le(self.freelist);
        out.put_u64_le(self.high_water);
        out.put_u64_le(self.transaction);
        let checksum = checksum(&out[begin..]);
        out.put_u64_le(checksum);
    }

    /// From what is behind the page's header. The error says why it does not count.
    pub(crate) fn get(bytes: &[u8]) -> Result<Self, String> {
        let Some(all) = bytes.get(..META) else {
            return Err("too short".to_owned());
        };
        let (mut fields, mut sum) = all.split_at(CHECKSUM_AT);
        let (found, wanted) = (sum.get_u64_le(), checksum(fields));
        let (magic, version) = (fields.get_u32_le(), fields.get_u32_le());
        if magic != MAGIC {
            return Err(format!("magic number {magic:#x}"));
        }
        if version != VERSION {
            return Err(format!("version {version}, only {VERSION} is known"));
        }
        if found != wanted {
            return Err("its checksum does not fit".to_owned());
        }
        let page_bytes = fields.get_u32_le();
        let known = MIN_PAGE_BYTES..=MAX_PAGE_BYTES;
        if !page_bytes.is_power_of_two() || !known.contains(&u64::from(page_bytes)) {
            return Err(format!("page size {page_bytes}"));
        }
        let _flags = fields.get_u32_le();
        Ok(Self {
            page_bytes,
            root: BucketHeader {
                root: fields.get_u64_le(),
                sequence: fields.get_u64_le(),
            },
            freelist: fields.get_u64_le(),
            high_water: fields.get_u64_le(),
            transaction: fields.get_u64_le(),
        })
    }
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
