//! Frames: a little-endian length word, a protobuf record, zeros up to a multiple of 8 bytes.
//!
//! The low 56 bits of the word are the record's length; with padding its top byte is `0x80 | n`.
//! A record's CRC-32C runs over the data of all records before it, through all segments.

use std::io;

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{decode_varint, encode_varint, encoded_len_varint},
};
use proto::walpb;

use crate::VfsFile;

/// Record types.
pub(crate) const METADATA: i64 = 1;
pub(crate) const ENTRY: i64 = 2;
pub(crate) const STATE: i64 = 3;
pub(crate) const CRC: i64 = 4;
pub(crate) const SNAPSHOT: i64 = 5;

/// Bytes of the length word.
pub(crate) const WORD: u64 = 8;
/// What a disk writes whole or not at all, in bytes.
pub(crate) const SECTOR: u64 = 512;
/// Longer records are never written, so such a length is damage and no torn write.
const MAX_RECORD: u64 = 1 << 32;
/// The file is read in pieces of this many bytes.
const READ_CHUNK: usize = 1 << 20;

const KEY_TYPE: u8 = 1 << 3;
const KEY_CRC: u8 = 2 << 3;
const KEY_DATA: u8 = (3 << 3) | 2;

/// Appends a frame to `out` and returns the chain's new value. `data` is `None` for a CRC record.
pub(crate) fn encode(out: &mut Vec<u8>, chain: u32, kind: i64, data: Option<&[u8]>) -> u32 {
    let crc = data.map_or(chain, |d| crc32c::crc32c_append(chain, d));
    let body = data.map_or(0, |d| 1 + encoded_len_varint(d.len() as u64) + d.len());
    let len = 2 + 1 + encoded_len_varint(u64::from(crc)) + body;
    let pad = len.wrapping_neg() % WORD as usize;
    let mut word = len as u64;
    if pad > 0 {
        word |= (0x80 | pad as u64) << 56;
    }
    out.extend_from_slice(&word.to_le_bytes());
    out.push(KEY_TYPE);
    encode_varint(kind as u64, out);
    out.push(KEY_CRC);
    encode_varint(u64::from(crc), out);
    if let Some(data) = data {
        out.push(KEY_DATA);
        encode_varint(data.len() as u64, out);
        out.extend_from_slice(data);
    }
    out.resize(out.len() + pad, 0);
    crc
}

/// What stands at an offset of a segment.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A record that parsed. Its CRC is not checked yet.
    Record {
        record: walpb::Record,
        /// Record and padding as they lie in the file.
        raw: Bytes,
    },
    /// End of the file, or a zero length word with zeros behind: nothing was written from here on.
    End,
    /// The file ends inside the frame.
    Short,
    /// A whole frame whose record does not parse.
    Garbled { raw: Bytes, problem: String },
    /// A length word that no writer writes.
    BadWord(u64),
}

/// Whether a power cut may have left `raw`, which begins right after the length word at `offset`:
/// one of its sectors never reached the disk and is all zero.
pub(crate) fn is_torn(raw: &[u8], offset: u64) -> bool {
    let mut at = offset + WORD;
    let mut rest = raw;
    while !rest.is_empty() {
        let n = ((SECTOR - at % SECTOR) as usize).min(rest.len());
        if rest[..n].iter().all(|b| *b == 0) {
            return true;
        }
        at += n as u64;
        rest = &rest[n..];
    }
    false
}

/// The record that `raw` begins with, whatever its length word said: its three fields, each once
/// and in order, as every writer writes them.
pub(crate) fn whole_prefix(raw: &[u8]) -> Option<walpb::Record> {
    let mut rest = raw;
    let mut field = |key: u8| {
        rest.first().filter(|found| **found == key)?;
        rest = &rest[1..];
        decode_varint(&mut rest).ok()
    };
    let kind = field(KEY_TYPE)?;
    let crc = field(KEY_CRC)?;
    let data = match field(KEY_DATA) {
        Some(length) => Some(rest.get(..usize::try_from(length).ok()?)?),
        None => None,
    };
    Some(walpb::Record {
        r#type: Some(kind as i64),
        crc: u32::try_from(crc).ok(),
        data: data.map(Bytes::copy_from_slice),
    })
}

/// Reads the frames of one segment in order.
pub(crate) struct FrameReader<'a, F> {
    file: &'a F,
    file_len: u64,
    offset: u64,
    buffer: Bytes,
}

impl<'a, F: VfsFile> FrameReader<'a, F> {
    pub(crate) fn new(file: &'a F, offset: u64) -> io::Result<Self> {
        Ok(Self {
            file,
            file_len: file.len()?,
            offset,
            buffer: Bytes::new(),
        })
    }

    /// Where the next frame begins: the end of the last one that was read whole.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file from the offset on.
    pub(crate) fn left(&self) -> u64 {
        self.file_len.saturating_sub(self.offset)
    }

    /// Makes the buffer hold `want` bytes from the offset on, or all there are.
    fn fill(&mut self, want: usize) -> io::Result<()> {
        if self.buffer.len() >= want {
            return Ok(());
        }
        let size = (want.max(READ_CHUNK) as u64).min(self.left()) as usize;
        let mut chunk = BytesMut::zeroed(size);
        let n = self.file.read_at(&mut chunk, self.offset)?;
        chunk.truncate(n);
        self.buffer = chunk.freeze();
        Ok(())
    }

