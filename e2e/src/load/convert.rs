//! Makes recorded requests at members; `history::wire` has the messages.

use history::{
    Outcome, Refusal, Request, Response, ResponseKind,
    wire::{of_delete, of_put, of_range, of_txn, to_delete, to_put, to_range, to_txn},
};
use proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest, ResponseHeader, kv_client::KvClient,
    lease_client::LeaseClient,
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
            let mut asked = to_range(keys, *limit, *revision, *count_only);
            asked.serializable = *serializable;
            let answer = kv_client.range(asked).await?.into_inner();
            (answer.header, of_range(answer))
        }
        Request::Put {
            key,
            value,
            lease,
            prev_kv,
        } => {
            let asked = to_put(key, value, *lease, *prev_kv);
            let answer = kv_client.put(asked).await?.into_inner();
            (answer.header, of_put(answer))
        }
        Request::Delete { keys, prev_kv } => {
            let answer = kv_client.delete_range(to_delete(keys, *prev_kv)).await?;
            let answer = answer.into_inner();
            (answer.header, of_delete(answer))
        }
        Request::Txn(txn) => {
            let answer = kv_client.txn(to_txn(txn)).await?.into_inner();
            (answer.header, of_txn(answer))
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
