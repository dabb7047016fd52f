//! Between etcd's messages and what is recorded, for who asks real members and who simulates them.

use bytes::Bytes;
use proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, compare, request_op,
        response_op,
    },
    mvccpb,
};

use crate::{
    Comparison, Event, EventKind, KeyRange, KeyValue, ResponseKind, Target, Txn, TxnOp, TxnResult,
};

/// The request for a range.
pub fn to_range(keys: &KeyRange, limit: i64, revision: i64, count_only: bool) -> RangeRequest {
    RangeRequest {
        key: keys.key.clone(),
        range_end: keys.end.clone(),
        limit,
        revision,
        count_only,
        ..RangeRequest::default()
    }
}

/// The request for a put.
pub fn to_put(key: &Bytes, value: &Bytes, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        prev_kv,
        ..PutRequest::default()
    }
}

/// The request for a delete.
pub fn to_delete(keys: &KeyRange, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: keys.key.clone(),
        range_end: keys.end.clone(),
        prev_kv,
    }
}

/// The request for a transaction.
pub fn to_txn(txn: &Txn) -> TxnRequest {
    let ops = |ops: &[TxnOp]| {
        let ops = ops.iter().map(|op| {
            let request = match op {
                TxnOp::Range {
                    keys,
                    limit,
                    revision,
                    count_only,
                } => {
                    let range = to_range(keys, *limit, *revision, *count_only);
                    request_op::Request::RequestRange(range)
                }
                TxnOp::Put {
                    key,
                    value,
                    lease,
                    prev_kv,
                } => request_op::Request::RequestPut(to_put(key, value, *lease, *prev_kv)),
                TxnOp::Delete { keys, prev_kv } => {
                    request_op::Request::RequestDeleteRange(to_delete(keys, *prev_kv))
                }
            };
            RequestOp {
                request: Some(request),
            }
        });
        ops.collect()
    };
    TxnRequest {
        compare: txn.compares.iter().map(to_compare).collect(),
        success: ops(&txn.then),
        failure: ops(&txn.otherwise),
    }
}

fn to_compare(compare: &crate::Compare) -> Compare {
    use compare::{CompareResult, CompareTarget, TargetUnion};
    let result = match compare.comparison {
        Comparison::Equal => CompareResult::Equal,
        Comparison::NotEqual => CompareResult::NotEqual,
        Comparison::Greater => CompareResult::Greater,
        Comparison::Less => CompareResult::Less,
    };
    let (target, union) = match &compare.target {
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
        Target::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
        Target::CreateRevision(revision) => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(*revision),
        ),
        Target::ModRevision(revision) => (CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        Target::Lease(lease) => (CompareTarget::Lease, TargetUnion::Lease(*lease)),
    };
    Compare {
        result: result as i32,
        target: target as i32,
        key: compare.keys.key.clone(),
        range_end: compare.keys.end.clone(),
        target_union: Some(union),
    }
}

/// The answer to a range.
pub fn of_range(response: RangeResponse) -> ResponseKind {
    ResponseKind::Range {
        kvs: response.kvs.into_iter().map(of_kv).collect(),
        more: response.more,
        count: response.count,
    }
}

/// The answer to a put.
pub fn of_put(response: PutResponse) -> ResponseKind {
    ResponseKind::Put {
        prev: response.prev_kv.map(of_kv),
    }
}

/// The answer to a delete.
pub fn of_delete(response: DeleteRangeResponse) -> ResponseKind {
    ResponseKind::Delete {
        deleted: response.deleted,
        prevs: response.prev_kvs.into_iter().map(of_kv).collect(),
    }
}

/// The answer to a transaction.
///
/// # Panics
/// When it answers what a recorded transaction cannot hold.
pub fn of_txn(response: TxnResponse) -> ResponseKind {
    let of_op = |op: ResponseOp| match op.response {
        Some(response_op::Response::ResponseRange(range)) => of_range(range),
        Some(response_op::Response::ResponsePut(put)) => of_put(put),
        Some(response_op::Response::ResponseDeleteRange(delete)) => of_delete(delete),
        other => panic!("no client asked for {other:?}"),
    };
    ResponseKind::Txn(TxnResult {
        succeeded: response.succeeded,
        responses: response.responses.into_iter().map(of_op).collect(),
    })
}

/// A key.
pub fn of_kv(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// An event as a watcher is sent it.
///
/// # Panics
/// Without a key, which no event is.
pub fn of_watched(event: mvccpb::Event) -> Event {
    Event {
        kind: match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        },
        kv: of_kv(event.kv.expect("an event has a key")),
        prev: event.prev_kv.map(of_kv),
    }
}
