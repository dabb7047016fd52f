//! Requests as text for logs, in the form of Go's messages. Values and passwords stay out of it: of
//! a value only its size is said.

use std::fmt::{self, Display, Formatter, Write};

use crate::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest,
    RequestHeader, RequestOp, TxnRequest, compare::TargetUnion, request_op,
};

/// A request that logs may show.
pub struct Text<'a, T>(pub &'a T);

/// A transaction may have thousands of operations: behind so many bytes no more of them are told.
pub const MAX_TEXT: usize = 4 << 10;

/// Bytes in quotes, with escapes where they are no readable text.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    c if c < ' ' || c == '\x7f' => write!(f, "\\x{:02x}", c as u32)?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        f.write_char('"')
    }
}

/// The same in the older form, which etcd still has where it leaves values out.
struct Octal<'a>(&'a [u8]);

impl Display for Octal<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                b' '..=b'~' => f.write_char(char::from(byte))?,
                byte => write!(f, "\\{byte:03o}")?,
            }
        }
        f.write_char('"')
    }
}

/// Fields with a space between; those that are unset are left out.
struct Fields<'a, 'b> {
    f: &'a mut Formatter<'b>,
    begun: bool,
}

impl<'a, 'b> Fields<'a, 'b> {
    fn of(f: &'a mut Formatter<'b>) -> Self {
        Self { f, begun: false }
    }

    fn put(&mut self, name: &str, value: &dyn Display) -> fmt::Result {
        if std::mem::replace(&mut self.begun, true) {
            self.f.write_char(' ')?;
        }
        write!(self.f, "{name}:{value}")
    }

    fn bytes(&mut self, name: &str, value: &[u8]) -> fmt::Result {
        match value.is_empty() {
            true => Ok(()),
            false => self.put(name, &Quoted(value)),
        }
    }

    fn octal(&mut self, name: &str, value: &[u8]) -> fmt::Result {
        match value.is_empty() {
            true => Ok(()),
            false => self.put(name, &Octal(value)),
        }
    }

    fn number(&mut self, name: &str, value: i64) -> fmt::Result {
        match value {
            0 => Ok(()),
            value => self.put(name, &value),
        }
    }

    fn flag(&mut self, name: &str, value: bool) -> fmt::Result {
        match value {
            false => Ok(()),
            true => self.put(name, &true),
        }
    }
}

impl Display for Text<'_, RangeRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let mut fields = Fields::of(f);
        fields.bytes("key", &r.key)?;
        fields.bytes("range_end", &r.range_end)?;
        fields.number("limit", r.limit)?;
        fields.number("revision", r.revision)?;
        if r.sort_order != 0 {
            fields.put("sort_order", &r.sort_order().as_str_name())?;
        }
        if r.sort_target != 0 {
            fields.put("sort_target", &r.sort_target().as_str_name())?;
        }
        fields.flag("serializable", r.serializable)?;
        fields.flag("keys_only", r.keys_only)?;
        fields.flag("count_only", r.count_only)?;
        fields.number("min_mod_revision", r.min_mod_revision)?;
        fields.number("max_mod_revision", r.max_mod_revision)?;
        fields.number("min_create_revision", r.min_create_revision)?;
        fields.number("max_create_revision", r.max_create_revision)
    }
}

impl Display for Text<'_, PutRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let mut fields = Fields::of(f);
        fields.octal("key", &r.key)?;
        fields.put("value_size", &r.value.len())?;
        fields.number("lease", r.lease)?;
        fields.flag("prev_kv", r.prev_kv)?;
        fields.flag("ignore_value", r.ignore_value)?;
        fields.flag("ignore_lease", r.ignore_lease)
    }
}

impl Display for Text<'_, DeleteRangeRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let mut fields = Fields::of(f);
        fields.bytes("key", &r.key)?;
        fields.bytes("range_end", &r.range_end)?;
        fields.flag("prev_kv", r.prev_kv)
    }
}

impl Display for Text<'_, CompactionRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut fields = Fields::of(f);
        fields.number("revision", self.0.revision)?;
        fields.flag("physical", self.0.physical)
    }
}

impl Display for Text<'_, TxnRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let mut text = String::new();
        let mut part = |name: &str, items: &mut dyn Iterator<Item = String>| {
            let _ = write!(text, "{name}:<");
            for (at, item) in items.enumerate() {
                if text.len() > MAX_TEXT {
                    text.push_str(" ...");
                    break;
                }
                if at > 0 {
                    text.push(' ');
                }
                text.push_str(&item);
            }
            text.push('>');
        };
        part(
            "compare",
            &mut r.compare.iter().map(|one| Text(one).to_string()),
        );
        part(
            " success",
            &mut r.success.iter().map(|op| Text(op).to_string()),
        );
        part(
            " failure",
            &mut r.failure.iter().map(|op| Text(op).to_string()),
        );
        f.write_str(&text)
    }
}

