//! The cluster's members, as conf changes make them and as etcd's `members` bucket keeps them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::raftpb::{ConfChange, ConfChangeType, ConfState};
use serde::{Deserialize, Serialize};

use crate::{error::Error, ids};

/// What etcd writes for a member that is gone, under its ID.
pub(crate) const REMOVED: &[u8] = b"removed";

/// One member. Its JSON is etcd's, in the log and in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The member's ID.
    pub id: u64,
    /// Where other members reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Whether it has no vote yet.
    #[serde(rename = "isLearner", default, skip_serializing_if = "is_false")]
    pub is_learner: bool,
    /// Its name; empty until it has started for the first time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has started for the first time.
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub client_urls: Vec<String>,
}

/// The context of a conf change that adds or promotes a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    #[serde(flatten)]
    member: Member,
    #[serde(rename = "isPromote", default)]
    is_promote: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// JSON as Go writes it: it escapes five characters that JSON lets stand.
pub(crate) fn go_json<T: Serialize>(value: &T) -> Bytes {
    // These types have string keys only, and so always have a JSON form.
    let text = serde_json::to_string(value).unwrap_or_default();
    let text = text.replace('&', "\\u0026");
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e");
    let text = text.replace('\u{2028}', "\\u2028");
    text.replace('\u{2029}', "\\u2029").into()
}

impl Member {
    /// Its row in the `members` bucket.
    pub(crate) fn row(&self) -> (Bytes, Bytes) {
        (member_key(self.id), go_json(self))
    }

    /// The protobuf form that clients see.
    pub fn to_proto(&self) -> proto::etcdserverpb::Member {
        proto::etcdserverpb::Member {
            id: self.id,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner,
        }
    }

    /// Whether it has ever started.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }
}

/// The row key of a member.
pub(crate) fn member_key(id: u64) -> Bytes {
    ids::to_text(id).into()
}

/// The conf change that adds a member, as a voter or as a learner. `id` is the request's.
pub fn add(id: u64, member: &Member) -> ConfChange {
    let kind = match member.is_learner {
        true => ConfChangeType::ConfChangeAddLearnerNode,
        false => ConfChangeType::ConfChangeAddNode,
    };
    let context = go_json(&Change {
        member: member.clone(),
        is_promote: false,
    });
    conf_change(id, kind, member.id, context)
}

/// The conf change that makes a learner a voter.
pub fn promote(id: u64, member: u64) -> ConfChange {
    let context = go_json(&Change {
        member: Member {
            id: member,
            ..Member::default()
        },
        is_promote: true,
    });
    // etcd's context has no URLs here, which in its JSON is null.
    let context = String::from_utf8_lossy(&context).replace("\"peerURLs\":[]", "\"peerURLs\":null");
    let kind = ConfChangeType::ConfChangeAddNode;
    conf_change(id, kind, member, context.into())
}

/// The conf change that removes a member.
pub fn remove(id: u64, member: u64) -> ConfChange {
    let kind = ConfChangeType::ConfChangeRemoveNode;
    conf_change(id, kind, member, Bytes::new())
}

/// The conf change that gives a member other peer URLs.
pub fn update(id: u64, member: &Member) -> ConfChange {
    let kind = ConfChangeType::ConfChangeUpdateNode;
    conf_change(id, kind, member.id, go_json(member))
}

/// The conf changes that found a cluster, in the order of IDs, as etcd's log begins with them.
pub fn found(members: &[Member]) -> Vec<ConfChange> {
    let mut members = members.to_vec();
    members.sort_by_key(|member| member.id);
    let changes = members.iter().map(|member| ConfChange {
        id: None,
        r#type: Some(ConfChangeType::ConfChangeAddNode as i32),
        node_id: Some(member.id),
        // A founding member is written alone, without the mark of a promotion.
        context: Some(go_json(member)),
    });
    changes.collect()
}

fn conf_change(id: u64, kind: ConfChangeType, node: u64, context: Bytes) -> ConfChange {
    ConfChange {
        id: Some(id),
        r#type: Some(kind as i32),
        node_id: Some(node),
        context: (!context.is_empty()).then_some(context),
    }
}

/// What a conf change does to members, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member.
    Add(Member),
    /// A learner becomes a voter.
    Promote(u64),
    /// A member goes for good.
    Remove(u64),
    /// A member has other peer URLs.
    Update(Member),
}