    /// The frame at the offset. Only a [`Frame::Record`] moves the offset.
    pub(crate) fn next(&mut self) -> io::Result<Frame> {
        self.fill(WORD as usize)?;
        let Some(word) = self.buffer.first_chunk::<8>() else {
            return Ok(if self.buffer.is_empty() {
                Frame::End
            } else {
                Frame::Short
            });
        };
        let word = u64::from_le_bytes(*word);
        if word == 0 {
            // A sector reaches the disk as a whole: what lies behind in this one was written with
            // the word, or after it.
            let rest = (SECTOR - self.offset % SECTOR) as usize;
            self.fill(rest)?;
            let rest = &self.buffer[..rest.min(self.buffer.len())];
            return Ok(match rest.iter().all(|byte| *byte == 0) {
                true => Frame::End,
                false => Frame::BadWord(0),
            });
        }
        let (len, top) = (word & ((1 << 56) - 1), word >> 56);
        let pad = top & 0x7;
        if (top != 0 && top & 0xf8 != 0x80) || len > MAX_RECORD {
            return Ok(Frame::BadWord(word));
        }
        let end = self.offset + WORD + len + pad;
        if end > self.file_len {
            return Ok(Frame::Short);
        }
        self.fill((WORD + len + pad) as usize)?;
        if (self.buffer.len() as u64) < WORD + len + pad {
            return Ok(Frame::Short);
        }
        let raw = self
            .buffer
            .slice(WORD as usize..(WORD + len + pad) as usize);
        match walpb::Record::decode(raw.slice(..len as usize)) {
            Ok(record) => {
                self.buffer = self.buffer.slice((WORD + len + pad) as usize..);
                self.offset = end;
                Ok(Frame::Record { record, raw })
            }
            Err(error) => Ok(Frame::Garbled {
                raw,
                problem: error.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{MemVfs, Vfs};

    fn read(bytes: &[u8]) -> Vec<String> {
        let vfs = MemVfs::new();
        let file = vfs.create(Path::new("/f")).unwrap();
        file.write_at(bytes, 0).unwrap();
        let mut reader = FrameReader::new(&file, 0).unwrap();
        let mut seen = Vec::new();
        loop {
            match reader.next().unwrap() {
                Frame::Record { record, .. } => seen.push(format!(
                    "{} {} {}",
                    record.r#type.unwrap(),
                    String::from_utf8_lossy(record.data.as_deref().unwrap_or_default()),
                    reader.offset()
                )),
                other => {
                    seen.push(
                        format!("{other:?}")
                            .split(['(', ' '])
                            .next()
                            .unwrap()
                            .into(),
                    );
                    return seen;
                }
            }
        }
    }

    #[test]
    fn a_frame_has_etcds_bytes() {
        // A CRC record of an empty chain is what every log begins with: 4 bytes and 4 of padding.
        let mut out = Vec::new();
        assert_eq!(encode(&mut out, 0, CRC, None), 0);
        assert_eq!(out, b"\x04\0\0\0\0\0\0\x84\x08\x04\x10\0\0\0\0\0");
        // CRC-32C of "123456789" is the standard's check value.
        assert_eq!(
            encode(&mut Vec::new(), 0, ENTRY, Some(b"123456789")),
            0xe306_9283
        );
    }

    #[test]
    fn frames_are_read_back_until_the_zeros() {
        let mut out = Vec::new();
        let mut chain = 0;
        for data in [&b""[..], b"a", b"abcdefg", &[b'x'; 3_000_000]] {
            chain = encode(&mut out, chain, ENTRY, Some(data));
            assert_eq!(out.len() % 8, 0);
        }
        let whole = out.len();
        out.resize(whole + 64, 0);
        let seen = read(&out);
        assert_eq!(seen.len(), 5);
        assert!(seen[1].starts_with("2 a "));
        assert!(seen[3].ends_with(&whole.to_string()));
        assert_eq!(seen[4], "End");
        assert_eq!(read(&out[..whole - 1]).last().unwrap(), "Short");
        assert_eq!(read(&out[..3]), ["Short"]);
    }

    #[test]
    fn words_that_nobody_writes_are_damage() {
        for word in [1u64 << 40, 0x40 << 56 | 8, u64::MAX] {
            assert_eq!(read(&word.to_le_bytes()), ["BadWord"], "{word:x}");
        }
        let mut garbage = 8u64.to_le_bytes().to_vec();
        garbage.extend_from_slice(&[0xff; 8]);
        assert_eq!(read(&garbage), ["Garbled"]);
    }

    #[test]
    fn torn_means_that_a_whole_sector_of_the_record_is_zero() {
        let full = vec![1u8; 2000];
        assert!(!is_torn(&full, 0));
        // Sectors of a record at offset 0 begin 8 bytes into the file: 504, 512, 512, 472.
        let mut holed = full.clone();
        holed[504..504 + 511].fill(0);
        assert!(!is_torn(&holed, 0), "one byte of the sector is there");
        holed[504 + 511] = 0;
        assert!(is_torn(&holed, 0));
        assert!(!is_torn(&holed, 8), "no sector of its own at this offset");
        let mut end = full;
        end[504 + 1024..].fill(0);
        assert!(is_torn(&end, 0));
    }
}
