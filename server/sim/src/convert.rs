//! Between etcd's messages and what is recorded.

use bytes::Bytes;
use history::{
    Comparison, Event, EventKind, KeyRange, KeyValue, Request, ResponseKind, Target, Txn, TxnOp,
    TxnResult,
};
use prost::Message as _;
use proto::{
    etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, DeleteRangeResponse, InternalRaftRequest,
        LeaseGrantRequest, LeaseRevokeRequest, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, compare,
        request_op, response_op,
    },
    mvccpb,
};
use state::Reply;

/// The time to live that all leases are granted, in seconds.
pub(crate) const LEASE_SECONDS: i64 = 3;

/// What goes into the log for a request that changes something.
pub(crate) fn to_entry(request: &Request) -> InternalRaftRequest {
    let mut entry = InternalRaftRequest::default();
    match request {
        Request::Range { .. } => unreachable!("reads do not go into the log"),
        Request::Put {
            key,
            value,
            lease,
            prev_kv,
        } => entry.put = Some(put(key, value, *lease, *prev_kv)),
        Request::Delete { keys, prev_kv } => entry.delete_range = Some(delete(keys, *prev_kv)),
        Request::Txn(txn) => entry.txn = Some(to_txn(txn)),
        Request::Compact { revision } => {
            entry.compaction = Some(CompactionRequest {
                revision: *revision,
                physical: false,
            });
        }
        Request::LeaseGrant { id, .. } => {
            entry.lease_grant = Some(LeaseGrantRequest {
                id: *id,
                ttl: LEASE_SECONDS,
            });
        }
        Request::LeaseRevoke { id } => entry.lease_revoke = Some(LeaseRevokeRequest { id: *id }),
    }
    entry
}

pub(crate) fn to_range(
    keys: &KeyRange,
    limit: i64,
    revision: i64,
    count_only: bool,
) -> RangeRequest {
    RangeRequest {
        key: keys.key.clone(),
        range_end: keys.end.clone(),
        limit,
        revision,
        count_only,
        ..RangeRequest::default()
    }
}

fn put(key: &Bytes, value: &Bytes, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.clone(),
        value: value.clone(),
        lease,
        prev_kv,
        ..PutRequest::default()
    }
}

fn delete(keys: &KeyRange, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: keys.key.clone(),
        range_end: keys.end.clone(),
        prev_kv,
    }
}

pub(crate) fn to_txn(txn: &Txn) -> TxnRequest {
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
                } => request_op::Request::RequestPut(put(key, value, *lease, *prev_kv)),
                TxnOp::Delete { keys, prev_kv } => {
                    request_op::Request::RequestDeleteRange(delete(keys, *prev_kv))
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

fn to_compare(compare: &history::Compare) -> Compare {
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

/// An answer of the state machine.
pub(crate) fn of_reply(reply: Reply) -> history::Response {
    let (header, kind) = match reply {
        Reply::Put(response) => (response.header, of_put(response)),
        Reply::DeleteRange(response) => (response.header, of_delete(response)),
        Reply::Txn(response) => (response.header, of_txn(response)),
        Reply::Compaction(response) => (response.header, ResponseKind::Nothing),
        Reply::LeaseGrant(response) => (response.header, ResponseKind::Nothing),
        Reply::LeaseRevoke(response) => (response.header, ResponseKind::Nothing),
        other => panic!("no client asked for {other:?}"),
    };
    history::Response {
        revision: revision(header.as_ref()),
        kind,
    }
}

pub(crate) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

pub(crate) fn of_range(response: RangeResponse) -> ResponseKind {
    ResponseKind::Range {
        kvs: response.kvs.into_iter().map(of_kv).collect(),
        more: response.more,
        count: response.count,
    }
}

fn of_put(response: PutResponse) -> ResponseKind {
    ResponseKind::Put {
        prev: response.prev_kv.map(of_kv),
    }
}

fn of_delete(response: DeleteRangeResponse) -> ResponseKind {
    ResponseKind::Delete {
        deleted: response.deleted,
        prevs: response.prev_kvs.into_iter().map(of_kv).collect(),
    }
}

pub(crate) fn of_txn(response: TxnResponse) -> ResponseKind {
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

pub(crate) fn of_kv(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// An event of the store, without what was before.
pub(crate) fn of_event(event: &mvcc::Event) -> Event {
    Event {
        kind: match event.kind {
            mvcc::EventKind::Put { .. } => EventKind::Put,
            mvcc::EventKind::Delete => EventKind::Delete,
        },
        kv: of_kv(mvccpb::KeyValue::decode(event.kv.clone()).unwrap()),
        prev: None,
    }
}

/// An event as a watcher is sent it.
pub(crate) fn of_watched(event: mvccpb::Event) -> Event {
    Event {
        kind: match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        },
        kv: of_kv(event.kv.unwrap()),
        prev: event.prev_kv.map(of_kv),
    }
}
