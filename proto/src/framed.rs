//! Answers of a server whose repeated part is encoded already: the store keeps KeyValues as they
//! stand on the wire, so a list or an event is copied into its answer and never taken apart. What
//! a client receives are the bytes of `etcdserverpb`'s messages of the same names.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

use crate::{
    etcdserverpb::{self, ResponseHeader},
    mvccpb::{self, event::EventType},
};

/// The number of `RangeResponse.kvs`.
const KVS: u32 = 2;
/// The number of `WatchResponse.events`.
const EVENTS: u32 = 11;
/// The numbers of `Event.type`, `Event.kv` and `Event.prev_kv`.
const EVENT_TYPE: u32 = 1;
const EVENT_KV: u32 = 2;
const EVENT_PREV_KV: u32 = 3;

/// The KeyValues of a [`RangeResponse`].
pub type KeyValues = Framed<KVS>;
/// The events of a [`WatchResponse`].
pub type Events = Framed<EVENTS>;

/// The encoded messages of the repeated field `FIELD`, each behind its tag and its length. Clones
/// share the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framed<const FIELD: u32> {
    bytes: Bytes,
    count: usize,
}

/// Gathers the KeyValues of a [`RangeResponse`].
pub type GatherKeyValues = Gather<KVS>;
/// Gathers the events of a [`WatchResponse`].
pub type GatherEvents = Gather<EVENTS>;

/// Gathers a [`Framed`].
#[derive(Debug, Default)]
pub struct Gather<const FIELD: u32> {
    bytes: BytesMut,
    count: usize,
}

/// `etcdserverpb.RangeResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeResponse {
    /// Who answers, and at which revision.
    pub header: Option<ResponseHeader>,
    /// What was found, in the order asked for.
    pub kvs: KeyValues,
    /// Whether there are more keys than the request's limit.
    pub more: bool,
    /// How many keys the range has.
    pub count: i64,
}

/// `etcdserverpb.WatchResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchResponse {
    /// Who answers, and the revision up to which the watcher has everything.
    pub header: Option<ResponseHeader>,
    /// Which watcher; -1 for none or all of the stream.
    pub watch_id: i64,
    /// Whether this answers a request to watch.
    pub created: bool,
    /// Whether the watcher is gone.
    pub canceled: bool,
    /// The oldest revision that can still be watched, when the watcher asked for an older one.
    pub compact_revision: i64,
    /// Why it is gone.
    pub cancel_reason: String,
    /// Whether more of the same revisions follow.
    pub fragment: bool,
    /// What happened.
    pub events: Events,
}

impl<const FIELD: u32> Framed<FIELD> {
    /// How many messages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bytes of all of them, with tags and lengths.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn encode(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.bytes);
    }

    /// Adds one received message.
    fn merge(
        &mut self,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut message = Bytes::new();
        encoding::bytes::merge(wire_type, &mut message, buf, ctx)?;
        let mut gather = Gather {
            bytes: std::mem::take(&mut self.bytes).into(),
            count: self.count,
        };
        gather.push(&message);
        *self = gather.done();
        Ok(())
    }
}

impl<const FIELD: u32> Gather<FIELD> {
    /// Makes room for so many bytes at once.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// How many messages there are yet.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bytes of all of them yet.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an encoded message.
    pub fn push(&mut self, encoded: &[u8]) {
        self.begin(encoded.len());
        self.bytes.put_slice(encoded);
    }

    /// What was gathered.
    pub fn done(self) -> Framed<FIELD> {
        Framed {
            bytes: self.bytes.freeze(),
            count: self.count,
        }
    }

    fn begin(&mut self, length: usize) {
        encoding::encode_key(FIELD, WireType::LengthDelimited, &mut self.bytes);
        encoding::encode_varint(length as u64, &mut self.bytes);
        self.count += 1;
    }
}

impl GatherEvents {
    /// Adds an event of encoded KeyValues.
    pub fn push_event(&mut self, kind: EventType, kv: &[u8], prev_kv: Option<&[u8]>) {
        self.begin(event_len(kind, kv, prev_kv));
        let kind = kind as i32;
        if kind != 0 {
            encoding::int32::encode(EVENT_TYPE, &kind, &mut self.bytes);
        }
        self.put_field(EVENT_KV, kv);
        if let Some(prev) = prev_kv {
            self.put_field(EVENT_PREV_KV, prev);
        }
    }

