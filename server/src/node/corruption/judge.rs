//! What follows from the hashes of members: who differs, by etcd's rules. Pure.

use std::collections::BTreeMap;

use mvcc::KeyValueHash;
use peer::{HashError, MemberHash};

/// The ID under which the alarm is raised when nobody can say which members are wrong.
pub(super) const WHOLE_CLUSTER: u64 = 0;

/// Another member, and what it answered.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub id: u64,
    pub urls: Vec<String>,
    pub answer: Result<MemberHash, HashError>,
}

/// This member's own hash and its revision then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub hash: KeyValueHash,
    pub current: i64,
}

impl Own {
    pub fn of(hash: MemberHash) -> Self {
        Self {
            current: hash.current,
            hash: KeyValueHash {
                hash: hash.hash,
                compact_revision: hash.compact_revision,
                revision: hash.revision,
            },
        }
    }
}

/// What a member that starts finds at another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Initial {
    Equal,
    /// The same history with other contents: one of the two is wrong.
    Differs,
    /// They have compacted at different revisions, and so cannot be compared.
    OtherCompaction,
    /// The other one has not come so far.
    Slow,
    /// The other one has compacted what this one would compare.
    Ahead,
    /// It belongs to another cluster.
    Foreign,
    /// It does not answer.
    Silent,
}

/// Compares a member that starts with another.
pub(super) fn initial(own: &KeyValueHash, peer: &Peer) -> Initial {
    match &peer.answer {
        Ok(other) if other.hash == own.hash => Initial::Equal,
        Ok(other) if other.compact_revision == own.compact_revision => Initial::Differs,
        Ok(_) => Initial::OtherCompaction,
        Err(HashError::FutureRevision) => Initial::Slow,
        Err(HashError::Compacted) => Initial::Ahead,
        Err(HashError::ClusterMismatch) => Initial::Foreign,
        Err(HashError::NoAnswer(_)) => Initial::Silent,
    }
}

/// What a leader finds that cannot be when all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Its own hash is another one than a moment ago, of the same revisions.
    OwnChanged {
        member: u64,
        before: KeyValueHash,
        after: KeyValueHash,
    },
    /// A member has revisions that the leader never made.
    Ahead { member: u64, own: i64, other: i64 },
    /// A member has compacted what the leader has not.
    CompactedAhead { member: u64, own: i64, other: i64 },
    /// A member has other contents.
    Differs {
        member: u64,
        own: KeyValueHash,
        other: MemberHash,
    },
}

impl Finding {
    /// Whose alarm it raises.
    pub fn member(&self) -> u64 {
        match self {
            Self::OwnChanged { member, .. }
            | Self::Ahead { member, .. }
            | Self::CompactedAhead { member, .. }
            | Self::Differs { member, .. } => *member,
        }
    }
}

/// Judges what a leader has of its members: `before` is its own hash when it asked them, `after`
/// the one when all that had been committed by then was applied here.
pub(super) fn keys(leader: u64, before: &Own, after: &Own, peers: &[Peer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (old, new) = (before.hash, after.hash);
    let same = (old.revision, old.compact_revision) == (new.revision, new.compact_revision);
    if same && old.hash != new.hash {
        findings.push(Finding::OwnChanged {
            member: leader,
            before: old,
            after: new,
        });
    }
    for peer in peers {
        let Ok(answer) = peer.answer else {
            continue;
        };
        let member = peer.id;
        if answer.current > after.current {
            findings.push(Finding::Ahead {
                member,
                own: after.current,
                other: answer.current,
            });
        }
        if answer.compact_revision > new.compact_revision {
            findings.push(Finding::CompactedAhead {
                member,
                own: new.compact_revision,
                other: answer.compact_revision,
            });
        }
        if answer.compact_revision == old.compact_revision && answer.hash != old.hash {
            findings.push(Finding::Differs {
                member,
                own: old,
                other: answer,
            });
        }
    }
    findings
}

/// What a leader finds of one compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Compacted {
    /// All members have the same hash.
    Agreed,
    /// Those that could be compared have, and others could not.
    Incomplete { compared: usize },
    /// They differ.
    Differ {
        /// Whose alarms are raised: all that are not of the majority, or [`WHOLE_CLUSTER`].
        alarms: Vec<u64>,
        /// The hashes that are not the majority's, and who has them.
        groups: Vec<(u32, Vec<u64>)>,
    },
}

