//! What a user may read and write: the permissions of all its roles as ranges of keys.

use bytes::Bytes;
use proto::authpb::{Permission, permission::Type};

use super::tree::Tree;

/// The range end that stands for "to the last key".
const OPEN: &[u8] = b"\0";

/// What a request does with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The ranges of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grants {
    read: Ranges,
    write: Ranges,
}

impl Grants {
    /// Puts together what several roles permit.
    pub fn of<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let mut grants = Self::default();
        for permission in permissions {
            let range = range_of(permission);
            // A type of a newer server permits nothing, as in etcd.
            let Ok(kind) = Type::try_from(permission.perm_type) else {
                continue;
            };
            if kind != Type::Write {
                grants.read.given.push(range.clone());
            }
            if kind != Type::Read {
                grants.write.given.push(range);
            }
        }
        grants.read.merge();
        grants.write.merge();
        grants
    }

    /// Whether all of `[key, range_end)` is permitted. Without an end it is the one key.
    pub fn permit(&self, key: &[u8], range_end: &[u8], access: Access) -> bool {
        let ranges = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        match range_end {
            b"" => ranges.contain(key, End::Before(&after(key))),
            OPEN => ranges.contain(key, End::Open),
            end => ranges.contain(key, End::Before(end)),
        }
    }
}

/// Whether a permission may have this range: one key, a range that is not empty, or all from a
/// key on.
pub(crate) fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || range_end == OPEN)
}

/// A range of keys; with `None` as its end it has no end.
type Range = (Bytes, Option<Bytes>);

/// Ranges as they were granted, and the same in order and joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges {
    given: Vec<Range>,
    joined: Vec<Range>,
}

/// Where a request's range ends. An open end is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End<'a> {
    Before(&'a [u8]),
    Open,
}

impl<'a> End<'a> {
    pub fn of(end: Option<&'a Bytes>) -> Self {
        end.map_or(Self::Open, |end| Self::Before(end))
    }
}

impl Ranges {
    /// Sorts the ranges and joins those that touch: permissions side by side permit a range over
    /// both.
    fn merge(&mut self) {
        let mut given = self.given.clone();
        given.sort();
        for (begin, end) in given {
            match self.joined.last_mut() {
                Some(last) if End::of(last.1.as_ref()) >= End::Before(&begin) => {
                    if End::of(end.as_ref()) > End::of(last.1.as_ref()) {
                        last.1 = end;
                    }
                }
                _ => self.joined.push((begin, end)),
            }
        }
    }

    fn contain(&self, key: &[u8], end: End<'_>) -> bool {
        // etcd takes an empty bound as the greatest one, so no range holds the empty key.
        if key.is_empty() {
            return false;
        }
        let behind = self.joined.partition_point(|(begin, _)| begin <= key);
        let Some((_, last)) = behind.checked_sub(1).and_then(|at| self.joined.get(at)) else {
            return false;
        };
        let last = End::of(last.as_ref());
        let holds = End::Before(key) < last && end <= last;
        // Nobody asks for such a range but by mistake, so the tree is made for each.
        holds && (end > End::Before(key) || Tree::of(&self.given).finds(key, end))
    }
}

fn range_of(permission: &Permission) -> (Bytes, Option<Bytes>) {
    let end = match &permission.range_end[..] {
        b"" => Some(after(&permission.key)),
        OPEN => None,
        _ => Some(permission.range_end.clone()),
    };
    (permission.key.clone(), end)
}

/// The first key behind `key`.
fn after(key: &[u8]) -> Bytes {
    [key, OPEN].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(kind: Type, key: &'static str, range_end: &'static str) -> Permission {
        Permission {
            perm_type: kind as i32,
            key: key.into(),
            range_end: range_end.into(),
        }
    }

    #[test]
    fn ranges_are_permitted_as_in_etcd() {
        let granted = [
            permission(Type::Readwrite, "b", "d"),
            permission(Type::Read, "d", "f"),
            permission(Type::Read, "c", "d"),
            permission(Type::Write, "k", ""),
            permission(Type::Read, "m", ""),
            permission(Type::Read, "m\0", "p"),
            permission(Type::Readwrite, "x", "\0"),
        ];
        let grants = Grants::of(granted.iter());
        let check = |key: &str, end: &str, read: bool, write: bool| {
            let permit = |access| grants.permit(key.as_bytes(), end.as_bytes(), access);
            let found = (permit(Access::Read), permit(Access::Write));
            assert_eq!(found, (read, write), "{key:?} to {end:?}");
        };
        check("a", "", false, false);
        check("b", "", true, true);
        check("b", "d", true, true);
        check("b", "d\0", true, false);
        check("b", "f", true, false);
        check("b", "g", false, false);
        check("a", "c", false, false);
        check("c", "c", true, true);
        check("c", "a", true, true);
        check("f", "a", false, false);
        check("k", "", false, true);
        check("k", "k\0", false, true);
        check("k", "k\0\0", false, false);
        check("m", "p", true, false);
        check("x", "", true, true);
        check("y", "\0", true, true);
        check("b", "\0", false, false);
        check("\0", "\0", false, false);
        check("", "", false, false);
        check("", "\0", false, false);
    }

    #[test]
    fn everything_may_be_permitted() {
        let all = permission(Type::Readwrite, "\0", "\0");
        let grants = Grants::of([&all].into_iter());
        assert!(grants.permit(b"\0", b"\0", Access::Write));
        assert!(grants.permit(b"\xff\xff", b"", Access::Read));
        assert!(!Grants::default().permit(b"a", b"", Access::Read));
    }

    #[test]
    fn a_permission_needs_a_range_that_can_hold_a_key() {
        for (key, end, valid) in [
            ("a", "", true),
            ("a", "b", true),
            ("a", "\0", true),
            ("\0", "\0", true),
            ("a", "a", false),
            ("b", "a", false),
            ("", "a", false),
            ("", "", false),
        ] {
            assert_eq!(is_valid(key.as_bytes(), end.as_bytes()), valid, "{key:?}");
        }
    }
}
