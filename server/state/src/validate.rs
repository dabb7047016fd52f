//! The choke point before a proposal: an entry that real etcd cannot decode would end every etcd
//! member of the cluster for good, at once and at each restart.

use proto::{
    etcdserverpb::{InternalRaftRequest, RequestOp, TxnRequest, request_op::Request},
    raftpb::ConfChange,
};

use crate::{error::Error, members};

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
    members::decode(change).map(|_| ())
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
    }
}
