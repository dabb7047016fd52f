//! What etcd's quota charges for a request.

use proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};

/// What is charged for a key besides its bytes.
const KEY_OVERHEAD: i64 = 256;
/// What is charged for a lease.
pub const LEASE: i64 = 64;
/// The quota when none is set.
const DEFAULT_QUOTA: i64 = 2 << 30;

/// The quota that a setting means: 0 is etcd's default, and less than 0 none.
pub fn quota(setting: i64) -> Option<i64> {
    match setting {
        0 => Some(DEFAULT_QUOTA),
        setting => (setting > 0).then_some(setting),
    }
}

/// Of a put.
pub fn put(r: &PutRequest) -> i64 {
    KEY_OVERHEAD + (r.key.len() + r.value.len()) as i64
}

/// Of a transaction: its dearer branch.
pub fn txn(r: &TxnRequest) -> i64 {
    let branch = |ops: &[RequestOp]| -> i64 {
        let costs = ops.iter().map(|op| match &op.request {
            Some(Request::RequestPut(r)) => put(r),
            Some(Request::RequestTxn(r)) => txn(r),
            _ => 0,
        });
        costs.sum()
    };
    branch(&r.success).max(branch(&r.failure))
}
