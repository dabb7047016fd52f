//! The bytes of the store's own rows: `cur`, `hist`, `leasekey` and the counters.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::mvccpb::KeyValue;

use crate::{error::Error, revision::Revision};

/// Up to this many bytes of an encoded KeyValue stand in `cur` too, so that a list reads one
/// family. A longer one stands there without its value, which comes from `key`.
pub(crate) const WHOLE_BYTES: usize = 1024;

/// What a row costs in etcd's database besides its key and value: the element header of a page.
pub(crate) const ROW_OVERHEAD: i64 = 16;

/// The row of the store's counters in family `meta`. No key of etcd's begins like this.
pub(crate) const COUNTERS_KEY: &[u8] = b"cairn_store";
/// etcd's rows in family `meta`.
pub(crate) const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
pub(crate) const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";

/// Tag, main and sub revision stand before the KeyValue.
const CUR_HEAD: usize = 17;
const WHOLE: u8 = 1;
const WITHOUT_VALUE: u8 = 2;

/// The bytes of a row in etcd's database.
pub(crate) fn row_bytes(key: usize, value: usize) -> i64 {
    (key + value) as i64 + ROW_OVERHEAD
}

/// The newest version of a key.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub revision: Revision,
    /// Without its value unless `encoded` is there.
    pub kv: KeyValue,
    /// The KeyValue as family `key` has it, if it stands in `cur` whole.
    pub encoded: Option<Bytes>,
}

/// Makes the row of family `cur` for a KeyValue and its encoding.
pub(crate) fn encode_cur(revision: Revision, kv: &KeyValue, encoded: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(CUR_HEAD + encoded.len().min(WHOLE_BYTES));
    if encoded.len() <= WHOLE_BYTES {
        row.put_u8(WHOLE);
        revision.put_pair(&mut row);
        row.put_slice(encoded);
        return row.freeze();
    }
    row.put_u8(WITHOUT_VALUE);
    revision.put_pair(&mut row);
    let index = KeyValue {
        value: Bytes::new(),
        ..kv.clone()
    };
    row.put_slice(&index.encode_to_vec());
    row.freeze()
}

/// The place of a row of family `cur` in family `key`, and its KeyValue as that family has it, if
/// it stands here whole.
pub(crate) fn split_cur(row: &[u8]) -> Result<(Revision, Option<&[u8]>), Error> {
    let damaged = || Error::Damaged(format!("a row of family cur: {row:02x?}"));
    let revision = row.get(1..).and_then(Revision::from_pair);
    let revision = revision.ok_or_else(damaged)?;
    match row[0] {
        WHOLE => Ok((revision, Some(&row[CUR_HEAD..]))),
        WITHOUT_VALUE => Ok((revision, None)),
        _ => Err(damaged()),
    }
}

/// Reads a row of family `cur`.
pub(crate) fn decode_cur(row: Bytes) -> Result<Current, Error> {
    let (revision, whole) = split_cur(&row)?;
    let is_whole = whole.is_some();
    let encoded = row.slice(CUR_HEAD..);
    let kv = KeyValue::decode(encoded.clone())
        .map_err(|_| Error::Damaged(format!("a row of family cur: {row:02x?}")))?;
    Ok(Current {
        revision,
        kv,
        encoded: is_whole.then_some(encoded),
    })
}

/// What a change superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superseded {
    /// [`Revision::NONE`] when the key did not exist before.
    pub revision: Revision,
    /// What the superseded row of family `key` costs; 0 when there was none.
    pub row_bytes: u32,
}

/// A zero byte within a user key. It sorts above the terminator.
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];
/// Behind a user key. It sorts below whatever a longer key has in its place.
const TERMINATOR: [u8; 2] = [0, 1];

/// The user key as the start of a row key: it sorts as the user key does, and no encoded key is
/// the beginning of another.
pub(crate) fn hist_prefix(key: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(key.len() + 20);
    for &byte in key {
        match byte {
            0 => bytes.put_slice(&ESCAPED_ZERO),
            byte => bytes.put_u8(byte),
        }
    }
    bytes.put_slice(&TERMINATOR);
    bytes
}

/// The first row key behind all rows of the user key.
pub(crate) fn hist_end(key: &[u8]) -> BytesMut {
    let mut bytes = hist_prefix(key);
    if let Some(last) = bytes.last_mut() {
        *last += 1;
    }
    bytes
}

/// The row key of family `hist` for a change of the user key.
pub(crate) fn hist_key(key: &[u8], superseding: Revision) -> Bytes {
    let mut bytes = hist_prefix(key);
    superseding.put_pair(&mut bytes);
    bytes.freeze()
}

/// The user key and the superseding revision of a row key of family `hist`.
pub(crate) fn decode_hist_key(row: &[u8]) -> Result<(Vec<u8>, Revision), Error> {
    let damaged = || Error::Damaged(format!("a row key of family hist: {row:02x?}"));
    let split = row.len().checked_sub(16).ok_or_else(damaged)?;
    let superseding = Revision::from_pair(&row[split..]).ok_or_else(damaged)?;
    let mut rest = &row[..split];
    let mut key = Vec::with_capacity(split);
    loop {
        match rest {
            [0, 1] => return Ok((key, superseding)),
            [0, 0xff, tail @ ..] => {
                key.push(0);
                rest = tail;
            }
            [byte, tail @ ..] if *byte != 0 => {
                key.push(*byte);
                rest = tail;
            }
            _ => return Err(damaged()),
        }
    }
}

