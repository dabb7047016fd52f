//! Between the log, the state machine and what is recorded; `history::wire` has the messages of clients.

use history::{
    Event, EventKind, Request, ResponseKind,
    wire::{of_delete, of_kv, of_put, of_txn, to_delete, to_put, to_txn},
};
use prost::Message as _;
use proto::{
    etcdserverpb::{
        CompactionRequest, InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest,
        ResponseHeader,
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
        } => entry.put = Some(to_put(key, value, *lease, *prev_kv)),
        Request::Delete { keys, prev_kv } => entry.delete_range = Some(to_delete(keys, *prev_kv)),
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
