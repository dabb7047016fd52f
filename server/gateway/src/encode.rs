//! From messages to JSON, as Go's protojson writes it with etcd's options: names as in the .proto
//! files, numbers of 64 bits as strings, bytes in base64, and nothing that has its default.

use std::fmt::Write;

use base64::{Engine, prelude::BASE64_STANDARD};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

/// Writes messages into a text.
pub(crate) struct Encoder {
    pub out: String,
    /// Whether characters are escaped that mean something in HTML: Go does so in streams.
    pub html: bool,
}

impl Encoder {
    pub fn new(html: bool) -> Self {
        Self {
            out: String::new(),
            html,
        }
    }

    /// Fields come in the order of their numbers, which is that of the .proto files.
    pub fn message(&mut self, message: &DynamicMessage) {
        self.out.push('{');
        let mut first = true;
        for field in message.descriptor().fields() {
            if !message.has_field(&field) {
                continue;
            }
            if !std::mem::take(&mut first) {
                self.out.push(',');
            }
            self.name(field.name());
            match &*message.get_field(&field) {
                Value::List(values) => self.list(&field, values),
                value => self.value(&field, value),
            }
        }
        self.out.push('}');
    }

    fn list(&mut self, field: &FieldDescriptor, values: &[Value]) {
        self.out.push('[');
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                self.out.push(',');
            }
            self.value(field, value);
        }
        self.out.push(']');
    }

    fn value(&mut self, field: &FieldDescriptor, value: &Value) {
        // Writing into a string cannot fail.
        let _ = match value {
            Value::Bool(value) => write!(self.out, "{value}"),
            Value::I32(value) => write!(self.out, "{value}"),
            Value::U32(value) => write!(self.out, "{value}"),
            Value::I64(value) => write!(self.out, "\"{value}\""),
            Value::U64(value) => write!(self.out, "\"{value}\""),
            Value::Bytes(bytes) => {
                self.out.push('"');
                BASE64_STANDARD.encode_string(bytes, &mut self.out);
                self.out.push('"');
                Ok(())
            }
            Value::String(text) => {
                self.text(text);
                Ok(())
            }
            Value::EnumNumber(number) => {
                let known = match field.kind() {
                    Kind::Enum(values) => values.get_value(*number),
                    _ => None,
                };
                match known {
                    Some(known) => write!(self.out, "\"{}\"", known.name()),
                    None => write!(self.out, "{number}"),
                }
            }
            Value::Message(message) => {
                self.message(message);
                Ok(())
            }
            // No answer has any of these, which a test looks at.
            Value::F32(_) | Value::F64(_) | Value::List(_) | Value::Map(_) => {
                write!(self.out, "null")
            }
        };
    }

    /// A name in an object, with its colon.
    pub fn name(&mut self, name: &str) {
        self.out.push('"');
        self.out.push_str(name);
        self.out.push_str("\":");
    }

    /// A string.
    pub fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            // Writing into a string cannot fail.
            let _ = match character {
                '"' => write!(self.out, "\\\""),
                '\\' => write!(self.out, "\\\\"),
                '\u{8}' => write!(self.out, "\\b"),
                '\u{c}' => write!(self.out, "\\f"),
                '\n' => write!(self.out, "\\n"),
                '\r' => write!(self.out, "\\r"),
                '\t' => write!(self.out, "\\t"),
                '\0'..' ' => write!(self.out, "\\u{:04x}", u32::from(character)),
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' if self.html => {
                    write!(self.out, "\\u{:04x}", u32::from(character))
                }
                character => {
                    self.out.push(character);
                    Ok(())
                }
            };
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;
    use prost_reflect::DescriptorPool;
    use proto::{
        etcdserverpb::{AlarmMember, AlarmResponse, RangeResponse, ResponseHeader, WatchResponse},
        mvccpb::{Event, KeyValue, event::EventType},
    };

    use super::*;

    fn write<M: Message>(name: &str, message: &M, html: bool) -> String {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
        let descriptor = pool.get_message_by_name(&format!("etcdserverpb.{name}"));
        let bytes = Bytes::from(message.encode_to_vec());
        let message = DynamicMessage::decode(descriptor.unwrap(), bytes).unwrap();
        let mut encoder = Encoder::new(html);
        encoder.message(&message);
        encoder.out
    }

    #[test]
    fn a_range_is_written_as_etcd_does() {
        let response = RangeResponse {
            header: Some(ResponseHeader {
                cluster_id: u64::MAX,
                revision: 2,
                ..ResponseHeader::default()
            }),
            kvs: vec![
                KeyValue {
                    key: "foo".into(),
                    value: Bytes::from_static(b"\xfb\xff"),
                    lease: -1,
                    ..KeyValue::default()
                },
                KeyValue::default(),
            ],
            more: true,
            count: 3,
        };
        let expected = concat!(
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"2"},"#,
            r#""kvs":[{"key":"Zm9v","value":"+/8=","lease":"-1"},{}],"more":true,"count":"3"}"#
        );
        assert_eq!(write("RangeResponse", &response, false), expected);
    }

    #[test]
    fn names_of_enums_are_written_and_zeros_are_not() {
        let event = |kind| Event {
            r#type: kind,
            kv: Some(KeyValue::default()),
            prev_kv: None,
        };
        let response = WatchResponse {
            cancel_reason: "a<b\u{2028}\"\u{1}\n".to_owned(),
            events: vec![
                event(EventType::Put as i32),
                event(EventType::Delete as i32),
                event(9),
            ],
            ..WatchResponse::default()
        };
        let events = r#""events":[{"kv":{}},{"type":"DELETE","kv":{}},{"type":9,"kv":{}}]}"#;
        assert_eq!(
            write("WatchResponse", &response, true),
            format!("{{\"cancel_reason\":\"a\\u003cb\\u2028\\\"\\u0001\\n\",{events}")
        );
        assert_eq!(
            write("WatchResponse", &response, false),
            format!("{{\"cancel_reason\":\"a<b\u{2028}\\\"\\u0001\\n\",{events}")
        );
        let alarms = AlarmResponse {
            header: None,
            alarms: vec![AlarmMember {
                member_id: 5,
                alarm: 1,
            }],
        };
        let expected = r#"{"alarms":[{"memberID":"5","alarm":"NOSPACE"}]}"#;
        assert_eq!(write("AlarmResponse", &alarms, false), expected);
    }

    #[test]
    fn all_answers_have_only_kinds_that_are_written_in_the_order_of_their_files() {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
        for (path, method) in crate::paths::methods(&pool).unwrap() {
            let mut left = vec![method.output];
            let mut seen = Vec::new();
            while let Some(message) = left.pop() {
                if seen.contains(&message.full_name().to_owned()) {
                    continue;
                }
                seen.push(message.full_name().to_owned());
                let fields = &message.descriptor_proto().field;
                let numbers: Vec<i32> = fields.iter().map(|field| field.number()).collect();
                assert!(numbers.is_sorted(), "{path}: {message:?}");
                for field in message.fields() {
                    assert!(!field.is_map(), "{path}: {field:?}");
                    match field.kind() {
                        Kind::Message(message) => left.push(message),
                        Kind::Float | Kind::Double => panic!("{path}: {field:?}"),
                        _ => {}
                    }
                }
            }
        }
    }
}
