//! Files that are damaged, by accident and on purpose: refused with the page, never a panic, never
//! more work than the file is long.

use std::{cell::Cell, io};

use proptest::{collection, prelude::*};

use super::{Bucket, Content, bucket, many, read, write};
use crate::{
    Database, Error, PAGE_BYTES, ReadAt,
    format::{HEADER, Meta},
};

/// A file that tells how much was read of it.
struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<usize>,
}

impl ReadAt for Counted<'_> {
    fn file_bytes(&self) -> io::Result<u64> {
        self.bytes.file_bytes()
    }

    fn read_at_exactly(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.set(self.read.get() + buffer.len());
        self.bytes.read_at_exactly(buffer, offset)
    }
}

/// Branch, leaves, a value of several pages, short buckets, an empty one: all that a file has.
fn content() -> Content {
    let mut rows = many(24, 300);
    rows.insert(b"key000010".to_vec(), vec![3; 9000]);
    Content::from([
        (b"alarm".to_vec(), Bucket::new()),
        (b"key".to_vec(), rows),
        (b"lease".to_vec(), bucket([("a", ""), ("b", "x")])),
        (b"meta".to_vec(), bucket([("term", "12345678")])),
    ])
}

/// Reads everything there is, however damaged, and bounds what that may cost.
fn read_all(bytes: &[u8]) -> Result<Content, Error> {
    let counted = Counted {
        bytes,
        read: Cell::new(0),
    };
    let read_since = |before: usize| counted.read.get() - before;
    let database = Database::open(&counted)?;
    assert!(read_since(0) < 2000);
    let before = counted.read.get();
    let checked = database.check();
    assert!(read_since(before) <= 2 * bytes.len());
    let before = counted.read.get();
    let content = read(&database);
    let buckets = database.buckets().map_or(0, |buckets| buckets.len());
    // Each of them looks for its name in the root, and reads its tree.
    assert!(read_since(before) <= (3 + 3 * buckets) * bytes.len());
    if let Ok(content) = &content {
        let rows = content.values().flatten();
        let length: usize = rows.map(|(key, value)| key.len() + value.len()).sum();
        assert!(length <= buckets * bytes.len());
    }
    checked?;
    content
}

