//! The frames of the two streams.
//!
//! Message stream: eight bytes of length, then the message. Append stream ("msgappv2"): a kind
//! byte; 0 is a heartbeat of the link, 1 are entries that go on where the last frame ended, 2 is a
//! whole message. We send whole messages only, which every etcd reads, and read all three.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use proto::raftpb::{Entry, Message, MessageType};

/// A longer frame is no frame, as in etcd.
const MAX_FRAME_BYTES: u64 = 512 << 20;
const LINK_HEARTBEAT: u8 = 0;
const ENTRIES: u8 = 1;
const WHOLE: u8 = 2;
/// Bytes of a length.
const LENGTH: usize = 8;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Everything but appends.
    Message,
    /// Appends.
    Append,
}

impl Stream {
    pub const BOTH: [Self; 2] = [Self::Message, Self::Append];

    /// Its part of the path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Append => "msgapp",
        }
    }

    /// The stream that a message goes through.
    pub fn of(message: &Message) -> Self {
        match message.r#type == Some(MessageType::MsgApp as i32) {
            true => Self::Append,
            false => Self::Message,
        }
    }

    /// A message as a frame.
    pub fn encode(self, message: &Message) -> Bytes {
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(1 + LENGTH + length);
        if self == Self::Append {
            frame.put_u8(WHOLE);
        }
        frame.put_u64(length as u64);
        frame.put_slice(&message.encode_to_vec());
        frame.freeze()
    }

    /// What keeps an idle stream alive.
    pub fn heartbeat(self) -> Bytes {
        match self {
            Self::Append => Bytes::from_static(&[LINK_HEARTBEAT]),
            Self::Message => self.encode(&Message {
                r#type: Some(MessageType::MsgHeartbeat as i32),
                ..Message::default()
            }),
        }
    }
}

/// Takes bytes as they come and gives messages.
pub(crate) struct Decoder {
    stream: Stream,
    /// This member and the other: entries come without them.
    to: u64,
    from: u64,
    buffer: BytesMut,
    /// Where the next entries of an append stream go on.
    term: u64,
    index: u64,
}

impl Decoder {
    pub fn new(stream: Stream, to: u64, from: u64) -> Self {
        Self {
            stream,
            to,
            from,
            buffer: BytesMut::new(),
            term: 0,
            index: 0,
        }
    }

    /// Adds bytes and takes all messages that are whole.
    ///
    /// # Errors
    /// What is wrong; the stream must be left.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, String> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(frame) = self.next()? {
            if let Frame::Message(message) = frame
                && !is_heartbeat(&message)
            {
                messages.push(*message);
            }
        }
        Ok(messages)
    }

    fn next(&mut self) -> Result<Option<Frame>, String> {
        if self.stream == Stream::Message {
            let Some(length) = self.length_at(0)? else {
                return Ok(None);
            };
            return self.whole(LENGTH, length).map(Some).or_else(wait);
        }
        match self.buffer.first() {
            None => Ok(None),
            Some(&LINK_HEARTBEAT) => {
                self.buffer.advance(1);
                Ok(Some(Frame::Heartbeat))
            }
            Some(&WHOLE) => match self.length_at(1)? {
                Some(length) => self.whole(1 + LENGTH, length).map(Some).or_else(wait),
                None => Ok(None),
            },
            Some(&ENTRIES) => self.entries(),
            Some(kind) => Err(format!("an append frame of unknown kind {kind}")),
        }
    }

    fn length_at(&self, at: usize) -> Result<Option<usize>, String> {
        let Some(bytes) = self.buffer.get(at..at + LENGTH) else {
            return Ok(None);
        };
        let mut bytes = bytes;
        match bytes.get_u64() {
            length if length > MAX_FRAME_BYTES => Err(format!("a frame of {length} bytes")),
            length => Ok(Some(length as usize)),
        }
    }

    fn whole(&mut self, head: usize, length: usize) -> Result<Frame, Incomplete> {
        if self.buffer.len() < head + length {
            return Err(Incomplete::More);
        }
        self.buffer.advance(head);
        let body = self.buffer.split_to(length).freeze();
        let message = Message::decode(body).map_err(|error| Incomplete::Bad(error.to_string()))?;
        if self.stream == Stream::Append {
            self.term = message.log_term.unwrap_or_default();
            self.index = message.index.unwrap_or_default();
            if let Some(last) = message.entries.last() {
                self.term = last.term.unwrap_or_default();
                self.index = last.index.unwrap_or_default();
            }
        }
        Ok(Frame::Message(Box::new(message)))
    }

    /// Entries that follow on the last frame, then the commit index.
    fn entries(&mut self) -> Result<Option<Frame>, String> {
        let Some(count) = self.length_at(1)? else {
            return Ok(None);
        };
        let mut at = 1 + LENGTH;
        let mut entries = Vec::new();
        for _ in 0..count {
            let Some(length) = self.length_at(at)? else {
                return Ok(None);
            };
            at += LENGTH;
            let Some(body) = self.buffer.get(at..at + length) else {
                return Ok(None);
            };
            entries.push(Entry::decode(body).map_err(|error| error.to_string())?);
            at += length;
        }
        let Some(mut commit) = self.buffer.get(at..at + LENGTH) else {
            return Ok(None);
        };
        let commit = commit.get_u64();
        self.buffer.advance(at + LENGTH);
        let message = Message {
            r#type: Some(MessageType::MsgApp as i32),
            from: Some(self.from),
            to: Some(self.to),
            term: Some(self.term),
            log_term: Some(self.term),
            index: Some(self.index),
            commit: Some(commit),
            entries,
            ..Message::default()
        };
        if let Some(last) = message.entries.last() {
            self.index = last.index.unwrap_or_default();
        }
        Ok(Some(Frame::Message(Box::new(message))))
    }
}