    fn put_field(&mut self, field: u32, encoded: &[u8]) {
        encoding::encode_key(field, WireType::LengthDelimited, &mut self.bytes);
        encoding::encode_varint(encoded.len() as u64, &mut self.bytes);
        self.bytes.put_slice(encoded);
    }
}

/// What [`GatherEvents::push_event`] adds.
pub fn event_bytes(kind: EventType, kv: &[u8], prev_kv: Option<&[u8]>) -> usize {
    field_bytes(EVENTS, event_len(kind, kv, prev_kv))
}

fn event_len(kind: EventType, kv: &[u8], prev_kv: Option<&[u8]>) -> usize {
    let mut length = field_bytes(EVENT_KV, kv.len());
    length += prev_kv.map_or(0, |prev| field_bytes(EVENT_PREV_KV, prev.len()));
    let kind = kind as i32;
    if kind != 0 {
        length += encoding::int32::encoded_len(EVENT_TYPE, &kind);
    }
    length
}

/// What a field of so many bytes takes.
fn field_bytes(field: u32, length: usize) -> usize {
    encoding::key_len(field) + encoding::encoded_len_varint(length as u64) + length
}

fn gathered<'a, const FIELD: u32, M: Message + 'a>(
    messages: impl IntoIterator<Item = &'a M>,
) -> Framed<FIELD> {
    let mut gather = Gather::default();
    for message in messages {
        let length = message.encoded_len();
        gather.reserve(field_bytes(FIELD, length));
        gather.begin(length);
        message.encode_raw(&mut gather.bytes);
    }
    gather.done()
}

impl<'a> FromIterator<&'a mvccpb::KeyValue> for KeyValues {
    fn from_iter<I: IntoIterator<Item = &'a mvccpb::KeyValue>>(kvs: I) -> Self {
        gathered(kvs)
    }
}

impl<'a> FromIterator<&'a mvccpb::Event> for Events {
    fn from_iter<I: IntoIterator<Item = &'a mvccpb::Event>>(events: I) -> Self {
        gathered(events)
    }
}

impl From<etcdserverpb::RangeResponse> for RangeResponse {
    fn from(response: etcdserverpb::RangeResponse) -> Self {
        Self {
            header: response.header,
            kvs: response.kvs.iter().collect(),
            more: response.more,
            count: response.count,
        }
    }
}

