//! What locks and elections rest on. A caller stands in a queue: it has a key of its own below a
//! prefix, bound to its lease, and whose key was created first has the turn. The keys, and what is
//! written when, are those of etcd's Go package `concurrency`, so that clients of either kind stand
//! in one queue. All of it is done through the [`Backend`] with the rights of whoever calls.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
        RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op, response_op,
    },
    mvccpb::{KeyValue, event::EventType},
};
use state::Error;
use tonic::Status;

use crate::{Backend, Caller, backend::WatchHandle, checks, status};

/// The lease that the server makes for a caller who brings none, in seconds. Nobody renews it.
const LEASE_TTL: i64 = 60;

/// A backend, as one caller may use it.
#[derive(Clone)]
pub(crate) struct Client<B> {
    pub backend: B,
    pub caller: Caller,
}

/// etcd's server asks itself through its own client, which forgets the codes of errors.
pub(crate) fn told(error: Error) -> Status {
    Status::unknown(error.text())
}

/// What holds of a key for a transaction to succeed: it was created at this revision; 0 says that
/// there is none.
fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

pub(crate) fn put_op(key: &Bytes, value: &Bytes, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..PutRequest::default()
        })),
    }
}

pub(crate) fn get_op(request: RangeRequest) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestRange(request)),
    }
}

fn delete_op(key: &Bytes) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestDeleteRange(
            DeleteRangeRequest {
                key: key.clone(),
                ..DeleteRangeRequest::default()
            },
        )),
    }
}

pub(crate) fn get(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

/// The end of the range of all keys that begin with a prefix.
fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// Who has the turn.
pub(crate) fn first(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        range_end: end_of(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..get(prefix)
    }
}

/// Who came last, of those who came until a revision.
fn last_until(prefix: &Bytes, revision: i64) -> RangeRequest {
    RangeRequest {
        sort_order: SortOrder::Descend as i32,
        max_create_revision: revision,
        ..first(prefix)
    }
}

/// The queue of a name.
pub(crate) fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of who stands in a queue with a lease, whose number is written as Go does.
pub(crate) fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let lease = format!("{sign}{:x}", lease.unsigned_abs());
    [prefix, lease.as_bytes()].concat().into()
}

/// The answer of one of a transaction's ranges; empty where there is none.
pub(crate) fn range_of(response: &TxnResponse, at: usize) -> &[KeyValue] {
    match response.responses.get(at).map(|op| &op.response) {
        Some(Some(response_op::Response::ResponseRange(range))) => &range.kvs,
        _ => &[],
    }
}

/// The revision of an answer.
pub(crate) fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl<B: Backend> Client<B> {
    /// The caller's lease, or a new one.
    pub async fn lease(&self, given: i64) -> Result<i64, Error> {
        if given != 0 {
            return Ok(given);
        }
        let request = LeaseGrantRequest {
            ttl: LEASE_TTL,
            id: 0,
        };
        let granted = self.backend.lease_grant(&self.caller, request).await?;
        Ok(granted.id)
    }

    /// Reads what is committed.
    pub async fn range(&self, r: RangeRequest) -> Result<RangeResponse, Error> {
        checks::range(&r)?;
        let mut answer = self.backend.range(&self.caller, r).await?;
        status::fill(&self.backend, &mut answer.header);
        // What this process has encoded can be read by it.
        RangeResponse::decode(&answer.encode_to_vec()[..]).map_err(|_| Error::Stopped)
    }

    /// Does `then` if the key was created at a revision, and `otherwise` if not.
    pub async fn txn(
        &self,
        key: &Bytes,
        created: i64,
        then: Vec<RequestOp>,
        otherwise: Vec<RequestOp>,
    ) -> Result<TxnResponse, Error> {
        let request = TxnRequest {
            compare: vec![created_at(key, created)],
            success: then,
            failure: otherwise,
        };
        checks::txn(&request, self.backend.limits().max_txn_ops)?;
        let mut answer = self.backend.txn(&self.caller, request).await?;
        status::fill(&self.backend, &mut answer.header);
        Ok(answer)
    }

    /// Leaves a queue, if the key is still the one that was created then.
    pub async fn leave(&self, key: &Bytes, created: i64) -> Result<TxnResponse, Error> {
        let then = vec![delete_op(key)];
        self.txn(key, created, then, Vec::new()).await
    }

    /// Begins to watch a key, or a range of them, from a revision on.
    pub async fn watch(
        &self,
        key: &Bytes,
        range_end: Bytes,
        revision: i64,
    ) -> Result<Changes<B>, Error> {
        let permit = self.backend.permit_read(&self.caller, key, &range_end);
        permit.await?;
        let mut watch = self.backend.watch();
        watch.create(WatchCreateRequest {
            key: key.clone(),
            range_end,
            start_revision: revision,
            ..WatchCreateRequest::default()
        });
        Ok(Changes {
            backend: self.backend.clone(),
            watch,
        })
    }

    /// Watches all keys that begin with a prefix.
    pub async fn watch_prefix(&self, prefix: &Bytes, revision: i64) -> Result<Changes<B>, Error> {
        self.watch(prefix, end_of(prefix), revision).await
    }

    /// Waits until all who came to a queue until a revision have left it.
    async fn wait_turn(&self, prefix: &Bytes, revision: i64) -> Result<(), Error> {
        loop {
            let before = self.range(last_until(prefix, revision)).await?;
            let Some(last) = before.kvs.first() else {
                return Ok(());
            };
            let since = revision_of(before.header.as_ref());
            let mut changes = self.watch(&last.key, Bytes::new(), since).await?;
            while !changes.next().await?.iter().any(has_left) {}
        }
    }
}