/// Makes the checksums of both meta pages fit again.
fn fix_checksums(file: &mut [u8]) {
    for page in [0, PAGE_BYTES] {
        let begin = page + HEADER;
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for byte in &file[begin..begin + 56] {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        file[begin + 56..begin + 64].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn every_flipped_byte_is_survived() {
    let content = content();
    let mut file = write(&content);
    let mut refused = 0;
    for at in 0..file.len() {
        for mask in [0xff, 1 << (at % 8)] {
            file[at] ^= mask;
            match read_all(&file) {
                // In a key or a value, or where nothing is.
                Ok(found) => assert_eq!(found.len(), content.len()),
                Err(_) => refused += 1,
            }
            file[at] ^= mask;
        }
    }
    // Headers, elements, branches, bucket headers: far more than a few.
    assert!(refused > 1500, "{refused}");
}

/// As above, with checksums that fit, so that the reader gets beyond the meta page.
#[test]
fn every_flipped_bit_of_a_meta_page_is_survived() {
    let mut file = write(&content());
    for at in HEADER..HEADER + 56 {
        for bit in 0..8 {
            for page in [0, PAGE_BYTES] {
                file[page + at] ^= 1 << bit;
            }
            fix_checksums(&mut file);
            // Flags and the root's sequence mean nothing, the transaction ID only which is newer.
            let harmless = matches!(at - HEADER, 12..16 | 24..32 | 48..56);
            assert_eq!(read_all(&file).is_ok(), harmless, "byte {at}, bit {bit}");
            for page in [0, PAGE_BYTES] {
                file[page + at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let file = write(&content());
    for length in 0..file.len() {
        let error = Database::open(&file[..length]).unwrap_err();
        match length < HEADER + 64 {
            true => assert!(matches!(error, Error::NoMeta(_)), "{error}"),
            false => assert!(matches!(error, Error::Truncated { .. }), "{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Bytes and page numbers in any place, so that pages name each other in all ways.
    #[test]
    fn any_damage_is_survived(
        places in collection::vec((any::<prop::sample::Index>(), 0..12u64, any::<u8>()), 1..20),
    ) {
        let mut file = write(&content());
        for (place, page, byte) in places {
            let at = place.index(file.len() - 8);
            match byte & 1 {
                0 => file[at] = byte,
                // Where numbers lie.
                _ => file[at / 8 * 8..][..8].copy_from_slice(&page.to_le_bytes()),
            }
        }
        fix_checksums(&mut file);
        let _ = read_all(&file);
    }
}

/// Bytes of a page.
fn page(file: &mut [u8], page: usize) -> &mut [u8] {
    &mut file[page * PAGE_BYTES..][..PAGE_BYTES]
}

/// The first page of that kind, and its bytes.
fn find(file: &[u8], kind: u16) -> usize {
    let mut pages = file.chunks(PAGE_BYTES);
    let found = pages.position(|page| page[8..10] == kind.to_le_bytes());
    found.unwrap()
}

/// Damages a good file, and says what the check has to say of it.
fn refused(damage: impl FnOnce(&mut Vec<u8>) -> usize) -> (String, String) {
    let mut file = write(&content());
    read_all(&file).unwrap();
    let page = damage(&mut file);
    fix_checksums(&mut file);
    let said = read_all(&file).unwrap_err().to_string();
    (said, format!("page {page} is damaged"))
}

#[test]
fn damage_is_named_with_its_page() {
    let set = |file: &mut [u8], number: usize, at: usize, value: u64| {
        page(file, number)[at..at + 8].copy_from_slice(&value.to_le_bytes());
        number
    };
    let high_water = write(&content()).len() / PAGE_BYTES;
    let branch = find(&write(&content()), 1);
    let check = |says: &str, damage: &dyn Fn(&mut Vec<u8>) -> usize| {
        let (said, page) = refused(damage);
        assert!(said.contains(&page), "{said}, not {page}");
        assert!(said.contains(says), "{said}, not {says}");
        assert!(said.contains("another copy"), "{said}");
    };
    check("calls itself page 9999", &|file| set(file, 3, 0, 9999));
    check("no leaf or branch", &|file| {
        page(file, 3)[8] = 4;
        3
    });
    check("has 4294967041 pages", &|file| {
        page(file, 3)[13..16].fill(0xff);
        3
    });
    check("has no room for", &|file| {
        page(file, 3)[10..12].fill(0xff);
        3
    });
    check("does not point to the end", &|file| {
        page(file, 3)[HEADER + 16 + 4] += 1;
        3
    });
    check("has a key of 0 bytes", &|file| set(file, 3, HEADER + 8, 0));
    check("is not behind", &|file| {
        let first = page(file, 3);
        let at = first
            .windows(9)
            .position(|key| key == b"key000001")
            .unwrap();
        first[at..at + 9].copy_from_slice(b"key000000");
        3
    });
    // A branch that points to itself, to one child twice, and out of the file.
    check("below of itself", &|file| {
        set(file, branch, HEADER + 8, branch as u64)
    });
    check("in use in two places", &|file| {
        set(file, branch, HEADER + 16 + 8, 3);
        3
    });
    check("its child is page 77", &|file| {
        set(file, branch, HEADER + 8, 77)
    });
    check("its first key", &|file| {
        let keys = page(file, branch);
        let at = keys.windows(9).position(|key| key == b"key000000").unwrap();
        keys[at + 8] = b'1';
        3
    });
    // The freelist: not one, a page of ours, one beyond, none at all for a page that is not in use.
    check("is no freelist", &|file| {
        page(file, 2)[8] = 2;
        2
    });
    check("in use and in the freelist", &|file| {
        page(file, 2)[10] = 1;
        set(file, 2, HEADER, 4);
        4
    });
    check("its entry is page 500", &|file| {
        page(file, 2)[10] = 1;
        set(file, 2, HEADER, 500)
    });
    check("names page 4 twice", &|file| {
        page(file, 2)[10] = 2;
        set(file, 2, HEADER, 4);
        set(file, 2, HEADER + 8, 4)
    });
    check("no room for", &|file| {
        page(file, 2)[10..12].fill(0xff);
        set(file, 2, HEADER, u64::MAX)
    });
    check("neither in use nor in the freelist", &|file| {
        file.extend([0; PAGE_BYTES]);
        for meta in 0..2 {
            set(file, meta, HEADER + 40, high_water as u64 + 1);
        }
        high_water
    });
}

/// What the check finds, the rows say too where it concerns them: they end there.
#[test]
fn rows_end_at_the_first_fault() {
    let mut file = write(&content());
    page(&mut file, 4)[0] = 99;
    let database = Database::open(file).unwrap();
    let rows: Vec<_> = database.rows(b"key").unwrap().collect();
    assert!(rows.len() > 2);
    assert!(rows.iter().take(rows.len() - 1).all(|row| row.is_ok()));
    let last = rows.last().unwrap().as_ref().unwrap_err();
    assert!(matches!(last, Error::Damaged { page: 4, .. }), "{last}");
}

#[test]
fn the_newer_valid_meta_page_counts() {
    let content = content();
    let with = |transactions: [u64; 2], damaged: [bool; 2]| {
        let mut file = write(&content);
        for (id, transaction) in transactions.into_iter().enumerate() {
            let field = HEADER + 48..HEADER + 56;
            page(&mut file, id)[field].copy_from_slice(&transaction.to_le_bytes());
        }
        fix_checksums(&mut file);
        for (id, damaged) in damaged.into_iter().enumerate() {
            page(&mut file, id)[HEADER] ^= u8::from(damaged);
        }
        Database::open(file).map(|database| {
            assert_eq!(read(&database).unwrap(), content);
            database.meta().transaction
        })
    };
    assert_eq!(with([6, 7], [false, false]).unwrap(), 7);
    assert_eq!(with([8, 7], [false, false]).unwrap(), 8);
    assert_eq!(with([8, 7], [true, false]).unwrap(), 7);
    assert_eq!(with([6, 7], [false, true]).unwrap(), 6);
    let error = with([6, 7], [true, true]).unwrap_err().to_string();
    assert!(error.contains("magic number 0xed0cdaec"), "{error}");
    assert!(error.contains("no bbolt file"), "{error}");
}

#[test]
fn meta_pages_of_other_formats_are_told() {
    let file = write(&Content::new());
    let meta = &file[HEADER..HEADER + 64];
    assert_eq!(Meta::get(meta).unwrap().page_bytes, 4096);
    let changed = |at: usize, byte: u8| {
        let mut meta = meta.to_vec();
        meta[at] = byte;
        Meta::get(&meta).unwrap_err()
    };
    assert!(changed(4, 3).contains("version 3"));
    assert!(changed(33, 3).contains("checksum"));
    assert!(Meta::get(&meta[1..]).unwrap_err().contains("too short"));
}

/// An element's flag makes a bucket of a row: etcd has none in buckets, bbolt may.
#[test]
fn a_bucket_in_a_bucket_is_checked_and_not_read() {
    let mut inline = vec![0; 32];
    inline[24] = 2;
    let rows = Bucket::from([(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), inline)]);
    let mut file = write(&Content::from([(b"outer".to_vec(), rows)]));
    page(&mut file, 3)[HEADER + 16] = 1;
    let database = Database::open(file).unwrap();
    database.check().unwrap();
    let mut rows = database.rows(b"outer").unwrap();
    assert!(rows.next().unwrap().is_ok());
    let error = rows.next().unwrap().unwrap_err().to_string();
    assert!(
        error.contains(r#"bucket "outer" holds another bucket, "b""#),
        "{error}"
    );
    assert!(rows.next().is_none());
}

#[test]
fn a_root_that_holds_rows_is_refused() {
    let mut file = write(&Content::from([(b"b".to_vec(), bucket([("k", "v")]))]));
    page(&mut file, 4)[HEADER] = 0;
    let database = Database::open(file).unwrap();
    for error in [
        database.buckets().map(drop),
        database.rows(b"b").map(drop),
        database.check(),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(r#"page 4 is damaged: its row "b" is no bucket"#),
            "{error}"
        );
    }
}
