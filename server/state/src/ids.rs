//! How etcd names members, clusters and requests. A different ID would make a member a stranger
//! to real etcd, so every rule here is etcd's to the bit.

use sha1::{Digest, Sha1};

/// The ID of a member: the first eight bytes, big-endian, of the SHA-1 of its sorted peer URLs
/// joined without a separator, the cluster token, and, for a member added at run time, the
/// decimal Unix time in seconds at which it was added.
///
/// `added_at_unix_s` is `None` for members of a static bootstrap.
pub fn member_id<S: AsRef<str>>(
    peer_urls: &[S],
    cluster_token: &str,
    added_at_unix_s: Option<i64>,
) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(AsRef::as_ref).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url.as_bytes());
    }
    hash.update(cluster_token.as_bytes());
    if let Some(seconds) = added_at_unix_s {
        hash.update(seconds.to_string().as_bytes());
    }
    first_eight_bytes(hash)
}

/// The ID of a cluster: the first eight bytes, big-endian, of the SHA-1 of its founding members'
/// IDs as big-endian words in ascending order.
pub fn cluster_id(founding_members: &[u64]) -> u64 {
    let mut members = founding_members.to_vec();
    members.sort_unstable();
    let mut hash = Sha1::new();
    for member in members {
        hash.update(member.to_be_bytes());
    }
    first_eight_bytes(hash)
}

/// The text form of an ID in headers, paths and keys: lower hexadecimal without padding. etcd
/// compares these as strings, so a leading zero would be refused.
pub fn to_text(id: u64) -> String {
    format!("{id:x}")
}

fn first_eight_bytes(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |id, byte| (id << 8) | u64::from(*byte))
}

/// Gives request IDs that no other member of the cluster gives: the low 16 bits of the member ID,
/// then 40 bits of milliseconds, then an 8-bit count, of which the last 48 bits run on as one
/// number. etcd wakes local waiters by the bare ID, so a clash would answer another's request.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    suffix: u64,
}

/// Bits of a request ID that count; the rest name the member.
const SUFFIX_BITS: u32 = 48;
/// Bits of the suffix that lie below the start time, so that a restart within the same
/// millisecond needs 256 requests before it could repeat an ID.
const COUNT_BITS: u32 = 8;
const SUFFIX_MASK: u64 = (1 << SUFFIX_BITS) - 1;

impl RequestIds {
    /// Starts the series of one run of a member. `now_unix_ms` is the wall clock in milliseconds.
    pub fn new(member_id: u64, now_unix_ms: u64) -> Self {
        Self {
            prefix: (member_id & 0xffff) << SUFFIX_BITS,
            suffix: (now_unix_ms << COUNT_BITS) & SUFFIX_MASK,
        }
    }

    /// The next ID. The suffix wraps after 2^48 requests and never touches the member's bits.
    pub fn next_id(&mut self) -> u64 {
        self.suffix = (self.suffix + 1) & SUFFIX_MASK;
        self.prefix | self.suffix
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The IDs that every default single-member etcd prints at its first start.
    #[test]
    fn the_default_single_member_has_the_ids_every_etcd_user_knows() {
        let member = member_id(&["http://localhost:2380"], "etcd-cluster", None);
        assert_eq!(to_text(member), "8e9e05c52164694d");
        assert_eq!(to_text(cluster_id(&[member])), "cdf818194e3a8c32");
    }

    #[test]
    fn the_order_of_urls_and_members_does_not_matter() {
        let a = "http://10.0.0.1:2380";
        let b = "http://10.0.0.2:2380";
        assert_eq!(member_id(&[a, b], "t", None), member_id(&[b, a], "t", None));
        assert_eq!(cluster_id(&[1, 2, 3]), cluster_id(&[3, 1, 2]));
    }

    #[test]
    fn token_and_time_of_adding_change_the_id() {
        let url = ["http://10.0.0.1:2380"];
        let founding = member_id(&url, "t", None);
        assert_ne!(founding, member_id(&url, "u", None));
        assert_ne!(founding, member_id(&url, "t", Some(1)));
        assert_ne!(member_id(&url, "t", Some(1)), member_id(&url, "t", Some(2)));
    }

    #[test]
    fn text_has_no_padding() {
        assert_eq!(to_text(0x0e65_f1f9), "e65f1f9");
    }

    // The vector of the request ID's documented layout: member 0x1234, time 0x456789 ms.
    #[test]
    fn a_request_id_is_member_time_count() {
        let mut ids = RequestIds::new(0x1234, 0x45_6789);
        assert_eq!(ids.next_id(), 0x1234_0000_4567_8901);
        assert_eq!(ids.next_id(), 0x1234_0000_4567_8902);
    }

    proptest! {
        #[test]
        fn request_ids_rise_and_keep_the_member(member: u64, now in 0u64..1 << 39) {
            let mut ids = RequestIds::new(member, now);
            let mut last = ids.next_id();
            for _ in 0..600 {
                let id = ids.next_id();
                prop_assert!(id > last);
                prop_assert_eq!(id >> SUFFIX_BITS, member & 0xffff);
                last = id;
            }
        }

        #[test]
        fn the_member_bits_survive_a_wrap(member: u64) {
            let mut ids = RequestIds { prefix: (member & 0xffff) << SUFFIX_BITS, suffix: SUFFIX_MASK };
            prop_assert_eq!(ids.next_id(), (member & 0xffff) << SUFFIX_BITS);
        }
    }
}
