//! From JSON to the bytes of a message, by the rules and in the words of Go's protojson.
//!
//! What comes here is one whole JSON value already, so structure needs no checks; what strings
//! hold does.

use base64::{
    Engine,
    alphabet::{Alphabet, STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::Error;

/// Messages within each other, at most: what the library behind the services takes.
const MAX_MESSAGES: usize = 100;
/// Containers within each other in what is skipped, as in protojson.
const MAX_SKIPPED: usize = 10_000;
/// Digits of the largest number.
const MAX_DIGITS: i64 = 20;

/// Turns one JSON value into a message's bytes.
///
/// # Errors
/// When the value is not such a message.
pub(crate) fn decode(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Error> {
    let mut decoder = Decoder { json, at: 0 };
    let mut out = Vec::with_capacity(json.len());
    decoder
        .message(message, MAX_MESSAGES, &mut out)
        .map_err(Error::Message)?;
    Ok(out)
}

struct Decoder<'a> {
    json: &'a [u8],
    at: usize,
}

/// A token; strings are told apart from names by where they stand.
struct Token<'a> {
    at: usize,
    raw: &'a [u8],
    kind: TokenKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenKind {
    Null,
    Bool(bool),
    Number,
    Text(String),
    Open(u8),
    Close,
    End,
}

impl Token<'_> {
    fn text(&self) -> String {
        String::from_utf8_lossy(self.raw).into_owned()
    }
}

impl<'a> Decoder<'a> {
    fn message(
        &mut self,
        message: &MessageDescriptor,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err("exceeded max recursion depth".to_owned());
        };
        let open = self.token()?;
        if open.kind != TokenKind::Open(b'{') {
            return Err(self.unexpected(&open));
        }
        let mut seen: Vec<u32> = Vec::new();
        let mut oneofs: Vec<String> = Vec::new();
        loop {
            let name = self.token()?;
            let text = match &name.kind {
                TokenKind::Text(text) => text,
                TokenKind::Close => return Ok(()),
                _ => return Err(self.unexpected(&name)),
            };
            let field = message.get_field_by_json_name(text);
            let Some(field) = field.or_else(|| message.get_field_by_name(text)) else {
                self.skip()?;
                continue;
            };
            if seen.contains(&field.number()) {
                return Err(self.wrong(name.at, &format!("duplicate field {}", name.text())));
            }
            seen.push(field.number());
            if self.next_is(b'n') {
                self.token()?;
                continue;
            }
            if field.is_list() {
                self.list(&field, depth, out)?;
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                let full_name = oneof.full_name().to_owned();
                if oneofs.contains(&full_name) {
                    let name_text = name.text();
                    let problem =
                        format!("error parsing {name_text}, oneof {full_name} is already set");
                    return Err(self.wrong(name.at, &problem));
                }
                oneofs.push(full_name);
            }
            self.value(&field, depth, out)?;
        }
    }

    fn list(
        &mut self,
        field: &FieldDescriptor,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let open = self.token()?;
        if open.kind != TokenKind::Open(b'[') {
            return Err(self.unexpected(&open));
        }
        while !self.next_is(b']') {
            self.value(field, depth, out)?;
        }
        self.token().map(drop)
    }

    /// One value of a field, with its key before it.
    fn value(
        &mut self,
        field: &FieldDescriptor,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let number = field.number();
        if let Kind::Message(message) = field.kind() {
            let mut nested = Vec::new();
            self.message(&message, depth, &mut nested)?;
            encode_bytes(number, &nested, out);
            return Ok(());
        }
        let token = self.token()?;
        let varint = |value: Option<u64>, out: &mut Vec<u8>| {
            let value = value?;
            encode_key(number, WireType::Varint, out);
            encode_varint(value, out);
            Some(())
        };
        let (kind, taken) = match field.kind() {
            Kind::Bool => match token.kind {
                TokenKind::Bool(value) => ("bool", varint(Some(u64::from(value)), out)),
                _ => ("bool", None),
            },
            // Negative numbers of 32 bits are ten bytes on the wire as well.
            Kind::Int32 => {
                let value = integer(&token).and_then(|n| i32::try_from(n).ok());
                ("int32", varint(value.map(|n| i64::from(n) as u64), out))
            }
            Kind::Int64 => {
                let value = integer(&token).and_then(|n| i64::try_from(n).ok());
                ("int64", varint(value.map(|n| n as u64), out))
            }
            Kind::Uint32 => {
                let value = integer(&token).and_then(|n| u32::try_from(n).ok());
                ("uint32", varint(value.map(u64::from), out))
            }
            Kind::Uint64 => {
                let value = integer(&token).and_then(|n| u64::try_from(n).ok());
                ("uint64", varint(value, out))
            }
            Kind::String => match &token.kind {
                TokenKind::Text(text) => {
                    encode_bytes(number, text.as_bytes(), out);
                    ("string", Some(()))
                }
                _ => ("string", None),
            },
            Kind::Bytes => match &token.kind {
                TokenKind::Text(text) => {
                    let bytes = base64(text);
                    let taken = bytes.map(|bytes| encode_bytes(number, &bytes, out));
                    ("bytes", taken)
                }
                _ => ("bytes", None),
            },
            Kind::Enum(values) => match &token.kind {
                TokenKind::Text(name) => {
                    // A name that is not known is left out, as every unknown field is.
                    let known = values.get_value_by_name(name);
                    let value = known.map(|value| i64::from(value.number()) as u64);
                    varint(value, out);
                    ("enum", Some(()))
                }
                TokenKind::Number => {
                    let value = integer(&token).and_then(|n| i32::try_from(n).ok());
                    ("enum", varint(value.map(|n| i64::from(n) as u64), out))
                }
                _ => ("enum", None),
            },
            // None of etcd's requests has any of the others, which a test looks at.
            other => {
                let name = field.json_name();
                return Err(format!("field {name}: no support for {other:?}"));
            }
        };
        taken.ok_or_else(|| {
            let (name, text) = (field.json_name(), token.text());
            let problem = format!("invalid value for {kind} field {name}: {text}");
            self.wrong(token.at, &problem)
        })
    }

    /// Reads one value over.
    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            match self.token()?.kind {
                TokenKind::Open(_) => {
                    open += 1;
                    if open > MAX_SKIPPED {
                        return Err("exceeded max recursion depth".to_owned());
                    }
                }
                TokenKind::Close => open = open.saturating_sub(1),
                TokenKind::End => return Ok(()),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// The next token. Commas and colons stand where they must, so they are read over.
    fn token(&mut self) -> Result<Token<'a>, String> {
        self.space();
        let at = self.at;
        let rest = &self.json[at..];
        let (length, kind) = match rest.first() {
            None => (0, TokenKind::End),
            Some(b'n') => (4, TokenKind::Null),
            Some(b't') => (4, TokenKind::Bool(true)),
            Some(b'f') => (5, TokenKind::Bool(false)),
            Some(&open @ (b'{' | b'[')) => (1, TokenKind::Open(open)),
            Some(b'}' | b']') => (1, TokenKind::Close),
            Some(b'"') => {
                let (text, length) = self.text(rest)?;
                (length, TokenKind::Text(text))
            }
            Some(_) => (number_length(rest), TokenKind::Number),
        };
        let length = length.min(rest.len());
        self.at += length;
        let raw = &rest[..length];
        Ok(Token { at, raw, kind })
    }

    fn next_is(&mut self, byte: u8) -> bool {
        self.space();
        self.json.get(self.at) == Some(&byte)
    }

    fn space(&mut self) {
        let rest = &self.json[self.at..];
        let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':');
        self.at += rest.iter().take_while(|byte| space(byte)).count();
    }

    /// What a string says, and how long it is with its quotes.
    fn text(&self, raw: &[u8]) -> Result<(String, usize), String> {
        let mut text = Vec::new();
        let mut rest = &raw[1..];
        loop {
            let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\'));
            let (plain, behind) = rest.split_at(plain.count());
            text.extend_from_slice(plain);
            let escaped = match behind {
                [b'"', ..] => {
                    let length = raw.len() - behind.len() + 1;
                    let text = String::from_utf8(text)
                        .map_err(|_| self.syntax(self.at, "invalid UTF-8 in string"))?;
                    return Ok((text, length));
                }
                [b'\\', b'u', ..] => {
                    let (character, length) = self.unicode(behind)?;
                    text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    rest = &behind[length..];
                    continue;
                }
                [b'\\', escaped, ..] => *escaped,
                _ => return Err(end()),
            };
            text.push(match escaped {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            rest = &behind[2..];
        }
    }

    /// The character of `\uXXXX`, or of two of them, and how long they are.
    fn unicode(&self, escape: &[u8]) -> Result<(char, usize), String> {
        let unit = |escape: &[u8]| -> Option<u16> {
            let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?.get(..4)?).ok()?;
            u16::from_str_radix(digits, 16).ok()
        };
        let first = unit(escape).ok_or_else(end)?;
        let second = unit(&escape[6..]);
        let units = std::iter::once(first).chain(second);
        match char::decode_utf16(units).next() {
            Some(Ok(character)) => Ok((character, character.len_utf16() * 6)),
            _ => {
                // The second one is looked for in all that comes, as in protojson.
                let behind = escape[6..].get(..6).ok_or_else(end)?;
                let behind = String::from_utf8_lossy(behind);
                let problem = format!("invalid escape code {behind:?} in string");
                Err(self.syntax(self.at, &problem))
            }
        }
    }

    fn unexpected(&self, token: &Token<'_>) -> String {
        let text = token.text();
        self.syntax(token.at, &format!("unexpected token {text}"))
    }

    fn syntax(&self, at: usize, problem: &str) -> String {
        let (line, column) = self.position(at);
        format!("syntax error (line {line}:{column}): {problem}")
    }

    fn wrong(&self, at: usize, problem: &str) -> String {
        let (line, column) = self.position(at);
        format!("(line {line}:{column}): {problem}")
    }

    /// Line and column, from 1, in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.json[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count();
        let begin = before.iter().rposition(|byte| *byte == b'\n');
        let begin = begin.map_or(0, |newline| newline + 1);
        let column = String::from_utf8_lossy(&before[begin..]).chars().count();
        (line + 1, column + 1)
    }
}