impl Display for Text<'_, Compare> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let compare = self.0;
        let mut fields = Fields::of(f);
        if compare.result != 0 {
            fields.put("result", &compare.result().as_str_name())?;
        }
        if compare.target != 0 {
            fields.put("target", &compare.target().as_str_name())?;
        }
        let redacted = matches!(compare.target_union, Some(TargetUnion::Value(_)));
        match redacted {
            true => fields.octal("key", &compare.key)?,
            false => fields.bytes("key", &compare.key)?,
        }
        match &compare.target_union {
            Some(TargetUnion::Version(version)) => fields.put("version", version)?,
            Some(TargetUnion::CreateRevision(revision)) => {
                fields.put("create_revision", revision)?;
            }
            Some(TargetUnion::ModRevision(revision)) => fields.put("mod_revision", revision)?,
            Some(TargetUnion::Value(value)) => fields.put("value_size", &value.len())?,
            Some(TargetUnion::Lease(lease)) => fields.put("lease", lease)?,
            None => {}
        }
        match redacted {
            true => fields.octal("range_end", &compare.range_end),
            false => fields.bytes("range_end", &compare.range_end),
        }
    }
}

impl Display for Text<'_, RequestOp> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.0.request {
            Some(request_op::Request::RequestRange(r)) => {
                write!(f, "request_range:{{{}}}", Text(r))
            }
            Some(request_op::Request::RequestPut(r)) => write!(f, "request_put:<{}>", Text(r)),
            Some(request_op::Request::RequestDeleteRange(r)) => {
                write!(f, "request_delete_range:{{{}}}", Text(r))
            }
            Some(request_op::Request::RequestTxn(r)) => write!(f, "request_txn:<{}>", Text(r)),
            None => Ok(()),
        }
    }
}

impl Display for Text<'_, RequestHeader> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let header = self.0;
        let mut fields = Fields::of(f);
        if header.id != 0 {
            fields.put("ID", &header.id)?;
        }
        fields.bytes("username", header.username.as_bytes())?;
        if header.auth_revision != 0 {
            fields.put("auth_revision", &header.auth_revision)?;
        }
        Ok(())
    }
}

/// Of entries beside those of keys, leases and compactions only the kind is told.
impl Display for Text<'_, InternalRaftRequest> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let r = self.0;
        let header = r.header.as_ref().map(|header| Text(header).to_string());
        let header = header.unwrap_or_default();
        // Where etcd leaves something out it writes the brackets itself, and others elsewhere.
        if let Some(r) = &r.put {
            write!(f, "header:<{header}> put:<{}>", Text(r))
        } else if let Some(r) = &r.txn {
            write!(f, "header:<{header}> txn:<{}>", Text(r))
        } else if let Some(r) = &r.lease_grant {
            let (ttl, id) = (r.ttl, r.id);
            write!(
                f,
                "header:<{header}> lease_grant:<ttl:{ttl}-second id:{id:016x}>"
            )
        } else if let Some(r) = &r.lease_revoke {
            write!(f, "header:<{header}> lease_revoke:<id:{:016x}>", r.id)
        } else if let Some(r) = &r.delete_range {
            write!(f, "header:{{{header}}} delete_range:{{{}}}", Text(r))
        } else if let Some(r) = &r.compaction {
            write!(f, "header:{{{header}}} compaction:{{{}}}", Text(r))
        } else {
            let kind = match r {
                _ if r.lease_checkpoint.is_some() => "lease_checkpoint",
                _ if r.alarm.is_some() => "alarm",
                _ if r.cluster_version_set.is_some() => "cluster_version_set",
                _ if r.cluster_member_attr_set.is_some() => "cluster_member_attr_set",
                _ if r.downgrade_info_set.is_some() => "downgrade_info_set",
                _ => "auth",
            };
            write!(f, "header:{{{header}}} {kind}:{{}}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_without_their_values() {
        let check = |text: String, expected: &str| assert_eq!(text, expected);
        let range = RangeRequest {
            key: "a\"\n\x01\u{e9}".into(),
            range_end: vec![0xff, b'b'].into(),
            limit: 5,
            sort_order: 2,
            keys_only: true,
            ..RangeRequest::default()
        };
        check(
            Text(&range).to_string(),
            "key:\"a\\\"\\n\\x01\u{e9}\" range_end:\"\\xffb\" limit:5 sort_order:DESCEND \
             keys_only:true",
        );
        let put = PutRequest {
            key: "k".into(),
            value: "secret".into(),
            lease: 7,
            ..PutRequest::default()
        };
        check(Text(&put).to_string(), "key:\"k\" value_size:6 lease:7");
        let odd = PutRequest {
            key: "\u{1}\u{e9}\"".into(),
            ..PutRequest::default()
        };
        check(
            Text(&odd).to_string(),
            "key:\"\\001\\303\\251\\\"\" value_size:0",
        );
        let txn = TxnRequest {
            compare: vec![Compare {
                target: 3,
                key: "k".into(),
                target_union: Some(TargetUnion::Value("secret".into())),
                ..Compare::default()
            }],
            success: vec![
                RequestOp {
                    request: Some(request_op::Request::RequestPut(put.clone())),
                };
                2
            ],
            failure: Vec::new(),
        };
        let entry = InternalRaftRequest {
            header: Some(RequestHeader {
                id: 9,
                ..RequestHeader::default()
            }),
            txn: Some(txn.clone()),
            ..InternalRaftRequest::default()
        };
        check(
            Text(&entry).to_string(),
            "header:<ID:9> txn:<compare:<target:VALUE key:\"k\" value_size:6> \
             success:<request_put:<key:\"k\" value_size:6 lease:7> \
             request_put:<key:\"k\" value_size:6 lease:7>> failure:<>>",
        );
        let many = TxnRequest {
            success: vec![txn.success[0].clone(); 10_000],
            ..txn
        };
        let text = Text(&many).to_string();
        assert!(
            text.len() < MAX_TEXT + 100 && text.contains(" ...>"),
            "{text}"
        );
    }
}