/// Judges the hashes that members keep of one compaction.
pub(super) fn compaction(leader: u64, own: &KeyValueHash, peers: &[Peer]) -> Compacted {
    let mut groups = BTreeMap::from([(own.hash, vec![leader])]);
    let mut compared = 0;
    for peer in peers {
        let Ok(answer) = peer.answer else {
            continue;
        };
        // Hashed from where another compaction left off, they say nothing of each other.
        if answer.compact_revision == own.compact_revision {
            compared += 1;
            groups.entry(answer.hash).or_default().push(peer.id);
        }
    }
    if groups.len() == 1 {
        return match compared == peers.len() {
            true => Compacted::Agreed,
            false => Compacted::Incomplete { compared },
        };
    }
    let members = peers.len() + 1;
    let quorum = members / 2 + 1;
    let majority = groups.iter().find(|(_, ids)| ids.len() >= quorum);
    let majority = majority.map(|(hash, _)| *hash);
    if let Some(hash) = majority {
        groups.remove(&hash);
    }
    let alarms = match majority {
        Some(_) => groups.values().flatten().copied().collect(),
        None => vec![WHOLE_CLUSTER],
    };
    Compacted::Differ {
        alarms,
        groups: groups.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LEADER: u64 = 1;

    fn hash(hash: u32, compact_revision: i64, revision: i64) -> KeyValueHash {
        KeyValueHash {
            hash,
            compact_revision,
            revision,
        }
    }

    fn own(at: KeyValueHash, current: i64) -> Own {
        Own { hash: at, current }
    }

    fn answer(id: u64, hash: u32, compact_revision: i64, current: i64) -> Peer {
        Peer {
            id,
            urls: Vec::new(),
            answer: Ok(MemberHash {
                current,
                hash,
                compact_revision,
                revision: 10,
            }),
        }
    }

    fn silent(id: u64, why: HashError) -> Peer {
        Peer {
            id,
            urls: Vec::new(),
            answer: Err(why),
        }
    }

    #[test]
    fn a_start_is_refused_only_by_other_contents_of_the_same_history() {
        let own = hash(7, 5, 10);
        let check = |peer: Peer, expected| assert_eq!(initial(&own, &peer), expected, "{peer:?}");
        check(answer(2, 7, 5, 12), Initial::Equal);
        // As in etcd an equal hash is equal whatever was compacted.
        check(answer(2, 7, 6, 12), Initial::Equal);
        check(answer(2, 8, 5, 12), Initial::Differs);
        check(answer(2, 8, 6, 12), Initial::OtherCompaction);
        check(silent(2, HashError::FutureRevision), Initial::Slow);
        check(silent(2, HashError::Compacted), Initial::Ahead);
        check(silent(2, HashError::ClusterMismatch), Initial::Foreign);
        check(
            silent(2, HashError::NoAnswer(String::new())),
            Initial::Silent,
        );
    }

    #[test]
    fn the_keys_of_members_that_are_well_raise_nothing() {
        let before = own(hash(7, 5, 10), 10);
        // Requests and a compaction came in between.
        let after = own(hash(9, 6, 14), 14);
        let none = HashError::NoAnswer(String::new());
        let peers = [
            answer(2, 7, 5, 14),
            answer(3, 8, 6, 11),
            answer(4, 8, 4, 10),
            silent(5, none),
            silent(6, HashError::FutureRevision),
        ];
        assert_eq!(keys(LEADER, &before, &after, &peers), []);
        assert_eq!(keys(LEADER, &before, &before, &[]), []);
    }

    #[test]
    fn the_keys_of_members_that_differ_are_found() {
        let before = own(hash(7, 5, 10), 10);
        let found = |after: Own, peers: &[Peer]| -> Vec<u64> {
            let found = keys(LEADER, &before, &after, peers);
            found.iter().map(Finding::member).collect()
        };
        assert_eq!(found(before, &[answer(2, 8, 5, 10)]), [2]);
        assert_eq!(found(before, &[answer(2, 7, 5, 11)]), [2]);
        assert_eq!(found(before, &[answer(2, 8, 6, 10)]), [2]);
        // Its own first, and all that a member has.
        let changed = own(hash(8, 5, 10), 10);
        let peers = [answer(2, 7, 5, 10), answer(3, 9, 5, 11)];
        assert_eq!(found(changed, &peers), [LEADER, 3, 3]);
        assert!(found(own(hash(8, 5, 11), 11), &peers[..1]).is_empty());
    }

    #[test]
    fn a_compaction_is_checked_when_all_have_its_hash() {
        let own = hash(7, 5, 10);
        let good = |id| answer(id, 7, 5, 12);
        let judge = |peers: &[Peer]| compaction(LEADER, &own, peers);
        assert_eq!(judge(&[good(2), good(3)]), Compacted::Agreed);
        // One that compacted elsewhere before, one that does not answer.
        let other = answer(2, 9, 4, 12);
        let none = silent(3, HashError::Compacted);
        let incomplete = Compacted::Incomplete { compared: 0 };
        assert_eq!(judge(&[other.clone(), none.clone()]), incomplete);
        let incomplete = Compacted::Incomplete { compared: 1 };
        assert_eq!(judge(&[good(2), none]), incomplete);
    }

    #[test]
    fn a_majority_says_who_is_wrong() {
        let own = hash(7, 5, 10);
        let check = |peers: &[Peer], expected: &[u64], hashes: &[u32]| {
            let Compacted::Differ { alarms, groups } = compaction(LEADER, &own, peers) else {
                panic!("{peers:?}");
            };
            assert_eq!(alarms, expected, "{peers:?}");
            let found: Vec<u32> = groups.iter().map(|(hash, _)| *hash).collect();
            assert_eq!(found, hashes, "{peers:?}");
        };
        let at = |id, hash| answer(id, hash, 5, 12);
        let lost = |id| silent(id, HashError::NoAnswer(String::new()));
        check(&[at(2, 7), at(3, 8)], &[3], &[8]);
        // The leader itself.
        check(&[at(2, 8), at(3, 8)], &[LEADER], &[7]);
        check(&[at(2, 8)], &[WHOLE_CLUSTER], &[7, 8]);
        check(&[at(2, 8), at(3, 9)], &[WHOLE_CLUSTER], &[7, 8, 9]);
        // Members that cannot be compared count for the quorum, and not for a side.
        check(&[at(2, 8), lost(3)], &[WHOLE_CLUSTER], &[7, 8]);
        let five = [at(2, 7), at(3, 7), at(4, 8), at(5, 9)];
        check(&five, &[4, 5], &[8, 9]);
    }
}