fn end() -> String {
    "unexpected EOF".to_owned()
}

fn encode_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Takes both alphabets, with or without padding, and no check of the last bits, as protojson does.
fn base64(text: &str) -> Option<Vec<u8>> {
    let alphabet: &Alphabet = match text.contains(['-', '_']) {
        true => &URL_SAFE,
        false => &STANDARD,
    };
    let padding = match text.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(padding);
    // Go's decoder reads line ends over.
    let lines = text.contains(['\r', '\n']);
    let text = match lines {
        true => &text.replace(['\r', '\n'], ""),
        false => text,
    };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

/// A whole number, written as one or in a string.
fn integer(token: &Token<'_>) -> Option<i128> {
    match &token.kind {
        TokenKind::Number => whole(token.raw),
        TokenKind::Text(text) => {
            let raw = text.as_bytes();
            if text.trim() != text || !raw.first().is_some_and(begins_number) {
                return None;
            }
            let (number, behind) = raw.split_at(number_length(raw));
            // As in protojson what is behind a number and cannot be part of one does not count.
            let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-+._".contains(byte);
            let well_formed = is_number(number) && !behind.first().is_some_and(part);
            well_formed.then(|| whole(number))?
        }
        _ => None,
    }
}

fn begins_number(byte: &u8) -> bool {
    byte.is_ascii_digit() || *byte == b'-'
}

fn number_length(raw: &[u8]) -> usize {
    let part = |byte: &&u8| byte.is_ascii_digit() || b"-+.eE".contains(byte);
    raw.iter().take_while(part).count()
}

/// Whether these bytes are a number by JSON's grammar.
fn is_number(raw: &[u8]) -> bool {
    let digits = |raw: &[u8]| raw.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = raw.strip_prefix(b"-").unwrap_or(raw);
    rest = match rest.first() {
        Some(b'0') => &rest[1..],
        Some(b'1'..=b'9') => &rest[digits(rest)..],
        _ => return false,
    };
    if let Some(fraction) = rest.strip_prefix(b".") {
        match digits(fraction) {
            0 => return false,
            length => rest = &fraction[length..],
        }
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = match exponent {
            [b'+' | b'-', digits @ ..] => digits,
            digits => digits,
        };
        match digits(exponent) {
            0 => return false,
            length => rest = &exponent[length..],
        }
    }
    rest.is_empty()
}

/// The value of a number that is whole; `1e2` and `10.0` are.
fn whole(raw: &[u8]) -> Option<i128> {
    let text = std::str::from_utf8(raw).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (int, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (int, fraction) = (
        int.strip_prefix('0').unwrap_or(int),
        fraction.trim_end_matches('0'),
    );
    if int.is_empty() && fraction.is_empty() {
        return Some(0);
    }
    let exponent = i64::from(exponent);
    let digits = match exponent >= 0 {
        true => {
            let zeros = exponent - fraction.len() as i64;
            if zeros < 0 || int.len() as i64 + exponent > MAX_DIGITS {
                return None;
            }
            format!("{int}{fraction}{}", "0".repeat(zeros as usize))
        }
        false => {
            let kept = usize::try_from(int.len() as i64 + exponent).ok()?;
            let dropped = &int[kept..];
            if !fraction.is_empty() || dropped.bytes().any(|digit| digit != b'0') {
                return None;
            }
            int[..kept].to_owned()
        }
    };
    let value: i128 = digits.parse().ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::DescriptorPool;
    use proto::etcdserverpb::{
        Compare, PutRequest, RangeRequest, TxnRequest, WatchRequest, compare::TargetUnion,
        request_op::Request, watch_request::RequestUnion,
    };

    use super::*;

    fn descriptor(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
        let name = format!("etcdserverpb.{name}");
        pool.get_message_by_name(&name).unwrap()
    }

    fn read<M: Message + Default>(name: &str, json: &str) -> Result<M, String> {
        let bytes = decode(json.as_bytes(), &descriptor(name)).map_err(|e| e.to_string())?;
        Ok(M::decode(&bytes[..]).unwrap())
    }

    fn range(json: &str) -> Result<RangeRequest, String> {
        read("RangeRequest", json)
    }

    #[test]
    fn fields_are_known_by_both_names() {
        let request =
            range(r#"{"key":"Zm9v","rangeEnd":"_w==", "range_endx":[{"a":null}],"limit":"10"}"#);
        let request = request.unwrap();
        assert_eq!(&request.key[..], b"foo");
        assert_eq!(&request.range_end[..], b"\xff");
        assert_eq!(request.limit, 10);
    }

    #[test]
    fn numbers_have_many_forms() {
        for (json, value) in [
            ("12", 12),
            ("\"12\"", 12),
            ("-3", -3),
            ("1e2", 100),
            ("10.0", 10),
            ("120e-1", 12),
            ("0.5e1", 5),
            ("-0", 0),
            ("0e99", 0),
            ("\"1 2\"", 1),
            ("9223372036854775807", i64::MAX),
            ("\"-9223372036854775808\"", i64::MIN),
            ("null", 0),
        ] {
            let request = range(&format!("{{\"limit\":{json}}}"));
            assert_eq!(request.unwrap().limit, value, "{json}");
        }
        for json in [
            "1.5",
            "\"\"",
            "\" 1\"",
            "\"1a\"",
            "9223372036854775808",
            "1e20",
            "1e-1",
            "true",
            "{}",
            "\"0x1\"",
            "\"-\"",
            "\"1.\"",
            "[]",
            "1e400",
            "\"+1\"",
        ] {
            let said = range(&format!("{{\"limit\":{json}}}")).unwrap_err();
            let begin = match json {
                "{}" => "proto: (line 1:10): invalid value for int64 field limit: {".to_owned(),
                "[]" => "proto: (line 1:10): invalid value for int64 field limit: [".to_owned(),
                json => format!("proto: (line 1:10): invalid value for int64 field limit: {json}"),
            };
            assert_eq!(said, begin, "{json}");
        }
    }

    #[test]
    fn base64_has_four_forms() {
        for (json, bytes) in [
            ("", &b""[..]),
            ("+/8=", b"\xfb\xff"),
            ("-_8=", b"\xfb\xff"),
            ("+/8", b"\xfb\xff"),
            ("-_8", b"\xfb\xff"),
            ("Zm9\\nv", b"foo"),
            ("Zm\\u0039v", b"foo"),
        ] {
            let request = range(&format!("{{\"key\":\"{json}\"}}"));
            // A line's end counts when it is asked whether there is padding, as in Go.
            assert_eq!(&request.unwrap().key[..], bytes, "{json}");
        }
        for json in ["!", "Z", "Zm9v=", "Zg=", "+_8=", "Zm9\u{e9}"] {
            let said = range(&format!("{{\"key\":\"{json}\"}}")).unwrap_err();
            let expected =
                format!("proto: (line 1:8): invalid value for bytes field key: \"{json}\"");
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn enums_are_names_or_numbers() {
        let request = range(r#"{"sort_order":"DESCEND","sort_target":2}"#).unwrap();
        assert_eq!((request.sort_order, request.sort_target), (2, 2));
        let request = range(r#"{"sort_order":"SIDEWAYS","sort_target":77}"#).unwrap();
        assert_eq!((request.sort_order, request.sort_target), (0, 77));
        let said = range(r#"{"sort_order":true}"#).unwrap_err();
        let expected = "proto: (line 1:15): invalid value for enum field sortOrder: true";
        assert_eq!(said, expected);
    }

    #[test]
    fn a_oneof_keeps_its_zero() {
        let json = r#"{"compare":[{"key":"Zm9v","target":"MOD","mod_revision":"0"}],
            "success":[{"requestPut":{"key":"Zm9v","value":"YmFy","lease":"7"}},{}]}"#;
        let txn: TxnRequest = read("TxnRequest", json).unwrap();
        let expected = Compare {
            key: "foo".into(),
            target: 2,
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Compare::default()
        };
        assert_eq!(txn.compare, [expected]);
        let put = PutRequest {
            key: "foo".into(),
            value: "bar".into(),
            lease: 7,
            ..PutRequest::default()
        };
        assert_eq!(txn.success[0].request, Some(Request::RequestPut(put)));
        assert_eq!(txn.success[1].request, None);
    }

    #[test]
    fn lists_of_names_are_read() {
        let json = r#"{"create_request":{"filters":["NOPUT","NONE",1]}}"#;
        let request: WatchRequest = read("WatchRequest", json).unwrap();
        let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
            panic!("{request:?}");
        };
        assert_eq!(create.filters, [0, 1]);
    }

    #[test]
    fn what_is_no_message_is_said_in_gos_words() {
        for (json, said) in [
            ("[]", "syntax error (line 1:1): unexpected token ["),
            ("null", "syntax error (line 1:1): unexpected token null"),
            ("\"a\"", "syntax error (line 1:1): unexpected token \"a\""),
            (
                "{\"key\":\"\",\"key\":\"\"}",
                "(line 1:11): duplicate field \"key\"",
            ),
            (
                "{\n \"serializable\":1}",
                "(line 2:17): invalid value for bool field serializable: 1",
            ),
            (
                "{\"é\":1,\"limit\":[]}",
                "(line 1:16): invalid value for int64 field limit: [",
            ),
            ("{\"x\":\"\\ud800\"}", "unexpected EOF"),
            (
                "{\"x\":\"\\ud800\",\"limit\":1}",
                "syntax error (line 1:6): invalid escape code \"\\\",\\\"lim\" in string",
            ),
        ] {
            assert_eq!(range(json).unwrap_err(), format!("proto: {said}"), "{json}");
        }
        let two = r#"{"create_request":{},"cancel_request":{}}"#;
        let said = read::<WatchRequest>("WatchRequest", two).unwrap_err();
        let expected = "proto: (line 1:22): error parsing \"cancel_request\", oneof \
                        etcdserverpb.WatchRequest.request_union is already set";
        assert_eq!(said, expected);
        let list = r#"{"compare":{}}"#;
        let said = read::<TxnRequest>("TxnRequest", list).unwrap_err();
        assert_eq!(said, "proto: syntax error (line 1:12): unexpected token {");
    }

    #[test]
    fn invalid_utf8_is_refused() {
        let json = b"{\"key\":\"\xff\"}";
        let said = decode(json, &descriptor("RangeRequest")).unwrap_err();
        let expected = "proto: syntax error (line 1:8): invalid UTF-8 in string";
        assert_eq!(said.to_string(), expected);
    }

    #[test]
    fn depth_is_bounded() {
        let open = "{\"success\":[{\"request_txn\":".repeat(200);
        let close = "}]}".repeat(200);
        let said = read::<TxnRequest>("TxnRequest", &format!("{open}{{}}{close}"));
        assert_eq!(said.unwrap_err(), "proto: exceeded max recursion depth");
        let skipped = format!("{{\"x\":{}{}}}", "[".repeat(9000), "]".repeat(9000));
        assert!(range(&skipped).is_ok());
    }

    #[test]
    fn all_requests_have_only_kinds_that_are_read() {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
        for (path, method) in crate::paths::methods(&pool).unwrap() {
            let mut left = vec![method.input];
            let mut seen = Vec::new();
            while let Some(message) = left.pop() {
                if seen.contains(&message.full_name().to_owned()) {
                    continue;
                }
                seen.push(message.full_name().to_owned());
                for field in message.fields() {
                    assert!(!field.is_map(), "{path}: {field:?}");
                    match field.kind() {
                        Kind::Message(message) => left.push(message),
                        Kind::Bool
                        | Kind::Int32
                        | Kind::Int64
                        | Kind::Uint32
                        | Kind::Uint64
                        | Kind::String
                        | Kind::Bytes
                        | Kind::Enum(_) => {}
                        other => panic!("{path}: {field:?} is {other:?}"),
                    }
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_json_is_read_or_refused(json in "[\\[\\]{}:,\"a-zA-Z_0-9.\\- \\\\]{0,60}") {
            let mut values = crate::values::Values::new(1000);
            values.push(bytes::Bytes::from(json));
            if let Ok(Some(value)) = values.next() {
                let _ = decode(&value, &descriptor("TxnRequest"));
            }
        }
    }
}
