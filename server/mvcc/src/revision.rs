//! A revision and its bytes, as they are the keys of etcd's `key` bucket.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a row key without the mark of a tombstone.
const ENCODED: usize = 17;
/// What ends the row key of a tombstone.
const TOMBSTONE: u8 = b't';

/// One change: `main` counts the transactions, `sub` the changes within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision {
    pub main: i64,
    pub sub: i64,
}

/// The key of a row of family `key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowKey {
    pub revision: Revision,
    pub tombstone: bool,
}

impl Revision {
    /// Stands for "the key did not exist": no change has it.
    pub const NONE: Self = Self { main: 0, sub: 0 };

    /// The first change of a transaction.
    pub const fn start(main: i64) -> Self {
        Self { main, sub: 0 }
    }

    /// Eight bytes of `main`, an underscore, eight bytes of `sub`, big-endian: they sort as
    /// revisions do.
    pub fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(ENCODED + 1);
        self.write(&mut bytes);
        bytes.freeze()
    }

    fn write(self, bytes: &mut BytesMut) {
        bytes.put_i64(self.main);
        bytes.put_u8(b'_');
        bytes.put_i64(self.sub);
    }

    /// Reads 16 bytes without the underscore, as the rows of our own families have them.
    pub fn from_pair(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            main: i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?),
            sub: i64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?),
        })
    }

    /// Writes what [`Revision::from_pair`] reads.
    pub fn put_pair(self, bytes: &mut BytesMut) {
        bytes.put_i64(self.main);
        bytes.put_i64(self.sub);
    }
}

impl RowKey {
    /// A tombstone has one byte more.
    pub fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(ENCODED + 1);
        self.revision.write(&mut bytes);
        if self.tombstone {
            bytes.put_u8(TOMBSTONE);
        }
        bytes.freeze()
    }

    /// `None` when the bytes are no row key.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let tombstone = match bytes.get(ENCODED..)? {
            [] => false,
            [TOMBSTONE] => true,
            _ => return None,
        };
        let revision = Revision {
            main: i64::from_be_bytes(bytes.get(..8)?.try_into().ok()?),
            sub: i64::from_be_bytes(bytes.get(9..ENCODED)?.try_into().ok()?),
        };
        (bytes[8] == b'_').then_some(Self {
            revision,
            tombstone,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_key_has_etcds_bytes() {
        let check = |main, sub, tombstone, expected: &[u8]| {
            let key = RowKey {
                revision: Revision { main, sub },
                tombstone,
            };
            assert_eq!(key.encode(), expected);
            assert_eq!(RowKey::decode(expected), Some(key));
        };
        check(2, 0, false, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0");
        check(258, 3, true, b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
    }

    #[test]
    fn what_is_no_row_key_is_refused() {
        for bytes in [
            &b""[..],
            b"\0\0\0\0\0\0\0\x02",
            b"\0\0\0\0\0\0\0\x02-\0\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0x",
            b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0tt",
        ] {
            assert_eq!(RowKey::decode(bytes), None, "{bytes:?}");
        }
    }
}