/// Decodes a conf change.
///
/// # Errors
/// What is wrong with it: such a change must neither be proposed nor be skipped.
pub fn decode(change: &ConfChange) -> Result<MemberChange, String> {
    let node = change.node_id();
    let context = change.context.as_deref().unwrap_or_default();
    let json = |error: serde_json::Error| format!("the member of a conf change: {error}");
    let same = |id: u64| match id == node {
        true => Ok(()),
        false => Err(format!("a conf change of member {node:x} describes {id:x}")),
    };
    match ConfChangeType::try_from(change.r#type.unwrap_or_default()) {
        Ok(ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode) => {
            let Change { member, is_promote } = serde_json::from_slice(context).map_err(json)?;
            same(member.id)?;
            Ok(match is_promote {
                true => MemberChange::Promote(node),
                false => MemberChange::Add(member),
            })
        }
        Ok(ConfChangeType::ConfChangeRemoveNode) => Ok(MemberChange::Remove(node)),
        Ok(ConfChangeType::ConfChangeUpdateNode) => {
            let member: Member = serde_json::from_slice(context).map_err(json)?;
            same(member.id)?;
            Ok(MemberChange::Update(member))
        }
        Err(_) => Err(format!("a conf change of unknown type {:?}", change.r#type)),
    }
}

/// All members, and the IDs of those that are gone: an ID never comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<u64, Member>,
    removed: BTreeSet<u64>,
}

impl Members {
    /// From the rows of the buckets `members` and `members_removed`.
    ///
    /// # Errors
    /// Which row is damaged.
    pub(crate) fn load(
        members: impl Iterator<Item = (Bytes, Bytes)>,
        removed: impl Iterator<Item = Bytes>,
    ) -> Result<Self, String> {
        let mut found = Self::default();
        for (key, row) in members {
            let member: Member = serde_json::from_slice(&row)
                .map_err(|error| format!("the row of member {key:?}: {error}"))?;
            found.members.insert(member.id, member);
        }
        for key in removed {
            let id = std::str::from_utf8(&key).ok();
            let id = id.and_then(|text| u64::from_str_radix(text, 16).ok());
            let id = id.ok_or_else(|| format!("the row of removed member {key:?}"))?;
            found.removed.insert(id);
        }
        Ok(found)
    }

    /// The member of an ID.
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Whether a member of this ID has been removed.
    pub fn is_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// The IDs of members that are gone, in order.
    pub fn removed(&self) -> impl Iterator<Item = u64> {
        self.removed.iter().copied()
    }

    /// The changes that make the members of `next` out of these; what goes comes first, as its
    /// URLs may have been taken by another.
    pub fn changes_to(&self, next: &Self) -> Vec<MemberChange> {
        let gone = self.iter().filter(|member| next.get(member.id).is_none());
        let mut changes: Vec<_> = gone.map(|member| MemberChange::Remove(member.id)).collect();
        for member in next.iter() {
            let Some(old) = self.get(member.id) else {
                changes.push(MemberChange::Add(member.clone()));
                continue;
            };
            if old.peer_urls != member.peer_urls {
                changes.push(MemberChange::Update(member.clone()));
            }
            if old.is_learner && !member.is_learner {
                changes.push(MemberChange::Promote(member.id));
            }
        }
        changes
    }

    /// All members, in the order of IDs.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members with a vote.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| !member.is_learner)
    }

    /// The learners.
    pub fn learners(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| member.is_learner)
    }

    /// All members as clients see them.
    pub fn to_proto(&self) -> Vec<proto::etcdserverpb::Member> {
        self.iter().map(Member::to_proto).collect()
    }

    /// Whether a change may be made, by etcd's rules at apply. All members decide alike, as long
    /// as they agree on `max_learners`.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self, change: &MemberChange, max_learners: usize) -> Result<(), Error> {
        let id = match change {
            MemberChange::Add(member) | MemberChange::Update(member) => member.id,
            MemberChange::Promote(id) | MemberChange::Remove(id) => *id,
        };
        if self.is_removed(id) {
            return Err(Error::MemberNotFound);
        }
        let known = self.get(id);
        match change {
            MemberChange::Add(_) if known.is_some() => Err(Error::MemberExist),
            MemberChange::Add(member) => {
                self.free_urls(member)?;
                if member.is_learner && self.learners().count() >= max_learners {
                    return Err(Error::TooManyLearners);
                }
                Ok(())
            }
            MemberChange::Promote(_) => match known {
                None => Err(Error::MemberNotFound),
                Some(member) if !member.is_learner => Err(Error::MemberNotLearner),
                Some(_) => Ok(()),
            },
            MemberChange::Remove(_) | MemberChange::Update(_) if known.is_none() => {
                Err(Error::MemberNotFound)
            }
            MemberChange::Remove(_) => Ok(()),
            MemberChange::Update(member) => self.free_urls(member),
        }
    }

    fn free_urls(&self, member: &Member) -> Result<(), Error> {
        let others = self.iter().filter(|other| other.id != member.id);
        let mut taken = others.flat_map(|other| &other.peer_urls);
        match taken.any(|url| member.peer_urls.contains(url)) {
            true => Err(Error::PeerUrlExist),
            false => Ok(()),
        }
    }

    /// Makes a validated change. Returns the member as it is now, or `None` when it is gone.
    pub(crate) fn apply(&mut self, change: &MemberChange) -> Option<Member> {
        match change {
            MemberChange::Add(member) => {
                self.members.insert(member.id, member.clone());
                Some(member.clone())
            }
            MemberChange::Promote(id) => {
                let member = self.members.get_mut(id)?;
                member.is_learner = false;
                Some(member.clone())
            }
            MemberChange::Remove(id) => {
                self.members.remove(id);
                self.removed.insert(*id);
                None
            }
            MemberChange::Update(update) => {
                let member = self.members.get_mut(&update.id)?;
                member.peer_urls = update.peer_urls.clone();
                Some(member.clone())
            }
        }
    }

    /// Takes what a member says of itself after its start. `Ok(None)` for a removed member.
    ///
    /// # Errors
    /// When there never was such a member.
    pub(crate) fn set_attributes(
        &mut self,
        id: u64,
        name: &str,
        client_urls: &[String],
    ) -> Result<Option<Member>, String> {
        let Some(member) = self.members.get_mut(&id) else {
            return match self.is_removed(id) {
                true => Ok(None),
                false => Err(format!("the attributes of unknown member {id:x}")),
            };
        };
        member.name = name.to_owned();
        member.client_urls = client_urls.to_vec();
        Ok(Some(member.clone()))
    }

    /// Whether a voter may be added so that started voters still make a quorum (strict
    /// reconfiguration).
    pub fn may_add_voter(&self) -> bool {
        let (started, voters) = self.started_voters(None);
        // A single started member may always get company: that is how data is restored.
        (started == 1 && voters == 1) || started > voters.div_ceil(2)
    }

    /// Whether a voter may be removed so that started voters still make a quorum.
    pub fn may_remove_voter(&self, id: u64) -> bool {
        let (started, voters) = self.started_voters(Some(id));
        started > voters / 2
    }

    /// Whether a learner may be promoted so that started voters still make a quorum.
    pub fn may_promote(&self) -> bool {
        let (started, voters) = self.started_voters(None);
        started + 1 > voters.div_ceil(2)
    }

    fn started_voters(&self, without: Option<u64>) -> (usize, usize) {
        let voters = self.voters().filter(|member| Some(member.id) != without);
        voters.fold((0, 0), |(started, all), member| {
            (started + usize::from(member.is_started()), all + 1)
        })
    }

    /// What raft is told of the members.
    pub fn conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters().map(|member| member.id).collect(),
            learners: self.learners().map(|member| member.id).collect(),
            auto_leave: Some(false),
            ..ConfState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, learner: bool) -> Member {
        Member {
            id,
            peer_urls: vec![format!("http://10.0.0.{id}:2380")],
            is_learner: learner,
            name: format!("m{id}"),
            client_urls: vec![],
        }
    }

    fn members(list: &[Member]) -> Members {
        let mut members = Members::default();
        for member in list {
            members.apply(&MemberChange::Add(member.clone()));
        }
        members
    }

    #[test]
    fn a_member_has_etcds_json() {
        let check = |member: &Member, expected: &str| {
            let (key, row) = member.row();
            assert_eq!(key, format!("{:x}", member.id));
            assert_eq!(row, expected);
            assert_eq!(serde_json::from_slice::<Member>(&row).unwrap(), *member);
        };
        check(
            &member(1, false),
            r#"{"id":1,"peerURLs":["http://10.0.0.1:2380"],"name":"m1"}"#,
        );
        let full = Member {
            id: u64::MAX,
            peer_urls: vec!["http://a?b&c".to_owned()],
            is_learner: true,
            name: "<n>".to_owned(),
            client_urls: vec!["http://c".to_owned()],
        };
        check(
            &full,
            "{\"id\":18446744073709551615,\"peerURLs\":[\"http://a?b\\u0026c\"],\
             \"isLearner\":true,\"name\":\"\\u003cn\\u003e\",\"clientURLs\":[\"http://c\"]}",
        );
        let change = promote(7, 5);
        let context = change.context.as_deref().unwrap();
        assert_eq!(context, br#"{"id":5,"peerURLs":null,"isPromote":true}"#);
        assert_eq!(decode(&change), Ok(MemberChange::Promote(5)));
    }

    #[test]
    fn changes_are_refused_as_etcd_refuses_them() {
        let mut cluster = members(&[member(1, false), member(2, false), member(3, true)]);
        cluster.apply(&MemberChange::Add(member(9, false)));
        cluster.apply(&MemberChange::Remove(9));
        let with_url = |id, url: u64| Member {
            peer_urls: vec![format!("http://10.0.0.{url}:2380")],
            ..member(id, false)
        };
        let check = |change: MemberChange, expected| {
            assert_eq!(cluster.validate(&change, 1), expected, "{change:?}");
        };
        check(MemberChange::Add(member(4, false)), Ok(()));
        check(MemberChange::Add(member(1, false)), Err(Error::MemberExist));
        check(
            MemberChange::Add(member(9, false)),
            Err(Error::MemberNotFound),
        );
        check(MemberChange::Add(with_url(4, 2)), Err(Error::PeerUrlExist));
        check(
            MemberChange::Add(member(4, true)),
            Err(Error::TooManyLearners),
        );
        check(MemberChange::Promote(3), Ok(()));
        check(MemberChange::Promote(1), Err(Error::MemberNotLearner));
        check(MemberChange::Promote(8), Err(Error::MemberNotFound));
        check(MemberChange::Remove(1), Ok(()));
        check(MemberChange::Remove(8), Err(Error::MemberNotFound));
        check(MemberChange::Update(with_url(1, 1)), Ok(()));
        check(MemberChange::Update(with_url(1, 7)), Ok(()));
        check(
            MemberChange::Update(with_url(1, 2)),
            Err(Error::PeerUrlExist),
        );
        check(
            MemberChange::Update(member(8, false)),
            Err(Error::MemberNotFound),
        );
    }

    #[test]
    fn strict_reconfiguration_counts_started_voters() {
        let unstarted = |id| Member {
            name: String::new(),
            ..member(id, false)
        };
        let check = |list: &[Member], add, remove_1, promote| {
            let cluster = members(list);
            assert_eq!(cluster.may_add_voter(), add, "add to {list:?}");
            assert_eq!(
                cluster.may_remove_voter(1),
                remove_1,
                "remove from {list:?}"
            );
            assert_eq!(cluster.may_promote(), promote, "promote in {list:?}");
        };
        let (a, b, c) = (member(1, false), member(2, false), member(3, false));
        check(std::slice::from_ref(&a), true, false, true);
        check(&[a.clone(), b.clone()], true, true, true);
        check(&[a.clone(), unstarted(2)], false, false, true);
        check(&[a.clone(), b.clone(), c.clone()], true, true, true);
        check(&[a.clone(), b.clone(), unstarted(3)], false, false, true);
        check(&[a, unstarted(2), unstarted(3)], false, false, false);
    }

    #[test]
    fn conf_changes_decode_to_what_they_were_made_of() {
        let learner = member(4, true);
        let check = |change: ConfChange, expected| assert_eq!(decode(&change), Ok(expected));
        check(add(1, &learner), MemberChange::Add(learner.clone()));
        check(
            add(1, &member(4, false)),
            MemberChange::Add(member(4, false)),
        );
        check(remove(1, 4), MemberChange::Remove(4));
        check(update(1, &learner), MemberChange::Update(learner.clone()));
        check(
            found(std::slice::from_ref(&learner)).remove(0),
            MemberChange::Add(learner.clone()),
        );
        let mut other = add(1, &learner);
        other.node_id = Some(5);
        assert!(decode(&other).is_err());
        other.context = Some(Bytes::from_static(b"{"));
        assert!(decode(&other).is_err());
        other.r#type = Some(9);
        assert!(decode(&other).is_err());
    }
}
