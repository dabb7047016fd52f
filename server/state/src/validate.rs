//! The choke point before a proposal: an entry that real etcd cannot decode would end every etcd
//! member of the cluster for good, at once and at each restart.

use prost::Message as _;
use proto::{
    etcdserverpb::{InternalRaftRequest, RequestOp, TxnRequest, request_op::Request},
    raftpb::{ConfChange, ConfChangeType, EntryType, Message, MessageType},
};

use crate::{
    auth,
    error::Error,
    members::{self, MemberChange},
};

/// Transactions nested deeper cannot be decoded here: the protobuf library stops at 100 messages
/// within each other, and a transaction takes two.
pub const MAX_TXN_DEPTH: usize = 48;

/// Whether a request may go into the log.
///
/// # Errors
/// [`Error::TooManyOps`] for a transaction nested too deep.
///
/// # Panics
/// In debug builds, when the request is none or several at once: no caller makes such.
pub fn admit(request: &InternalRaftRequest) -> Result<(), Error> {
    debug_assert!(request.header.as_ref().is_some_and(|header| header.id != 0));
    match &request.txn {
        Some(txn) if depth(txn) > MAX_TXN_DEPTH => Err(Error::TooManyOps),
        _ => Ok(()),
    }
}

/// Whether a message from another member may go to raft. Only a forwarded proposal is looked at:
/// this member would put it into the log in its own name. What this version cannot apply must not
/// get there either, as it would end every Cairn member.
///
/// # Errors
/// What is wrong with it; the proposal is dropped, and its proposer's caller waits in vain.
pub fn admit_message(message: &Message) -> Result<(), String> {
    if message.r#type != Some(MessageType::MsgProp as i32) {
        return Ok(());
    }
    for entry in &message.entries {
        let data = entry.data.clone().unwrap_or_default();
        match EntryType::try_from(entry.r#type.unwrap_or_default()) {
            Ok(EntryType::EntryNormal) => {
                let request = InternalRaftRequest::decode(data)
                    .map_err(|error| format!("a forwarded request: {error}"))?;
                if !is_supported(&request) {
                    return Err("a forwarded request that cannot be applied here yet".to_owned());
                }
            }
            Ok(EntryType::EntryConfChange) => {
                let change = ConfChange::decode(data)
                    .map_err(|error| format!("a forwarded membership change: {error}"))?;
                admit_conf_change(&change)?;
            }
            _ => return Err(format!("a forwarded entry of type {:?}", entry.r#type)),
        }
    }
    Ok(())
}

/// Whether apply knows what to do with a request.
fn is_supported(r: &InternalRaftRequest) -> bool {
    let has_id = r.id != 0 || r.header.as_ref().is_some_and(|header| header.id != 0);
    has_id
        && (r.range.is_some()
            || r.put.is_some()
            || r.delete_range.is_some()
            || r.txn.is_some()
            || r.compaction.is_some()
            || r.lease_grant.is_some()
            || r.lease_revoke.is_some()
            || r.lease_checkpoint.is_some()
            || r.alarm.is_some()
            || r.cluster_version_set.is_some()
            || r.cluster_member_attr_set.is_some()
            || r.downgrade_info_set.is_some()
            || (auth::is_auth(r) && !auth::has_clear_password(r)))
}

/// Whether a conf change may go into the log: its context must be the member that it names.
///
/// # Errors
/// What is wrong with it.
pub fn admit_conf_change(change: &ConfChange) -> Result<(), String> {
    if change.id.unwrap_or_default() == 0 {
        return Err("a conf change without an ID".to_owned());
    }
    if change.node_id.unwrap_or_default() == 0 {
        return Err("a conf change without a member".to_owned());
    }
    let learner = ConfChangeType::ConfChangeAddLearnerNode as i32;
    match members::decode(change)? {
        // Raft goes by the type and the members' list by the context: they must say the same.
        MemberChange::Add(member) if member.is_learner != (change.r#type == Some(learner)) => {
            Err(format!(
                "a conf change adds {:x} as a learner and as a voter",
                member.id
            ))
        }
        _ => Ok(()),
    }
}

fn depth(txn: &TxnRequest) -> usize {
    let nested = |op: &RequestOp| match &op.request {
        Some(Request::RequestTxn(txn)) => depth(txn),
        _ => 0,
    };
    let ops = txn.success.iter().chain(&txn.failure);
    1 + ops.map(nested).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_nested_too_deep_is_refused() {
        let nested = |levels: usize| {
            let mut txn = TxnRequest::default();
            for _ in 1..levels {
                txn = TxnRequest {
                    success: vec![RequestOp {
                        request: Some(Request::RequestTxn(txn)),
                    }],
                    ..TxnRequest::default()
                };
            }
            InternalRaftRequest {
                header: Some(proto::etcdserverpb::RequestHeader {
                    id: 1,
                    ..Default::default()
                }),
                txn: Some(txn),
                ..InternalRaftRequest::default()
            }
        };
        assert_eq!(admit(&nested(MAX_TXN_DEPTH)), Ok(()));
        assert_eq!(admit(&nested(MAX_TXN_DEPTH + 1)), Err(Error::TooManyOps));
    }

    #[test]
    fn a_forwarded_proposal_must_be_one_that_every_member_can_apply() {
        let check = |kind: MessageType, entry: EntryType, data: Vec<u8>, admitted: bool| {
            let message = Message {
                r#type: Some(kind as i32),
                entries: vec![proto::raftpb::Entry {
                    r#type: Some(entry as i32),
                    data: Some(data.into()),
                    ..Default::default()
                }],
                ..Message::default()
            };
            let found = admit_message(&message);
            assert_eq!(found.is_ok(), admitted, "{message:?}: {found:?}");
        };
        let header = Some(proto::etcdserverpb::RequestHeader {
            id: 1,
            ..Default::default()
        });
        let request = |spoil: fn(&mut InternalRaftRequest)| {
            let mut request = InternalRaftRequest {
                header: header.clone(),
                put: Some(Default::default()),
                ..Default::default()
            };
            spoil(&mut request);
            request.encode_to_vec()
        };
        let (normal, change) = (EntryType::EntryNormal, EntryType::EntryConfChange);
        let prop = MessageType::MsgProp;
        check(prop, normal, request(|_| {}), true);
        check(prop, normal, request(|r| r.header = None), false);
        check(prop, normal, request(|r| r.put = None), false);
        let auth = |r: &mut InternalRaftRequest| {
            r.put = None;
            r.auth_enable = Some(Default::default());
        };
        check(prop, normal, request(auth), true);
        let clear = |r: &mut InternalRaftRequest| {
            r.put = None;
            r.auth_user_add = Some(proto::etcdserverpb::AuthUserAddRequest {
                name: "ann".to_owned(),
                password: "secret".to_owned(),
                ..Default::default()
            });
        };
        check(prop, normal, request(clear), false);
        check(prop, normal, vec![0xff], false);
        check(prop, change, vec![0xff], false);
        check(prop, change, members::remove(7, 3).encode_to_vec(), true);
        check(prop, EntryType::EntryConfChangeV2, vec![], false);
        check(MessageType::MsgApp, normal, vec![0xff], true);
    }

    #[test]
    fn a_conf_change_that_etcd_would_panic_on_is_refused() {
        let member = members::Member {
            id: 3,
            ..Default::default()
        };
        let good = members::add(9, &member);
        assert_eq!(admit_conf_change(&good), Ok(()));
        let check = |spoil: fn(&mut ConfChange)| {
            let mut change = good.clone();
            spoil(&mut change);
            assert!(admit_conf_change(&change).is_err(), "{change:?}");
        };
        check(|change| change.id = None);
        check(|change| change.node_id = None);
        check(|change| change.node_id = Some(4));
        check(|change| change.context = None);
        check(|change| change.context = Some("{}".into()));
        check(|change| change.r#type = Some(7));
        check(|change| change.r#type = Some(ConfChangeType::ConfChangeAddLearnerNode as i32));
    }
}