/// Makes the value of a row of family `hist`.
pub(crate) fn encode_superseded(superseded: Superseded) -> Bytes {
    let mut bytes = BytesMut::with_capacity(20);
    superseded.revision.put_pair(&mut bytes);
    bytes.put_u32(superseded.row_bytes);
    bytes.freeze()
}

/// Reads the value of a row of family `hist`.
pub(crate) fn decode_superseded(row: &[u8]) -> Result<Superseded, Error> {
    let damaged = || Error::Damaged(format!("a row of family hist: {row:02x?}"));
    let bytes: [u8; 20] = row.try_into().map_err(|_| damaged())?;
    let revision = Revision::from_pair(&bytes).ok_or_else(damaged)?;
    let row_bytes = u32::from_be_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
    Ok(Superseded {
        revision,
        row_bytes,
    })
}

/// The row key of a lease in families `lease` and, with a user key behind it, `leasekey`.
pub(crate) fn lease_key(lease: i64) -> Bytes {
    Bytes::copy_from_slice(&lease.to_be_bytes())
}

/// The row key of family `leasekey`.
pub(crate) fn lease_item(lease: i64, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + key.len());
    bytes.put_i64(lease);
    bytes.put_slice(key);
    bytes.freeze()
}

/// The counters that go with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// The revision of the last change.
    pub revision: i64,
    /// Bytes that etcd's database would use for the rows.
    pub in_use: i64,
    /// `in_use` and what was freed, and not yet used again or given back by a defragmentation.
    pub size: i64,
}

/// What etcd's database takes without a row: its two meta pages, the free list, the root, a leaf.
const EMPTY_BYTES: i64 = 5 * 4096;

impl Counters {
    /// Of a store without rows.
    pub const EMPTY: Self = Self {
        revision: 1,
        in_use: EMPTY_BYTES,
        size: EMPTY_BYTES,
    };

    /// Accounts for a row that came (positive) or went (negative).
    pub fn account(&mut self, bytes: i64) {
        self.in_use += bytes;
        self.size = self.size.max(self.in_use);
    }

    pub fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(24);
        bytes.put_i64(self.revision);
        bytes.put_i64(self.in_use);
        bytes.put_i64(self.size);
        bytes.freeze()
    }

    pub fn decode(row: &[u8]) -> Result<Self, Error> {
        let number = |at: usize| -> Option<i64> {
            Some(i64::from_be_bytes(row.get(at..at + 8)?.try_into().ok()?))
        };
        match (row.len(), number(0), number(8), number(16)) {
            (24, Some(revision), Some(in_use), Some(size)) => Ok(Self {
                revision,
                in_use,
                size,
            }),
            _ => Err(Error::Damaged(format!("the store's counters: {row:02x?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_sorts_by_user_key_then_revision() {
        let keys: [&[u8]; 9] = [
            b"", b"\0", b"\0\0", b"\0\x01", b"\x01", b"a", b"a\0", b"a\0b", b"b",
        ];
        let mut rows = Vec::new();
        for key in keys {
            for (main, sub) in [(2, 0), (2, 1), (300, 0)] {
                let row = hist_key(key, Revision { main, sub });
                let decoded = decode_hist_key(&row).unwrap();
                assert_eq!(decoded, (key.to_vec(), Revision { main, sub }));
                assert!(row[..] >= hist_prefix(key)[..] && row[..] < hist_end(key)[..]);
                rows.push(row);
            }
        }
        assert!(rows.is_sorted());
    }

    #[test]
    fn a_long_value_stands_in_cur_without_it() {
        for length in [0, 1, WHOLE_BYTES + 1] {
            let kv = KeyValue {
                key: "k".into(),
                create_revision: 2,
                mod_revision: 3,
                version: 2,
                value: vec![7; length].into(),
                lease: 9,
            };
            let encoded = kv.encode_to_vec();
            let revision = Revision { main: 3, sub: 1 };
            let current = decode_cur(encode_cur(revision, &kv, &encoded)).unwrap();
            assert_eq!(current.revision, revision);
            assert_eq!(current.kv.lease, 9);
            assert_eq!(current.encoded.is_some(), length <= WHOLE_BYTES);
            assert_eq!(current.kv.value.is_empty(), length != 1);
        }
    }

    #[test]
    fn damage_is_an_error() {
        assert!(decode_cur(Bytes::new()).is_err());
        assert!(decode_cur(Bytes::from_static(b"\x03aaaaaaaabbbbbbbb")).is_err());
        assert!(decode_hist_key(b"abc").is_err());
        assert!(decode_hist_key(b"a\0aaaaaaaabbbbbbbb").is_err());
        assert!(decode_superseded(b"short").is_err());
        assert!(Counters::decode(b"").is_err());
    }
}
