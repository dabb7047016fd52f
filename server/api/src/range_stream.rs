//! KV.RangeStream: a range in pieces. All pieces are of one revision; nothing is held between
//! them, so a client that reads slowly costs one piece of memory. When its revision is compacted
//! meanwhile, the stream ends with that error and the client has to forget what it has.

use proto::etcdserverpb::{
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader,
    range_request::{SortOrder, SortTarget},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{Backend, caller::Caller, checks, gate, status, stream::Leaderless};

/// Keys of the first piece. The next ones grow or shrink towards the largest request's size.
const FIRST_KEYS: i64 = 10;
/// Pieces that wait for the connection.
const WAITING_PIECES: usize = 1;
/// What a key takes in a piece beside its bytes, about.
const KEY_OVERHEAD: usize = 32;

pub(crate) type Pieces = ReceiverStream<Result<RangeStreamResponse, Status>>;
type Sender = mpsc::Sender<Result<RangeStreamResponse, Status>>;

/// Answers the call: what is wrong with the request is said at once, all else in the stream.
pub(crate) async fn open<B: Backend>(
    backend: &B,
    request: Request<RangeRequest>,
) -> Result<Response<Pieces>, Status> {
    gate::pass(backend, request.metadata(), false)?;
    let leaderless = Leaderless::of(backend, request.metadata());
    let caller = Caller::of(backend, &request);
    let request = request.into_inner();
    check(&request)?;
    if !request.serializable {
        backend.linearizable().await.map_err(status::of)?;
    }
    let permit = backend.permit_read(&caller, &request.key, &request.range_end);
    let permit = permit.await.map_err(status::of)?;
    let (pieces, receiver) = mpsc::channel(WAITING_PIECES);
    let served = serve(backend.clone(), request, pieces.clone());
    let backend = backend.clone();
    let stream = async move {
        served.await?;
        // What was read meanwhile may be what is no longer permitted.
        backend.recheck(permit).map_err(status::of)
    };
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = stream => ended,
            ended = leaderless.wait() => Err(ended),
            () = pieces.closed() => Ok(()),
        };
        if let Err(status) = ended {
            // A client that is gone needs no reason.
            let _ = pieces.send(Err(status)).await;
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

/// Pieces come in the order of keys, so no other order can be had, nor filters.
fn check(r: &RangeRequest) -> Result<(), Status> {
    checks::range(r).map_err(status::of)?;
    let by_key = r.sort_target() == SortTarget::Key && r.sort_order() == SortOrder::Ascend;
    if r.sort_order() != SortOrder::None && !by_key {
        let text = "RangeStream does not support custom sort orders";
        return Err(Status::unimplemented(text));
    }
    let filters = [
        r.min_mod_revision,
        r.max_mod_revision,
        r.min_create_revision,
        r.max_create_revision,
    ];
    if filters.iter().any(|&revision| revision != 0) {
        let text = "RangeStream does not support revision filters";
        return Err(Status::unimplemented(text));
    }
    Ok(())
}

async fn serve<B: Backend>(backend: B, mut r: RangeRequest, pieces: Sender) -> Result<(), Status> {
    let wanted = match r.limit {
        0 => i64::MAX,
        limit => limit,
    };
    r.limit = FIRST_KEYS.min(wanted);
    let mut header = None;
    let mut sent = 0;
    loop {
        // The room first: nothing is read for a client that does not.
        let Ok(room) = pieces.reserve().await else {
            return Ok(());
        };
        let read = backend.read(r.clone()).await.map_err(status::of)?;
        let header = *header.get_or_insert_with(|| first_header(&backend, &mut r, &read));
        let keys = read.kvs.len() as i64;
        let behind = read
            .kvs
            .last()
            .filter(|_| read.more)
            .map(|kv| after(&kv.key));
        let done = r.count_only || behind.is_none() || sent + keys == wanted;
        let next = next_limit(r.limit, size(&read), backend.limits().max_request_bytes);
        let mut piece = RangeResponse {
            kvs: read.kvs,
            ..RangeResponse::default()
        };
        if done {
            piece.header = Some(header);
            piece.more = read.more;
            // What was read began behind what was sent before.
            piece.count = sent + read.count;
        }
        room.send(Ok(RangeStreamResponse {
            range_response: Some(piece),
        }));
        let (Some(behind), false) = (behind, done) else {
            return Ok(());
        };
        sent += keys;
        r.key = behind.into();
        r.limit = next.min(wanted - sent);
    }
}

/// The state in which the stream begins. A request that names no revision is held to its.
fn first_header<B: Backend>(
    backend: &B,
    r: &mut RangeRequest,
    read: &RangeResponse,
) -> ResponseHeader {
    let mut header = read.header.unwrap_or_default();
    if r.revision == 0 {
        r.revision = header.revision;
    }
    status::complete(backend, &mut header);
    header
}

/// The first key behind `key`.
fn after(key: &[u8]) -> Vec<u8> {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after
}

fn size(read: &RangeResponse) -> usize {
    let kvs = read.kvs.iter();
    kvs.map(|kv| kv.key.len() + kv.value.len() + KEY_OVERHEAD)
        .sum()
}

/// Twice or half as many keys, as long as a piece is not about `wanted` bytes large.
fn next_limit(limit: i64, size: usize, wanted: usize) -> i64 {
    if size < wanted / 2 {
        limit.saturating_mul(2)
    } else if size > wanted.saturating_mul(2) {
        (limit / 2).max(1)
    } else {
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_grow_and_shrink_towards_the_wanted_size() {
        assert_eq!(next_limit(10, 400, 1000), 20);
        assert_eq!(next_limit(10, 500, 1000), 10);
        assert_eq!(next_limit(10, 2000, 1000), 10);
        assert_eq!(next_limit(10, 2001, 1000), 5);
        assert_eq!(next_limit(1, 5000, 1000), 1);
    }
}