impl Message for RangeResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(header) = &self.header {
            encoding::message::encode(1, header, buf);
        }
        self.kvs.encode(buf);
        if self.more {
            encoding::bool::encode(3, &self.more, buf);
        }
        if self.count != 0 {
            encoding::int64::encode(4, &self.count, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => {
                let header = self.header.get_or_insert_default();
                encoding::message::merge(wire_type, header, buf, ctx)
            }
            KVS => self.kvs.merge(wire_type, buf, ctx),
            3 => encoding::bool::merge(wire_type, &mut self.more, buf, ctx),
            4 => encoding::int64::merge(wire_type, &mut self.count, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let mut length = self.kvs.byte_len();
        if let Some(header) = &self.header {
            length += encoding::message::encoded_len(1, header);
        }
        if self.more {
            length += encoding::bool::encoded_len(3, &self.more);
        }
        if self.count != 0 {
            length += encoding::int64::encoded_len(4, &self.count);
        }
        length
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Message for WatchResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(header) = &self.header {
            encoding::message::encode(1, header, buf);
        }
        if self.watch_id != 0 {
            encoding::int64::encode(2, &self.watch_id, buf);
        }
        for (field, flag) in [(3, self.created), (4, self.canceled)] {
            if flag {
                encoding::bool::encode(field, &flag, buf);
            }
        }
        if self.compact_revision != 0 {
            encoding::int64::encode(5, &self.compact_revision, buf);
        }
        if !self.cancel_reason.is_empty() {
            encoding::string::encode(6, &self.cancel_reason, buf);
        }
        if self.fragment {
            encoding::bool::encode(7, &self.fragment, buf);
        }
        self.events.encode(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => {
                let header = self.header.get_or_insert_default();
                encoding::message::merge(wire_type, header, buf, ctx)
            }
            2 => encoding::int64::merge(wire_type, &mut self.watch_id, buf, ctx),
            3 => encoding::bool::merge(wire_type, &mut self.created, buf, ctx),
            4 => encoding::bool::merge(wire_type, &mut self.canceled, buf, ctx),
            5 => encoding::int64::merge(wire_type, &mut self.compact_revision, buf, ctx),
            6 => encoding::string::merge(wire_type, &mut self.cancel_reason, buf, ctx),
            7 => encoding::bool::merge(wire_type, &mut self.fragment, buf, ctx),
            EVENTS => self.events.merge(wire_type, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let mut length = self.events.byte_len();
        if let Some(header) = &self.header {
            length += encoding::message::encoded_len(1, header);
        }
        if self.watch_id != 0 {
            length += encoding::int64::encoded_len(2, &self.watch_id);
        }
        for (field, flag) in [(3, self.created), (4, self.canceled), (7, self.fragment)] {
            if flag {
                length += encoding::bool::encoded_len(field, &flag);
            }
        }
        if self.compact_revision != 0 {
            length += encoding::int64::encoded_len(5, &self.compact_revision);
        }
        if !self.cancel_reason.is_empty() {
            length += encoding::string::encoded_len(6, &self.cancel_reason);
        }
        length
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fmt::Debug;

    use super::*;

    fn kv(key: &'static str, value: usize) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: key.into(),
            create_revision: 2,
            mod_revision: 300,
            version: 4,
            value: vec![7; value].into(),
            lease: -1,
        }
    }

    fn header() -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: u64::MAX,
            member_id: 1,
            revision: 7,
            raft_term: 2,
        })
    }

    /// The framed message has the bytes of the plain one, and is read back from them.
    fn check<P, F>(plain: &P, framed: &F)
    where
        P: Message + Default + PartialEq + Debug,
        F: Message + Default + PartialEq + Debug,
    {
        let bytes = plain.encode_to_vec();
        assert_eq!(framed.encode_to_vec(), bytes);
        assert_eq!(framed.encoded_len(), bytes.len());
        assert_eq!(&F::decode(&bytes[..]).unwrap(), framed);
        let cut = &bytes[..bytes.len().saturating_sub(1)];
        assert_eq!(F::decode(cut).is_err(), !bytes.is_empty());
    }

    #[test]
    fn ranges_have_the_bytes_of_plain_ones() {
        let lists = [vec![], vec![kv("", 0)], vec![kv("a", 1), kv("b", 300)]];
        for kvs in lists {
            for (header, more, count) in [(None, false, 0), (header(), true, -1)] {
                let plain = etcdserverpb::RangeResponse {
                    header,
                    kvs: kvs.clone(),
                    more,
                    count,
                };
                let framed = RangeResponse::from(plain.clone());
                assert_eq!(framed.kvs.count(), kvs.len());
                check(&plain, &framed);
            }
        }
    }

    #[test]
    fn watch_responses_have_the_bytes_of_plain_ones() {
        let event = |kind: EventType, prev_kv: Option<mvccpb::KeyValue>| mvccpb::Event {
            r#type: kind as i32,
            kv: Some(kv("a", 200)),
            prev_kv,
        };
        let events = vec![
            event(EventType::Put, None),
            event(EventType::Put, Some(kv("a", 3))),
            event(EventType::Delete, Some(kv("", 0))),
            event(EventType::Delete, None),
        ];
        let mut gather = GatherEvents::default();
        for event in &events {
            let kind = event.r#type();
            let encode = |kv: &Option<mvccpb::KeyValue>| kv.as_ref().map(Message::encode_to_vec);
            let prev = encode(&event.prev_kv);
            let kv = encode(&event.kv).unwrap();
            let before = gather.byte_len();
            gather.push_event(kind, &kv, prev.as_deref());
            let added = gather.byte_len() - before;
            assert_eq!(added, event_bytes(kind, &kv, prev.as_deref()));
        }
        let gathered = gather.done();
        assert_eq!(gathered, events.iter().collect());
        for (header, flag, number, reason) in [(None, false, 0, ""), (header(), true, -1, "gone")] {
            let plain = etcdserverpb::WatchResponse {
                header,
                watch_id: number,
                created: flag,
                canceled: flag,
                compact_revision: number,
                cancel_reason: reason.to_owned(),
                fragment: flag,
                events: events.clone(),
            };
            let framed = WatchResponse {
                header,
                watch_id: number,
                created: flag,
                canceled: flag,
                compact_revision: number,
                cancel_reason: reason.to_owned(),
                fragment: flag,
                events: gathered.clone(),
            };
            check(&plain, &framed);
        }
    }
}