enum Frame {
    Message(Box<Message>),
    Heartbeat,
}

enum Incomplete {
    More,
    Bad(String),
}

/// An incomplete frame waits; a bad one ends the stream.
fn wait(incomplete: Incomplete) -> Result<Option<Frame>, String> {
    match incomplete {
        Incomplete::More => Ok(None),
        Incomplete::Bad(error) => Err(error),
    }
}

/// The message stream's link heartbeat: a heartbeat from nobody.
fn is_heartbeat(message: &Message) -> bool {
    message.r#type == Some(MessageType::MsgHeartbeat as i32)
        && message.from.unwrap_or_default() == 0
        && message.to.unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(term: u64, index: u64, entries: &[(u64, u64)], commit: u64) -> Message {
        Message {
            r#type: Some(MessageType::MsgApp as i32),
            from: Some(2),
            to: Some(1),
            term: Some(term),
            log_term: Some(term),
            index: Some(index),
            commit: Some(commit),
            entries: entries
                .iter()
                .map(|(term, index)| Entry {
                    r#type: Some(0),
                    term: Some(*term),
                    index: Some(*index),
                    data: Some("data".into()),
                })
                .collect(),
            ..Message::default()
        }
    }

    #[test]
    fn messages_come_through_in_any_pieces() {
        for stream in Stream::BOTH {
            let messages = [append(3, 7, &[(3, 8), (3, 9)], 7), append(3, 9, &[], 9)];
            let mut bytes = stream.heartbeat().to_vec();
            for message in &messages {
                bytes.extend(stream.encode(message));
                bytes.extend(stream.heartbeat());
            }
            for piece in [1, 2, 7, 1000] {
                let mut decoder = Decoder::new(stream, 1, 2);
                let mut found = Vec::new();
                for piece in bytes.chunks(piece) {
                    found.extend(decoder.feed(piece).unwrap());
                }
                assert_eq!(found, messages, "{stream:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn entries_go_on_where_the_last_frame_ended() {
        let first = append(3, 7, &[(3, 8)], 7);
        let second = append(3, 8, &[(3, 9), (3, 10)], 8);
        let mut bytes = Stream::Append.encode(&first).to_vec();
        bytes.push(ENTRIES);
        bytes.extend(2u64.to_be_bytes());
        for entry in &second.entries {
            let entry = entry.encode_to_vec();
            bytes.extend((entry.len() as u64).to_be_bytes());
            bytes.extend(entry);
        }
        bytes.extend(8u64.to_be_bytes());
        for piece in [1, 5, 1000] {
            let mut decoder = Decoder::new(Stream::Append, 1, 2);
            let mut found = Vec::new();
            for piece in bytes.chunks(piece) {
                found.extend(decoder.feed(piece).unwrap());
            }
            assert_eq!(found, [first.clone(), second.clone()]);
        }
    }

    #[test]
    fn the_link_heartbeat_is_etcds() {
        let heartbeat = Stream::Message.heartbeat();
        assert_eq!(&heartbeat[..], b"\0\0\0\0\0\0\0\x02\x08\x08");
        assert_eq!(&Stream::Append.heartbeat()[..], b"\0");
    }

    #[test]
    fn what_is_no_frame_ends_the_stream() {
        let check = |stream, bytes: &[u8]| {
            let mut decoder = Decoder::new(stream, 1, 2);
            assert!(decoder.feed(bytes).is_err(), "{bytes:?}");
        };
        check(Stream::Append, b"\x07");
        check(Stream::Message, b"\xff\xff\xff\xff\xff\xff\xff\xff");
        check(Stream::Message, b"\0\0\0\0\0\0\0\x02\xff\xff");
        check(Stream::Append, b"\x02\0\0\0\0\0\0\0\x01\xff");
    }
}
