//! Between what is recorded and what goes over the wire.

use history::{
    Compare, Comparison, Event, EventKind, KeyRange, KeyValue, Outcome, Refusal, Request, Response,
    ResponseKind, Target, Txn, TxnOp, TxnResult,
};
use proto::{
    etcdserverpb::{
        self, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
        LeaseRevokeRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
        ResponseHeader, ResponseOp, TxnRequest, TxnResponse, kv_client::KvClient,
        lease_client::LeaseClient, request_op, response_op,
    },
    mvccpb,
};
use tonic::{Code, Status, transport::Channel};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Makes a request at a member.
pub(super) async fn call(channel: Channel, request: &Request) -> Result<Response, Status> {
    let mut kv_client = KvClient::new(channel.clone());
    let mut leases = LeaseClient::new(channel);
    let (header, kind) = match request {
        Request::Range {
            keys,
            limit,
            revision,
            serializable,
            count_only,
        } => {
            let mut asked = range(keys, *limit, *revision, *count_only);
            asked.serializable = *serializable;
            let answer = kv_client.range(asked).await?.into_inner();
            (answer.header, range_answer(answer))
        }
        Request::Put {
            key,
            value,
            lease,
            prev_kv,
        } => {
            let asked = put(key.clone(), value.clone(), *lease, *prev_kv);
            let answer = kv_client.put(asked).await?.into_inner();
            (answer.header, put_answer(answer))
        }
        Request::Delete { keys, prev_kv } => {
            let answer = kv_client.delete_range(delete(keys, *prev_kv)).await?;
            let answer = answer.into_inner();
            (answer.header, delete_answer(answer))
        }
        Request::Txn(txn) => {
            let answer = kv_client.txn(transaction(txn)).await?.into_inner();
            (answer.header, txn_answer(answer))
        }
        Request::Compact { revision } => {
            let asked = CompactionRequest {
                revision: *revision,
                // Half of them wait until the rows are gone.
                physical: revision % 2 == 0,
            };
            let answer = kv_client.compact(asked).await?.into_inner();
            (answer.header, ResponseKind::Nothing)
        }
        Request::LeaseGrant { id, ttl } => {
            let asked = LeaseGrantRequest {
                id: *id,
                ttl: seconds(*ttl),
            };
            let answer = leases.lease_grant(asked).await?.into_inner();
            (answer.header, ResponseKind::Nothing)
        }
        Request::LeaseRevoke { id } => {
            let answer = leases.lease_revoke(LeaseRevokeRequest { id: *id }).await?;
            (answer.into_inner().header, ResponseKind::Nothing)
        }
    };
    Ok(Response {
        revision: revision(header),
        kind,
    })
}

/// The time to live to ask for: what was recorded, or long when the recorder cannot tell.
fn seconds(ttl: u64) -> i64 {
    match ttl {
        0 => super::leases::HELD_TTL,
        ttl => i64::try_from(ttl / SECOND).unwrap_or(i64::MAX),
    }
}

/// What an error says about whether it was done.
pub(super) fn refusal(status: &Status) -> Outcome {
    match status.code() {
        Code::OutOfRange if status.message().contains("compacted") => {
            Outcome::Refused(Refusal::Compacted)
        }
        Code::OutOfRange => Outcome::Refused(Refusal::FutureRevision),
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::ResourceExhausted => Outcome::Refused(Refusal::Other),
        _ => Outcome::Unknown,
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.unwrap_or_default().revision
}

fn range(keys: &KeyRange, limit: i64, revision: i64, count_only: bool) -> RangeRequest {
    RangeRequest {
        key: keys.key.clone(),
        range_end: keys.end.clone(),
        limit,
        revision,
        count_only,
        ..RangeRequest::default()
    }
}

fn put(key: bytes::Bytes, value: bytes::Bytes, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key,
        value,
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

fn transaction(txn: &Txn) -> TxnRequest {
    let ops = |ops: &[TxnOp]| ops.iter().map(op).collect();
    TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: ops(&txn.then),
        failure: ops(&txn.otherwise),
    }
}

fn op(op: &TxnOp) -> RequestOp {
    let request = match op {
        TxnOp::Range {
            keys,
            limit,
            revision,
            count_only,
        } => request_op::Request::RequestRange(range(keys, *limit, *revision, *count_only)),
        TxnOp::Put {
            key,
            value,
            lease,
            prev_kv,
        } => request_op::Request::RequestPut(put(key.clone(), value.clone(), *lease, *prev_kv)),
        TxnOp::Delete { keys, prev_kv } => {
            request_op::Request::RequestDeleteRange(delete(keys, *prev_kv))
        }
    };
    RequestOp {
        request: Some(request),
    }
}

fn compare(compare: &Compare) -> etcdserverpb::Compare {
    use etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
    let result = match compare.comparison {
        Comparison::Equal => CompareResult::Equal,
        Comparison::NotEqual => CompareResult::NotEqual,
        Comparison::Greater => CompareResult::Greater,
        Comparison::Less => CompareResult::Less,
    };
    let (target, union) = match &compare.target {
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
        Target::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
        Target::CreateRevision(at) => (CompareTarget::Create, TargetUnion::CreateRevision(*at)),
        Target::ModRevision(at) => (CompareTarget::Mod, TargetUnion::ModRevision(*at)),
        Target::Lease(lease) => (CompareTarget::Lease, TargetUnion::Lease(*lease)),
    };
    etcdserverpb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.keys.key.clone(),
        range_end: compare.keys.end.clone(),
        target_union: Some(union),
    }
}

/// A key as it is recorded.
pub(super) fn kv(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// An event as it is recorded.
pub(super) fn event(event: mvccpb::Event) -> Event {
    let kind = match event.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    Event {
        kind,
        kv: event.kv.map(kv).unwrap_or_default(),
        prev: event.prev_kv.map(kv),
    }
}

fn range_answer(answer: RangeResponse) -> ResponseKind {
    ResponseKind::Range {
        kvs: answer.kvs.into_iter().map(kv).collect(),
        more: answer.more,
        count: answer.count,
    }
}

fn put_answer(answer: PutResponse) -> ResponseKind {
    ResponseKind::Put {
        prev: answer.prev_kv.map(kv),
    }
}

fn delete_answer(answer: DeleteRangeResponse) -> ResponseKind {
    ResponseKind::Delete {
        deleted: answer.deleted,
        prevs: answer.prev_kvs.into_iter().map(kv).collect(),
    }
}

fn txn_answer(answer: TxnResponse) -> ResponseKind {
    let one = |op: ResponseOp| match op.response {
        Some(response_op::Response::ResponseRange(answer)) => range_answer(answer),
        Some(response_op::Response::ResponsePut(answer)) => put_answer(answer),
        Some(response_op::Response::ResponseDeleteRange(answer)) => delete_answer(answer),
        Some(response_op::Response::ResponseTxn(answer)) => txn_answer(answer),
        None => ResponseKind::Nothing,
    };
    ResponseKind::Txn(TxnResult {
        succeeded: answer.succeeded,
        responses: answer.responses.into_iter().map(one).collect(),
    })
}
