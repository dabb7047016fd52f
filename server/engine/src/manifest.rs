//! The torn end of RocksDB's manifest, which it would take for damage.
//!
//! RocksDB appends what changes about its files to the manifest and then syncs it. A power cut in
//! between leaves any of the sectors that were written, and RocksDB refuses to open a manifest in
//! which a record has lost some of them. What was not synced never counted, so it is cut away: by
//! the rule of the raft log, that a whole sector of the record never reached the disk. All else is
//! left to RocksDB: it takes a file that ends inside of a record for what it is, a torn end, and
//! says what is damaged.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// Records do not reach across the borders of blocks of this many bytes; longer ones are split.
const BLOCK: usize = 32 << 10;
/// Checksum, length, type.
const HEADER: usize = 4 + 2 + 1;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
/// What RocksDB adds to a checksum that it stores.
const MASK: u32 = 0xa282_ead8;

/// Cuts a torn end off the manifest in use.
///
/// # Errors
/// What the disk refuses.
pub(crate) fn repair(database: &Path) -> io::Result<()> {
    let Some((manifest, end)) = torn_end(database)? else {
        return Ok(());
    };
    let file = OpenOptions::new().write(true).open(&manifest)?;
    file.set_len(end as u64)?;
    file.sync_all()
}

/// The manifest in use, if its end is torn; nothing is changed.
///
/// # Errors
/// What the disk refuses.
pub(crate) fn torn(database: &Path) -> io::Result<Option<PathBuf>> {
    Ok(torn_end(database)?.map(|(manifest, _)| manifest))
}

fn torn_end(database: &Path) -> io::Result<Option<(PathBuf, usize)>> {
    let Some(manifest) = in_use(database)? else {
        return Ok(None);
    };
    let bytes = match fs::read(&manifest) {
        Ok(bytes) => bytes,
        // RocksDB names the file that it misses.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(torn_at(&bytes).map(|end| (manifest, end)))
}

/// The manifest that RocksDB will read. There is none before its first start ended.
fn in_use(database: &Path) -> io::Result<Option<PathBuf>> {
    // What is no text names no manifest, and RocksDB says so.
    let name = match fs::read(database.join("CURRENT")) {
        Ok(name) => String::from_utf8_lossy(&name).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = name.trim_end();
    let number = name.strip_prefix("MANIFEST-").unwrap_or_default();
    let valid = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    Ok(valid.then(|| database.join(name)))
}

/// Where the torn end begins, if there is one: behind the last whole record.
fn torn_at(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut whole) = (0, 0);
    let mut split = false;
    loop {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
        }
        if at >= bytes.len() {
            // The parts of a record that miss their last one are none to RocksDB either.
            return None;
        }
        match record(bytes, at) {
            Record::Valid(kind, end) => {
                match (kind, split) {
                    (FULL, false) | (LAST, true) => whole = end,
                    (FIRST, false) | (MIDDLE, true) => {}
                    _ => return None,
                }
                split = matches!(kind, FIRST | MIDDLE);
                at = end;
            }
            Record::Torn => return Some(whole),
            Record::Other => return None,
        }
    }
}

enum Record {
    /// Its type and its end.
    Valid(u8, usize),
    Torn,
    Other,
}

fn record(bytes: &[u8], at: usize) -> Record {
    let header = at..at + HEADER;
    let Some(&[a, b, c, d, low, high, kind]) = bytes.get(header.clone()) else {
        return Record::Other;
    };
    let end = header.end + usize::from(u16::from_le_bytes([low, high]));
    let Some(summed) = bytes.get(at + 6..end) else {
        return Record::Other;
    };
    let sum = crc32c::crc32c(summed).rotate_right(15).wrapping_add(MASK);
    match sum == u32::from_le_bytes([a, b, c, d]) {
        true if (FULL..=LAST).contains(&kind) => Record::Valid(kind, end),
        false if has_empty_sector(&bytes[..end], at) => Record::Torn,
        _ => Record::Other,
    }
}

/// Whether all that one sector holds of the bytes from `at` on is zero.
fn has_empty_sector(bytes: &[u8], mut at: usize) -> bool {
    while at < bytes.len() {
        let next = (at / SECTOR + 1) * SECTOR;
        if bytes[at..next.min(bytes.len())]
            .iter()
            .all(|byte| *byte == 0)
        {
            return true;
        }
        at = next;
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn append(bytes: &mut Vec<u8>, kind: u8, data: &[u8]) {
        if BLOCK - bytes.len() % BLOCK < HEADER {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        let summed = [&[kind], data].concat();
        let sum = crc32c::crc32c(&summed).rotate_right(15).wrapping_add(MASK);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&(data.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&summed);
    }

    fn manifest() -> Vec<u8> {
        let mut bytes = Vec::new();
        for length in [100, 1000, 30] {
            append(&mut bytes, FULL, &vec![7; length]);
        }
        bytes
    }

    #[test]
    fn what_is_whole_is_left_alone() {
        let mut bytes = manifest();
        assert_eq!(torn_at(&bytes), None);
        let rest = BLOCK - bytes.len() - HEADER;
        append(&mut bytes, FIRST, &vec![7; rest]);
        append(&mut bytes, LAST, &[7; 3000]);
        assert_eq!(torn_at(&bytes), None);
        assert_eq!(torn_at(&[]), None);
    }

    #[test]
    fn a_lost_sector_of_the_end_is_cut_away_with_what_follows() {
        let mut bytes = manifest();
        let synced = bytes.len();
        append(&mut bytes, FULL, &[7; 2000]);
        append(&mut bytes, FULL, &[7; 100]);
        let mut cut = 0;
        for sector in synced / SECTOR..bytes.len().div_ceil(SECTOR) {
            let mut left = bytes.clone();
            let range = (sector * SECTOR).max(synced)..((sector + 1) * SECTOR).min(bytes.len());
            left[range].fill(0);
            let end = torn_at(&left).unwrap();
            assert!(end == synced || end == synced + HEADER + 2000, "{end}");
            cut += 1;
        }
        assert!(cut > 3);
        // RocksDB knows a file that ends inside of a record.
        assert_eq!(torn_at(&bytes[..synced + 600]), None);
        assert_eq!(torn_at(&bytes[..synced + 3]), None);
    }

    #[test]
    fn a_record_in_parts_is_cut_away_whole() {
        let mut bytes = manifest();
        let synced = bytes.len();
        append(&mut bytes, FIRST, &vec![7; BLOCK - synced - HEADER]);
        let last = bytes.len();
        append(&mut bytes, LAST, &[7; 3000]);
        bytes[last..last + SECTOR].fill(0);
        assert_eq!(torn_at(&bytes), Some(synced));
    }

    #[test]
    fn damage_is_not_repaired() {
        let bytes = manifest();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(torn_at(&flipped), None, "byte {at}");
        }
    }
}