fn has_left(change: &Change) -> bool {
    change.kind == EventType::Delete
}

/// What happened to a key.
pub(crate) struct Change {
    pub kind: EventType,
    pub kv: KeyValue,
    /// The header that came with it.
    pub header: Option<ResponseHeader>,
}

/// A watch of one caller.
pub(crate) struct Changes<B: Backend> {
    backend: B,
    watch: B::Watch,
}

impl<B: Backend> Changes<B> {
    /// What happened next; it may be nothing.
    ///
    /// # Errors
    /// `Compacted` when it can no longer be known, `Stopped` when the server ends.
    pub async fn next(&mut self) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        for mut response in self.watch.next().await.ok_or(Error::Stopped)? {
            status::complete(&self.backend, response.header.get_or_insert_default());
            if response.canceled {
                return Err(match response.compact_revision {
                    0 => Error::WatchCanceled,
                    _ => Error::Compacted,
                });
            }
            let response = WatchResponse::decode(&response.encode_to_vec()[..]);
            let response = response.map_err(|_| Error::Stopped)?;
            let header = response.header;
            changes.extend(response.events.into_iter().map(|event| Change {
                kind: event.r#type(),
                kv: event.kv.unwrap_or_default(),
                header,
            }));
        }
        Ok(changes)
    }
}

/// A place in a queue. Whoever waits there and goes away without a word leaves it: a client that
/// is gone must not have its turn.
pub(crate) struct Place<B: Backend> {
    client: Client<B>,
    prefix: Bytes,
    key: Bytes,
    created: i64,
    waiting: bool,
}

impl<B: Backend> Place<B> {
    pub fn new(client: Client<B>, prefix: Bytes, key: Bytes, created: i64) -> Self {
        Self {
            client,
            prefix,
            key,
            created,
            waiting: false,
        }
    }

    /// Waits until all who came before have left. From then on the place is given up when it is
    /// dropped, unless it is kept.
    pub async fn wait_turn(&mut self) -> Result<(), Error> {
        self.waiting = true;
        let before = self.created - 1;
        self.client.wait_turn(&self.prefix, before).await
    }

    /// The turn has come, and the caller is about to be told.
    pub fn keep(mut self) {
        self.waiting = false;
    }
}

impl<B: Backend> Drop for Place<B> {
    fn drop(&mut self) {
        if !self.waiting {
            return;
        }
        let (client, created) = (self.client.clone(), self.created);
        let key = std::mem::take(&mut self.key);
        tokio::spawn(async move {
            // If it cannot be given up now, the end of its lease does.
            let _ = client.leave(&key, created).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_go_client() {
        let key = |lease| key_of(&prefix_of(b"n"), lease);
        assert_eq!(key(0x1f), "n/1f");
        assert_eq!(key(i64::MAX), "n/7fffffffffffffff");
        assert_eq!(key(-2), "n/-2");
        assert_eq!(key(i64::MIN), "n/-8000000000000000");
        assert_eq!(prefix_of(b""), "/");
    }

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        assert_eq!(end_of(b"n/"), "n0");
        assert_eq!(end_of(b"n\xff\xff"), "o");
        assert_eq!(end_of(b"\xff"), "\0");
    }
}
